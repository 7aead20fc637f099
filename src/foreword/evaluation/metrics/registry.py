"""Metrics by name: the figures of each set, how they are written, and how they are computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from foreword.errors import UsageError
from foreword.evaluation.metrics.bleu_chrf_rouge import (
    check_pairs,
    plain_scores,
    require_rouge,
    rouge_scores,
)
from foreword.evaluation.metrics.e2e import e2e_scores
from foreword.evaluation.metrics.meteor import METEOR_JAR, require_jar, require_java
from foreword.evaluation.metrics.webnlg import dart_scores, require_folding, webnlg_scores

Compute = Callable[[Sequence[str], Sequence[Sequence[str]]], dict[str, float]]
Ready = Callable[[], object]


@dataclass(frozen=True)
class Figure:
    """A name, and the digits after the point that its official script prints."""

    name: str
    digits: int


@dataclass(frozen=True)
class MetricSet:
    """Figures that are computed together.

    Attributes:
        about: for people, in a line.
        ready: raises MetricUnavailable where something is not installed.
    """

    name: str
    about: str
    figures: tuple[Figure, ...]
    compute: Compute
    ready: Ready = lambda: None


def _figures(digits: int, *names: str) -> tuple[Figure, ...]:
    return tuple(Figure(name, digits) for name in names)


_ALL = (
    MetricSet(
        "e2e",
        "as the E2E NLG Challenge (needs Java)",
        _figures(4, "BLEU", "NIST", "METEOR", "ROUGE_L", "CIDEr"),
        e2e_scores,
        lambda: (require_jar("METEOR", METEOR_JAR), require_java("METEOR")),
    ),
    MetricSet(
        "webnlg",
        "as WebNLG 2017 (needs Java)",
        _figures(2, "BLEU", "METEOR", "TER"),
        webnlg_scores,
        lambda: (require_folding(), require_jar("METEOR", METEOR_JAR), require_java("METEOR")),
    ),
    MetricSet(
        "dart",
        "as DART (needs Java)",
        _figures(2, "BLEU", "METEOR", "TER"),
        dart_scores,
        lambda: (require_jar("METEOR", METEOR_JAR), require_java("METEOR")),
    ),
    MetricSet(
        "rouge",
        "of summaries",
        _figures(2, "ROUGE-1", "ROUGE-2", "ROUGE-L", "ROUGE-Lsum"),
        rouge_scores,
        require_rouge,
    ),
    MetricSet("plain", "sacrebleu's defaults", _figures(2, "BLEU", "chrF"), plain_scores),
)

METRICS: Mapping[str, MetricSet] = MappingProxyType({one.name: one for one in _ALL})

GONE = {"bertscore": "bert-score", "bleurt": "bleurt", "moverscore": "moverscore"}
"""Metrics that earlier releases handed to these packages, and never ran with their weights."""


def find_metrics(names: Sequence[str]) -> list[MetricSet]:
    """The sets called `names`, each once.

    Raises:
        UsageError: there is none of that name, or none any more.
    """
    for name in names:
        if name in GONE:
            raise UsageError(
                f"the metrics {name!r} are no longer part of Foreword; expected {', '.join(METRICS)}. Write "
                f"the texts with `foreword evaluate --out` and score them with the package {GONE[name]}"
            )
        if name not in METRICS:
            raise UsageError(f"no metrics {name!r}; expected {', '.join(METRICS)}")
    return [METRICS[name] for name in dict.fromkeys(names)]


def require(names: Sequence[str]) -> None:
    """Refuse, before any work, what `score` would refuse after it.

    Raises:
        UsageError: there is no set of that name.
        MetricUnavailable: a package, or Java, is not there.
    """
    for one in find_metrics(names):
        one.ready()


def score(
    names: Sequence[str], texts: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, dict[str, float]]:
    """Figures by set and name, in the units of the official scripts.

    An empty text is scored as what it is: it has no word that matches. It counts in every mean and length.

    Raises:
        UsageError: an unknown set, no texts, another number of reference lists than texts, a text without
            references or with an empty one.
        MetricUnavailable: what a set needs is not there.
    """
    chosen = find_metrics(names)
    check_pairs(texts, references)
    return {one.name: one.compute(texts, references) for one in chosen}


def shown(figures: Mapping[str, Mapping[str, float]]) -> list[tuple[str, str]]:
    """Figures as their official scripts print them: ("e2e BLEU", "0.6593").

    Args:
        figures: by set, or by set and part of the data ("webnlg seen").
    """
    return [
        (f"{name} {figure.name}", f"{values[figure.name]:.{figure.digits}f}")
        for name, values in figures.items()
        for figure in METRICS[name.split(" ")[0]].figures
    ]
