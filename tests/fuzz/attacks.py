"""The files that the scripts of attacks/ forge."""

from __future__ import annotations

import functools
import runpy
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "attacks"
SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if path.stem != "forge")


@functools.cache
def files() -> tuple[tuple[str, bytes], ...]:
    """Each with the name of its script."""
    found: list[tuple[str, bytes]] = []
    sys.path.insert(0, str(FOLDER))
    try:
        import forge  # type: ignore[import-not-found]

        for script in SCRIPTS:
            forge.show = lambda content, name=script.stem: found.append((name, content))
            runpy.run_path(str(script))
    finally:
        sys.path.remove(str(FOLDER))
        sys.modules.pop("forge", None)
    return tuple(found)
