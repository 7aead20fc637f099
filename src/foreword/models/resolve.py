"""From a name to a folder: aliases first, then folders, then the hub."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from foreword.errors import CannotRead, DownloadFailed, UnknownModel
from foreword.models import hub
from foreword.models.cache_dir import Notify, model_folder, silent
from foreword.models.catalogue import CATALOGUE
from foreword.models.pulling import pull_known
from foreword.models.record import ResolvedModel, read_record

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
        CannotRead: a folder without config.json or without safetensors.
        DownloadFailed: no source could deliver, or `pull_missing` is false.
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
    return _from_hub(name, pull_missing=pull_missing, notify=notify)


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
    return ResolvedModel(path=path.resolve(), name=name, revision=None, licence=None, source="folder")


def _from_hub(name: str, *, pull_missing: bool, notify: Notify) -> ResolvedModel:
    found = _snapshot(name, notify) if pull_missing else hub.already_here(name, None)
    if found is None:
        raise DownloadFailed(f"{name} is not on this disk; run `foreword pull {name}` first")
    return ResolvedModel(
        path=found.path,
        name=name,
        revision=found.revision,
        licence=found.licence,
        source=f"Hugging Face Hub: {name}",
    )


def _snapshot(name: str, notify: Notify) -> hub.Snapshot:
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
