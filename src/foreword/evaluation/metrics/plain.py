"""BLEU and chrF by sacrebleu with its defaults, for any text."""

from __future__ import annotations

from collections.abc import Sequence

from sacrebleu.metrics import BLEU, CHRF

from foreword.evaluation.metrics.columns import columns


def plain_scores(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """BLEU and chrF, 0 to 100."""
    meant = columns(references)
    written = list(texts)
    return {
        "BLEU": float(BLEU().corpus_score(written, meant).score),
        "chrF": float(CHRF().corpus_score(written, meant).score),
    }
