"""Metrics: sets of figures as official evaluation scripts compute them, by name."""

from foreword.evaluation.metrics.registry import (
    METRICS,
    Figure,
    MetricSet,
    find_metrics,
    require,
    score,
    shown,
)

__all__ = ["METRICS", "Figure", "MetricSet", "find_metrics", "require", "score", "shown"]
