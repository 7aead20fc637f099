"""Room: estimates are of what is really kept, and never above it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from foreword import BaseModel
from foreword.errors import UsageError
from foreword.research.bench import memory, room, workload
from foreword.research.bench.train_step import step_of
from foreword.research.bench.workload import Workload
from support.stand_ins import byte_tokenizer, tiny_llama


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return BaseModel(tiny_llama(), byte_tokenizer(), name="tiny-llama")


def test_a_step_keeps_at_least_what_is_estimated(base: BaseModel) -> None:
    work = Workload(rows=4, text=32, length=3)
    kept: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    step = step_of(base, workload.trainers(base, work))
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        step(0)
    weights = {p.untyped_storage().data_ptr() for p in base.model.parameters()}
    saved = sum(size for address, size in kept.items() if address not in weights)
    logits_gradient = 4 * 32 // workload.TARGETS * 97 * 4
    assert 0.3 * saved < room.step(base, 4 * 32, 4 * 32 // workload.TARGETS) < saved + logits_gradient


def test_what_does_not_fit_is_refused_and_what_fits_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "available", lambda device: 2_000_000_000)
    room.check(2_000_000_000, torch.device("cpu"), "a hole")
    with pytest.raises(UsageError, match=r"a hole needs at least 2\.1 GB, and 2\.0 GB are free"):
        room.check(2_100_000_000, torch.device("cpu"), "a hole")


def test_a_container_has_no_more_than_its_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if not Path("/proc/meminfo").exists():
        pytest.skip("only Linux tells what is free")
    cpu = torch.device("cpu")
    monkeypatch.setattr(room, "GROUP", tmp_path)
    free = room.available(cpu)
    assert free is not None
    assert free > 10_000
    (tmp_path / "memory.current").write_text("4000\n")
    (tmp_path / "memory.max").write_text("10000\n")
    assert room.available(cpu) == 6000
    (tmp_path / "memory.max").write_text("max\n")
    unlimited = room.available(cpu)
    assert unlimited is not None
    assert unlimited > 10_000


def test_a_workload_has_the_sizes_that_were_asked_for(base: BaseModel) -> None:
    work = Workload(rows=8, text=20, length=3, owners=4)
    rows = workload.examples(base, work)
    assert [row.tokens for row in rows] == [20] * 8
    assert len({row.source_ids[0] for row in rows}) == 8  # nothing to share
    trainers = workload.trainers(base, work)
    assert [len(trainer.batch()) for trainer in trainers] == [2] * 4
    assert sorted(row.source_ids for one in trainers for row in one.batch()) == sorted(
        row.source_ids for row in rows
    )
    assert workload.operations(base, work) == workload.operations(base, Workload(8, 20, 3))


def test_a_process_that_fails_tells_its_last_words() -> None:
    program = "import sys; print('first', file=sys.stderr); sys.exit('no spade')"
    with pytest.raises(memory.MeasurementFailed, match="measuring a hole ended with status 1: no spade"):
        memory.run("a hole", [sys.executable, "-c", program], 1)
    told = "import json, os; print(json.dumps(os.environ['OMP_NUM_THREADS']))"
    assert json.loads(memory.run("a hole", [sys.executable, "-c", told], 3)) == "3"
