"""Snapshots from the Hugging Face Hub, in the hub library's own cache.

One quick question comes first; only a hub that answers it is asked for files. Address, token,
offline mode and cache folder follow the usual variables (HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE,
HF_HOME).
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword.errors import CannotRead, CannotWrite, ChecksumMismatch, DownloadFailed
from foreword.models.cache_dir import Notify, mismatch, sha256_of
from foreword.models.fingerprint import weight_files, weight_names

ANSWER_WITHIN_SECONDS = 5.0

# Weights come apart from these, by name: only the safetensors that transformers loads. The other formats on
# the hub are pickles, which run code when loaded, and many repositories have their weights a second time
# (consolidated.safetensors, model.fp16.safetensors). `.model` and `.spm` are vocabularies of SentencePiece.
WANTED = ["*.json", "*.txt", "*.jinja", "*.model", "*.spm", "LICENSE*", "NOTICE*"]
UNWANTED = ["*/*"]  # subfolders hold exports for other runtimes


class NotOnHub(DownloadFailed):
    """The hub answers that it has no such model, or none that this user may see."""


@dataclass(frozen=True)
class ResolvedModel:
    """A base model on this disk.

    Attributes:
        path: folder with config.json, safetensors and tokenizer.
        name: the alias, hub id or folder that was asked for.
        revision: commit on the hub, or digest of the GGUF file; None for a folder of the user's.
        licence: licence of the weights where the source tells.
        source: where the files came from, for people.
    """

    path: Path
    name: str
    revision: str | None
    licence: str | None
    source: str


def snapshot(hub_id: str, revision: str | None, notify: Notify) -> ResolvedModel:
    """Download `hub_id`, or find it in the hub library's cache when the hub does not answer.

    Raises:
        NotOnHub: no such model or revision.
        DownloadFailed: the hub did not answer, refused, or has no safetensors.
        ChecksumMismatch: a file is not the one that the hub describes; it was deleted.
        CannotWrite: no space or right in the hub library's cache.
    """
    try:
        info = _ask(hub_id, revision)
    except NotOnHub:
        raise
    except DownloadFailed as answer:
        if kept := already_here(hub_id, revision):
            notify(f"{answer}; using the copy of {hub_id} in the hub's cache")
            return kept
        raise
    names = [file.rfilename for file in info.siblings or []]
    if not any(name.endswith(".safetensors") and "/" not in name for name in names):
        raise DownloadFailed(f"{hub_id} has no weights as safetensors; ask its owner to add them")
    notify(f"downloading {hub_id} from the Hugging Face Hub")
    # Asked for by its name, not by the commit, so that the hub's cache remembers what the name meant.
    path = _fetch(hub_id, revision, WANTED)
    if path.name != info.sha:  # the branch moved in between
        info = _ask(hub_id, path.name)
    # Which files the weights are is known once the index is here; they are of the commit that it is of.
    _fetch(hub_id, path.name, _weights(path, info))
    _check_files(path, info)
    licence = getattr(info.card_data, "license", None) if info.card_data else None
    return _model(path, hub_id, str(licence) if licence else None)


def _ask(hub_id: str, revision: str | None) -> Any:
    """Commit, files and licence of a model, within a few seconds."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return HfApi(endpoint=_endpoint()).model_info(
            hub_id, revision=revision, timeout=ANSWER_WITHIN_SECONDS, files_metadata=True
        )
    except GatedRepoError as error:
        raise DownloadFailed(f"{hub_id} is gated: {_first_lines(error)}") from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise NotOnHub(f"the hub has no {hub_id} for you: {_first_lines(error)}") from error
    except OfflineModeIsEnabled as error:
        raise DownloadFailed("the hub was not asked: HF_HUB_OFFLINE is set") from error
    except Exception as error:
        # Not narrower: the hub library has changed the HTTP library, and so its errors, before.
        raise DownloadFailed(
            f"the hub did not answer: {type(error).__name__}: {_first_lines(error)}"
        ) from error


def _weights(path: Path, info: Any) -> list[str]:
    """Names of the files of weights, of which a second copy is not fetched. Raises DownloadFailed: none."""
    try:
        return weight_names(path, {file.rfilename for file in info.siblings or []})
    except CannotRead as error:
        raise DownloadFailed(f"{info.id}: {error}") from error


def _download(hub_id: str, revision: str | None, wanted: list[str], **options: Any) -> Path:
    """The folder in the hub library's cache that has those files of a model."""
    from huggingface_hub import snapshot_download

    options |= {"allow_patterns": wanted, "ignore_patterns": UNWANTED}
    return Path(snapshot_download(hub_id, revision=revision, **options))


def _fetch(hub_id: str, revision: str | None, wanted: list[str]) -> Path:
    try:
        return _download(hub_id, revision, wanted, etag_timeout=ANSWER_WITHIN_SECONDS, endpoint=_endpoint())
    except Exception as error:
        refused = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
        if isinstance(error, OSError) and error.errno in refused:
            raise CannotWrite(
                f"the hub's cache can't be written: {error.strerror}; point HF_HOME to another folder"
            ) from error
        raise DownloadFailed(
            f"the download of {hub_id} broke off: {type(error).__name__}: {_first_lines(error)}"
        ) from error


def already_here(hub_id: str, revision: str | None) -> ResolvedModel | None:
    """The whole copy in the hub library's cache, or None; nobody is asked."""
    try:
        path = _download(hub_id, revision, WANTED, local_files_only=True)
        weight_files(path)
    except Exception:  # whatever the reason, there is no copy to use
        return None
    return _model(path, hub_id, None) if (path / "config.json").is_file() else None


def _model(path: Path, hub_id: str, licence: str | None) -> ResolvedModel:
    return ResolvedModel(path, hub_id, path.name, licence, f"Hugging Face Hub: {hub_id}")


def _check_files(path: Path, info: Any) -> None:
    """Compare with the digests that the hub lists; its library compares sizes only."""
    for file in info.siblings or []:
        expected = getattr(file.lfs, "sha256", None) if file.lfs else None
        local = path / file.rfilename
        if expected is None or not local.is_file():
            continue
        if (found := sha256_of(local)) != expected:
            local.resolve().unlink()  # the content, which the name in the snapshot only links to
            local.unlink(missing_ok=True)
            raise ChecksumMismatch(mismatch(file.rfilename, f"the hub ({info.id})", found, expected))


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _first_lines(error: Exception) -> str:
    """The hub's errors go on about documentation after the first paragraph."""
    text = str(error).strip() or type(error).__name__
    lines = [line.strip() for line in text.splitlines() if line.strip() and "Request ID" not in line]
    return " ".join(lines[:3])
