"""What a document's prefix is trained on: to predict what the same model predicts with a text in its context.

The teacher is the frozen base behind the text's own keys and values, the student the base behind the prefix.
The loss is KL(teacher || student) over the teacher's likeliest tokens at each token of an answer; the top 20
serve as well as the whole vocabulary (Cartridges, arXiv 2506.06266). The text is a chunk of the document, and
the answers are those of conversations about it.

Shapes: M target tokens of all rows, K likeliest tokens.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from foreword import files
from foreword.base.base_model import BaseModel
from foreword.base.batch import batches_by_length
from foreword.base.loss import SoftTargets, likeliest_tokens, target_losses
from foreword.base.prefix_batch import KeyValues, PrefixBatch
from foreword.documents.chunks import Chunk, split
from foreword.documents.conversations import Conversation, unrelated
from foreword.documents.drawn import drawn
from foreword.documents.edits import changed, replay
from foreword.documents.report import bare_template
from foreword.documents.settings import DocumentSettings, Precision
from foreword.encoding import EncodedExample, encode_example
from foreword.errors import UsageError
from foreword.examples import Example
from foreword.template import Template, default_template
from foreword.training.initialization import activations
from foreword.training.objective import RowLosses
from foreword.training.train import resumed_template

LIKELIEST = 20
"""Tokens of the teacher's distribution that are kept."""

TEACHER_TOKENS = 2048
"""Tokens of one pass of the teacher on a CPU; only memory depends on it."""

PIECE_TOKENS = 64
"""Of the pieces of a document that training starts from (Cartridges, arXiv 2506.06266)."""

SEPARATOR = "\n\n"
"""Between a document and a question, on a base without a chat template."""

HELD_OUT = 32
"""Conversations that training does not have: they choose the step, and the report is about them."""


# -- the document's own tokens, keys and values -----------------------------------------------------


def document_template(base: BaseModel, folder: Path | None = None) -> Template:
    """The template of a document's prefix: the base's chat template, with the document as system message.

    On a base without one, the document, an empty line, and a source and its answer on lines of their own.

    Args:
        folder: of checkpoints; a run that goes on keeps the day that its template writes.
    """
    if getattr(base.tokenizer, "chat_template", None):
        chat = default_template(base.tokenizer, style="chat", begin=False, source_tokens=None)
        return resumed_template(base, dataclasses.replace(chat, system_in_prefix=True), folder)
    return dataclasses.replace(base.template, begin=False, source_tokens=None)


def opening_ids(base: BaseModel, template: Template) -> list[int]:
    """What stands in front of the document in its prefix: its first token is the attention sink."""
    if template.system_in_prefix:
        return text_ids(base, template.opening(base.tokenizer))
    begins = base.raw_template.begin
    return [base.tokenizer.bos_token_id] if begins else []


def document_ids(base: BaseModel, template: Template, text: str) -> list[int]:
    """The tokens that a document's prefix stands for: all in front of what a source becomes."""
    text = text.strip() if template.system_in_prefix else text.strip() + SEPARATOR
    return [*opening_ids(base, template), *text_ids(base, text)]


def exact_key_values(base: BaseModel, ids: Sequence[int]) -> KeyValues:
    """The base's own keys and values of some tokens, at positions from 0, in float32."""
    return activations(base, ids, ids, len(ids))


def rounded(key_values: KeyValues, precision: Precision) -> KeyValues:
    """Keys and values in another floating-point type."""
    dtype: torch.dtype = getattr(torch, precision)
    return {place: (key.to(dtype), value.to(dtype)) for place, (key, value) in key_values.items()}


def piecewise_start(base: BaseModel, template: Template, text: str, length: int, seed: int) -> KeyValues:
    """The base's own keys and values of pieces of the document, read anew one behind the other.

    Pieces stand in the document's order and begin at random, so that each part of the text is as likely.
    """
    front, ids = opening_ids(base, template), text_ids(base, text)
    rng = random.Random(seed)
    wanted = max(0, length - len(front))
    count = max(1, round(wanted / PIECE_TOKENS))
    sizes = [wanted * (n + 1) // count - wanted * n // count for n in range(count)]
    spread = [len(ids) * n // count for n in range(count + 1)]
    pieces: list[int] = []
    for size, low, high in zip(sizes, spread, spread[1:], strict=False):
        begin = rng.randint(low, max(low, high - size))
        pieces += ids[begin : begin + size]
    pieces += ids[: wanted - len(pieces)]
    return exact_key_values(base, [*front, *pieces][:length])


def text_ids(base: BaseModel, text: str) -> list[int]:
    """The tokens of a text alone."""
    ids: list[int] = base.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


# -- conversations to train on ------------------------------------------------------------------------


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


# -- what the teacher predicts ------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class DistilledExample(EncodedExample):
    """An example, and what the teacher predicts at each target token.

    Attributes:
        teacher: of its M target tokens.
    """

    teacher: SoftTargets


class Distillation:
    """KL(teacher || prefix) over the teacher's likeliest tokens, in nats: a term for each target token."""

    def count(self, row: EncodedExample) -> int:
        """The target's tokens."""
        return len(row.target_ids)

    def losses(
        self, base: BaseModel, rows: Sequence[EncodedExample], prefixes: PrefixBatch | None
    ) -> RowLosses:
        """One pass; what the teacher left to other tokens counts for nothing."""
        batch = base.batch(rows, prefixes, "flat")
        of_rows = [row.teacher for row in rows if isinstance(row, DistilledExample)]
        teacher = SoftTargets(
            torch.cat([each.ids_MK for each in of_rows]), torch.cat([each.weights_MK for each in of_rows])
        )
        losses_M = target_losses(base.model, batch, prefixes, teacher)
        # Cross entropy less the teacher's own entropy, which no prefix can change: zero is the teacher.
        entropy_M = -torch.special.xlogy(teacher.weights_MK, teacher.weights_MK).sum(1)
        return RowLosses(losses_M - entropy_M.to(losses_M.device), batch.targets)


@torch.no_grad()
def taught(
    base: BaseModel,
    rows: Sequence[EncodedExample],
    key_values: KeyValues | None,
    count: int = LIKELIEST,
) -> list[DistilledExample]:
    """Rows with what the teacher predicts, which reads them behind `key_values`, or alone.

    Args:
        key_values: of the text that the teacher has in its context, computed once for all its rows.
    """
    made: list[DistilledExample | None] = [None] * len(rows)
    for indices in batches_by_length(rows, TEACHER_TOKENS):
        part = [rows[index] for index in indices]
        prefixes = None
        if key_values is not None:
            held = {
                place: (key.to(base.device), value.to(base.device))
                for place, (key, value) in key_values.items()
            }
            prefixes = PrefixBatch.from_tensors([held], [0] * len(part), ["prefix"], [base.positions])
        batch = base.batch(part, prefixes, "flat")
        found = likeliest_tokens(base.model, batch, prefixes, count)
        ids, weights = found.ids_MK.split(batch.targets), found.weights_MK.split(batch.targets)
        for index, row, ids_MK, weights_MK in zip(indices, part, ids, weights, strict=True):
            made[index] = DistilledExample(
                source_ids=row.source_ids,
                target_ids=row.target_ids,
                start_id=row.start_id,
                teacher=SoftTargets(ids_MK, weights_MK),
            )
    return [row for row in made if row is not None]


def keep_taught(path: Path, rows: Sequence[DistilledExample], key: str) -> None:
    """Write what the teacher predicts of rows, for a run that goes on.

    Args:
        key: of all that it depends on.

    Raises:
        CannotWrite: no right or no space.
    """
    tensors = {
        "ids": torch.cat([row.teacher.ids_MK for row in rows]).int(),
        "weights": torch.cat([row.teacher.weights_MK for row in rows]),
    }
    content = safetensors.torch.save(tensors, metadata={"key": key, "digest": _digest(tensors)})
    files.write_bytes(path, content, overwrite=True)


def kept_taught(path: Path, rows: Sequence[EncodedExample], key: str) -> list[DistilledExample] | None:
    """The rows with what was kept of them; None where that is not there, of another run, or damaged."""
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as opened:
            told = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
    except safetensors.SafetensorError:
        return None  # it is read from the teacher again, which needs nothing but time
    if told.get("key") != key or told.get("digest") != _digest(tensors):
        return None
    sizes = [len(row.target_ids) for row in rows]
    parts = zip(rows, tensors["ids"].long().split(sizes), tensors["weights"].split(sizes), strict=True)
    return [
        DistilledExample(
            row.source_ids, row.target_ids, row.start_id, teacher=SoftTargets(ids_MK, weights_MK)
        )
        for row, ids_MK, weights_MK in parts
    ]


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    return hashlib.sha256(safetensors.torch.save(tensors)).hexdigest()
