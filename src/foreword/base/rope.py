"""Turning: queries and keys moved to other positions, by the model's own rotary embedding.

A rotary embedding turns a query or key by angles that grow with its position, and only the difference
of two positions shows in their product. So what is at position t stands at t + s when it is turned by
the angles of s.

Shapes: B rows, H heads, T tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Angles = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines, `[B, T, ...]` in the layout of the model's own function."""


@dataclass(frozen=True)
class RopeShift:
    """How the queries and keys of a layer are moved.

    Attributes:
        rotary: the model's module that makes angles of positions.
        apply: turns states `[B, H, T, D]` by cosines and sines, as the model does.
        layer_type: what the module is told beside the positions, in models of several rotary embeddings.
    """

    rotary: nn.Module
    apply: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    layer_type: str | None = None

    def angles(self, like: torch.Tensor, steps_BT: torch.Tensor) -> Angles:
        """Cosines and sines of `steps_BT` positions forward (negative: back), in the dtype of `like`."""
        more: tuple[Any, ...] = () if self.layer_type is None else (self.layer_type,)
        cosines, sines = self.rotary(like, steps_BT, *more)
        # Some embeddings also scale what they turn (YaRN). What is moved has been scaled already; the
        # cosine of no step at all is that scale.
        scale, _ = self.rotary(like, torch.zeros_like(steps_BT[:1, :1]), *more)
        return cosines / scale, sines / scale

    def by(self, states_BHTD: torch.Tensor, angles: Angles) -> torch.Tensor:
        """Queries or keys, moved."""
        return self.apply(states_BHTD, *angles)
