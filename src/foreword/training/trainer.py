"""One training run: the data's order, the optimizer, the learning rate's schedule, and the best step so far.

A trainer knows nothing of the model's layers nor of other trainers. The loop gives it the gradient of its
keys and values (or leaves it in the parameters, where these belong to the model), and it makes a step.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from foreword.base.base_model import BaseModel
from foreword.base.prefix_batch import KeyValues
from foreword.encoding import EncodedExample
from foreword.errors import TrainingDiverged, UsageError
from foreword.prefix import Prefix, Stream
from foreword.template import Placement
from foreword.training.batch_sampler import BatchSampler
from foreword.training.initialization import initial_key_values
from foreword.training.objective import Trainable
from foreword.training.parameterization import Embeddings, Parameterization, TrainedPrefix
from foreword.training.settings import ResolvedSettings, TrainingSettings

_OPTIMIZER_PARTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps of a parameter."""


def rate_factor(step: int, *, warmup: int, steps: int) -> float:
    """Share of the learning rate for optimizer step `step`, counted from 0.

    Linear warm-up, then linear decay to zero (Li & Liang 2021); but neither the first step of the warm-up nor
    the last of the decay is wasted on a rate of zero.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return (steps - step) / max(1, steps - warmup)


@dataclass
class Best:
    """The best step so far, by dev loss, 0 being the start; without a dev set, the last step.

    Attributes:
        tensors: what was trained, as it was then.
        worse: dev evaluations since then.
    """

    step: int = 0
    dev_loss: float = math.inf
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    worse: int = 0


class Trainer:
    """State of one run.

    Attributes:
        owner: whose prefix it is, where there are several.
        trained: what the optimizer changes.
        step, steps: optimizer steps done, and to do in all.
        best: what would be returned if the run ended now.
        history: rows of the log: {"step", "loss", "learning_rate", ...}.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        resolved: ResolvedSettings,
        trained: Trainable,
        examples: Sequence[EncodedExample],
        dev: Sequence[EncodedExample],
        *,
        by_length: bool,
        owner: str | None = None,
    ) -> None:
        """`by_length`: put examples of like length into one batch, for models that need padding."""
        self.owner = owner
        self.settings = settings
        self.trained = trained
        self.examples = examples
        self.dev = dev
        self.step = 0
        self.resolved = resolved
        self.steps = resolved.steps
        self.best = Best()
        self.history: list[dict[str, Any]] = []
        lengths = [example.tokens for example in examples]
        self._order = BatchSampler(lengths, settings.batch_size, settings.seed, by_length=by_length)
        self._parameters = dict(trained.named_parameters())
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(),
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
        warmup = self.resolved.warmup_steps
        return self.resolved.learning_rate * rate_factor(self.step, warmup=warmup, steps=self.steps)

    def begin(self) -> KeyValues:
        """Forget the last step's gradients; return the prefix that the parameters stand for now, if any."""
        self._optimizer.zero_grad(set_to_none=True)
        return self.trained.key_values()

    def update(self, key_values: KeyValues, gradients: KeyValues) -> float:
        """One optimizer step from the gradients of what `begin` returned; returns the gradient's norm.

        Raises:
            TrainingDiverged: a gradient is not finite; nothing was changed.
        """
        if key_values:  # else the passes left the gradient in the parameters themselves
            # A layer that stays as it was has no graph.
            places = [place for place, (key, _) in key_values.items() if key.requires_grad]
            outputs = [tensor for place in places for tensor in key_values[place]]
            torch.autograd.backward(outputs, [tensor for place in places for tensor in gradients[place]])
        limit = self.settings.max_grad_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self._parameters.values(), limit)
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

    # -- the run's end, and its best step --------------------------------------------------------

    @property
    def finished(self) -> bool:
        """All steps done, or no better dev loss for as long as the patience allows."""
        patience = self.settings.patience
        return self.step >= self.steps or (patience is not None and self.best.worse >= patience)

    def due_for_evaluation(self) -> bool:
        """Whether the dev loss is to be measured after the step just done."""
        return bool(self.dev) and (self.step % self.resolved.evaluate_every == 0 or self.step >= self.steps)

    def note_dev_loss(self, loss: float) -> None:
        """Remember what is trained as it is now if `loss` is the lowest so far; the start is step 0."""
        if loss < self.best.dev_loss:
            self.best = Best(self.step, loss, self.trained.tensors())
        elif self.step > 0:
            self.best.worse += 1

    def result(self) -> Best:
        """What the run ends in: the best step by dev loss, or the last one without a dev set."""
        if self.dev and self.best.tensors:
            return self.best
        return Best(self.step, math.inf, self.trained.tensors())

    # -- to and from a checkpoint --------------------------------------------------------------

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Tensors and plain data from which `restore` continues bit for bit."""
        tensors = {f"parameters.{name}": p.detach() for name, p in self._parameters.items()}
        for name, parameter in self._parameters.items():
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
        """The reverse of `state`, on a trainer built from the same settings and data."""
        best = {name.removeprefix("best."): t for name, t in tensors.items() if name.startswith("best.")}
        loss = math.inf if data["best_dev_loss"] is None else data["best_dev_loss"]
        self.best = Best(data["best_step"], loss, best, data["worse"])
        self.history = data["history"]
        self._let_start_compete()
        kept: dict[int, dict[str, torch.Tensor]] = {}
        with torch.no_grad():
            for place, (name, parameter) in enumerate(self._parameters.items()):
                parameter.copy_(tensors[f"parameters.{name}"])
                named = {part: f"optimizer.{part}.{name}" for part in _OPTIMIZER_PARTS}
                if data["step"] > 0:
                    kept[place] = {part: tensors[n].clone() for part, n in named.items() if n in tensors}
        # By the optimizer's own function, which moves its state to where the parameters are.
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": kept, "param_groups": groups})
        self.step = data["step"]

    def _let_start_compete(self) -> None:
        """For checkpoints from before it did: its dev loss is in their log, and the start itself is here."""
        dev_losses = {row["step"]: row["dev_loss"] for row in self.history if "dev_loss" in row}
        if dev_losses.get(0, math.inf) < self.best.dev_loss:
            self.best = Best(0, dev_losses.pop(0), self.trained.tensors(), len(dev_losses))


def check_dtype(base: BaseModel) -> None:
    """Refuse to train through a model in float16.

    Raises:
        UsageError: it is; there, gradients below 6e-8 are zero, and no loss is scaled against that here.
    """
    if base.dtype == torch.float16:
        raise UsageError(
            f"{base.shown_name} is in float16, whose gradients vanish or overflow without loss scaling, "
            "which Foreword does not do; load it with dtype bfloat16 or float32 to train. Such a prefix "
            "runs on the model in float16, too"
        )


def build_trainer(
    base: BaseModel,
    settings: TrainingSettings,
    examples: Sequence[EncodedExample],
    dev: Sequence[EncodedExample],
    *,
    start: Prefix | None = None,
    placement: Placement = "prefix",
    owner: str | None = None,
) -> Trainer:
    """The trainer of a prefix; raises what `trained_prefix` and `check_dtype` raise."""
    check_dtype(base)
    resolved = settings.resolve(base.geometry, len(examples))
    trained = trained_prefix(base, settings, resolved, examples, start=start, placement=placement)
    # Only models that need padding gain from batches of like length.
    by_length = not base.packs_rows
    return Trainer(settings, resolved, trained, examples, dev, by_length=by_length, owner=owner)


def trained_prefix(
    base: BaseModel,
    settings: TrainingSettings,
    resolved: ResolvedSettings,
    examples: Sequence[EncodedExample],
    *,
    start: Prefix | None = None,
    placement: Placement = "prefix",
) -> TrainedPrefix:
    """A prefix in training, at the keys and values of `start` or of the initialization.

    Raises:
        UsageError: embeddings shall be trained from `start`; `start` has other lengths or streams than the
            settings.
        GeometryMismatch, WrongBaseModel: it is a prefix of another base.
    """
    parameters: Parameterization | Embeddings
    if settings.parameterization.kind == "embedding":
        parameters = _embeddings(base, settings, resolved.lengths["decoder"], examples, start)
    else:
        initial = _initial(base, settings, resolved.lengths, examples, start)
        parameters = Parameterization(
            settings.parameterization, initial, settings.seed, resolved.trained_layers
        )
    return TrainedPrefix(parameters.to(base.device), placement, base.positions)


def _embeddings(
    base: BaseModel,
    settings: TrainingSettings,
    length: int,
    examples: Sequence[EncodedExample],
    start: Prefix | None,
) -> Embeddings:
    if start is not None:
        raise UsageError(
            "parameterization is 'embedding', and a prefix to start from has no embeddings, only keys and "
            "values; take direct or mlp+start, or an init"
        )
    from foreword.training.embedding import compile_embeddings, starting_embeddings  # for this alone

    initial_PE = starting_embeddings(base, settings.init, length, examples, settings.seed)
    return Embeddings(settings.parameterization, initial_PE, functools.partial(compile_embeddings, base))


def _initial(
    base: BaseModel,
    settings: TrainingSettings,
    lengths: Mapping[Stream, int],
    examples: Sequence[EncodedExample],
    start: Prefix | None,
) -> KeyValues:
    if start is None:
        return initial_key_values(base, settings.init, lengths, examples, settings.seed)
    base.check_fits(start)
    given = {stream: start.stream_length(stream) for stream in start.streams}
    by_base = settings.streams is not None or isinstance(settings.length, Mapping)
    expected = lengths if by_base else settings.lengths(start.geometry)
    if given != expected:
        raise UsageError(
            f"start has length {_in_words(given)}, the run has {_in_words(expected)}; make them equal"
        )
    return start.key_values()


def _in_words(lengths: Mapping[Stream, int]) -> str:
    each = ", ".join(f"{stream} {length}" for stream, length in lengths.items())
    return str(lengths["decoder"]) if set(lengths) == {"decoder"} else each
