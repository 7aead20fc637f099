"""Ablations: embedding-only and some layers only, against computations by hand; infix: test_infix.py."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from foreword import BaseModel, Example, Prefix, train, train_many
from foreword.encoding import encode
from foreword.errors import UsageError
from foreword.training import Progress, TrainingStopped
from foreword.training.embedding import compile_embeddings
from foreword.training.initialization import Initialization, activations, initial_key_values
from foreword.training.loop import train_step
from foreword.training.parameterization import ParameterizationSettings
from foreword.training.train import build_trainer, make_settings
from support.stand_ins import random_examples, random_prefix, tiny_llama
from support.tiny_bart import tiny_bart_base

TASK = [Example(f"{a}{b}", "yes yes yes") for a in "abcd" for b in "efgh"]
QUICK: dict[str, Any] = {"length": 4, "steps": 12, "batch_size": 4, "learning_rate": 2e-2}
KINDS: list[dict[str, Any]] = [
    {"parameterization": "embedding"},
    {"parameterization": ParameterizationSettings("embedding", freeze_first=True)},
    {"layers": "last:2"},
    {"layers": "first:1", "parameterization": "mlp+start"},
    {"placement": "infix"},
    {"placement": "infix", "parameterization": "embedding"},
]


def same(one: Prefix, two: Prefix) -> bool:
    return all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)


def mean_loss(base: BaseModel, prefix: Prefix | None) -> float:
    return float(torch.cat(base.token_losses(TASK, prefix)).mean())


# -- all of them -----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_training_lowers_the_loss_and_changes_no_weight_of_the_base(
    tiny_base: BaseModel, options: dict[str, Any]
) -> None:
    before = tiny_base.weights_checksum()
    prefix = train(tiny_base, TASK, **{**QUICK, "steps": 40}, **options)
    assert mean_loss(tiny_base, prefix) < mean_loss(tiny_base, None) - 0.5
    assert prefix.length == 4
    assert tiny_base.weights_checksum() == before
    assert all(p.grad is None and not p.requires_grad for p in tiny_base.model.parameters())


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_a_stopped_run_ends_in_the_same_prefix_bit_for_bit(
    tiny_base: BaseModel, tmp_path: Path, options: dict[str, Any]
) -> None:
    options = {**QUICK, **options, "dev": random_examples(3), "evaluate_every": 4}
    whole = train(tiny_base, TASK, **options)

    def interrupt(progress: Progress) -> None:
        if progress.step == 5 and progress.note is None:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingStopped):
        train(tiny_base, TASK, **options, checkpoint_dir=tmp_path, on_progress=interrupt)
    resumed = train(tiny_base, TASK, **options, checkpoint_dir=tmp_path)
    assert same(whole, resumed)
    assert resumed.origin == whole.origin


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_owners_who_train_together_end_where_each_would_alone(
    tiny_base: BaseModel, options: dict[str, Any]
) -> None:
    by_owner = {"a": TASK[:8], "b": TASK[8:]}
    together = train_many(tiny_base, by_owner, **QUICK, **options)
    for owner, examples in by_owner.items():
        alone = train(tiny_base, examples, **QUICK, **options)
        torch.testing.assert_close(together[owner].key(), alone.key(), rtol=1e-3, atol=1e-4)
        assert together[owner].template == alone.template


# -- embedding-only --------------------------------------------------------------------------------


def test_embeddings_of_words_compile_to_the_words_keys_and_values(tiny_base: BaseModel) -> None:
    ids = tiny_base.tokenizer("some words")["input_ids"]
    embeddings = tiny_base.model.get_input_embeddings()(torch.tensor(ids))
    found = compile_embeddings(tiny_base, embeddings)["decoder"]
    for one, other in zip(found, activations(tiny_base, ids, ids, len(ids))["decoder"], strict=True):
        assert torch.equal(one, other)


def test_a_compiled_prefix_gives_the_logits_of_the_embeddings_in_front_of_the_text(
    tiny_base: BaseModel,
) -> None:
    prefix = train(tiny_base, TASK, **QUICK, parameterization="embedding")
    rows, _ = encode(TASK, tiny_base.tokenizer, tiny_base.template)
    settings = make_settings(**QUICK, parameterization="embedding")
    trainer = build_trainer(tiny_base, settings, rows, [])
    while not trainer.finished:
        train_step(tiny_base, [trainer])
    assert torch.equal(trainer.trained.tensors()["decoder.key"], prefix.key())
    (embeddings,) = trainer.trained.parameters.parameters()
    losses = tiny_base.token_losses(TASK[:3], prefix)
    for row, found in zip(rows, losses, strict=False):
        expected = losses_behind(embeddings.detach(), row.source_ids, row.target_ids)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def losses_behind(embeddings_PE: torch.Tensor, source: Sequence[int], target: Sequence[int]) -> torch.Tensor:
    """Loss of each target token of [embeddings; source; target], by transformers alone."""
    model = tiny_llama().eval().requires_grad_(False)
    text = model.get_input_embeddings()(torch.tensor([*source, *target]))
    logits = model(inputs_embeds=torch.cat([embeddings_PE, text])[None]).logits[0]
    predicted = logits[len(embeddings_PE) + len(source) - 1 : -1]
    return torch.nn.functional.cross_entropy(predicted, torch.tensor(list(target)), reduction="none")


def test_gradients_of_the_embeddings_are_those_of_one_pass_over_embeddings_and_text(
    tiny_base: BaseModel,
) -> None:
    rows, _ = encode(random_examples(4), tiny_base.tokenizer, tiny_base.template)
    settings = make_settings(length=3, batch_size=4, steps=1, max_grad_norm=0, parameterization="embedding")
    trainer = build_trainer(tiny_base, settings, rows, [])
    (parameter,) = trainer.trained.parameters.parameters()
    by_hand = parameter.detach().clone().requires_grad_()
    losses = torch.cat([losses_behind(by_hand, r.source_ids, r.target_ids) for r in trainer.batch()])
    losses.mean().backward()
    train_step(tiny_base, [trainer])
    assert by_hand.grad is not None
    assert by_hand.grad.norm() > 1e-3
    torch.testing.assert_close(parameter.grad, by_hand.grad, rtol=1e-3, atol=1e-6)


def test_random_embeddings_are_as_large_as_those_of_words(tiny_base: BaseModel) -> None:
    settings = make_settings(length=50, init="random", parameterization="embedding")
    rows, _ = encode(TASK, tiny_base.tokenizer, tiny_base.template)
    trainer = build_trainer(tiny_base, settings, rows, [])
    (parameter,) = trainer.trained.parameters.parameters()
    assert float(parameter.detach().std()) == pytest.approx(
        float(tiny_base.model.get_input_embeddings().weight.std()), rel=0.1
    )


def test_the_first_embedding_stays_when_frozen(tiny_base: BaseModel) -> None:
    frozen = ParameterizationSettings("embedding", freeze_first=True)
    prefix = train(tiny_base, TASK, **QUICK, parameterization=frozen, init="words:hello")
    start = initial_key_values(tiny_base, Initialization("words", "hello"), 4, [], 0)["decoder"][0]
    torch.testing.assert_close(prefix.key()[:, :, 0], start[:, :, 0], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(prefix.key()[:, :, 1], start[:, :, 1], atol=1e-3)


def test_embedding_only_is_refused_where_it_means_nothing(tiny_base: BaseModel) -> None:
    with pytest.raises(UsageError, match="encoder-decoder"):
        train(tiny_bart_base(), TASK, **QUICK, parameterization="embedding")
    with pytest.raises(UsageError, match="no embeddings"):
        train(tiny_base, TASK, **QUICK, parameterization="embedding", start=random_prefix(tiny_base, 4))


# -- some layers only ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["direct", "mlp+start"])
@pytest.mark.parametrize(("layers", "chosen"), [("first:1", [0]), ("last:2", [1, 2]), ("first:3", [0, 1, 2])])
def test_layers_that_are_not_trained_stay_bit_for_bit(
    tiny_base: BaseModel, kind: str, layers: str, chosen: list[int]
) -> None:
    start = initial_key_values(tiny_base, Initialization("words", "hello"), 4, [], 0)["decoder"]
    prefix = train(tiny_base, TASK, **QUICK, parameterization=kind, layers=layers, init="words:hello")
    for found, begun in zip((prefix.key(), prefix.value()), start, strict=True):
        changed = [layer for layer in range(3) if not torch.equal(found[layer], begun[layer])]
        assert changed == chosen
    assert prefix.origin.parameterization is not None
    assert prefix.origin.parameterization.endswith(f"layers {layers}")


def test_layers_of_an_encoder_decoder_are_chosen_in_every_stream() -> None:
    base = tiny_bart_base()
    prefix = train(base, TASK, **QUICK, layers="last:1", init="words:hello")
    start = initial_key_values(base, Initialization("words", "hello"), 4, [], 0)
    for stream in ("decoder", "encoder", "cross"):
        key, begun = prefix.key(stream), start[stream][0]  # type: ignore[arg-type, index]
        assert torch.equal(key[0], begun[0])
        assert not torch.equal(key[1], begun[1])


def test_layers_that_mean_nothing_are_refused(tiny_base: BaseModel) -> None:
    for kind in ("mlp", "embedding"):
        with pytest.raises(UsageError, match="no beginning of each layer"):
            train(tiny_base, TASK, layers="first:1", parameterization=kind)
    for layers in ("first:0", "middle:2", "last:-1", "2", "first:"):
        with pytest.raises(UsageError, match="expected first:N or last:N"):
            train(tiny_base, TASK, layers=layers)
    with pytest.raises(UsageError, match="attention has 3"):
        train(tiny_base, TASK, layers="last:4")
