"""A prefix as a repository on the Hugging Face Hub: the file as it is, and a page that explains it.

Address, token and cache follow the hub library's usual variables (HF_ENDPOINT, HF_TOKEN, HF_HOME).
Sent are the files, the token where there is one, and the name and version of Foreword.
"""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from foreword.errors import (
    DownloadFailed,
    ForewordError,
    HubRefused,
    OutputExists,
    UnknownPrefix,
    UploadFailed,
    UsageError,
)
from foreword.interop.card import hub_card
from foreword.models.cache_dir import check_sha256
from foreword.prefix import Prefix

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo

PREFIX_FILE = "prefix.safetensors"
CARD_FILE = "README.md"

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class Published:
    """Where an exported prefix is: the repository's page and commit, and whether only its owner sees it."""

    url: str
    revision: str
    private: bool


@dataclass(frozen=True)
class Fetched:
    """An imported prefix, checked; the bytes of its file, whose SHA-256 is its identity; and its commit."""

    prefix: Prefix
    content: bytes
    revision: str


def export_hub(
    prefix: Prefix, repository: str, *, private: bool = False, overwrite: bool = False
) -> Published:
    """Put a prefix and its page into a repository, in one commit; the repository is made when missing.

    Args:
        repository: owner/name.
        private: only the owner may see it.
        overwrite: add a commit to a repository that has a prefix already; its history keeps the old one.

    Raises:
        OutputExists: the repository has a prefix and `overwrite` is false.
        HubRefused: no token, no right, or `private` asked of a repository that is public.
        UploadFailed: the hub did not answer, or answered something else.
        UsageError: not owner/name.
    """
    api = _api(repository)
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.errors import RepositoryNotFoundError

    contents = {PREFIX_FILE: prefix.to_bytes(), CARD_FILE: hub_card(prefix, repository, PREFIX_FILE).encode()}
    try:
        try:
            info = api.model_info(repository)
        except RepositoryNotFoundError:  # there is none that the user may see
            api.create_repo(repository, private=private or None)
            info = api.model_info(repository)
        else:
            _check_may_add(info, repository, private=private, overwrite=overwrite)
        commit = api.create_commit(
            repository,
            [CommitOperationAdd(name, content) for name, content in contents.items()],
            commit_message=f"Prefix {prefix.digest[:12]}",
            parent_commit=info.sha,  # the hub refuses when somebody else was faster
        )
    except ForewordError:
        raise
    except Exception as error:  # the hub library has changed the HTTP library, and so its errors, before
        raise _refusal(error, repository, right="write") or UploadFailed(
            f"{repository} did not get the prefix: {_told(error)}. No file was changed there (a repository "
            "that was just made may be empty); run the command again later"
        ) from error
    return Published(url=str(commit.repo_url), revision=commit.oid, private=bool(info.private))


def import_hub(repository: str, *, revision: str | None = None) -> Fetched:
    """Fetch a prefix from a repository and check it.

    Args:
        repository: owner/name.
        revision: commit, branch or tag; None takes the newest.

    Raises:
        UnknownPrefix: no such repository or revision, or no prefix in it.
        HubRefused: no token, or no right to see it.
        DownloadFailed: the hub did not answer, or broke off.
        ChecksumMismatch: the file is not the one that the hub lists.
        BadPrefix: the file is no prefix; see `Prefix.load`.
        UsageError: not owner/name.
    """
    api = _api(repository)
    with tempfile.TemporaryDirectory(prefix="foreword-") as folder:
        try:
            info = api.model_info(repository, revision=revision, files_metadata=True)
            # By commit: a branch could move between the listing and the file.
            path = api.hf_hub_download(repository, PREFIX_FILE, revision=info.sha, local_dir=folder)
        except Exception as error:  # see above
            raise _download_error(error, repository, revision) from error
        listed = next((f for f in info.siblings or [] if f.rfilename == PREFIX_FILE), None)
        expected = listed.lfs.sha256 if listed is not None and listed.lfs else None
        if expected is not None:
            check_sha256(Path(path), expected, origin=f"the hub ({repository})")
        content = Path(path).read_bytes()
    prefix = Prefix.from_bytes(content, where=f"{repository}/{PREFIX_FILE}")
    return Fetched(prefix=prefix, content=content, revision=str(info.sha))


def _check_may_add(there: ModelInfo, repository: str, *, private: bool, overwrite: bool) -> None:
    if private and not there.private:
        raise HubRefused(
            f"{repository} is there already and public, but --private was asked for; nothing was sent. "
            "Make it private in its settings, or choose another name"
        )
    if not overwrite and any(file.rfilename == PREFIX_FILE for file in there.siblings or []):
        raise OutputExists(
            f"{repository} has a {PREFIX_FILE} already; choose another name, or pass --overwrite to add a "
            "commit"
        )


def _api(repository: str) -> HfApi:
    if not _REPOSITORY.fullmatch(repository):
        raise UsageError(f"{repository!r} is no repository; expected owner/name, like alice/reviews")
    from huggingface_hub import HfApi

    from foreword import __version__

    # Given as a header, because the hub library would else add what it finds out about this machine.
    agent = {"user-agent": f"foreword/{__version__}"}
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, headers=agent)


def _download_error(error: Exception, repository: str, revision: str | None) -> ForewordError:
    if refused := _refusal(error, repository, right="read"):
        return refused
    if _status(error) == 404:
        at = f" at {revision}" if revision is not None else ""
        return UnknownPrefix(
            f"{repository}{at} has no {PREFIX_FILE} for you: {_told(error)}. Check the name; a private "
            "repository needs a token of somebody who may see it"
        )
    return DownloadFailed(
        f"{repository} could not be fetched: {_told(error)}. Nothing was written; try again"
    )


def _refusal(error: Exception, repository: str, *, right: str) -> HubRefused | None:
    if _status(error) not in (401, 403) and "TokenNotFound" not in type(error).__name__:
        return None
    return HubRefused(
        f"the hub does not let you {right} {repository}: {_told(error)}. Sign in with `hf auth login`, or "
        f"set HF_TOKEN to a token with the right to {right} it"
    )


def _answer(error: Exception) -> BaseException:
    """The error that carries the hub's answer: the hub library wraps some in others that don't."""
    cause: BaseException | None = error
    while cause is not None:
        if getattr(cause, "response", None) is not None:
            return cause
        cause = cause.__cause__
    return error


def _status(error: Exception) -> int | None:
    return getattr(getattr(_answer(error), "response", None), "status_code", None)


def _told(error: Exception) -> str:
    answer = _answer(error)
    lines = [line.strip() for line in str(answer).splitlines() if line.strip() and "Request ID" not in line]
    return f"{type(answer).__name__}: {' '.join(lines[:2])}".rstrip(":. ")
