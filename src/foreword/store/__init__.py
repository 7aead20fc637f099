"""The store: prefixes kept like rows in a database.

`store.py` is what callers use. Below it, a catalogue (who owns which version under which name) and
blobs (the prefix files, once per digest). The catalogue is the truth; a blob nobody names is
garbage, and a version is listed only after its blob is safe on the disk.
"""

from foreword.store.access import Caller, Role
from foreword.store.audit import AuditEntry
from foreword.store.forget import Forgotten
from foreword.store.garbage import Collected
from foreword.store.keys import KeyRecord, NewKey
from foreword.store.listing import Page
from foreword.store.record import Description, Version
from foreword.store.store import PrefixStore
from foreword.store.transfer import Exported, Imported
from foreword.store.verify import Problem, Verification

__all__ = [
    "AuditEntry",
    "Caller",
    "Collected",
    "Description",
    "Exported",
    "Forgotten",
    "Imported",
    "KeyRecord",
    "NewKey",
    "Page",
    "PrefixStore",
    "Problem",
    "Role",
    "Verification",
    "Version",
]
