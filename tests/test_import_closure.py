"""How much of the package stands behind a training step, and behind a generated text."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from support.stand_ins import byte_tokenizer, tiny_llama
import foreword
base = foreword.BaseModel(tiny_llama(), byte_tokenizer(), name="tiny-llama")
{work}
names = sorted(name for name in sys.modules if name.split(".")[0] == "foreword")
print(*(name for name in names if name != "foreword._aliases"))  # old paths are not counted
"""

TRAIN = 'foreword.train(base, [foreword.Example("ab", "cd")], length=2, steps=1)'
GENERATE = 'foreword.generate(base, ["ab"], max_new_tokens=2)'


@pytest.mark.parametrize(
    ("work", "most", "unneeded"),
    [(TRAIN, 45, "foreword.generation"), (GENERATE, 38, "foreword.training")],
    ids=["train", "generate"],
)
def test_few_modules_of_the_package_are_imported(work: str, most: int, unneeded: str) -> None:
    paths = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(work=work)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    imported = done.stdout.split()
    assert "foreword.base.attention" in imported
    assert len(imported) <= most, imported
    assert unneeded not in imported
