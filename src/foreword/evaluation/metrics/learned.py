"""Metrics that are models themselves: BERTScore, BLEURT and MoverScore, each by its authors' package.

They are never computed unless asked for by name: package and weights have to be there, and what is absent is
said, not skipped.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from foreword.errors import MetricUnavailable

BLEURT_CHECKPOINT = "BLEURT_CHECKPOINT"  # name of the environment variable


def bertscore(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Mean precision, recall and F1 of BERTScore for English (roberta-large), against the best reference.

    Raises:
        MetricUnavailable: the package bert-score, or the weights, are not there.
    """
    package = require_bertscore()
    try:
        found = package.score(list(texts), [list(some) for some in references], lang="en")
    except OSError as error:  # transformers' for weights that are neither here nor to be had
        raise _no_weights("BERTScore", "roberta-large", error) from error
    names = ("BERTScore P", "BERTScore R", "BERTScore F1")
    return {name: float(values.mean()) for name, values in zip(names, found, strict=True)}


def bleurt(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Mean BLEURT against the best reference; the checkpoint is where BLEURT_CHECKPOINT says.

    Raises:
        MetricUnavailable: the package bleurt, or its checkpoint, is not there.
    """
    scorer = require_bleurt().BleurtScorer(os.environ[BLEURT_CHECKPOINT])
    written, meant = _pairs(texts, references)
    flat = iter(scorer.score(references=meant, candidates=written))
    best = [max(next(flat) for _ in some) for some in references]
    return {"BLEURT": float(sum(best) / len(best))}


def moverscore(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Mean MoverScore (v2, unigrams) over each text's references.

    Raises:
        MetricUnavailable: the package moverscore, or its weights, are not there.
    """
    package = require_moverscore()
    written, meant = _pairs(texts, references)
    weights = package.get_idf_dict(meant), package.get_idf_dict(written)
    flat = iter(package.word_mover_score(meant, written, *weights, stop_words=[], n_gram=1))
    means = [sum(next(flat) for _ in some) / len(some) for some in references]
    return {"MoverScore": float(sum(means) / len(means))}


def require_bertscore() -> Any:
    """The package bert_score, or MetricUnavailable."""
    return _package("BERTScore", "bert_score", "bert-score")


def require_bleurt() -> Any:
    """The module bleurt.score, or MetricUnavailable: for want of the checkpoint, too."""
    module = _package("BLEURT", "bleurt.score", "bleurt (github.com/google-research/bleurt)")
    checkpoint = os.environ.get(BLEURT_CHECKPOINT)
    if not checkpoint or not os.path.isdir(checkpoint):
        raise MetricUnavailable(
            f"BLEURT needs its weights: {BLEURT_CHECKPOINT} is {checkpoint!r}; expected the folder of an "
            "unpacked checkpoint, such as bleurt-base-128"
        )
    return module


def require_moverscore() -> Any:
    """The module moverscore_v2, which loads its weights when it is imported, or MetricUnavailable."""
    return _package("MoverScore", "moverscore_v2", "moverscore", "distilbert-base-uncased")


def _package(metric: str, module: str, package: str, weights: str | None = None) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise MetricUnavailable(
            f"{metric} needs the package {package} ({error}); install it, or leave {metric} out"
        ) from error
    except OSError as error:
        if weights is None:
            raise
        raise _no_weights(metric, weights, error) from error


def _no_weights(metric: str, weights: str, error: Exception) -> MetricUnavailable:
    return MetricUnavailable(
        f"{metric} needs the weights of {weights}, which could not be loaded ({error}); fetch them where the "
        f"Hugging Face Hub answers, or leave {metric} out of the metrics"
    )


def _pairs(texts: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[list[str], list[str]]:
    """Each text as often as it has references, beside these."""
    pairs = [(text, one) for text, some in zip(texts, references, strict=True) for one in some]
    return [text for text, _ in pairs], [one for _, one in pairs]
