"""What a document's prefix is trained on: conversations about its chunks, and unrelated prompts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from foreword.base.base_model import BaseModel
from foreword.documents.chunks import Chunk, split
from foreword.documents.conversations import Conversation, unrelated
from foreword.documents.distillation import DistilledExample, taught
from foreword.documents.drawn import drawn
from foreword.documents.edits import changed, replay
from foreword.documents.exact import document_ids, exact_key_values, text_ids
from foreword.documents.report import bare_template
from foreword.documents.settings import DocumentSettings
from foreword.encoding import EncodedExample, encode_example
from foreword.errors import UsageError
from foreword.examples import Example
from foreword.template import Template

HELD_OUT = 32
"""Conversations that training does not have: they choose the step, and the report is about them."""


@dataclass(frozen=True)
class Studies:
    """What a prefix is trained on.

    Attributes:
        chunks: of the document.
        training, held_out: conversations; unrelated prompts are among those of training.
        share: of the conversations that a document which is compiled anew has; steps are as many fewer.
    """

    chunks: list[Chunk]
    training: list[Conversation]
    held_out: list[Conversation]
    share: float = 1.0

    @property
    def digest(self) -> str:
        """Of the chunks and all conversations: what a checkpoint must agree with."""
        plain = [[dataclasses.asdict(each) for each in self.chunks]]
        plain += [[dataclasses.asdict(each) for each in part] for part in (self.training, self.held_out)]
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def chunks_of(base: BaseModel, text: str, settings: DocumentSettings) -> list[Chunk]:
    """The chunks of a document that the teacher reads one at a time."""
    return split(text, lambda part: len(text_ids(base, part)), settings.chunk_tokens)


def drawn_for(chunks: Sequence[Chunk], settings: DocumentSettings) -> list[Conversation]:
    """Conversations drawn from the text, for training and for the report."""
    return drawn(chunks, settings.draw + HELD_OUT, settings.seed)


def studies(
    chunks: Sequence[Chunk],
    settings: DocumentSettings,
    conversations: Sequence[Conversation] | None = None,
    known: Collection[str] = (),
    needed: int = 2,
) -> Studies:
    """Conversations about chunks, and unrelated prompts.

    Args:
        conversations: instead of those that are drawn from the text.
        known: digests of chunks that a prefix stands for already, from which training goes on.
        needed: different conversations: one for training and one for the report, if it takes any.

    Raises:
        UsageError: fewer conversations than are needed, or one about a chunk that there is not.
    """
    made = list(drawn_for(chunks, settings) if conversations is None else conversations)
    for number, each in enumerate(made):
        if each.chunk is not None and not 0 <= each.chunk < len(chunks):
            raise UsageError(
                f"conversation {number} is about chunk {each.chunk}; the document has {len(chunks)}, counted "
                "from 0. Divide it into chunks of as many tokens as the conversations were made for"
            )
    if not made and needed and conversations is None:
        raise UsageError(
            "the document has no sentence or table to draw a conversation from; give conversations"
        )
    if (different := len(set(map(_place, made)))) < needed:
        raise UsageError(
            f"there are {len(made)} conversations, {different} of them different; expected at least {needed} "
            "different ones, of which one is for the report"
        )
    # By their own digests: what is held out is so whatever else is drawn, before an edit and behind it.
    few = min(HELD_OUT, max(1, len(made) // 8)) / max(1, len(made))
    first, last = min(map(_place, made), default=0), max(map(_place, made), default=0)
    held_out = [each for each in made if _place(each) == first or few > _place(each) < last]
    anew = [each for each in made if each not in held_out]
    training = replay(anew, changed(chunks, known), settings.seed) if known else anew
    share = len(training) / max(1, len(anew))
    count = round(len(training) * settings.unrelated / (1 - settings.unrelated))
    if count and settings.method == "studied":
        others = unrelated()
        training += (others * (count // len(others) + 1))[:count]
    return Studies(list(chunks), training, held_out, share)


def _place(conversation: Conversation) -> float:
    """A number from 0 to 1 that a conversation's text decides."""
    text = json.dumps([conversation.source, conversation.target], sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def study(
    base: BaseModel,
    template: Template,
    chunks: Sequence[Chunk],
    conversations: Sequence[Conversation],
    on_read: Callable[[int], None] | None = None,
) -> list[DistilledExample]:
    """Conversations as token ids with what the teacher predicts, in their order.

    Each chunk's keys and values are computed once, and all its conversations are read behind them.

    Args:
        on_read: called with how many have been read.
    """
    bare = bare_template(base, template)
    made: dict[int, DistilledExample] = {}
    by_chunk: dict[int | None, list[int]] = {}
    for number, conversation in enumerate(conversations):
        by_chunk.setdefault(conversation.chunk, []).append(number)
    for chunk, numbers in by_chunk.items():
        rows = [encoded(base, template, conversations[number]) for number in numbers]
        if chunk is None:
            alone = [encoded(base, bare, conversations[number]) for number in numbers]
            found = [
                dataclasses.replace(each, source_ids=row.source_ids)
                for each, row in zip(taught(base, alone, None), rows, strict=True)
            ]
        else:
            ids = document_ids(base, template, chunks[chunk].text)
            found = taught(base, rows, exact_key_values(base, ids))
        made |= dict(zip(numbers, found, strict=True))
        if on_read is not None:
            on_read(len(made))
    return [made[number] for number in range(len(conversations))]


def encoded(base: BaseModel, template: Template, conversation: Conversation) -> EncodedExample:
    """A conversation as token ids."""
    example = Example(source=conversation.source, target=conversation.target)
    return encode_example(example, base.tokenizer, template)[0]
