"""foreword train for one prefix: train or go on, write it, say where it is."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from foreword.cli import output
from foreword.cli.train_request import Request, run_folder
from foreword.errors import CheckpointMismatch

if TYPE_CHECKING:
    from foreword.prefix import Prefix


def train_one(asked: Request, out: Path, *, tensorboard: bool) -> None:
    """Train one prefix on all examples and write it to `out`. Raises as `train` and `Prefix.save`."""
    from foreword.training.train import train

    owners = {example.owner for example in asked.examples}
    if len(owners) > 1:
        output.note(
            f"{len(owners)} owners in the data; one prefix is trained for all of them together "
            "(--by owner: one for each)"
        )
    base = asked.load()
    folder = asked.checkpoint_dir or run_folder(out)

    def run(report: Callable[[Any], None]) -> Prefix:
        return train(
            base,
            asked.examples,
            dev=asked.dev,
            template=asked.template(base.template),
            start=asked.start,
            checkpoint_dir=folder,
            checkpoint_every=asked.checkpoint_every,
            tensorboard=tensorboard,
            labels=asked.labels,
            licence=asked.licence,
            on_progress=report,
            **asked.settings,
        )

    prefix = _train(run, folder, overwrite=asked.overwrite)
    prefix.save(out, overwrite=asked.overwrite)
    _tell(prefix, out, folder, json=asked.json)


def _train(run: Callable[[Callable[[Any], None]], Prefix], folder: Path, *, overwrite: bool) -> Prefix:
    """Train, or go on; a folder with another run is started anew only under --overwrite."""
    from foreword.cli.progress import training_progress
    from foreword.training.checkpoint import list_checkpoints

    with training_progress() as shown:

        def report(progress: Any) -> None:
            shown(progress)
            if progress.note is not None and 0 < progress.steps <= progress.step:
                output.note(f"this run is complete already; to train it again, remove {folder}")

        try:
            return run(report)
        except CheckpointMismatch:
            if not overwrite:
                raise
            output.note(f"{folder} held a run with other settings; it starts anew (--overwrite)")
            for old in list_checkpoints(folder):
                old.unlink()
            return run(report)


def _tell(prefix: Prefix, out: Path, folder: Path, *, json: bool) -> None:
    size = out.stat().st_size
    places = {name: folder / name for name in ("log.jsonl", "curves.png") if (folder / name).exists()}
    if json:
        return output.json_object(
            {
                "prefix": out,
                "digest": prefix.digest,
                "bytes": size,
                "base": prefix.base.name,
                "length": prefix.length,
                "streams": {stream: prefix.stream_length(stream) for stream in prefix.streams},
                **dataclasses.asdict(prefix.origin),
                "run": folder,
                "log": places.get("log.jsonl"),
                "curves": places.get("curves.png"),
            }
        )
    typer.echo(repr(prefix))
    typer.echo(f"  prefix  {out}  ({size / 1000:.0f} kB)")
    for name, place in (("log", "log.jsonl"), ("curves", "curves.png")):
        if place in places:
            typer.echo(f"  {name:<6}  {places[place]}")
    command = ["foreword", "generate", "--prefix", str(out), "YOUR TEXT"]
    typer.echo(f"next: {shlex.join(command)}")
