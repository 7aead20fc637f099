"""Floods of connections against a whole server, and the proxy of deploy/nginx.conf in front of one.

`make test-faults` runs them; the rules one by one are in tests/serving/test_connections.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from foreword.store import PrefixStore
from support.saved_bases import save_tiny
from support.served_processes import ServedProcess, wait_for

REPOSITORY = Path(__file__).parents[2]
ANSWER_SECONDS = 10.0
"""Far more than an answer takes, far less than a flood lasts."""


@contextlib.contextmanager
def keyed(folder: Path, *settings: str) -> Iterator[tuple[ServedProcess, httpx.Client]]:
    """A server with keys in a process of its own, and a client with one."""
    store = folder / "store"
    with PrefixStore(store) as opened:
        secret = opened.create_key("alice", "owner").secret
    arguments = ["--base", str(save_tiny(folder / "tiny")), "--store", str(store), "--port", "0"]
    arguments += ["--no-training", *(word for each in settings for word in ("--set", each))]
    server = ServedProcess(arguments, folder / "log", None)
    headers = {"authorization": f"Bearer {secret}"}
    try:
        with httpx.Client(base_url=f"{server.url}/", headers=headers, timeout=ANSWER_SECONDS) as client:
            yield server, client
    finally:
        server.stop()
        assert server.process.stdout is not None
        server.process.stdout.close()


def ask(client: httpx.Client) -> None:
    """A request with a key over a new connection, answered in time."""
    body = {"model": "tiny", "prompt": "abc", "max_tokens": 2}
    answer = client.post("completions", json=body, headers={"connection": "close"})
    assert answer.status_code == 200, answer.text


def half_open(server: ServedProcess, number: int, sent: bytes) -> list[socket.socket]:
    """Connections that never send a whole request."""
    url = httpx.URL(server.url)
    opened = []
    for _ in range(number):
        client = socket.create_connection((url.host, url.port), timeout=ANSWER_SECONDS)
        client.sendall(sent)
        opened.append(client)
    return opened


def is_closed(client: socket.socket) -> bool:
    """Whether the server has ended it."""
    client.setblocking(False)
    try:
        return client.recv(1000) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def test_500_half_open_connections_are_dropped_and_others_answered_meanwhile(tmp_path: Path) -> None:
    """Silent ones, and those that stop within a head."""
    with keyed(tmp_path, "head_seconds=5") as (server, client):
        for sent in (b"", b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX-A: "):
            ask(client)
            crowd = half_open(server, 500, sent)
            began = time.monotonic()
            for _ in range(5):
                ask(client)
            seconds, there = (time.monotonic() - began) / 5, sum(not is_closed(c) for c in crowd)
            print(f"{seconds:.3f} s an answer beside {there}")
            assert there  # while others were answered
            wait_for(lambda crowd=crowd: all(map(is_closed, crowd)), "the end of the connections")
            ask(client)


def test_beyond_the_most_connections_those_that_wait_make_room(tmp_path: Path) -> None:
    with keyed(tmp_path, "connections=40", "head_seconds=600") as (server, client):
        crowd = half_open(server, 500, b"GET /")
        ask(client)
        assert sum(not is_closed(each) for each in crowd) < 41


def test_without_free_descriptors_the_log_stays_small_and_the_server_comes_back(tmp_path: Path) -> None:
    with keyed(tmp_path, "head_seconds=5") as (server, client):
        ask(client)
        taken = len(os.listdir(f"/proc/{server.process.pid}/fd"))
        lines = len(server.log.read_text().splitlines())
        # Lowered from outside, so that the server's own limit of connections does not come first.
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (taken + 20, taken + 20))
        crowd = half_open(server, 150, b"GET /")
        wait_for(lambda: "out of system resource" in server.log.read_text(), "the fault")
        time.sleep(3)  # of a server that can accept nothing
        for each in crowd:
            each.close()
        wait_for(lambda: answered(client), "an answer afterwards")
        assert len(server.log.read_text().splitlines()) - lines < 50


def answered(client: httpx.Client) -> bool:
    try:
        ask(client)
    except httpx.TransportError:
        return False
    return True


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[tuple[httpx.Client, int]]:
    """nginx with the configuration that ships, its ports, names and files replaced by those of this test."""
    if shutil.which("nginx") is None:
        pytest.skip("no nginx here; apt-get install nginx-light")
    with keyed(tmp_path) as (server, client):
        where = tmp_path / "nginx"
        where.mkdir()
        request = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "1",
            "-subj",
            "/CN=api.example.com",
        ]
        request += ["-addext", "subjectAltName=DNS:api.example.com"]
        request += ["-keyout", str(where / "key.pem"), "-out", str(where / "fullchain.pem")]
        subprocess.run(request, check=True, capture_output=True)
        ports = []
        for _ in range(2):
            with socket.create_server(("127.0.0.1", 0)) as free:
                ports.append(free.getsockname()[1])
        text = (REPOSITORY / "deploy" / "nginx.conf").read_text()
        for old, new in (
            ("server 127.0.0.1:8000", f"server 127.0.0.1:{httpx.URL(server.url).port}"),
            ("listen 80;", f"listen 127.0.0.1:{ports[0]};"),
            ("listen 443 ssl", f"listen 127.0.0.1:{ports[1]} ssl"),
            ("/etc/ssl/foreword", str(where)),
            (
                "http {\n",
                f"http {{\n    client_body_temp_path {where}/body;\n    proxy_temp_path {where}/proxy;\n"
                f"    fastcgi_temp_path {where}/f;\n    uwsgi_temp_path {where}/u;\n    scgi_temp_path {where}/s;\n",
            ),
        ):
            assert old in text, old
            text = text.replace(old, new)
        # Else its workers, of another user, could not write into this folder.
        user = "user root;\n" if os.geteuid() == 0 else ""
        (where / "nginx.conf").write_text(
            f"{user}pid {where}/pid;\nerror_log {where}/error.log;\ndaemon off;\n{text}"
        )
        command = ["nginx", "-p", str(where), "-c", str(where / "nginx.conf"), "-e", str(where / "error.log")]
        subprocess.run([*command, "-t"], check=True, capture_output=True)
        running = subprocess.Popen(command)
        context = ssl.create_default_context(cafile=str(where / "fullchain.pem"))
        url = f"https://127.0.0.1:{ports[1]}/v1/"
        with httpx.Client(base_url=url, headers=client.headers, verify=context, timeout=60) as through:
            through.headers["host"] = "api.example.com"
            wait_for(lambda: reached(ports[1]), "nginx")
            try:
                yield through, ports[0]
            finally:
                running.terminate()
                running.wait(20)


def reached(port: int) -> bool:
    with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def test_the_proxy_that_ships_streams_limits_and_hides(proxy: tuple[httpx.Client, int]) -> None:
    client, plain = proxy
    name = {"sni_hostname": "api.example.com"}
    body = {"model": "tiny", "prompt": "abc", "max_tokens": 40, "temperature": 0, "stream": True}
    with client.stream("POST", "completions", json=body, extensions=name) as answer:
        assert answer.headers["strict-transport-security"]
        assert answer.headers["x-request-id"]
        pieces = list(answer.iter_raw())
    assert b"[DONE]" in b"".join(pieces)
    assert len(pieces) > 10  # as they were written, not kept until the end
    assert client.get("models", extensions=name).status_code == 200
    large = client.post("completions", content=b"x" * (5 << 20), extensions=name)
    assert large.status_code == 413
    file = {"file": ("t.jsonl", json.dumps({"source": "a", "target": "b" * (5 << 20)}).encode())}
    put = client.post("files", files=file, data={"purpose": "fine-tune"}, extensions=name)
    assert put.status_code in (200, 400), put.text  # it has reached the server
    for hidden in ("/metrics", "/readyz"):
        assert client.get(f"{client.base_url.copy_with(path=hidden)}", extensions=name).status_code == 404
    with httpx.Client(verify=False) as stranger, pytest.raises(httpx.ConnectError, match="unrecognized"):
        stranger.get(f"{client.base_url}models", extensions={"sni_hostname": "other.example.com"})
    with httpx.Client() as unsafe:
        moved = unsafe.get(f"http://127.0.0.1:{plain}/v1/models", headers={"host": "api.example.com"})
        assert (moved.status_code, moved.headers["location"]) == (301, "https://api.example.com/v1/models")
