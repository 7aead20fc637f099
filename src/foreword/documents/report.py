"""What a document's prefix keeps of the document, and what it changes elsewhere.

Recovered share: R = (loss without - loss with prefix) / (loss without - loss with the whole document), of
answers to questions that training did not have. Harm: KL(base || base with prefix) along the base's own
answers to prompts that have nothing to do with the document.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from foreword.base.base_model import BaseModel
from foreword.base.batch import batches_by_length
from foreword.base.loss import divergences
from foreword.base.prefix_batch import PrefixBatch
from foreword.encoding import encode_example
from foreword.examples import Example
from foreword.generation import generate
from foreword.prefix import Prefix
from foreword.template import Template

HARM_TOKENS = 32
"""Tokens of each of the base's own answers along which harm is measured."""

HARM_BATCH_TOKENS = 1024
"""Tokens of one pass of the base alone; only memory depends on it."""


@dataclass(frozen=True)
class Recovered:
    """Losses of answers per token, in nats, and the share of what the document takes away that a prefix does.

    Attributes:
        answers: how many.
        without, with_prefix, with_document: mean loss per token of all answers.
    """

    answers: int
    without: float
    with_prefix: float
    with_document: float

    @property
    def share(self) -> float | None:
        """R; None where the document itself does not help."""
        gain = self.without - self.with_document
        return (self.without - self.with_prefix) / gain if gain > 0 else None

    def to_json(self) -> dict[str, Any]:
        """For a prefix's report."""
        return {name: _rounded(value) for name, value in dataclasses.asdict(self).items()} | {
            "recovered_share": _rounded(self.share)
        }


def bare_template(base: BaseModel, template: Template) -> Template:
    """What a question becomes where there is no document: the chat template's own, or the base's."""
    if not template.system_in_prefix:
        return base.template
    return dataclasses.replace(template, system_in_prefix=False)


def recovered(
    base: BaseModel,
    prefix: Prefix,
    document: Prefix,
    questions: Sequence[Example],
    sections: Sequence[str] | None = None,
) -> dict[str, Recovered]:
    """Losses of the answers to `questions`: of all by "", and of each section's.

    Args:
        document: the document's own keys and values, as the method `exact` makes them.
        sections: of each question, the section that it asks about.
    """
    bare = bare_template(base, prefix.template)
    losses = [
        [row.double() for row in base.token_losses(questions, given, template=bare)]
        for given in (None, prefix, document)
    ]
    places: dict[str, list[int]] = {"": list(range(len(questions)))}
    for number, section in enumerate(sections or ()):
        places.setdefault(section, []).append(number)
    return {
        section: Recovered(
            len(numbers), *(float(torch.cat([rows[n] for n in numbers]).mean()) for rows in losses)
        )
        for section, numbers in places.items()
    }


def answered(
    base: BaseModel, prefix: Prefix | None, questions: Sequence[Example], template: Template
) -> float:
    """Share of questions whose greedy answer holds the right one, letters and digits alone compared."""
    longest = max(len(base.tokenizer(each.target)["input_ids"]) for each in questions)
    texts = generate(
        base,
        [each.source for each in questions],
        prefix,
        template=None if prefix is not None else template,
        max_new_tokens=longest + 8,
    )
    right = [_plain(each.target) in _plain(text) for each, text in zip(questions, texts, strict=True)]
    return sum(right) / len(right)


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def prompts_of(name: str) -> list[str]:
    """The prompts of a file beside this one: "unrelated_prompts" for training, "harm_prompts" to measure."""
    folder = importlib.resources.files(__package__)
    if name == "unrelated_prompts":  # they stand in a file of examples, with their answers
        lines = folder.joinpath("unrelated.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["source"] for line in lines]
    text = folder.joinpath(f"{name}.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip()]


def own_answers(base: BaseModel, prompts: Sequence[str], template: Template) -> list[Example]:
    """Prompts with the base's own greedy answers."""
    answers = generate(base, prompts, template=template, max_new_tokens=HARM_TOKENS)
    # One that says nothing ends at once, and that end is predicted, too.
    return [Example(source=prompt, target=text) for prompt, text in zip(prompts, answers, strict=True)]


@torch.no_grad()
def harm(base: BaseModel, prefix: Prefix, answers: Sequence[Example]) -> float:
    """Mean over tokens of KL(base || base with prefix) along answers of the base alone, in nats."""
    bare = bare_template(base, prefix.template)
    alone, behind = (
        [encode_example(each, base.tokenizer, template)[0] for each in answers]
        for template in (bare, prefix.template)
    )
    total, count = 0.0, 0
    for indices in batches_by_length(alone, HARM_BATCH_TOKENS):
        prefixes = PrefixBatch.stack([prefix] * len(indices), base.device)
        first = base.batch([alone[index] for index in indices], None, "flat")
        second = base.batch([behind[index] for index in indices], prefixes, "flat")
        found_M = divergences(base.model, first, None, second, prefixes).double()
        total, count = total + float(found_M.sum()), count + found_M.numel()
    return total / count


@functools.lru_cache(maxsize=4)
def harm_answers(base: BaseModel, template: Template, count: int) -> tuple[Example, ...]:
    """The base's own answers to the first `count` prompts that harm is measured on, made once."""
    return tuple(own_answers(base, prompts_of("harm_prompts")[:count], template))


def _rounded(value: float | None) -> float | None:
    return None if value is None else value if isinstance(value, int) else round(value, 4)
