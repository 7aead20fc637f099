"""What a finished model in the cache says about itself.

The record is written into the model's folder before the folder gets its name; a folder with a
record whose files are all there, at their full size, is finished.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECORD_NAME = "foreword.json"


@dataclass(frozen=True)
class ResolvedModel:
    """A base model on this disk.

    Attributes:
        path: folder with config.json, safetensors and tokenizer.
        name: the alias, hub id or folder that was asked for.
        revision: commit on the hub, or digest of the GGUF file; None for a folder of the user's.
        licence: licence of the weights where the source tells.
        source: where the files came from, for people.
    """

    path: Path
    name: str
    revision: str | None
    licence: str | None
    source: str


def write_record(folder: Path, model: ResolvedModel) -> None:
    """Describe `model`, whose files may live in `folder` or (hub snapshots) elsewhere."""
    content: dict[str, Any] = dataclasses.asdict(model)
    content["path"] = "." if model.path == folder else str(model.path)
    content["files"] = {
        file.name: file.stat().st_size for file in sorted(model.path.iterdir()) if file.is_file()
    }
    (folder / RECORD_NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_record(folder: Path) -> ResolvedModel | None:
    """The finished model in `folder`, or None when there is none or part of it is missing."""
    try:
        content = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
        files: dict[str, int] = content.pop("files")
        path = folder if (kept := content.pop("path")) == "." else Path(kept)
        whole = all((path / name).stat().st_size == size for name, size in files.items())
        if not whole or "config.json" not in files:
            return None
        return ResolvedModel(path=path, **content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
