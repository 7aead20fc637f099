"""The table of endpoints in the docs: every one that the server has, and no other."""

from __future__ import annotations

import inspect
import operator
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx2
import openai
from starlette.routing import Route

from foreword.serving.api.app import make_app
from foreword.serving.config import Configuration

PAGE = Path(__file__).parents[2] / "docs" / "serve.md"
SECTION = PAGE.read_text(encoding="utf-8").split("\n## Endpoints\n")[1].split("\n## ")[0]


def served() -> set[str]:
    """The endpoints of the app: of the API, and the pages that show it."""
    app = make_app(cast(Any, SimpleNamespace(configuration=Configuration())))  # the rest is for requests
    own = {
        f"{method.upper()} {path}" for path, methods in app.openapi()["paths"].items() for method in methods
    }
    paths = {route.path for route in app.routes if isinstance(route, Route)}
    spelt = {f"{path}/" for path in paths}  # such as GET /v1/models/, which is GET /v1/models
    return own | {f"GET {path}" for path in paths - spelt} | {"GET /docs"}


def test_the_table_has_every_endpoint_of_the_app_and_no_other() -> None:
    told = re.findall(r"`((?:GET|POST|PUT|PATCH|DELETE) /[^`]*)`", SECTION)
    assert len(told) == len(set(told))
    assert set(told) == served()


def test_the_calls_in_the_table_are_those_of_the_client_for_that_endpoint() -> None:
    asked: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(f"{request.method} {request.url.path}")
        return httpx2.Response(200, json={"data": []})

    transport = httpx2.Client(transport=httpx2.MockTransport(answer))
    client = openai.OpenAI(api_key="none", base_url="http://server/v1", http_client=transport)
    given: dict[str, Any] = {
        "model": "x",
        "prompt": "x",
        "messages": [],
        "input": "x",
        "file": b"x",
        "purpose": "fine-tune",
        "training_file": "x",
        "file_id": "x",
        "fine_tuning_job_id": "x",
    }
    rows = re.findall(r"^\| `(\w+ /v1/[^`]+)` \| `([\w.]+)` \|", SECTION, re.MULTILINE)
    assert len(rows) == 19
    for endpoint, call in rows:
        method = operator.attrgetter(call)(client)
        needed = inspect.signature(method).parameters.values()
        method(**{one.name: given[one.name] for one in needed if one.default is inspect.Parameter.empty})
        assert asked.pop() == re.sub(r"\{\w+\}", "x", endpoint), call


def test_the_links_in_the_section_are_headings_of_the_page() -> None:
    headings = re.findall(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([\w-]+)\)", SECTION)) <= anchors
