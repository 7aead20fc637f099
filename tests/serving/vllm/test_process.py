"""What looks after a vLLM, without one: whether it is up, and that it ends with whoever started it."""

from __future__ import annotations

import asyncio
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoConfig

from foreword import BaseModel
from foreword.errors import UnsupportedArchitecture, UsageError
from foreword.models.fingerprint import fingerprint
from foreword.serving.config import of
from foreword.serving.served_model import open_base
from foreword.serving.vllm import launch, process, ticket
from foreword.serving.vllm.checks import weights_of
from foreword.serving.vllm.engine import VllmEngine, check_base
from foreword.serving.vllm.prefixes import STORE
from foreword.serving.vllm.process import HealthPoller, answers
from support.architectures.hybrids import CONVOLUTION
from support.architectures.zoo import Architecture
from support.saved_bases import save_tiny
from support.stand_ins import byte_tokenizer, tiny_llama

SECRET = "0123456789abcdef" * 4


# -- whether it is up ---------------------------------------------------------------------------------


class Health(http.server.BaseHTTPRequestHandler):
    """Answers as the server's `status` says."""

    def do_GET(self) -> None:  # the standard library's name
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.end_headers()
        self.server.asked.release()  # type: ignore[attr-defined]

    def log_message(self, *_: Any) -> None:
        pass


def test_an_engine_is_ready_while_its_vllm_answers(tiny_base: BaseModel) -> None:
    server = http.server.HTTPServer(("127.0.0.1", 0), Health)
    server.status, server.asked = 200, threading.Semaphore(0)  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    poller = HealthPoller(url, every=0.001)
    engine = VllmEngine(tiny_base, url, SECRET, is_up=poller.is_up, on_close=poller.close)

    def looked() -> None:
        for _ in range(20):  # what was under way is over
            assert server.asked.acquire(timeout=30)  # type: ignore[attr-defined]

    try:
        looked()
        assert engine.ready()
        server.status = 503  # type: ignore[attr-defined]
        looked()
        assert not engine.ready()
        server.status = 200  # type: ignore[attr-defined]
        looked()
        assert engine.ready()
        asyncio.run(engine.close())
        assert not engine.ready()
    finally:
        server.shutdown()
        server.server_close()
    assert not answers(url)


def test_the_line_holds_all_that_a_vllm_needs_but_no_secret(tiny_base: BaseModel) -> None:
    configuration = of({"engine": "vllm", "store": "postgresql://u:pass@db/f", "blobs": "s3://b/f"})
    line = launch.shell_line(configuration, "/models/base one", tiny_base)
    assert "--max-model-len" not in line
    assert "'/models/base one'" in line
    assert all(part in line for part in ("vllm serve", "PrefixConnector", "Door", "--dtype auto"))
    assert "FOREWORD_STORE=postgresql://u:pass@db/f" in line
    assert ticket.SECRET not in line
    alone = {"PATH": "/usr/bin:/bin", ticket.SECRET: ""}  # no key can be made here
    ended = subprocess.run(["sh", "-c", line], env=alone, capture_output=True, text=True)
    assert ended.returncode != 0
    assert "vllm" not in ended.stderr.replace("foreword.serving.vllm", "")  # it was not even tried
    started = launch.arguments(["--uds", "/x/vllm"], dtype="float32")
    environment = launch.environment(configuration, SECRET)
    assert environment[STORE] not in " ".join(started)
    assert SECRET not in " ".join(started)
    assert environment["VLLM_API_KEY"] == ticket.api_key(SECRET) != SECRET


def test_whoever_speaks_no_http_is_no_vllm() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def speak() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"SSH-2.0-OpenSSH\r\n")

        speaker = threading.Thread(target=speak)
        speaker.start()
        assert not answers(f"http://127.0.0.1:{listening.getsockname()[1]}")
        speaker.join()


def test_settings_of_vllm_without_vllm_are_refused() -> None:
    for settings, message in [
        ({"engine_url": "http://127.0.0.1:8001"}, "take vllm"),
        ({"engine": "vllm", "engine_url": "127.0.0.1:8001"}, "expected a URL"),
    ]:
        with pytest.raises(UsageError, match=message):
            of(settings)
    with pytest.raises(UsageError, match="engine_arguments"):
        launch.more_arguments(of({"engine": "vllm", "engine_arguments": "--a 'b"}))


def test_a_vllm_takes_the_factors_of_longrope_that_the_base_has(tmp_path: Path) -> None:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 100.0,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 32,
    }
    folder = save_tiny(tmp_path / "long", rope_parameters=rope)
    for long, most in ((False, 32), (True, 128)):
        configuration = of({"engine": "vllm", "base": str(folder), "long_context": long, "dtype": "float32"})
        base = open_base(configuration)
        line = launch.shell_line(configuration, str(folder), base)
        assert f"--max-model-len {most}" in line
        launch._check_factors(configuration, base, most)
        with pytest.raises(UsageError, match=f"long_context is {str(long).lower()}, but vLLM"):
            launch._check_factors(configuration, base, 32 if long else 64)
        hf_config = AutoConfig.from_pretrained(folder)
        model_config = SimpleNamespace(model=str(folder), hf_config=hf_config, max_model_len=most)
        assert weights_of(SimpleNamespace(model_config=model_config), fingerprint) == base.fingerprint


def test_dynamic_rotary_embeddings_are_the_local_engine_s(tiny_base: BaseModel) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0}
    base = BaseModel(tiny_llama(rope_parameters=rope), byte_tokenizer(), name="dynamic")
    check_base(tiny_base)
    with pytest.raises(UnsupportedArchitecture, match="dynamic rotary embeddings"):
        check_base(base)


def test_a_hybrid_is_refused_by_name_from_its_files(tmp_path: Path) -> None:
    Architecture("LFM2", "lfm2", CONVOLUTION).model().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    base = open_base(of({"engine": "vllm", "base": str(tmp_path), "dtype": "float32"}))
    with pytest.raises(UnsupportedArchitecture, match="it is a hybrid"):
        check_base(base)


# -- started again ------------------------------------------------------------------------------------

PRETENDED = """
import http.server, pathlib, socketserver, sys
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if pathlib.Path(sys.argv[2]).exists() else 200)
        self.end_headers()
    def log_message(self, *_): pass
socketserver.UnixStreamServer(sys.argv[1], Health).serve_forever()
"""


def test_a_vllm_that_does_not_answer_is_ended_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "SECONDS", 0.01)
    monkeypatch.setattr(process, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(process, "FIRST_PAUSE", 0.01)
    place, deaf = tmp_path / "vllm", tmp_path / "deaf"
    command = [sys.executable, "-c", PRETENDED, str(place), str(deaf)]
    url = process.UNIX + str(place)
    running = process.VllmProcess(command, {}, url, start_seconds=60, silent_seconds=0.1)
    try:
        running.wait()
        first, popen, failed = running.pid, subprocess.Popen, list[str]()

        def no_memory(*given: Any, **more: Any) -> Any:
            """The first time."""
            if not failed:
                failed.append("once")
                raise BlockingIOError(11, "Resource temporarily unavailable")
            return popen(*given, **more)

        monkeypatch.setattr(subprocess, "Popen", no_memory)
        deaf.touch()
        while running.pid == first:
            time.sleep(0.01)
        deaf.unlink()
        while not answers(running.url):
            time.sleep(0.01)
        assert (running.started, failed) == (2, ["once"])
    finally:
        running.close()
    assert not answers(running.url)


# -- the keeper ---------------------------------------------------------------------------------------

KEEPER = Path(launch.__file__).with_name("process_guard.py")


def test_what_the_keeper_runs_ends_with_whoever_started_it(tmp_path: Path) -> None:
    """Standard input ends, as after a kill -9 of the gateway: the command and what it started are gone.

    They are after the end of a terminal, too, which all processes in it are told of.
    """
    pids = tmp_path / "pids"
    script = f"sleep 60 & echo $$ $! > {pids}.new; mv {pids}.new {pids}; wait"
    keeper = subprocess.Popen([sys.executable, str(KEEPER), "sh", "-c", script], stdin=subprocess.PIPE)
    while not pids.exists():
        assert keeper.poll() is None
        time.sleep(0.01)
    for of_a_terminal in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        keeper.send_signal(of_a_terminal)
    keeper.stdin.close()
    assert keeper.wait(30) == 128 + signal.SIGTERM
    for pid in map(int, pids.read_text().split()):
        with pytest.raises(ProcessLookupError):
            for _ in range(1000):  # the last of them is reaped by init
                os.kill(pid, 0)
                time.sleep(0.01)


def test_the_keeper_passes_on_the_commands_status() -> None:
    keeper = subprocess.Popen([sys.executable, str(KEEPER), "sh", "-c", "exit 7"], stdin=subprocess.PIPE)
    assert keeper.wait(30) == 7  # with standard input open: its end would end the command
    keeper.stdin.close()
