"""foreword reproduce low-data, full, ablation, extrapolation: from data to report in one command."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from foreword.cli.reproduce.data import max_length_of
from foreword.cli.reproduce.trials import ABLATION, EXTRAPOLATION, FULL, LOW_DATA, Kind, make_plan
from foreword.research.experiments import report_trials
from foreword.research.experiments.plan import Plan
from foreword.research.experiments.results import alone
from support.command_line import Outcome, run_command, working_in
from support.stand_ins import random_examples

SMALL = (
    *("--sizes", "4,6", "--subsets", 2, "--steps", 3, "--batch-size", 2, "--length", 2, "--beams", 1),
    *(
        "--dev-rows",
        3,
        "--measured-sources",
        4,
        "--tuning-size",
        5,
        "--methods",
        "prefix,lora",
        "--others",
        "",
    ),
)


def write(name: str, count: int, seed: int, groups: str = "") -> str:
    rows = [{"source": e.source, "target": e.target} for e in random_examples(count, seed=seed)]
    for place, row in enumerate(rows):
        if groups:
            row["category"] = groups[place % len(groups)]
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def low_data(base: str) -> tuple[object, ...]:
    files = ("--train", write("train.jsonl", 20, 0), "--dev", write("dev.jsonl", 9, 1), "--base", base)
    return ("reproduce", "low-data", *files, *SMALL)


@pytest.fixture
def command(base: str) -> tuple[object, ...]:
    return low_data(base)


@pytest.fixture(scope="module")
def whole_run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    """Made once: what `command` printed without a choice of rates, and its folder, which nothing may change."""
    folder = tmp_path_factory.mktemp("low-data")
    (folder / "tiny").symlink_to(tiny_folder)
    with working_in(folder):
        done = run_command(*low_data("tiny"), "--out", "run", "--untuned")
    assert done.status == 0, done.stderr
    return done, folder / "run"


@pytest.fixture(autouse=True)
def one_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of finished runs alone; in `whole_run`, one after every trial, as a user sees it."""
    draw = report_trials.draw

    def when_finished(ledger: Any, plan: Plan, groups: Any, path: Path, **options: Any) -> None:
        made = [
            name
            for name in pieces(str(path.parent))
            if re.fullmatch(r"[^ ,]+, n = \d+, subset \d+, seed \d+", name)
        ]
        if len(made) >= len(list(plan.trials())):
            draw(ledger, plan, groups, path, **options)

    monkeypatch.setattr(report_trials, "draw", when_finished)


@pytest.fixture
def finished(whole_run: tuple[Outcome, Path], tmp_path: Path) -> Outcome:
    """That run, as it lies in the folder `run` of this test."""
    done, folder = whole_run
    shutil.copytree(folder, tmp_path / "run")
    return done


def pieces(folder: str) -> dict[str, Any]:
    lines = [json.loads(line) for line in Path(folder, "results.jsonl").read_text().splitlines()]
    return {line["piece"]: line for line in lines if "piece" in line}


def test_the_tables_hold_the_figures_of_the_results(finished: Outcome) -> None:
    assert "8 trials to make\n" in finished.stderr
    page = Path("run/report.md").read_text()
    found = pieces("run")
    assert len(found) == 8
    for name, title in (("prefix", "prefix"), ("lora", "LoRA, prefix's size")):
        cells = []
        for size in (4, 6):
            losses = [
                found[f"{name}, n = {size}, subset {s}, seed 0"]["figures"]["measured"]["loss"]
                for s in (0, 1)
            ]
            mean = sum(losses) / 2
            spread = (sum((loss - mean) ** 2 for loss in losses)) ** 0.5
            cells.append((f"{mean:.3f}", f" ± {spread:.3f}"))
        rows = [line.replace("*", "") for line in page.splitlines() if line.startswith(f"| {title} |")]
        assert f"| {title} | {' | '.join(a + b for a, b in cells)} |" in rows
    assert "not finished" not in page
    assert "**prefix vs LoRA, prefix's size, loss:" in page
    assert Path("run/figures.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(Path("run/outputs").iterdir())) == 8


def test_rates_are_chosen_and_the_grid_is_in_the_report(run: Any, command: tuple[object, ...]) -> None:
    done = run(*command, "--out", "run", "--sizes", 4, "--subsets", 1)
    assert done.status == 0, done.stderr
    page = Path("run/report.md").read_text()
    tried = {name: piece for name, piece in pieces("run").items() if name.startswith("grid of")}
    assert len(tried) >= 6
    for name, piece in tried.items():
        choice = name.split(": ")[1]
        assert any(choice in line and f"{piece['dev_loss']:.4f}" in line for line in page.splitlines())


def test_the_command_in_the_report_makes_the_same_figures(
    run: Any, command: tuple[object, ...], finished: Outcome
) -> None:
    page = Path("run/report.md").read_text()
    (line,) = [line for line in page.splitlines() if line.startswith("foreword reproduce")]
    Path("run").rename("first")
    assert run(*shlex.split(line)[1:]).status == 0
    first, second = pieces("first"), pieces("run")
    assert {name: piece["figures"] for name, piece in first.items()} == {
        name: piece["figures"] for name, piece in second.items()
    }


def test_the_same_command_makes_nothing_again_and_other_settings_are_refused(
    run: Any, command: tuple[object, ...], finished: Outcome
) -> None:
    kept = {path: path.read_bytes() for path in Path("run").rglob("*.jsonl")}
    again = run(*command, "--out", "run", "--untuned")
    assert again.status == 0
    assert "to make" not in again.stderr
    refused = run(*command, "--out", "run", "--untuned", "--seed", 1)
    assert refused.status == 1
    assert "seed is 1, was 0" in refused.stderr
    tuned = run(*command, "--out", "run")
    assert "rates chosen at is 5, was 'not chosen'" in tuned.stderr
    other = run("reproduce", "full", *command[2:], "--out", "run", "--untuned")
    assert "holds a run of 'low-data', not of 'full'" in other.stderr
    assert {path: path.read_bytes() for path in Path("run").rglob("*.jsonl")} == kept


def test_json_has_every_cell(run: Any, command: tuple[object, ...], finished: Outcome) -> None:
    found = run(*command, "--out", "run", "--untuned", "--json").json
    cells = {(c["method"], c["n"], c["metric"]): c for c in found["figures"]}
    assert set(cells) == {
        (method, n, metric)
        for method in ("prefix", "lora")
        for n in (4, 6)
        for metric in ("BLEU", "chrF", "loss")
    }
    assert all(cell["trials"] == 2 for cell in cells.values())


def test_unseen_groups_have_tables_of_their_own(run: Any, base: str) -> None:
    train, dev = write("train.jsonl", 30, 0, "abc"), write("dev.jsonl", 30, 1, "abc")
    files = ("--train", train, "--dev", dev, "--base", base, "--group-field", "category")
    done = run("reproduce", "extrapolation", *files, *SMALL, "--held-out", "b", "--out", "run", "--untuned")
    assert done.status == 0, done.stderr
    assert "measured as unseen: b" in done.stderr
    assert "With 4 subsets in all no difference can be significant: even if all of them" in done.stderr
    page = Path("run/report.md").read_text()
    assert "## BLEU, seen" in page
    assert "## Loss, unseen" in page
    assert "| held out | b |" in page
    missing = run("reproduce", "extrapolation", *files, *SMALL, "--held-out", "z", "--out", "other")
    assert missing.status == 2
    assert "no dev example is of 'z'; groups there are a, b, c" in missing.stderr
    assert not Path("other").exists()


def test_groups_that_training_lacks_are_unseen_and_may_be_in_a_file_of_their_own(run: Any, base: str) -> None:
    """As WebNLG's test data: some categories are those of training, some are new."""
    train, dev, test = (
        write("train.jsonl", 30, 0, "ab"),
        write("dev.jsonl", 30, 1, "abz"),
        write("test.jsonl", 30, 2, "ayz"),
    )
    files = ("--train", train, "--dev", dev, "--test", test, "--base", base, "--group-field", "category")
    done = run("reproduce", "extrapolation", *files, *SMALL, "--out", "run", "--untuned")
    assert done.status == 0, done.stderr
    assert "measured as unseen: y, z" in done.stderr
    (texts, *_) = Path("run/outputs").iterdir()
    lines = [json.loads(line) for line in texts.read_text().splitlines()]
    category = {
        record["source"]: record["category"]
        for record in map(json.loads, Path("test.jsonl").read_text().splitlines())
    }
    found = {(line["group"], category[line["source"]]) for line in lines}
    assert found <= {("seen", "a"), ("unseen", "y"), ("unseen", "z")}
    assert {group for group, _ in found} == {"seen", "unseen"}


def test_a_run_of_two_folders_is_put_together(run: Any, command: tuple[object, ...]) -> None:
    assert run(*command, "--methods", "prefix", "--out", "run", "--untuned").status == 0
    assert run(*command, "--methods", "lora", "--out", "other", "--untuned").status == 0
    done = run(*command, "--methods", "prefix,lora", "--out", "run", "--untuned", "--also", "other")
    assert done.status == 0, done.stderr
    assert "4 pieces taken over from other" in done.stderr
    assert "to make" not in done.stderr
    page = Path("run/report.md").read_text()
    assert "Not finished" not in page
    assert "--out other" in page


WEBNLG = """<benchmark><entries>{}</entries></benchmark>"""
ENTRY = """<entry category="{}" eid="Id{}" size="1"><modifiedtripleset><mtriple>{} | is | {}</mtriple>
</modifiedtripleset><lex comment="good" lid="Id1">{} is {}.</lex><lex comment="toFix" lid="Id2">bad</lex></entry>"""


def test_a_task_is_read_decoded_and_scored_as_it_is_published(run: Any, base: str) -> None:
    for name, letters in (("train.xml", "abcdefghijkl"), ("dev.xml", "mnopqrstuvwxyz")):
        entries = [
            ENTRY.format(("Food", "City")[place % 2], place, letter, letter * 2, letter, letter * 2)
            for place, letter in enumerate(letters)
        ]
        Path(name).write_text(WEBNLG.format("".join(entries)))
    files = (
        "--task",
        "webnlg",
        "--train",
        "train.xml",
        "--dev",
        "dev.xml",
        "--base",
        base,
        "--metrics",
        "plain",
    )
    options = (*SMALL, "--sizes", 4, "--held-out", "City", "--out", "run", "--untuned")
    done = run("reproduce", "extrapolation", *files, *options)
    assert done.status == 0, done.stderr
    head = json.loads(Path("run/results.jsonl").read_text().splitlines()[0])["settings"]
    assert head["decoding"] == {"banned": ["\n"], "beams": 1, "max_new_tokens": 100}
    assert head["train examples"] == 6  # texts that are not good are not trained on, nor is the city
    assert head["measured: unseen"] == 2 * 4  # ... but they are references
    trial = pieces("run")["prefix, n = 4, subset 0, seed 0"]["figures"]["unseen"]
    scored = pieces("run")["plain figures of prefix, n = 4, subset 0, seed 0"]["figures"]["unseen"]
    assert scored == {"plain BLEU": pytest.approx(trial["BLEU"]), "plain chrF": pytest.approx(trial["chrF"])}
    assert "## plain BLEU, unseen" in Path("run/report.md").read_text()


def test_entries_of_one_source_are_scored_apart_when_a_task_is_named(run: Any, base: str) -> None:
    """As evaluate counts them: the same file, whose entries have half as many sources."""
    for name, letters in (("train.xml", "abcdefgh"), ("choose.xml", "uvw"), ("dev.xml", "mmnnooppqqrr")):
        entries = [
            ENTRY.format(("Food", "City")[place % 2], place, letter, letter * 2, letter, place)
            for place, letter in enumerate(letters)
        ]
        Path(name).write_text(WEBNLG.format("".join(entries)))
    files = ("--task", "webnlg", "--train", "train.xml", "--test", "dev.xml")
    options = (*SMALL, "--sizes", 4, "--subsets", 1, "--methods", "none", "--measured-sources", 6)
    command = ("reproduce", "low-data", *files, "--base", base, *options, "--metrics", "plain", "--untuned")
    refused = run(*command, "--dev", "dev.xml", "--out", "refused")
    assert refused.status == 1
    assert "every source of dev.xml is among those of dev.xml that are measured" in refused.stderr
    done = run(*command, "--dev", "choose.xml", "--out", "run")
    assert done.status == 0, done.stderr
    head = json.loads(Path("run/results.jsonl").read_text().splitlines()[0])["settings"]
    assert (head["measured: measured"], head["measured entries"]) == (24, 12)
    (file,) = Path("run/outputs").iterdir()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 12
    assert all(len(row["references"]) == 2 for row in rows)
    assert len({row["source"] for row in rows}) == len({(r["source"], r["text"]) for r in rows}) == 6
    found = run(
        *("evaluate", "dev.xml", "--task", "webnlg", "--base", base, "--beams", 1, "--metrics", "plain"),
        *("--unseen", "City", "--json"),
    )
    assert found.status == 0, found.stderr
    (scored,) = [piece for name, piece in pieces("run").items() if name.startswith("plain figures")]
    figures = {f"plain {name}": value for name, value in found.json["metrics"]["plain"].items()}
    assert scored["figures"]["measured"] == pytest.approx(figures, abs=0.01)


def test_long_sources_of_a_task_are_cut_alike_in_training_and_measuring(run: Any, base: str) -> None:
    """The window of the tiny model has 128 tokens, of a character each; documents have more."""
    for name, count in (("train.jsonl", 8), ("dev.jsonl", 9)):
        records = [
            {"document": f"{name[0]}{place} " + "long " * 60, "summary": f"sum {place}"}
            for place in range(count)
        ]
        Path(name).write_text("".join(json.dumps(record) + "\n" for record in records))
    files = ("--task", "xsum", "--train", "train.jsonl", "--dev", "dev.jsonl", "--metrics", "plain")
    options = (*SMALL, "--sizes", 4, "--subsets", 1, "--methods", "prefix", "--untuned")
    command = ("reproduce", "low-data", *files, "--base", base, *options)
    done = run(*command, "--max-length", 100, "--out", "run")
    assert done.status == 0, done.stderr
    assert "sources are cut after 30 tokens: 8 of 8 in training, 3 of 3 that choose, 4 of 4" in done.stderr
    head = json.loads(Path("run/results.jsonl").read_text().splitlines()[0])["settings"]
    assert head["decoding"]["min_new_tokens"] == 11
    (file,) = Path("run/outputs").iterdir()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert {len(row["source"]) for row in rows} == {30}
    refused = run(*command, "--max-length", 70, "--out", "other")
    assert refused.status == 2
    assert "--max-length is 70; a text of xsum takes up to 70 tokens" in refused.stderr
    assert not Path("other").exists()


def test_the_longest_example_is_what_the_task_needs() -> None:
    assert [max_length_of(task, None) for task in (None, "e2e", "webnlg", "scitldr")] == [512] * 4
    assert max_length_of("e2e", 40) == 40
    assert max_length_of("xsum", None) == 512 + 62 + 8
    assert max_length_of("cnn", None) == 1024 + 140 + 8


def test_metrics_may_be_added_to_a_run(run: Any, command: tuple[object, ...], finished: Outcome) -> None:
    before = pieces("run")
    added = run(*command, "--out", "run", "--untuned", "--metrics", "plain")
    assert added.status == 0, added.stderr
    assert "to make" not in added.stderr
    after = pieces("run")
    assert {name: piece for name, piece in after.items() if name in before} == before
    assert len(after) == 2 * len(before)
    Path("run/outputs/lora_n_4_subset_0_seed_0.jsonl").unlink()
    kept = [
        line for line in Path("run/results.jsonl").read_text().splitlines() if "plain figures" not in line
    ]
    Path("run/results.jsonl").write_text("\n".join(kept) + "\n")
    lost = run(*command, "--out", "run", "--untuned", "--metrics", "plain")
    assert lost.status == 1
    assert "lora_n_4_subset_0_seed_0.jsonl can't be read" in lost.stderr
    unknown = run(*command, "--out", "other", "--metrics", "blue")
    assert unknown.status == 2
    assert "no metrics 'blue'" in unknown.stderr
    assert not Path("other").exists()


def test_ablation_and_full_run_with_methods_of_their_own(run: Any, command: tuple[object, ...]) -> None:
    files = command[2:-4]
    done = run(
        *("reproduce", "ablation", *files, "--out", "run", "--untuned", "--others", ""),
        *("--methods", "prefix,length-1,mlp+start,embedding,infix,first-half"),
    )
    assert done.status == 0, done.stderr
    assert "| first half of the layers |" in Path("run/report.md").read_text()
    whole = run(
        "reproduce", "full", *command[2:], "--sizes", "all", "--subsets", 1, "--out", "full", "--untuned"
    )
    assert whole.status == 0, whole.stderr
    assert "| method | n = 20 |" in Path("full/report.md").read_text()


def test_a_page_of_less_shows_its_own_command(
    run: Any, command: tuple[object, ...], finished: Outcome
) -> None:
    less = run(*command, "--out", "run", "--untuned", "--sizes", "4", "--methods", "lora,prefix")
    assert less.status == 0, less.stderr
    page = Path("run/report.md").read_text()
    (line,) = [line for line in page.splitlines() if line.startswith("foreword reproduce")]
    assert "--methods lora,prefix" in line
    assert "--sizes 4 " in f"{line} "
    assert "1. `foreword reproduce low-data" in page
    Path("run").rename("first")
    assert run(*shlex.split(line)[1:]).status == 0
    again = Path("run/report.md").read_text()
    assert again.split("## Size and time")[0] == page.split("## Size and time")[0]


def test_a_folder_at_work_is_refused(run: Any, command: tuple[object, ...]) -> None:
    with alone(Path("run")):
        refused = run(*command, "--out", "run", "--untuned")
    assert refused.status == 1
    assert "another `foreword reproduce` is at work in run" in refused.stderr
    assert not Path("run/results.jsonl").exists()
    assert run(*command, "--out", "run", "--untuned").status == 0


def test_wrong_use_is_named_before_anything_is_written(run: Any, command: tuple[object, ...]) -> None:
    for option, value, message in (
        ("--methods", "prefix,lroa", "no method is called 'lroa'"),
        ("--sizes", "50,many", "--sizes is '50,many'; expected whole numbers"),
        ("--sizes", "21", "21 training examples are asked for, and there are 20"),
        ("--subsets", 0, "subsets is 0"),
        ("--subsets", 3, "3 subsets of 20 training examples are asked for, and there are no more"),
        ("--methods", "", "no methods; give at least one"),
        ("--max-length", 0, "max_length is 0"),
        ("--batch-size", 0, "batch_size is 0"),
        ("--dev-rows", 8, None),
    ):
        size = ("--sizes", "20") if value == 3 else ()
        refused = run(*command, "--out", "run", *size, option, value)
        assert refused.status == (1 if message is None else 2)
        assert (message or "have 9 different sources; 8 to choose by and 4 to measure on") in refused.stderr
        assert not Path("run").exists()


def test_defaults_name_methods_that_there_are() -> None:
    from foreword.research.baselines.registry import methods_named

    for kind in (LOW_DATA, FULL, ABLATION, EXTRAPOLATION):
        for chosen in (kind.full, kind.quick):
            assert methods_named(chosen["methods"].split(","))[0].name == "prefix"
            methods_named([name for name in chosen["others"].split(",") if name])


@pytest.mark.parametrize(
    ("kind", "steps", "expected"),
    [(FULL, None, 26_288), (FULL, 7, 7), (LOW_DATA, None, 2_000)],
)
def test_full_makes_five_epochs_however_many_steps_these_are(
    kind: Kind, steps: int | None, expected: int
) -> None:
    asked = dict.fromkeys(("patience", "batch_size", "max_length", "instruction", "task"))
    chosen = kind.chosen(
        {
            **dict.fromkeys(kind.full),
            **asked,
            **{"steps": steps, "quick": False, "untuned": False, "tuning_size": 100, "length": 10, "seed": 0},
        }
    )
    plan = make_plan(chosen, 42_061)
    assert plan.training({}, 0).steps_for(42_061) == expected
