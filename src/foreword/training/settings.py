"""Settings of a training run, each defined once; the defaults are the measured ones of docs/defaults.md.

The options of commands, the hyperparameters of a job, the comparison of checkpoints, the keywords of
`train` and docs/settings.md come from the fields of `TrainingSettings`. Nothing here imports torch: help
must not wait for it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypedDict, get_args

from foreword.errors import UsageError
from foreword.template import Placement
from foreword.validation import (
    LARGEST_SEED,
    SMALLEST_SEED,
    check_settings,
    current_names,
    fitting,
    from_mapping,
    setting,
    settings_of,
    takes_old_names,
)

if TYPE_CHECKING:
    from foreword.prefix import Geometry

DEFAULT_LENGTH = 10
DEFAULT_EPOCHS = 5
DEFAULT_LEARNING_RATE = {"direct": 0.05, "scaled": 0.01, "mlp": 1e-3, "mlp+start": 1e-3, "embedding": 1e-2}
"""By parameterization. In the network, 512 hidden units move a key or value together: a step of 1e-3 in each
weight moves it by up to 512 * 0.5 * 1e-3 = 0.26. Trained themselves, they need a rate of that size. The
embeddings' rate is not tuned: a modest share of the size that the embeddings of words have. That of `scaled`
is measured on documents (docs/documents.md)."""

DEFAULT_WORDS = "Write the answer to the text."
"""Words that fit any task: as good as demonstrations (docs/defaults.md), and no text of an owner's."""

DEFAULT_BETA = 0.1
"""As Rafailov et al. (2023) and TRL have it."""

MINIMUM_STEPS, MAXIMUM_STEPS = 60, 2000
"""Bounds on the default number of steps, where neither steps nor epochs are given."""

Stream = Literal["decoder", "encoder", "cross"]
"""The same as `foreword.prefix.Stream`, which comes with torch."""
STREAMS = get_args(Stream)

PREFIX, TRAINING, OWNERS = "Prefix", "Training", "Many owners"
"""Sections of the help and of docs/settings.md."""

of_prefix, of_training, of_owners = (
    functools.partial(setting, section=section) for section in (PREFIX, TRAINING, OWNERS)
)


@dataclass(frozen=True)
class ParameterizationSettings:
    """What is trained.

    Attributes:
        kind: `direct` trains the keys and values themselves, from a starting point and at a high learning
            rate, which is what we measured to be best (docs/defaults.md); `scaled` trains them in units of
            their layer's size at the start, for a start that is good already, such as that of a document
            (docs/documents.md); `mlp` trains an embedding and a
            two-layer network that makes them (Li & Liang 2021, section 4.3); `mlp+start` adds that
            network, starting from zero, to the keys and values of the initialisation; `embedding` trains
            input embeddings alone, which one pass of the base turns into keys and values (section 7.2).
        width: W, of the network's hidden layer (the paper: 512 for tables, 800 for summaries).
        freeze_first: keep the first virtual token as it was initialised: it tends to be the
            attention sink (Cartridges, 2025). Not for `mlp`, which has no starting point.
    """

    kind: Literal["direct", "scaled", "mlp", "mlp+start", "embedding"] = setting(
        "direct", name="parameterization", help="What is trained"
    )
    width: int = setting(512, ge=1, metavar="W", help="Hidden size of the mlp")
    freeze_first: bool = setting(False, help="Do not train the first virtual token")

    def __post_init__(self) -> None:
        check_settings(self)
        if self.freeze_first and self.kind == "mlp":
            raise UsageError("freeze_first needs a starting point; 'mlp' has none, use direct or mlp+start")

    @property
    def has_network(self) -> bool:
        """Whether there is a network, of which the width is meant."""
        return self.kind in ("mlp", "mlp+start")

    def __str__(self) -> str:
        width = f"({self.width})" if self.has_network else ""
        return f"{self.kind}{width}{', first frozen' if self.freeze_first else ''}"


@dataclass(frozen=True)
class Initialization:
    """What training starts from.

    Attributes:
        kind: `random`; `words` or `text`: activations of `text`, repeated or cut to P tokens;
            `demonstrations`: activations of training examples drawn with the run's seed.
        text: the words or the text; None for the others.
    """

    kind: Literal["random", "words", "text", "demonstrations"]
    text: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("random", "words", "text", "demonstrations"):
            raise UsageError(f"init is {self.kind!r}; expected random, words:..., text:... or demonstrations")
        if (self.kind in ("words", "text")) != bool(self.text):
            raise UsageError(f"init {self.kind!r} {'needs' if not self.text else 'takes no'} text")

    def __str__(self) -> str:
        return self.kind if self.text is None else f"{self.kind}: {self.text[:60]}"

    @classmethod
    def parse(cls, written: str) -> Initialization:
        """From `random`, `demonstrations`, `words:summarize` or `text:...`."""
        kind, colon, text = written.partition(":")
        return cls(kind.strip(), text.strip() if colon else None)  # type: ignore[arg-type]


DEFAULT_INIT = Initialization("words", DEFAULT_WORDS)


def parse_length(text: str) -> int | dict[str, int]:
    """`10`, or `encoder=5,cross=10`, as `length` takes it.

    Raises:
        UsageError: neither of them; a stream named twice.
    """
    lengths: dict[str, int] = {}
    try:
        if "=" not in text:
            return int(text)
        for part in text.split(","):
            stream, equals, number = (piece.strip() for piece in part.partition("="))
            if not equals or not stream or stream in lengths:
                raise ValueError(part)
            lengths[stream] = int(number)
    except ValueError:
        raise UsageError(
            f"length is {text!r}; expected a whole number, or one for each stream, each once, as in "
            "encoder=5,cross=10"
        ) from None
    return lengths


def parse_streams(text: str) -> tuple[str, ...]:
    """`encoder,cross` as `streams` takes it; whether they are streams is seen there.

    Raises:
        UsageError: a stream named twice, or nothing between two commas.
    """
    streams = tuple(part.strip() for part in text.split(","))
    if "" in streams or len(set(streams)) < len(streams):
        raise UsageError(
            f"streams is {text!r}; expected some of decoder, encoder and cross, each once, as in "
            "encoder,cross"
        )
    return streams


@takes_old_names
@dataclass(frozen=True)
class TrainingSettings:
    """Everything that decides, with base model and data, which prefix comes out.

    A setting is one field: type, default, range, help, and the names it had before. What two settings
    have to do with each other is checked in `__post_init__`; what depends on base and data is filled in
    by `lengths`, `trained_layers` and `schedule`.
    """

    GONE: ClassVar[Mapping[str, str]] = {
        "by_source": "batches are drawn at random, which measured better; leave it out",
        "packed": "training takes the base's weights as they are; leave it out",
    }

    length: int | Mapping[Stream, int] = of_prefix(
        DEFAULT_LENGTH,
        ge=1,
        metavar="P",
        parse=parse_length,
        help="Number of virtual tokens; by stream: encoder=5,cross=10",
    )
    streams: tuple[Stream, ...] | None = of_prefix(
        None,
        metavar="NAMES",
        parse=parse_streams,
        default_text="those in length, or all",
        help="Of an encoder-decoder, the streams that are trained: some of decoder,encoder,cross",
    )
    parameterization: ParameterizationSettings = setting(
        section=PREFIX, default_factory=ParameterizationSettings, help="What is trained"
    )
    init: Initialization = setting(
        section=PREFIX,
        default_factory=lambda: DEFAULT_INIT,
        metavar="WHAT",
        parse=Initialization.parse,
        default_text="words that fit any task",
        help="Where training starts: words:SOME WORDS, text:A TEXT, demonstrations or random",
    )
    layers: str | None = of_prefix(
        None,
        metavar="WHICH",
        default_text="all",
        help="Train the keys and values of these layers only: first:N or last:N",
    )
    placement: Placement | None = setting(
        None,
        section=PREFIX,
        default_text="the template's own",
        help="prefix, or infix: the target sees it, the source does not",
    )
    method: Literal["supervised", "dpo"] = of_training(
        "supervised",
        help="supervised: cross-entropy of each target; dpo: preferences, of two answers the better one",
    )
    beta: float | None = of_training(
        None,
        gt=0,
        default_text=f"{DEFAULT_BETA} of dpo",
        help="Of dpo: how strongly the result is held to the model that training starts from",
    )
    steps: int | None = of_training(None, ge=1, default_text="about 5 epochs of them", help="Optimiser steps")
    epochs: float | None = of_training(None, gt=0, help="Passes over the data, instead of steps")
    batch_size: int = of_training(8, ge=1, help="Examples a step")
    learning_rate: float = of_training(
        None,
        gt=0,
        default_text="by parameterization, see docs/defaults.md",
        help="Peak learning rate of AdamW",
    )
    seed: int = of_training(0, ge=SMALLEST_SEED, le=LARGEST_SEED, help="Seed of initialisation and order")
    warmup: float = of_training(
        0.05, ge=0, help="Steps over which the learning rate rises, or below 1 a share of all steps"
    )
    max_grad_norm: float = of_training(
        1.0, ge=0, aliases=("clip",), help="Largest norm of the gradient, which is scaled down to it (0: off)"
    )
    weight_decay: float = of_training(0.0, ge=0, help="Weight decay of AdamW")
    reduction: Literal["token", "sequence"] = of_training(
        "token",
        help="token: mean over the step's target tokens; sequence: sum over each target, mean over examples",
    )
    gradient_accumulation: int = of_training(
        1,
        ge=1,
        aliases=("accumulate",),
        help="Split each step's batch into N parts, for less memory; the batch size stays",
    )
    max_length: int | None = of_training(
        None, ge=1, default_text="what the base's window leaves", help="Maximum tokens of a text"
    )
    gradient_checkpointing: bool = of_training(
        False, help="Compute the forward pass twice: less memory, more time"
    )
    evaluate_every: int | None = of_training(
        None, ge=1, default_text="a tenth of the run", help="Steps between dev losses"
    )
    patience: int | None = of_training(
        None, ge=1, default_text="never", help="Stop early after N dev losses without a better one"
    )

    def __post_init__(self) -> None:
        if self.learning_rate is None:
            object.__setattr__(self, "learning_rate", DEFAULT_LEARNING_RATE[self.parameterization.kind])
        fitting("streams", self.streams, tuple[str, ...] | None)
        by_stream = self.length if isinstance(self.length, Mapping) else {}
        for stream in (*by_stream, *(self.streams or ())):
            if stream not in STREAMS:
                raise UsageError(f"no stream is called {stream!r}; expected some of {', '.join(STREAMS)}")
        if self.length == {} or self.streams == ():
            raise UsageError("no stream is left to train; name at least one")
        if by_stream and set(self.streams or by_stream) != set(by_stream):
            raise UsageError(
                f"streams are {', '.join(self.streams or ())} but length names {', '.join(by_stream)}"
            )
        check_settings(self)
        self._check_method()
        if self.steps is not None and self.epochs is not None:
            raise UsageError("give steps or epochs, not both")
        if self.layers is not None:
            if self.parameterization.kind in ("mlp", "embedding"):
                raise UsageError(
                    f"layers is {self.layers!r}, which leaves the other layers as they begin; "
                    f"{self.parameterization.kind!r} has no beginning of each layer, take direct or mlp+start"
                )
            if not re.fullmatch("(first|last):[1-9][0-9]*", self.layers):
                raise UsageError(f"layers is {self.layers!r}; expected first:N or last:N")
        if self.parameterization.kind == "mlp" and self.init != DEFAULT_INIT:
            raise UsageError(
                f"init is {self.init}, but 'mlp' has no starting point; take mlp+start or direct, or leave "
                "init out"
            )

    def _check_method(self) -> None:
        """Fill in what the method needs, and refuse what does nothing under it."""
        if self.method == "supervised":
            if self.beta is not None:
                raise UsageError(
                    f"beta is {self.beta:g}, and the method is supervised, which has none; take the method "
                    "dpo, or leave beta out"
                )
            return
        if self.beta is None:
            object.__setattr__(self, "beta", DEFAULT_BETA)
        if self.reduction != "token":
            raise UsageError(
                f"reduction is {self.reduction!r}, which is about target tokens, and the method dpo has one "
                "loss for each pair of answers; leave reduction out"
            )

    def check_with(self, *, dev: bool, start: bool) -> None:
        """Refuse settings of which nothing would come beside what a run is given.

        Args:
            dev: whether there are dev examples.
            start: whether there is a prefix to start from.

        Raises:
            UsageError: a patience without dev losses; two starting points, or one that nothing starts from.
        """
        if self.patience is not None and not dev:
            raise UsageError(
                f"patience is {self.patience}, but there are no dev examples whose loss could end the run",
                advice="give dev examples, or leave patience out",
                remedy="no dev examples",
            )
        if start and self.init != DEFAULT_INIT:
            raise UsageError(
                f"init is {self.init}, and a prefix to start from is given, too",
                advice="give one of them",
                remedy="two starts",
            )
        if start and self.parameterization.kind == "mlp":
            raise UsageError(
                "a prefix to start from is given, but 'mlp' has no starting point",
                advice="take mlp+start or direct",
                remedy="no start",
            )

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> Self:
        """Settings from keywords, a table of a file, hyperparameters; None stands for the default.

        `init` and `parameterization` may be text; `width` and `freeze_first` may stand beside.

        Raises:
            UsageError: an unknown setting, or one out of range.
        """
        made: Self = from_mapping(cls, given, "training options")
        if given.get("width") is not None and not made.parameterization.has_network:
            raise UsageError(
                f"width is given, but {made.parameterization.kind} has no network; use parameterization "
                "mlp+start"
            )
        return made

    def resolve(self, geometry: Geometry, examples: int) -> ResolvedSettings:
        """What depends on the base model and the number of examples, filled in.

        Raises:
            UsageError: a stream that the base does not have, or more layers than it has.
        """
        steps = self.steps_for(examples)
        return ResolvedSettings(
            lengths=self.lengths(geometry),
            trained_layers=self.trained_layers(geometry),
            steps=steps,
            warmup_steps=self.warmup_steps(steps),
            learning_rate=self.learning_rate,
            evaluate_every=self.evaluate_every or max(1, math.ceil(steps / 10)),
            checkpoint_every=max(1, steps // 10),
        )

    def lengths(self, geometry: Geometry) -> dict[Stream, int]:
        """P of each stream that is trained on a base of this geometry.

        Raises:
            UsageError: a stream that the base does not have.
        """
        by_stream = self.length if isinstance(self.length, Mapping) else {}
        default = DEFAULT_LENGTH if isinstance(self.length, Mapping) else self.length
        chosen = self.streams or tuple(by_stream) or tuple(geometry.streams)
        if missing := [stream for stream in chosen if stream not in geometry.streams]:
            raise UsageError(
                f"this base has no {' and no '.join(missing)} stream; it has {', '.join(geometry.streams)}"
            )
        return {stream: by_stream.get(stream, default) for stream in geometry.streams if stream in chosen}

    def trained_layers(self, geometry: Geometry) -> dict[Stream, range] | None:
        """The layers that are trained, of each stream of a base of this geometry; None for all.

        Raises:
            UsageError: more than a stream has.
        """
        if self.layers is None:
            return None
        end, number = self.layers.split(":")
        chosen: dict[Stream, range] = {}
        for stream, sizes in geometry.streams.items():
            if int(number) > sizes.layers:
                raise UsageError(f"layers is {self.layers!r}, but {stream} attention has {sizes.layers}")
            first = 0 if end == "first" else sizes.layers - int(number)
            chosen[stream] = range(first, first + int(number))
        return chosen

    def steps_for(self, examples: int) -> int:
        """Optimiser steps over `examples` examples."""
        if self.steps is not None:
            return self.steps
        an_epoch = max(1.0, examples / self.batch_size)
        if self.epochs is not None:
            return max(1, round(an_epoch * self.epochs))
        return min(max(round(an_epoch * DEFAULT_EPOCHS), MINIMUM_STEPS), MAXIMUM_STEPS)

    def warmup_steps(self, steps: int) -> int:
        """Steps over which the learning rate rises."""
        return round(self.warmup * steps) if self.warmup < 1 else int(self.warmup)

    def keywords(self) -> TrainingOptions:
        """The settings as keywords of `train`."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[return-value]

    def to_json(self) -> dict[str, Any]:
        """Plain data for checkpoints and logs."""
        return dataclasses.asdict(self)


@takes_old_names
@dataclass(frozen=True)
class OwnersSettings:
    """How the owners of one run share the base model; nothing here decides which prefixes come out."""

    concurrent_owners: int = of_owners(
        64, ge=1, aliases=("places",), help="Owners that train at the same time"
    )
    max_batch_tokens: int | None = of_owners(
        None,
        ge=1,
        aliases=("pass_tokens",),
        default_text="2048, on a GPU by its memory; isolated: none",
        help="Maximum tokens of one forward pass over all owners' rows; memory depends on it",
    )
    isolated: bool = of_owners(
        False,
        help="Separate passes for each owner: slower; on a CPU bit for bit what each gets when trained alone",
    )

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class ResolvedSettings:
    """Settings that depend on base model and data, with nothing left open: what a run reads.

    Attributes:
        lengths: P of each stream that is trained.
        trained_layers: of each stream, the layers that are trained; None: all.
        steps, warmup_steps, evaluate_every, checkpoint_every: in optimiser steps.
        learning_rate: the peak.
    """

    lengths: Mapping[Stream, int]
    trained_layers: Mapping[Stream, range] | None
    steps: int
    warmup_steps: int
    learning_rate: float
    evaluate_every: int
    checkpoint_every: int


class TrainingOptions(TypedDict, total=False):
    """The settings as keywords of `train`; a test holds them equal to the fields of `TrainingSettings`."""

    length: int | Mapping[Stream, int] | None
    streams: tuple[Stream, ...] | None
    parameterization: str | ParameterizationSettings | None
    width: int | None
    freeze_first: bool | None
    init: str | Initialization | None
    layers: str | None
    placement: Placement | None
    method: Literal["supervised", "dpo"] | None
    beta: float | None
    steps: int | None
    epochs: float | None
    batch_size: int | None
    learning_rate: float | None
    seed: int | None
    warmup: float | None
    max_grad_norm: float | None
    clip: float | None
    weight_decay: float | None
    reduction: Literal["token", "sequence"] | None
    gradient_accumulation: int | None
    accumulate: int | None
    max_length: int | None
    gradient_checkpointing: bool | None
    evaluate_every: int | None
    patience: int | None
    by_source: bool | None
    packed: bool | None


class OwnersOptions(TrainingOptions, total=False):
    """The settings as keywords of `train_many`."""

    concurrent_owners: int | None
    places: int | None
    max_batch_tokens: int | None
    pass_tokens: int | None
    isolated: bool | None


def make_settings(**options: Any) -> TrainingSettings:
    """Settings from the keywords of `train`; None stands for the default. Raises as `from_mapping`."""
    return TrainingSettings.from_mapping(options)


def owners_settings(options: Mapping[str, Any]) -> tuple[OwnersSettings, dict[str, Any]]:
    """The settings of the owners' run among the keywords of `train_many`, and the other keywords."""
    known = {name for each in settings_of(OwnersSettings) for name in (each.name, *each.aliases)}
    theirs = {name: value for name, value in options.items() if name in known and value is not None}
    return OwnersSettings(**theirs), {name: value for name, value in options.items() if name not in known}


def described_now(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a checkpoint of an earlier release describes them, under the names they have now.

    Raises:
        UsageError: a setting under its old and its new name.
    """
    described = current_names(TrainingSettings, settings, warn=False)
    if described:
        described.setdefault("method", "supervised")  # the only one there was
    # The order of the examples was another one, so the rest of that run can't be made.
    return {**described, "by_source": True} if settings.get("by_source") else described
