"""Prefixes: ours in any form, as a trainee of the harness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from foreword.base.base_model import BaseModel
from foreword.base.loss import target_losses
from foreword.base.prefix_batch import RowPrefixes
from foreword.encoding import EncodedExample
from foreword.prefix import Prefix
from foreword.research.baselines.protocol import Front, Setting, Subject
from foreword.template import Template
from foreword.training.beginning import build_learner
from foreword.training.train import choose_template, make_settings


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
        prefixes = RowPrefixes.of_compiled(
            [compiled], [0] * len(rows), [self.template.placement], [self.base.positions]
        )
        batch = self.base.batch(rows, prefixes, "flat")
        return target_losses(self.base.model, batch, prefixes)

    def finish(self) -> Subject:
        """The prefix that the parameters stand for."""
        with torch.no_grad():
            compiled = self.compiled()
        tensors = {
            f"{stream}.{part}": tensor.detach().float().cpu().contiguous().clone()
            for stream, pair in compiled.items()
            for part, tensor in zip(("key", "value"), pair, strict=True)
        }
        prefix = Prefix(
            tensors=tensors, base=self.base.identity, template=self.template, positions=self.base.positions
        )
        trained = sum(parameter.numel() for parameter in self.parameters)
        compiled_numbers = sum(tensor.numel() for tensor in tensors.values())
        # A network is not needed any more; of embeddings, keys and values can be made again.
        return Subject(self.base, prefix, trained=trained, kept=min(trained, compiled_numbers))


def front(**options: Any) -> Callable[[Setting], Front]:
    """The room that virtual tokens take, with `options` of `train` as for `ours`."""
    return lambda setting: Front(options.get("length", setting.length), setting.base.template)


def ours(**options: Any) -> Callable[[Setting], Prefixed]:
    """A prefix of Foreword's, with `options` of `train` where they differ from the defaults."""

    def begin(setting: Setting) -> Prefixed:
        settings = make_settings(
            **{"length": setting.length, "seed": setting.seed, **setting.choice, **options}
        )
        template = choose_template(setting.base, settings, None)
        learner = build_learner(setting.base, settings, setting.rows, (), placement=template.placement)
        return Prefixed(setting.base, learner.parameters, template)

    return begin
