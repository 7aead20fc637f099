"""The readers on data sets as they are published; skipped where these are not at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from foreword.examples import read_examples, references

DATA = Path(os.environ.get("FOREWORD_DATA") or Path(__file__).parents[3] / "shared" / "data")


def published(name: str) -> Path:
    if not (DATA / name).is_file():
        pytest.skip(f"{name} is not in {DATA}; set FOREWORD_DATA to the folder that holds the data sets")
    return DATA / name


@pytest.mark.parametrize(
    ("name", "count", "sources"), [("e2e/trainset.csv", 42_061, 4_862), ("e2e/devset.csv", 4_672, 547)]
)
def test_e2e_has_its_published_counts(name, count, sources):
    examples = read_examples(published(name))
    assert len(examples) == count
    assert len(references(examples)) == sources


def test_e2e_uses_the_slot_names_of_the_original_code():
    examples = read_examples(published("e2e/trainset.csv"))
    slots = {slot.split(" : ")[0] for example in examples for slot in str(example.source).split(" | ")}
    assert slots == {"name", "Type", "food", "price", "customer rating", "area", "family friendly", "near"}


@pytest.mark.parametrize(("name", "papers"), [("scitldr/train.jsonl", 1_991), ("scitldr/dev.jsonl", 618)])
def test_scitldr_has_its_papers(name, papers):
    assert len(references(read_examples(published(name)))) == papers


@pytest.mark.parametrize(("name", "count"), [("aesc/train.jsonl", 5_834), ("aesc/dev.jsonl", 705)])
def test_mails_have_their_users_as_owners(name, count):
    examples = read_examples(published(name), fields={"owner": "user"})
    assert len(examples) == count
    assert len({example.owner for example in examples}) == 31
