"""The network that makes keys and values while a prefix is trained: run once, then done with.

Embedding, linear, activation, linear (, activation, linear): Li and Liang's reparameterisation, with
the same tensor names in their code and in adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from foreword.errors import ForeignFormat

Activation = Callable[[torch.Tensor], torch.Tensor]


def run(tensors: Mapping[str, torch.Tensor], activation: Activation, *, suffix: str = "") -> torch.Tensor:
    """What the network makes for all its virtual tokens: the flat layout, `[P, width]`.

    Args:
        tensors: `wte.weight`, `control_trans.0.weight`, `control_trans.0.bias`, `control_trans.2.weight`...
        suffix: what stands behind `wte` and `control_trans` in the names of this one.

    Raises:
        ForeignFormat: a tensor is missing, or does not fit the one before.
    """
    network = f"control_trans{suffix}."
    numbers = sorted(
        {name.removeprefix(network).split(".")[0] for name in tensors if name.startswith(network)}
    )
    wanted = [f"{network}{number}.{part}" for number in numbers for part in ("weight", "bias")]
    if missing := [name for name in (f"wte{suffix}.weight", *wanted) if name not in tensors]:
        raise ForeignFormat(f"it lacks {', '.join(missing)}; the file is not whole, fetch it again")
    states = tensors[f"wte{suffix}.weight"]
    for place, number in enumerate(numbers):
        weight, bias = (tensors[f"{network}{number}.{part}"] for part in ("weight", "bias"))
        try:
            states = torch.nn.functional.linear(activation(states) if place else states, weight, bias)
        except RuntimeError as error:
            raise ForeignFormat(
                f"{network}{number}.weight is {list(weight.shape)} and does not take {list(states.shape)}; "
                "the tensors do not belong together"
            ) from error
    return states
