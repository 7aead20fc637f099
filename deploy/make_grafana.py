"""Write grafana.json, the dashboard of a server: `python deploy/make_grafana.py`.

The panels are made here, so that their queries stand in one short list.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WINDOW = "$__rate_interval"
PANELS = [
    # title, unit, (legend, query) ...
    (
        "Requests a second",
        "reqps",
        ("{{route}} {{status}}", f"sum by (route, status) (rate(foreword_requests_total[{WINDOW}]))"),
    ),
    ("Refused a second", "reqps", ("{{code}}", f"sum by (code) (rate(foreword_refused_total[{WINDOW}]))")),
    ("Tokens a second", "short", ("{{kind}}", f"sum by (kind) (rate(foreword_tokens_total[{WINDOW}]))")),
    (
        "Seconds of a request",
        "s",
        *(
            (
                f"p{share}",
                f"histogram_quantile(0.{share}, "
                f"sum by (le) (rate(foreword_request_seconds_bucket[{WINDOW}])))",
            )
            for share in (50, 95, 99)
        ),
    ),
    (
        "Seconds to the first text",
        "s",
        *(
            (
                f"p{share}",
                f"histogram_quantile(0.{share}, "
                f"sum by (le) (rate(foreword_first_token_seconds_bucket[{WINDOW}])))",
            )
            for share in (50, 95, 99)
        ),
    ),
    (
        "Texts under way",
        "short",
        ("written or waiting", "sum(foreword_rows)"),
        ("in the batch", 'sum(foreword_engine{what="rows_running"})'),
        ("waiting", 'sum(foreword_engine{what="rows_waiting"})'),
    ),
    ("Batch fill", "percentunit", ("{{instance}}", 'foreword_engine{what="batch_fill"}')),
    (
        "Prefixes read a second, by tier",
        "ops",
        ("{{tier}}", f"sum by (tier) (rate(foreword_cache_reads[{WINDOW}]))"),
    ),
    (
        "Seconds to load a prefix",
        "s",
        *(
            (
                f"p{share}",
                f"histogram_quantile(0.{share}, "
                f"sum by (le) (rate(foreword_prefix_load_seconds_bucket[{WINDOW}])))",
            )
            for share in (50, 99)
        ),
    ),
    ("Bytes of cached prefixes", "bytes", ("{{tier}}", "sum by (tier) (foreword_cache_bytes)")),
    ("Jobs", "short", ("{{state}}", "max by (state) (foreword_jobs)")),
    (
        "Training processes",
        "short",
        ("running", 'sum(foreword_training{what="running"})'),
        ("died", 'sum(foreword_training{what="died"})'),
    ),
]
WIDTH, HEIGHT = 8, 8
COLUMNS = 24 // WIDTH


def panel(number: int, title: str, unit: str, *queries: tuple[str, str]) -> dict[str, Any]:
    """One picture of lines over time."""
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title,
        "datasource": {"type": "prometheus", "uid": "prometheus"},
        "gridPos": {
            "x": number % COLUMNS * WIDTH,
            "y": number // COLUMNS * HEIGHT,
            "w": WIDTH,
            "h": HEIGHT,
        },
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + place), "legendFormat": legend, "expr": query}
            for place, (legend, query) in enumerate(queries)
        ],
    }


def dashboard() -> dict[str, Any]:
    """All of it, as Grafana takes it."""
    return {
        "uid": "foreword",
        "title": "Foreword",
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "tags": ["foreword"],
        "panels": [panel(number, *what) for number, what in enumerate(PANELS)],
    }


if __name__ == "__main__":
    Path(__file__).with_name("grafana.json").write_text(json.dumps(dashboard(), indent=2) + "\n")
