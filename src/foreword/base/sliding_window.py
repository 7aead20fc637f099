"""Prefixes that a sliding window sees from no farther than it reaches.

A layer with a sliding window was never trained to see a key from farther than its window. A prefix in front
of a long text is farther, and seen from there it does harm (docs/sliding-window.md). Where positions are
rotary, the prefix can be moved: a rotary embedding turns a query or key by angles that grow with its
position, and only the difference of two positions shows in their product. So what is at position t stands
at t + s when it is turned by the angles of s. `compatibility.enable_window_shift` tries out whether a model
allows it.

Shapes: B rows, H heads, Q query heads, T tokens, P prefix length, S = P + T keys, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad

Angles = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines, `[B, T, ...]` in the layout of the model's own function."""


@dataclass(frozen=True)
class RopeShift:
    """How the queries and keys of a layer are moved to other positions.

    Attributes:
        rotary: the model's module that makes angles of positions.
        apply: turns states `[B, H, T, D]` by cosines and sines, as the model does.
        layer_type: an argument of the module beside the positions, in models of several rotary embeddings.
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
        # accelerate computes them where the embedding is, which can be another device than the layer's.
        return (cosines / scale).to(like.device), (sines / scale).to(like.device)

    def move(self, states_BHTD: torch.Tensor, angles: Angles) -> torch.Tensor:
        """Queries or keys at other positions."""
        return self.apply(states_BHTD, *angles)


def move_prefix_near(
    rope: RopeShift,
    query_BQTD: torch.Tensor,
    key_BHSD: torch.Tensor,
    length: int,
    angles: Angles,
    kwargs: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Query and keys whose products are those of a prefix as far away as the window reaches.

    One new token: the prefix's keys are moved towards it. Several: every query meets the text at its own
    position and the prefix at another, so both stand side by side in a query of twice the size, opposite
    keys of which the half that is not meant is zero.

    Args:
        length: P; the first keys are the prefix's.
        angles: for one token, of its distance beyond the reach; for several, of each distance backwards.
        kwargs: of the attention function; the scale is set there, which must not follow the double size.
    """
    prefix_BHPD, text_BHSD = key_BHSD[:, :, :length], key_BHSD[:, :, length:]
    size = query_BQTD.shape[3]
    if query_BQTD.shape[2] == 1:
        return query_BQTD, torch.cat([rope.move(prefix_BHPD, angles), text_BHSD], dim=2)
    if kwargs.get("scaling") is None:
        kwargs["scaling"] = size**-0.5
    return (
        torch.cat([rope.move(query_BQTD, angles), query_BQTD], dim=3),
        torch.cat([pad(prefix_BHPD, (0, size)), pad(text_BHSD, (size, 0))], dim=2),
    )
