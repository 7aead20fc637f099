"""Conversations of foreword compile: the user's own, a model's, or drawn ones, and their file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from foreword.cli import output
from foreword.cli.options import typed
from foreword.errors import OutputExists, UsageError
from foreword.validation import check_settings, setting

if TYPE_CHECKING:
    from foreword.base.base_model import BaseModel
    from foreword.cli.compile import Files, Request
    from foreword.documents.chunks import Chunk
    from foreword.documents.conversations import Conversation
    from foreword.documents.reading import Document
    from foreword.documents.written import Writer

WRITER = "Written conversations"


@dataclass(frozen=True)
class WriterOptions:
    """A model that writes the conversations."""

    writer: str | None = setting(
        None,
        section=WRITER,
        metavar="base|URL",
        help="Let a model write the conversations instead of drawing them: base, or one behind an "
        "OpenAI-compatible endpoint, such as http://localhost:8000/v1",
    )
    writer_model: str | None = setting(
        None, section=WRITER, metavar="NAME", help="The model's name at the endpoint"
    )
    writer_key_env: str | None = setting(
        None,
        section=WRITER,
        metavar="VARIABLE",
        default_text="FOREWORD_WRITER_KEY, where it is set",
        help="Variable of the environment that holds the endpoint's key",
    )
    write: int = setting(400, ge=2, section=WRITER, help="Conversations to write")
    writer_kind: tuple[str, ...] = setting(
        (),
        section=WRITER,
        metavar="KIND",
        default_text="all",
        help="What to ask the model for: question, summary, structuring, use case, creative; repeatable",
    )

    def __post_init__(self) -> None:
        check_settings(self)

    def check(self, context: typer.Context) -> None:
        """Refuse what does not go together, before a base is loaded.

        Raises:
            UsageError: names the option.
        """
        if self.writer is None:
            if given := typed(context, "writer_model", "writer_key_env", "write", "writer_kind"):
                raise UsageError(f"{given[0]} is for a model that writes; name it: --writer base, or its URL")
            return
        if given := typed(context, "conversations", "draw"):
            raise UsageError(f"--writer and {given[0]} are both given; leave one out")
        if self.writer == "base" and (given := typed(context, "writer_model", "writer_key_env")):
            raise UsageError(f"{given[0]} is for an endpoint; with --writer base, leave it out")
        if self.writer != "base":
            self._endpoint()
        from foreword.documents.written import KINDS

        if unknown := [each for each in self.writer_kind if each not in KINDS]:
            raise UsageError(f"--writer-kind is {unknown[0]!r}; expected {', '.join(KINDS)}")

    def _endpoint(self) -> Writer:
        from foreword.documents.written import EndpointWriter

        if self.writer_model is None:
            raise UsageError("--writer is an endpoint; name the model that writes there: --writer-model NAME")
        key = None if self.writer_key_env is None else os.environ.get(self.writer_key_env)
        if self.writer_key_env is not None and not key:
            raise UsageError(
                f"--writer-key-env is {self.writer_key_env}, which is not set; export it, or leave it out"
            )
        try:
            return EndpointWriter(self.writer or "", self.writer_model, key)
        except UsageError as error:
            raise UsageError(str(error).replace("base_url is", "--writer is", 1)) from error

    def written(self, base: BaseModel, chunks: Sequence[Chunk], seed: int) -> tuple[Conversation, ...]:
        """The conversations that the model writes; what is left out is said.

        Raises:
            WriterFailed: the endpoint does not answer, or refuses.
            BadConversations: none passes the check.
        """
        from foreword.documents.written import KINDS, BaseWriter, write_conversations

        counter = output.Counter()
        made, rejected = write_conversations(
            BaseWriter(base, seed=seed) if self.writer == "base" else self._endpoint(),
            chunks,
            self.write,
            kinds=self.writer_kind or tuple(KINDS),
            on_progress=lambda done, count: counter("conversations written", done, count),
        )
        _say_left_out(rejected)
        return tuple(made)

    def made(self, base: BaseModel, seed: int) -> dict[str, Any]:
        """What the file of conversations says of how they were made; never a key."""
        model = base.name if self.writer == "base" else self.writer_model
        return {"writer": model, "written": self.write, "kinds": list(self.writer_kind), "seed": seed}


def conversations_for(
    request: Request, base: BaseModel, document: Document, files: Files, folder: Path
) -> Sequence[Conversation] | None:
    """Those of the user's file or of a model, or drawn ones if they are to be kept; None leaves them to the
    function."""
    from foreword.documents.conversations import read_conversations, save_conversations
    from foreword.documents.studies import chunks_of, drawn_for

    writes, keep = files.writer.writer is not None, files.keep
    if files.conversations is None and keep is None and not writes:
        return None
    chunks = chunks_of(base, document.text, request.settings)
    seed = request.settings.seed
    made: Mapping[str, Any] = {"drawn": request.settings.draw, "seed": seed}
    if files.conversations is not None:
        read = read_conversations(files.conversations, document.text, chunks)
        found, made = read.conversations, read.made
        _say_left_out(read.rejected)
    elif writes:
        # A model writes others when it is asked again, and a run that goes on needs the same.
        keep, made = keep or folder / "conversations.jsonl", files.writer.made(base, seed)
        if keep.exists() and not request.overwrite:
            read = read_conversations(keep, document.text, chunks)
            if dict(read.made) != made:
                raise OutputExists(
                    f"{keep} exists already, and holds other conversations; --conversations trains on "
                    "those, --overwrite replaces them"
                )
            return read.conversations
        keep.parent.mkdir(parents=True, exist_ok=True)
        found = files.writer.written(base, chunks, seed)
    else:
        found = tuple(drawn_for(chunks, request.settings))
    if keep is not None and found:
        try:
            save_conversations(keep, found, document.text, chunks, made, overwrite=request.overwrite)
        except OutputExists:
            # A run that goes on finds there what it wrote before it was stopped.
            if read_conversations(keep, document.text, chunks).conversations != found:
                raise
    return found or None


def _say_left_out(rejected: Counter[str]) -> None:
    if left_out := rejected.total():
        reasons = ", ".join(f"{count} ({why})" for why, count in sorted(rejected.items()))
        output.note(f"{left_out} conversations do not pass the check against the text: {reasons}")
