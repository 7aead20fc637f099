"""Pulse: whether a vLLM takes requests, as it was when it was last asked."""

from __future__ import annotations

import http.client
import threading
import urllib.request

SECONDS = 1.0
"""Between two looks."""
PATIENCE = 5.0
"""For an answer: a vLLM whose process hangs is as good as none."""
_DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Whatever proxies the environment names, as the engine does."""


class Pulse:
    """A thread that asks, so that whoever wants to know never waits."""

    def __init__(self, url: str, *, every: float = SECONDS) -> None:
        """
        Args:
            url: where vLLM listens, without `/v1`; it answers now.
            every: seconds between two looks.
        """
        self._url = url
        self._every = every
        self._beats = True
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._look, name="foreword-vllm-pulse", daemon=True)
        self._thread.start()

    def beats(self) -> bool:
        """Whether vLLM took requests when it was last asked."""
        return self._beats

    def close(self) -> None:
        """Ask no more."""
        self._ending.set()
        self._thread.join()
        self._beats = False

    def _look(self) -> None:
        while not self._ending.wait(self._every):
            self._beats = answers(self._url)


def answers(url: str) -> bool:
    """Whether a vLLM at that URL takes requests."""
    try:
        with _DIRECTLY.open(f"{url.rstrip('/')}/health", timeout=PATIENCE) as response:
            return bool(response.status == 200)
    except (OSError, ValueError, http.client.HTTPException):  # nobody, or somebody who speaks otherwise
        return False
