"""A gateway on a tiny base, on a real socket of this process, for the official client."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import uvicorn

from foreword import BaseModel
from foreword.serving.api.app import make_app
from foreword.serving.api.state import ServerState
from foreword.serving.config import Configuration, of
from foreword.serving.connections import Connections, uvicorn_settings
from foreword.serving.metrics import Metrics
from foreword.serving.serve import add_readings
from foreword.serving.served_model import served_of
from foreword.store import PrefixStore
from foreword.template import Template
from support.plain_engine import PlainEngine
from support.saved_bases import CHAT_TEMPLATE, TOOL_TEMPLATE
from support.stand_ins import byte_tokenizer, random_prefix, tiny_llama


def tiny_chat_base(template: str = CHAT_TEMPLATE, positions: int = 256) -> BaseModel:
    """The tiny model, with a chat template and a longer window."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return BaseModel(tiny_llama(max_position_embeddings=positions), tokenizer, name="tiny-llama")


@dataclass
class Gateway:
    """One that runs."""

    base: BaseModel
    store: PrefixStore
    engine: PlainEngine
    server: ServerState
    url: str
    connections: Connections

    def client(
        self, owner: str | None = None, *, role: Any = "owner", key: str | None = None
    ) -> openai.OpenAI:
        """The official client, with a fresh key of `owner`."""
        if key is None and owner is None:
            key = "none"
        secret = key or self.store.create_key(owner, role).secret
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=secret, max_retries=0, timeout=60)

    def served_template(self, style: str) -> Template:
        """The template with which the tiny base is trained on conversations, or on texts."""
        return self.server.served.chat_template if style == "chat" else self.base.template

    def key(self, owner: str | None, role: Any = "owner") -> str:
        return self.store.create_key(owner, role).secret


@contextlib.contextmanager
def running(folder: Path, base: BaseModel, **settings: Any) -> Iterator[Gateway]:
    """Serve until the block ends."""
    configuration: Configuration = of({"store": str(folder / "store"), "training": False, **settings})
    with PrefixStore(configuration.store, blobs=configuration.blobs) as store:
        engine = PlainEngine(base)
        server = ServerState(configuration, store, served_of(base), engine, Metrics())
        add_readings(server, None)
        connections = Connections(configuration)
        listening = uvicorn_settings(make_app(server), configuration, connections)
        listening.port = 0
        runner = uvicorn.Server(listening)
        thread = threading.Thread(target=runner.run, daemon=True)
        thread.start()
        while not runner.started:
            thread.join(0.01)
            assert thread.is_alive()
        port = runner.servers[0].sockets[0].getsockname()[1]
        try:
            yield Gateway(base, store, engine, server, f"http://127.0.0.1:{port}", connections)
        finally:
            runner.should_exit = True
            thread.join()


@contextlib.contextmanager
def running_with_tools(folder: Path) -> Iterator[Gateway]:
    """Serve a base whose template has tools, with `alice/one`, and `alice/chat` under that template."""
    with running(folder, tiny_chat_base(TOOL_TEMPLATE, 1024)) as found:
        found.store.put("alice/one", random_prefix(found.base, 5))
        chat = found.served_template("chat")
        found.store.put("alice/chat", random_prefix(found.base, 4, seed=9, template=chat))
        yield found
