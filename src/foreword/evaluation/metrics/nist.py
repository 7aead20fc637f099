"""NIST, as the challenge's mteval-v13a computes it: n-grams weigh what they tell.

Written from the definition (Doddington 2002) and checked against that script. No library gives its figure:
NLTK's takes each text's closest reference for the length, mteval the mean length of all references.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

LONGEST = 5
_BETA = math.log(0.5) / math.log(1.5) ** 2  # a text of 2/3 of the length is worth half

Words = Sequence[str]


def nist(texts: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """NIST of tokenised texts, 0 and up.

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
    told = 0.0
    for size in range(1, LONGEST + 1):
        information = 0.0
        for words, some in zip(texts, references, strict=True):
            most: Counter[tuple[str, ...]] = Counter()
            for reference in some:
                most |= Counter(_ngrams(reference, size))
            for ngram, count in (Counter(_ngrams(words, size)) & most).items():
                information += count * math.log2(seen[ngram[:-1]] / seen[ngram])
        told += information / max(sum(max(len(words) - size + 1, 0) for words in texts), 1)
    lengths = [len(words) for some in references for words in some]
    ratio = sum(map(len, texts)) / (sum(lengths) / len(lengths) * len(references))
    if ratio == 0:
        return 0.0
    return told * math.exp(_BETA * math.log(min(ratio, 1.0)) ** 2)


def _ngrams(words: Words, size: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]
