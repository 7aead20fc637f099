"""Every architecture that works, works as attention by hand does: training, losses and generation.

In float32 to rounding; in bfloat16 to a few times the noise that rounding makes in the model by itself
(support/architectures/noise.py).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
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
from foreword.serving.engine.continuous_batch import ContinuousBatch, RunningRow
from foreword.serving.engine.protocol import Row, Sampling
from foreword.training import TrainingStopped
from foreword.training.initialization import Initialization, initial_key_values
from support.architectures.decoder_only import DECODER_ONLY_WORKING
from support.architectures.encoder_decoder import ENCODER_DECODER_WORKING
from support.architectures.hybrids import HYBRID_WORKING
from support.architectures.noise import Noise, distances, measure_noise
from support.architectures.zoo import Architecture
from support.by_hand import by_place, layers_of
from support.by_hand import logits as past_key_values_logits
from support.by_hand_attention import by_hand, logits, token_losses
from support.stand_ins import byte_tokenizer, random_examples, random_prefix

WORKING = DECODER_ONLY_WORKING + HYBRID_WORKING + ENCODER_DECODER_WORKING
LAYOUTS = ("flat", "right", "left")
NEW = 6
GREEDY = Sampling(NEW, temperature=0.0)


@pytest.fixture(
    scope="module", params=WORKING, ids=str
)  # so that one after the other is built, by one worker
def architecture(request: pytest.FixtureRequest) -> Architecture:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def base(architecture: Architecture) -> BaseModel:
    return architecture.base


def layouts(base: BaseModel) -> tuple[str, ...]:
    return ("right",) if base.is_encoder_decoder else LAYOUTS


def logits_of_rows(
    base: BaseModel, rows: list[EncodedExample], prefixes: Sequence[Prefix | None], layout: str = "flat"
) -> tuple[torch.Tensor, ...]:
    """Of each row `[T, V]`: what is predicted for its target, all rows in one pass."""
    stacked = PrefixBatch.stack(prefixes, base.device)
    batch = base.batch(rows, stacked, layout)  # type: ignore[arg-type]
    with torch.no_grad(), attention_context(AttentionContext(prefixes=stacked, layout=batch.layout)):
        logits_MV = base.model(**batch.inputs, use_cache=False).logits.flatten(0, 1)[batch.logit_index_M]
    return logits_MV.split(batch.targets)


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
    tensors = [None if prefix is None else prefix.tensors for prefix in prefixes]
    expected = [
        logits(base.model, row.source_ids, row.target_ids[:-1], each)
        for row, each in zip(rows, tensors, strict=True)
    ]
    for layout in layouts(base):
        for mine, own in zip(logits_of_rows(base, rows, prefixes, layout), expected, strict=True):
            close(mine, own)


KEEPING_ALL = [a for a in DECODER_ONLY_WORKING if not a.windowed and "kv_lora_rank" not in a.settings]


@pytest.mark.parametrize("architecture", [*KEEPING_ALL, *HYBRID_WORKING], ids=str, scope="module")
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


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run draws its losses when it ends: most of the time of a short one."""
    monkeypatch.setattr("foreword.training.run_log.draw", lambda *args, **options: None)


@pytest.mark.usefixtures("no_pictures")
def test_a_stopped_run_ends_in_the_same_prefix_bit_for_bit(base: BaseModel, tmp_path: Path) -> None:
    check_resumption(base, tmp_path)


def check_resumption(base: BaseModel, folder: Path) -> None:
    options: dict[str, Any] = {"length": 3, "steps": 4, "batch_size": 2, "seed": 1, "init": "demonstrations"}
    examples = random_examples(3, longest=8)
    whole = train(base, examples, **options)

    def interrupt(progress: Any) -> None:
        if progress.step == 2 and progress.note is None:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingStopped, match="step 2"):
        train(base, examples, **options, checkpoint_dir=folder, on_progress=interrupt)
    resumed = train(base, examples, **options, checkpoint_dir=folder)
    assert all(torch.equal(whole.tensors[name], resumed.tensors[name]) for name in whole.tensors)
    begun = initial_key_values(
        base, Initialization("demonstrations"), 3, encode(examples, base.tokenizer, base.template)[0], 1
    )
    assert all(not torch.equal(whole.key_values()[place][0], begun[place][0]) for place in begun)


PROMPTS = ["hello", "some longer prompt here", "a", "xyz abc"]


@torch.no_grad()
def test_greedy_tokens_equal_those_computed_by_hand(base: BaseModel) -> None:
    """Each is the likeliest behind those in front of it; what ends a text early is an end."""
    prefixes = mixed_prefixes(base)
    found = generate(base, PROMPTS, prefixes, max_new_tokens=NEW)
    for prompt, prefix, text in zip(PROMPTS, prefixes, found, strict=True):
        source, tokens = base.template.source_ids(base.tokenizer, prompt), base.tokenizer(text)["input_ids"]
        tensors = None if prefix is None else prefix.tensors
        likeliest = logits(base.model, source, tokens, tensors).argmax(dim=-1).tolist()
        assert likeliest[: len(tokens)] == tokens
        assert len(tokens) == NEW or likeliest[-1] in base.end_ids


@torch.no_grad()
def test_rows_of_the_local_engine_get_the_tokens_computed_by_hand(base: BaseModel) -> None:
    """Texts read in parts, beside rows that get new tokens: what a server of such a model does.

    Models that it refuses are no case of it; `test_models_that_the_running_batch_would_get_wrong_are_refused`.
    """
    prefixes = mixed_prefixes(base) if base.packs_rows and base.cache_takes_prefixes else []
    rows = [
        RunningRow(
            Row(tuple(base.template.source_ids(base.tokenizer, prompt)), prefix, "", GREEDY, frozenset()), NEW
        )
        for prompt, prefix in zip(PROMPTS, prefixes, strict=False)
    ]
    batch, running = ContinuousBatch(base), list(rows)
    while running:
        batch.step({row: min(row.unread, 1 + 2 * place) for place, row in enumerate(running)})
        running = [row for row in running if row.made < NEW]
        batch.keep(running)
    for row in rows:
        source, tokens = list(row.row.prompt_ids), row.text[len(row.row.prompt_ids) :]
        tensors = None if row.row.prefix is None else row.row.prefix.tensors
        likeliest = logits(base.model, source, tokens, tensors).argmax(dim=-1).tolist()
        assert tokens == likeliest[: len(tokens)]


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


# -- in bfloat16 ---------------------------------------------------------------------------------

TIMES = 3
"""What a prefix may be off by, in noises of the model itself; up to 2 is found, and 1 as a rule."""

MATTERS = 2.5
"""What a prefix must do to every row, in what it may be off by; 5 to 50 is found as a rule."""

LESS = {
    "phimoe": "its router masks experts, so that a choice that turns does to a token what a prefix does",
    "zamba2": "attention is a small part of it",
}
"""Models of which 1.5 is asked, and why."""


@pytest.fixture(scope="module")
def half(architecture: Architecture) -> BaseModel:
    return architecture.half


@pytest.fixture(scope="module")
def noise(architecture: Architecture) -> Noise:
    return measure_noise(architecture.half.model, architecture.base.model)


def loud_prefixes(base: BaseModel) -> list[Prefix | None]:
    """So large that they matter in every model; larger still, an encoder's attention would see one key alone."""
    scale = 1.5 if base.is_encoder_decoder else 2.5
    return [random_prefix(base, n, seed=n, scale=scale) if n else None for n in (3, 0, 7, 4)]


def without(stream: str, prefix: Prefix | None) -> Prefix | None:
    if prefix is None or len(prefix.geometry.streams) == 1:
        return None
    kept = {name: tensor for name, tensor in prefix.tensors.items() if name.split(".")[0] != stream}
    return Prefix(tensors=kept, base=prefix.base, template=prefix.template)


def median_distances(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> list[float]:
    return [float(distances(*row).median()) for row in zip(found, expected, strict=True)]


def test_logits_in_bfloat16_are_off_by_the_noise_of_the_model(
    architecture: Architecture, base: BaseModel, half: BaseModel, noise: Noise
) -> None:
    """Row by row, in every layout and alone. Each stream of a prefix does more than is allowed, by far."""
    rows, prefixes, tolerance = rows_of(base, 4), loud_prefixes(base), TIMES * noise.logits
    expected = logits_of_rows(base, rows, prefixes)
    for layout in layouts(base):
        found = logits_of_rows(half, rows, prefixes, layout)
        assert max(median_distances(found, expected)) <= tolerance, layout
    alone = [logits_of_rows(half, [row], [prefix])[0] for row, prefix in zip(rows, prefixes, strict=True)]
    assert max(median_distances(alone, expected)) <= tolerance
    assert max(median_distances(alone, found)) <= tolerance
    least = (1.5 if architecture.model_type in LESS else MATTERS) * tolerance
    for stream in base.geometry.streams:
        lacking = logits_of_rows(base, rows, [without(stream, prefix) for prefix in prefixes])
        effects = median_distances(lacking, expected)
        assert all(e > least for e, p in zip(effects, prefixes, strict=True) if p), (stream, effects)


def test_gradients_in_bfloat16_are_off_by_the_noise_of_the_model(
    base: BaseModel, half: BaseModel, noise: Noise
) -> None:
    """Each stream's keys and values in float32, through a model in bfloat16; noise of gradients by embeddings.

    One that is missing, or twice as large, is off by 1, which is more than is allowed. For most models that is
    0.03 to 0.4; for Qwen3-Next and Qwen3.5-MoE 0.7, since a router's choice that turns early changes their states.
    """
    rows, tolerance = rows_of(base, 6), TIMES * noise.gradients
    assert tolerance < 1
    gradients: list[list[dict[str, torch.Tensor]]] = []
    for model in (half, base):
        leaves = [
            {name: tensor.clone().requires_grad_() for name, tensor in random_prefix(base, n).tensors.items()}
            for n in (3, 7, 4, 5, 6)
        ]
        prefixes = PrefixBatch.from_tensors([by_place(each) for each in leaves], (0, None, *range(1, 5)))
        target_losses(model.model, model.batch(rows, prefixes, "flat"), prefixes).sum().backward()
        gradients.append([{name: leaf.grad for name, leaf in each.items()} for each in leaves])  # type: ignore[misc]
    for name in gradients[0][0]:
        found, expected = (torch.cat([each[name].flatten(0, -2) for each in side]) for side in gradients)
        assert found.dtype == torch.float32
        assert float(distances(found, expected).median()) <= tolerance, name


def test_greedy_tokens_in_bfloat16_are_the_likeliest_but_for_noise(
    base: BaseModel, half: BaseModel, noise: Noise
) -> None:
    """In float32, each is as likely as the likeliest, but for what logits that are so far off can change.

    One in a row may not be: a router's choice can turn there.
    """
    prefixes = loud_prefixes(half)
    texts = generate(half, PROMPTS, prefixes, max_new_tokens=NEW)
    rows = []
    for prompt, text in zip(PROMPTS, texts, strict=True):
        tokens = base.tokenizer(text)["input_ids"]
        ended = () if len(tokens) == NEW else (base.tokenizer.eos_token_id,)
        rows.append(EncodedExample(base.template.source_ids(base.tokenizer, prompt), (*tokens, *ended)))
    for row, logits_TV in zip(rows, logits_of_rows(base, rows, prefixes), strict=True):
        chosen_T = logits_TV.gather(1, torch.tensor(row.target_ids)[:, None])[:, 0]
        # Two logits of a vector that is off by d are off by no more than the root of 2 times d, taken together.
        allowed_T = 2**0.5 * TIMES * noise.logits * logits_TV.norm(dim=1)
        assert (logits_TV.max(dim=1).values - chosen_T > allowed_T).sum() <= 1


RESUMED = [a for a in WORKING if a.model_type in ("llama", "gemma3n_text", "gpt_oss", "lfm2", "t5")]


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("architecture", RESUMED, ids=str, scope="module")
def test_a_stopped_run_in_bfloat16_ends_in_the_same_prefix_bit_for_bit(
    architecture: Architecture, tmp_path: Path
) -> None:
    check_resumption(architecture.half, tmp_path)
