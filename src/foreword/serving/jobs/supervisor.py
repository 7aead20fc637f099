"""Starts a training process when there is a job for it, and puts its jobs back in the queue when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import sys

from starlette.concurrency import run_in_threadpool

from foreword.errors import ForewordError
from foreword.serving import logs
from foreword.serving.config import Configuration
from foreword.serving.jobs import queue
from foreword.store.database import Database

POLL_SECONDS = 0.5
LONGEST_PAUSE = 60.0
"""Between attempts to start a process that dies at once."""
UNAVAILABLE = 75
"""Exit status of one that ended because of the store or a disk: no job pays for that. It is EX_TEMPFAIL of
sysexits.h."""


class Supervisor:
    """Keeps a training process of one server running while there are jobs; counts `started`, `died`."""

    def __init__(self, configuration: Configuration, database: Database) -> None:
        self._configuration = configuration
        self._database = database
        self._process: asyncio.subprocess.Process | None = None
        self._worker = ""
        self._task: asyncio.Task[None] | None = None
        self._pause = POLL_SECONDS
        self.started = 0
        self.died = 0

    @property
    def runs(self) -> bool:
        """Whether there is a process now."""
        return self._process is not None

    def start(self) -> None:
        """Begin to watch the queue."""
        self._task = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Stop the process, which writes its checkpoints, and put its jobs back into the queue."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        process = self._process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), self._configuration.drain_seconds)
        except TimeoutError:
            process.kill()
            await process.wait()
        await self._ended(process)

    async def _watch(self) -> None:
        while True:
            try:
                await self._look()
            except ForewordError as error:  # the database is away for a moment
                logs.failure("queue not read", error)
            await asyncio.sleep(self._pause)

    async def _look(self) -> None:
        lease = self._configuration.lease_seconds
        if lost := await run_in_threadpool(queue.collect_lost, self._database, lease):
            logs.event("jobs of a silent worker", jobs=lost)
        if self._process is not None:
            if self._process.returncode is None:
                return
            await self._ended(self._process)
        if await run_in_threadpool(queue.waits, self._database):
            await self._start_process()

    async def _start_process(self) -> None:
        self._worker = f"worker-{secrets.token_hex(8)}"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "foreword.serving.jobs.trainer"),
            stdin=asyncio.subprocess.PIPE,
            # A terminal's Ctrl-C is for the server, which passes it on in its time. No session of its own:
            # Linux shares the cores out by session (autogroup), where niceness counts for nothing.
            process_group=0,
        )
        self._process = process
        self.started += 1
        assert process.stdin is not None
        given = {"configuration": self._configuration.to_json(), "worker": self._worker}
        process.stdin.write(json.dumps(given).encode() + b"\n")  # and stays open: its end means ours
        with contextlib.suppress(ConnectionError):
            await process.stdin.drain()
        logs.event("trainer started", worker=self._worker, pid=process.pid)

    async def _ended(self, process: asyncio.subprocess.Process) -> None:
        self._process = None
        orderly = process.returncode in (0, UNAVAILABLE)
        # What it still holds, it did not give back itself.
        back = await run_in_threadpool(lambda: queue.release(self._database, self._worker, orderly=orderly))
        logs.event("trainer ended", worker=self._worker, status=process.returncode, jobs_back=back)
        if process.returncode == 0:
            self._pause = POLL_SECONDS
        else:
            self.died += 1
            self._pause = min(self._pause * 2, LONGEST_PAUSE)
