"""Prefixes on the Hugging Face Hub, against a stand-in on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from typer.testing import CliRunner

import foreword
from foreword import Prefix
from foreword.cli import exports, imports
from foreword.errors import (
    BadPrefix,
    ChecksumMismatch,
    DownloadFailed,
    ForewordError,
    HubRefused,
    OutputExists,
    UnknownPrefix,
    UploadFailed,
    UsageError,
)
from foreword.interop import export_hub, import_hub
from support import hub_stand_in
from support.hub_stand_in import Hub, Repository

REPOSITORY = "alice/reviews"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with hub_stand_in.running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("HF_TOKEN", "hf_right")
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
        # Large files go by LFS here: the newer way needs a storage service of its own.
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        # Waiting between the hub library's own attempts is not what is tested here.
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
        yield hub


# -- there and back ------------------------------------------------------------------------------


@pytest.mark.parametrize("large", [(".safetensors",), ()])
def test_a_prefix_that_is_pushed_and_pulled_is_the_same_file(
    large: tuple[str, ...], hub: Hub, plain_prefix: Prefix
) -> None:
    hub.large_suffixes = large
    published = export_hub(plain_prefix, REPOSITORY)
    fetched = import_hub(REPOSITORY)
    assert fetched.content == plain_prefix.to_bytes()
    assert fetched.prefix == plain_prefix
    assert fetched.revision == published.revision
    assert set(hub.files(REPOSITORY)) == {"prefix.safetensors", "README.md"}


def test_both_files_arrive_in_one_commit(hub: Hub, plain_prefix: Prefix) -> None:
    export_hub(plain_prefix, REPOSITORY)
    assert len(hub.repositories[REPOSITORY].commits) == 2  # the empty one, and ours


def test_an_older_revision_can_be_had(hub: Hub, plain_prefix: Prefix) -> None:
    first = export_hub(plain_prefix, REPOSITORY)
    newer = plain_prefix.relabel(labels={"note": "second"})
    export_hub(newer, REPOSITORY, overwrite=True)
    assert import_hub(REPOSITORY).prefix == newer
    assert import_hub(REPOSITORY, revision=first.revision).prefix == plain_prefix


def test_a_prefix_that_is_there_is_replaced_only_when_asked(hub: Hub, plain_prefix: Prefix) -> None:
    export_hub(plain_prefix, REPOSITORY)
    before = dict(hub.files(REPOSITORY))
    with pytest.raises(OutputExists, match="--overwrite"):
        export_hub(plain_prefix.relabel(labels={}), REPOSITORY)
    assert hub.files(REPOSITORY) == before


def test_somebody_who_was_faster_is_not_overwritten(
    hub: Hub, plain_prefix: Prefix, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories[REPOSITORY] = Repository()
    theirs = {"prefix.safetensors": b"theirs"}

    def meanwhile(self: Any, *arguments: Any, **named: Any) -> Any:
        hub.repositories[REPOSITORY].commits.append(("2" * 40, theirs))
        return create_commit(self, *arguments, **named)

    create_commit = HfApi.create_commit
    monkeypatch.setattr(HfApi, "create_commit", meanwhile)
    with pytest.raises(UploadFailed, match="412"):
        export_hub(plain_prefix, REPOSITORY)
    assert hub.files(REPOSITORY) == theirs


def test_private_means_private(hub: Hub, plain_prefix: Prefix) -> None:
    assert export_hub(plain_prefix, REPOSITORY, private=True).private
    assert hub.repositories[REPOSITORY].private
    assert not export_hub(plain_prefix, "alice/open").private


def test_nothing_is_sent_to_a_public_repository_when_private_was_asked_for(
    hub: Hub, plain_prefix: Prefix
) -> None:
    hub.repositories[REPOSITORY] = Repository()
    with pytest.raises(HubRefused, match="public"):
        export_hub(plain_prefix, REPOSITORY, private=True)
    assert hub.files(REPOSITORY) == {}
    assert hub.large_files == {}


# -- what is sent --------------------------------------------------------------------------------


@pytest.mark.parametrize("agent_of_another_kind", [False, True])
def test_files_and_token_are_sent_and_nothing_about_this_machine(
    agent_of_another_kind: bool, hub: Hub, plain_prefix: Prefix, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the hub library's own telemetry is on."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", agent_of_another_kind)
    export_hub(plain_prefix, REPOSITORY)
    import_hub(REPOSITORY)
    usual = {
        *("host", "accept", "accept-encoding", "connection", "content-length", "content-type"),
        *("transfer-encoding", "user-agent", "authorization", "x-amzn-trace-id", "range"),
        "x-hf-download-counter",  # asks the hub not to count this request a second time
    }
    for request in hub.requests:
        assert set(request.headers) <= usual, request.line
        if request.line.startswith("PUT /lfs/"):  # the storage's own address: without token or name
            assert "authorization" not in request.headers
            continue
        assert request.headers["user-agent"] == f"foreword/{foreword.__version__}", request.line
        assert request.headers["authorization"] == "Bearer hf_right"


def test_without_a_token_none_is_sent(
    hub: Hub, plain_prefix: Prefix, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_hub(plain_prefix, REPOSITORY)
    hub.requests.clear()
    monkeypatch.delenv("HF_TOKEN")
    assert import_hub(REPOSITORY).prefix == plain_prefix
    assert not any("authorization" in request.headers for request in hub.requests)


def test_the_token_that_the_hub_library_keeps_is_used(
    hub: Hub, plain_prefix: Prefix, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").write_text("hf_right")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    export_hub(plain_prefix, REPOSITORY, private=True)
    assert import_hub(REPOSITORY).prefix == plain_prefix


# -- what goes wrong -----------------------------------------------------------------------------


def pulled(tmp_path: Path, error: type[ForewordError], told: str) -> None:
    """The command fails as it should, and writes nothing."""
    out = tmp_path / "out" / "got.prefix"
    out.parent.mkdir()
    result = CliRunner().invoke(imports.app, ["hub", REPOSITORY, "--out", str(out)])
    assert isinstance(result.exception, error), result.exception
    assert told in str(result.exception)
    assert list(out.parent.iterdir()) == []


def test_a_repository_that_is_not_there_is_unknown(hub: Hub, tmp_path: Path) -> None:
    pulled(tmp_path, UnknownPrefix, REPOSITORY)


def test_a_private_repository_is_refused_without_a_token(
    hub: Hub, plain_prefix: Prefix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_hub(plain_prefix, REPOSITORY, private=True)
    monkeypatch.delenv("HF_TOKEN")
    pulled(tmp_path, HubRefused, "HF_TOKEN")


def test_a_repository_without_a_prefix_is_unknown(hub: Hub, tmp_path: Path) -> None:
    hub.repositories[REPOSITORY] = Repository()
    pulled(tmp_path, UnknownPrefix, "prefix.safetensors")


def test_a_revision_that_is_not_there_is_unknown(hub: Hub, plain_prefix: Prefix) -> None:
    export_hub(plain_prefix, REPOSITORY)
    with pytest.raises(UnknownPrefix, match="v2"):
        import_hub(REPOSITORY, revision="v2")


@pytest.mark.parametrize("part", ["GET /api/models", "/resolve/"])
def test_a_hub_that_fails_is_told_apart_from_one_that_has_nothing(
    part: str, hub: Hub, plain_prefix: Prefix, tmp_path: Path
) -> None:
    export_hub(plain_prefix, REPOSITORY)
    hub.fails[part] = 500
    pulled(tmp_path, DownloadFailed, "500")


def test_half_a_file_is_not_kept(hub: Hub, plain_prefix: Prefix, tmp_path: Path) -> None:
    export_hub(plain_prefix, REPOSITORY)
    hub.cut = True
    pulled(tmp_path, DownloadFailed, REPOSITORY)


def test_a_file_that_is_not_the_one_listed_is_not_kept(
    hub: Hub, plain_prefix: Prefix, tmp_path: Path
) -> None:
    export_hub(plain_prefix, REPOSITORY)
    content = plain_prefix.to_bytes()
    hub.damaged = content[:-1] + bytes([content[-1] ^ 1])  # same size, one bit
    pulled(tmp_path, ChecksumMismatch, "prefix.safetensors")


def test_a_file_that_is_no_prefix_is_not_kept(hub: Hub, tmp_path: Path) -> None:
    hub.repositories[REPOSITORY] = Repository()
    hub.repositories[REPOSITORY].commits.append(("1" * 40, {"prefix.safetensors": b"something else"}))
    pulled(tmp_path, BadPrefix, "not a prefix file")


def test_an_unreachable_hub_is_a_failed_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    pulled(tmp_path, DownloadFailed, "could not be fetched")


@pytest.mark.parametrize("token", ["hf_wrong", None])
def test_pushing_needs_the_right_token(
    token: str | None, hub: Hub, plain_prefix: Prefix, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubRefused, match="HF_TOKEN"):
        export_hub(plain_prefix, REPOSITORY)
    assert hub.repositories == {}


@pytest.mark.parametrize(("status", "error"), [(403, HubRefused), (404, UploadFailed), (500, UploadFailed)])
@pytest.mark.parametrize("part", ["/preupload/", "/lfs/objects/batch", "PUT /lfs/", "/commit/"])
def test_a_push_that_fails_changes_no_file(
    part: str, status: int, error: type[ForewordError], hub: Hub, plain_prefix: Prefix
) -> None:
    hub.fails[part] = status
    with pytest.raises(error, match=REPOSITORY):
        export_hub(plain_prefix, REPOSITORY)
    assert hub.files(REPOSITORY) == {}
    hub.fails.clear()
    export_hub(plain_prefix, REPOSITORY)
    assert import_hub(REPOSITORY).prefix == plain_prefix


@pytest.mark.parametrize("name", ["reviews", "a/b/c", "../x", "alice/", "https://hub/alice/x"])
def test_names_that_are_no_repository_are_wrong_use(name: str, hub: Hub, plain_prefix: Prefix) -> None:
    for call in (lambda: import_hub(name), lambda: export_hub(plain_prefix, name)):
        with pytest.raises(UsageError, match="owner/name"):
            call()
    assert hub.requests == []


# -- the commands --------------------------------------------------------------------------------


def test_the_commands_push_and_pull(hub: Hub, plain_prefix: Prefix, tmp_path: Path) -> None:
    mine, theirs = tmp_path / "mine.prefix", tmp_path / "theirs.prefix"
    plain_prefix.save(mine)
    pushed = CliRunner().invoke(exports.app, ["hub", str(mine), REPOSITORY, "--private", "--json"])
    assert pushed.exit_code == 0, pushed.output
    assert json.loads(pushed.stdout)["private"] is True
    got = CliRunner().invoke(imports.app, ["hub", REPOSITORY, "--out", str(theirs), "--json"])
    assert got.exit_code == 0, got.output
    assert json.loads(got.stdout)["digest"] == plain_prefix.digest
    assert theirs.read_bytes() == mine.read_bytes()
    again = CliRunner().invoke(imports.app, ["hub", REPOSITORY, "--out", str(theirs)])
    assert isinstance(again.exception, OutputExists)
