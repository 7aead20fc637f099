"""Plain: corpus BLEU and chrF by sacrebleu with its defaults, for any text and any number of references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sacrebleu.metrics import BLEU, CHRF

from foreword.evaluation.metrics.columns import check_pairs, columns


@dataclass(frozen=True)
class TextScores:
    """How close texts come to their references.

    Attributes:
        bleu: corpus BLEU, 0 to 100.
        chrf: corpus chrF, 0 to 100.
        signatures: what sacrebleu computed, by metric: needed to compare with other figures.
    """

    bleu: float
    chrf: float
    signatures: dict[str, str]


def text_scores(texts: Sequence[str], references: Sequence[Sequence[str]]) -> TextScores:
    """Corpus scores of `texts`, each against references of its own; their number may differ.

    Raises:
        UsageError: no texts, another number of reference lists than texts, or an empty list.
    """
    check_pairs(texts, references)
    meant = columns(references)
    bleu, chrf = BLEU(), CHRF()
    bleu_score = bleu.corpus_score(list(texts), meant).score
    chrf_score = chrf.corpus_score(list(texts), meant).score
    signatures = {"bleu": str(bleu.get_signature()), "chrf": str(chrf.get_signature())}
    return TextScores(float(bleu_score), float(chrf_score), signatures)


def plain_scores(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """BLEU and chrF, 0 to 100, by name."""
    scores = text_scores(texts, references)
    return {"BLEU": scores.bleu, "chrF": scores.chrf}
