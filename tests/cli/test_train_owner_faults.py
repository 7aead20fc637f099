"""foreword train --by owner: what is refused, and owners who fail."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from foreword import Example
from foreword.training.checkpoint import list_checkpoints
from support.mailboxes import OWNERS, write

QUICK = ("--length", 3, "--steps", 6, "--batch-size", 3)


@pytest.fixture
def mail(tmp_path: Path) -> str:
    return write(tmp_path / "mail.jsonl", OWNERS)


def test_an_owner_who_fails_costs_no_other_their_prefix(run: Any, base: str, mail: str) -> None:
    """Bob's checkpoints are damaged, all of them."""
    command = ("train", mail, "--by", "owner", "--base", base, "--out", "out", *QUICK)
    assert run(*command).status == 0
    for checkpoint in list_checkpoints(Path("out.run/@bob")):
        checkpoint.write_bytes(checkpoint.read_bytes()[:-9])
    Path("out/bob.prefix").unlink()
    Path("out/eve.prefix").unlink()
    done = run(*command)
    assert done.status == 1
    assert sorted(path.name for path in Path("out").iterdir()) == ["alice.prefix", "eve.prefix"]
    assert "3 owners: 1 trained, 1 done before, 1 failed" in done.stdout
    assert "DamagedCheckpoint" in done.stdout
    machine = run(*command, "--json")
    assert machine.status == 1
    assert [(one["owner"], one["type"]) for one in machine.json["failed"]] == [("bob", "DamagedCheckpoint")]
    assert machine.json["error"]["type"] == "OwnersFailed"
    assert [row["owner"] for row in machine.json["owners"]] == ["alice", "eve"]


def test_a_line_without_an_owner_is_named(run: Any, base: str, mail: str) -> None:
    with Path(mail).open("a") as file:
        file.write('{"source": "a", "target": "b"}\n')
    done = run("train", mail, "--by", "owner", "--base", base, "--out", "out", *QUICK)
    assert done.status == 1
    assert "line 18" in done.stderr
    assert "owner" in done.stderr
    assert not Path("out").exists()


@pytest.mark.parametrize("which", ["training", "dev"])
def test_a_line_with_null_for_its_owner_is_named(
    run: Any, base: str, mail: str, tmp_path: Path, which: str
) -> None:
    dev = write(tmp_path / "dev.jsonl", OWNERS)
    file = mail if which == "training" else dev
    with Path(file).open("a") as lines:
        lines.write('{"source": "a", "target": "b", "owner": null}\n')
    done = run("train", mail, "--by", "owner", "--dev", dev, "--base", base, "--out", "out", *QUICK)
    assert done.status == 1
    assert f"error: {file}, line 18: field 'owner' is null; expected the owner's name as text" in done.stderr
    assert not Path("out").exists()


def test_an_owner_with_a_conversation_beyond_the_window_fails_alone(run: Any, base: str) -> None:
    """Its messages are too many: nothing is left of them, and their roles alone take more."""
    rows = []
    for owner, turns in (("alice", 1), ("bob", 80), ("eve", 1)):
        asked = [{"role": "user", "content": "hi"}] * turns
        rows.append({"owner": owner, "messages": [*asked, {"role": "assistant", "content": "ho"}]})
    Path("chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run("train", "chat.jsonl", "--by", "owner", "--base", base, "--out", "out", *QUICK)
    assert done.status == 1, done.stderr
    assert sorted(path.name for path in Path("out").iterdir()) == ["alice.prefix", "eve.prefix"]
    (line,) = [line for line in done.stdout.splitlines() if "bob" in line]
    assert "WindowExceeded: example 0" in line
    assert "3 owners: 2 trained, 1 failed" in done.stdout


def test_an_owner_with_nothing_in_front_of_a_target_fails_alone(run: Any, base: str, tmp_path: Path) -> None:
    data = write(tmp_path / "mail.jsonl", {**OWNERS, "bob": [Example("", "x", "bob")]})
    done = run(
        *("train", data, "--by", "owner", "--base", base, "--out", "out", "--template", "raw", "--json"),
        *QUICK,
    )
    assert done.status == 1, done.stderr
    (failed,) = done.json["failed"]
    assert (failed["owner"], failed["type"]) == ("bob", "BadExamples")
    assert "the text in front of the target is empty" in failed["message"]
    assert [row["owner"] for row in done.json["owners"]] == ["alice", "eve"]


def test_a_name_with_a_line_break_or_a_terminal_code_is_shown_on_one_line(
    run: Any, base: str, tmp_path: Path
) -> None:
    name = "two\nlines\x1b[31m"
    long = [dataclasses.replace(example, source="s" * 300) for example in OWNERS["eve"]]
    data = write(tmp_path / "mail.jsonl", {name: long})
    dev = write(tmp_path / "dev.jsonl", {f"{name}?": OWNERS["eve"]})
    done = run("train", data, "--by", "owner", "--base", base, "--out", "out", "--dev", dev, *QUICK)
    assert done.status == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.strip().startswith("two")]
    assert line.split()[0] == r"two\nlines\x1b[31m"
    assert r"note: two\nlines\x1b[31m: training examples: 3 sources" in done.stderr
    assert r"get no prefix: two\nlines\x1b[31m?" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_names_of_owners_stay_within_the_folder(run: Any, base: str, tmp_path: Path) -> None:
    names = ["../up", "a/b", ".hidden", "größer", "a b", r"$\frac$", "李"]
    data = write(tmp_path / "mail.jsonl", {name: OWNERS["eve"] for name in names})
    done = run("train", data, "--by", "owner", "--base", base, "--out", "out", *QUICK, "--json")
    assert done.status == 0, done.stderr
    assert [row["owner"] for row in done.json["owners"]] == names
    files = {Path(row["prefix"]) for row in done.json["owners"]}
    assert len(files) == len(names)
    assert {path.resolve().parent for path in files} == {tmp_path / "out"}
    assert not any(path.name.startswith(".") for path in files)
    assert not (tmp_path / "up.prefix").exists()
    assert all((Path(row["run"]) / "curves.png").exists() for row in done.json["owners"])


def test_owners_that_would_share_a_file_or_have_none_are_refused_before_the_work(
    run: Any, tmp_path: Path
) -> None:
    for names, told in ((["Ann", "ann"], "differ only in capitals"), (["x" * 300], "too long a name")):
        data = write(tmp_path / "mail.jsonl", {name: OWNERS["eve"] for name in names})
        done = run("train", data, "--by", "owner", "--base", "nowhere", "--out", "out", *QUICK)
        assert done.status == 2
        assert told in done.stderr
    data = write(tmp_path / "mail.jsonl", {"a/b": OWNERS["eve"]})
    done = run("train", data, "--by", "owner", "--base", "nowhere", "--store", "kept", "--name", "m", *QUICK)
    assert done.status == 2
    assert "'a/b' has a / in the name" in done.stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--by", "owner"), "say where the owners' prefixes go"),
        (("--by", "owner", "--out", "out", "--name", "mail"), "say where the owners' prefixes go"),
        (("--by", "owner", "--out", "out", "--store", "kept"), "--out and --store are both given"),
        (("--by", "owner", "--out", "out", "--tensorboard"), "can't be used with --by owner"),
        (("--by", "owner", "--name", "m", "--checkpoint-dir", "c"), "keeps checkpoints itself"),
        (("--by", "owner", "--name", "a/b/c"), "a/b/c"),
        (("--out", "a.prefix", "--places", 3), "--places needs --by owner"),
        (("--out", "a.prefix", "--isolated"), "--isolated needs --by owner"),
        ((), "--out FILE"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    run: Any, mail: str, options: tuple[object, ...], told: str
) -> None:
    before = sorted(Path().rglob("*"))
    done = run("train", mail, "--base", "nowhere", *QUICK, *options)
    assert done.status == 2, done.stderr
    assert told in done.stderr
    assert [
        path for path in sorted(Path().rglob("*")) if path not in before and path.suffix == ".prefix"
    ] == []


def test_dev_examples_of_nobody_are_told(run: Any, base: str, mail: str, tmp_path: Path) -> None:
    dev = write(tmp_path / "dev.jsonl", {"alice": OWNERS["alice"][:2], "mallory": OWNERS["eve"][:1]})
    done = run("train", mail, "--by", "owner", "--base", base, "--out", "out", "--dev", dev, *QUICK, "--json")
    assert done.status == 0
    assert "1 owners have dev examples only, and get no prefix: mallory" in done.stderr
    losses = {row["owner"]: row["dev_loss"] for row in done.json["owners"]}
    assert losses["alice"] is not None
    assert losses["bob"] is losses["eve"] is None
