"""foreword evaluate."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from foreword import BaseModel, Prefix
from foreword.evaluation import evaluate
from foreword.examples import read_examples

SHORT = ("--max-new-tokens", 8)


def test_the_command_prints_what_the_function_measures(run: Any, trained: str, data: str, base: str) -> None:
    command = ("evaluate", data, "--prefix", trained, "--baseline", *SHORT, "--out", "texts.jsonl")
    done = run(*command, "--json")
    assert done.status == 0, done.stderr
    model, prefix, examples = BaseModel.load(base), Prefix.load(trained), read_examples(data)
    expected = evaluate(model, examples, prefix, max_new_tokens=8)
    alone = evaluate(model, examples, template=prefix.template, max_new_tokens=8)
    for name in ("examples", "sources", "tokens", "loss", "perplexity", "bleu", "chrf", "signatures"):
        assert done.json[name] == getattr(expected, name)
        assert done.json["baseline"][name] == getattr(alone, name)
    rows = [json.loads(line) for line in Path("texts.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == [output.text for output in expected.outputs]
    assert [row["without"] for row in rows] == [output.text for output in alone.outputs]
    assert rows[0]["references"] == [examples[0].target]


def test_people_read_a_table_with_signatures(run: Any, trained: str, data: str) -> None:
    done = run("evaluate", data, "--prefix", trained, "--baseline", *SHORT)
    for text in ("loss per target token", "perplexity", "BLEU", "chrF", "without prefix", "bleu: nrefs:1|"):
        assert text in done.stdout
    assert "losses 12/12" in done.stderr
    assert "texts 12/12" in done.stderr


def test_losses_alone_generate_nothing(
    run: Any, trained: str, data: str, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = import_module("foreword.evaluation.evaluate")
    monkeypatch.setattr(module, "generate", lambda *a, **k: pytest.fail("generated"))
    done = run("evaluate", data, "--prefix", trained, "--no-text", "--limit", 5, "--json")
    assert (done.json["examples"], done.json["bleu"]) == (5, None)
    assert "BLEU" not in run("evaluate", data, "--base", base, "--no-text").stdout


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("absent.jsonl",), 1, "does not exist"),
        (("data.jsonl", "--prefix", "absent.prefix"), 1, "could not be read"),
        (("data.jsonl",), 2, "give --base"),
        (("data.jsonl", "--baseline", "--base", "tiny"), 2, "give --prefix"),
        (("data.jsonl", "--base", "tiny", "--no-text", "--out", "x"), 2, "leave one of them out"),
        (("data.jsonl", "--base", "tiny", "--out", "data.jsonl"), 1, "exists already"),
        (("data.jsonl", "--base", "tiny", "--beams", 0), 2, "beams is 0"),
        (("data.jsonl", "--base", "tiny", "--batch-size", 0), 2, "--batch-size is 0"),
        (("long.jsonl", "--base", "tiny"), 1, "128 fit"),
    ],
)
def test_bad_input_ends_with_a_message_and_its_status(
    run: Any, base: str, data: str, arguments: tuple[object, ...], status: int, message: str
) -> None:
    Path("long.jsonl").write_text(json.dumps({"source": "a" * 300, "target": "b"}) + "\n")
    done = run("evaluate", *arguments)
    assert done.status == status
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert message in done.stderr
    assert done.stdout == ""
