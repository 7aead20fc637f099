"""POST /v1/responses: the answer of a chat request as items, whole or as a stream of events."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request

from foreword.serving.api import schemas
from foreword.serving.api.completions import chat_logprobs, chat_rows
from foreword.serving.api.schemas import ERRORS
from foreword.serving.api.state import identity_of, server_of
from foreword.serving.api.streaming import CompletedText, Completions, plain, stream, unless_gone
from foreword.serving.engine.detokenizer import TextDelta
from foreword.serving.errors import Refused
from foreword.serving.response_requests import ResponseBody, chat_body, say_of_response
from foreword.serving.tool_calls import Piece, ToolCallReader

router = APIRouter(tags=["text"])
Event = dict[str, Any]


@router.post("/v1/responses", response_model=schemas.Response, responses=ERRORS)
async def respond(request: Request, body: ResponseBody) -> Any:
    """Answer a text, or a conversation given as items; nothing of it is stored."""
    server, identity = server_of(request), identity_of(request)
    try:
        chat = chat_body(body)
        rows = await chat_rows(server, identity, chat)
    except Refused as error:
        say_of_response(error)
        raise
    texts = Completions(server, identity, rows, chat)
    reader = ToolCallReader(server.served.tool_form) if chat.may_call else None
    items = _Items(reader, with_logprobs=bool(chat.logprobs))
    head = _head(body)

    def response(status: schemas.ResponseStatus, **more: Any) -> schemas.Response:
        if status in ("completed", "incomplete"):
            more |= {"output": items.items, "usage": _usage(texts), "completed_at": int(time.time())}
        if status == "incomplete":
            more["incomplete_details"] = {"reason": "max_output_tokens"}
        return schemas.Response(**head, status=status, **more)

    if not body.stream:
        (text,) = await unless_gone(request, texts.whole())
        items.add(text)
        return response(items.status)

    numbers = itertools.count()

    def event(kind: str, **fields: Any) -> Event:
        return {"type": f"response.{kind}", **fields, "sequence_number": next(numbers)}

    def chunks(delta: TextDelta) -> Sequence[Event]:
        return [event(**each) for each in items.add(delta)]

    def ending() -> Sequence[Event]:
        return [event(items.status, response=plain(response(items.status)))]

    def broken(error: Refused) -> Sequence[Event]:
        failure = {"code": "server_error", "message": error.message}
        return [event("failed", response=plain(response("failed", error=failure, output=items.items)))]

    started = plain(response("in_progress"))
    beginning = [event("created", response=started), event("in_progress", response=started)]
    return await stream(request, texts, beginning, chunks, ending, broken=broken, named=True)


def _head(body: ResponseBody) -> dict[str, Any]:
    """What a response says of its request, in every state."""
    given = body.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"input"})
    return {
        "id": f"resp_{secrets.token_hex(24)}",
        "created_at": int(time.time()),
        "model": body.model,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "tool_choice": given.get("tool_choice", "auto"),
        "tools": [{"strict": True, "parameters": None, **tool} for tool in given.get("tools", ())],
        "text": {"format": (given.get("text") or {}).get("format") or {"type": "text"}},
        "top_logprobs": body.top_logprobs or 0,
        **{name: given.get(name) for name in ("instructions", "max_output_tokens", "user")},
        "metadata": given.get("metadata") or {},
    }


def _usage(texts: Completions) -> schemas.ResponseUsage:
    used = texts.usage
    return schemas.ResponseUsage(
        input_tokens=used.prompt_tokens,
        output_tokens=used.completion_tokens,
        total_tokens=used.total_tokens,
    )


class _Items:
    """The items of a response as its text grows, and the events that tell of them.

    Attributes:
        items: so far; the last one is open until the text ends.
        status: of the response.
    """

    def __init__(self, reader: ToolCallReader | None, *, with_logprobs: bool) -> None:
        self.items: list[dict[str, Any]] = []
        self.status: schemas.ResponseStatus = "in_progress"
        self._reader = reader
        self._with_logprobs = with_logprobs
        self._logprobs: list[dict[str, Any]] = []

    def add(self, delta: TextDelta | CompletedText) -> list[Event]:
        """The events of some more text; of its last, those of its end."""
        final = delta.finish_reason is not None
        if self._with_logprobs:
            self._logprobs += plain(chat_logprobs(delta.logprobs))["content"]
        if self._reader is None:
            pieces = [Piece("text", delta.text)] if delta.text else []
        else:
            pieces = self._reader.add(delta.text, final=final)
        events = [event for piece in pieces for event in self._piece(piece)]
        if not final:
            return events
        if not self.items:
            events += self._begin({"type": "message", "role": "assistant", "content": []}, "msg")
        self.status = "incomplete" if delta.finish_reason == "length" else "completed"
        return [*events, *self._end(self.status)]

    def _piece(self, piece: Piece) -> list[Event]:
        if piece.kind == "call":
            call = {"type": "function_call", "call_id": piece.id, "name": piece.text, "arguments": ""}
            return [*self._end("completed"), *self._begin(call, "fc")]
        events = []
        if piece.kind == "text" and not (self.items and self.items[-1]["type"] == "message"):
            events += self._end("completed")
            events += self._begin({"type": "message", "role": "assistant", "content": []}, "msg")
        place, item = self._place(), self.items[-1]
        if piece.kind == "arguments":
            item["arguments"] += piece.text
            return [{"kind": "function_call_arguments.delta", **place, "delta": piece.text}]
        part = item["content"][0]
        part["text"] += piece.text
        logprobs, self._logprobs = self._logprobs, []
        part["logprobs"] += logprobs
        fields = {"content_index": 0, "delta": piece.text, "logprobs": logprobs}
        return [*events, {"kind": "output_text.delta", **place, **fields}]

    def _begin(self, item: dict[str, Any], kind: str) -> list[Event]:
        self.items.append({"id": f"{kind}_{secrets.token_hex(24)}", "status": "in_progress", **item})
        added = self.items[-1]
        events = [{"kind": "output_item.added", "output_index": len(self.items) - 1, "item": {**added}}]
        if item["type"] == "message":
            added["content"] = [{"type": "output_text", "text": "", "annotations": [], "logprobs": []}]
            part = {**added["content"][0], "logprobs": []}
            events.append({"kind": "content_part.added", **self._place(), "content_index": 0, "part": part})
        return events

    def _end(self, status: str) -> list[Event]:
        if not self.items:
            return []
        place, item = self._place(), self.items[-1]
        item["status"] = status
        if item["type"] == "message":
            (part,) = item["content"]
            part["logprobs"] += self._logprobs  # of tokens without text of their own
            self._logprobs = []
            here = {**place, "content_index": 0}
            done = {"text": part["text"], "logprobs": part["logprobs"]}
            events = [
                {"kind": "output_text.done", **here, **done},
                {"kind": "content_part.done", **here, "part": part},
            ]
        else:
            self._logprobs = []  # a call has none
            done = {"name": item["name"], "arguments": item["arguments"]}
            events = [{"kind": "function_call_arguments.done", **place, **done}]
        return [*events, {"kind": "output_item.done", "output_index": place["output_index"], "item": item}]

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}
