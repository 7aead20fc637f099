"""Workloads have the sizes that were asked for; a process that is measured and fails tells why."""

from __future__ import annotations

import json
import sys

import pytest

from foreword import BaseModel
from foreword.research.bench import memory, workload
from foreword.research.bench.workload import Workload
from support.stand_ins import byte_tokenizer, tiny_llama


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return BaseModel(tiny_llama(), byte_tokenizer(), name="tiny-llama")


def test_a_workload_has_the_sizes_that_were_asked_for(base: BaseModel) -> None:
    work = Workload(rows=8, text=20, length=3, owners=4)
    rows = workload.random_rows(base, work)
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
