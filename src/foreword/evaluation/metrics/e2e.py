"""The E2E NLG Challenge's metrics: BLEU, NIST, METEOR, ROUGE-L and CIDEr (tuetschek/e2e-metrics)."""

from __future__ import annotations

import math
import string
from collections import Counter
from collections.abc import Sequence

from sacrebleu.metrics import BLEU
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from foreword.evaluation.metrics.bleu_chrf_rouge import columns, required
from foreword.evaluation.metrics.meteor import meteor, penn_tokens

LONGEST = 5
_BETA = math.log(0.5) / math.log(1.5) ** 2  # a text of 2/3 of the length is worth half

Words = Sequence[str]


def nist(texts: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """NIST of tokenised texts, 0 and up, as mteval-v13a computes it: n-grams weigh what they tell.

    Written from the definition (Doddington 2002) and checked against that script. No library gives its
    figure: NLTK's takes each text's closest reference for the length, mteval the mean length of all
    references.

    The length to reach is the mean over all references times the number of texts, as the challenge's Perl
    script has it. Its Python version (`measure_scores.py -p`) takes each text's own mean, which gives
    another figure, mostly in the second decimal place, where texts have unequally many references.
    """
    seen: Counter[tuple[str, ...]] = Counter()
    for some in references:
        for words in some:
            seen[()] += len(words)
            for size in range(1, LONGEST + 1):
                seen.update(_ngrams(words, size))
    weight = 0.0
    for size in range(1, LONGEST + 1):
        information = 0.0
        for words, some in zip(texts, references, strict=True):
            most: Counter[tuple[str, ...]] = Counter()
            for reference in some:
                most |= Counter(_ngrams(reference, size))
            for ngram, count in (Counter(_ngrams(words, size)) & most).items():
                information += count * math.log2(seen[ngram[:-1]] / seen[ngram])
        weight += information / max(sum(max(len(words) - size + 1, 0) for words in texts), 1)
    lengths = [len(words) for some in references for words in some]
    ratio = sum(map(len, texts)) / (sum(lengths) / len(lengths) * len(references))
    if ratio == 0:
        return 0.0
    return weight * math.exp(_BETA * math.log(min(ratio, 1.0)) ** 2)


def _ngrams(words: Words, size: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]


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
    need = "ROUGE-L and CIDEr of the E2E challenge need the package pycocoevalcap"
    cider = required("pycocoevalcap.cider.cider", need).Cider()
    rouge = required("pycocoevalcap.rouge.rouge", need).Rouge()
    tokens = penn_tokens([*texts, *(one for some in references for one in some)], "METEOR, ROUGE-L and CIDEr")
    written, rest = tokens[: len(texts)], iter(tokens[len(texts) :])
    meant = [[next(rest) for _ in some] for some in references]
    by_place = {place: [text] for place, text in enumerate(written)}
    meant_by_place = dict(enumerate(meant))
    return {
        "METEOR": meteor(written, meant),
        "ROUGE_L": float(rouge.compute_score(meant_by_place, by_place)[0]),
        "CIDEr": float(cider.compute_score(meant_by_place, by_place)[0]),
    }
