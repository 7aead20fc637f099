"""Every write, flush, rename, delete and commit of everyday work, made to fail once: `make test-faults`.

What is promised: nothing that was confirmed is lost, nothing half done is listed, a failure has a name, repeating
the call succeeds, and nothing is left over.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.figure
import pytest

from faults.scenarios import Outcome, Scenario, World, check
from support.stores import new_database, run_sql

FINDINGS = "fault injection"


@pytest.fixture
def world_folder() -> Iterator[Path]:
    """A folder in memory where there is one: thousands of flushes of a disk take minutes."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        dir=memory if memory.is_dir() else None, ignore_cleanup_errors=True
    ) as folder:
        yield Path(folder).resolve()


@pytest.fixture(scope="session")
def quick_postgres(postgres_server: str) -> str:
    """The server of `postgres_server`, which no test stops, so that it need not flush."""
    run_sql(postgres_server.format("postgres"), "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")
    return postgres_server


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> str | None:
    """The URL of an empty PostgreSQL database; None for SQLite."""
    return new_database(request.getfixturevalue("quick_postgres")) if request.param == "postgres" else None


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of losses takes a tenth of a second; here its bytes are enough."""
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda self, file, **_: file.write(b"picture"))


@pytest.fixture
def injected(record_property: Callable[[str, Any], None]) -> Callable[..., Outcome]:
    """Let every point of a scenario fail in every way; all must hold."""

    def run(scenario: Scenario, world: World, *, postgres: bool = False) -> Outcome:
        outcome = check(scenario, world, postgres=postgres)
        record = {
            "scenario": scenario.name,
            "database": "PostgreSQL" if postgres else "SQLite",
            "points": outcome.points,
            "failures": outcome.failures,
            "by_kind": dict(outcome.kinds),
            "problems": outcome.problems,
        }
        record_property(FINDINGS, record)
        shown = "\n".join(outcome.problems[:40])
        assert not outcome.problems, f"{len(outcome.problems)} of {outcome.failures} did not hold:\n{shown}"
        return outcome

    return run


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--faults-json FILE`: what was injected, and what did not hold."""
    parser.addoption("--faults-json", metavar="FILE", help="write what was injected to a file")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say how many points there were, and how many failures."""
    records = [
        value
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "call"
        for name, value in report.user_properties
        if name == FINDINGS
    ]
    if not records:
        return
    kinds: Counter[str] = Counter()
    for record in records:
        kinds.update(record["by_kind"])
    bad = sum(len(record["problems"]) for record in records)
    points, failures = (sum(record[name] for record in records) for name in ("points", "failures"))
    held = "all held" if not bad else f"{bad} did NOT hold"
    terminalreporter.write_line(
        f"fault injection: {points} points in {len(records)} scenarios, {failures} failures injected "
        f"({', '.join(f'{number} {kind}' for kind, number in kinds.most_common())}), {held}"
    )
    if (path := config.getoption("--faults-json", None)) is not None:
        summary = {"points": points, "failures": failures, "did_not_hold": bad, "scenarios": records}
        Path(path).write_text(json.dumps(summary, indent=1) + "\n")
