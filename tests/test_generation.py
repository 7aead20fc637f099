"""Generation: each row continues its prompt under its own prefix, whoever else is in the batch."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from by_hand import greedy, layers_of
from foreword import BaseModel, Template, generate
from foreword.errors import GeometryMismatch, UsageError, WindowExceeded
from foreword.prefix import Prefix
from stand_ins import VOCABULARY, random_prefix

PROMPTS = ["hello", "a", "some longer prompt here", "xyz abc", "the end is"]
NEW = 10


def by_hand(base: BaseModel, prompt: str, prefix: Prefix | None) -> str:
    ids = base.template.source_ids(base.tokenizer, prompt)
    layers = None if prefix is None else layers_of(prefix)
    return base.tokenizer.decode(greedy(base.model, ids, layers, NEW, base.end_ids), skip_special_tokens=True)


@pytest.fixture
def mixed(tiny_base: BaseModel) -> list[Prefix | None]:
    return [
        random_prefix(tiny_base, 3),
        None,
        random_prefix(tiny_base, 9, seed=1),
        random_prefix(tiny_base, 1),
        None,
    ]


def test_greedy_tokens_equal_those_computed_by_hand(tiny_base: BaseModel, mixed: list[Prefix | None]) -> None:
    found = generate(tiny_base, PROMPTS, mixed, max_new_tokens=NEW)
    assert found == [
        by_hand(tiny_base, prompt, prefix) for prompt, prefix in zip(PROMPTS, mixed, strict=True)
    ]
    assert found != generate(tiny_base, PROMPTS, max_new_tokens=NEW)


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.9, "seed": 5, "top_p": 0.9, "top_k": 40}, {"beams": 3}]
)
def test_row_is_independent_of_its_neighbours(
    tiny_base: BaseModel, mixed: list[Prefix | None], options: dict
) -> None:
    together = generate(tiny_base, PROMPTS, mixed, max_new_tokens=NEW, **options)
    for batch_size in (1, 2):
        assert (
            generate(tiny_base, PROMPTS, mixed, max_new_tokens=NEW, batch_size=batch_size, **options)
            == together
        )


def test_beam_search_finds_the_likeliest_text(tiny_base: BaseModel) -> None:
    """With as many beams as there are texts, beam search is exhaustive: compare with all of them."""
    prefix = random_prefix(tiny_base, 3, template=Template(style="raw", end="<end>"))
    found = generate(tiny_base, ["ab"], [prefix], beams=VOCABULARY, max_new_tokens=2, length_penalty=0.0)
    from by_hand import logits

    ids = tiny_base.tokenizer("ab")["input_ids"]
    with torch.no_grad():
        first = logits(tiny_base.model, ids, layers_of(prefix))[-1].log_softmax(-1)
        best_score, best = first[0], []  # the end at once
        for token in range(1, VOCABULARY):
            second = logits(tiny_base.model, [*ids, token], layers_of(prefix))[-1].log_softmax(-1)
            score, last = (first[token] + second).max(-1)
            if score > best_score:
                best_score, best = score, [token, int(last)]
    assert found == [tiny_base.tokenizer.decode(best, skip_special_tokens=True)]


def test_samples_follow_the_models_distribution(tiny_base: BaseModel) -> None:
    from by_hand import logits

    count = 1500
    drawn = generate(
        tiny_base, ["ab"] * count, max_new_tokens=1, temperature=0.4, top_k=3, batch_size=500, raw=True
    )
    row = logits(tiny_base.model, tiny_base.tokenizer("ab")["input_ids"], None)[-1] / 0.4
    top = row.topk(3)
    shares = top.values.softmax(-1).tolist()
    found = Counter(drawn)
    for token, share in zip(top.indices.tolist(), shares, strict=True):
        text = tiny_base.tokenizer.decode([token], skip_special_tokens=True)
        spread = (share * (1 - share) / count) ** 0.5
        assert abs(found[text] / count - share) < 5 * spread + 1e-3


def test_the_same_seed_gives_the_same_samples_and_another_gives_others(tiny_base: BaseModel) -> None:
    options = {"temperature": 1.5, "max_new_tokens": NEW}
    assert generate(tiny_base, PROMPTS, **options, seed=1) == generate(tiny_base, PROMPTS, **options, seed=1)
    assert generate(tiny_base, PROMPTS, **options, seed=1) != generate(tiny_base, PROMPTS, **options, seed=2)


def test_the_template_of_the_prefix_is_applied_unless_raw_text_is_asked_for(tiny_base: BaseModel) -> None:
    arrow = random_prefix(tiny_base, 3, template=Template(separator=" ->", end="<end>"))
    plain = random_prefix(tiny_base, 3, template=Template(style="raw", end="<end>"))
    assert generate(tiny_base, ["ab"], arrow) == generate(tiny_base, ["ab ->"], plain)
    assert generate(tiny_base, ["ab ->"], arrow, raw=True) == generate(tiny_base, ["ab"], arrow)


def test_stop_texts_end_a_row_and_are_cut_off(tiny_base: BaseModel) -> None:
    whole = generate(tiny_base, PROMPTS, max_new_tokens=NEW)
    word = whole[0][3:5]
    stopped = generate(tiny_base, PROMPTS, max_new_tokens=NEW, stop=[word])
    assert stopped == [text.split(word)[0] for text in whole]


def test_banned_texts_do_not_appear(tiny_base: BaseModel) -> None:
    whole = generate(tiny_base, PROMPTS, max_new_tokens=NEW)
    letter, pair = whole[0][0], whole[2][1:3]
    found = generate(tiny_base, PROMPTS, max_new_tokens=NEW, banned=[letter, pair])
    assert found != whole
    assert all(letter not in text and pair not in text for text in found)


def test_streamed_pieces_add_up_to_the_text(tiny_base: BaseModel, mixed: list[Prefix | None]) -> None:
    whole = generate(tiny_base, PROMPTS, mixed, max_new_tokens=NEW)
    word = whole[0][4:6]
    for stop in ((), (word,)):
        pieces: dict[int, list[str]] = {}
        texts = generate(
            tiny_base,
            PROMPTS,
            mixed,
            max_new_tokens=NEW,
            stop=stop,
            on_text=lambda row, piece, into=pieces: into.setdefault(row, []).append(piece),
        )
        assert ["".join(pieces.get(row, [])) for row in range(len(texts))] == texts
    assert max(len(parts) for parts in pieces.values()) > 1


def test_the_window_ends_a_row_but_not_its_neighbours(tiny_base: BaseModel) -> None:
    prefix = random_prefix(tiny_base, 100)
    texts = generate(tiny_base, ["abcdefghij" * 2, "ab"], [prefix, None], max_new_tokens=40)
    assert texts[1] == generate(tiny_base, ["ab"], max_new_tokens=40)[0]
    assert texts[0] == generate(tiny_base, ["abcdefghij" * 2], prefix, max_new_tokens=128 - 100 - 21)[0]
    with pytest.raises(WindowExceeded, match="prompt 1 has 40 tokens; 28 fit"):
        generate(tiny_base, ["ab", "x" * 39], prefix)


def test_bad_calls_are_refused(tiny_base: BaseModel) -> None:
    with pytest.raises(UsageError, match="2 prefixes for 1 rows"):
        generate(tiny_base, ["a"], [None, None])
    with pytest.raises(UsageError, match="temperature is -1"):
        generate(tiny_base, ["a"], temperature=-1)
    with pytest.raises(UsageError, match="temperature is nan"):
        generate(tiny_base, ["a"], temperature=float("nan"))
    with pytest.raises(UsageError, match="exclude"):
        generate(tiny_base, ["a"], temperature=1, beams=2)
    with pytest.raises(UsageError, match="prompt 0 is empty"):
        generate(tiny_base, [""], raw=True)
    shape = (4, 2, 3, 8)
    other = Prefix(
        {"decoder.key": torch.zeros(shape), "decoder.value": torch.zeros(shape)}, tiny_base.identity
    )
    with pytest.raises(GeometryMismatch, match="4 layers"):
        generate(tiny_base, ["a"], other)


def test_no_prompts_give_no_texts(tiny_base: BaseModel) -> None:
    assert generate(tiny_base, []) == []


def test_masks_of_earlier_tokens_are_not_kept(tiny_base: BaseModel) -> None:
    from foreword.attention import Attending, attending

    tiny_base.model.set_attn_implementation("foreword-eager")
    state = Attending()
    with attending(state), torch.no_grad():
        tiny_base.model.generate(torch.randint(1, VOCABULARY, (2, 4)), max_new_tokens=12, min_new_tokens=12)
    assert len(state.memo) <= 2
