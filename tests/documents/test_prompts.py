"""Prompts that have nothing to do with a document: for training, with answers, and to measure harm on."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

import foreword.documents
from foreword.examples import read_examples

ROOT = Path(__file__).parents[2]
FOLDER = Path(foreword.documents.__file__).parent
FILES = {"unrelated.jsonl": 160, "harm_prompts.txt": 100}
"""The files and how many prompts each has, one a line."""

ANSWER_WORDS = (8, 40)
"""An answer has at least and at most so many words: about as many tokens as harm is measured along."""

MOST_ALIKE = 0.6
"""Above this share of common words (Jaccard), two prompts count as one asked in other words."""


def prompts(name: str) -> list[str]:
    if name.endswith(".jsonl"):
        return [str(example.source) for example in read_examples(FOLDER / name)]
    return (FOLDER / name).read_text(encoding="utf-8").removesuffix("\n").split("\n")


def words(prompt: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", prompt.casefold()))


@pytest.mark.parametrize("name", FILES)
def test_a_file_has_its_number_of_prompts_each_of_a_usual_length(name):
    lines = prompts(name)
    assert len(lines) == FILES[name]
    assert [line for line in lines if line != line.strip() or not 2 <= len(line.split()) <= 80] == []


@pytest.mark.parametrize("name", FILES)
def test_no_prompt_stands_twice_in_a_file(name):
    normalised = [" ".join(re.findall(r"\w+", line.casefold())) for line in prompts(name)]
    assert [line for line in set(normalised) if normalised.count(line) > 1] == []


def test_each_prompt_of_training_has_an_answer_of_its_own_of_a_small_models_length():
    answers = [example.target for example in read_examples(FOLDER / "unrelated.jsonl")]
    least, most = ANSWER_WORDS
    assert [each for each in answers if each != each.strip() or not least <= len(each.split()) <= most] == []
    assert len(set(answers)) == len(answers)
    assert [each for each in answers if each.count("```") % 2] == []  # a block of code that does not end


def test_no_prompt_that_measures_harm_is_nearly_one_of_training():
    trained = [(prompt, words(prompt)) for prompt in prompts("unrelated.jsonl")]
    alike = [
        (measured, prompt)
        for measured in prompts("harm_prompts.txt")
        for prompt, its in trained
        if len(its & words(measured)) > MOST_ALIKE * len(its | words(measured))
    ]
    assert alike == []


def test_the_wheel_has_the_prompts():
    """Hatchling takes every file of a package that git doesn't ignore, unless the build's settings say otherwise."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    wheel = build["targets"]["wheel"]
    assert wheel["packages"] == ["src/foreword"]
    assert {"include", "exclude", "only-include"}.isdisjoint({*build, *wheel})
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    assert [(name, pattern) for name in FILES for pattern in ignored if fnmatch(name, pattern)] == []
