"""Learner: one prefix in training, with its own parameters, optimiser, schedule and best step.

A learner knows nothing of the base model's layers nor of other learners: the loop gives it the
gradient of its keys and values, and it makes a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from foreword.encoding import EncodedExample
from foreword.errors import TrainingDiverged
from foreword.prefix import Positions
from foreword.template import Placement
from foreword.training.batch_sampler import Order
from foreword.training.parameterization import Compiled, Embeddings, Parameterization
from foreword.training.schedule import rate_factor
from foreword.training.settings import TrainingSettings


@dataclass
class Best:
    """The best step so far, by dev loss; without a dev set, the last step."""

    step: int = 0
    dev_loss: float = math.inf
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    worse: int = 0
    """Dev evaluations since then."""


class Learner:
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
        sources = [example.source_ids for example in examples] if settings.by_source else None
        self._order = Order(lengths, settings.batch_size, settings.seed, by_length=by_length, sources=sources)
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

    def update(self, compiled: Compiled, gradients: Compiled) -> float:
        """One optimiser step from the gradients of the compiled keys and values; returns their norm.

        Raises:
            TrainingDiverged: a gradient is not finite; nothing was changed.
        """
        outputs = [tensor for pair in compiled.values() for tensor in pair]
        incoming = [tensor for pair in gradients.values() for tensor in pair]
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(outputs, incoming)
        limit = self.settings.clip or math.inf
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
