"""The local engine: rows of all owners in one running batch, each as if it were alone."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from foreword import BaseModel, Prefix, Template, generate
from foreword.base import attention
from foreword.base.attention import attend_one_query
from foreword.errors import (
    EngineStopped,
    GeometryMismatch,
    NotFinite,
    UnsupportedArchitecture,
    UsageError,
    WindowExceeded,
)
from foreword.sampling import row_seed
from foreword.serving.engine.continuous_batch import ContinuousBatch, RunningRow
from foreword.serving.engine.local import LocalEngine
from foreword.serving.engine.protocol import Row, Sampling, Token
from support.by_hand import greedy, layers_of, logits
from support.stand_ins import byte_tokenizer, random_prefix, tiny_llama
from support.tiny_bart import tiny_bart_base

PROMPTS = ["hello", "a", "some longer prompt here", "xyz abc", "the end is", "q"]


def row(
    base: BaseModel, prompt: str, prefix: Prefix | None = None, *, owner: str = "alice", **sampling: object
) -> Row:
    settings = {"max_tokens": 12, "temperature": 0.0, **sampling}
    ids = tuple(base.tokenizer(prompt)["input_ids"])
    return Row(ids, prefix, owner, Sampling(**settings), frozenset(base.end_ids))


async def tokens_of(stream: AsyncIterator[Token]) -> list[Token]:
    return [token async for token in stream]


def run(base: BaseModel, rows: list[Row], **settings: int) -> list[list[Token]]:
    """All rows asked for at once."""

    async def all_of_them() -> list[list[Token]]:
        engine = LocalEngine(base, **settings)
        try:
            return await asyncio.gather(*(tokens_of(engine.stream(row)) for row in rows))
        finally:
            await engine.close()

    return asyncio.run(all_of_them())


def running(one: Row, number: int = 0) -> RunningRow:
    return RunningRow(one, one.sampling.max_tokens, number)


def whole_step(batch: ContinuousBatch, rows: list[RunningRow]) -> list[Token | Exception]:
    """All that the rows have not read, in one step; what they get, in their order."""
    outcomes = dict(batch.step({row: row.unread for row in rows}))
    return [outcomes[row] for row in rows]


def by_hand(base: BaseModel, row: Row) -> list[int]:
    """Greedy tokens, the one that ends the text among them, from a computation without a cache."""
    prefix = None if row.prefix is None else layers_of(row.prefix)
    most, fewest = row.sampling.max_tokens, row.sampling.min_tokens
    ids = greedy(base.model, row.prompt_ids, prefix, most, row.end_ids, fewest)
    if len(ids) < row.sampling.max_tokens:
        ids.append(int(logits(base.model, [*row.prompt_ids, *ids], prefix)[-1].argmax()))
    return ids


@pytest.fixture
def mixed(tiny_base: BaseModel) -> list[Row]:
    """Prefixes of several lengths and none, texts that end at different times."""
    prefixes = [
        random_prefix(tiny_base, 3),
        None,
        random_prefix(tiny_base, 9, seed=1),
        random_prefix(tiny_base, 1),
        None,
        random_prefix(tiny_base, 30, seed=2),
    ]
    return [
        row(tiny_base, prompt, prefix, owner=f"owner {number}", max_tokens=4 + 5 * number)
        for number, (prompt, prefix) in enumerate(zip(PROMPTS, prefixes, strict=True))
    ]


@pytest.mark.parametrize("max_rows", [1, 2, 32])
def test_greedy_tokens_equal_those_computed_by_hand(
    tiny_base: BaseModel, mixed: list[Row], max_rows: int
) -> None:
    """Rows join while others run, and leave before others do."""
    found = run(tiny_base, mixed, max_rows=max_rows)
    expected = [by_hand(tiny_base, row) for row in mixed]
    assert [[token.token_id for token in tokens] for tokens in found] == expected
    assert len({len(ids) for ids in expected}) > 2
    for tokens, row_ in zip(found, mixed, strict=True):
        assert [token.finish_reason for token in tokens[:-1]] == [None] * (len(tokens) - 1)
        ended = tokens[-1].token_id in row_.end_ids
        assert tokens[-1].finish_reason == ("stop" if ended else "length")


def test_an_end_token_ends_its_row_alone(tiny_base: BaseModel, mixed: list[Row]) -> None:
    """Whatever token comes third is made the end: that row stops there, no other does."""
    expected = [by_hand(tiny_base, row) for row in mixed]
    ending = dataclasses.replace(mixed[3], end_ids=frozenset({expected[3][2]}))
    found = run(tiny_base, [*mixed[:3], ending, *mixed[4:]])
    third = expected[3].index(expected[3][2])
    assert [token.token_id for token in found[3]] == expected[3][: third + 1]
    assert found[3][-1].finish_reason == "stop"
    others = [number for number in range(len(mixed)) if number != 3]
    assert [[token.token_id for token in found[n]] for n in others] == [expected[n] for n in others]


def test_a_row_may_not_end_before_its_shortest_length(tiny_base: BaseModel, mixed: list[Row]) -> None:
    """Whatever token comes third is made the end of every row, which may come after the fifth only."""
    ending = []
    for one in mixed[1:]:
        sampling = dataclasses.replace(one.sampling, min_tokens=5, logprobs=2)
        ends = frozenset({0, by_hand(tiny_base, one)[2]})
        ending.append(dataclasses.replace(one, sampling=sampling, end_ids=ends))
    found = run(tiny_base, ending)
    assert [[token.token_id for token in tokens] for tokens in found] == [
        by_hand(tiny_base, r) for r in ending
    ]
    assert all(len(tokens) > 5 or tokens[-1].finish_reason == "length" for tokens in found)
    for tokens, one in zip(found, ending, strict=True):
        assert not one.end_ids & {token.token_id for token in tokens[:5]}
        third = tokens[2]  # the model's own log-probabilities are told, of the end that was banned, too
        assert third.likeliest[0][0] in one.end_ids
        assert third.logprob is not None
        assert third.likeliest[0][1] >= third.logprob
    drawn = [
        dataclasses.replace(
            one, sampling=dataclasses.replace(one.sampling, temperature=3.0, seed=seed, max_tokens=5)
        )
        for one in ending[1:]
        for seed in range(5)
    ]
    for tokens, one in zip(run(tiny_base, drawn), drawn, strict=True):
        assert len(tokens) == 5
        assert not one.end_ids & {token.token_id for token in tokens}


def test_long_rows_outgrow_their_buffers(tiny_base: BaseModel) -> None:
    rows = [
        row(tiny_base, "ab", random_prefix(tiny_base, 5), max_tokens=110),
        row(tiny_base, "b", max_tokens=90),
    ]
    found = run(tiny_base, rows)
    assert [[token.token_id for token in tokens] for tokens in found] == [by_hand(tiny_base, r) for r in rows]
    assert max(map(len, found)) > 64


def test_samples_depend_on_the_rows_own_seed_alone(tiny_base: BaseModel, mixed: list[Row]) -> None:
    drawn = [
        row(tiny_base, r.owner, r.prefix, temperature=1.3, top_p=0.9, seed=number)
        for number, r in enumerate(mixed)
    ]
    together = run(tiny_base, drawn)
    assert [run(tiny_base, [one])[0] for one in drawn] == together
    again = row(tiny_base, drawn[0].owner, drawn[0].prefix, temperature=1.3, top_p=0.9, seed=99)
    assert run(tiny_base, [again])[0] != together[0]


def test_the_same_seed_gives_the_same_text_as_generate(tiny_base: BaseModel, mixed: list[Row]) -> None:
    """Of a request's texts, each at its place."""
    drawn = [
        row(tiny_base, prompt, r.prefix, temperature=1.3, top_p=0.9, seed=row_seed(7, place))
        for place, (prompt, r) in enumerate(zip(PROMPTS, mixed, strict=True))
    ]
    texts = [
        tiny_base.tokenizer.decode([token.token_id for token in tokens], skip_special_tokens=True)
        for tokens in run(tiny_base, drawn)
    ]
    prefixes = [r.prefix for r in mixed]
    settings = {"temperature": 1.3, "top_p": 0.9, "seed": 7, "max_new_tokens": 12}
    expected = [
        generate(tiny_base, PROMPTS, prefix, raw=True, **settings)[n] for n, prefix in enumerate(prefixes)
    ]
    assert texts == expected
    assert all(map(len, texts))


def test_samples_follow_the_models_distribution(tiny_base: BaseModel) -> None:
    """With temperature and top-p: shares of first tokens over many seeds."""
    count, temperature, top_p = 600, 0.7, 0.8
    rows = [
        row(tiny_base, "ab", temperature=temperature, top_p=top_p, seed=seed, max_tokens=1)
        for seed in range(count)
    ]
    drawn = [tokens[0].token_id for tokens in run(tiny_base, rows)]
    shares_V, order_V = (
        (logits(tiny_base.model, rows[0].prompt_ids, None)[-1] / temperature)
        .softmax(-1)
        .sort(descending=True)
    )
    kept = int((shares_V.cumsum(0) - shares_V < top_p).sum())
    assert kept > 1
    shares = (shares_V[:kept] / shares_V[:kept].sum()).tolist()
    assert set(drawn) <= set(order_V[:kept].tolist())
    for token, share in list(zip(order_V.tolist(), shares, strict=False))[:3]:
        spread = (share * (1 - share) / count) ** 0.5
        assert abs(drawn.count(token) / count - share) < 5 * spread


def test_log_probabilities_are_the_models_own(tiny_base: BaseModel, mixed: list[Row]) -> None:
    """Before temperature and top-p, against the computation by hand."""
    prefix = mixed[0].prefix
    asked = row(tiny_base, "ab", prefix, temperature=0.7, top_p=0.5, seed=3, logprobs=4)
    tokens = run(tiny_base, [asked, *mixed])[0]
    ids = list(asked.prompt_ids)
    for token in tokens:
        expected_V = logits(tiny_base.model, ids, layers_of(prefix))[-1].log_softmax(-1)
        assert token.logprob == pytest.approx(float(expected_V[token.token_id]), abs=1e-4)
        best = expected_V.topk(4)
        assert [pair[0] for pair in token.likeliest] == best.indices.tolist()
        assert [pair[1] for pair in token.likeliest] == pytest.approx(best.values.tolist(), abs=1e-4)
        ids.append(token.token_id)
    assert len(tokens) > 2


def test_the_window_ends_a_row(tiny_base: BaseModel) -> None:
    prefix = random_prefix(tiny_base, 100)
    long = row(tiny_base, "a" * 20, prefix, max_tokens=500)
    found = run(tiny_base, [long, row(tiny_base, "ab")])
    assert len(found[0]) == 128 - 100 - 20
    assert found[0][-1].finish_reason == "length"


def test_a_prompt_that_does_not_fit_is_refused_and_others_go_on(tiny_base: BaseModel) -> None:
    async def ask() -> tuple[object, list[Token]]:
        engine = LocalEngine(tiny_base)
        long = row(tiny_base, "a" * 28, random_prefix(tiny_base, 100))
        found = await asyncio.gather(
            tokens_of(engine.stream(long)),
            tokens_of(engine.stream(row(tiny_base, "ab"))),
            return_exceptions=True,
        )
        await engine.close()
        return found

    refused, others = asyncio.run(ask())
    assert isinstance(refused, WindowExceeded)
    assert "28 tokens; 28 fit" in str(refused)
    assert [token.token_id for token in others] == by_hand(tiny_base, row(tiny_base, "ab"))


def test_a_prefix_that_does_not_fit_fails_its_row_alone(tiny_base: BaseModel) -> None:
    other = BaseModel(tiny_llama(num_hidden_layers=4), byte_tokenizer(), name="other")
    infix = random_prefix(tiny_base, 3, template=Template(placement="infix"))

    async def ask() -> list[object]:
        engine = LocalEngine(tiny_base)
        asked = [row(tiny_base, "ab", p) for p in (random_prefix(other, 3), infix, None)]
        found = await asyncio.gather(*(tokens_of(engine.stream(r)) for r in asked), return_exceptions=True)
        await engine.close()
        return found

    of_another, of_an_infix, others = asyncio.run(ask())
    assert isinstance(of_another, GeometryMismatch)
    assert isinstance(of_an_infix, UsageError)
    assert "infix" in str(of_an_infix)
    assert [token.token_id for token in others] == by_hand(tiny_base, row(tiny_base, "ab"))


def test_a_failing_step_is_told_to_every_row_and_the_engine_goes_on(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [row(tiny_base, prompt) for prompt in ("ab", "cd")]
    failed_with: list[int] = []

    async def ask() -> tuple[list[object], list[list[Token]], float]:
        engine = LocalEngine(tiny_base)

        def fails(reads: dict[RunningRow, int]) -> list[Token]:
            failed_with.append(len(reads))
            raise RuntimeError("no kernel")

        with monkeypatch.context() as broken:
            broken.setattr(engine._batch, "step", fails)
            failed = await asyncio.gather(
                *(tokens_of(engine.stream(r)) for r in asked), return_exceptions=True
            )
        rows_running = engine.measurements()["rows_running"]
        after = await asyncio.gather(*(tokens_of(engine.stream(r)) for r in asked))
        await engine.close()
        return failed, after, rows_running

    failed, after, rows_running = asyncio.run(ask())
    assert sum(failed_with) == 2
    assert [str(error) for error in failed] == ["no kernel"] * 2
    assert rows_running == 0
    assert [[token.token_id for token in tokens] for tokens in after] == [
        by_hand(tiny_base, r) for r in asked
    ]


def test_a_caller_who_goes_away_frees_the_place(tiny_base: BaseModel) -> None:
    """With one place: the second row gets it once the first is no longer wanted, long before its end."""

    async def ask() -> tuple[list[Token], float]:
        engine = LocalEngine(tiny_base, max_rows=1)
        endless = engine.stream(
            Row((5,), None, "alice", Sampling(max_tokens=120, temperature=0.0), frozenset())
        )
        await anext(endless)
        waiting = asyncio.create_task(tokens_of(engine.stream(row(tiny_base, "ab"))))
        await endless.aclose()
        found = await waiting
        made = engine.measurements()["tokens"]
        await engine.close()
        return found, made

    found, made = asyncio.run(ask())
    assert [token.token_id for token in found] == by_hand(tiny_base, row(tiny_base, "ab"))
    assert made < 120


def test_closing_finishes_what_runs_and_takes_nothing_new(tiny_base: BaseModel) -> None:
    async def ask() -> list[Token]:
        engine = LocalEngine(tiny_base)
        running = engine.stream(row(tiny_base, "ab"))
        first = await anext(running)
        closing = asyncio.create_task(engine.close())
        await asyncio.sleep(0)
        assert not engine.ready()
        with pytest.raises(EngineStopped, match="takes no new requests"):
            await anext(engine.stream(row(tiny_base, "cd")))
        rest = await tokens_of(running)
        await closing
        return [first, *rest]

    assert [token.token_id for token in asyncio.run(ask())] == by_hand(tiny_base, row(tiny_base, "ab"))


def test_a_row_without_numbers_fails_alone(tiny_base: BaseModel) -> None:
    """A prefix whose values overflow; greedy, too, where any token would look like an answer."""
    tensors = {name: torch.full_like(t, 3e38) for name, t in random_prefix(tiny_base, 3).tensors.items()}
    huge = Prefix(tensors, tiny_base.identity, tiny_base.template)
    others = [row(tiny_base, prompt, random_prefix(tiny_base, 2, seed=7)) for prompt in ("ab", "cd")]

    async def ask() -> list[object]:
        engine = LocalEngine(tiny_base)
        asked = [others[0], row(tiny_base, "ab", huge), others[1]]
        found = await asyncio.gather(*(tokens_of(engine.stream(r)) for r in asked), return_exceptions=True)
        await engine.close()
        return found

    one, failed, two = asyncio.run(ask())
    assert isinstance(failed, NotFinite)
    for tokens, asked in ((one, others[0]), (two, others[1])):
        assert [token.token_id for token in tokens] == by_hand(tiny_base, asked)


def test_a_row_that_fails_between_two_tokens_leaves_the_others_alone(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = RunningRow.take

    def fails_at_the_third(self: RunningRow, *answer: Any) -> Token:
        if self.row.owner == "bob" and self.made == 2:
            raise RuntimeError("no probability")
        return take(self, *answer)

    monkeypatch.setattr(RunningRow, "take", fails_at_the_third)
    asked = [
        row(tiny_base, prompt, owner=owner) for prompt, owner in (("ab", "a"), ("cd", "bob"), ("ef", "e"))
    ]

    async def ask() -> tuple[list[object], float]:
        engine = LocalEngine(tiny_base)
        found = await asyncio.gather(*(tokens_of(engine.stream(r)) for r in asked), return_exceptions=True)
        counted = engine.measurements()["tokens"]
        await engine.close()
        return found, counted

    found, counted = asyncio.run(ask())
    assert str(found[1]) == "no probability"
    for n in (0, 2):
        assert [token.token_id for token in found[n]] == by_hand(tiny_base, asked[n])
    assert counted == len(found[0]) + 2 + len(found[2])  # where bob got an error he got no token


class Waits(TorchDispatchMode):
    """Notes operations for which a host waits until a GPU is done."""

    NAMES = (
        "aten._local_scalar_dense",
        "aten.nonzero",
        "aten.is_nonzero",
        "aten.equal",
        "aten.masked_select",
    )

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        indexed = name.startswith(("aten.index.", "aten.index_put"))
        boolean = indexed and any(one is not None and one.dtype == torch.bool for one in args[1])
        if boolean or name.startswith(self.NAMES):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def test_a_step_waits_for_nothing_but_its_tokens(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy and sampled rows, with log-probabilities and a shortest length; rows join and leave."""
    kinds: list[dict[str, Any]] = [
        {},
        {"temperature": 1.0, "top_p": 0.8, "seed": 3},
        {"logprobs": 2, "min_tokens": 2, "max_tokens": 4},
        {"temperature": 0.5, "max_tokens": 3},
    ]
    came_back: list[str] = []
    for name in ("tolist", "cpu"):
        original = getattr(torch.Tensor, name)

        def noted(tensor: torch.Tensor, name: str = name, original: Any = original) -> Any:
            came_back.append(name)
            return original(tensor)

        monkeypatch.setattr(torch.Tensor, name, noted)
    batch = ContinuousBatch(tiny_base)
    asked = [
        row(tiny_base, "ab" * number + "c", random_prefix(tiny_base, 2 * number + 1), **kind)
        for number, kind in enumerate(kinds)
    ]
    rows = [running(one) for one in asked]
    with Waits() as waits:
        whole_step(batch, rows)
        came_back.clear()
        of_steps = []
        for _ in range(5):
            rows = [one for one in rows if one.made < one.max_new_tokens]
            batch.keep(rows)
            whole_step(batch, rows)
            of_steps.append(tuple(came_back))
            came_back.clear()
    assert waits.seen == []
    # With log-probabilities the answer comes as one tensor, which is taken apart when it is here.
    assert of_steps == [("cpu", *["tolist"] * 3)] * 3 + [("tolist",)] * 2


def test_rows_that_come_and_go_copy_no_other_row(tiny_base: BaseModel) -> None:
    batch = ContinuousBatch(tiny_base)
    rows = [running(row(tiny_base, "ab" * (n + 1), max_tokens=50)) for n in range(4)]
    for _ in range(2):
        whole_step(batch, rows)
    (block,) = {one.states.block for one in rows if one.states is not None}
    assert block is not None
    before = [pair[0].data_ptr() for pair in block.layers.values()]
    batch.keep([rows[0], rows[3]])
    assert [one.states for one in (rows[0], rows[3])] == block.rows
    rows = [rows[0], rows[3], running(row(tiny_base, "xyz", max_tokens=50))]
    for _ in range(2):
        whole_step(batch, rows)
    assert [one.states for one in rows] == block.rows
    assert [pair[0].data_ptr() for pair in block.layers.values()] == before


def test_what_a_row_without_numbers_leaves_behind_reaches_no_row_in_its_place(tiny_base: BaseModel) -> None:
    batch = ContinuousBatch(tiny_base)
    long, short = row(tiny_base, "a" * 30, max_tokens=40), row(tiny_base, "b", max_tokens=40)
    first, second = running(long), running(short)
    for _ in range(2):
        whole_step(batch, [first, second])
    assert first.states is not None
    assert first.states.block is not None
    for pair in first.states.block.layers.values():
        for buffer in pair:
            buffer[0] = torch.nan
    batch.keep([second])  # comes into the place of the other
    other = running(row(tiny_base, "c" * 20, max_tokens=40))  # more columns than the row in front of it
    for _ in range(5):
        whole_step(batch, [second, other])
    assert second.text[1:] == by_hand(tiny_base, short)[:7]


def test_decoding_stays_within_the_fast_attention(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of rows with and without a prefix: grouped keys are not repeated for each query head."""
    counted = []

    def noted(*given: Any) -> torch.Tensor:
        counted.append(given[1].shape)
        return attend_one_query(*given)

    monkeypatch.setattr(attention, "attend_one_query", noted)
    for prefixes in ((None, None), (random_prefix(tiny_base, 3), None)):
        batch = ContinuousBatch(tiny_base)
        rows = [running(row(tiny_base, "ab", prefix)) for prefix in prefixes]
        whole_step(batch, rows)
        counted.clear()
        whole_step(batch, rows)
        length = max(one.states.columns for one in rows if one.states is not None)
        assert counted == [(2, 2, length, 8)] * 3


def test_a_long_row_costs_a_short_one_nothing(tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = ContinuousBatch(tiny_base)
    rows = [running(row(tiny_base, text)) for text in ("a" * 100, "b", "cd")]
    whole_step(batch, rows)
    columns = []

    def noted(*given: Any) -> torch.Tensor:
        columns.append(given[1].shape[2])
        return attend_one_query(*given)

    monkeypatch.setattr(attention, "attend_one_query", noted)
    whole_step(batch, rows)
    assert sorted({*columns}) == [3, 101]


def test_a_temperature_next_to_nothing_takes_the_likeliest(tiny_base: BaseModel) -> None:
    asked = row(tiny_base, "ab", temperature=6e-38)
    assert [t.token_id for t in run(tiny_base, [asked])[0]] == by_hand(tiny_base, asked)


def test_an_engine_that_fails_tells_everybody_and_takes_nothing_more(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda info: None)  # the thread's own traceback

    async def ask() -> list[object]:
        engine = LocalEngine(tiny_base)
        assert engine.ready()

        def fails(reads: object) -> None:
            raise SystemExit

        monkeypatch.setattr(engine._batch, "step", fails)
        asked = [row(tiny_base, prompt) for prompt in ("ab", "cd", "ef")]
        found = await asyncio.gather(*(tokens_of(engine.stream(r)) for r in asked), return_exceptions=True)
        with pytest.raises(EngineStopped):
            await anext(engine.stream(asked[0]))
        assert not engine.ready()
        await engine.close()
        return found

    assert all(isinstance(error, EngineStopped) for error in asyncio.run(ask()))


def test_rows_that_ask_the_same_are_rows_of_their_own(tiny_base: BaseModel) -> None:
    """Same prompt, same prefix in copies, different lengths: one leaves while its like goes on."""
    asked = [row(tiny_base, "ab", random_prefix(tiny_base, 4), max_tokens=count) for count in (9, 5, 7, 5)]
    found = run(tiny_base, asked)
    assert [[token.token_id for token in tokens] for tokens in found] == [
        by_hand(tiny_base, r) for r in asked
    ]


def test_a_row_is_not_kept_waiting_by_many_of_another_owner(tiny_base: BaseModel) -> None:
    """One place, bob's ten rows first: alice's single one is the second to be finished."""

    async def ask() -> list[str]:
        engine = LocalEngine(tiny_base, max_rows=1)
        finished: list[str] = []

        async def one(owner: str) -> None:
            await tokens_of(engine.stream(row(tiny_base, "ab", owner=owner)))
            finished.append(owner)

        await asyncio.gather(*(one("bob") for _ in range(10)), one("alice"))
        await engine.close()
        return finished

    assert asyncio.run(ask()).index("alice") <= 2


def test_models_that_the_running_batch_would_get_wrong_are_refused(tiny_base: BaseModel) -> None:
    encoder_decoder = tiny_bart_base()
    with pytest.raises(UnsupportedArchitecture, match="can't be served by the local engine"):
        LocalEngine(encoder_decoder)


def test_steps_are_shared_by_all_rows(tiny_base: BaseModel) -> None:
    """Eight rows of twelve tokens take little more than twelve steps, not ninety-six."""

    async def ask() -> dict[str, float]:
        engine = LocalEngine(tiny_base)
        asked = [
            Row(
                (5 + n,), random_prefix(tiny_base, n + 1), f"o{n}", Sampling(12, temperature=0.0), frozenset()
            )
            for n in range(8)
        ]
        await asyncio.gather(*(tokens_of(engine.stream(r)) for r in asked))
        counted = dict(engine.measurements())
        await engine.close()
        return counted

    counted = asyncio.run(ask())
    assert counted["tokens"] == 8 * 12
    assert counted["steps"] <= 12 + 8
    assert counted["rows_running"] == counted["rows_waiting"] == 0
