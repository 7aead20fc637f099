"""Options that every `foreword store` command has, and the store they mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from foreword.store import PrefixStore

StorePlace = Annotated[
    str,
    typer.Option("--store", envvar="FOREWORD_STORE", help="Folder of the store, or URL of its database."),
]
BlobsPlace = Annotated[
    str | None,
    typer.Option(
        "--blobs", envvar="FOREWORD_STORE_BLOBS", help="Where a database's files are: folder or URL."
    ),
]
AsOwner = Annotated[
    str | None, typer.Option("--as", help="Act as this owner instead of as local administrator.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def opened(
    place: str, blobs: str | None, as_owner: str | None = None, *, create: bool = False
) -> PrefixStore:
    """The store that the options name. Raises as `PrefixStore`."""
    from foreword.store import PrefixStore

    store = PrefixStore(place, blobs=blobs, create=create)
    return store if as_owner is None else store.as_owner(as_owner)
