"""foreword evaluate with a task, its metrics, and texts of another system."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from foreword.evaluation import score
from foreword.evaluation.metrics.meteor import keeping_meteor

REFERENCES = ["A cheap pub.", "The pub A is cheap."]
CSV = 'mr,ref\n"name[A], priceRange[cheap]",{}\n"name[A], priceRange[cheap]",{}\n'.format(*REFERENCES)
XML = (
    "<benchmark><entries>"
    + "".join(
        f'<entry category="{category}" eid="Id{place}"><modifiedtripleset><mtriple>A | b | C</mtriple>'
        f'</modifiedtripleset><lex comment="good" lid="Id1">{text}</lex></entry>'
        for place, (category, text) in enumerate(
            [("Food", "A is a C of b."), ("Artist", "A made C and b.")], 1
        )
    )
    + "</entries></benchmark>"
)
with_java = pytest.mark.skipif(
    shutil.which("java") is None or importlib.util.find_spec("pycocoevalcap") is None,
    reason="Java or pycocoevalcap is not installed",
)


@pytest.fixture(autouse=True)
def files(tmp_path: Path) -> None:
    Path("dev.csv").write_text(CSV)
    Path("dev.xml").write_text(XML)
    Path("texts.txt").write_text("A is cheap.\n")
    Path("two.txt").write_text("A is a C of b.\nA made it.\n")


@with_java
def test_texts_of_another_system_are_scored_by_the_tasks_metrics_without_a_model(run: Any) -> None:
    with keeping_meteor():  # one Java process for all three
        done = run("evaluate", "dev.csv", "--task", "e2e", "--outputs", "texts.txt", "--json")
        table = run("evaluate", "dev.csv", "--task", "e2e", "--outputs", "texts.txt").stdout
        expected = score(["e2e"], ["A is cheap."], [REFERENCES])
    assert done.status == 0, done.stderr
    assert done.json["metrics"] == expected
    assert (done.json["task"], done.json["texts"], done.json["empty"]) == ("e2e", 1, 0)
    for name, value in done.json["metrics"]["e2e"].items():
        assert f"e2e {name}" in table
        assert f"{value:.4f}" in table


def test_lines_of_a_text_are_sentences_from_the_file_to_the_figure(run: Any) -> None:
    pytest.importorskip("rouge_score")
    record = {"article": "Long text.", "highlights": "a b c\nd e f"}
    Path("cnn.jsonl").write_text(json.dumps(record) + "\n")
    Path("lines.jsonl").write_text(json.dumps({"text": "d e f\na b c"}) + "\n")
    done = run("evaluate", "cnn.jsonl", "--task", "cnn", "--outputs", "lines.jsonl", "--json")
    assert done.status == 0, done.stderr
    figures = done.json["metrics"]["rouge"]
    assert (figures["ROUGE-Lsum"], figures["ROUGE-L"]) == (pytest.approx(100), pytest.approx(50))
    table = run("evaluate", "cnn.jsonl", "--task", "cnn", "--outputs", "lines.jsonl").stdout
    assert "rouge ROUGE-Lsum" in table


def test_metrics_can_be_chosen_and_parts_are_told_apart(run: Any) -> None:
    command = (
        "evaluate",
        "dev.xml",
        "--task",
        "webnlg",
        "--outputs",
        "two.txt",
        "--metrics",
        "plain",
        "--json",
    )
    found = run(*command).json["metrics"]
    assert list(found) == ["plain", "plain seen", "plain unseen"]  # Artist is unseen in WebNLG 2017
    assert found["plain seen"]["BLEU"] == pytest.approx(100)
    assert list(run(*command, "--unseen", "Food").json["metrics"]) == list(found)
    assert run(*command, "--unseen", "Food").json["metrics"]["plain unseen"]["BLEU"] == pytest.approx(100)


def test_empty_texts_are_counted_and_told(run: Any) -> None:
    Path("two.txt").write_text("\n\n")
    done = run(
        "evaluate", "dev.xml", "--task", "webnlg", "--outputs", "two.txt", "--metrics", "plain", "--json"
    )
    assert done.json["empty"] == 2
    assert done.json["metrics"]["plain"]["BLEU"] == 0
    assert "2 of 2 texts are empty" in done.stderr


def test_a_task_decodes_as_published_unless_told_otherwise(run: Any, base: str) -> None:
    command = ("evaluate", "dev.csv", "--base", base, "--task", "e2e", "--metrics", "plain", "--json")
    found = run(*command, "--max-new-tokens", 3)
    assert found.status == 0, found.stderr
    assert found.json["decoding"] == {
        "max_new_tokens": 3,
        "min_new_tokens": 0,
        "beams": 5,
        "length_penalty": 1.0,
        "stop": [],
        "banned": ["\n"],
    }
    assert (found.json["examples"], found.json["sources"]) == (2, 1)
    assert found.json["metrics"]["plain"]["BLEU"] == found.json["bleu"]


def test_a_summary_is_as_long_as_the_published_setting_asks(run: Any, base: str) -> None:
    record = {"document": "Long text.", "summary": "Short."}
    Path("xsum.jsonl").write_text(json.dumps(record) + "\n")
    command = ("evaluate", "xsum.jsonl", "--base", base, "--task", "xsum", "--metrics", "plain")
    options = ("--beams", 2, "--max-new-tokens", 12, "--out", "out.jsonl")
    done = run(*command, *options, "--json")
    assert done.status == 0, done.stderr
    assert done.json["decoding"]["min_new_tokens"] == 11
    assert "at least 11 tokens" not in done.stderr
    (row,) = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert len(row["text"]) >= 11  # one character a token
    short = run(*command, "--max-new-tokens", 5)
    assert short.status == 2
    assert "min_new_tokens is 11" in short.stderr
    told = run(*command, "--beams", 1, "--max-new-tokens", 5, "--min-new-tokens", 0)
    assert told.status == 0, told.stderr


def test_out_and_the_table_carry_categories_and_figures(run: Any, base: str) -> None:
    options = ("--base", base, "--task", "webnlg", "--metrics", "plain", "--beams", 1, "--max-new-tokens", 3)
    done = run("evaluate", "dev.xml", *options, "--out", "out.jsonl")
    assert "plain unseen chrF" in done.stdout
    assert [line.strip().split("  ")[0] for line in done.stdout.splitlines() if "BLEU" in line] == [
        "BLEU",  # of all; `plain` is the same figure
        "plain seen BLEU",
        "plain unseen BLEU",
    ]
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [row["category"] for row in rows] == ["Food", "Artist"]
    again = run(
        "evaluate", "dev.xml", "--task", "webnlg", "--metrics", "plain", "--outputs", "out.jsonl", "--json"
    )
    direct = run("evaluate", "dev.xml", *options, "--json")
    assert again.json["metrics"] == direct.json["metrics"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("dev.csv", "--task", "glue", "--base", "tiny"), 2, "no task 'glue'; expected e2e"),
        (("dev.csv", "--metrics", "bleu", "--base", "tiny"), 2, "no metrics 'bleu'; expected e2e"),
        (("dev.csv", "--task", "webnlg", "--base", "tiny"), 1, "as data of E2E NLG Challenge does"),
        (("dev.csv", "--task", "e2e", "--format", "csv", "--base", "tiny"), 2, "leave --format"),
        (("dev.csv", "--unseen", "Food", "--base", "tiny"), 2, "give --task"),
        (
            ("dev.xml", "--task", "webnlg", "--unseen", "Foot", "--base", "tiny"),
            2,
            "the data has Artist, Food",
        ),
        (("hub:dev", "--base", "tiny"), 2, "say of which task"),
        (("hub:dev", "--task", "xsum", "--base", "tiny"), 1, "datasets"),
        (
            ("dev.csv", "--task", "e2e", "--outputs", "two.txt", "--metrics", "plain"),
            1,
            "2 texts for 1 entries",
        ),
        (("dev.csv", "--outputs", "texts.txt", "--base", "tiny"), 2, "texts that are there already"),
        (("dev.csv", "--no-text", "--metrics", "plain", "--base", "tiny"), 2, "--metrics needs texts"),
    ],
)
def test_bad_input_ends_with_a_message_and_its_status(
    run: Any, base: str, arguments: tuple[object, ...], status: int, message: str
) -> None:
    done = run("evaluate", *arguments)
    assert done.status == status
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert message in done.stderr
    assert done.stdout == ""


def test_java_missing_is_said_before_the_model_is_loaded(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setattr(shutil, "which", lambda program: None)
    done = run("evaluate", "dev.csv", "--task", "e2e", "--base", "no-such-model")
    assert done.status == 1
    assert "Java missing" in done.stderr
