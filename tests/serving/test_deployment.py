"""What ships for operators agrees with the server: dashboard and compose file."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from foreword.serving.config import Configuration, read
from foreword.serving.vllm import launch, ticket
from support.gateways import Gateway, running, tiny_chat_base

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    with running(tmp_path, tiny_chat_base()) as started:
        yield started


def test_the_dashboard_asks_for_measurements_that_there_are(gateway: Gateway) -> None:
    told = httpx.get(f"{gateway.url}/metrics").text
    there = set(re.findall(r"^# TYPE (\S+) (\S+)", told, flags=re.M))
    names = {name for name, kind in there if kind != "histogram"}
    names |= {f"{name}_bucket" for name, kind in there if kind == "histogram"}
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = {name for query in queries for name in re.findall(r"foreword_\w+", query)}
    # Told by engines that measure themselves, which the tests' plain one does not.
    assert asked - names <= {"foreword_engine"}
    assert len(asked) > 10


def test_the_dashboard_is_what_its_script_writes() -> None:
    sys.path.insert(0, str(DEPLOY))
    try:
        from make_grafana import dashboard
    finally:
        sys.path.remove(str(DEPLOY))
    assert json.loads((DEPLOY / "grafana.json").read_text()) == dashboard()


def test_compose_sets_what_the_server_knows(tmp_path: Path) -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    environment = {k: v for k, v in services["foreword"]["environment"].items() if k.startswith("FOREWORD_")}
    configuration = read(None, environment, {})
    assert configuration.connections_per_address is None
    assert configuration.checkpoints == "/var/lib/foreword/checkpoints"
    # Of the command line's own variables.
    assert set(environment) - {
        f"FOREWORD_SERVE_{name}" for name in ("CHECKPOINTS", "CONNECTIONS_PER_ADDRESS")
    } == {
        "FOREWORD_STORE",
        "FOREWORD_STORE_BLOBS",
    }
    grace = int(services["foreword"]["stop_grace_period"].removesuffix("s"))
    assert grace > configuration.drain_seconds


def test_compose_starts_vllm_as_the_server_would(tmp_path: Path) -> None:
    services = yaml.safe_load((DEPLOY / "compose.vllm.yaml").read_text())["services"]
    environment = services["foreword"]["environment"]
    settings = {k: str(v) for k, v in environment.items() if k.startswith("FOREWORD_SERVE_")}
    configuration = read(None, settings, {})
    assert configuration.engine == "vllm"
    (script,) = services["vllm"]["command"]
    words = shlex.split(script.replace("\\\n", " ").split("exec ")[1])
    folder = f"/var/cache/foreword/models/{configuration.base}"
    started = launch.arguments(["--host", "0.0.0.0", "--port", "8001"], dtype=configuration.dtype)
    assert words == ["vllm", "serve", folder, *started]
    assert configuration.engine_url == "http://vllm:8001"
    assert services["pull"]["command"] == ["pull", configuration.base]
    assert services["vllm"]["environment"][ticket.SECRET] == environment[ticket.SECRET]


def test_grafana_and_prometheus_reach_the_server_alone() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    networks = {name: service.get("networks", ["default"]) for name, service in compose["services"].items()}
    assert networks["grafana"] == networks["prometheus"] == ["watch"]
    assert {name for name, its in networks.items() if "watch" in its} == {"foreword", "grafana", "prometheus"}
    # Nobody is let in with a password that all know, and an empty one means Grafana's own first.
    passwords = re.findall(r"\$\{(\w+_PASSWORD)(.*?)}", (DEPLOY / "compose.yaml").read_text())
    assert {name for name, _ in passwords} == {f"{of}_PASSWORD" for of in ("POSTGRES", "STORAGE", "GRAFANA")}
    assert all(rest.startswith(":?") for _, rest in passwords)


def test_the_page_on_security_names_tests_targets_and_settings_that_there_are() -> None:
    page = (DEPLOY.parent / "docs" / "security.md").read_text()
    paths = set(re.findall(r"`((?:tests|deploy)/[^`]+)`", page))
    assert len(paths) > 10
    assert {path for path in paths if not (DEPLOY.parent / path).exists()} == set()
    makefile = (DEPLOY.parent / "Makefile").read_text()
    assert all(f"\n{target}:" in makefile for target in re.findall(r"`make ([a-z-]+)`", page))
    settings = {each.name for each in dataclasses.fields(Configuration)}
    assert set(re.findall(r"`([a-z]+_(?:seconds|bytes|address))`?", page)) <= settings


def test_the_proxy_keeps_to_what_the_server_allows() -> None:
    """nginx itself reads the file in tests/faults, where it is installed."""
    text = re.sub(r"#.*", "", (DEPLOY / "nginx.conf").read_text())
    told = {name: value for name, value in re.findall(r"^\s*([a-z_]+) ([^;{]+);", text, flags=re.M)}
    assert (told["proxy_buffering"], told["proxy_request_buffering"]) == ("off", "on")
    sizes = [int(size) << 20 for size in re.findall(r"client_max_body_size (\d+)m;", text)]
    assert sizes[0] == Configuration().body_bytes
    assert Configuration().upload_bytes < sizes[1] < 1.1 * Configuration().upload_bytes
    (upstream,) = re.findall(r"upstream foreword {(.*?)}", text, flags=re.S)
    (idle,) = re.findall(r"keepalive_timeout (\d+)s;", upstream)
    assert int(idle) < Configuration().head_seconds
    assert f"server 127.0.0.1:{Configuration().port};" in upstream
    # What a client writes there itself must not reach the server.
    assert "proxy_set_header X-Forwarded-For $remote_addr;" in text
    assert "https://$host" not in text
