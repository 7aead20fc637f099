"""Metrics give the digits that their official scripts print; how these were made: official_digits.py."""

from __future__ import annotations

import importlib.util
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sacrebleu.metrics import CHRF

from foreword.errors import MetricUnavailable, UsageError
from foreword.evaluation import Prediction, score, scores_by_part
from foreword.evaluation.metrics import METRICS, require, shown
from foreword.evaluation.metrics.bleu_chrf_rouge import rouge_scores
from foreword.evaluation.metrics.e2e import mteval_scores, nist
from foreword.evaluation.metrics.meteor import Meteor, keeping_meteor
from foreword.evaluation.metrics.webnlg import multi_bleu
from foreword.evaluation.tasks import TASKS
from support import official_digits
from support.invented_texts import Invented, digest, invented_texts, with_empty_outputs

TEXTS = invented_texts()
WITH_EMPTY = with_empty_outputs(TEXTS)
PRINTED_ROUGE = ("ROUGE-1", "ROUGE-2", "ROUGE-L")

needs_java = pytest.mark.skipif(
    shutil.which("java") is None or importlib.util.find_spec("pycocoevalcap") is None,
    reason="Java or pycocoevalcap is not installed",
)


@pytest.fixture(autouse=True, scope="module")
def one_meteor() -> Iterator[None]:
    """One Java process for all tests here."""
    with keeping_meteor():
        yield


def pairs(texts: list[Invented]) -> tuple[list[str], list[tuple[str, ...]]]:
    return [one.output for one in texts], [one.references for one in texts]


def printed(name: str, figures: dict[str, float]) -> dict[str, str]:
    """As the official script prints it."""
    return {figure.name: f"{figures[figure.name]:.{figure.digits}f}" for figure in METRICS[name].figures}


def test_the_texts_are_those_that_the_scripts_were_run_on() -> None:
    assert len(TEXTS) == len(WITH_EMPTY) == 60
    assert digest(TEXTS) == official_digits.DIGEST
    assert digest(WITH_EMPTY) == official_digits.DIGEST_WITH_EMPTY


@needs_java
def test_e2e_is_as_the_challenge_prints_it() -> None:
    assert printed("e2e", score(["e2e"], *pairs(TEXTS))["e2e"]) == official_digits.E2E


@needs_java
def test_empty_outputs_are_scored_as_the_challenge_scores_them() -> None:
    assert printed("e2e", score(["e2e"], *pairs(WITH_EMPTY))["e2e"]) == official_digits.E2E_WITH_EMPTY


def test_bleu_and_nist_need_no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    for texts, digits in ((TEXTS, official_digits.E2E), (WITH_EMPTY, official_digits.E2E_WITH_EMPTY)):
        found = mteval_scores(*pairs(texts))
        assert {name: f"{value:.4f}" for name, value in found.items()} == {
            name: digits[name] for name in ("BLEU", "NIST")
        }


@needs_java
def test_webnlg_is_as_the_challenge_prints_it_seen_and_unseen_categories_apart() -> None:
    outputs = [Prediction(one.source, one.references, one.output, one.category) for one in TEXTS]
    found = scores_by_part(["webnlg"], outputs, TASKS["webnlg"].unseen)
    assert list(found) == list(official_digits.WEBNLG)
    for part, digits in official_digits.WEBNLG.items():
        assert printed("webnlg", found[part])["BLEU"] == digits["BLEU"]
        for name in ("METEOR", "TER"):
            assert found[part][name] == pytest.approx(float(digits[name]), abs=1e-9)


@needs_java
@pytest.mark.parametrize(
    ("name", "texts", "digits"),
    [
        ("dart", TEXTS, official_digits.DART),
        ("dart", WITH_EMPTY, official_digits.DART_WITH_EMPTY),
        ("webnlg", WITH_EMPTY, official_digits.WEBNLG_WITH_EMPTY),
    ],
)
def test_dart_and_empty_outputs_are_as_the_scripts_print_them(
    name: str, texts: list[Invented], digits: dict[str, str]
) -> None:
    found = score([name], *pairs(texts))[name]
    assert printed(name, found)["BLEU"] == digits["BLEU"]
    for figure in ("METEOR", "TER"):
        assert found[figure] == pytest.approx(float(digits[figure]), abs=1e-9)


def test_chrf_is_as_popovic_prints_it() -> None:
    assert f"{score(['plain'], *pairs(TEXTS))['plain']['chrF']:.4f}" == official_digits.CHRF
    assert CHRF().word_order == 0


def test_rouge_of_every_text_is_as_rouge_155_prints_it() -> None:
    pytest.importorskip("rouge_score")
    for one, digits in zip(TEXTS, official_digits.ROUGE, strict=True):
        scores = rouge_scores([one.output], [one.references[:1]])
        for name, printed_f in zip(PRINTED_ROUGE, digits, strict=True):
            # The script makes F of P and R that it has rounded, which can move F's last digit by one.
            assert scores[name] / 100 == pytest.approx(float(printed_f), abs=1.1e-5)
    means = rouge_scores([one.output for one in TEXTS], [one.references[:1] for one in TEXTS])
    for place, name in enumerate(PRINTED_ROUGE):
        by_hand = sum(float(row[place]) for row in official_digits.ROUGE) / len(TEXTS)
        assert means[name] / 100 == pytest.approx(by_hand, abs=1e-5)


def test_rouge_lsum_of_an_example_computed_by_hand() -> None:
    pytest.importorskip("rouge_score")
    # Lin 2004, 3.2. Of the reference's 5 words its common subsequences with the two lines are w1 w3 w5 and
    # w1 w2, together 4: recall 4/5, precision 4/10. As one sequence, 3 words come in the reference's order.
    reference, text = "w1 w2 w3 w4 w5", "w1 w3 w8 w9 w5\nw1 w2 w6 w7 w8"
    found = rouge_scores([text], [[reference]])
    assert found["ROUGE-Lsum"] == pytest.approx(100 * 2 * (4 / 5) * (4 / 10) / (4 / 5 + 4 / 10))
    assert found["ROUGE-L"] == pytest.approx(100 * 2 * (3 / 5) * (3 / 10) / (3 / 5 + 3 / 10))
    # Every line of the reference is there, in another order.
    found = rouge_scores(["d e f\na b c"], [["a b c\nd e f"]])
    assert (found["ROUGE-Lsum"], found["ROUGE-L"]) == (pytest.approx(100), pytest.approx(50))


def test_rouge_lsum_is_what_rouge_score_gives_for_texts_of_several_lines() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeLsum"], use_stemmer=True)
    threes = [TEXTS[place : place + 3] for place in range(0, len(TEXTS), 3)]
    texts = ["\n".join(one.output for one in reversed(three)) for three in threes]
    references = ["\n".join(one.references[0] for one in three) for three in threes]
    found = rouge_scores(texts, [[one] for one in references])
    alone = [
        scorer.score(one, text)["rougeLsum"].fmeasure for one, text in zip(references, texts, strict=True)
    ]
    assert found["ROUGE-Lsum"] == pytest.approx(100 * sum(alone) / len(alone))
    assert found["ROUGE-Lsum"] > found["ROUGE-L"] + 1


def test_rouge_lsum_of_texts_of_one_line_is_rouge_l() -> None:
    pytest.importorskip("rouge_score")
    for one in TEXTS:
        found = rouge_scores([one.output], [one.references])
        assert found["ROUGE-Lsum"] == pytest.approx(found["ROUGE-L"])


def test_of_several_summaries_the_one_with_the_best_rouge_1_counts_for_all_three() -> None:
    pytest.importorskip("rouge_score")
    near, far = "b a d c", "a b x y"  # more words of the first, more pairs of the second
    both = rouge_scores(["a b c d"], [[far, near]])
    assert both == rouge_scores(["a b c d"], [[near]])
    assert both["ROUGE-2"] < rouge_scores(["a b c d"], [[far]])["ROUGE-2"]


def test_nist_computed_by_hand() -> None:
    # References: a b, a c. Information: a 4/2 -> 1 bit; b, c 4/1 -> 2 bits; "a b" and "a c" 2/1 -> 1 bit.
    texts, references = [["a", "b"]], [[["a", "b"], ["a", "c"]]]
    assert nist(texts, references) == pytest.approx((1 + 2) / 2 + 1 / 1)
    # Two words where three are meant: worth half.
    assert nist([["x", "y"]], [[["x", "y", "z"]]]) == pytest.approx(
        0.5 * (2 * 1.584962500721156 / 2 + 0.0), abs=1e-9
    )
    assert nist([[]], [[["x"]]]) == 0


def test_multi_bleu_takes_a_missing_reference_for_an_empty_one() -> None:
    # 3 words against 4, or against none at all: none is as near as 6 would be, but 4 is nearest.
    assert multi_bleu(["a b c d e"], [["a b c d e"]]) == pytest.approx(100)
    short = multi_bleu(["a b c d", "x y z w"], [["a b c d e f g h i j"], ["x y z w", "x y z"]])
    # 4 words against 10: the empty reference is nearer (4 off, not 6), so that nothing is too short.
    assert short == pytest.approx(100)


def test_empty_texts_count_with_nothing_right() -> None:
    pytest.importorskip("rouge_score")
    texts, references = ["a b c d", ""], [["a b c d"], ["a b c d"]]
    assert score(["rouge"], texts, references)["rouge"]["ROUGE-1"] == pytest.approx(50)
    assert mteval_scores(["", ""], references) == {"BLEU": 0.0, "NIST": 0.0}
    assert mteval_scores(texts, references)["BLEU"] < 1


@needs_java
@pytest.mark.parametrize("name", ["e2e", "webnlg", "dart"])
def test_nothing_but_empty_texts_is_worth_nothing(name: str) -> None:
    found = score([name], ["", ""], [["a b c"], ["d e f", "d"]])[name]
    # Edits to the nearest references, 3 and 1, among 3 words and 2 on average: as tercom counts.
    assert found.pop("TER", 0.8) == pytest.approx(4 / 5)
    assert set(found.values()) == {0.0}


@pytest.mark.parametrize(
    ("texts", "references", "message"),
    [
        (["a", "b"], [["a"]], "1 lists of references for 2 texts"),
        ([], [], "no texts"),
        (["a"], [[]], "text 0 is without references"),
        (["a"], [["x", " "]], "text 0 has an empty reference"),
        (["a"], ["x"], "one text; give a list"),
    ],
)
def test_what_would_be_scored_out_of_step_is_refused(
    texts: list[str], references: list[list[str]], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        score(["plain"], texts, references)


def test_unknown_metrics_are_named() -> None:
    with pytest.raises(UsageError, match="no metrics 'meteor'; expected e2e, webnlg"):
        score(["meteor"], ["a"], [["a"]])


@pytest.mark.parametrize("name", ["e2e", "webnlg", "dart"])
def test_java_missing_is_said_before_any_work(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(MetricUnavailable, match="Java missing.*install a Java runtime"):
        require([name])
    with pytest.raises(MetricUnavailable, match="Java missing.*install a Java runtime"):
        Meteor()


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("e2e", "pycocoevalcap"),
        ("webnlg", "text_unidecode"),
        ("rouge", "rouge_score"),
    ],
)
def test_a_package_that_is_not_installed_is_named(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda one, *a: None if one == package else real(one, *a)
    )
    for module in (package, f"{package}.rouge_scorer", f"{package}.score"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(MetricUnavailable, match=package.split("_")[0]):
        require([name])


@pytest.mark.parametrize("name", ["bertscore", "bleurt", "moverscore"])
def test_metrics_that_went_say_so_in_a_line_with_what_to_use(name: str) -> None:
    for call in (lambda: require(["plain", name]), lambda: score([name], ["a"], [["a"]])):
        with pytest.raises(
            UsageError, match=rf"'{name}' are no longer .*evaluate --out.*package b?"
        ) as raised:
            call()
        assert len(str(raised.value).splitlines()) == 1


def test_a_program_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip("pycocoevalcap")
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho 'Could not reserve enough space' >&2\nexit 1\n")
    java.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda program: str(java))
    program = Meteor()
    with pytest.raises(MetricUnavailable, match="METEOR ended with status 1 and said: Could not reserve"):
        program.score(["a"], [["a"]])
    program.close()
    with pytest.raises(MetricUnavailable, match="PTB tokenizer ended with status 1"):
        score(["e2e"], ["a"], [["a"]])


@pytest.mark.parametrize("what", ["exec sleep 60", "echo 'reading tables' >&2; read line; exec sleep 60"])
def test_a_program_that_never_answers_is_ended(
    what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("pycocoevalcap")
    java = tmp_path / "java"
    java.write_text(f"#!/bin/sh\n{what}\n")
    java.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda program: str(java))
    monkeypatch.setattr("foreword.evaluation.metrics.meteor.ANSWER_SECONDS", 0.5)
    said = "reading tables" if "tables" in what else "nothing"
    program = Meteor()
    with pytest.raises(
        MetricUnavailable,
        match=rf"METEOR gave no answer within 0\.5 seconds and was ended; it said: {said}\.",
    ):
        program.score(["a" * 1_000_000], [["a"]])  # more than fits into a pipe that nobody reads
    program.close()
    with pytest.raises(MetricUnavailable, match="PTB tokenizer gave no answer within 0.5 seconds"):
        score(["e2e"], ["a"], [["a"]])


def test_the_limit_of_an_answer_ends_with_the_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("pycocoevalcap")
    java = tmp_path / "java"
    answers = 'while read line; do case "$line" in EVAL*) echo 1;; esac; echo 0.25; done'
    java.write_text(f"#!/bin/sh\n{answers}\n")
    java.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda program: str(java))
    limits: list[threading.Timer] = []

    class Recorded(threading.Timer):
        def start(self) -> None:
            limits.append(self)
            super().start()

    monkeypatch.setattr(threading, "Timer", Recorded)
    program = Meteor()
    assert program.score(["a"], [["a"]]) == 0.25
    program.close()
    assert len(limits) == 3  # the statistics of the text, its score, the score of all
    assert all(limit.finished.is_set() for limit in limits)


def test_figures_are_shown_with_the_digits_of_their_scripts() -> None:
    figures = {"webnlg": {"BLEU": 61.0523, "METEOR": 0.4225, "TER": 0.3251}, "webnlg seen": {"BLEU": 1.0}}
    figures["webnlg seen"] |= {"METEOR": 0.1, "TER": 2.0}
    assert shown(figures)[:3] == [("webnlg BLEU", "61.05"), ("webnlg METEOR", "0.42"), ("webnlg TER", "0.33")]
    assert shown(figures)[3] == ("webnlg seen BLEU", "1.00")
