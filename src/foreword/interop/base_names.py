"""Whether two names mean one base model.

Other libraries' files name their base but carry no fingerprint: sizes can be checked, weights can't.
So a name that disagrees is said aloud, and the base that the user gave counts.
"""

from __future__ import annotations

import warnings
from pathlib import PurePath
from typing import Any

from foreword.base.base_model import BaseModel
from foreword.errors import ForewordWarning
from foreword.models.catalogue import CATALOGUE


def warn_if_other(found: Any, base: BaseModel) -> None:
    """Warn when a foreign file names another base than the one given."""
    if isinstance(found, str) and found and _last_part(found) not in _names(base):
        warnings.warn(
            f"the files say that this prefix belongs to {found}, and it was imported for {base.name}: the "
            "sizes agree, the weights can't be compared. Make sure that the base is the right one",
            ForewordWarning,
            stacklevel=3,
        )


def public_name(name: str, revision: str | None) -> str | None:
    """The id on the hub of a base model, where its name is one: a local folder's name stays local."""
    if known := CATALOGUE.get(name):
        return known.hub_id
    return name if revision is not None else None


def _names(base: BaseModel) -> set[str]:
    known = CATALOGUE.get(base.name)
    return {_last_part(base.name)} | ({_last_part(known.hub_id)} if known else set())


def _last_part(name: str) -> str:
    return PurePath(name.replace("\\", "/")).name.lower()
