"""foreword compile."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from foreword import BaseModel, Prefix, PrefixStore, compile_document
from foreword.cli import output
from foreword.cli.compile_conversations import WriterOptions
from foreword.cli.compile_folder import _print
from foreword.documents import compile_documents
from foreword.documents.reading import read_document
from foreword.documents.written import KINDS, BaseWriter, EndpointWriter, Written
from foreword.validation import settings_of
from support.few_prompts import take_few_prompts
from support.saved_bases import save_tiny

TEXT = (
    "# Opening\n\nThe gate opens at nine. Mr. Ott has the key. It closes at noon, and Ada rings a bell.\n\n"
    "# Rules\n\nNo dogs in the Garden. Children under 12 enter with Mrs. Lund alone.\n"
)
OPTIONS: dict[str, Any] = {"steps": 6, "batch_size": 2, "draw": 16, "chunk_tokens": 60, "length": 12}
QUICK = tuple(word for name, value in OPTIONS.items() for word in (f"--{name.replace('_', '-')}", value))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with room for a document."""
    return save_tiny(tmp_path_factory.mktemp("bases") / "tiny", max_position_embeddings=512)


@pytest.fixture(autouse=True)
def _few_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    take_few_prompts(monkeypatch)
    monkeypatch.setattr("foreword.training.run_log.draw", lambda *a, **k: None)  # the picture of each run


@pytest.fixture
def document(tmp_path: Path) -> str:
    (tmp_path / "gate.md").write_text(TEXT)
    return "gate.md"


def same(one: Prefix, two: Prefix) -> bool:
    return all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)


def test_the_command_makes_what_the_function_makes(run: Any, base: str, document: str) -> None:
    done = run(
        *("compile", document, "--base", base, "--out", "a.prefix", *QUICK, "--seed", 3, "--unrelated", 0.2),
        *("--label", "kind=rules", "--licence", "MIT", "--report", "a.html", "--json"),
    )
    assert done.status == 0, done.stderr
    found = Prefix.load("a.prefix")
    text = read_document(document).text
    expected = compile_document(BaseModel.load(base), text, seed=3, unrelated=0.2, **OPTIONS)
    assert same(found, expected)
    assert found.report == expected.report
    assert (found.labels, found.licence) == ({"kind": "rules"}, "MIT")
    assert done.json["digest"] == found.digest
    assert done.json["report"] == json.loads(json.dumps(dict(found.report)))
    assert (done.json["run"], done.json["page"]) == ("a.run", "a.html")
    assert (done.json["method"], done.json["settings"]["steps"]) == ("studied", 6)
    assert done.json["ratio"] == pytest.approx(found.report["tokens"] / 12, abs=0.01)
    page = Path("a.html").read_text()
    assert "gate.md as a prefix of tiny" in page
    assert "<td>method</td><td>studied</td>" in page
    assert f"<td>{datetime.now(UTC).year}-" in page


def test_people_see_what_was_measured_and_what_to_type_next(run: Any, base: str, document: str) -> None:
    done = run("compile", document, "--base", base, "--out", "a.prefix", *QUICK)
    assert "step 6/6  loss" in done.stderr
    for phase in ("matching keys", "reading conversations as the teacher", "measuring"):
        assert done.stderr.count(f"note: {phase}") == 1
    for text in ("of what the document does", "of the document itself", "12 tokens", "a.prefix", "a.run"):
        assert text in done.stdout
    assert done.stdout.splitlines()[-1] == "next: foreword generate --prefix a.prefix 'YOUR QUESTION'"
    assert max(map(len, done.stdout.splitlines()[1:])) <= 80


def test_kept_conversations_make_the_same_prefix_again(run: Any, base: str, document: str) -> None:
    options = ("--base", base, *QUICK)
    assert run("compile", document, "--out", "a.prefix", "--keep", "kept.jsonl", *options).status == 0
    used = ("compile", document, "--out", "b.prefix", "--conversations", "kept.jsonl", *options)
    assert run(*used).status == 0
    assert same(Prefix.load("a.prefix"), Prefix.load("b.prefix"))
    other = run("compile", document, "--out", "c.prefix", "--keep", "kept.jsonl", *options, "--seed", 5)
    assert (other.status, other.stderr.count("kept.jsonl exists already")) == (1, 1)


def test_too_much_harm_fails_the_run_and_a_higher_limit_goes_on(run: Any, base: str, document: str) -> None:
    options = ("compile", document, "--base", base, "--out", "a.prefix", *QUICK)
    done = run(*options, "--max-harm", 0.0)
    assert done.status == 1
    assert "expected at most 0. a.prefix was not written" in done.stderr
    assert "allow more with --max-harm" in done.stderr
    assert "checkpoints: a.run" in done.stderr
    assert not Path("a.prefix").exists()
    assert "Above the limit" in Path("a.run/report.html").read_text()
    done = run(*options, "--max-harm", 1000)
    assert done.status == 0
    assert "going on from step 6" in done.stderr
    assert Prefix.load("a.prefix").report["max_harm"] == 1000


def test_a_report_of_too_much_harm_stands_where_nothing_else_does(run: Any, base: str, document: str) -> None:
    Path("report.html").write_text("mine")
    options = ("compile", document, "--base", base, "--out", "a.prefix", "--method", "exact", "--max-harm", 0)
    done = run(*options)
    assert done.status == 1
    assert "report: a.run/report.html" in done.stderr
    assert "Above the limit" in Path("a.run/report.html").read_text()
    assert Path("report.html").read_text() == "mine"
    assert "--unrelated" not in done.stderr  # which exact does not take
    assert run(*options, "--report", "b.html").status == 1
    assert "Above the limit" in Path("b.html").read_text()


def test_a_stopped_command_says_how_to_go_on_and_does(
    run: Any, base: str, document: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("compile", document, "--base", base, *QUICK, "--keep", "kept.jsonl", "--out", "a.prefix")

    def stop(lines: Any, progress: Any) -> None:
        if progress.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(output.TrainingLines, "__call__", stop)
        done = run(*options)
    assert done.status == 1
    assert "go on with: foreword compile gate.md" in done.stderr
    with monkeypatch.context() as patched:  # and while it is measured
        patched.setattr("foreword.documents.compile.measured", lambda *a: os.kill(os.getpid(), signal.SIGINT))
        done = run(*options)
    assert done.status == 1
    assert "checkpoint: a.run/step-0000006" in done.stderr
    assert "go on with: foreword compile gate.md" in done.stderr
    assert run(*options).status == 0
    whole = compile_document(BaseModel.load(base), read_document(document).text, **OPTIONS)
    assert same(Prefix.load("a.prefix"), whole)


def test_questions_of_ones_own_are_what_the_report_is_about(run: Any, base: str, document: str) -> None:
    rows = [
        {"question": "When does the gate open?", "answer": "At nine.", "section": "Opening"},
        {"question": "Who has the key?", "answer": "Mr. Ott", "section": "Keys"},
    ]
    Path("q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run("compile", document, "--base", base, "--out", "a.prefix", *QUICK, "--questions", "q.jsonl")
    assert done.status == 0, done.stderr
    report = Prefix.load("a.prefix").report
    assert report["answers"] == 2
    assert [each["section"] for each in report["sections"]] == ["Opening", "Keys"]


def test_a_model_writes_conversations_once_and_its_key_stands_nowhere(
    run: Any, base: str, document: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers, seen = itertools.count(1), []

    def write(writer: EndpointWriter, chunk: str, kind: str, n: int) -> Written:
        seen.append((writer.base_url, writer.model, writer.key, kind))
        question = f"What is said here{' and here' * next(numbers)}?"
        return Written(((question, chunk.splitlines()[-1]), ("Who is Zed?", "Zed Zander")), 0)

    monkeypatch.setattr(EndpointWriter, "write", write)
    monkeypatch.setenv("MY_KEY", "sk-secret")
    options = ("compile", document, "--base", base, "--out", "a.prefix", "--writer", "http://here:1/v1")
    options += ("--writer-model", "big", "--writer-key-env", "MY_KEY", "--writer-kind", "summary")
    options += ("--steps", 4, "--batch-size", 2, "--chunk-tokens", 60, "--length", 12)
    done = run(*options, "--write", 6)
    assert done.status == 0, done.stderr
    assert set(seen) == {("http://here:1/v1", "big", "sk-secret", "summary")}
    assert "conversations do not pass the check against the text" in done.stderr
    assert "conversations written 6/6" in done.stderr
    lines = [json.loads(line) for line in Path("a.run/conversations.jsonl").read_text().splitlines()]
    assert lines[0]["made"] == {"writer": "big", "written": 6, "kinds": ["summary"], "seed": 0}
    assert [line["kind"] for line in lines[1:]] == ["written: summary"] * 6
    files = [path.read_bytes() for path in Path().rglob("*") if path.is_file()]
    assert not any(
        b"sk-secret" in content for content in [*files, done.stdout.encode(), done.stderr.encode()]
    )
    asked = len(seen)
    assert run(*options, "--write", 6, "--out", "b.prefix", "--checkpoint-dir", "a.run").status == 0
    assert len(seen) == asked
    assert same(Prefix.load("a.prefix"), Prefix.load("b.prefix"))
    other = run(*options, "--write", 7, "--out", "b.prefix", "--checkpoint-dir", "a.run", "--overwrite")
    assert other.status == 0, other.stderr
    assert len(seen) > asked


def test_the_base_writes_what_it_can(
    run: Any, base: str, document: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = itertools.count()

    def texts(writer: BaseWriter, chunk: str, kind: str, n: int) -> list[str]:
        tails = [next(numbers) * " and so on" for _ in range(n)]
        return [f"Question: What of {kind}{tail}?\nAnswer: {chunk.splitlines()[-1]}" for tail in tails]

    monkeypatch.setattr(BaseWriter, "_texts", texts)
    options = ("compile", document, "--base", base, "--out", "a.prefix", "--method", "matched", "--length", 9)
    done = run(*options, "--chunk-tokens", 60, "--writer", "base", "--write", 4, "--keep", "kept.jsonl")
    assert done.status == 0, done.stderr
    header, *rest = Path("kept.jsonl").read_text().splitlines()
    assert json.loads(header)["made"]["writer"] == "tiny"
    assert len(rest) == 4
    again = run(
        *options[:-3], "exact", "--out", "b.prefix", "--writer", "base", "--write", 5, "--keep", "kept.jsonl"
    )
    assert (again.status, again.stderr.count("holds other conversations")) == (1, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--write", 9), "--write is for a model that writes; name it"),
        (("--writer-model", "m"), "--writer-model is for a model that writes; name it"),
        (("--writer", "base", "--writer-model", "m"), "with --writer base, leave it out"),
        (("--writer", "http://a/v1"), "name the model that writes there: --writer-model NAME"),
        (
            ("--writer", "http://u:p@a/v1", "--writer-model", "m"),
            "--writer is 'http://a'; expected one such as",
        ),
        (("--writer", "bass", "--writer-model", "m"), "--writer is 'bass'; expected one such as"),
        (
            ("--writer", "http://a/v1", "--writer-model", "m", "--writer-key-env", "NO"),
            "NO, which is not set",
        ),
        (
            ("--writer", "base", "--writer-kind", "poem"),
            "--writer-kind is 'poem'; expected question, summary",
        ),
        (("--writer", "base", "--draw", 9), "--writer and --draw are both given"),
        (("--writer", "base", "--conversations", "c"), "--writer and --conversations are both given"),
        (("--writer", "base", "--write", 1), "--write is 1"),
    ],
)
def test_what_does_not_go_with_a_writer_is_refused_by_its_option(
    run: Any, document: str, monkeypatch: pytest.MonkeyPatch, options: tuple[Any, ...], message: str
) -> None:
    monkeypatch.setattr(BaseModel, "load", lambda *a, **k: pytest.fail("loaded"))
    done = run("compile", document, "--out", "a.prefix", *options)
    assert (done.status, done.stderr.count(message)) == (2, 1), done.stderr


def test_the_help_names_all_kinds_of_conversations() -> None:
    (described,) = (each for each in settings_of(WriterOptions) if each.name == "writer_kind")
    assert f": {', '.join(KINDS)};" in described.help


@pytest.mark.parametrize(
    ("content", "options", "status", "message"),
    [
        (b"", (), 1, "gate.md is empty"),
        (b"%PDF-1.4 \x9f\x8e", (), 1, "gate.md is PDF"),
        (b"\x8f\x9c\x00\x01" * 9, (), 1, "gate.md: byte 0x8f"),
        (b"Short one. It has few words.", ("--length", 90), 2, "take a length below"),
        (TEXT.encode(), ("--length", 9, "--ratio", 2), 2, "give length or ratio, not both"),
        (TEXT.encode() * 5, ("--method", "exact"), 1, "tiny has 512 positions"),
        (TEXT.encode() * 5, ("--length", 511), 1, "leaves no room for text"),
        (TEXT.encode(), ("--steps", 0), 2, "--steps is 0"),
        (TEXT.encode(), ("--method", "best"), 2, "'--method': 'best' is not one of"),
        (
            TEXT.encode(),
            ("--method", "exact", "--draw", 400),
            2,
            "--draw is 400, which method exact does not",
        ),
        (TEXT.encode(), ("--questions", "none.jsonl"), 1, "none.jsonl does not exist"),
        (TEXT.encode(), ("--owner", "me"), 2, "say where the prefix goes: --out FILE, or --store PLACE"),
        (TEXT.encode(), ("--store", "s"), 2, "--out and --store are both given"),
        (TEXT.encode(), ("--by", "document"), 2, "gate.md is a file; --by document takes a folder"),
        (TEXT.encode(), ("--together",), 2, "--together is given, but it is for a folder of documents"),
        (TEXT.encode(), ("--report", "no/a.html"), 1, "the folder no"),
    ],
    ids=[
        *("empty", "pdf", "binary", "short", "both", "exact"),
        *("long", "steps", "method", "unused", "questions", "owner", "store", "folder", "together", "report"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(
    run: Any, base: str, content: bytes, options: tuple[Any, ...], status: int, message: str
) -> None:
    Path("gate.md").write_bytes(content)
    done = run("compile", "gate.md", "--base", base, "--out", "a.prefix", *options)
    assert (done.status, done.stderr.count(message)) == (status, 1), done.stderr
    assert not Path("a.prefix").exists()


def test_outputs_are_checked_before_the_model_is_loaded(
    run: Any, document: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BaseModel, "load", lambda *a, **k: pytest.fail("loaded"))
    Path("a.prefix").write_text("mine")
    Path("docs").mkdir()
    assert run("compile", document, "--out", "a.prefix").status == 1
    for wrong in (
        ("docs", "--out", "b.prefix"),
        (document,),
        ("docs", "--by", "document"),
        ("docs", "--by", "document", "--out", "o", "--owner", "me"),
        ("docs", "--by", "document", "--out", "o", "--store", "s"),
        ("docs", "--by", "document", "--out", "o", "--report", "r.html"),
        ("docs", "--by", "document", "--out", "o", "--together", "--from", "old.prefix"),
        ("docs", "--by", "document", "--out", "o", "--neighbours", "3"),
        ("docs", "--by", "document", "--out", "o", "--write", "3"),
        ("docs", "--out", "o", "--together"),
    ):
        assert run("compile", *wrong).status == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--out", "gate.md"), "--out and DOCUMENT are both gate.md"),
        (("--out", "a", "--report", "./a"), "--report and --out are both a"),
        (("--out", "a", "--keep", "c", "--conversations", "c"), "--keep and --conversations are both c"),
    ],
)
def test_no_file_is_written_over_another_that_is_named(
    run: Any, document: str, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], message: str
) -> None:
    monkeypatch.setattr(BaseModel, "load", lambda *a, **k: pytest.fail("loaded"))
    done = run("compile", document, "--overwrite", *options)
    assert (done.status, done.stderr.count(message)) == (2, 1), done.stderr
    assert Path(document).read_text() == TEXT


# -- a folder of documents -------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "docs").mkdir()
    for name, content in {"gate.md": TEXT, "well.txt": TEXT.replace("gate", "well"), "void.md": ""}.items():
        (tmp_path / "docs" / name).write_text(content)
    (tmp_path / "docs" / "picture.png").write_bytes(b"png")
    return "docs"


def test_each_document_gets_a_prefix_and_one_that_fails_is_named(run: Any, base: str, folder: str) -> None:
    options = ("compile", folder, "--by", "document", "--base", base, "--out", "out", *QUICK)
    done = run(*options, "--json")
    assert done.status == 1
    assert [row["document"] for row in done.json["documents"]] == ["gate", "well"]
    assert [(row["document"], row["type"]) for row in done.json["failed"]] == [("void", "BadDocument")]
    assert "picture.png is passed over" in done.stderr
    loaded = BaseModel.load(base)
    for name in ("gate.md", "well.txt"):
        alone = compile_document(loaded, read_document(Path(folder, name)).text, **OPTIONS)
        assert same(Prefix.load(f"out/{Path(name).stem}.prefix"), alone)
    Path(folder, "void.md").unlink()
    again = run(*options)
    assert (again.status, "2 done before" in again.stdout) == (0, True)
    Path(folder, "gate.md").unlink()
    other = run(*options[:-1], 13)
    assert (other.status, "is not what this run makes" in other.stderr) == (1, True)
    assert run(*options[:-1], 13, "--overwrite").status == 0
    assert Prefix.load("out/well.prefix").length == 13


def test_documents_go_into_a_store_once(run: Any, base: str, folder: str) -> None:
    options = ("compile", folder, "--by", "document", "--base", base, "--owner", "ada", *QUICK)
    Path(folder, "void.md").unlink()
    for before in (0, 2):
        done = run(*options, "--json")
        assert done.status == 0, done.stderr
        rows = done.json["documents"]
        assert [row["prefix"] for row in rows] == ["ada/gate@1", "ada/well@1"]
        assert sum(row["before"] for row in rows) == before
    limited = run(*options, "--max-harm", 0.0)
    assert (limited.status, "allow more with --max-harm" in limited.stdout) == (1, True)
    with PrefixStore("prefixes") as store:
        assert store.describe("ada/gate").version.number == 1
        assert store.get("ada/well").length == 12
    Path(folder, "well.html").write_text("<p>Other</p>")
    assert "would both be the prefix 'well'" in run(*options).stderr


@pytest.mark.parametrize("terminal", [True, False])
def test_the_table_of_documents_fits_a_terminal_and_has_a_line_a_document_in_a_pipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    if terminal:
        for name, value in {"FORCE_COLOR": "1", "TERM": "dumb", "COLUMNS": "80"}.items():
            monkeypatch.setenv(name, value)
    names = ["handbook", "the annual report of the year before last, with all tables", "a" * 70]
    report = {"tokens": 15340, "recovered_share": 0.912, "harm": 0.4312}
    made = {"length": 1534, "report": report, "before": False}
    rows = [{"document": name, "prefix": f"prefixes/{name}.prefix", **made} for name in names]
    _print(rows, [{"document": "scan", "type": "BadDocument", "message": "no text on its pages. " * 9}])
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).split("next: ")[0].splitlines()
    figures = [line for line in lines if "0.91 " in line]
    assert len(figures) == len(names)
    if terminal:
        assert max(map(len, lines)) <= 80
    else:
        assert all(f"prefixes/{name}.prefix" in line for name, line in zip(names, figures, strict=True))
        assert len([line for line in lines if line.strip().startswith("scan")]) == 1


def test_documents_that_are_trained_together_are_one_run(run: Any, base: str, folder: str) -> None:
    options = ("compile", folder, "--by", "document", "--together", "--base", base, "--out", "out", *QUICK)
    done = run(*options, "--mixed", 0.8, "--neighbours", 1, "--json")
    assert (done.status, [row["document"] for row in done.json["documents"]]) == (1, ["gate", "well"])
    assert "document 2/2  well" in done.stderr
    assert "step 6/6  loss" in done.stderr
    texts = {name: read_document(Path(folder, name)).text for name in ("gate.md", "well.txt")}
    expected = compile_documents(
        BaseModel.load(base), texts, together=True, mixed=0.8, neighbours=1, **OPTIONS
    )
    found = {name: Prefix.load(f"out/{Path(name).stem}.prefix") for name in texts}
    for name, prefix in expected.items():
        assert same(found[name], prefix)
        assert found[name].recipe["together"] == prefix.recipe["together"]
    # One that is gone is made again among the others, which stay as they are.
    Path("out/gate.prefix").unlink()
    Path(folder, "void.md").unlink()
    again = run(*options, "--mixed", 0.8, "--neighbours", 1)
    assert (again.status, "1 made, 1 done before" in again.stdout) == (0, True), again.stderr
    assert same(Prefix.load("out/gate.prefix"), found["gate.md"])
    assert Prefix.load("out/well.prefix").digest == found["well.txt"].digest
    assert "2 done before" in run(*options, "--mixed", 0.8, "--neighbours", 1).stdout
    other = run(*options)
    assert (other.status, "is not what this run makes" in other.stderr) == (1, True)
    Path(folder, "gate.md").unlink()
    single = run(*options, "--overwrite")
    assert (single.status, "there are 1 documents" in single.stderr) == (2, True)


def test_an_edit_goes_on_from_the_earlier_file_and_passes_the_gate_or_not(
    run: Any, base: str, document: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--base", base, *QUICK)
    assert run("compile", document, "--out", "a.prefix", *options).status == 0
    Path(document).write_text(TEXT + "\n\n# More\n\nCats may come in on Sundays.")
    done = run("compile", document, "--from", "a.prefix", "--out", "b.prefix", *options)
    assert done.status == 0, done.stderr
    assert "parts of the document are new or changed" in done.stderr
    old = Prefix.load("a.prefix")
    assert Prefix.load("b.prefix").recipe["document"]["previous"] == old.digest
    monkeypatch.setattr("foreword.documents.edits.MOST_WORSE", -99.0)  # better by so much would pass
    monkeypatch.setattr("foreword.documents.edits.HARM_TIMES", 0.0)
    done = run("compile", document, "--from", "a.prefix", "--gate", "--out", "d.prefix", *options)
    assert done.status == 1
    assert "d.prefix was not written" in done.stderr
    assert "leave --gate out" in done.stderr
    assert not Path("d.prefix").exists()
    done = run("compile", document, "--gate", "--out", "d.prefix", *options)
    assert (done.status, done.stderr.count("it needs --from PREFIX")) == (2, 1)


def test_an_edit_becomes_the_latest_version_in_a_store_if_it_passes_the_gate(
    run: Any, base: str, document: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("compile", document, "--base", base, "--owner", "ada", "--json", *QUICK)
    done = run(*options)
    assert done.status == 0, done.stderr
    assert (done.json["prefix"], Path(done.json["run"]).parts[0]) == ("ada/gate@1", "prefixes")
    text = read_document(document).text
    expected = compile_document(BaseModel.load(base), text, **OPTIONS)
    with PrefixStore("prefixes") as store:
        first = store.get("ada/gate")
    assert same(first, expected)
    Path(document).write_text(TEXT + "\n\n# More\n\nCats may come in on Sundays.")
    edit = (*options[:-2], "--from", "ada/gate", "--gate")  # without a length, which it keeps
    with monkeypatch.context() as patched:
        patched.setattr("foreword.documents.edits.HARM_TIMES", 0.0)
        done = run(*edit)
    assert done.status == 1
    assert "a version of ada/gate was not written" in done.stdout
    with PrefixStore("prefixes") as store:
        assert store.describe("ada/gate").version.number == 1
    monkeypatch.setattr("foreword.documents.edits.HARM_TIMES", 99.0)
    monkeypatch.setattr("foreword.documents.edits.MOST_WORSE", 99.0)
    done = run(*edit)
    assert done.status == 0, done.stderr
    assert done.json["prefix"] == "ada/gate@2"
    assert done.json["report"]["gate"]["harm"] >= 0
    with PrefixStore("prefixes") as store:
        assert store.get("ada/gate").recipe["document"]["previous"] == first.digest
        folder = Path(done.json["run"])
        assert folder.is_dir()
        store.forget("ada")
    assert not folder.exists()
    absent = run(*options[:-2], "--from", "ada/wall")
    assert (absent.status, "ada/wall" in absent.stdout) == (1, True)
