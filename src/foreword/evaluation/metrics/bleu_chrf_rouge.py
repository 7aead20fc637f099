"""The metrics `plain`, corpus BLEU and chrF by sacrebleu with its defaults, and `rouge`, of summaries."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sacrebleu.metrics import BLEU, CHRF

from foreword.errors import MetricUnavailable, UsageError

KINDS = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "rougeLsum": "ROUGE-Lsum"}


def columns(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """References the way round that sacrebleu takes them: a list per place, None where a text has fewer."""
    return [list(column) for column in itertools.zip_longest(*references)]


def check_pairs(texts: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Refuse what would be scored out of step.

    Raises:
        UsageError: no texts, another number of reference lists than texts, a text without references or
            with an empty one.
    """
    if len(texts) != len(references):
        raise UsageError(f"{len(references)} lists of references for {len(texts)} texts; give one per text")
    if not texts:
        raise UsageError("there are no texts to score; give at least one")
    for place, some in enumerate(references):
        if isinstance(some, str):
            raise UsageError(f"the references of text {place} are one text; give a list of texts for each")
        if not some:
            raise UsageError(f"text {place} is without references and can't be scored; give it at least one")
        if not all(one.strip() for one in some):
            raise UsageError(f"text {place} has an empty reference; leave such references out")


@dataclass(frozen=True)
class TextScores:
    """Corpus BLEU and chrF, 0 to 100.

    Attributes:
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


def rouge_scores(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Mean F scores, 0 to 100, by Google's `rouge-score`, with its stemmer.

    ROUGE-L takes a text for one sequence of words. ROUGE-Lsum takes each line for a sentence and joins, for
    every sentence of the reference, what it has in common with those of the text: ROUGE-1.5.5's ROUGE-L of
    texts with a sentence a line, which is the one published for CNN/Daily Mail.

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
    return required("rouge_score.rouge_scorer", "ROUGE needs the package rouge-score").RougeScorer


def required(module: str, need: str) -> Any:
    """A module of a package that not everybody installs.

    Raises:
        MetricUnavailable: it is not installed; `need` says what needs which package.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MetricUnavailable(f"{need} ({error}); install it: pip install 'foreword[eval]'") from error
