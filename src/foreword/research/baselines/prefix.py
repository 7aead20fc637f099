"""Our prefixes as a method beside others, and with one thing changed for ablations (Li & Liang 2021, 7)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from foreword.base.base_model import BaseModel
from foreword.base.loss import target_losses
from foreword.base.prefix_batch import PrefixBatch
from foreword.encoding import EncodedExample
from foreword.prefix import Prefix
from foreword.research.baselines.protocol import AdapterInputs, ContextCost, EvaluatedModel
from foreword.template import Template
from foreword.training.parameterization import TrainedPrefix
from foreword.training.settings import make_settings
from foreword.training.train import choose_template
from foreword.training.trainer import trained_prefix


class Prefixed:
    """Parameters that compile to keys and values, in front of a frozen base model."""

    def __init__(self, base: BaseModel, compiled: nn.Module, template: Template) -> None:
        """`compiled`: a module whose call gives keys and values by stream."""
        self.base = base
        self.compiled = compiled
        self.template = template
        self.parameters = [parameter for parameter in compiled.parameters() if parameter.requires_grad]

    def losses(self, rows: Sequence[EncodedExample]) -> torch.Tensor:
        """The loss of each target token, `[M]`."""
        compiled = {
            stream: (key.to(self.base.device), value.to(self.base.device))
            for stream, (key, value) in self.compiled().items()
        }
        prefixes = PrefixBatch.from_tensors(
            [compiled], [0] * len(rows), [self.template.placement], [self.base.positions]
        )
        batch = self.base.batch(rows, prefixes, "flat")
        return target_losses(self.base.model, batch, prefixes)

    def finish(self) -> EvaluatedModel:
        """The prefix that the parameters stand for."""
        trained_now = TrainedPrefix(self.compiled).tensors()
        tensors = {name: tensor.float().contiguous() for name, tensor in trained_now.items()}
        prefix = Prefix(
            tensors=tensors, base=self.base.identity, template=self.template, positions=self.base.positions
        )
        trained = sum(parameter.numel() for parameter in self.parameters)
        compiled_numbers = sum(tensor.numel() for tensor in tensors.values())
        # A network is not needed any more; of embeddings, keys and values can be made again.
        return EvaluatedModel(self.base, prefix, trained=trained, kept=min(trained, compiled_numbers))


def front(**options: Any) -> Callable[[AdapterInputs], ContextCost]:
    """The positions that virtual tokens take, with `options` of `train` as for `ours`."""
    return lambda inputs: ContextCost(options.get("length", inputs.length), inputs.base.template)


def ours(**options: Any) -> Callable[[AdapterInputs], Prefixed]:
    """A prefix of Foreword's, with `options` of `train` where they differ from the defaults."""

    def begin(inputs: AdapterInputs) -> Prefixed:
        settings = make_settings(**{"length": inputs.length, "seed": inputs.seed, **inputs.choice, **options})
        template = choose_template(inputs.base, settings, inputs.base.template)
        trained = trained_prefix(
            inputs.base,
            settings,
            settings.resolve(inputs.base.geometry, len(inputs.rows)),
            inputs.rows,
            placement=template.placement,
        )
        return Prefixed(inputs.base, trained.parameters, template)

    return begin


LENGTHS = (1, 2, 5, 20, 40)

TASK_WORDS = "Summarize the facts as text."
OTHER_WORDS = "The cat sat on the old wooden chair."
"""Real words that have nothing to do with any task."""

DIRECT_RATES = (0.02, 0.05, 0.1)
NETWORK_RATES = (3e-4, 1e-3, 3e-3)
EMBEDDING_RATES = (3e-3, 1e-2, 3e-2)

OPTIONS: dict[str, tuple[str, dict[str, Any], tuple[float, float, float]]] = {
    **{f"length-{p}": (f"length {p}", {"length": p}, DIRECT_RATES) for p in LENGTHS},
    "mlp": ("network (mlp)", {"parameterization": "mlp"}, NETWORK_RATES),
    "mlp+start": ("network added to the start", {"parameterization": "mlp+start"}, NETWORK_RATES),
    "random": ("random start", {"init": "random"}, DIRECT_RATES),
    "task-words": (f"start: {TASK_WORDS!r}", {"init": f"words:{TASK_WORDS}"}, DIRECT_RATES),
    "other-words": (f"start: {OTHER_WORDS!r}", {"init": f"words:{OTHER_WORDS}"}, DIRECT_RATES),
    "demonstrations": ("start: demonstrations", {"init": "demonstrations"}, DIRECT_RATES),
    "embedding": ("embedding-only", {"parameterization": "embedding"}, EMBEDDING_RATES),
    "embedding-20": (
        "embedding-only, length 20",
        {"parameterization": "embedding", "length": 20},
        EMBEDDING_RATES,
    ),
    "infix": ("infix", {"placement": "infix"}, DIRECT_RATES),
}
"""By name: title, options of `train`, learning rates to try, of which the middle one is the default."""


def half_of_layers(end: str) -> Any:
    """Only the keys and values of the first or the last half of the layers are trained."""

    def begin(inputs: AdapterInputs) -> Prefixed:
        layers = inputs.base.geometry.streams["decoder"].layers
        return ours(layers=f"{end}:{max(1, layers // 2)}")(inputs)

    return begin
