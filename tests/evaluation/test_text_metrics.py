"""BLEU and chrF against sacrebleu called by hand, and against a computation on paper."""

from __future__ import annotations

import math

import pytest
import sacrebleu

from foreword.errors import UsageError
from foreword.evaluation import text_scores

TEXTS = ["the cat sat on the mat", "a dog barks at night", "it rains in the north today"]


def test_bleu_of_a_tiny_corpus_computed_by_hand() -> None:
    # 6 words against 7: matches 6 of 6 words, 5 of 5 pairs, 4 of 4 threes, 3 of 3 fours; too short by one.
    scores = text_scores(["a b c d e f"], [["a b c d e f g"]])
    assert scores.bleu == pytest.approx(100 * math.exp(1 - 7 / 6))
    # 5 words: 4 match; pairs ab bc cd of 4; threes abc bcd of 3; fours abcd of 2.
    scores = text_scores(["a b c d x"], [["a b c d y"]])
    assert scores.bleu == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)


def test_every_reference_counts_and_their_number_may_differ() -> None:
    references = [
        ["a cat sat on a mat", "the cat sat on the mat"],
        ["a dog barks at the moon"],
        ["it rains in the north", "rain in the north today", "it rains today"],
    ]
    scores = text_scores(TEXTS, references)
    columns = [
        [references[0][0], references[1][0], references[2][0]],
        [references[0][1], None, references[2][1]],
        [None, None, references[2][2]],
    ]
    assert scores.bleu == sacrebleu.corpus_bleu(TEXTS, columns).score
    assert scores.chrf == sacrebleu.corpus_chrf(TEXTS, columns).score
    assert scores.bleu > text_scores(TEXTS, [each[:1] for each in references]).bleu
    assert scores.signatures["bleu"].startswith("nrefs:var|case:mixed")
    assert "chrF2" in scores.signatures["chrf"] or "nc:6" in scores.signatures["chrf"]


def test_no_reference_is_dropped_whatever_its_place() -> None:
    for place in range(3):
        references = [["nothing like it"] * place + [text] for text in TEXTS]
        assert text_scores(TEXTS, references).bleu == pytest.approx(100)


def test_texts_without_references_are_refused() -> None:
    with pytest.raises(UsageError, match="1 lists of references for 2 texts"):
        text_scores(["a", "b"], [["a"]])
    with pytest.raises(UsageError, match="without references"):
        text_scores(["a", "b"], [["a"], []])
    with pytest.raises(UsageError, match="no texts"):
        text_scores([], [])
