"""Report: the parts in Markdown that reports of all experiments have."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from foreword.markdown import table


def conditions(
    command: str, base: str, sessions: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> str:
    """How the figures came about: command, base, hardware and settings."""
    machines = dict.fromkeys(_machine(session) for session in sessions)
    rows = [[name, "default" if value is None else str(value)] for name, value in settings.items()]
    return (
        f"## How it was measured\n\n```\n{command}\n```\n\n"
        f"- Base model: {base}\n"
        f"- Hardware: {'; then '.join(machines)}\n\n"
        f"{table(['setting', 'value'], rows)}"
    )


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation, of two or more."""
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}"


def _machine(session: Mapping[str, Any]) -> str:
    return (
        f"{session['device']}, {session['threads']} threads on {session['cores']} cores, "
        f"{session['system']}; Python {session['python']}, torch {session['torch']}, transformers "
        f"{session['transformers']}, foreword {session['foreword']}"
    )
