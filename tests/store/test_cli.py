"""foreword store, as a person and as a machine use it."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from foreword.cli.store import app
from foreword.errors import AlteredBlob, BadName, OutputExists, UnknownPrefix, UnknownStore, UsageError
from foreword.prefix import Prefix
from foreword.store.schema import REVISIONS


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("FOREWORD_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    def run(*arguments, status=0):
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == status, result.output
        return result.stdout

    return run


@pytest.fixture
def file(tmp_path, prefixes):
    path = tmp_path / "reviews.prefix"
    prefixes(1, labels={"note": "\x1b[31mred"}).save(path)
    return path


def test_every_command_has_help_with_an_example(run):
    import typer.main

    group = typer.main.get_command(app)
    paths = []
    for name, found in group.commands.items():
        paths += [(name, inner) for inner in found.commands] if hasattr(found, "commands") else [(name,)]
    assert len(paths) >= 16
    for path in paths:
        assert f"Example: foreword store {' '.join(path)}" in run(*path, "--help")


def test_a_slow_check_reads_what_is_due_and_says_what_is_bad(run, file, tmp_path):
    run("put", "alice/reviews", file)
    assert run("verify", "--every", "1") == "0 files, 0.0 MB read, 0 bad\n"
    (path,) = (tmp_path / "store" / "blobs").rglob("*.prefix")
    path.write_bytes(b"rotten")
    seen = json.loads(run("verify", "--every", "0", "--json", status=1))
    assert (seen["files"], len(seen["damaged"]), seen["missing"]) == (1, 1, [])
    with pytest.raises(UsageError, match="--every"):
        run("verify", "--every", "1", "--owner", "alice")


def test_usage_is_listed_by_day_and_fits_a_terminal(run, file, tmp_path):
    from foreword.store import PrefixStore
    from foreword.store.usage import add

    run("put", "alice/reviews", file)
    with PrefixStore(tmp_path / "store") as store:
        for day in ("2026-01-30", "2026-01-31"):
            store.database.write(
                lambda connection, day=day: add(connection, "alice", day, requests=2, prompt_tokens=31)
            )
    (row,) = json.loads(run("usage", "--since", "2026-01-31", "--json"))["usage"]
    assert (row["owner"], row["day"], row["requests"], row["prompt_tokens"]) == ("alice", "2026-01-31", 2, 31)
    shown = run("usage", "--owner", "alice", "--until", "2026-01-30")
    (line,) = [line for line in shown.splitlines() if "alice" in line]
    assert line.split()[:4] == ["2026-01-30", "alice", "2", "31"]
    assert "2026-01-31" not in shown
    assert max(map(len, map(str.rstrip, shown.splitlines()))) <= 80


def test_a_prefix_goes_in_is_shown_and_comes_out_the_same(run, file, tmp_path):
    version = json.loads(run("put", "alice/reviews", file, "--label", "production", "--json"))
    assert version["reference"] == "alice/reviews@1"
    assert version["labels"] == ["production"]
    listed = json.loads(run("list", "--json"))
    assert [v["digest"] for v in listed["prefixes"]] == [version["digest"]]
    assert listed["next"] is None
    assert "alice/reviews" in run("list")
    assert json.loads(run("show", "alice/reviews@production", "--json"))["versions"] == [1]
    run("get", "alice/reviews@production", "-o", "out.prefix")
    assert (tmp_path / "out.prefix").read_bytes() == file.read_bytes()
    with pytest.raises(OutputExists):
        run("get", "alice/reviews", "-o", "out.prefix")
    run("get", "alice/reviews", "-o", "out.prefix", "--overwrite")


def test_show_of_a_file_needs_no_store_and_prints_no_control_characters(run, file, tmp_path):
    facts = json.loads(run("show", file, "--json"))
    assert facts["digest"] == Prefix.load(file).digest
    assert (facts["length"], facts["base"]) == (3, "tiny")
    shown = run("show", "reviews.prefix")
    assert "2 layers x 1 key/value heads x 4" in shown
    assert "\x1b" not in shown
    assert not (tmp_path / "store").exists()


def test_labels_copies_shares_and_deletions(run, file):
    run("put", "alice/reviews", file)
    run("label", "alice/reviews@1", "production")
    run("copy", "alice/reviews@production", "bob/reviews")
    run("share", "alice/reviews", "--with", "carol")
    assert "alice/reviews" in run("list", "--as", "carol")
    run("share", "alice/reviews", "--with", "carol", "--remove")
    run("share", "bob/reviews", "--public")
    assert [v["owner"] for v in json.loads(run("list", "--as", "carol", "--json"))["prefixes"]] == ["bob"]
    run("label", "alice/reviews", "production", "--remove")
    assert json.loads(run("delete", "alice/reviews@1", "--json")) == {"deleted": ["alice/reviews@1"]}
    run("delete", "bob/reviews", "--all")
    assert json.loads(run("gc", "--grace", "0", "--dry-run", "--json"))["blobs"] == 1
    assert json.loads(run("gc", "--grace", "0", "--json"))["blobs"] == 1
    with pytest.raises(UnknownPrefix):
        run("show", "alice/reviews")


def test_pages_follow_each_other(run, file):
    for name in ("a/x", "a/y", "a/z"):
        run("put", name, file)
    page = json.loads(run("list", "--limit", "2", "--json"))
    assert page["next"] == "a/y"
    rest = json.loads(run("list", "--limit", "2", "--after", page["next"], "--json"))
    assert [v["name"] for v in rest["prefixes"]] == ["z"]


def test_keys_are_shown_once(run):
    made = json.loads(run("keys", "make", "alice", "--role", "reader", "--json"))
    listed = run("keys", "list", "--json") + run("keys", "list")
    assert made["id"] in listed
    assert made["key"] not in listed
    assert made["key"][16:] not in listed
    assert json.loads(run("keys", "revoke", made["id"], "--json"))["revoked"]
    assert "make key" in run("audit")
    assert json.loads(run("audit", "--owner", "alice", "--json"))["entries"][0]["action"] == "revoke key"


def test_export_import_forget(run, file, tmp_path):
    run("put", "alice/reviews", file)
    run("export", "alice", "-o", "alice.zip")
    assert run("forget", "alice", "--yes").startswith("owner")
    assert json.loads(run("import", "alice.zip", "--json"))["versions"] == 1
    assert json.loads(run("import", "alice.zip", "--owner", "bob", "--json"))["owner"] == "bob"
    run("forget", "alice", status=1)  # nobody there to confirm
    assert json.loads(run("forget", "bob", "--yes", "--json"))["versions"] == 1


def test_verify_ends_with_one_when_a_file_is_bad(run, file, tmp_path):
    run("put", "alice/reviews", file)
    assert json.loads(run("verify", "--json")) == {"versions": 1, "size": file.stat().st_size, "problems": []}
    (blob,) = (tmp_path / "store" / "blobs").rglob("*.prefix")
    blob.write_bytes(b"x")
    assert json.loads(run("verify", "--json", status=1))["problems"][0]["fault"] == "altered"
    assert "altered" in run("verify", status=1)
    with pytest.raises(AlteredBlob):
        run("get", "alice/reviews", "-o", "out.prefix")
    assert not (tmp_path / "out.prefix").exists()


def test_wrong_use_and_typos_make_no_store(run, file, tmp_path):
    run("list", "--no-such-option", status=2)
    run("no-such-command", status=2)
    for arguments in (["list"], ["show", "a/x"], ["verify"], ["gc"], ["migrate"]):
        with pytest.raises(UnknownStore):
            run(*arguments)
    assert not (tmp_path / "store").exists()
    run("put", "a/x", file)
    for arguments in (["list", "--limit", "0"], ["share", "a/x"], ["delete", "a/x"], ["show", "../x@1"]):
        with pytest.raises(UsageError):
            run(*arguments)
    with pytest.raises(BadName):
        run("put", "a/y", file, "--label", "latest")
    assert "a/y" not in run("list")


def test_migrate_says_that_there_is_nothing_to_do(run, file):
    run("put", "a/x", file)
    assert json.loads(run("migrate", "--json")) == {"before": REVISIONS[-1], "after": REVISIONS[-1]}


def test_help_needs_neither_torch_nor_a_database_library():
    program = (
        "import sys, foreword.cli.store as s; "
        "print([m for m in ('torch', 'sqlalchemy', 'alembic', 'fsspec', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_statuses_are_those_of_the_whole_program(file, tmp_path):
    def status(*arguments):
        return subprocess.run(
            [sys.executable, "-c", "from foreword.cli import main; main()", "store", *map(str, arguments)],
            capture_output=True,
            check=False,
        ).returncode

    place = ("--store", tmp_path / "store")
    assert status("put", "a/x", file, *place) == 0
    assert status("show", "a/y", *place) == 1
    assert status("list", "--limit", "0", *place) == 2
    assert status("put", "../x", file, *place) == 2
    next((tmp_path / "store" / "blobs").rglob("*.prefix")).unlink()
    assert status("verify", *place) == 1


def test_without_the_database_library_files_are_shown_and_the_rest_says_what_to_install(file):
    program = (
        "import sys; sys.modules['sqlalchemy'] = None; sys.argv[0] = 'foreword'\n"
        "from foreword.cli import main; main()"
    )

    def run(*arguments):
        command = [sys.executable, "-c", program, "store", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert Prefix.load(file).digest in run("show", file).stdout
    listed = run("list")
    assert listed.returncode == 2
    assert "foreword[store]" in listed.stderr
    assert "Traceback" not in listed.stderr
