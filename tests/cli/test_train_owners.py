"""foreword train --by owner: one run, a prefix for each owner."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from foreword import BaseModel, Prefix, PrefixStore, train, train_many
from foreword.examples import read_examples
from foreword.training.checkpoint import list_checkpoints
from foreword.training.trainer import build_trainer
from support.mailboxes import OWNERS, write

QUICK = ("--length", 3, "--steps", 6, "--batch-size", 3)
SETTINGS: dict[str, Any] = {"length": 3, "steps": 6, "batch_size": 3}


def same(one: Prefix, two: Prefix) -> bool:
    return all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)


@pytest.fixture
def mail(tmp_path: Path) -> str:
    return write(tmp_path / "mail.jsonl", OWNERS)


def test_each_owner_gets_the_prefix_that_train_many_gives(
    run: Any, base: str, mail: str, tmp_path: Path
) -> None:
    dev = write(tmp_path / "dev.jsonl", {owner: examples[:2] for owner, examples in OWNERS.items()})
    done = run(
        *("train", mail, "--by", "owner", "--base", base, "--out", "out", "--dev", dev, *QUICK),
        *("--label", "task=mail", "--licence", "MIT", "--seed", 4),
    )
    assert done.status == 0, done.stderr
    expected = train_many(
        BaseModel.load(base), OWNERS, dev={o: e[:2] for o, e in OWNERS.items()}, seed=4, **SETTINGS
    )
    assert sorted(path.name for path in Path("out").iterdir()) == ["alice.prefix", "bob.prefix", "eve.prefix"]
    for owner, prefix in expected.items():
        found = Prefix.load(Path("out") / f"{owner}.prefix")
        assert same(found, prefix)
        assert (found.origin, found.template) == (prefix.origin, prefix.template)
        assert (found.labels, found.licence) == ({"task": "mail"}, "MIT")
    assert not same(expected["alice"], expected["bob"])


def test_isolated_owners_get_what_train_gives_them_alone(
    run: Any, base: str, mail: str, tmp_path: Path
) -> None:
    options = ("--base", base, *QUICK, "--seed", 3)
    assert run("train", mail, "--by", "owner", "--isolated", "--out", "out", *options).status == 0
    for owner, examples in OWNERS.items():
        alone = write(tmp_path / f"{owner}.jsonl", {owner: examples})
        assert run("train", alone, "--out", f"{owner}.prefix", *options).status == 0
        one, two = Prefix.load(f"out/{owner}.prefix"), Prefix.load(f"{owner}.prefix")
        assert same(one, two)
        assert one.origin == two.origin


def test_prefixes_go_into_a_store_under_their_owners(run: Any, base: str, mail: str) -> None:
    command = ("train", mail, "--by", "owner", "--base", base, "--store", "kept", "--name", "mail", *QUICK)
    assert run(*command).status == 0
    expected = train_many(BaseModel.load(base), OWNERS, **SETTINGS)
    with PrefixStore("kept") as store:
        for owner, prefix in expected.items():
            assert same(store.as_owner(owner).get(f"{owner}/mail"), prefix)
    again = run(*command, "--json")
    assert [row["prefix"] for row in again.json["owners"]] == ["alice/mail@1", "bob/mail@1", "eve/mail@1"]
    assert all(row["before"] for row in again.json["owners"])
    # Checkpoints are the owner's, and go with them.
    assert list(Path("kept").rglob("*.checkpoint"))
    assert run("store", "forget", "alice", "--store", "kept", "--yes").status == 0
    left = [str(path) for path in Path("kept").rglob("*") if "alice" in str(path)]
    assert left == []


def test_a_run_that_was_killed_goes_on_and_ends_where_it_would_have(
    run: Any, start: Any, base: str, tmp_path: Path
) -> None:
    """One owner done, one in the middle, one not begun: with one place, they come one after another."""
    owners = {"alice": OWNERS["alice"][:3], "bob": OWNERS["bob"], "eve": OWNERS["eve"]}
    data = write(tmp_path / "mail.jsonl", owners)
    command = ("train", data, "--by", "owner", "--base", base, "--length", 3, "--batch-size", 2)
    command = (*command, "--places", 1, "--checkpoint-every", 5, "--epochs", 60)
    process = start(*command, "--out", "out")
    while not list_checkpoints(Path("out.run/@bob")):
        assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert Path("out/alice.prefix").exists()
    assert not Path("out/bob.prefix").exists()
    made = Path("out/alice.prefix").read_bytes()

    resumed = run(*command, "--out", "out")
    assert resumed.status == 0, resumed.stderr
    assert "1 owners are done already, 1 go on from their checkpoints" in resumed.stderr
    assert "3 owners: 2 trained, 1 done before" in resumed.stdout
    assert Path("out/alice.prefix").read_bytes() == made
    assert run(*command, "--out", "unbroken").status == 0
    for owner in owners:
        assert same(Prefix.load(f"out/{owner}.prefix"), Prefix.load(f"unbroken/{owner}.prefix"))


def test_owners_are_found_in_the_field_that_is_named(run: Any, base: str, tmp_path: Path) -> None:
    data = write(tmp_path / "mail.jsonl", OWNERS, field="user")
    assert run("train", data, "--by", "owner", "--base", base, "--out", "out", *QUICK).status == 1
    done = run(
        "train", data, "--by", "owner", "--owner-field", "user", "--base", base, "--out", "out", *QUICK
    )
    assert done.status == 0, done.stderr
    assert len(list(Path("out").iterdir())) == 3


def test_owners_who_are_done_are_not_trained_again(
    run: Any, base: str, mail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("train", mail, "--by", "owner", "--base", base, "--out", "out", *QUICK)
    assert run(*command).status == 0
    Path("out/eve.prefix").unlink()
    built: list[int] = []

    def build(*arguments: Any, **more: Any) -> Any:
        built.append(len(arguments[2]))
        return build_trainer(*arguments, **more)

    monkeypatch.setattr(sys.modules["foreword.training.train_many"], "build_trainer", build)
    assert run(*command).status == 0
    assert built == [len(OWNERS["eve"])]
    assert run(*command).status == 0
    assert len(built) == 1


def test_what_others_made_is_replaced_only_when_asked(run: Any, base: str, mail: str) -> None:
    command = ("train", mail, "--by", "owner", "--base", base, "--out", "out", *QUICK)
    Path("out").mkdir()
    Path("out/bob.prefix").write_bytes(b"precious")
    refused = run(*command)
    assert refused.status == 1
    assert "out/bob.prefix exists already" in refused.stderr
    assert [path.name for path in Path("out").iterdir()] == ["bob.prefix"]
    assert Path("out/bob.prefix").read_bytes() == b"precious"
    assert run(*command, "--overwrite").status == 0
    first = Prefix.load("out/bob.prefix")

    other = run(*command, "--learning-rate", 0.001)
    assert other.status == 1
    assert "learning_rate" in other.stderr
    assert Prefix.load("out/bob.prefix").digest == first.digest
    anew = run(*command, "--learning-rate", 0.001, "--overwrite")
    assert anew.status == 0
    assert "start anew" in anew.stderr
    assert not same(Prefix.load("out/bob.prefix"), first)


def test_owners_start_from_a_shared_prefix_when_told(run: Any, base: str, mail: str) -> None:
    assert run("train", mail, "--base", base, "--out", "pooled.prefix", *QUICK).status == 0
    command = ("train", mail, "--by", "owner", "--base", base, "--out", "out", "--start", "pooled.prefix")
    assert run(*command, *QUICK).status == 0
    expected = train_many(BaseModel.load(base), OWNERS, start=Prefix.load("pooled.prefix"), **SETTINGS)
    assert all(same(Prefix.load(f"out/{owner}.prefix"), expected[owner]) for owner in OWNERS)


def test_people_see_who_is_done_and_rows_are_whole_in_a_pipe(run: Any, base: str, tmp_path: Path) -> None:
    name = "a-mailbox-with-a-name-that-is-longer-than-most-terminals-are-wide@example.com"
    data = write(tmp_path / "mail.jsonl", {name: OWNERS["eve"], "bob": OWNERS["bob"]})
    done = run("train", data, "--by", "owner", "--base", base, "--out", "out", *QUICK)
    (line,) = [line for line in done.stdout.splitlines() if name in line]
    assert line.split() == [name, "3", "6", f"out/{name.replace('@', '%40')}.prefix"]
    assert "owners 2/2 done, 0 running, 0 waiting" in done.stderr
    assert done.stdout.splitlines()[-1].startswith("next: foreword generate --prefix out/")


def test_examples_of_one_owner_equal_those_in_the_file(mail: str) -> None:
    """The reading that all of the above rests on."""
    examples = read_examples(mail, fields={"owner": "owner"})
    assert [e.target for e in examples if e.owner == "bob"] == [e.target for e in OWNERS["bob"]]


def test_one_prefix_for_all_is_another_thing(run: Any, base: str, mail: str) -> None:
    assert run("train", mail, "--base", base, "--out", "a.prefix", *QUICK).status == 0
    everything = [example for example in read_examples(mail)]
    assert same(Prefix.load("a.prefix"), train(BaseModel.load(base), everything, **SETTINGS))
