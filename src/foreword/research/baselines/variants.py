"""Variants: our prefix with one thing changed, for ablations (Li & Liang 2021, section 7)."""

from __future__ import annotations

from typing import Any

from foreword.research.baselines import prefix
from foreword.research.baselines.prefix import Prefixed
from foreword.research.baselines.protocol import Setting

LENGTHS = (1, 2, 5, 20, 40)

TASK_WORDS = "Summarize the facts as text."
OTHER_WORDS = "The cat sat on the old wooden chair."
"""Real words that have nothing to do with any task."""

DIRECT_RATES = (0.02, 0.05, 0.1)
NETWORK_RATES = (3e-4, 1e-3, 3e-3)
EMBEDDING_RATES = (3e-3, 1e-2, 3e-2)

OPTIONS: dict[str, tuple[str, dict[str, Any], tuple[float, ...]]] = {
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
"""By name: title, options of `train`, learning rates to try, of which the middle one is usual."""


def half_of_layers(end: str) -> Any:
    """Only the keys and values of the first or the last half of the layers are trained."""

    def begin(setting: Setting) -> Prefixed:
        layers = setting.base.geometry.streams["decoder"].layers
        return prefix.ours(layers=f"{end}:{max(1, layers // 2)}")(setting)

    return begin
