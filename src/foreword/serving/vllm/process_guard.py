"""Runs a command until its own standard input ends, as it does when the gateway dies, even by kill -9.

Run as a file, so that it starts at once and imports nothing of the package.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

GRACE_SECONDS = 20.0
"""Between SIGTERM and SIGKILL."""


def main() -> int:
    """Status of the command."""
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)

    def end() -> None:
        child.terminate()
        try:
            child.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            _kill_group(child.pid)

    def watch() -> None:
        while os.read(0, 1024):
            pass
        end()

    # A terminal's Ctrl-C and Ctrl-\, and its end, are for the gateway: without this process nobody would end
    # the command, which is in a session of its own and has the device's memory.
    for ignored in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=end).start())
    threading.Thread(target=watch, daemon=True).start()
    status = child.wait()
    _kill_group(child.pid)  # workers that outlive their server
    return status if status >= 0 else 128 - status


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
