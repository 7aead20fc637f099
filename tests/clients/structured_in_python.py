"""Objects and calls of tools from a server through a client library for Python; what came of it, as JSON.

    python structured_in_python.py LIBRARY

As in_python.py, from whose environment it takes where the server is. Every function asks for an object by each
of the library's ways that works with a model which can't reason: it fills in what the schema leaves open, at
random, and must never be refused by the library's own check of what it got.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, Literal

from pydantic import BaseModel

URL, KEY, MODEL = (os.environ.get(name, "") for name in ("BASE_URL", "API_KEY", "MODEL"))
ASKED: Any = [{"role": "user", "content": "Name a colour"}]
SETTINGS: dict[str, Any] = {"temperature": 0, "max_tokens": 400}


class Shade(BaseModel):
    """How dark it is."""

    percent: Literal[10, 50, 90]
    exact: bool | None


class Colour(BaseModel):
    """A colour."""

    name: Literal["red", "green", "blue"]
    shades: tuple[Shade, Shade]


def paint(name: Literal["red", "blue"], twice: bool) -> str:
    """Paint."""
    return f"painted {name}{' twice' if twice else ''}"


TOOL: Any = {
    "type": "function",
    "function": {
        "name": "paint",
        "description": "Paint.",
        "parameters": {
            "type": "object",
            "properties": {"name": {"enum": ["red", "blue"]}, "twice": {"type": "boolean"}},
            "required": ["name", "twice"],
        },
    },
}


def openai() -> dict[str, Any]:
    import openai

    client = openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0)
    chat = client.chat.completions
    parsed = (
        chat.parse(model=MODEL, messages=ASKED, response_format=Colour, **SETTINGS).choices[0].message.parsed
    )
    with chat.stream(model=MODEL, messages=ASKED, response_format=Colour, **SETTINGS) as stream:
        streamed = stream.get_final_completion().choices[0].message.parsed
    asked = {"model": MODEL, "tools": [TOOL], "tool_choice": "required", **SETTINGS}
    message = chat.create(messages=ASKED, **asked).choices[0].message
    with chat.stream(messages=ASKED, **asked) as stream:
        in_pieces = stream.get_final_completion().choices[0].message
    functions = [each.tool_calls[0].function for each in (message, in_pieces)]
    assert functions[0].arguments == functions[1].arguments
    done = paint(**json.loads(functions[0].arguments))
    answer = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": done}
    for given in (message, message.model_dump()):
        again = chat.create(
            messages=[*ASKED, given, answer], model=MODEL, tools=[TOOL], temperature=0, max_tokens=9
        )
        assert again.choices[0].finish_reason
    return {"objects": [parsed.model_dump(), streamed.model_dump()], "calls": [done]}


def langchain() -> dict[str, Any]:
    from langchain_core.messages import ToolMessage
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(base_url=URL, api_key=KEY, model=MODEL, max_retries=0, **SETTINGS)
    methods = ("json_schema", "function_calling")
    objects = [chat.with_structured_output(Colour, method=method).invoke(ASKED) for method in methods]
    bound = chat.bind_tools([paint], tool_choice="any")
    message = bound.invoke(ASKED)
    done = paint(**message.tool_calls[0]["args"])
    again = [*ASKED, message, ToolMessage(done, tool_call_id=message.tool_calls[0]["id"])]
    assert bound.invoke(again).tool_calls
    return {"objects": [each.model_dump() for each in objects], "calls": [done]}


def instructor() -> dict[str, Any]:
    import instructor
    import openai

    plain = openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0)
    objects = []
    for mode in (instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA):
        create = instructor.from_openai(plain, mode=mode).chat.completions.create
        objects.append(create(model=MODEL, messages=ASKED, response_model=Colour, max_retries=1, **SETTINGS))
    return {"objects": [each.model_dump() for each in objects], "calls": []}


def pydantic_ai() -> dict[str, Any]:
    from pydantic_ai import Agent, NativeOutput
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    chat = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=URL, api_key=KEY))
    settings: Any = SETTINGS
    kinds: tuple[Any, ...] = (Colour, NativeOutput(Colour))
    objects = [
        Agent(chat, output_type=kind, model_settings=settings, retries=0).run_sync("Name a colour").output
        for kind in kinds
    ]
    return {"objects": [each.model_dump() for each in objects], "calls": []}


LIBRARIES = (openai, langchain, instructor, pydantic_ai)

if __name__ == "__main__":
    named = {library.__name__: library for library in LIBRARIES}
    print(json.dumps(named[sys.argv[1]]()))
