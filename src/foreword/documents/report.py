"""What a document's prefix keeps of the document, what it changes elsewhere, and what it costs.

Recovered share: R = (loss without - loss with prefix) / (loss without - loss with the whole document), of
answers to questions that training did not have. Harm: KL(base || base with prefix) along the base's own
answers to prompts that have nothing to do with the document. Of a document that is longer than the base's
window, the chunk that a question is about stands for the whole.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import re
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from foreword.base.base_model import BaseModel
from foreword.base.batch import batches_by_length
from foreword.base.loss import divergences
from foreword.base.prefix_batch import PrefixBatch
from foreword.documents.checking import PartFinder
from foreword.documents.chunks import Chunk
from foreword.documents.conversations import Conversation, question_of
from foreword.documents.drawn import UNSPACED
from foreword.encoding import encode_example
from foreword.errors import BadExamples, UnknownField
from foreword.examples import Example
from foreword.examples.example import text_of
from foreword.examples.readers import iterate_path
from foreword.generation import generate
from foreword.prefix import Prefix
from foreword.template import Template

HARM_TOKENS = 32
"""Tokens of each of the base's own answers along which harm is measured."""

HARM_BATCH_TOKENS = 1024
"""Tokens of one pass of the base alone; only memory depends on it."""

SHORT_KINDS = ("cloze", "question", "cell")
"""Kinds of conversations whose answers are a few words, so that they are right or wrong."""

SHORT_TOKENS = 8
"""Of the answer to a question of the user's own that counts as short."""

MOST_ANSWERED = 24
"""Questions with short answers that are generated, so that it takes seconds."""

ANSWER_BATCH_TOKENS = 8192
"""Tokens in the cache of one batch of answers; only memory depends on it."""

MOST_SECTIONS, LONGEST_SECTION = 20, 80
"""Sections that a report has, those with most questions, and bytes of their names: a prefix file's report is
8 KiB at most."""

MEASURED_STEPS = 6
"""Passes of `measured` that take a while each: losses and answers without, behind prefix and behind text."""

BEGINNING = "(before the first heading)"


@dataclass(frozen=True, slots=True)
class Question(Example):
    """A question about a document with its answer, for a prefix's report.

    Attributes:
        section: the heading that the answer stands under; None: that of the chunk.
        chunk: number of the chunk that it is about; None: the one that it has most words in common with.
        short: whether the answer is a few words, which are right or wrong.
    """

    section: str | None = None
    chunk: int | None = None
    short: bool = False


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
        return {name: rounded_figure(value) for name, value in dataclasses.asdict(self).items()} | {
            "recovered_share": rounded_figure(self.share)
        }


def bare_template(base: BaseModel, template: Template) -> Template:
    """What a question becomes where there is no document: the chat template's own, or the base's."""
    if not template.system_in_prefix:
        return base.template
    return dataclasses.replace(template, system_in_prefix=False)


def read_questions(path: str | Path) -> list[Question]:
    """Questions with answers from a file of examples, in any format that has them.

    They are called source and target or question and answer, as in the first line. Each may have a section,
    which is the heading that the answer stands under.

    Raises:
        CannotRead, BadExamples: as `read_examples`.
    """
    asked = {"source": "question", "target": "answer"}
    names = asked if not _begins(path, {}) and _begins(path, asked) else {}
    by_section = {**names, "owner": "section"}
    has_sections = _begins(path, by_section)
    found = _examples(path, by_section if has_sections else names)
    return [
        Question(each.source, text_of(each), section=each.owner if has_sections else None) for each in found
    ]


def _begins(path: str | Path, fields: Mapping[str, str]) -> bool:
    """Whether a file's first example has these fields."""
    try:
        _examples(path, fields, 1)
    except BadExamples as error:
        if not isinstance(error, UnknownField) and error.remedy != "format not told":
            raise
        return False
    return True


def _examples(path: str | Path, fields: Mapping[str, str], limit: int | None = None) -> list[Example]:
    return list(iterate_path(path, fields=fields, limit=limit, owner_needed=False))


def questions_of(conversations: Sequence[Conversation]) -> list[Question]:
    """Conversations that were held out of training, as questions."""
    return [
        Question(each.source, each.target, chunk=each.chunk, short=each.kind in SHORT_KINDS)
        for each in conversations
    ]


def placed(base: BaseModel, questions: Sequence[Example], chunks: Sequence[Chunk]) -> list[Question]:
    """Questions with the chunk and the section that each is about.

    Those of the user's own have the chunk that question and answer have most words in common with.
    """
    finder, names = PartFinder([chunk.text for chunk in chunks]), _section_names(chunks)
    found = []
    for given in questions:
        one = given if isinstance(given, Question) else Question(given.source, text_of(given))
        if one.chunk is None:
            number, _ = finder.find(f"{question_of(one.source)}\n{text_of(one)}")
            tokens = len(base.tokenizer(text_of(one), add_special_tokens=False)["input_ids"])
            one = dataclasses.replace(one, chunk=number, short=one.short or tokens <= SHORT_TOKENS)
        of = chunks[one.chunk or 0]
        section = names[of.section, of.section_start] if one.section is None else one.section
        found.append(dataclasses.replace(one, section=section or BEGINNING))
    return found


def _section_names(chunks: Sequence[Chunk]) -> dict[tuple[str, int], str]:
    """What each section is called, by its heading and place; of equal headings the later have a number."""
    times: Counter[str] = Counter()
    names = {}
    for heading, start in dict.fromkeys((chunk.section, chunk.section_start) for chunk in chunks):
        times[heading] += 1
        names[heading, start] = heading if times[heading] == 1 else f"{heading} ({times[heading]})"
    return names


def recovered(
    base: BaseModel,
    prefix: Prefix,
    document: Prefix | Sequence[Prefix],
    questions: Sequence[Example],
    sections: Sequence[str] | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> dict[str, Recovered]:
    """Losses of the answers to `questions`: of all by "", and of each section's.

    Args:
        document: the document's own keys and values, as the method `exact` makes them, or those of the part
            that each question is about.
        sections: of each question, the section that it asks about.
        on_step: called behind each of the three passes.
    """
    bare = bare_template(base, prefix.template)
    given: tuple[Prefix | Sequence[Prefix] | None, ...] = (None, prefix, document)
    losses = []
    for prefixes in given:
        losses.append([row.double() for row in base.token_losses(questions, prefixes, template=bare)])
        on_step()
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
    base: BaseModel,
    prefixes: Prefix | Sequence[Prefix] | None,
    questions: Sequence[Example],
    template: Template,
) -> float:
    """Share of questions whose greedy answer holds the right one, letters and digits alone compared.

    Args:
        prefixes: for all, or one for each; None: the questions alone, in `template`.
    """
    longest = max(len(base.tokenizer(text_of(each))["input_ids"]) for each in questions)
    ahead = [prefixes] if isinstance(prefixes, Prefix) else prefixes or []
    tokens = max((each.length for each in ahead), default=0) + 2 * longest + 64
    texts = generate(
        base,
        [each.source for each in questions],
        prefixes,
        template=template if prefixes is None else None,
        max_new_tokens=longest + 8,
        batch_size=max(1, ANSWER_BATCH_TOKENS // tokens),
    )
    right = [is_right(text, text_of(each)) for each, text in zip(questions, texts, strict=True)]
    return sum(right) / len(right)


def is_right(text: str, target: str) -> bool:
    """Whether a text has the words of an answer, in their order; where words have no spaces, its letters."""
    return _plain(target) in _plain(text)


def _plain(text: str) -> str:
    """Letters and digits alone, with a space around each word."""
    words = re.findall(rf"[{UNSPACED}]|[^\W{UNSPACED}]+", text.casefold())
    return f" {' '.join(words)} "


def harm_prompts() -> list[str]:
    """Prompts that have nothing to do with any document, to measure harm; none of them is in training."""
    text = importlib.resources.files(__package__).joinpath("harm_prompts.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip()]


def own_answers(base: BaseModel, prompts: Sequence[str], template: Template) -> list[Example]:
    """Prompts with the base's own greedy answers."""
    answers = generate(base, prompts, template=template, max_new_tokens=HARM_TOKENS)
    # One that says nothing ends at once, and that end is predicted, too.
    return [Example(source=prompt, target=text) for prompt, text in zip(prompts, answers, strict=True)]


def harm(base: BaseModel, prefix: Prefix, answers: Sequence[Example]) -> float:
    """Mean over tokens of KL(base || base with prefix) along answers of the base alone, in nats."""
    return divergence(base, None, prefix, answers)


@torch.no_grad()
def divergence(base: BaseModel, first: Prefix | None, second: Prefix, answers: Sequence[Example]) -> float:
    """Mean over tokens of KL(base with first || base with second) along answers, in nats.

    Args:
        first: None stands for the base alone, which has the question without a document.
    """
    given = (first, second)
    templates = (bare_template(base, second.template) if first is None else first.template, second.template)
    rows = [[encode_example(each, base.tokenizer, template)[0] for each in answers] for template in templates]
    total, count = 0.0, 0
    longest = max(each.length for each in given if each is not None)
    for indices in batches_by_length(rows[0], HARM_BATCH_TOKENS, longest):
        prefixes = [
            None if each is None else PrefixBatch.stack([each] * len(indices), base.device) for each in given
        ]
        pairs = [
            (base.batch([of[index] for index in indices], ahead, "flat"), ahead)
            for of, ahead in zip(rows, prefixes, strict=True)
        ]
        found_M = divergences(base.model, *pairs[0], *pairs[1]).double()
        total, count = total + float(found_M.sum()), count + found_M.numel()
    return total / count


_HARM_ANSWERS: weakref.WeakKeyDictionary[BaseModel, dict[tuple[Template, int], tuple[Example, ...]]] = (
    weakref.WeakKeyDictionary()
)
"""Of each base as long as it lives."""


def harm_answers(base: BaseModel, template: Template, count: int) -> tuple[Example, ...]:
    """The base's own answers to the first `count` prompts that harm is measured on, made once."""
    made = _HARM_ANSWERS.setdefault(base, {})
    if (template, count) not in made:
        made[template, count] = tuple(own_answers(base, harm_prompts()[:count], template))
    return made[template, count]


def rounded_figure(value: float | None) -> float | None:
    """As it stands in a report."""
    return None if value is None else value if isinstance(value, int) else round(value, 4)


# -- the report -----------------------------------------------------------------------------------


def measured(
    base: BaseModel,
    prefix: Prefix,
    questions: Sequence[Question],
    document: Prefix | None,
    chunk_prefix: Callable[[int], Prefix],
    tokens: int,
    on_step: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """A prefix's report but for its harm: what it recovers, overall and by section, and what it costs.

    Args:
        questions: as `placed` has them.
        document: the document's own keys and values; None where the base's window does not hold it.
        chunk_prefix: the same of a chunk; made once for each.
        tokens: of the document.
        on_step: called behind each of `MEASURED_STEPS` steps.
    """
    references: Prefix | list[Prefix] = document or [chunk_prefix(each.chunk or 0) for each in questions]
    sections = [each.section or BEGINNING for each in questions]
    found = recovered(base, prefix, references, questions, sections, on_step)
    whole = found.pop("")
    per_token = base.geometry.parameters(1) * base.dtype.itemsize
    return {
        **whole.to_json(),
        "reference": "chunk" if document is None else "document",
        "sections": _sections(found, questions),
        "sections_left_out": max(0, len(found) - MOST_SECTIONS),
        "answered": _answered(base, prefix, questions, references, on_step),
        "length": prefix.length,
        "tokens": tokens,
        "bytes": sum(tensor.nbytes for tensor in prefix.tensors.values()),
        "cache_bytes": prefix.length * per_token,
        "document_cache_bytes": tokens * per_token,
    }


def _sections(found: dict[str, Recovered], questions: Sequence[Question]) -> list[dict[str, Any]]:
    """Of those with most questions what was found, in the document's order."""
    kept = sorted(found, key=lambda name: -found[name].answers)[:MOST_SECTIONS]
    in_order = sorted(questions, key=lambda each: each.chunk or 0)
    names = dict.fromkeys(each.section or BEGINNING for each in in_order)
    return [{"section": _short_name(name)} | found[name].to_json() for name in names if name in kept]


def _short_name(name: str) -> str:
    shown = "".join(letter if letter.isprintable() else " " for letter in name)
    return " ".join(shown.split()).encode()[:LONGEST_SECTION].decode(errors="ignore")


def _answered(
    base: BaseModel,
    prefix: Prefix,
    questions: Sequence[Question],
    references: Prefix | Sequence[Prefix],
    on_step: Callable[[], None],
) -> dict[str, Any] | None:
    """Shares of short answers that are right, without, with the prefix and with the whole document."""
    # An answer of signs alone can't be told from none.
    short = [number for number, each in enumerate(questions) if each.short and _plain(text_of(each)).strip()]
    short = short[:: -(-len(short) // MOST_ANSWERED) or 1]
    if not short:
        return None
    asked = [questions[number] for number in short]
    behind = references if isinstance(references, Prefix) else [references[number] for number in short]
    bare = bare_template(base, prefix.template)
    shares = []
    for given in (None, prefix, behind):
        shares.append(answered(base, given, asked, bare))
        on_step()
    names = ("without", "with_prefix", "with_document")
    return {"questions": len(asked)} | dict(zip(names, map(rounded_figure, shares), strict=True))
