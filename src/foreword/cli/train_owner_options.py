"""Options of `foreword train --by owner`, as annotated types."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

OWNERS = "Many owners"

By = Annotated[
    Literal["owner"] | None,
    typer.Option("--by", help="owner: train one prefix per owner, all in one run.", rich_help_panel=OWNERS),
]
Name = Annotated[
    str | None,
    typer.Option(
        "--name",
        metavar="NAME",
        help="Put each prefix into the store as OWNER/NAME, instead of --out.",
        rich_help_panel=OWNERS,
    ),
]
Place = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="FOREWORD_STORE",
        metavar="PLACE",
        help="Folder of the store, or URL of its database.",
        rich_help_panel=OWNERS,
    ),
]
Blobs = Annotated[
    str | None,
    typer.Option(
        "--blobs",
        envvar="FOREWORD_STORE_BLOBS",
        metavar="PLACE",
        help="Where a database's files are: folder or URL.",
        rich_help_panel=OWNERS,
    ),
]
Places = Annotated[
    int,
    typer.Option(
        "--places", metavar="N", min=1, help="Owners trained at the same time.", rich_help_panel=OWNERS
    ),
]
PassTokens = Annotated[
    int,
    typer.Option(
        "--pass-tokens",
        min=1,
        metavar="N",
        help="Maximum tokens of one forward pass over all owners' rows; memory depends on it.",
        rich_help_panel=OWNERS,
    ),
]
Isolated = Annotated[
    bool,
    typer.Option(
        "--isolated",
        help="Separate passes for each owner: slower; bit for bit what each gets when trained alone.",
        rich_help_panel=OWNERS,
    ),
]
