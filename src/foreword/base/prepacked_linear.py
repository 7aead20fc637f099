"""Frozen weights kept in the order in which the CPU's matrix products read them, for generation.

A matrix product on a CPU first copies the weight into the order in which its kernel reads it. With few rows,
as in generation, that takes longer than the arithmetic. Weights that never change can be kept in that order:
a copy made when it is first needed, within `prepacked_weights` only: memory is the price. Products are the
same to rounding; `benchmarks/packing.py` measures what is gained.

Whether it pays depends on the processor and on the number of rows: a single row can be faster with weights as
they are, since no kernel puts those in order for it. So a few products of each kind are timed the first time
that anybody asks, and the answer is kept in the user's cache folder (`packing.json`): the same machine
computes the same bits tomorrow. Delete the file to have it tried again.

Shapes: M rows, I inputs, O outputs.
"""

from __future__ import annotations

import contextlib
import functools
import json
import platform
import statistics
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import nn

from foreword.errors import ForewordError
from foreword.files import write_text
from foreword.models.cache_dir import cache_folder

_used: ContextVar[bool] = ContextVar("foreword_packed_weights", default=False)

MOST_BYTES = 2 << 30
"""Models whose weights are larger are not prepacked: a copy would be dear. A constant, not a share of what is
free, so that one model gives the same bits on the same machine every day."""


def can_prepack() -> bool:
    """Whether this build of torch has the kernels (oneDNN's, those that torch.compile uses, too)."""
    return torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")
    )


@contextlib.contextmanager
def prepacked_weights(wanted: bool) -> Iterator[None]:
    """Compute with prepacked weights, or not, in this thread, where the model was prepared for it."""
    token = _used.set(wanted)
    try:
        yield
    finally:
        _used.reset(token)


def enable_prepacking(model: nn.Module) -> int:
    """Let the frozen float32 linear layers of `model` on the CPU take prepacked weights when asked to.

    Weights stay where and what they are. A layer whose weight is trained later on is computed as ever, and
    one whose weight is changed is prepacked anew; a change through `.data`, which torch does not count, is
    not seen.

    Returns:
        How many layers.
    """
    layers = [
        module for module in model.modules() if isinstance(module, nn.Linear) and _takes_packing(module)
    ]
    if not can_prepack() or sum(layer.weight.nbytes for layer in layers) > MOST_BYTES:
        return 0
    for layer in layers:
        layer.__class__ = PrepackedLinear
        vars(layer)["prepacked"] = PrepackedWeight()
    return len(layers)


def is_prepared(model: nn.Module) -> bool:
    """Whether any of its layers can take prepacked weights."""
    return any(isinstance(module, PrepackedLinear) for module in model.modules())


def _takes_packing(module: nn.Linear) -> bool:
    return (
        type(module) is nn.Linear
        and type(module.weight) is nn.Parameter  # a quantised weight can say that it is float32
        and module.weight.device.type == "cpu"
        and module.weight.dtype == torch.float32
        and not module.weight.requires_grad
        and "forward" not in vars(module)  # hooks of accelerate, which move weights about
    )


class PrepackedWeight:
    """A copy of one weight `[O, I]` in the kernel's order, made when first asked for."""

    def __init__(self) -> None:
        self._weight: torch.Tensor | None = None
        self._made_of: tuple[int, int] | None = None
        self.copy: torch.Tensor | None = None
        self._lock = threading.Lock()

    def of(self, weight_OI: torch.Tensor) -> torch.Tensor:
        """The copy of the weight as it is now."""
        now = (weight_OI.data_ptr(), weight_OI._version)  # torch counts the changes in place
        with self._lock:  # requests of a server generate in threads
            if self.copy is None or weight_OI is not self._weight or now != self._made_of:
                self._weight, self._made_of = weight_OI, now
                with torch.no_grad():
                    self.copy = torch.ops.mkldnn._reorder_linear_weight(weight_OI)
            return self.copy

    def __deepcopy__(self, memo: dict[int, Any]) -> PrepackedWeight:
        return PrepackedWeight()

    def __reduce__(self) -> tuple[type[PrepackedWeight], tuple[()]]:
        return PrepackedWeight, ()


class PrepackedLinear(nn.Linear):
    """`nn.Linear` with a frozen weight, through its prepacked copy."""

    prepacked: PrepackedWeight

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`[..., I]` to `[..., O]`."""
        weight, bias = self.weight, self.bias
        differentiated = torch.is_grad_enabled() and any(
            tensor is not None and tensor.requires_grad for tensor in (input, weight, bias)
        )
        fits = weight.dtype == input.dtype == torch.float32 and weight.device.type == "cpu"
        if not _used.get() or differentiated or not fits or not input.numel():
            return super().forward(input)
        rows_MI = input.reshape(-1, input.shape[-1])
        return product(rows_MI, self.prepacked.of(weight), bias).view(*input.shape[:-1], -1)


def product(rows_MI: torch.Tensor, prepacked: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`[M, O]`, of a weight `[O, I]` in the kernels' order."""
    return torch.ops.mkldnn._linear_pointwise(rows_MI, prepacked, bias, "none", [], "")  # type: ignore[no-any-return]


DESCRIBED = Path("/proc/cpuinfo")
"""Where Linux says which processor this is; Python does not know it there."""


def describe_processor() -> dict[str, str]:
    """What the system says of it by name, such as `model name`; at least that one."""
    unknown = {"model name": platform.processor() or platform.machine()}
    if not DESCRIBED.exists():
        return unknown
    pairs = (line.partition(":") for line in DESCRIBED.read_text(errors="replace").splitlines())
    return unknown | {name.strip(): value.strip() for name, colon, value in pairs if colon}


WEIGHTS, INPUTS, OUTPUTS = 24, 1024, 1536
"""150 MB: more than a cache of the processor's own, as a model's weights are."""
ROUNDS = 7
FEW, MANY = 1, 8
"""Rows that are tried. Fewer than half of the second are taken to be as the first."""
LEAST = 1.1
"""How many times as fast prepacked products have to be: a copy of the weights is no small price."""


def prepacking_pays(rows: int) -> bool:
    """Whether a batch of so many rows generates with prepacked weights on this machine, with its threads."""
    return (
        can_prepack()
        and _remembered(torch.get_num_threads())[_name(FEW if 2 * rows < MANY else MANY)] >= LEAST
    )


@functools.cache
def _remembered(threads: int) -> dict[str, float]:
    """By name of a number of rows, how many times as fast prepacked products are."""
    place = cache_folder() / "packing.json"
    here = f"{_processor()}, {threads} threads, torch {torch.__version__}"
    known = _read(place)
    if here not in known:
        known[here] = {_name(rows): round(_times_as_fast(rows), 2) for rows in (FEW, MANY)}
        with contextlib.suppress(OSError, ForewordError):  # a cache that can't be written: tried every time
            place.parent.mkdir(parents=True, exist_ok=True)
            write_text(place, json.dumps(known, indent=1), overwrite=True)
    return known[here]


def _read(place: Path) -> dict[str, dict[str, float]]:
    """What was found before; nothing, if the file is not what this module writes."""
    try:
        known = json.loads(place.read_text())
        expected = {_name(FEW), _name(MANY)}
        return {name: ratios for name, ratios in known.items() if set(ratios) == expected}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _name(rows: int) -> str:
    return f"rows {rows}"


@torch.no_grad()
def _times_as_fast(rows: int) -> float:
    """Time of plain products over that of prepacked ones; the median of rounds, in turns."""
    plain = torch.ones(WEIGHTS, OUTPUTS, INPUTS)
    prepacked = [torch.ops.mkldnn._reorder_linear_weight(weight_OI) for weight_OI in plain]
    rows_MI = torch.ones(rows, INPUTS)
    ratios = []
    for _ in range(ROUNDS + 1):
        times = [time.perf_counter()]
        for weight_OI in plain:
            torch.nn.functional.linear(rows_MI, weight_OI)
        times.append(time.perf_counter())
        for weight in prepacked:
            product(rows_MI, weight, None)
        times.append(time.perf_counter())
        ratios.append((times[1] - times[0]) / (times[2] - times[1]))
    return statistics.median(ratios[1:])  # the first round warms up


def _processor() -> str:
    described = describe_processor()  # clouds call many kinds by one name
    return " ".join(described.get(n, "") for n in ("vendor_id", "model name", "model", "stepping")).strip()
