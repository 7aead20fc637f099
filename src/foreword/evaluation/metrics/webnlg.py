"""The metrics of WebNLG 2017 and of DART: BLEU, METEOR and TER, on text that their scripts take apart first.

WebNLG: evaluation.py, bleu_eval_3ref.sh, meteor_eval.sh and ter_eval.sh of the challenge; DART:
run_eval_on_dart.sh. Both look at the first three references alone, and both give multi-bleu.perl an empty
line where a text has fewer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from sacrebleu.metrics import BLEU, TER

from foreword.evaluation.metrics.bleu_chrf_rouge import columns, required
from foreword.evaluation.metrics.meteor import meteor

MOST_REFERENCES = 3


def webnlg_scores(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """BLEU 0 to 100, METEOR and TER 0 to 1 (TER: less is better; above 1 is possible).

    Raises:
        MetricUnavailable: no Java, or the packages pycocoevalcap or text-unidecode are not installed.
    """
    unidecode = require_folding()
    return _scores(
        # The challenge's script folds references after it splits them, and outputs before.
        [_apart(unidecode(text).lower()) for text in texts],
        [[unidecode(_apart(one).lower()) for one in some] for some in references],
    )


def dart_scores(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """BLEU 0 to 100, METEOR and TER 0 to 1 (TER: less is better; above 1 is possible).

    Raises:
        MetricUnavailable: no Java, or the package pycocoevalcap is not installed.
    """
    lowered = [_apart(text).lower() for text in texts]
    return _scores(lowered, [[_apart(one).lower() for one in some] for some in references])


def require_folding() -> Callable[[str], str]:
    """The function that writes accents as plain letters. (The challenge's Unidecode has the GPL; this is the
    same table under a licence that Foreword can ask for.)

    Raises:
        MetricUnavailable: the package text-unidecode is not installed.
    """
    need = "the metrics of WebNLG write accents as plain letters and need the package text-unidecode"
    return required("text_unidecode", need).unidecode  # type: ignore[no-any-return]


def _apart(text: str) -> str:
    """Everything that is no letter, digit or underscore stands alone."""
    return " ".join(" ".join(re.split(r"(\W)", text)).split())


def _scores(texts: list[str], references: list[list[str]]) -> dict[str, float]:
    meant = [some[:MOST_REFERENCES] for some in references]
    return {
        "BLEU": multi_bleu(texts, meant),
        "METEOR": meteor(texts, meant),
        "TER": TER().corpus_score(texts, columns(meant)).score / 100,
    }


def multi_bleu(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """multi-bleu.perl on text as it is, 0 to 100.

    A reference that is not there counts as an empty one, which can be the closest in length to a short text.
    """
    # sacrebleu drops empty references; a space is not empty to it, and has no word either.
    padded = [[" " if one is None else one for one in column] for column in columns(references)]
    bleu = BLEU(tokenize="none", smooth_method="none", force=True)
    return float(bleu.corpus_score(list(texts), padded).score)
