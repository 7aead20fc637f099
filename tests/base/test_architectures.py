"""Every architecture that works, works as attention by hand does: training, losses and generation."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from foreword import BaseModel, Prefix, generate, train
from foreword.base.attention import IMPLEMENTATIONS, AttentionContext, attention_context
from foreword.base.gradient_checkpointing import gradient_checkpointing
from foreword.base.loss import target_losses
from foreword.base.prefix_batch import PrefixBatch
from foreword.encoding import EncodedExample, encode
from foreword.training import TrainingStopped
from foreword.training.initialization import Initialization, initial_key_values
from support.architectures.decoder_only import DECODER_ONLY_WORKING
from support.architectures.encoder_decoder import ENCODER_DECODER_WORKING
from support.architectures.hybrids import HYBRID_WORKING
from support.architectures.zoo import Architecture
from support.by_hand import by_place, layers_of
from support.by_hand import logits as past_key_values_logits
from support.by_hand_attention import by_hand, greedy, logits, token_losses
from support.stand_ins import byte_tokenizer, random_examples, random_prefix

WORKING = DECODER_ONLY_WORKING + HYBRID_WORKING + ENCODER_DECODER_WORKING
LAYOUTS = ("flat", "right", "left")
NEW = 6


@pytest.fixture(params=WORKING, ids=str)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def base(architecture: Architecture) -> BaseModel:
    return architecture.base


def layouts(base: BaseModel) -> tuple[str, ...]:
    return ("right",) if base.is_encoder_decoder else LAYOUTS


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * max(1.0, float(expected.abs().max())))


def rows_of(base: BaseModel, count: int, seed: int = 0) -> list[EncodedExample]:
    return encode(random_examples(count, seed=seed), base.tokenizer, base.template)[0]


def mixed_prefixes(base: BaseModel) -> list[Prefix | None]:
    return [random_prefix(base, n, seed=n) if n else None for n in (3, 0, 7, 1)]


@torch.no_grad()
def test_by_hand_without_a_prefix_is_what_transformers_computes(architecture: Architecture) -> None:
    """The reference itself is right."""
    model, row = architecture.model(), rows_of(architecture.base, 1)[0]
    kernel = architecture.base.model.config._attn_implementation.removeprefix("foreword-")
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = kernel
    if model.config.is_encoder_decoder:
        inputs = {
            "input_ids": torch.tensor([row.source_ids]),
            "decoder_input_ids": torch.tensor([[0, *row.target_ids]]),
            "decoder_attention_mask": torch.ones(1, 1 + len(row.target_ids)),
        }
        theirs = model(**inputs).logits[0]
    else:
        theirs = model(input_ids=torch.tensor([[*row.source_ids, *row.target_ids]])).logits[0]
        theirs = theirs[len(row.source_ids) - 1 :]
    close(logits(architecture.base.model, row.source_ids, row.target_ids, None), theirs)


@torch.no_grad()
def test_logits_of_mixed_rows_equal_those_computed_by_hand(base: BaseModel) -> None:
    rows, prefixes = rows_of(base, 4), mixed_prefixes(base)
    stacked = PrefixBatch.stack(prefixes, base.device)
    for layout in layouts(base):
        batch = base.batch(rows, stacked, layout)  # type: ignore[arg-type]
        with attention_context(AttentionContext(prefixes=stacked, layout=batch.layout)):
            found = base.model(**batch.inputs, use_cache=False).logits.flatten(0, 1)[batch.logit_index_M]
        for row, prefix, mine in zip(rows, prefixes, found.split(batch.targets), strict=True):
            tensors = None if prefix is None else prefix.tensors
            close(mine, logits(base.model, row.source_ids, row.target_ids[:-1], tensors))


KEEPING_ALL = [a for a in DECODER_ONLY_WORKING if not a.windowed and "kv_lora_rank" not in a.settings]


@pytest.mark.parametrize("architecture", [*KEEPING_ALL, *HYBRID_WORKING], ids=str)
@torch.no_grad()
def test_logits_equal_those_of_past_key_values(architecture: Architecture) -> None:
    """A second reference, where transformers' own cache keeps keys and values of every token."""
    base = architecture.base
    assert base.cache_takes_prefixes or base.is_hybrid
    row, prefix = rows_of(base, 1)[0], random_prefix(base, 5)
    theirs = past_key_values_logits(base.model, [*row.source_ids, *row.target_ids], layers_of(prefix))
    close(
        logits(base.model, row.source_ids, row.target_ids, prefix.tensors), theirs[len(row.source_ids) - 1 :]
    )


def test_a_prefix_of_any_length_matters(base: BaseModel) -> None:
    examples = random_examples(2)
    plain = base.token_losses(examples)
    for length in (1, 5):
        with_prefix = base.token_losses(examples, random_prefix(base, length))
        assert all((a - b).abs().max() > 0.01 for a, b in zip(plain, with_prefix, strict=True))


def test_every_number_of_a_prefix_gets_the_gradient_computed_by_hand(base: BaseModel) -> None:
    """All streams, layers, heads and positions, keys and values; also with gradient checkpointing.

    CTRL alone has no layers that can be checkpointed, and says so.
    """
    rows = rows_of(base, 3)
    numbers = dict(random_prefix(base, 4).tensors)

    def leaves() -> dict[str, torch.Tensor]:
        return {name: tensor.clone().requires_grad_() for name, tensor in numbers.items()}

    expected = leaves()
    for row in rows:
        token_losses(base.model, row.source_ids, row.target_ids, expected).sum().backward()
    has_layers = any(isinstance(module, GradientCheckpointingLayer) for module in base.model.modules())
    for checkpointed in (False, True) if has_layers else (False,):
        mine = leaves()
        prefixes = PrefixBatch.from_tensors([by_place(mine)], (0, 0, 0))
        with gradient_checkpointing(base.model, checkpointed):
            target_losses(base.model, base.batch(rows, prefixes, "flat"), prefixes).sum().backward()
        for name, tensor in mine.items():
            assert tensor.grad is not None, name
            assert (tensor.grad.norm(dim=-1) > 0).all(), name
            close(tensor.grad, expected[name].grad)  # type: ignore[arg-type]
    assert all(p.grad is None and not p.requires_grad for p in base.model.parameters())


def test_row_is_independent_of_its_neighbours_and_of_padding(base: BaseModel) -> None:
    examples, prefixes = random_examples(4), mixed_prefixes(base)
    alone = [base.token_losses([e], [p])[0] for e, p in zip(examples, prefixes, strict=True)]
    for layout in layouts(base):
        together = base.token_losses(examples, prefixes, layout=layout)  # type: ignore[arg-type]
        for mine, own in zip(together, alone, strict=True):
            close(mine, own)


def test_rows_of_one_token_each_can_share_a_pass(base: BaseModel) -> None:
    rows = [EncodedExample((token,), (0,)) for token in (5, 6, 7)]
    prefixes = [random_prefix(base, 2), None, random_prefix(base, 3, seed=1)]
    stacked = PrefixBatch.stack(prefixes, base.device)
    found = target_losses(base.model, base.batch(rows, stacked, "flat"), stacked)
    for row, prefix, mine in zip(rows, prefixes, found, strict=True):
        tensors = None if prefix is None else prefix.tensors
        close(mine[None], token_losses(base.model, row.source_ids, row.target_ids, tensors))


@pytest.mark.parametrize("kind", ["demonstrations", "words: start here", "random"])
def test_every_stream_starts_with_p_rows(base: BaseModel, kind: str) -> None:
    start = initial_key_values(base, Initialization.parse(kind), 6, rows_of(base, 1), 0)
    expected = base.geometry.shapes(dict.fromkeys(base.geometry.streams, 6))
    assert {place: tuple(tuple(t.shape) for t in pair) for place, pair in start.items()} == expected
    assert all(tensor.isfinite().all() and tensor.any() for pair in start.values() for tensor in pair)


def test_a_stopped_run_ends_in_the_same_prefix_bit_for_bit(base: BaseModel, tmp_path: Path) -> None:
    options: dict[str, Any] = {"length": 3, "steps": 4, "batch_size": 2, "seed": 1, "init": "demonstrations"}
    examples = random_examples(3, longest=8)
    whole = train(base, examples, **options)

    def interrupt(progress: Any) -> None:
        if progress.step == 2 and progress.note is None:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingStopped, match="step 2"):
        train(base, examples, **options, checkpoint_dir=tmp_path, on_progress=interrupt)
    resumed = train(base, examples, **options, checkpoint_dir=tmp_path)
    assert all(torch.equal(whole.tensors[name], resumed.tensors[name]) for name in whole.tensors)
    begun = initial_key_values(
        base, Initialization("demonstrations"), 3, encode(examples, base.tokenizer, base.template)[0], 1
    )
    assert all(not torch.equal(whole.key_values()[place][0], begun[place][0]) for place in begun)


PROMPTS = ["hello", "some longer prompt here", "a", "xyz abc"]


def test_greedy_tokens_equal_those_computed_by_hand(base: BaseModel) -> None:
    prefixes = mixed_prefixes(base)
    found = generate(base, PROMPTS, prefixes, max_new_tokens=NEW)
    for prompt, prefix, text in zip(PROMPTS, prefixes, found, strict=True):
        ids = base.template.source_ids(base.tokenizer, prompt)
        tensors = None if prefix is None else prefix.tensors
        expected = greedy(base.model, ids, tensors, NEW, base.end_ids)
        assert text == base.tokenizer.decode(expected, skip_special_tokens=True)


def test_beams_are_independent_of_neighbours(base: BaseModel) -> None:
    prefixes = mixed_prefixes(base)
    together = generate(base, PROMPTS, prefixes, beams=3, max_new_tokens=NEW)
    alone = [
        generate(base, [prompt], [prefix], beams=3, max_new_tokens=NEW)[0]
        for prompt, prefix in zip(PROMPTS, prefixes, strict=True)
    ]
    assert together == alone


@torch.no_grad()
def test_a_model_from_a_folder_computes_the_same(architecture: Architecture, tmp_path: Path) -> None:
    architecture.model().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    loaded, base = BaseModel.load(tmp_path, device="cpu"), architecture.base
    assert loaded.geometry == base.geometry
    assert loaded.model.config._attn_implementation == base.model.config._attn_implementation
    example, tensors = random_examples(1), random_prefix(base, 3).tensors
    mine = Prefix(tensors=tensors, base=loaded.identity, template=loaded.template)
    theirs = Prefix(tensors=tensors, base=base.identity, template=base.template)
    close(loaded.token_losses(example, mine)[0], base.token_losses(example, theirs)[0])


def test_kernels_are_forewords(base: BaseModel) -> None:
    own = [m.config._attn_implementation for m in base.model.modules() if hasattr(m, "config")]
    assert set(own) <= set(IMPLEMENTATIONS.values())
    with by_hand(base.model, None):
        pass
    assert own == [m.config._attn_implementation for m in base.model.modules() if hasattr(m, "config")]
