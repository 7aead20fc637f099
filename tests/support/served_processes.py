"""`foreword serve` in processes of its own: started, killed, read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai

TESTS = Path(__file__).parents[1]
COMMAND = ["-c", "from foreword.cli import main; main()"]
SLOWLY_COMMAND = [str(TESTS / "support" / "plain_server.py")]
SLOWEST = 90.0


class ServedProcess:
    """One server.

    Attributes:
        url: with /v1.
        base: the model's name.
        log: what it wrote to standard error.
    """

    def __init__(self, arguments: list[str], log: Path, pause: float | None) -> None:
        self.log = log
        command = COMMAND if pause is None else SLOWLY_COMMAND
        paths = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, *command, "serve", "--json", *arguments],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={
                    **os.environ,
                    "PYTHONPATH": paths,
                    "OMP_NUM_THREADS": "1",
                    "PLAIN_ENGINE_PAUSE": str(pause),
                },
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, log.read_text()
        told = json.loads(line)
        self.url, self.base = told["url"], told["base"]

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=60)

    def events(self, name: str) -> list[dict[str, Any]]:
        """Log lines of one kind."""
        rows = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [row for row in rows if row["event"] == name]

    def kill(self) -> None:
        """As a power cut: the training process, too."""
        trainers = [row["pid"] for row in self.events("trainer started")][-1:]
        for pid in (*trainers, self.process.pid):
            os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(SLOWEST)


@contextmanager
def served(folder: Path, base: Path, *arguments: str, pause: float | None = None) -> Iterator[ServedProcess]:
    """A server without keys on `folder`, stopped at the end; with `pause`, one that is slow on purpose."""
    own = ["--no-keys", "--port", "0", "--base", str(base), "--store", str(folder / "store")]
    settings = ["--set", "trainer_threads=1", "--set", "lease_seconds=1", "--set", "drain_seconds=30"]
    process = ServedProcess([*own, *settings, *arguments], folder / "log", pause)
    try:
        yield process
    finally:
        if process.process.poll() is None:
            process.stop()
        if process.process.stdout is not None:
            process.process.stdout.close()


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + SLOWEST
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.05)
    return found


def finished(client: openai.OpenAI, identifier: str) -> Any:
    """The job when it has ended."""

    def ended() -> Any:
        job = client.fine_tuning.jobs.retrieve(identifier)
        return job if job.status not in ("queued", "running") else None

    return wait_for(ended, "the job's end")


def step_of(client: openai.OpenAI, identifier: str) -> int:
    """The last step that the job has told of."""
    events = client.fine_tuning.jobs.list_events(identifier, limit=100).data
    return max([event.data["step"] for event in events if event.data and "step" in event.data], default=0)  # type: ignore[index]


def jsonl(examples: Any) -> bytes:
    return "".join(json.dumps({"source": e.source, "target": e.target}) + "\n" for e in examples).encode()
