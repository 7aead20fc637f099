"""Whether packed weights pay on this machine: tried once, and remembered.

That depends on the processor and on the number of rows: a single row can be faster with weights as they are,
since no kernel puts those in order for it. So a few products of each kind are timed the first time that
anybody asks, and the answer is kept in the user's cache folder (`packing.json`): the same machine computes
the same bits tomorrow. Delete the file to have it tried again.

Shapes: M rows, I inputs, O outputs.
"""

from __future__ import annotations

import contextlib
import functools
import json
import statistics
import time
from pathlib import Path

import torch

from foreword.base.prepacked_linear import can_pack, product
from foreword.base.processor import describe_processor
from foreword.errors import ForewordError
from foreword.files import write_text
from foreword.models.cache_dir import cache_folder

WEIGHTS, INPUTS, OUTPUTS = 24, 1024, 1536
"""150 MB: more than a cache of the processor's own, as a model's weights are."""
ROUNDS = 7
FEW, MANY = 1, 8
"""Rows that are tried. Fewer than half of the second are taken to be as the first."""
LEAST = 1.1
"""How many times as fast packed products have to be: a copy of the weights is no small price."""


def packing_pays(rows: int) -> bool:
    """Whether a batch of so many rows generates with packed weights on this machine, with its threads."""
    return (
        can_pack() and _remembered(torch.get_num_threads())[_name(FEW if 2 * rows < MANY else MANY)] >= LEAST
    )


@functools.cache
def _remembered(threads: int) -> dict[str, float]:
    """By name of a number of rows, how many times as fast packed products are."""
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
        return {name: found for name, found in known.items() if set(found) == expected}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _name(rows: int) -> str:
    return f"rows {rows}"


@torch.no_grad()
def _times_as_fast(rows: int) -> float:
    """Time of plain products over that of packed ones; the median of rounds, in turns."""
    plain = torch.ones(WEIGHTS, OUTPUTS, INPUTS)
    packed = [torch.ops.mkldnn._reorder_linear_weight(weight_OI) for weight_OI in plain]
    rows_MI = torch.ones(rows, INPUTS)
    ratios = []
    for _ in range(ROUNDS + 1):
        times = [time.perf_counter()]
        for weight_OI in plain:
            torch.nn.functional.linear(rows_MI, weight_OI)
        times.append(time.perf_counter())
        for weight in packed:
            product(rows_MI, weight, None)
        times.append(time.perf_counter())
        ratios.append((times[1] - times[0]) / (times[2] - times[1]))
    return statistics.median(ratios[1:])  # the first round warms up


def _processor() -> str:
    found = describe_processor()  # clouds call many kinds by one name
    return " ".join(found.get(n, "") for n in ("vendor_id", "model name", "model", "stepping")).strip()
