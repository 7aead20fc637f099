"""ROUGE of summaries, by Google's `rouge-score`, with its stemmer.

ROUGE-L takes a text for one sequence of words. ROUGE-Lsum takes each line for a sentence and joins, for every
sentence of the reference, what it has in common with those of the text: ROUGE-1.5.5's ROUGE-L of texts with a
sentence a line, which is the one published for CNN/Daily Mail.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foreword.errors import MetricUnavailable

KINDS = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "rougeLsum": "ROUGE-Lsum"}


def rouge_scores(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Mean F scores, 0 to 100.

    Of several references the one with the highest ROUGE-1 counts, for all: SciTLDR's authors' rule.

    Raises:
        MetricUnavailable: the package rouge-score is not installed.
    """
    scorer = require_rouge()(list(KINDS), use_stemmer=True)
    sums = dict.fromkeys(KINDS, 0.0)
    for text, some in zip(texts, references, strict=True):
        best = max(
            (scorer.score(one, text) for one in some), key=lambda scores: float(scores["rouge1"].fmeasure)
        )
        for kind in KINDS:
            sums[kind] += best[kind].fmeasure
    return {name: 100 * sums[kind] / len(texts) for kind, name in KINDS.items()}


def require_rouge() -> Any:
    """The class `RougeScorer`.

    Raises:
        MetricUnavailable: the package rouge-score is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import]
    except ImportError as error:
        raise MetricUnavailable(
            f"ROUGE needs the package rouge-score ({error}); install it: pip install 'foreword[eval]'"
        ) from error
    return RougeScorer
