"""The Python of pages that introduce it runs as it stands there, on a tiny model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from foreword import BaseModel, Prefix
from support.saved_bases import save_tiny
from support.stand_ins import random_examples

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the pages speak of; the alias means the tiny model in it."""
    save_tiny(tmp_path / "my-model")
    rows = [{"source": one.source, "target": one.target} for one in random_examples(8)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    load = BaseModel.load

    def tiny(name: str, **options: Any) -> BaseModel:
        return load("my-model" if name == "smollm2-135m-instruct" else name, **options)

    monkeypatch.setattr(BaseModel, "load", tiny)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(page: str) -> dict[str, Any]:
    """Run all Python of a page, block after block, as one program; what its names stand for in the end."""
    blocks = re.findall(
        r"^```python\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{page}, block {number}", "exec"), names)
    return names


def test_the_page_on_python(place: Path) -> None:
    names = run("python.md")
    assert Prefix.load("mine.prefix") == names["prefix"]
    assert len(names["texts"]) == 2
    assert [row.shape for row in names["losses"]] == [(len(one.target) + 1,) for one in names["examples"]]


def test_the_page_on_preferences(place: Path) -> None:
    names = run("preferences.md")
    assert names["prefix"].report["method"] == "dpo"


def test_the_page_on_base_models(place: Path) -> None:
    names = run("base-models.md")
    assert names["base"].fingerprint == BaseModel.load("my-model").fingerprint


def test_the_page_for_those_who_come_from_peft(place: Path) -> None:
    peft = pytest.importorskip("peft")
    names = run("from-peft.md")
    assert names["old"].length == names["prefix"].length == 10
    assert len(names["texts"]) == 2
    from transformers import AutoModelForCausalLM

    there = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("my-model"), "exported")
    assert there.active_peft_config.num_virtual_tokens == 10


def test_the_page_on_the_prefix_file(place: Path) -> None:
    names = run("format.md")
    assert Prefix.load("example.prefix") == names["made"]
