"""What a prefix holds is finite in the data type of its base, and no row meets the numbers of another's."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from foreword import BaseModel, Example, Prefix, generate, train
from foreword.base.kv_cache import prefixed_cache
from foreword.base.loss import target_losses
from foreword.base.prefix_batch import PrefixBatch
from foreword.encoding import encode
from foreword.errors import NonFinitePrefix, NotFinite, UsageError
from foreword.evaluation import evaluate, token_loss
from foreword.interop.original import import_prefix_tuning
from foreword.sampling import EndedRows, FiniteRows
from foreword.training.trainer import Trainer
from support.stand_ins import byte_tokenizer, random_prefix, tiny_llama


@pytest.fixture(scope="module")
def half() -> BaseModel:
    return BaseModel(tiny_llama().to(torch.float16), byte_tokenizer(), name="half")


def large(base: BaseModel, dtype: torch.dtype = torch.float32, by: float = 1e5) -> Prefix:
    """Finite as it is, infinite in float16 (or by more, in float32)."""
    prefix = random_prefix(base, 3)
    tensors = {
        name: t.to(dtype) * (by if name.endswith("value") else 1) for name, t in prefix.tensors.items()
    }
    return dataclasses.replace(prefix, tensors=tensors)


@pytest.mark.parametrize(("dtype", "by"), [(torch.float16, 1e5), (torch.float32, 1e200)])
def test_a_prefix_beyond_the_range_of_the_base_is_refused(dtype: torch.dtype, by: float) -> None:
    base = BaseModel(tiny_llama().to(dtype), byte_tokenizer(), name="base")
    prefix = large(base, torch.float64, by)
    named = str(dtype).removeprefix("torch.")
    with pytest.raises(NonFinitePrefix, match=f"infinite in {named} .* load the base in float32"):
        base.token_losses([Example("abc", "de")] * 2, [None, prefix])
    with pytest.raises(NonFinitePrefix):
        generate(base, ["abc"], prefix, max_new_tokens=1)
    with pytest.raises(UsageError if dtype == torch.float16 else NonFinitePrefix):  # the one is not trained
        train(base, [Example("abc", "de")], length=3, steps=1, start=prefix)
    base.per_row(random_prefix(base, 3), 1)


def test_the_largest_number_that_still_rounds_to_a_finite_one_is_taken(half: BaseModel) -> None:
    for largest, fits in ((65504.0, True), (65519.0, True), (65520.0, False), (-65520.0, False)):
        prefix = random_prefix(half, 1)
        prefix.tensors["decoder.key"][0, 0, 0, 0] = largest  # type: ignore[index]
        if fits:
            prefix.check_dtype(torch.float16)
        else:
            with pytest.raises(NonFinitePrefix):
                prefix.check_dtype(torch.float16)


def test_training_does_not_end_in_a_prefix_that_its_base_can_not_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """bfloat16 rounds the largest numbers of float32 to infinity."""
    base = BaseModel(tiny_llama().to(torch.bfloat16), byte_tokenizer(), name="base")
    made = Trainer.result

    def overflowed(self: Trainer) -> object:
        best = made(self)
        return dataclasses.replace(best, tensors={n: t * 0 + 3.4e38 for n, t in best.tensors.items()})

    monkeypatch.setattr(Trainer, "result", overflowed)
    with pytest.raises(NonFinitePrefix, match="infinite in bfloat16"):
        train(base, [Example("abc", "de")], length=3, steps=1)


def test_an_import_that_the_base_can_not_hold_is_refused(half: BaseModel, tmp_path: Path) -> None:
    sizes = half.geometry.streams["decoder"]
    width = sizes.layers * 2 * sizes.kv_heads * sizes.key_dim
    saved = {
        "wte.weight": torch.eye(2),
        "control_trans.0.weight": torch.eye(2),
        "control_trans.0.bias": torch.zeros(2),
        "control_trans.2.weight": torch.full((width, 2), 1e6),
        "control_trans.2.bias": torch.zeros(width),
    }
    torch.save(saved, tmp_path / "pytorch_model.bin")
    with pytest.raises(NonFinitePrefix, match="infinite in float16"):
        import_prefix_tuning(tmp_path, half)


@torch.no_grad()
def test_a_row_without_a_prefix_meets_zeros_not_its_neighbour_s_numbers() -> None:
    """Even where a neighbour's keys and values are none: in training a step can make them so."""
    base = BaseModel(tiny_llama(), byte_tokenizer(), name="tiny")
    (row,), _ = encode([Example("abc", "de")], base.tokenizer, base.template)
    prefix = random_prefix(base, 3)
    for stream, bad in (("decoder.key", torch.inf), ("decoder.value", torch.nan)):
        tensors = {name: t.clone() for name, t in prefix.tensors.items()}
        tensors[stream][:, :, 0] = bad
        pair = {"decoder": (tensors["decoder.key"], tensors["decoder.value"])}
        batch = PrefixBatch.from_tensors([pair], [None, 0], ["prefix"], ["text-after-prefix"])
        for layout in ("flat", "right", "left"):
            losses = target_losses(base.model, base.batch([row, row], batch, layout), batch)
            alone = target_losses(base.model, base.batch([row], None, layout), None)
            torch.testing.assert_close(losses[: len(alone)], alone)
            assert losses[len(alone) :].isnan().any()
        cache = prefixed_cache(base.geometry, batch, 4)
        states = torch.zeros(2, 2, 1, 8)
        key, value = cache.layers[0].update(states, states)
        assert not key[0].any()
        assert not value[0].any()


@pytest.fixture
def overflowing(tiny_base: BaseModel) -> Prefix:
    """Finite itself; the layers behind it compute NaN."""
    prefix = random_prefix(tiny_base, 3)
    tensors = {n: torch.full_like(t, 3e38) if n.endswith("value") else t for n, t in prefix.tensors.items()}
    return dataclasses.replace(prefix, tensors=tensors)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.0},
        {"beams": 2},
        {"stop": ["zz"], "batch_size": 1},
        {"on_text": lambda row, piece: pytest.fail("text was made of NaN")},
    ],
)
def test_no_text_is_made_of_numbers_that_are_none(
    tiny_base: BaseModel, overflowing: Prefix, options: dict[str, Any]
) -> None:
    """Named by the prompt's number, though the shorter one stands first in their batch."""
    prefixes = [random_prefix(tiny_base, 2), overflowing]
    with pytest.raises(NotFinite, match=r"^prompt 1: logits behind its prefix are NaN or infinite"):
        generate(tiny_base, ["abc", "ab"], prefixes, max_new_tokens=4, **options)


def test_numbers_that_are_none_behind_the_end_of_a_text_do_not_count() -> None:
    """A row that has ended goes on reading padding beside others, and its text is right."""
    ending = EndedRows(frozenset({7}), None, early=False)
    finite = FiniteRows(ending)
    ids_BT = torch.tensor([[5], [5], [5]])
    finite(ids_BT, torch.zeros(3, 9))
    assert ending(torch.tensor([[5, 7], [5, 6], [5, 6]]), None).tolist() == [True, False, False]
    numbers_BV = torch.zeros(3, 9)
    numbers_BV[0, 2], numbers_BV[2] = torch.nan, -torch.inf  # of the last row every token is banned
    finite(ids_BT, numbers_BV)
    assert finite.bad() == []
    numbers_BV[1, 2] = torch.inf
    finite(ids_BT, numbers_BV)
    finite(ids_BT, torch.zeros(3, 9))
    assert finite.bad() == [1]


def test_no_loss_is_a_number_that_is_none(tiny_base: BaseModel, overflowing: Prefix) -> None:
    examples = [Example("abc", "de"), Example("a", "d")]
    for layout in ("flat", "right", "left"):
        with pytest.raises(NotFinite, match=r"^example 1: losses behind its prefix are NaN or infinite"):
            tiny_base.token_losses(examples, [None, overflowing], layout=layout)
    for text in (False, True):
        with pytest.raises(NotFinite, match="losses behind its prefix"):
            evaluate(tiny_base, examples, overflowing, text=text, max_new_tokens=2)


def test_evaluation_names_an_example_by_its_number_in_the_data() -> None:
    """Though losses are computed in the order of length."""
    base = BaseModel(tiny_llama(), byte_tokenizer(), name="tiny")
    with torch.no_grad():  # one token alone is none
        base.model.get_input_embeddings().weight[base.tokenizer("Z")["input_ids"][0]] = torch.nan
    with pytest.raises(NotFinite, match=r"^example 1: losses of the base model are NaN or infinite"):
        token_loss(base, [Example("a longer one", "de"), Example("Zb", "d"), Example("a", "d")])
