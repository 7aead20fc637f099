"""Training: what it learns, what it leaves alone, and that a stopped run ends where it would have."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from foreword import BaseModel, Example, Prefix, Template, generate, train, train_many
from foreword.encoding import encode
from foreword.errors import (
    BadExamples,
    CannotWrite,
    CheckpointMismatch,
    DamagedCheckpoint,
    ForewordWarning,
    TrainingDiverged,
    UsageError,
    WindowExceeded,
)
from foreword.training import Progress, TrainingStopped
from foreword.training.checkpoint import list_checkpoints
from foreword.training.initialization import Initialization, activations, initial_key_values
from foreword.training.loop import train_step
from foreword.training.parameterization import Parameterization, ParameterizationSettings
from foreword.training.train import build_trainer, make_settings
from support.by_hand import token_losses
from support.stand_ins import byte_tokenizer, random_examples, random_prefix, tiny_llama

TASK = [Example(f"{a}{b}", "yes yes yes") for a in "abcd" for b in "efgh"]
QUICK: dict[str, Any] = {"length": 4, "steps": 12, "batch_size": 4, "learning_rate": 5e-3}


def same(one: Prefix, two: Prefix) -> bool:
    return all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)


def mean_loss(base: BaseModel, examples: list[Example], prefix: Prefix | None) -> float:
    return float(torch.cat(base.token_losses(examples, prefix)).mean())


@pytest.mark.parametrize("kind", ["direct", "scaled", "mlp", "mlp+start"])
def test_training_lowers_the_loss(tiny_base: BaseModel, kind: str) -> None:
    prefix = train(tiny_base, TASK, **{**QUICK, "steps": 40, "learning_rate": 2e-2}, parameterization=kind)
    assert mean_loss(tiny_base, TASK, prefix) < mean_loss(tiny_base, TASK, None) - 0.5


def test_a_step_of_scaled_is_the_same_share_of_every_layers_size(tiny_base: BaseModel) -> None:
    start = random_prefix(tiny_base, 6, template=tiny_base.template)
    sizes = torch.tensor([0.01, 1.0, 30.0]).view(3, 1, 1, 1)
    start = dataclasses.replace(start, tensors={name: t * sizes for name, t in start.tensors.items()})
    options = {**QUICK, "steps": 1, "warmup": 0, "learning_rate": 0.01, "length": 6}
    prefix = train(tiny_base, TASK, start=start, parameterization="scaled", **options)
    for name, tensor in start.tensors.items():
        unit_L = tensor[:, :, 1:].square().mean((1, 2, 3)).sqrt()
        step_L = (prefix.tensors[name] - tensor).abs().mean((1, 2, 3))
        # AdamW's first step is the learning rate in every number, whatever its gradient.
        torch.testing.assert_close(step_L, 0.01 * unit_L, rtol=1e-3, atol=0)


def test_no_weight_of_the_base_changes(tiny_base: BaseModel) -> None:
    before = tiny_base.weights_checksum()
    train(tiny_base, TASK, **QUICK)
    assert tiny_base.weights_checksum() == before
    assert all(not p.requires_grad and p.grad is None for p in tiny_base.model.parameters())
    assert not tiny_base.model.training


def test_the_same_seed_gives_the_same_prefix_and_another_gives_another(tiny_base: BaseModel) -> None:
    one, two = train(tiny_base, TASK, **QUICK), train(tiny_base, TASK, **QUICK)
    assert same(one, two)
    assert not same(one, train(tiny_base, TASK, **QUICK, seed=1))


def test_other_random_draws_in_the_process_change_nothing(tiny_base: BaseModel) -> None:
    one = train(tiny_base, TASK, **QUICK)
    torch.manual_seed(12345)
    torch.randn(7)
    assert same(one, train(tiny_base, TASK, **QUICK))


@pytest.mark.parametrize("stop_after", [1, 5, 11])
def test_a_stopped_run_ends_in_the_same_prefix_bit_for_bit(
    tiny_base: BaseModel, tmp_path: Path, stop_after: int
) -> None:
    options: dict[str, Any] = {**QUICK, "dev": random_examples(3), "evaluate_every": 4, "freeze_first": True}
    options["parameterization"] = ParameterizationSettings("mlp+start", width=16, freeze_first=True)
    del options["freeze_first"]
    whole = train(tiny_base, TASK, **options)

    def interrupt(progress: Progress) -> None:
        if progress.step == stop_after and progress.note is None:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingStopped, match=f"step {stop_after}"):
        train(tiny_base, TASK, **options, checkpoint_dir=tmp_path, on_progress=interrupt)
    notes: list[str] = []
    resumed = train(
        tiny_base,
        TASK,
        **options,
        checkpoint_dir=tmp_path,
        on_progress=lambda p: notes.append(p.note) if p.note else None,
    )
    assert same(whole, resumed)
    assert resumed.origin == whole.origin
    assert f"going on from step {stop_after}" in notes[0]
    logged = [line for line in (tmp_path / "log.jsonl").read_text().splitlines() if "token_loss" in line]
    assert len(logged) == options["steps"]


def test_a_killed_run_goes_on_from_its_last_checkpoint(tiny_base: BaseModel, tmp_path: Path) -> None:
    whole = train(tiny_base, TASK, **QUICK)

    class Killed(Exception):
        pass

    def kill(progress: Progress) -> None:
        if progress.step == 8:
            raise Killed

    with pytest.raises(Killed):
        train(tiny_base, TASK, **QUICK, checkpoint_dir=tmp_path, checkpoint_every=3, on_progress=kill)
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "step-0000003.checkpoint",
        "step-0000006.checkpoint",
    ]
    assert same(whole, train(tiny_base, TASK, **QUICK, checkpoint_dir=tmp_path))


def test_a_finished_run_is_not_run_again(tiny_base: BaseModel, tmp_path: Path) -> None:
    one = train(tiny_base, TASK, **QUICK, checkpoint_dir=tmp_path)
    steps: list[int] = []
    two = train(
        tiny_base,
        TASK,
        **QUICK,
        checkpoint_dir=tmp_path,
        on_progress=lambda p: steps.append(p.step) if p.note is None else None,
    )
    assert same(one, two)
    assert steps == []
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_checkpoint_of_another_run_is_refused_with_the_difference(
    tiny_base: BaseModel, tmp_path: Path
) -> None:
    train(tiny_base, TASK, **QUICK, checkpoint_dir=tmp_path)
    with pytest.raises(CheckpointMismatch, match=r"learning_rate is 0\.1, was 0\.005"):
        train(tiny_base, TASK, **{**QUICK, "learning_rate": 0.1}, checkpoint_dir=tmp_path)
    with pytest.raises(CheckpointMismatch, match="data is"):
        train(tiny_base, TASK[1:], **QUICK, checkpoint_dir=tmp_path)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it(
    tiny_base: BaseModel, tmp_path: Path
) -> None:
    whole = train(tiny_base, TASK, **QUICK, checkpoint_dir=tmp_path, checkpoint_every=5)
    _, newest = list_checkpoints(tmp_path)
    newest.write_bytes(newest.read_bytes()[:500])
    notes: list[str] = []
    again = train(
        tiny_base,
        TASK,
        **QUICK,
        checkpoint_dir=tmp_path,
        on_progress=lambda p: notes.append(p.note) if p.note else None,
    )
    assert same(whole, again)
    assert f"damaged and passed over: {newest.name}" in notes[0]
    left = list_checkpoints(tmp_path)
    for path in left:
        path.write_bytes(b"nonsense")
    with pytest.raises(DamagedCheckpoint, match="not a checkpoint"):
        train(tiny_base, TASK, **QUICK, checkpoint_dir=tmp_path)
    assert list_checkpoints(tmp_path) == left  # an error removes nothing


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_named_and_the_run_can_go_on(tiny_base: BaseModel, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(CannotWrite, match="No space left"):
        train(tiny_base, TASK, **QUICK, checkpoint_dir=tmp_path)
    (tmp_path / "log.jsonl").unlink()
    assert same(train(tiny_base, TASK, **QUICK, checkpoint_dir=tmp_path), train(tiny_base, TASK, **QUICK))


def test_accumulating_parts_gives_the_step_of_the_whole_batch(tiny_base: BaseModel) -> None:
    examples = random_examples(8)
    for reduction in ("token", "sequence"):
        options: dict[str, Any] = {**QUICK, "batch_size": 8, "reduction": reduction}
        whole = train(tiny_base, examples, **options)
        parts = train(tiny_base, examples, **options, gradient_accumulation=3)
        torch.testing.assert_close(whole.key(), parts.key(), rtol=1e-4, atol=1e-5)


def test_gradient_checkpointing_gives_the_same_prefix(tiny_base: BaseModel) -> None:
    plain = train(tiny_base, TASK, **QUICK)
    saving = train(tiny_base, TASK, **QUICK, gradient_checkpointing=True)
    torch.testing.assert_close(plain.key(), saving.key(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reduction", ["token", "sequence"])
def test_the_reported_loss_is_the_reduction_computed_by_hand(tiny_base: BaseModel, reduction: str) -> None:
    rows, _ = encode(random_examples(4), tiny_base.tokenizer, tiny_base.template)
    settings = make_settings(length=3, batch_size=4, reduction=reduction, steps=1)
    trainer = build_trainer(tiny_base, settings, rows, [])
    with torch.no_grad():
        key, value = trainer.trained.key_values()["decoder"]
    batch = trainer.batch()
    layers = list(zip(key, value, strict=True))
    by_row = [token_losses(tiny_base.model, r.source_ids, r.target_ids, layers) for r in batch]
    expected = (
        torch.cat(by_row).mean() if reduction == "token" else torch.stack([r.sum() for r in by_row]).mean()
    )
    (report,) = train_step(tiny_base, [trainer])
    assert not isinstance(report, TrainingDiverged)
    assert report.loss == pytest.approx(float(expected), rel=1e-5)
    assert report.targets == sum(len(r.target_ids) for r in batch)


def test_the_loss_is_on_target_and_end_token_only(tiny_base: BaseModel) -> None:
    losses = tiny_base.token_losses([Example("a long source", "abc")])[0]
    assert len(losses) == len("abc") + 1


def test_the_best_dev_step_is_kept(tiny_base: BaseModel, tmp_path: Path) -> None:
    dev = [Example("ab", "no no no")]
    prefix = train(
        tiny_base,
        TASK,
        **{**QUICK, "steps": 30, "learning_rate": 5e-2},
        dev=dev,
        evaluate_every=3,
        checkpoint_dir=tmp_path,
    )
    import json

    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    dev_losses = {row["step"]: row["dev_loss"] for row in rows if "dev_loss" in row and row["step"] > 0}
    best = min(dev_losses, key=dev_losses.__getitem__)
    assert prefix.origin.steps == best
    assert prefix.origin.dev_loss == dev_losses[best]
    assert mean_loss(tiny_base, dev, prefix) == pytest.approx(dev_losses[best], rel=1e-5)


def test_patience_ends_the_run_early(tiny_base: BaseModel, tmp_path: Path) -> None:
    dev = [Example("ab", "no no no")]
    options: dict[str, Any] = {**QUICK, "steps": 300, "learning_rate": 0.05, "dev": dev, "evaluate_every": 2}
    train(tiny_base, TASK, **options, patience=2, checkpoint_dir=tmp_path)
    assert int(list_checkpoints(tmp_path)[-1].stem.split("-")[1]) < 300


def test_the_first_position_stays_when_frozen(tiny_base: BaseModel) -> None:
    rows, _ = encode(TASK, tiny_base.tokenizer, tiny_base.template)
    start = initial_key_values(tiny_base, Initialization("demonstrations"), 4, rows, 0)["decoder"]
    for kind in ("direct", "mlp+start"):
        prefix = train(
            tiny_base,
            TASK,
            **QUICK,
            init="demonstrations",
            parameterization=ParameterizationSettings(kind, freeze_first=True),
        )  # type: ignore[arg-type]
        assert torch.equal(prefix.key()[:, :, 0], start[0][:, :, 0])
        assert not torch.equal(prefix.key()[:, :, 1], start[0][:, :, 1])


def test_mlp_plus_start_begins_at_the_start(tiny_base: BaseModel) -> None:
    start = initial_key_values(tiny_base, Initialization("words", "hello"), 4, [], 0)
    key, value = Parameterization(ParameterizationSettings(), start, 0)()["decoder"]
    assert torch.equal(key, start["decoder"][0])
    assert torch.equal(value, start["decoder"][1])


def test_activations_are_the_keys_and_values_of_transformers_cache(tiny_base: BaseModel) -> None:
    ids = tiny_base.tokenizer("some words to start")["input_ids"]
    key, value = activations(tiny_base, ids, ids, 5)["decoder"]
    cache = tiny_llama().eval()(input_ids=torch.tensor([ids]), use_cache=True).past_key_values
    for layer in range(3):
        torch.testing.assert_close(key[layer], cache.layers[layer].keys[0, :, :5], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(value[layer], cache.layers[layer].values[0, :, :5], rtol=1e-5, atol=1e-5)


def test_words_are_repeated_to_the_prefix_length(tiny_base: BaseModel) -> None:
    found = initial_key_values(tiny_base, Initialization("words", "ab"), 5, [], 0)["decoder"][0]
    ids = tiny_base.tokenizer("ababa")["input_ids"]
    assert torch.equal(found, activations(tiny_base, ids, ids, 5)["decoder"][0])


def test_random_start_hardly_moves_the_loss(tiny_base: BaseModel) -> None:
    start = initial_key_values(tiny_base, Initialization("random"), 4, [], 0)["decoder"]
    prefix = Prefix(
        {"decoder.key": start[0], "decoder.value": start[1]}, tiny_base.identity, tiny_base.template
    )
    assert abs(mean_loss(tiny_base, TASK, prefix) - mean_loss(tiny_base, TASK, None)) < 0.6


def test_truncation_is_counted_and_reported(tiny_base: BaseModel) -> None:
    examples = [Example("s" * 200, "t" * 5), Example("s", "t" * 300), Example("s", "t")]
    notes: list[str] = []
    with pytest.warns(ForewordWarning, match="1 sources and 1 targets were cut to fit 124 tokens"):
        train(
            tiny_base,
            examples,
            **QUICK,
            on_progress=lambda p: notes.append(p.note) if p.note else None,
        )
    assert "1 sources and 1 targets" in notes[0]


def test_cutting_keeps_what_the_template_puts_behind_the_source(tiny_base: BaseModel) -> None:
    rows, cut = encode(
        [Example("s" * 50, "abc")], tiny_base.tokenizer, Template(separator=" ->", end="<end>"), 20
    )
    assert tiny_base.tokenizer.decode(rows[0].source_ids) == "s" * 14 + " ->"
    assert rows[0].tokens == 20
    assert (cut.sources, cut.targets, cut.tokens) == (1, 0, 36)


def test_an_example_that_just_fits_is_not_cut(tiny_base: BaseModel) -> None:
    whole, _ = encode(TASK[:1], tiny_base.tokenizer, tiny_base.template)
    again, cut = encode(TASK[:1], tiny_base.tokenizer, tiny_base.template, whole[0].tokens)
    assert again == whole
    assert not cut
    _, cut = encode(TASK[:1], tiny_base.tokenizer, tiny_base.template, whole[0].tokens - 1)
    assert cut


def test_an_encoder_and_a_decoder_have_the_limit_each(tiny_base: BaseModel) -> None:
    rows, cut = encode([Example("s" * 9, "t" * 9)], tiny_base.tokenizer, tiny_base.template, 10, apart=True)
    assert not cut
    rows, cut = encode([Example("s" * 30, "t" * 30)], tiny_base.tokenizer, tiny_base.template, 10, apart=True)
    assert (len(rows[0].source_ids), len(rows[0].target_ids)) == (10, 10)
    assert (cut.sources, cut.targets) == (1, 1)


def test_bad_calls_are_refused_before_any_work(tiny_base: BaseModel) -> None:
    with pytest.raises(BadExamples, match="no training examples"):
        train(tiny_base, [])
    with pytest.raises(WindowExceeded, match="128 positions"):
        train(tiny_base, TASK, length=500)
    with pytest.raises(UsageError, match="not both"):
        train(tiny_base, TASK, steps=1, epochs=1)
    with pytest.raises(UsageError, match="learning_rte"):
        train(tiny_base, TASK, learning_rte=1)
    with pytest.raises(UsageError, match="direct, scaled, mlp, mlp"):
        train(tiny_base, TASK, parameterization="lora")
    with pytest.raises(UsageError, match="expected random, words"):
        train(tiny_base, TASK, init="zeros")
    for name in ("length", "steps", "batch_size", "gradient_accumulation"):
        with pytest.raises(UsageError, match=f"{name} is 2.5; expected a whole number"):
            train(tiny_base, TASK, **{name: 2.5})
    for name in ("length", "steps", "batch_size", "learning_rate"):
        with pytest.raises(UsageError, match=f"{name} is -1"):
            train(tiny_base, TASK, **{name: -1})


def test_a_diverging_run_says_so(tiny_base: BaseModel) -> None:
    with pytest.raises((TrainingDiverged,), match="lower learning rate"):
        train(tiny_base, TASK, length=4, steps=50, learning_rate=1e30, warmup=0, parameterization="direct")


def test_chat_messages_go_through_the_chat_template_and_learn(tiny_base: BaseModel) -> None:
    tiny_base.tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }};{% endfor %}"
        "{% if add_generation_prompt %}a:{% endif %}"
    )
    chat = Template(style="chat", end="<end>", system="be brief")
    source = (
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "ho"},
        {"role": "user", "content": "x"},
    )
    examples = [Example(source, "yes yes"), Example("hello", "yes yes")]
    rows, _ = encode(examples, tiny_base.tokenizer, chat)
    assert tiny_base.tokenizer.decode(rows[0].source_ids) == "s:be brief;u:hi;a:ho;u:x;a:"
    assert tiny_base.tokenizer.decode(rows[1].source_ids) == "s:be brief;u:hello;a:"
    prefix = train(tiny_base, examples, **{**QUICK, "steps": 30, "learning_rate": 0.05}, template=chat)
    assert prefix.template == chat
    before = float(torch.cat(tiny_base.token_losses(examples, template=chat)).mean())
    assert mean_loss(tiny_base, examples, prefix) < before - 0.5


CHAT_BASE = "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }};{% endfor %}a:"


def test_single_texts_take_the_chat_template_by_default_and_the_separator_by_option(
    tiny_base: BaseModel,
) -> None:
    quick: dict[str, Any] = {"length": 2, "steps": 1}
    own = tiny_base.template
    assert train(tiny_base, TASK, **quick).template == own  # without a chat template
    tiny_base.tokenizer.chat_template = CHAT_BASE
    prefix = train(tiny_base, TASK, **quick)
    assert prefix.template == Template(style="chat", end="<end>")
    assert train_many(tiny_base, {"ann": TASK}, **quick)["ann"].template == prefix.template
    chat = (
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    )
    assert len(generate(tiny_base, [chat], prefix, max_new_tokens=2)) == 1
    separator = train(tiny_base, TASK, **quick, template=own)
    assert separator.template == own
    # What goes on from a prefix keeps its form; what somebody set as the base's own is kept, too.
    assert train(tiny_base, TASK, **quick, start=separator).template == own
    assert train(tiny_base, TASK, **quick, start=prefix).template == prefix.template
    tiny_base.template = dataclasses.replace(own, separator=" -> ")
    assert train(tiny_base, TASK, **quick).template == tiny_base.template


@pytest.mark.parametrize("many", [False, True])
def test_a_run_of_an_earlier_release_goes_on_in_the_form_that_was_the_default(
    many: bool, tiny_base: BaseModel, tmp_path: Path
) -> None:
    tiny_base.tokenizer.chat_template = CHAT_BASE

    def run(**template: Any) -> Prefix:
        options: dict[str, Any] = {
            "length": 2,
            "steps": 4,
            "checkpoint_dir": tmp_path,
            "checkpoint_every": 2,
            **template,
        }
        if many:
            return train_many(tiny_base, {"ann": TASK}, **options)["ann"]
        return train(tiny_base, TASK, **options)

    whole = run(template=tiny_base.template)
    list_checkpoints(tmp_path / "@ann" if many else tmp_path)[-1].unlink()  # as if it had been stopped
    resumed = run()
    assert resumed.template == whole.template == tiny_base.template
    assert torch.equal(resumed.key(), whole.key())
    with pytest.raises(CheckpointMismatch):
        run(template=Template(style="chat", end="<end>"))  # which somebody asked for


def test_tensorboard_holds_the_losses_when_asked_for(tiny_base: BaseModel, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tiny_base, TASK, **QUICK, checkpoint_dir=tmp_path, tensorboard=True)
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert [event.step for event in read.Scalars("token_loss")] == list(range(1, QUICK["steps"] + 1))


def test_a_gradient_that_is_not_finite_changes_nothing(tiny_base: BaseModel) -> None:
    rows, _ = encode(TASK, tiny_base.tokenizer, tiny_base.template)
    trainer = build_trainer(tiny_base, make_settings(**QUICK), rows, [])
    before = trainer.trained.tensors()
    compiled = trainer.trained.key_values()
    key, value = compiled["decoder"]
    with pytest.raises(TrainingDiverged, match="gradient became nan"):
        trainer.update(compiled, {"decoder": (torch.full_like(key, float("nan")), torch.zeros_like(value))})
    assert trainer.step == 0
    assert all(torch.equal(trainer.trained.tensors()[name], before[name]) for name in before)


def test_a_prefix_that_began_at_another_says_so(tiny_base: BaseModel) -> None:
    first = train(tiny_base, TASK, **QUICK)
    second = train(tiny_base, (example for example in TASK), **QUICK, start=first)  # type: ignore[arg-type]
    assert second.origin.initialization == f"prefix {first.digest[:12]}"
    assert second.origin.data_digest == first.origin.data_digest


def test_fingerprint_follows_every_weight() -> None:
    one = BaseModel(tiny_llama(), byte_tokenizer(), name="a")
    two = BaseModel(tiny_llama(), byte_tokenizer(), name="b")
    assert one.fingerprint == two.fingerprint
    with torch.no_grad():
        list(two.model.parameters())[-1].view(-1)[0] += 1e-3
    assert two.weights_checksum() != one.fingerprint


def test_schedule_rises_and_falls_linearly() -> None:
    from foreword.training.trainer import rate_factor

    factors = [rate_factor(step, warmup=4, steps=12) for step in range(12)]
    assert factors[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert factors[4:] == pytest.approx([1 - k / 8 for k in range(8)])
    assert all(math.isfinite(rate_factor(s, warmup=0, steps=1)) for s in range(1))
