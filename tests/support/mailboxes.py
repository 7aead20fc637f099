"""Three owners with a few examples each, and files of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from foreword import Example
from support.stand_ins import random_examples

OWNERS = {
    owner: [dataclasses.replace(example, owner=owner) for example in random_examples(count, seed=count)]
    for owner, count in {"alice": 9, "bob": 5, "eve": 3}.items()
}


def write(path: Path, owners: Mapping[str, Sequence[Example]], field: str = "owner") -> str:
    """Rows of all owners in turns."""
    rows = [
        {field: owner, "source": examples[n].source, "target": examples[n].target}
        for n in range(max(map(len, owners.values())))
        for owner, examples in owners.items()
        if n < len(examples)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.name
