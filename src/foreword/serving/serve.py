"""One server from its start to its last answer: its parts are made, put together, run and drained.

SIGTERM (and Ctrl-C) drains: new requests get 503, those under way are finished, training writes its
checkpoints, then the process ends with status 0. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from types import FrameType

import uvicorn
from fastapi import FastAPI

from foreword.base.base_model import BaseModel
from foreword.errors import ForewordError, UsageError
from foreword.serving import logs
from foreword.serving.api.app import make_app
from foreword.serving.api.state import ServerState
from foreword.serving.config import Configuration
from foreword.serving.connections import Connections, uvicorn_settings
from foreword.serving.engine.protocol import Engine
from foreword.serving.jobs import queue
from foreword.serving.jobs.supervisor import Supervisor
from foreword.serving.metrics import Metrics
from foreword.serving.served_model import open_base, open_store, served_of
from foreword.serving.upkeep import Upkeep

POLL_SECONDS = 0.05
SWITCH_SECONDS = 1e-4
"""After so long the interpreter goes to another thread that wants it. The engine gives it away in each of the
thousand operations of a step and wants it back at once: with Python's own 5 ms, one thread that is busy, with
requests of whomever, would make a step ten times as long."""
BACKLOG = 2048
"""Connections that the system keeps until they are accepted; uvicorn's own number."""
QUERY_SECONDS = 5.0
"""How long what a measurement asks the database for is told again: anybody may ask, at any rate."""
WRITE_SECONDS = 5.0
"""How long a request's write waits for another one; then the client gets 503 and may try again."""
LAST_SECONDS = 3
"""For requests that a drain did not see the end of: then they are cut off."""


def serve(configuration: Configuration, *, announce: Callable[[str, str], None]) -> None:
    """Serve until a signal says stop.

    Args:
        announce: called with the URL and the base's name when requests are taken.

    Raises:
        UsageError: the address is taken.
        Whatever `PrefixStore` and `BaseModel.load` raise.
    """
    listening = _listen(configuration)
    logs.install()
    sys.setswitchinterval(SWITCH_SECONDS)
    with listening, open_store(configuration) as store:
        store.database.wait_seconds = WRITE_SECONDS
        # vLLM has the weights, and jobs are trained in a process that loads its own.
        base = open_base(configuration, store, weights=configuration.engine != "vllm")
        engine = make_engine(configuration, base)
        server = ServerState(configuration, store, served_of(base, configuration.name), engine, Metrics())
        supervisor = Supervisor(configuration, store.database) if configuration.training else None
        add_readings(server, supervisor)
        connections = Connections(configuration)
        server.metrics.measure(
            "foreword_connections",
            "Connections open now, and dropped so far.",
            lambda: {"open": len(connections), "dropped": connections.dropped},
            "what",
        )
        upkeep = Upkeep(store, server.usage, verify_days=configuration.verify_days)
        what = "Files of the store: checked by this server; bad when last read; when all had been read."
        server.metrics.measure("foreword_store_verify", what, upkeep.measurements, "what", QUERY_SECONDS)
        app = make_app(server)

        @contextlib.asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[None]:
            if supervisor is not None:
                supervisor.start()
            upkeep.start()
            yield
            await engine.close()
            await asyncio.to_thread(upkeep.stop)

        app.router.lifespan_context = lifespan
        settings = uvicorn_settings(app, configuration, connections)
        settings.timeout_graceful_shutdown = LAST_SECONDS
        _Runner(settings, server, supervisor, announce).run([listening])


def make_engine(configuration: Configuration, base: BaseModel) -> Engine:
    """The engine that the configuration names, ready to take rows.

    Raises:
        UsageError: the engine needs what is not installed.
        Whatever the engine raises for a base that it can't serve.
    """
    if configuration.engine == "local":
        from foreword.serving.engine.local import LocalEngine

        return LocalEngine(base)
    try:
        from foreword.serving.vllm.launch import make_vllm_engine
    except ModuleNotFoundError as error:
        if error.name != "httpx":
            raise
        raise UsageError(
            "the vLLM engine needs httpx; install it with: pip install 'foreword[vllm]'"
        ) from error
    return make_vllm_engine(configuration, base)


def add_readings(server: ServerState, supervisor: Supervisor | None) -> None:
    """Add what is measured only when Prometheus asks."""
    cache, database, measure = server.store.cache, server.store.database, server.metrics.measure

    def training() -> dict[str, float]:
        processes = {name: getattr(supervisor, name, 0) for name in ("runs", "started", "died")}
        return {"tokens": queue.trained_tokens(database), "running": processes.pop("runs"), **processes}

    measure("foreword_cache_bytes", "Prefix files kept.", lambda: {"memory": cache.memory.size}, "tier")
    measure("foreword_cache_prefixes", "Prefixes kept.", lambda: {"memory": len(cache.memory)}, "tier")
    measure("foreword_cache_reads", "Prefixes read so far.", lambda: dict(cache.reads), "tier")
    measure("foreword_jobs", "Jobs.", lambda: queue.counted(database), "state", QUERY_SECONDS)
    what = "Training: tokens of finished jobs; processes of this server."
    measure("foreword_training", what, training, "what", QUERY_SECONDS)
    # An engine that can tell more does: how full its batches are, how many rows wait.
    if (facts := getattr(server.engine, "measurements", None)) is not None:
        measure("foreword_engine", "The engine's own measurements.", facts, "what")


def _listen(configuration: Configuration) -> socket.socket:
    """A socket that takes connections from now on, though nobody answers before all is loaded."""
    host, port = configuration.host, configuration.port
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise UsageError(
            f"can't listen on {host} port {port}: {error.strerror or error}; choose another --host or --port"
        ) from error


class _Runner(uvicorn.Server):
    """uvicorn, but for what a signal does."""

    def __init__(
        self,
        settings: uvicorn.Config,
        server: ServerState,
        supervisor: Supervisor | None,
        announce: Callable[[str, str], None],
    ) -> None:
        super().__init__(settings)
        self._server, self._supervisor, self._announce = server, supervisor, announce
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: Future[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer, and say where."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started and sockets:
            sockets[0].listen(BACKLOG)  # again: uvicorn has made the queue as short as one go of accepting
            host, port = sockets[0].getsockname()[:2]
            url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            self._announce(url, self._server.served.name)
            logs.event("listening", url=url, base=self._server.served.name)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second ends."""
        if self._server.draining or self._loop is None:
            self.should_exit = self.force_exit = True
            return
        self._server.draining = True
        finishing = self._finish(signal.Signals(sig).name)
        self._draining = asyncio.run_coroutine_threadsafe(finishing, self._loop)

    async def _finish(self, why: str) -> None:
        logs.event("draining", why=why, running=self._server.running)
        # Training writes its checkpoints while requests are finished.
        await asyncio.gather(self._finish_training(), self._finish_requests())
        logs.event("drained", left=self._server.running)
        self.should_exit = True

    async def _finish_training(self) -> None:
        if self._supervisor is None:
            return
        try:
            await self._supervisor.close()
        except ForewordError as error:  # the database is away: its lease gives the jobs back
            logs.failure("jobs not given back", error)

    async def _finish_requests(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._server.configuration.drain_seconds):
                while self._server.running:
                    await asyncio.sleep(POLL_SECONDS)
