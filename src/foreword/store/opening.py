"""Opening: from what a caller calls a store to its database, its files and its caches."""

from __future__ import annotations

import contextlib
from pathlib import Path

import sqlalchemy

from foreword.errors import CannotWrite, MissingBlob, UnknownStore, UsageError
from foreword.store import schema
from foreword.store.blobs import MARKER, Blobs
from foreword.store.database import Catalogue

CATALOGUE_FILE = "catalogue.sqlite"


def open_catalogue(place: str | Path) -> Catalogue:
    """The catalogue of a store whose schema may be an older one, for migrating it.

    Raises:
        UnknownStore: there is none.
    """
    url, _, _ = places(place, "unused" if "://" in str(place) else None, create=False)
    catalogue = Catalogue(url)
    if catalogue.read(schema.revision) is None:
        raise UnknownStore(f"{catalogue} holds no store to migrate; check the name")
    return catalogue


def places(
    place: str | Path, blobs: str | Path | None, *, create: bool
) -> tuple[str | sqlalchemy.URL, str, Path | None]:
    """URL of the catalogue, place of the blobs, and the store's folder if it is one.

    Raises:
        UsageError: a database without a place for the files.
        UnknownStore: no store in the folder and `create` is false.
        CannotWrite: the folder can't be made.
    """
    if "://" in str(place):
        if blobs is None:
            raise UsageError(
                "a store in a database needs a place for its files: blobs='s3://bucket/folder' or a folder"
            )
        return str(place), str(blobs), None
    folder = Path(place).expanduser()
    if create:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CannotWrite(
                f"the folder {folder} can't be made: {error.strerror}; choose another"
            ) from error
    elif not (folder / CATALOGUE_FILE).is_file():
        raise UnknownStore(f"{folder} holds no store; check the name, or put a prefix to make one")
    url = sqlalchemy.URL.create("sqlite", database=str(folder / CATALOGUE_FILE))
    return url, str(blobs if blobs is not None else folder / "blobs"), folder


def check_marker(blobs: Blobs, identity: str) -> None:
    """Refuse blobs of another store: two catalogues would collect each other's files as garbage.

    Raises:
        UnknownStore: they are another store's.
        CannotWrite, StoreUnavailable: fresh blobs could not be marked as this store's.
    """
    with contextlib.suppress(MissingBlob):
        found = blobs.read(MARKER).decode(errors="replace")
        if found != identity:
            raise UnknownStore(
                f"the files at {blobs} belong to another store; choose another place for this one's"
            )
        return
    blobs.write(MARKER, identity.encode())


def cache_folder(chosen: str | Path | None) -> Path:
    """Where files of remote stores are cached: below what was chosen, or in the user's cache folder."""
    if chosen is not None:
        return Path(chosen)
    from foreword.models.cache_dir import cache_folder as of_user

    return of_user() / "prefixes"
