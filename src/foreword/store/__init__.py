"""The store: prefixes kept like rows in a database.

`PrefixStore` (store.py) is what callers use. Below it are a database (who owns which version under which
name) and blobs (the prefix files, each once by its SHA-256). The database is the truth: a blob that no
version names is garbage, and a version is listed only after its blob is safe on the disk.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foreword.store.access import AuditEntry, Caller, Role
    from foreword.store.api_keys import KeyRecord, NewKey
    from foreword.store.equivalence import Equivalence
    from foreword.store.forget import Forgotten
    from foreword.store.listing import Page
    from foreword.store.maintenance import Collected, Problem, Verification
    from foreword.store.record import Description, Version
    from foreword.store.store import PrefixStore
    from foreword.store.tasks import Checked
    from foreword.store.transfer import Exported, Imported
    from foreword.store.usage import Usage

__all__ = [
    "AuditEntry",
    "Caller",
    "Checked",
    "Collected",
    "Description",
    "Equivalence",
    "Exported",
    "Forgotten",
    "Imported",
    "KeyRecord",
    "NewKey",
    "Page",
    "PrefixStore",
    "Problem",
    "Role",
    "Usage",
    "Verification",
    "Version",
]

# Imported when first used: the names of the records are of use without a database library.
_HOMES = {
    "AuditEntry": "access",
    "Caller": "access",
    "Checked": "tasks",
    "Collected": "maintenance",
    "Description": "record",
    "Equivalence": "equivalence",
    "Exported": "transfer",
    "Forgotten": "forget",
    "Imported": "transfer",
    "KeyRecord": "api_keys",
    "NewKey": "api_keys",
    "Page": "listing",
    "PrefixStore": "store",
    "Problem": "maintenance",
    "Role": "access",
    "Usage": "usage",
    "Verification": "maintenance",
    "Version": "record",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'foreword.store' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"foreword.store.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name not in ("sqlalchemy", "alembic"):
            raise
        from foreword.errors import UsageError

        raise UsageError(
            f"the store needs {error.name}; install it with: pip install 'foreword[store]'"
        ) from error


def __dir__() -> list[str]:
    return __all__
