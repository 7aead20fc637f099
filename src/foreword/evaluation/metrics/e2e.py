"""The E2E NLG Challenge's metrics: BLEU, NIST, METEOR, ROUGE-L and CIDEr (tuetschek/e2e-metrics)."""

from __future__ import annotations

import string
from collections.abc import Sequence

from sacrebleu.metrics import BLEU
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from foreword.errors import MetricUnavailable
from foreword.evaluation.metrics.columns import columns
from foreword.evaluation.metrics.java import penn_tokens
from foreword.evaluation.metrics.meteor import meteor
from foreword.evaluation.metrics.nist import nist

# mteval-v13a lowers these 26 letters and no others.
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def e2e_scores(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """All five, in the challenge's units: BLEU, METEOR and ROUGE-L 0 to 1, CIDEr 0 to 10.

    Raises:
        MetricUnavailable: no Java, or the package pycocoevalcap is not installed.
    """
    return {**mteval_scores(texts, references), **coco_scores(texts, references)}


def mteval_scores(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """BLEU and NIST as mteval-v13a computes them, without regard to case."""
    lowered = [text.translate(_LOWER) for text in texts]
    meant = [[one.translate(_LOWER) for one in some] for some in references]
    # `exp` is mteval's own way with n-grams that never match.
    bleu = BLEU(tokenize="13a", smooth_method="exp", force=True).corpus_score(lowered, columns(meant))
    split = Tokenizer13a()
    words = [split(text).split() for text in lowered]
    meant_words = [[split(one).split() for one in some] for some in meant]
    return {"BLEU": bleu.score / 100, "NIST": nist(words, meant_words)}


def coco_scores(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """METEOR, ROUGE-L and CIDEr as coco-caption computes them, on tokens of the PTB tokenizer.

    Raises:
        MetricUnavailable: no Java, or the package pycocoevalcap is not installed.
    """
    try:
        from pycocoevalcap.cider.cider import Cider  # type: ignore[import]
        from pycocoevalcap.rouge.rouge import Rouge  # type: ignore[import]
    except ImportError as error:
        raise MetricUnavailable(
            f"ROUGE-L and CIDEr of the E2E challenge need the package pycocoevalcap ({error}); install it: "
            "pip install 'foreword[eval]'"
        ) from error
    tokens = penn_tokens([*texts, *(one for some in references for one in some)], "METEOR, ROUGE-L and CIDEr")
    written, rest = tokens[: len(texts)], iter(tokens[len(texts) :])
    meant = [[next(rest) for _ in some] for some in references]
    by_place = {place: [text] for place, text in enumerate(written)}
    meant_by_place = dict(enumerate(meant))
    return {
        "METEOR": meteor(written, meant),
        "ROUGE_L": float(Rouge().compute_score(meant_by_place, by_place)[0]),
        "CIDEr": float(Cider().compute_score(meant_by_place, by_place)[0]),
    }
