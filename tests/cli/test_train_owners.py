"""foreword train --by owner: one run, a prefix for each owner."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from foreword import BaseModel, Example, Prefix, PrefixStore, train, train_many
from foreword.examples import read_examples
from foreword.training.checkpoint import list_checkpoints
from stand_ins import random_examples

QUICK = ("--length", 3, "--steps", 6, "--batch-size", 3)
SETTINGS: dict[str, Any] = {"length": 3, "steps": 6, "batch_size": 3}
OWNERS = {
    owner: [dataclasses.replace(example, owner=owner) for example in random_examples(count, seed=count)]
    for owner, count in {"alice": 9, "bob": 5, "eve": 3}.items()
}


def same(one: Prefix, two: Prefix) -> bool:
    return all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)


def write(path: Path, owners: Mapping[str, Sequence[Example]], field: str = "owner") -> str:
    """Rows of all owners in turns."""
    rows = [
        {field: owner, "source": examples[n].source, "target": examples[n].target}
        for n in range(max(map(len, owners.values())))
        for owner, examples in owners.items()
        if n < len(examples)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.name


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
    assert (
        run("train", mail, "--by", "owner", "--isolated", "--base", base, "--out", "out", *QUICK).status == 0
    )
    for owner, examples in OWNERS.items():
        alone = write(tmp_path / f"{owner}.jsonl", {owner: examples})
        assert run("train", alone, "--base", base, "--out", f"{owner}.prefix", *QUICK).status == 0
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


def test_owners_are_found_in_the_field_that_is_named(run: Any, base: str, tmp_path: Path) -> None:
    data = write(tmp_path / "mail.jsonl", OWNERS, field="user")
    assert run("train", data, "--by", "owner", "--base", base, "--out", "out", *QUICK).status == 1
    done = run(
        "train", data, "--by", "owner", "--owner-field", "user", "--base", base, "--out", "out", *QUICK
    )
    assert done.status == 0, done.stderr
    assert len(list(Path("out").iterdir())) == 3


def test_names_of_owners_stay_within_the_folder(run: Any, base: str, tmp_path: Path) -> None:
    names = ["../up", "a/b", ".hidden", "größer", "a b"]
    data = write(tmp_path / "mail.jsonl", {name: OWNERS["eve"] for name in names})
    done = run("train", data, "--by", "owner", "--base", base, "--out", "out", *QUICK, "--json")
    assert done.status == 0, done.stderr
    assert [row["owner"] for row in done.json["owners"]] == names
    files = {Path(row["prefix"]) for row in done.json["owners"]}
    assert len(files) == 5
    assert {path.resolve().parent for path in files} == {tmp_path / "out"}
    assert not any(path.name.startswith(".") for path in files)
    assert not (tmp_path / "up.prefix").exists()


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
        (("--by", "owner", "--out", "out", "--isolated", "--pass-tokens", 9), "--isolated and --pass-tokens"),
        (("--by", "owner", "--out", "out", "--accumulate", 2), "lower --pass-tokens"),
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


def test_dev_examples_of_nobody_are_told(run: Any, base: str, mail: str, tmp_path: Path) -> None:
    dev = write(tmp_path / "dev.jsonl", {"alice": OWNERS["alice"][:2], "mallory": OWNERS["eve"][:1]})
    done = run("train", mail, "--by", "owner", "--base", base, "--out", "out", "--dev", dev, *QUICK, "--json")
    assert done.status == 0
    assert "1 owners have dev examples only, and get no prefix: mallory" in done.stderr
    losses = {row["owner"]: row["dev_loss"] for row in done.json["owners"]}
    assert losses["alice"] is not None
    assert losses["bob"] is losses["eve"] is None


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
