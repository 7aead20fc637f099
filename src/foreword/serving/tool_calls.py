"""Calls of tools in the form that a base's chat template writes them: found out, forced, and read again.

The form is looked up by letting the template write a call: what stands in front of the name, between name and
arguments, and behind them. So Hermes's form (Qwen, SmolLM3), that of Llama 3 and whatever else has the
arguments as a JSON object in plain text need no list of models.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from foreword.errors import BadSchema, TemplateRefuses
from foreword.grammar import json_rule
from foreword.sampling import beginning_at_end
from foreword.template import Template

NAME, ARGUMENTS, ID = "foreword_name", '{"foreword_key": "foreword_value"}', "fword0000"
LONGEST_NAME = 64
"""Characters of a function's name."""


@dataclass(frozen=True)
class ToolForm:
    """How a chat template writes a call: `before`, the name, `between`, the arguments as JSON, `behind`."""

    before: str
    between: str
    behind: str

    @property
    def marker(self) -> str:
        """The beginning of `before` at which a text turns into a call."""
        return self.before.partition("{")[0].strip() or self.before

    def grammar(
        self, tools: Sequence[tuple[str, Any]], *, forced: bool, several: bool, text: str | None = None
    ) -> str:
        """The grammar of an answer that calls one of the tools, each a name and the schema of its arguments.

        Args:
            forced: whether it has to; else it may be text, or text and calls.
            several: whether more than one call may come, where none is forced.
            text: rule of what an answer without a call has to be; None: any.

        Raises:
            BadSchema: names the tool whose schema can't be followed.
        """
        opening = self.before[self.before.index(self.marker) + len(self.marker) :]
        rules = []
        for number, (name, schema) in enumerate(tools):
            try:
                arguments = json_rule(schema)
            except BadSchema as error:
                raise BadSchema(f"tool {name!r}: {error}") from error
            front = json.dumps(f"{opening}{name}{self.between}")
            rules.append(f"call_{number}: {front} arguments_{number} {_literal(self.behind)}")
            rules.append(f"arguments_{number}: {arguments}")
        calls = f"({' | '.join(f'call_{number}' for number in range(len(tools)))})"
        marker = json.dumps(self.marker)
        if forced:
            start = f"start: {marker} {calls}"
        elif text is not None:
            start = f"start: {marker} {calls} | text\ntext: {text}"
        else:
            # A lazy token ends where it first can: the text up to the first marker.
            start = f"(opening {calls})* TEXT" if several else f"opening {calls} | TEXT"
            start = f"start: {start}\nopening[lazy]: TEXT {marker}\nTEXT: /(.|\\n)*/"
        return "\n".join([start, *rules]) + "\n"


def _literal(text: str) -> str:
    return json.dumps(text) if text else ""


def tool_form(tokenizer: Any) -> ToolForm:
    """How this tokenizer's chat template writes calls.

    Raises:
        TemplateRefuses: it writes no tools, no calls, or calls that can't be read in a text.
    """
    tool = {
        "type": "function",
        "function": {"name": NAME, "description": "-", "parameters": {"type": "object", "properties": {}}},
    }
    asked = ({"role": "user", "content": "a", "tools": [tool]},)
    call = {"id": ID, "type": "function", "function": {"name": NAME, "arguments": json.loads(ARGUMENTS)}}
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    try:
        written = Template(style="chat").target_text(tokenizer, asked, answer)
    except TemplateRefuses as error:
        raise TemplateRefuses(f"the base's chat template has no tools: {error}") from error
    found = re.fullmatch(
        rf'(?s)(?P<before>.*?){NAME}(?P<between>.*?)\{{\s*"foreword_key":\s*"foreword_value"\s*\}}(?P<behind>.*)',
        written,
    )
    if found is None or ID in written:
        raise TemplateRefuses(
            "the base's chat template writes calls in a form that is not read here: not the name and then "
            "the arguments as a JSON object, or with an id of their own"
        )
    form = ToolForm(found["before"], found["between"], found["behind"])
    plain = f"{form.before}{NAME}{form.between}{ARGUMENTS}{form.behind}"
    ids = tokenizer(plain, add_special_tokens=False)["input_ids"]
    if not form.before or tokenizer.decode(ids, skip_special_tokens=True).strip() != plain.strip():
        raise TemplateRefuses("the base's chat template writes calls with special tokens, which are no text")
    return form


@dataclass(frozen=True)
class Piece:
    """A part of an answer: text, the beginning of a call, or a part of its arguments.

    Attributes:
        index: of the call, from 0.
        id: of a call that begins.
    """

    kind: Literal["text", "call", "arguments"]
    text: str
    index: int = 0
    id: str = ""


class ToolCallReader:
    """The growing text of an answer as pieces, each handed out as soon as it is certain.

    Attributes:
        calls: how many have begun.
    """

    def __init__(self, form: ToolForm) -> None:
        self.calls = 0
        self._form = form
        self._held = ""
        self._reads: Literal["text", "opening", "arguments", "closing"] = "text"
        self._arguments = _JsonEnd()
        name = rf"([A-Za-z0-9_-]{{1,{LONGEST_NAME}}})"
        # Where no grammar holds a model to it, its spaces may differ.
        self._opening = re.compile(
            rf"\s*{_spaced(form.before.strip())}{name}{_spaced(form.between)}\s*(?=\{{)"
        )
        self._longest = 2 * (len(form.before) + len(form.between)) + LONGEST_NAME + 16

    def add(self, text: str, *, final: bool = False) -> list[Piece]:
        """What becomes certain with more text, or because it is the last."""
        self._held += text
        pieces: list[Piece] = []
        while self._step(pieces, final=final):
            pass
        return pieces

    def _step(self, pieces: list[Piece], *, final: bool) -> bool:
        """Whether another part begins."""
        if self._reads == "text":
            return self._read_text(pieces, final=final)
        if self._reads == "opening":
            return self._read_opening(pieces, final=final)
        if self._reads == "arguments":
            length = self._arguments.find(self._held)
            part, self._held = self._held[:length], self._held[length:]
            if part:
                pieces.append(Piece("arguments", part, self.calls - 1))
            if self._arguments.ended:
                self._reads = "closing"
            return self._arguments.ended
        behind = self._form.behind
        held = self._held.lstrip() if behind[:1].strip() else self._held
        if not held.startswith(behind) and behind.startswith(held):
            if not final:
                return False
            held = ""  # cut off inside the end of the call
        self._held, self._reads = held.removeprefix(behind), "text"
        return True

    def _read_text(self, pieces: list[Piece], *, final: bool) -> bool:
        marker = self._form.marker
        if self.calls and not self._held.strip() and not final:
            return False  # a line's end between two calls, most likely
        place = self._held.find(marker)
        certain = place if place >= 0 else len(self._held)
        if place < 0 and not final:
            certain -= beginning_at_end(self._held, marker)
            certain = len(self._held[:certain].rstrip())  # space in front of a call is no part of the text
        text, self._held = self._held[:certain], self._held[certain:]
        if place >= 0:
            text, self._reads = text.rstrip(), "opening"
        if text and not (self.calls and not text.strip()):
            pieces.append(Piece("text", text))
        return place >= 0

    def _read_opening(self, pieces: list[Piece], *, final: bool) -> bool:
        if (found := self._opening.match(self._held)) is not None:
            identity = f"call_{secrets.token_hex(12)}"
            pieces.append(Piece("call", found[1], self.calls, identity))
            self._held, self._reads, self._arguments = self._held[found.end() :], "arguments", _JsonEnd()
            self.calls += 1
            return True
        if len(self._held) < self._longest and not final:
            return False
        text, self._held = self._held, ""  # it only looked like a call
        self._reads = "text"
        pieces.append(Piece("text", text))
        return False


def _spaced(text: str) -> str:
    """A regular expression of a text, with any whitespace where it has some."""
    return r"\s*".join(map(re.escape, text.split())) if text.strip() else r"\s*"


class _JsonEnd:
    """Looks for the end of a JSON object that comes in pieces."""

    def __init__(self) -> None:
        self.ended = False
        self._depth = 0
        self._in_text = self._escaped = False

    def find(self, text: str) -> int:
        """How many characters of the next piece belong to the object."""
        for place, letter in enumerate(text):
            if self._in_text:
                self._in_text = self._escaped or letter != '"'
                self._escaped = not self._escaped and letter == "\\"
            elif letter == '"':
                self._in_text = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.ended = True
                    return place + 1
        return len(text)
