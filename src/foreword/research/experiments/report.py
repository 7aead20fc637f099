"""Report: the parts in Markdown that reports of all experiments have."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from foreword.reporting.markdown import table


def conditions(
    command: str, base: str, sessions: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> str:
    """How the figures came about: command, base, hardware and settings.

    Args:
        command: that makes these figures, all of them.
        sessions: the starts that made them in fact, told where they were others.
    """
    machines = dict.fromkeys(_machine(session) for session in sessions)
    commands = list(dict.fromkeys(session["command"] for session in sessions))
    starts = "".join(f"{number}. `{each}`\n" for number, each in enumerate(commands, 1))
    made = (
        "" if commands == [command] else f"What it shows was made in these starts of the run:\n\n{starts}\n"
    )
    rows = [[name, "default" if value is None else str(value)] for name, value in settings.items()]
    return (
        f"## How it was measured\n\n```\n{command}\n```\n\n{made}"
        f"- Base model: {base}\n"
        f"- Hardware: {'; then '.join(machines)}\n\n"
        f"{table(['setting', 'value'], rows)}"
    )


def counted(number: int, noun: str) -> str:
    """A number and what it is of, in the plural where it needs one."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation, of two or more."""
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}"


def _machine(session: Mapping[str, Any]) -> str:
    threads = counted(session["threads"], "thread")
    packages = {
        name: session[name] for name in ("torch", "transformers", "peft", "foreword") if name in session
    }
    versions = [f"{name} {version}" for name, version in (packages | session.get("metrics", {})).items()]
    return (
        f"{session['device']}, {threads} on {session['cores']} cores, {session['system']}; "
        f"Python {session['python']}, {', '.join(versions)}"
    )
