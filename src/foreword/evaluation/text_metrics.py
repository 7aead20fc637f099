"""Text metrics: corpus BLEU and chrF by sacrebleu, against any number of references for each text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sacrebleu.metrics import BLEU, CHRF

from foreword.errors import UsageError


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
    if len(texts) != len(references):
        raise UsageError(f"{len(references)} lists of references for {len(texts)} texts; give one per text")
    if not texts:
        raise UsageError("there are no texts to score; give at least one")
    if not all(references):
        raise UsageError("a text without references can't be scored; give at least one for each")
    columns = _columns(references)
    bleu, chrf = BLEU(), CHRF()
    bleu_score = bleu.corpus_score(list(texts), columns).score
    chrf_score = chrf.corpus_score(list(texts), columns).score
    signatures = {"bleu": str(bleu.get_signature()), "chrf": str(chrf.get_signature())}
    return TextScores(float(bleu_score), float(chrf_score), signatures)


def _columns(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """sacrebleu's way round: a list per place, with None where a text has fewer references."""
    most = max(len(each) for each in references)
    return [[each[place] if place < len(each) else None for each in references] for place in range(most)]
