"""Files of owners, in the store's database: examples, documents and conversations; and results of jobs.

In the database, so that a file is there wholly or not at all, every server on the store sees it,
and forgetting an owner finds it.

    python -m foreword.serving.jobs.uploads < name, purpose and file

A large file is checked by a process of its own, below the server in priority: to read it is work of the
interpreter from end to end, which the engine needs between any two operations on tensors.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import PurePath
from typing import Any, Literal, get_args

from sqlalchemy import Connection, func, or_, select, tuple_

from foreword.documents.conversations import examples_in
from foreword.documents.reading import check_kind
from foreword.errors import ForewordError, UnknownField
from foreword.examples import Example, Preference
from foreword.examples.data_sets import read_parquet
from foreword.examples.readers import Summary, iterate_examples
from foreword.examples.records import PARQUET, lines_of
from foreword.serving.errors import Refused, refused, shown
from foreword.serving.jobs.queue import LIVE, page, transaction
from foreword.store import access, quota
from foreword.store.access import Caller
from foreword.store.database import Database
from foreword.store.schema import job, now, upload

LARGE = 1 << 16
"""Bytes of a file above which a process of its own checks it; below, that takes milliseconds."""
LOWEST_PRIORITY = 19
MOST_ROWS = 1_000_000
MOST_UNPACKED = 1 << 30
"""Rows and bytes of a Parquet file, which a few bytes can unpack to."""
MOST_MEMORY = 4 << 30
"""Addresses of the process that checks a Parquet file: what it says of its size may not be true."""
MOST_FILES = 10_000
"""Of one owner: what a small file takes beside its bytes is not counted among them."""
_FACTS = tuple(column for column in upload.c if column.name != "content")

Style = Literal[
    "text",
    "chat",
    "preferences",
    "chat-preferences",
    "records",
    "document",
    "conversations",
    "report",
    "metrics",
]
"""Of a file: examples without and with conversations among them; preferences, likewise; records whose fields
a job has to name; a document; conversations about one; the report of a job; the metrics of its steps."""
Purpose = Literal["fine-tune", "user_data"]
"""That a file is sent with."""
CONVERSATIONS_SUFFIX = ".jsonl"
"""Of user data that is no document but conversations about one."""
_PURPOSES: dict[Style, str] = {
    **dict.fromkeys(("text", "chat", "preferences", "chat-preferences", "records"), "fine-tune"),
    **dict.fromkeys(("report", "metrics"), "fine-tune-results"),
}
UNNAMED = (
    "the fields are none of a known form; a job can name them in method.supervised.hyperparameters, as in "
    '"fields": {"source": "question", "target": "answer"}'
)
"""What is said of a file of records."""


@dataclass(frozen=True)
class Upload:
    """What is known of an uploaded file.

    Attributes:
        filename: as its owner called it; used for showing it, and of a document for its kind.
        style: see `Style`.
        size: bytes.
        examples: 0 of what is none.
        told: what was read, in words; None of a file that was sent before.
    """

    id: str
    owner: str
    created: str
    filename: str
    style: str
    size: int
    examples: int
    told: str | None = field(default=None, compare=False)

    @property
    def purpose(self) -> str:
        """In the words of OpenAI's API."""
        return purpose_of(self.style)

    @property
    def preferences(self) -> bool:
        """Whether it holds preferences between two answers."""
        return self.style.endswith("preferences")

    @property
    def chats(self) -> bool:
        """Whether there are conversations among its examples or preferences."""
        return self.style.startswith("chat")


def purpose_of(style: str) -> str:
    """What files of a style are for, in the words of OpenAI's API."""
    return _PURPOSES.get(style, "user_data")  # type: ignore[call-overload, no-any-return]


def made(
    owner: str, filename: str, style: Style, content: bytes, examples: int = 0, identifier: str = ""
) -> Upload:
    """The record of a file that is to be kept."""
    return Upload(
        id=identifier or f"file-{secrets.token_hex(12)}",
        owner=owner,
        created=now(),
        filename=_storable(filename),
        style=style,
        size=len(content),
        examples=examples,
    )


def _storable(filename: str) -> str:
    return filename[:256].replace("\0", "\ufffd").encode(errors="replace").decode()


def parse(content: bytes, filename: str, **reading: Any) -> list[Example | Preference]:
    """The examples or preferences of a file. Raises BadExamples: names the line that is wrong, and why.

    Args:
        reading: `learned`, `format`, `fields`, `limit` and `summary` of `iterate_examples`.
    """
    return list(_examples(content, filename, **{"learned": "either", **reading}))


def _examples(content: bytes, filename: str, **reading: Any) -> Iterator[Example | Preference]:
    ending = PurePath(filename).suffix.lower()
    stream: Any = io.BufferedReader(io.BytesIO(content))
    return iterate_examples(
        stream,
        shown(filename),
        ending or ".jsonl",
        most_rows=MOST_ROWS,
        most_bytes=MOST_UNPACKED,
        **reading,
    )


@dataclass(frozen=True)
class Found:
    """What is in a file."""

    examples: int
    style: Style
    told: str | None = None


def check(content: bytes, filename: str, purpose: Purpose = "fine-tune") -> Found:
    """Read a file; a document is read by the job that it is for, which may take minutes.

    Raises:
        BadExamples: names the line that is wrong, and why; of a small file.
        BadDocument: empty, or of a kind that is not read.
        Refused: 400, a line that is wrong of a large file.
    """
    if purpose == "user_data" and not filename.lower().endswith(CONVERSATIONS_SUFFIX):
        check_kind(content, _storable(filename))
        return Found(0, "document")
    found = _found_outside if len(content) > LARGE or content.startswith(PARQUET) else _found
    return found(content, filename, purpose)


def _found(content: bytes, filename: str, purpose: Purpose) -> Found:
    if purpose == "user_data":
        name = shown(filename)
        return Found(sum(1 for _ in examples_in(lines_of(io.BytesIO(content), name), name)), "conversations")
    chat, summary = False, Summary()
    try:
        for example in _examples(content, filename, summary=summary, learned="either"):
            chat = chat or not isinstance(example.source, str)  # none is kept: they take many times its bytes
    except UnknownField:
        if summary.examples:
            raise
        if content.startswith(PARQUET):  # to its end, or the first to do that were a job
            for _ in read_parquet(io.BytesIO(content), shown(filename)):
                pass
        return Found(0, "records", UNNAMED)
    style: Style = "chat" if chat else "text"
    if summary.noun == "preference":
        style = "chat-preferences" if chat else "preferences"
    return Found(summary.examples, style, f"read {summary}")


def _found_outside(content: bytes, filename: str, purpose: Purpose) -> Found:
    process = subprocess.run(
        (sys.executable, "-m", "foreword.serving.jobs.uploads"),
        input=json.dumps([filename, purpose]).encode() + b"\n" + content,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # a traceback could quote an example
        # A terminal's Ctrl-C is for the server. Within its session, or the priority would count for nothing
        # where the system shares its cores among sessions first.
        process_group=0,
        check=not content.startswith(PARQUET),
    )
    if process.returncode != 0:
        raise Refused(
            400,
            f"{shown(filename)} unpacks to more than this server can hold, or is no whole Parquet file; make "
            "several files of it, or write the examples as JSON lines",
            code="invalid_file",
            param="file",
        )
    answer = json.loads(process.stdout)
    if "found" in answer:
        return Found(**answer["found"])
    raise Refused(**answer["refused"])


def add(
    database: Database,
    caller: Caller,
    owner: str,
    filename: str,
    content: bytes,
    *,
    purpose: Purpose = "fine-tune",
    limit: int | None,
) -> Upload:
    """Keep a file.

    Raises:
        BadExamples, BadDocument, Refused (400): as `check`; nothing is kept.
        StorageLimitExceeded: more bytes than an owner may store.
        Refused: 429, more files than an owner may have whose bytes are limited.
        UnknownKey: the caller's key went meanwhile.
    """
    found = check(content, filename, purpose)
    record = replace(made(owner, filename, found.style, content, found.examples), told=found.told)

    def insert(connection: Connection) -> Upload:
        access.check_key(connection, caller)
        check_stored_bytes(connection, owner, len(content), limit)
        if limit is not None:
            check_count(connection, owner)
        keep(connection, record, content)
        access.note(connection, caller, "upload", owner, record.id)
        return record

    return database.write(insert)


def keep(connection: Connection, record: Upload, content: bytes) -> None:
    """Add a file; whether its owner may store so much is to be asked beside it."""
    facts = {name: value for name, value in vars(record).items() if name != "told"}
    connection.execute(upload.insert().values(**facts, content=content))


def check_stored_bytes(connection: Connection, owner: str, more: int, limit: int | None) -> None:
    """Refuse what would bring an owner over the limit. Raises StorageLimitExceeded."""
    quota.check(connection, owner, more, limit)


def check_count(connection: Connection, owner: str) -> None:
    """Refuse more files of an owner than there may be. Raises Refused: 429."""
    count = connection.execute(select(func.count()).where(upload.c.owner == owner)).scalar_one()
    if count >= MOST_FILES:
        raise Refused(
            429,
            f"{owner} has {count} files, and at most {MOST_FILES} are kept; delete some first",
            code="files_exceeded",
            headers={"retry-after": "3600"},
        )


def listed(
    database: Database,
    owner: str,
    limit: int,
    after: str | None,
    *,
    newest_first: bool = True,
    purpose: str | None = None,
) -> tuple[list[Upload], bool]:
    """A page of an owner's files (those for a purpose) by the time they came, and whether there are more."""
    query = select(*_FACTS).where(upload.c.owner == owner)
    if purpose is not None:
        styles = [style for style in get_args(Style) if purpose_of(style) == purpose]
        query = query.where(upload.c.style.in_(styles))
    columns = (upload.c.created, upload.c.id)
    if after is not None:
        file = find(database, owner, after)
        place, last = tuple_(*columns), tuple_(file.created, file.id)
        query = query.where(place < last if newest_first else place > last)
    ordered = query.order_by(*(column.desc() if newest_first else column.asc() for column in columns))
    return page(database, Upload, ordered, limit)


def find(database: Database, owner: str, identifier: str, *, param: str | None = None) -> Upload:
    """A file of an owner. Raises Refused: 404, absent or somebody else's."""
    rows = database.rows(select(*_FACTS).where(upload.c.id == identifier, upload.c.owner == owner))
    if not rows:
        raise _unknown(identifier, param)
    return Upload(**rows[0]._mapping)


def present(database: Database, owner: str, identifiers: Collection[str]) -> set[str]:
    """Those of the ids that are of files of an owner."""
    mine = select(upload.c.id).where(upload.c.owner == owner, upload.c.id.in_(identifiers))
    return {row.id for row in database.rows(mine)} if identifiers else set()


def content(database: Database, owner: str, identifier: str) -> bytes:
    """The bytes as they were sent. Raises as `find`."""
    rows = database.rows(select(upload.c.content).where(upload.c.id == identifier, upload.c.owner == owner))
    if not rows:
        raise _unknown(identifier, None)
    return bytes(rows[0].content)


def beginning(
    database: Database, owner: str, identifier: str, most: int, limit: int | None = None, **reading: Any
) -> list[Example | Preference]:
    """The first `limit` examples of the whole lines among the first `most` bytes of a file; `reading` as of
    `parse`. What can't be divided, a JSON array or Parquet, is read whole.

    Raises:
        Refused: as `find`.
        BadExamples: as `parse`.
    """
    query = select(func.substr(upload.c.content, 1, most).label("content"), upload.c.size, upload.c.filename)
    rows = database.rows(query.where(upload.c.id == identifier, upload.c.owner == owner))
    if not rows:
        raise _unknown(identifier, None)
    begun = bytes(rows[0].content)
    if rows[0].size > most:
        lines = begun.removeprefix(codecs.BOM_UTF8).lstrip()
        if lines.startswith((b"[", b"{\n", b"{\r\n", PARQUET)):
            begun = content(database, owner, identifier)
        else:
            begun = begun[: begun.rfind(b"\n") + 1]
    return parse(begun, rows[0].filename, limit=limit, **reading) if begun.strip() else []


@transaction
def remove(connection: Connection, caller: Caller, owner: str, identifier: str) -> None:
    """Delete a file. Raises Refused: 404 as `find`; 409 while a job needs it."""
    named = (job.c.training_file, job.c.validation_file, job.c.settings["conversations"].as_string())
    needs = or_(*(each == identifier for each in named))
    using = select(job.c.id).where(job.c.owner == owner, job.c.state.in_(LIVE), needs)
    if (needing := connection.execute(using).scalar()) is not None:
        raise Refused(
            409, f"job {needing} needs this file; wait for it, or cancel it first", code="file_in_use"
        )
    mine = upload.delete().where(upload.c.id == identifier, upload.c.owner == owner)
    if connection.execute(mine).rowcount == 0:
        raise _unknown(identifier, None)
    access.note(connection, caller, "delete upload", owner, identifier)


def _unknown(identifier: str, param: str | None) -> Refused:
    """The same for a file that is absent and for one that is somebody else's."""
    return Refused(404, f"there is no file {shown(identifier)} of yours", code="file_not_found", param=param)


def main() -> None:
    """The process that checks a large file."""
    os.nice(LOWEST_PRIORITY)
    filename, purpose = json.loads(sys.stdin.buffer.readline())
    content = sys.stdin.buffer.read()
    if content.startswith(PARQUET) and sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    try:
        answer = {"found": asdict(_found(content, filename, purpose))}
    except ForewordError as error:
        told = refused(error)
        facts = {"status": told.status, "message": told.message, "code": told.code, "param": told.param}
        answer = {"refused": facts}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
