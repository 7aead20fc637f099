"""Learner: one prefix in training, with its own parameters, optimiser, schedule and best step.

A learner knows nothing of the base model's layers nor of other learners: the loop gives it the
gradient of its keys and values, and it makes a step.

Schedule: linear warm-up, then linear decay to zero (Li & Liang 2021, without their step at zero).

Beginning: a learner at step 0, from settings and data.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from foreword.base.base_model import BaseModel
from foreword.encoding import EncodedExample
from foreword.errors import TrainingDiverged, UsageError
from foreword.prefix import Positions, Prefix, Stream
from foreword.template import Placement
from foreword.training.batch_sampler import BatchSampler
from foreword.training.embedding import compile_embeddings, starting_embeddings
from foreword.training.initialization import initial_key_values
from foreword.training.parameterization import Embeddings, KeysValues, KeyValues, Parameterization
from foreword.training.settings import TrainingSettings


def rate_factor(step: int, *, warmup: int, steps: int) -> float:
    """Share of the learning rate for optimiser step `step`, counted from 0.

    The first step of a warm-up is not wasted on a rate of zero, nor is the last of the decay.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return (steps - step) / max(1, steps - warmup)


# -- Learner: one prefix in training, with its own parameters, optimiser, schedule and best step ---


@dataclass
class Best:
    """The best step so far, by dev loss; without a dev set, the last step."""

    step: int = 0
    dev_loss: float = math.inf
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    worse: int = 0
    """Dev evaluations since then."""


class PrefixTrainer:
    """State of one prefix in training.

    Attributes:
        owner: whose prefix it is, where there are several.
        placement: whether all text sees it, or the target alone.
        positions: where the text stands behind it.
        step: optimiser steps done.
        steps: optimiser steps to do.
        best: what would be returned if the run ended now.
        history: rows of the log: {"step", "loss", "learning_rate", ...}.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        parameters: Parameterization | Embeddings,
        examples: Sequence[EncodedExample],
        dev: Sequence[EncodedExample],
        *,
        by_length: bool,
        placement: Placement = "prefix",
        positions: Positions = "text-after-prefix",
    ) -> None:
        self.owner: str | None = None
        self.settings = settings
        self.parameters = parameters
        self.placement = placement
        self.positions = positions
        self.examples = examples
        self.dev = dev
        self.step = 0
        self.steps = settings.steps_for(len(examples))
        self.evaluate_every = settings.evaluate_every or max(1, math.ceil(self.steps / 10))
        self.best = Best()
        self.history: list[dict[str, Any]] = []
        lengths = [example.tokens for example in examples]
        self._order = BatchSampler(lengths, settings.batch_size, settings.seed, by_length=by_length)
        self._optimizer = torch.optim.AdamW(
            parameters.parameters(),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    # -- one step ------------------------------------------------------------------------------

    def batch(self) -> list[EncodedExample]:
        """The examples of the step to come."""
        return [self.examples[index] for index in self._order.batch(self.step)]

    def learning_rate(self) -> float:
        """The learning rate of the step to come."""
        warmup = self.settings.warmup_steps(self.steps)
        return self.settings.learning_rate * rate_factor(self.step, warmup=warmup, steps=self.steps)

    def update(self, compiled: KeyValues, gradients: KeyValues) -> float:
        """One optimiser step from the gradients of the compiled keys and values; returns their norm.

        Raises:
            TrainingDiverged: a gradient is not finite; nothing was changed.
        """
        outputs = [tensor for pair in compiled.values() for tensor in pair]
        incoming = [tensor for pair in gradients.values() for tensor in pair]
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(outputs, incoming)
        limit = self.settings.max_grad_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.parameters(), limit)
        if not math.isfinite(norm):
            raise TrainingDiverged(
                f"the gradient became {float(norm)} at step {self.step + 1}; take a lower learning rate than "
                f"{self.settings.learning_rate:g}"
            )
        for group in self._optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self._optimizer.step()
        self.step += 1
        return float(norm)

    # -- the course of the run -----------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """All steps done, or no better dev loss for as long as the patience allows."""
        patience = self.settings.patience
        return self.step >= self.steps or (patience is not None and self.best.worse >= patience)

    def due_for_evaluation(self) -> bool:
        """Whether the dev loss is to be measured after the step just done."""
        return bool(self.dev) and (self.step % self.evaluate_every == 0 or self.step >= self.steps)

    def note_dev_loss(self, loss: float) -> None:
        """Remember the prefix as it is now if `loss` is the lowest so far."""
        if loss < self.best.dev_loss:
            self.best = Best(self.step, loss, self.tensors())
        else:
            self.best.worse += 1

    def tensors(self) -> dict[str, torch.Tensor]:
        """The prefix as it is now: "decoder.key" and so on, `[L, H, P, D]`."""
        with torch.no_grad():
            compiled = self.parameters()
        return {
            f"{stream}.{part}": tensor.detach().cpu().clone()
            for stream, pair in compiled.items()
            for part, tensor in zip(("key", "value"), pair, strict=True)
        }

    def result(self) -> Best:
        """What the run ends in: the best step by dev loss, or the last one without a dev set."""
        if self.dev and self.best.tensors:
            return self.best
        return Best(self.step, math.inf, self.tensors())

    # -- to and from a checkpoint --------------------------------------------------------------

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Tensors and plain data from which `restore` continues bit for bit."""
        tensors = {f"parameters.{name}": p.detach() for name, p in self.parameters.named_parameters()}
        for name, parameter in self.parameters.named_parameters():
            for part, value in self._optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{part}.{name}"] = value
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.tensors.items()}
        data = {
            "step": self.step,
            "best_step": self.best.step,
            "best_dev_loss": None if math.isinf(self.best.dev_loss) else self.best.dev_loss,
            "worse": self.best.worse,
            "history": self.history,
        }
        return tensors, data

    def restore(self, tensors: dict[str, torch.Tensor], data: dict[str, Any]) -> None:
        """The reverse of `state`, on a learner built from the same settings and data."""
        with torch.no_grad():
            for name, parameter in self.parameters.named_parameters():
                parameter.copy_(tensors[f"parameters.{name}"])
                parts = ("step", "exp_avg", "exp_avg_sq")
                found = {part: tensors.get(f"optimizer.{part}.{name}") for part in parts}
                if data["step"] > 0:
                    self._optimizer.state[parameter] = {
                        p: t.clone() for p, t in found.items() if t is not None
                    }
        self.step = data["step"]
        best = {name.removeprefix("best."): t for name, t in tensors.items() if name.startswith("best.")}
        loss = math.inf if data["best_dev_loss"] is None else data["best_dev_loss"]
        self.best = Best(data["best_step"], loss, best, data["worse"])
        self.history = data["history"]


# -- Beginning: a learner at step 0, from settings and data ----------------------------------------


def build_trainer(
    base: BaseModel,
    settings: TrainingSettings,
    examples: Sequence[EncodedExample],
    dev: Sequence[EncodedExample],
    *,
    start: Prefix | None = None,
    placement: Placement = "prefix",
) -> PrefixTrainer:
    """A learner at step 0, beginning at the keys and values of `start` or of the initialisation.

    Raises:
        UsageError: embeddings shall be trained from `start`, or more layers than there are; `start` has
            other lengths or streams than the settings, or the base lacks a stream.
        GeometryMismatch, WrongBaseModel: it is a prefix of another base.
    """
    parameters: Parameterization | Embeddings
    if settings.parameterization.kind == "embedding":
        parameters = _embeddings(base, settings, examples, start)
    else:
        layers = settings.trained_layers(base.geometry)
        begin = _begin(base, settings, examples, start)
        parameters = Parameterization(settings.parameterization, begin, settings.seed, layers)
    # Only models that need padding gain from batches of like length.
    return PrefixTrainer(
        settings,
        parameters.to(base.device),
        examples,
        dev,
        by_length=not base.takes_positions,
        placement=placement,
        positions=base.positions,
    )


def _embeddings(
    base: BaseModel, settings: TrainingSettings, examples: Sequence[EncodedExample], start: Prefix | None
) -> Embeddings:
    if start is not None:
        raise UsageError(
            "parameterization is 'embedding', and a prefix to start from has no embeddings, only keys and "
            "values; take direct or mlp+start, or an init"
        )
    length = settings.lengths(base.geometry)["decoder"]
    initial_PE = starting_embeddings(base, settings.init, length, examples, settings.seed)
    return Embeddings(settings.parameterization, initial_PE, functools.partial(compile_embeddings, base))


def _begin(
    base: BaseModel, settings: TrainingSettings, examples: Sequence[EncodedExample], start: Prefix | None
) -> dict[Stream, KeysValues]:
    if start is None:
        return initial_key_values(
            base, settings.init, settings.lengths(base.geometry), examples, settings.seed
        )
    start.check_fits(base.identity, base.geometry)
    begins = {stream: start.stream_length(stream) for stream in start.streams}
    given = settings.streams is not None or isinstance(settings.length, Mapping)
    lengths = settings.lengths(base.geometry if given else start.geometry)
    if begins != lengths:
        raise UsageError(f"start has length {_told(begins)}, the run has {_told(lengths)}; make them equal")
    return {stream: (start.key(stream), start.value(stream)) for stream in start.streams}


def _told(lengths: Mapping[Stream, int]) -> str:
    each = ", ".join(f"{stream} {length}" for stream, length in lengths.items())
    return str(lengths["decoder"]) if set(lengths) == {"decoder"} else each
