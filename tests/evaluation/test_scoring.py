"""Texts that are written already: read in step with the entries, scored whole and by part."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest

from foreword import BaseModel, Example
from foreword.errors import BadExamples, CannotRead, MetricUnavailable, UsageError
from foreword.evaluation import Prediction, evaluate, read_outputs, score, scores_by_part
from foreword.examples import Entry

ENTRIES = [
    Entry("s", ("a b c d e",), "Food"),
    Entry("t", ("f g h i j", "f g h"), "Artist"),
    Entry("s", ("k l m n o",), "Food"),
]
TEXTS = ["a b c d e", "", "k l m n x"]


def test_lines_and_json_lines_are_read_alike(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    (tmp_path / "texts.jsonl").write_text(
        "".join(json.dumps({"text": text, "source": "?"}) + "\n" for text in TEXTS)
    )
    plain, objects = (read_outputs(tmp_path / name, ENTRIES) for name in ("texts.txt", "texts.jsonl"))
    assert plain == objects
    assert [one.text for one in plain] == TEXTS
    assert [(one.references, one.category) for one in plain] == [
        (one.references, one.category) for one in ENTRIES
    ]


MEALS = [Entry("name : A | price : less than £20", ("A.",)), Entry("name : B", ("B.",))]


def test_outputs_of_the_e2e_challenge_are_read_as_published(tmp_path: Path) -> None:
    path = tmp_path / "system.tsv"
    path.write_text(
        'MR\toutput\n"name[A], priceRange[less than £20]"\tA is cheap.\nname[B]\t"""B"", a pub."\n'
    )
    assert read_outputs(path, MEALS) == [
        Prediction(MEALS[0].source, ("A.",), "A is cheap."),
        Prediction(MEALS[1].source, ("B.",), '"B", a pub.'),
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("name[B]\tB.\n", "line 2: MR is 'name.B.', where the data has 'name : A .*in the data's order"),
        ('"name[A], priceRange[less than £20]"\tA.\n', "holds 1 texts for 2 entries"),
        ('"name[A], priceRange[less than £20]"\tA.\nname[B]\tB.\nname[C]\tC.\n', "holds 3 texts for 2"),
    ],
)
def test_outputs_of_the_e2e_challenge_for_other_data_are_refused(
    tmp_path: Path, rows: str, message: str
) -> None:
    path = tmp_path / "system.tsv"
    path.write_text("MR\toutput\n" + rows)
    with pytest.raises(BadExamples, match=message):
        read_outputs(path, MEALS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\nb\n", "holds 2 texts for 3 entries.*one for each, in the same order.*empty line"),
        ("a\nb\nc\nd\n", "holds 4 texts for 3 entries"),
        ("", "holds 0 texts for 3 entries"),
        ('{"output": "a"}\n', "line 1: no field 'text'"),
    ],
)
def test_texts_out_of_step_with_the_data_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "texts").write_text(content)
    with pytest.raises(BadExamples, match=message):
        read_outputs(tmp_path / "texts", ENTRIES)
    with pytest.raises(CannotRead, match="does not exist"):
        read_outputs(tmp_path / "absent", ENTRIES)


def test_parts_are_scored_as_if_they_stood_alone() -> None:
    outputs = [
        Prediction(one.source, one.references, text, one.category)
        for one, text in zip(ENTRIES, TEXTS, strict=True)
    ]
    found = scores_by_part(["plain"], outputs, {"Artist"})
    assert list(found) == ["plain", "plain seen", "plain unseen"]
    assert (
        found["plain seen"]
        == score(["plain"], [TEXTS[0], TEXTS[2]], [ENTRIES[0].references, ENTRIES[2].references])["plain"]
    )
    assert found["plain unseen"] == score(["plain"], [""], [ENTRIES[1].references])["plain"]
    assert list(scores_by_part(["plain"], outputs, {"Food", "Artist"})) == ["plain", "plain unseen"]
    assert list(scores_by_part(["plain"], outputs)) == ["plain"]


def test_entries_with_one_source_are_generated_and_scored_apart(tiny_base: BaseModel) -> None:
    found = evaluate(tiny_base, ENTRIES, max_new_tokens=3, metrics=["plain"], unseen={"Artist"})
    assert (found.examples, found.sources) == (4, 3)
    assert [one.references for one in found.outputs] == [one.references for one in ENTRIES]
    assert [one.category for one in found.outputs] == ["Food", "Artist", "Food"]
    texts, references = [one.text for one in found.outputs], [one.references for one in found.outputs]
    assert found.figures["plain"] == score(["plain"], texts, references)["plain"]
    assert (found.figures["plain"]["BLEU"], found.figures["plain"]["chrF"]) == (found.bleu, found.chrf)
    assert list(found.figures) == ["plain", "plain seen", "plain unseen"]
    loose = [Example(one.source, text) for one in ENTRIES for text in one.references]
    assert found.loss == pytest.approx(evaluate(tiny_base, loose, text=False).loss, rel=1e-6)


def test_a_metric_that_is_not_there_is_said_before_the_work(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = import_module("foreword.evaluation.evaluate")
    monkeypatch.setattr(module, "token_loss", lambda *a, **k: pytest.fail("worked before it asked"))
    monkeypatch.setattr("shutil.which", lambda program: None)
    with pytest.raises(MetricUnavailable, match="Java|pycocoevalcap"):
        evaluate(tiny_base, ENTRIES, metrics=["e2e"])
    with pytest.raises(UsageError, match="no metrics 'bleu'"):
        evaluate(tiny_base, ENTRIES, metrics=["bleu"])
