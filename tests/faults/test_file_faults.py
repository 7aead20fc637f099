"""Files and runs of training, with every point of them failing once."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors

from faults.scenarios import Operation as Op
from faults.scenarios import Scenario, World
from foreword import BaseModel, Prefix, files, train
from foreword.errors import OutputExists
from foreword.training import checkpoint
from support.stand_ins import random_examples
from support.stores import make_prefix

LEFT_OUT = ("seconds", "time")
"""Fields of the log that differ from run to run."""


class FilesWorld(World):
    """A folder that programs write into."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "world"

    def reset(self) -> None:
        """See `World.reset`."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        make_prefix(1).save(self.folder / "there.prefix")
        (self.folder / "folder").mkdir()
        (self.folder / "folder" / "old").write_text("old")

    def fresh(self) -> FilesWorld:
        """See `World.fresh`."""
        return self

    def state(self) -> dict[str, Any]:
        """See `World.state`: the files that a person sees."""
        return {
            path.relative_to(self.folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:12]
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
            and not any(part.startswith(".") for part in path.relative_to(self.folder).parts)
        }

    def check_clean(self) -> list[str]:
        """See `World.check_clean`: whoever writes a file again removes what a killed writer of it left."""
        for operation in WRITES:
            if operation.done_before == ():
                operation.do(self)
        make_prefix(2).save(self.folder / "new.prefix", overwrite=True)
        return [f"the file {path}" for path in self.folder.rglob(f"*{files.TEMPORARY_SUFFIX}*")]


def replace_folder(world: FilesWorld) -> None:
    with files.writing_folder(world.folder / "folder") as made:
        for name in ("one", "two"):
            (made / name).write_text(name)


WRITES = [
    Op("save", lambda world: make_prefix(2).save(world.folder / "new.prefix"), (OutputExists,)),
    Op("save over", lambda world: make_prefix(3).save(world.folder / "there.prefix", overwrite=True)),
]


def test_saving_a_prefix(world_folder: Path, injected: Any) -> None:
    injected(Scenario("Prefix.save, new and over another", WRITES), FilesWorld(world_folder))


class TrainingWorld(FilesWorld):
    """A folder of a run of training, and the file that its prefix is saved to."""

    def state(self) -> dict[str, Any]:
        """See `World.state`: every checkpoint that is there must be whole."""
        run = self.folder / "run"
        for path in checkpoint.list_checkpoints(run):
            with safetensors.safe_open(path, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (no mapping)
                    opened.get_tensor(name)
        rows = [json.loads(line) for line in _whole_lines(run / "log.jsonl")]
        out = self.folder / "out.prefix"
        tensors = Prefix.load(out).tensors if out.exists() else {}
        return {
            "log": [{k: v for k, v in row.items() if k not in LEFT_OUT} for row in rows],
            "checkpoints": [path.name for path in checkpoint.list_checkpoints(run)],
            "prefix": hashlib.sha256(b"".join(t.numpy().tobytes() for t in tensors.values())).hexdigest()[
                :12
            ],
        }

    def check_clean(self) -> list[str]:
        """See `World.check_clean`."""
        return [f"the file {path}" for path in self.folder.rglob(f"*{files.TEMPORARY_SUFFIX}*")]


def _whole_lines(log: Path) -> list[str]:
    # A process that dies may leave half a line at the end, which a run that goes on removes.
    return (
        [line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
        if log.exists()
        else []
    )


@pytest.mark.usefixtures("no_pictures")
def test_training_goes_on_to_the_same_prefix(world_folder: Path, tiny_base: BaseModel, injected: Any) -> None:
    examples = random_examples(6)

    def run(world: TrainingWorld) -> None:
        prefix = train(
            tiny_base,
            examples[:4],
            dev=examples[4:],
            length=2,
            steps=4,
            batch_size=2,
            evaluate_every=2,
            checkpoint_dir=world.folder / "run",
            checkpoint_every=1,
        )
        prefix.save(world.folder / "out.prefix", overwrite=True)

    tolerated = {"training/run_log.py:draw": "the picture"}
    train_and_save = [Op("train", run, whole=False)]
    # Steps are alike, and so are their checkpoints.
    scenario = Scenario("train, checkpoints, log, save", train_and_save, tolerated=tolerated, sparse=True)
    injected(scenario, TrainingWorld(world_folder))
