"""foreword train: learn a prefix from a file of examples, or one for each owner in it."""

from __future__ import annotations

import dataclasses
import functools
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from foreword.base.options import ModelOptions
from foreword.cli import output
from foreword.cli.options import (
    DATA,
    DataOptions,
    StoreOptions,
    base_option,
    data_file,
    json_option,
    option_of,
    overwrite_option,
    pairs,
    typed,
    unescaped,
)
from foreword.cli.train_destinations import destination, run_folder
from foreword.errors import CheckpointMismatch, UsageError
from foreword.training.settings import OWNERS, PREFIX, OwnersSettings, TrainingSettings
from foreword.validation import setting, settings_of

if TYPE_CHECKING:
    from foreword.base.base_model import BaseModel
    from foreword.examples import Example, Preference
    from foreword.prefix import Prefix
    from foreword.template import Template

EXAMPLE = (
    "  foreword train train.jsonl --dev dev.jsonl --base smollm2-135m-instruct --out e2e.prefix\n"
    "  foreword train mail.csv --source-field body --target-field subject \\\n"
    "    --base smollm2-135m-instruct --out mail.prefix --length 20 --epochs 3\n"
    "  foreword train mail.csv --by owner --owner-field user --out prefixes\n"
    "  foreword train preferences.jsonl --method dpo --start mail.prefix --out polite.prefix"
)

TEMPLATE, RUN = "Text in front of the target", "Run"


@dataclass(frozen=True)
class TemplateOptions:
    """How a source becomes the text in front of its target."""

    template: Literal["separator", "chat", "raw"] | None = setting(
        None,
        section=TEMPLATE,
        default_text="separator, and chat for conversations",
        help="What follows the source",
    )
    separator: str | None = setting(
        None,
        metavar="TEXT",
        section=TEMPLATE,
        default_text="newline",
        help=r"Between source and target (\n: newline)",
    )
    system: str | None = setting(None, metavar="TEXT", section=TEMPLATE, help="System message for chat")

    def change(self, examples: Sequence[Example | Preference]) -> Callable[[Template], Template]:
        """What the options make of the base's own template, for these examples.

        Raises:
            UsageError: an option that the style does not have.
        """
        style, separator, system = self.template, self.separator, self.system
        conversations = any(not isinstance(example.source, str) for example in examples)
        if style is None and (conversations or system is not None):
            style = "chat"
        if separator is not None and style not in (None, "separator"):
            raise UsageError(
                f"--separator is given, but the template is {style}; it needs --template separator"
            )
        if system is not None and style != "chat":
            raise UsageError(f"--system is given, but the template is {style}; it needs --template chat")
        if conversations and style != "chat":
            raise UsageError(
                f"the examples are conversations, which the template {style} can't write; use chat"
            )
        changes: dict[str, Any] = {"style": style or (None if separator is None else "separator")}
        changes |= {"separator": None if separator is None else unescaped(separator), "system": system}
        given = {name: value for name, value in changes.items() if value is not None}
        if style == "chat":
            given["begin"] = False  # a chat template writes its own beginning
        return lambda template: dataclasses.replace(template, **given)


@dataclass(frozen=True)
class Request:
    """What is to be trained, of one prefix or of many, checked before a base model is loaded.

    Attributes:
        examples, dev: from the files; `dev` is None without one.
        settings: what decides which prefix comes out.
        template: what the options make of the base's own.
        checkpoint_dir, checkpoint_every: where and how often; None for the default.
    """

    examples: Sequence[Example | Preference]
    dev: Sequence[Example | Preference] | None
    settings: TrainingSettings
    template: Callable[[Template], Template]
    start: Prefix | None
    labels: dict[str, str]
    licence: str | None
    checkpoint_dir: Path | None
    checkpoint_every: int | None
    load: Callable[[], BaseModel]
    overwrite: bool
    json: bool


def train(
    context: typer.Context,
    data: Path = data_file(),
    out: Path | None = setting(
        None, help="Prefix file to write; with --by owner, folder for a file of each owner"
    ),
    base: str = base_option(),
    *,
    options: ModelOptions,
    files: DataOptions,
    limit: int | None = setting(None, section=DATA, help="Take the first N examples only"),
    dev: Path | None = setting(None, section=DATA, help="Examples by which the best step is chosen"),
    dev_limit: int | None = setting(None, section=DATA, help="Take the first N dev examples only"),
    by: Literal["owner"] | None = setting(
        None, section=OWNERS, help="owner: train one prefix per owner, all in one run"
    ),
    name: str | None = setting(
        None,
        metavar="NAME",
        section=OWNERS,
        help="Put each prefix into the store as OWNER/NAME, instead of --out",
    ),
    store: str = option_of(StoreOptions, "store", "prefixes", section=OWNERS),
    blobs: str | None = option_of(StoreOptions, "blobs", section=OWNERS),
    owners: OwnersSettings,
    settings: TrainingSettings,
    start: Path | None = setting(
        None,
        metavar="PREFIX",
        section=PREFIX,
        help="Prefix file to begin at, instead of --init; what it learned goes into the result",
    ),
    label: list[str] | None = setting(
        None, metavar="NAME=VALUE", section=PREFIX, help="Label kept in the prefix file; repeatable"
    ),
    licence: str | None = setting(
        None, metavar="TEXT", section=PREFIX, help="Licence, kept in the prefix file"
    ),
    template: TemplateOptions,
    checkpoint_dir: Path | None = setting(
        None,
        metavar="FOLDER",
        section=RUN,
        default_text="OUT with .run for .prefix, or the store's own",
        help="Checkpoints, log and curves",
    ),
    checkpoint_every: int | None = setting(
        None, section=RUN, default_text="a tenth of the run", help="Steps between checkpoints"
    ),
    tensorboard: bool = setting(False, section=RUN, help="Write TensorBoard files, too"),
    overwrite: bool = overwrite_option(
        help="Replace OUT, and start what was run with other settings or data anew"
    ),
    json: bool = json_option(),
) -> None:
    """Learn a prefix for a base model from a file of examples.

    Leaving options out gives the measured defaults. A run that was stopped goes on when the same
    command is given again. With --by owner, each owner in the data gets a prefix of their own, learned
    from their examples alone; see docs/owners.md. With --method dpo the file holds preferences between two
    answers; see docs/preferences.md.
    """
    from foreword.cli.loading import load_base
    from foreword.files import check_output
    from foreword.prefix import Prefix

    if start is not None and typed(context, "init"):
        raise UsageError("--start and --init both say where training begins; give one of them")
    of_owners = typed(context, "name", "store", "blobs", *_names(OwnersSettings))
    if by is None:
        if of_owners:
            raise UsageError(
                f"{of_owners[0]} is given, but one prefix is trained; {of_owners[0]} needs --by owner"
            )
        if out is None:
            raise UsageError("no place for the prefix; say which file to write: --out FILE")
        check_output(out, overwrite=overwrite)
    else:
        _check_owner_options(of_owners, out=out, name=name, tensorboard=tensorboard)
    if checkpoint_every is not None and checkpoint_every < 1:
        raise UsageError(f"--checkpoint-every is {checkpoint_every}; expected 1 or more")
    # Where each owner gets a prefix, a line without one is a fault even if the field has its usual name.
    fields = files.fields(by and "owner")
    read = _preferences if settings.method == "dpo" else _examples
    examples = read(data, files, fields, limit)
    request = Request(
        examples=examples,
        dev=None if dev is None else read(dev, files, fields, dev_limit),
        settings=settings,
        template=template.change(examples),
        start=None if start is None else Prefix.load(start),
        labels=pairs(label, "--label"),
        licence=licence,
        checkpoint_dir=checkpoint_dir,
        checkpoint_every=checkpoint_every,
        load=functools.partial(load_base, base, options),
        overwrite=overwrite,
        json=json,
    )
    if by is None:
        assert out is not None
        return _train_one(request, out, tensorboard=tensorboard)
    from foreword.cli.train_owners import train_owners

    with destination(out, store, blobs, checkpoint_dir, name=name) as goal:
        train_owners(request, goal, owners)


def _examples(
    path: Path, files: DataOptions, fields: dict[str, str] | None, limit: int | None
) -> Sequence[Example]:
    from foreword.examples import read_examples

    return read_examples(path, format=files.format, fields=fields, limit=limit)


def _preferences(
    path: Path, files: DataOptions, fields: dict[str, str] | None, limit: int | None
) -> Sequence[Preference]:
    """Raises UsageError: an option that is about examples."""
    from foreword.examples import read_preferences

    for option, given in (("--source-field", files.source_field), ("--target-field", files.target_field)):
        if given is not None:
            raise UsageError(
                f"{option} is given, but --method dpo learns from preferences, which have no such field; see "
                "docs/preferences.md for the fields they have"
            )
    if files.format not in ("auto", "jsonl"):
        raise UsageError(
            f"--format is {files.format}, but --method dpo reads preferences as JSON lines; leave it out"
        )
    return read_preferences(path, fields=fields, limit=limit)


def _names(kind: Any) -> list[str]:
    """The parameters of a class of settings, old names among them."""
    return [name for each in settings_of(kind) for name in (each.name, *each.aliases)]


def _check_owner_options(
    of_owners: Sequence[str],
    *,
    out: Path | None,
    name: str | None,
    tensorboard: bool,
) -> None:
    if (out is None) == (name is None):
        raise UsageError(
            "say where the owners' prefixes go: --out FOLDER for a file each, or --store PLACE --name NAME "
            "for OWNER/NAME in a store"
        )
    if out is not None and (others := sorted({"--store", "--blobs"} & set(of_owners))):
        raise UsageError(f"--out and {others[0]} are both given; to put prefixes into a store, use --name")
    if tensorboard:
        raise UsageError("--tensorboard is given, but it shows one run; it can't be used with --by owner")


# -- one prefix ----------------------------------------------------------------------------------


def _train_one(request: Request, out: Path, *, tensorboard: bool) -> None:
    """Train one prefix on all examples and write it to `out`. Raises as `train` and `Prefix.save`."""
    from foreword.training.train import train as train_prefix

    owners = {example.owner for example in request.examples}
    if len(owners) > 1:
        output.note(
            f"{len(owners)} owners in the data; one prefix is trained for all of them together "
            "(--by owner: one for each)"
        )
    base = request.load()
    folder = request.checkpoint_dir or run_folder(out)

    def run(report: Callable[[Any], None]) -> Prefix:
        return train_prefix(
            base,
            request.examples,
            dev=request.dev,
            template=request.template(base.template),
            start=request.start,
            checkpoint_dir=folder,
            checkpoint_every=request.checkpoint_every,
            tensorboard=tensorboard,
            labels=request.labels,
            licence=request.licence,
            on_progress=report,
            **request.settings.keywords(),
        )

    prefix = run_or_restart(run, folder, overwrite=request.overwrite)
    prefix.save(out, overwrite=request.overwrite)
    _tell(prefix, out, folder, json=request.json)


def run_or_restart(
    run: Callable[[Callable[[Any], None]], Prefix], folder: Path, *, overwrite: bool
) -> Prefix:
    """Train, or go on; a folder with another run is started anew only under --overwrite."""
    from foreword.training.checkpoint import list_checkpoints

    with output.training_progress() as shown:

        def report(progress: Any) -> None:
            shown(progress)
            resumed = progress.note is not None and progress.note.startswith("going on from")
            if resumed and 0 < progress.steps <= progress.step:
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
                **({"report": prefix.report} if prefix.report else {}),
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
