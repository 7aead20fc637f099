"""One conversation with a server through a client library for Python; what came of it, as JSON.

    python in_python.py LIBRARY

BASE_URL, API_KEY and MODEL are read from the environment. Every function asks for the same: an answer to
`FIRST`, an answer to `SECOND` with the first one given back as the library has it, the first once more as a
stream, and requests that must fail, of which it tells the status. Needs the environment of `make test-clients`.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

URL, KEY, MODEL = (os.environ.get(name, "") for name in ("BASE_URL", "API_KEY", "MODEL"))
FIRST, SECOND = "Name a colour", "Another"
LONGEST = 6
WRONG_KEY, WRONG_MODEL, WRONG_TEMPERATURE = "fw_wrong", "nobody/none", 5
HISTORY: list[Any] = [{"role": "user", "content": FIRST}]
NEXT: dict[str, Any] = {"role": "user", "content": SECOND}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "paint",
        "description": "Paint.",
        "parameters": {"type": "object", "properties": {}},
    },
}


def failures(ask: Callable[..., Any], **tools: Any) -> dict[str, int | None]:
    """The statuses of requests that must fail; `ask` takes key, model, temperature, and what `tools` has."""
    cases: dict[str, dict[str, Any]] = {
        "key": {"key": WRONG_KEY},
        "model": {"model": WRONG_MODEL},
        "value": {"temperature": WRONG_TEMPERATURE},
        **({"tools": tools} if tools else {}),
    }
    found: dict[str, int | None] = {}
    for name, case in cases.items():
        try:
            ask(**case)
        except Exception as error:
            found[name] = _status(error)
        else:
            found[name] = 200
    return found


def _status(error: BaseException | None) -> int | None:
    while error is not None:
        if (status := getattr(error, "status_code", None)) is not None:
            return int(status)
        error = error.__cause__ or error.__context__
    return None


def openai() -> dict[str, Any]:
    import openai

    def ask(
        messages: Any = HISTORY, key: str = KEY, model: str = MODEL, temperature: float = 0, **more: Any
    ) -> Any:
        client = openai.OpenAI(base_url=URL, api_key=key, max_retries=0)
        return client.chat.completions.create(
            model=model, messages=messages, temperature=temperature, max_tokens=LONGEST, **more
        )

    first = ask().choices[0].message
    seconds = [ask([*HISTORY, one, NEXT]).choices[0].message.content for one in (first, first.model_dump())]
    assert seconds[0] == seconds[1]
    stream = "".join(c.choices[0].delta.content or "" for c in ask(stream=True) if c.choices)
    return {
        "first": first.content,
        "second": seconds[0],
        "stream": stream,
        "errors": failures(ask, tools=[TOOL]),
    }


def litellm() -> dict[str, Any]:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else its list of prices is fetched
    import litellm

    def ask(
        messages: Any = HISTORY, key: str = KEY, model: str = MODEL, temperature: float = 0, **more: Any
    ) -> Any:
        return litellm.completion(
            model=f"openai/{model}",
            api_base=URL,
            api_key=key,
            messages=messages,
            temperature=temperature,
            max_tokens=LONGEST,
            num_retries=0,
            **more,
        )

    first = ask().choices[0].message
    second = ask([*HISTORY, first.model_dump(), NEXT]).choices[0].message.content
    stream = "".join(chunk.choices[0].delta.content or "" for chunk in ask(stream=True))
    return {"first": first.content, "second": second, "stream": stream, "errors": failures(ask, tools=[TOOL])}


def langchain() -> dict[str, Any]:
    from langchain_openai import ChatOpenAI

    def chat(key: str = KEY, model: str = MODEL, temperature: float = 0) -> Any:
        return ChatOpenAI(
            base_url=URL, api_key=key, model=model, temperature=temperature, max_tokens=LONGEST, max_retries=0
        )

    def ask(tools: Any = None, **settings: Any) -> Any:
        model = chat(**settings)
        return (model.bind_tools(tools) if tools else model).invoke(HISTORY)

    first = ask()
    second = chat().invoke([("user", FIRST), first, ("user", SECOND)]).content
    stream = "".join(chunk.content for chunk in chat().stream(HISTORY))
    return {"first": first.content, "second": second, "stream": stream, "errors": failures(ask, tools=[TOOL])}


def llama_index() -> dict[str, Any]:
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai_like import OpenAILike

    def chat(key: str = KEY, model: str = MODEL, temperature: float = 0) -> Any:
        return OpenAILike(
            api_base=URL,
            api_key=key,
            model=model,
            temperature=temperature,
            max_tokens=LONGEST,
            max_retries=0,
            is_chat_model=True,
        )

    asked = ChatMessage(role="user", content=FIRST)
    first = chat().chat([asked]).message
    second = chat().chat([asked, first, ChatMessage(role="user", content=SECOND)]).message.content
    stream = "".join(piece.delta or "" for piece in chat().stream_chat([asked]))
    errors = failures(lambda **settings: chat(**settings).chat([asked]))
    return {"first": first.content, "second": second, "stream": stream, "errors": errors}


def pydantic_ai() -> dict[str, Any]:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    def agent(key: str = KEY, model: str = MODEL, temperature: float = 0, **more: Any) -> Any:
        chat = OpenAIChatModel(model, provider=OpenAIProvider(base_url=URL, api_key=key))
        return Agent(chat, model_settings={"temperature": temperature, "max_tokens": LONGEST}, **more)

    async def streamed() -> str:
        async with agent().run_stream(FIRST) as running:
            return "".join([piece async for piece in running.stream_text(delta=True, debounce_by=None)])

    def paint() -> str:
        """Paint."""
        return "red"

    first = agent().run_sync(FIRST)
    second = agent().run_sync(SECOND, message_history=first.all_messages()).output
    errors = failures(lambda **settings: agent(**settings).run_sync(FIRST), tools=[paint])
    return {"first": first.output, "second": second, "stream": asyncio.run(streamed()), "errors": errors}


def instructor() -> dict[str, Any]:
    import instructor
    import openai
    from pydantic import BaseModel

    class Colour(BaseModel):
        """What to fill in; asked for by a tool, which is refused."""

        name: str

    def ask(
        messages: Any = HISTORY,
        kind: Any = None,
        key: str = KEY,
        model: str = MODEL,
        temperature: float = 0,
        **more: Any,
    ) -> Any:
        plain = openai.OpenAI(base_url=URL, api_key=key, max_retries=0)
        client = instructor.from_openai(plain, mode=instructor.Mode.TOOLS)
        return client.chat.completions.create(
            model=model,
            messages=messages,
            temperature=temperature,
            max_tokens=LONGEST,
            response_model=kind,
            max_retries=1,
            **more,
        )

    first = ask().choices[0].message
    second = ask([*HISTORY, first.model_dump(), NEXT]).choices[0].message.content
    stream = "".join(c.choices[0].delta.content or "" for c in ask(stream=True) if c.choices)
    return {"first": first.content, "second": second, "stream": stream, "errors": failures(ask, kind=Colour)}


def llm() -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp())
    described = "- model_id: {id}\n  model_name: {name}\n  api_base: {url}\n  api_key_name: mine\n"
    models = (("mine", MODEL), ("absent", WRONG_MODEL))
    text = "".join(described.format(id=given, name=name, url=URL) for given, name in models)
    (folder / "extra-openai-models.yaml").write_text(text)

    def ask(*arguments: str, key: str = KEY, model: str = "mine", temperature: float = 0) -> str:
        options = ["-o", "temperature", str(temperature), "-o", "max_tokens", str(LONGEST), "--key", key]
        command = [sys.executable, "-m", "llm", "prompt", "-m", model, *options, *arguments]
        environment = {**os.environ, "LLM_USER_PATH": str(folder)}
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL
        )
        if done.returncode:
            raise OSError(done.stderr)
        return done.stdout.removesuffix("\n")

    first = ask("--no-stream", FIRST)
    second = ask("--no-stream", "-c", SECOND)
    found: dict[str, int | None] = {}
    for name, case in {"key": {"key": WRONG_KEY}, "model": {"model": "absent"}}.items():
        try:
            ask("--no-stream", FIRST, **case)
        except OSError as error:
            found[name] = next((status for status in (400, 401, 404) if str(status) in str(error)), None)
    return {"first": first, "second": second, "stream": ask(FIRST), "errors": found}


LIBRARIES = (openai, litellm, langchain, llama_index, pydantic_ai, instructor, llm)

if __name__ == "__main__":
    named = {library.__name__: library for library in LIBRARIES}
    print(json.dumps(named[sys.argv[1]]()))
