"""What an answer with an error must look like, and what it must not have changed."""

from __future__ import annotations

from typing import Any

import httpx

from support.gateways import Gateway


def error(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    found: dict[str, Any] = response.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    assert found["message"]
    assert response.headers["x-request-id"]
    return found


def state(gateway: Gateway) -> tuple[Any, ...]:
    """What must not have changed: prefixes, files, jobs, and rows under way."""
    tables = [
        gateway.store.catalogue.read(
            lambda c, t=table: c.exec_driver_sql(f"SELECT count(*) FROM {t}").scalar()
        )
        for table in ("version", "upload", "job", "job_event")
    ]
    return (*tables, gateway.engine.rows, gateway.server.rows)
