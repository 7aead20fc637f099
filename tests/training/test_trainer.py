"""The state of one run: its best step, in which the start competes, and what a checkpoint keeps of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

from foreword import BaseModel, Prefix, train
from foreword.encoding import encode
from foreword.training import Progress, TrainingStopped, checkpoint
from foreword.training.checkpoint import list_checkpoints
from foreword.training.loop import train_step
from foreword.training.settings import make_settings
from foreword.training.trainer import Trainer, build_trainer
from support.stand_ins import byte_tokenizer, random_examples, tiny_llama

DEV, EXAMPLES = random_examples(5, seed=5), random_examples(6, seed=9)
RUINOUS: dict[str, Any] = {
    **{"length": 3, "dev": DEV, "steps": 6, "evaluate_every": 2},
    **{"learning_rate": 5.0, "max_grad_norm": 0, "warmup": 0},
}


@pytest.fixture(scope="module")
def good() -> Prefix:
    """A start that is good on the dev examples already."""
    base = BaseModel(tiny_llama(), byte_tokenizer(), name="tiny-llama")
    return train(base, DEV, length=3, steps=40, learning_rate=0.1)


def same(one: Prefix, two: Prefix) -> bool:
    return all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)


def dev_losses(folder: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {row["step"]: row["dev_loss"] for row in rows if "dev_loss" in row}


def test_a_start_that_no_step_betters_is_what_the_run_ends_in(
    tiny_base: BaseModel, good: Prefix, tmp_path: Path
) -> None:
    told: list[Progress] = []
    kept = train(tiny_base, EXAMPLES, **RUINOUS, start=good, checkpoint_dir=tmp_path, on_progress=told.append)
    measured = float(torch.cat(tiny_base.token_losses(DEV, good)).mean())
    assert all(loss > measured + 0.1 for step, loss in dev_losses(tmp_path).items() if step > 0)
    assert same(kept, good)
    assert (kept.origin.steps, kept.origin.dev_loss) == (0, pytest.approx(measured, rel=1e-5))
    assert {progress.best_step for progress in told if progress.note is None} == {0}
    assert [p.note for p in told if p.note] == [
        f"no step had a lower dev loss than the start, {measured:.4f}; the start itself is kept (steps 0). "
        "Another learning rate or more examples may help"
    ]


def test_patience_counts_dev_losses_behind_the_start(
    tiny_base: BaseModel, good: Prefix, tmp_path: Path
) -> None:
    train(tiny_base, EXAMPLES, **RUINOUS, start=good, patience=2, checkpoint_dir=tmp_path)
    assert list(dev_losses(tmp_path)) == [0, 2, 4]


@pytest.mark.parametrize("stop_after", [0, 3])
def test_the_start_competes_in_a_run_that_was_stopped(
    tiny_base: BaseModel, good: Prefix, tmp_path: Path, stop_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _stopped(tiny_base, good, tmp_path, stop_after, monkeypatch)
    assert same(train(tiny_base, EXAMPLES, **RUINOUS, start=good, checkpoint_dir=tmp_path), good)
    assert list(dev_losses(tmp_path)) == [0, 2, 4, 6]


def test_the_start_competes_in_a_run_that_an_earlier_release_began(
    tiny_base: BaseModel, good: Prefix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose checkpoint holds the best of the later steps, and the log in its header."""
    path = _stopped(tiny_base, good, tmp_path, 3, monkeypatch)
    with safetensors.safe_open(path, framework="pt") as opened:
        header = json.loads(opened.metadata()[checkpoint.HEADER_KEY])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    header["data"]["history"] = json.loads(bytes(tensors.pop("history").tolist()))
    later = {step: loss for step, loss in dev_losses(tmp_path).items() if step > 0}
    header["data"] |= {"best_step": 2, "best_dev_loss": later[2], "worse": 0}
    tensors |= {name: tensor + 1 for name, tensor in tensors.items() if name.startswith("best.")}
    safetensors.torch.save_file(tensors, path, metadata={checkpoint.HEADER_KEY: json.dumps(header)})
    assert same(train(tiny_base, EXAMPLES, **RUINOUS, start=good, checkpoint_dir=tmp_path), good)
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == RUINOUS["steps"] + 4


def _stopped(
    base: BaseModel, start: Prefix, folder: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The checkpoint of a run that was asked to stop after `step`."""
    module = sys.modules["foreword.training.train"]  # the package's `train` is the function

    class Stop(module.StopRequest):  # type: ignore[name-defined, misc]
        def __call__(self) -> bool:
            return self.made or len(steps) >= step

    steps: list[int] = []
    with monkeypatch.context() as patched, pytest.raises(TrainingStopped, match=f"after step {step}"):
        patched.setattr(module, "StopRequest", Stop)
        train(
            base,
            EXAMPLES,
            **RUINOUS,
            start=start,
            checkpoint_dir=folder,
            on_progress=lambda p: (
                steps.append(p.step) if p.loss is not None and p.step not in steps else None
            ),
        )
    return list_checkpoints(folder)[-1]


def test_a_resumed_optimizer_has_its_state_where_the_parameters_are(tiny_base: BaseModel) -> None:
    """The meta device stands for a GPU: one that is not the CPU, from which checkpoints come."""
    rows, _ = encode(EXAMPLES, tiny_base.tokenizer, tiny_base.template)
    settings = make_settings(length=2, steps=4)
    first = build_trainer(tiny_base, settings, rows, [])
    train_step(tiny_base, [first])
    tensors, data = first.state()
    trained = build_trainer(tiny_base, settings, rows, []).trained
    trained.parameters.to("meta")  # type: ignore[attr-defined]
    second = Trainer(settings, first.resolved, trained, rows, [], by_length=False)
    second.restore(tensors, data)
    for parameter in trained.parameters.parameters():  # type: ignore[attr-defined]
        state = second._optimizer.state[parameter]
        assert {name: (part.device.type, part.dtype) for name, part in state.items()} == dict.fromkeys(
            ("step", "exp_avg", "exp_avg_sq"), ("meta", torch.float32)
        )
        parameter.grad = torch.zeros_like(parameter)
    second._optimizer.step()  # refused where the state is elsewhere


def test_a_checkpoint_does_not_share_memory_with_the_trainer_that_goes_on(tiny_base: BaseModel) -> None:
    rows, _ = encode(EXAMPLES, tiny_base.tokenizer, tiny_base.template)
    first, second = (build_trainer(tiny_base, make_settings(length=2, steps=4), rows, []) for _ in "12")
    train_step(tiny_base, [first])
    tensors, data = first.state()
    second.restore(tensors, data)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    train_step(tiny_base, [second])
    assert all(torch.equal(tensors[name], before[name]) for name in before)


def test_a_long_history_is_beside_the_header_which_stays_small(tmp_path: Path) -> None:
    """safetensors reads no header above 100 MB: 600,000 rows of the log."""
    row = {"step": 123456, "loss": 1.2345678901234, "token_loss": 1.2345678901234, "gradient_norm": 0.123456}
    history = [{**row, "learning_rate": 0.0123456789, "tokens": 1234, "seconds": 0.1234}] * 2000
    data = {"step": 1, "best_step": 0, "best_dev_loss": None, "worse": 0, "history": history}
    path = checkpoint.write(tmp_path, 1, {"parameters.x": torch.ones(3)}, data, {"settings": {}})
    tensors, found = checkpoint.read(path, {"settings": {}})
    assert found == data
    assert tensors.keys() == {"parameters.x"}
    content = path.read_bytes()
    assert int.from_bytes(content[:8], "little") < 1000
    header = json.loads(
        json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"][
            checkpoint.HEADER_KEY
        ]
    )
    assert header["data"] == {**data, "history": []}
