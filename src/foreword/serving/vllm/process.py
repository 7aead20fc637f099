"""A `vllm serve` of this gateway's own: started, started again when it dies, and gone with the gateway.

And of any vLLM, whether it takes requests. It is named by the URL where it listens or, one of our own, by
`unix:` and a socket file in a folder that no other user may enter: a port could be taken by any of them while
vLLM starts or starts again, who would then get the gateway's key and everybody's prompts.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from foreword.errors import EngineStopped
from foreword.serving import logs

UNIX = "unix:"
SECONDS = 1.0
"""Between two looks of `HealthPoller`."""
PATIENCE = 5.0
"""For an answer: a vLLM whose process hangs is as good as none."""
POLL_SECONDS = 0.25
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Between attempts to start a vLLM that dies at once; each is twice the one before."""
SETTLED = 600.0
"""Seconds after which a vLLM that dies is not one that died at once."""
_DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Whatever proxies the environment names, as the engine does."""


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a socket file."""

    def __init__(self, path: str) -> None:
        super().__init__("vllm", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        """See the base class."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(self._path)


class HealthPoller:
    """Asks in a thread of its own whether a vLLM takes requests, so that nobody waits who wants to know."""

    def __init__(self, url: str, *, every: float = SECONDS) -> None:
        """
        Args:
            url: where vLLM listens, without `/v1`; it answers now.
            every: seconds between two looks.
        """
        self._url = url
        self._every = every
        self._up = True
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._look, name="foreword-vllm-health", daemon=True)
        self._thread.start()

    def is_up(self) -> bool:
        """Whether vLLM took requests at the last look."""
        return self._up

    def close(self) -> None:
        """Ask no more."""
        self._ending.set()
        self._thread.join()
        self._up = False

    def _look(self) -> None:
        while not self._ending.wait(self._every):
            self._up = answers(self._url)


def base_url_of(url: str) -> tuple[str, str | None]:
    """What requests to a vLLM begin with, and the socket file that they go to, if it is one."""
    path = url.removeprefix(UNIX)
    return (url.rstrip("/"), None) if path == url else ("http://vllm", path)


def answers(url: str) -> bool:
    """Whether a vLLM there takes requests."""
    _, path = base_url_of(url)
    try:
        if path is not None:
            with contextlib.closing(_UnixConnection(path)) as connection:
                connection.request("GET", "/health")
                return connection.getresponse().status == 200
        with _DIRECTLY.open(f"{url.rstrip('/')}/health", timeout=PATIENCE) as response:
            return bool(response.status == 200)
    except (OSError, ValueError, http.client.HTTPException):  # nobody, or somebody who speaks otherwise
        return False


class VllmProcess:
    """A `vllm serve` that this process starts and ends.

    Attributes:
        url: where it listens, on this machine only: see above.
        started: processes so far.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        url: str,
        *,
        start_seconds: float = 900.0,
        silent_seconds: float = 300.0,
    ) -> None:
        """
        Args:
            environment: comes beside this process's own.
            start_seconds: time to start, the first time and any later.
            silent_seconds: one that took requests and does not answer for so long is started again.
        """
        self.url = url
        self.started = 0
        self._start_seconds = start_seconds
        self._silent_seconds = silent_seconds
        self._command = [sys.executable, str(Path(__file__).with_name("process_guard.py")), *command]
        self._environment = {**os.environ, **environment}
        self._closing = threading.Event()
        self._process = self._start()
        self._watcher: threading.Thread | None = None

    def wait(self) -> None:
        """Until it takes requests; from then on it is started again whenever it dies or does not answer.

        Raises:
            EngineStopped: it ended, or did not come up in time; its own log says why.
        """
        until = time.monotonic() + self._start_seconds
        while not answers(self.url):
            if (status := self._process.poll()) is not None:
                raise EngineStopped(f"vLLM ended with status {status} before it was ready; its log says why")
            if time.monotonic() > until:
                self.close()
                raise EngineStopped(
                    f"vLLM did not take requests within {self._start_seconds:.0f} s; give it longer "
                    "(engine_seconds)"
                )
            time.sleep(POLL_SECONDS)
        self._watcher = threading.Thread(target=self._watch, name="foreword-vllm", daemon=True)
        self._watcher.start()

    def close(self) -> None:
        """End it, and come back when it is gone."""
        self._closing.set()
        if self._watcher is not None:
            self._watcher.join()
        self._end()

    def restart(self, why: str) -> None:
        """End it, without waiting; it is started again as if it had died."""
        logs.event("vllm hangs", pid=self._process.pid, why=why)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()  # its guard asks it to end, and kills it if it does not

    @property
    def pid(self) -> int:
        """The process id of the guard that runs it."""
        return self._process.pid

    def _start(self) -> subprocess.Popen[bytes]:
        if (path := base_url_of(self.url)[1]) is not None:
            Path(path).unlink(missing_ok=True)  # of one that was killed
        process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.PIPE,  # stays open: its end means ours
            stdout=sys.stderr.fileno(),  # standard output is for what the command itself says
        )
        self.started += 1
        logs.event("vllm started", pid=process.pid)
        return process

    def _end(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def _watch(self) -> None:
        pause, start_time = FIRST_PAUSE, time.monotonic()
        heard, allowed = start_time, self._silent_seconds
        while not self._closing.wait(POLL_SECONDS):
            if (status := self._process.poll()) is None:
                # Asked once a second; a process that was told to end is left to its guard.
                if time.monotonic() - heard < SECONDS or self._process.stdin.closed:  # type: ignore[union-attr]
                    continue
                if answers(self.url):
                    heard, allowed = time.monotonic(), self._silent_seconds
                elif (silent := time.monotonic() - heard) > allowed:
                    self.restart(f"no answer for {silent:.0f} s")
                continue
            if time.monotonic() - start_time > SETTLED:
                pause = FIRST_PAUSE
            logs.event("vllm ended", status=status, pause=pause)
            self._end()
            if self._closing.wait(pause):
                return
            pause, start_time = min(pause * 2, LONGEST_PAUSE), time.monotonic()
            heard, allowed = start_time, self._start_seconds
            try:
                self._process = self._start()
            except OSError as error:  # no memory or descriptors just now: tried again after the pause
                logs.failure("vllm not started", error)
