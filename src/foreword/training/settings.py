"""Settings of a training run; the defaults are the measured ones of docs/defaults.md."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from foreword.errors import UsageError
from foreword.prefix import STREAMS, Geometry, Stream
from foreword.template import Placement
from foreword.training.initialization import DEFAULT_WORDS, Initialization
from foreword.training.parameterization import ParameterizationSettings

DEFAULT_LENGTH = 10
DEFAULT_EPOCHS = 5
DEFAULT_LEARNING_RATE = {"direct": 0.05, "mlp": 1e-3, "mlp+start": 1e-3, "embedding": 1e-2}
"""By parameterization. In the network, 512 hidden units move a key or value together: a step of 1e-3 in each
weight moves it by up to 512 * 0.5 * 1e-3 = 0.26. Trained themselves, they need a rate of that size. The
embeddings' rate is not tuned: a modest share of the size that the embeddings of words have."""

MINIMUM_STEPS, MAXIMUM_STEPS = 60, 2000
"""Bounds on the default number of steps, where neither steps nor epochs are given."""


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that decides, with base model and data, which prefix comes out.

    Attributes:
        length: P, number of virtual tokens; of each stream apart as {"encoder": 5, "cross": 10}.
        streams: of an encoder-decoder, the streams that are trained; None: those that `length` names, or
            all of them.
        steps: optimiser steps; None lets `epochs`, or the default, decide.
        epochs: passes over the examples; excludes `steps`.
        batch_size: examples per optimiser step.
        by_source: examples of one source follow each other, so that a step computes it once for all of its
            targets; otherwise every step draws at random.
        accumulate: parts into which a step's examples are divided, to need less memory.
        learning_rate: AdamW's, at its height; `make_settings` takes the parameterization's own default.
        warmup: steps over which the learning rate rises; a number below 1 is a share of all steps.
        weight_decay, clip: of AdamW; largest norm of the gradient (0: no clipping).
        parameterization, init: what is trained, and from where it starts.
        layers: `first:N` or `last:N`: only the keys and values of these layers are trained, the others
            stay as they begin; None: all.
        placement: `prefix` or `infix`, which only the target sees; None: the template's own.
        reduction: `token`: mean over the step's target tokens; `sequence`: sum over each target, then
            mean over the examples, as the original prefix-tuning code has it.
        seed: of initialisation and order of the examples.
        evaluate_every: steps between dev evaluations; None: a tenth of the run.
        patience: dev evaluations without a better loss after which the run ends; None: never.
        max_length: longest text in tokens; None: what the base model's window leaves.
        gradient_checkpointing: keep less memory, compute a second forward pass.
        packed: keep two copies of the base's weights in the order of the CPU's kernels: about a tenth faster.
    """

    length: int | Mapping[Stream, int] = DEFAULT_LENGTH
    streams: tuple[Stream, ...] | None = None
    steps: int | None = None
    epochs: float | None = None
    batch_size: int = 8
    by_source: bool = False
    accumulate: int = 1
    learning_rate: float = DEFAULT_LEARNING_RATE["direct"]
    warmup: float = 0.05
    weight_decay: float = 0.0
    clip: float = 1.0
    parameterization: ParameterizationSettings = field(default_factory=ParameterizationSettings)
    init: Initialization = field(default_factory=lambda: Initialization("words", DEFAULT_WORDS))
    layers: str | None = None
    placement: Placement | None = None
    reduction: Literal["token", "sequence"] = "token"
    seed: int = 0
    evaluate_every: int | None = None
    patience: int | None = None
    max_length: int | None = None
    gradient_checkpointing: bool = False
    packed: bool = False

    def __post_init__(self) -> None:
        by_stream = self.length if isinstance(self.length, Mapping) else {"": self.length}
        for stream in (*(s for s in by_stream if s), *(self.streams or ())):
            if stream not in STREAMS:
                raise UsageError(f"no stream is called {stream!r}; expected some of {', '.join(STREAMS)}")
        if not by_stream or self.streams == ():
            raise UsageError("no stream is left to train; name at least one")
        if isinstance(self.length, Mapping) and set(self.streams or self.length) != set(self.length):
            raise UsageError(
                f"streams are {', '.join(self.streams or ())} but length names {', '.join(self.length)}"
            )
        positive = {
            **{f"length{f' of {stream}' * bool(stream)}": value for stream, value in by_stream.items()},
            "batch_size": self.batch_size,
            "accumulate": self.accumulate,
            "learning_rate": self.learning_rate,
            "steps": self.steps,
            "epochs": self.epochs,
            "evaluate_every": self.evaluate_every,
            "patience": self.patience,
            "max_length": self.max_length,
        }
        whole = set(positive) - {"learning_rate", "epochs"}
        for name, value in positive.items():
            if name in whole and value is not None and not isinstance(value, int):
                raise UsageError(f"{name} is {value!r}; expected a whole number")
            if value is not None and not value > 0:
                raise UsageError(f"{name} is {value}; expected a positive number")
        for name, value in {
            "warmup": self.warmup,
            "weight_decay": self.weight_decay,
            "clip": self.clip,
        }.items():
            if not value >= 0:
                raise UsageError(f"{name} is {value}; expected zero or more")
        if self.steps is not None and self.epochs is not None:
            raise UsageError("give steps or epochs, not both")
        if self.reduction not in ("token", "sequence"):
            raise UsageError(f"reduction is {self.reduction!r}; expected token or sequence")
        if self.placement not in (None, "prefix", "infix"):
            raise UsageError(f"placement is {self.placement!r}; expected prefix or infix")
        if self.layers is not None:
            if self.parameterization.kind in ("mlp", "embedding"):
                raise UsageError(
                    f"layers is {self.layers!r}, which leaves the other layers as they begin; "
                    f"{self.parameterization.kind!r} has no beginning of each layer, take direct or mlp+start"
                )
            if not re.fullmatch("(first|last):[1-9][0-9]*", self.layers):
                raise UsageError(f"layers is {self.layers!r}; expected first:N or last:N")

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

    def to_json(self) -> dict[str, Any]:
        """Plain data for checkpoints and logs."""
        return dataclasses.asdict(self)
