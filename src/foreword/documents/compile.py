"""compile_document: a text and a base model in, a prefix that stands for the text out."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from foreword.base.base_model import BaseModel
from foreword.base.prefix_batch import KeyValues
from foreword.documents.chunks import Chunk, split
from foreword.documents.conversations import Conversation, text_digest, unrelated
from foreword.documents.distillation import Distillation, DistilledExample, taught
from foreword.documents.drawn import drawn
from foreword.documents.edits import MOST_CHUNKS, changed, digests, known_chunks, replay, worse
from foreword.documents.matching import can_match, matched_key_values
from foreword.documents.report import (
    Question,
    bare_template,
    harm,
    harm_answers,
    measured,
    placed,
    questions_of,
)
from foreword.documents.settings import DocumentOptions, DocumentSettings
from foreword.encoding import EncodedExample, encode_example
from foreword.errors import HarmExceeded, ReportWorse, UsageError, WindowExceeded
from foreword.examples import Example
from foreword.prefix import Origin, Prefix
from foreword.prefix_file import check_description
from foreword.prefix_sizes import tensor_names
from foreword.template import Source, Target, Template, default_template
from foreword.training.initialization import activations
from foreword.training.run_log import Progress, RunLog
from foreword.training.train import check_folder, describe, make_prefix, resumed_template, run_to_end
from foreword.training.trainer import build_trainer
from foreword.validation import checks_arguments

PIECE_TOKENS = 64
"""Of the pieces of a document that training starts from (Cartridges, arXiv 2506.06266)."""

BEFORE = "1970-01-01T00:00:00+00:00"
"""Of what training starts from, which is the same whenever it is made."""

SEPARATOR = "\n\n"
"""Between a document and a question, on a base without a chat template."""


HARM_PROMPTS = 24
"""Unrelated prompts that a report's harm is measured on; benchmarks/documents.py takes all 100."""

REFERENCES = 32
"""Conversations that keys and values are matched along."""

HELD_OUT = 32
"""Conversations that training does not have: they choose the step, and the report is about them."""


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
        return _ids(base, template.opening(base.tokenizer))
    begins = base.raw_template.begin
    return [base.tokenizer.bos_token_id] if begins else []


def document_ids(base: BaseModel, template: Template, text: str) -> list[int]:
    """The tokens that a document's prefix stands for: all in front of what a source becomes."""
    text = text.strip() if template.system_in_prefix else text.strip() + SEPARATOR
    return [*opening_ids(base, template), *_ids(base, text)]


def exact_key_values(base: BaseModel, ids: Sequence[int]) -> KeyValues:
    """The base's own keys and values of some tokens, at positions from 0, in float32."""
    return activations(base, ids, ids, len(ids))


def piecewise_start(base: BaseModel, template: Template, text: str, length: int, seed: int) -> KeyValues:
    """The base's own keys and values of pieces of the document, read anew one behind the other.

    Pieces stand in the document's order and begin at random, so that each part of the text is as likely.
    """
    front, ids = opening_ids(base, template), _ids(base, text)
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


def study(
    base: BaseModel,
    template: Template,
    chunks: Sequence[Chunk],
    conversations: Sequence[Conversation],
) -> list[DistilledExample]:
    """Conversations as token ids with what the teacher predicts, in their order.

    Each chunk's keys and values are computed once, and all its conversations are read behind them.
    """
    bare = bare_template(base, template)
    made: dict[int, DistilledExample] = {}
    by_chunk: dict[int | None, list[int]] = {}
    for number, conversation in enumerate(conversations):
        by_chunk.setdefault(conversation.chunk, []).append(number)
    for chunk, numbers in by_chunk.items():
        rows = [_encoded(base, template, conversations[number]) for number in numbers]
        if chunk is None:
            alone = [_encoded(base, bare, conversations[number]) for number in numbers]
            found = [
                dataclasses.replace(each, source_ids=row.source_ids)
                for each, row in zip(taught(base, alone, None), rows, strict=True)
            ]
        else:
            ids = document_ids(base, template, chunks[chunk].text)
            found = taught(base, rows, exact_key_values(base, ids))
        made |= dict(zip(numbers, found, strict=True))
    return [made[number] for number in range(len(conversations))]


def _encoded(base: BaseModel, template: Template, conversation: Conversation) -> EncodedExample:
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
    return split(text, lambda part: len(_ids(base, part)), settings.chunk_tokens)


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


def _ids(base: BaseModel, text: str) -> list[int]:
    ids: list[int] = base.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@checks_arguments
def compile_document(
    base: BaseModel,
    text: str,
    *,
    conversations: Sequence[Conversation] | None = None,
    questions: Sequence[Example] | None = None,
    previous: Prefix | None = None,
    gate: bool = False,
    checkpoint_dir: str | Path | None = None,
    checkpoint_every: int | None = None,
    labels: dict[str, str] | None = None,
    licence: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_checkpoint: Callable[[Path], None] | None = None,
    **options: Unpack[DocumentOptions],
) -> Prefix:
    """A prefix that stands for a text: questions about it are answered as if it were in front of them.

    Args:
        text: plain text or Markdown; the function `foreword.documents.reading.read_document` makes
            it of other files.
        conversations: what to train on, instead of conversations drawn from the text.
        questions: with their answers, for the report, which else is about held-out conversations;
            `foreword.documents.report.Question` has the section that one is about.
        previous: the prefix of an earlier state of the text, to go on from: what is new is learned, beside
            half of the conversations about what is not, in as many fewer steps.
        gate: fail where the report is worse than that of `previous`.
        checkpoint_dir, checkpoint_every, labels, licence, on_progress: as for `train`.
        on_checkpoint: called with each checkpoint's file once it is written, to copy it elsewhere.
        options: fields of `DocumentSettings`: `method` ("studied", "matched", "exact"), `length` virtual
            tokens or `ratio`, `steps`, `seed` and so on; None stands for the default.

    Returns:
        The prefix, with what was measured in its `report` and how it was made in its `recipe`.

    Raises:
        UsageError: an option out of range, an empty text, one that is shorter than the prefix, a previous
            prefix that was not made of a document, or of another length.
        GeometryMismatch, WrongBaseModel: a previous prefix of another base.
        WindowExceeded: a prefix that leaves no room for text, chunks or questions that have no room.
        CheckpointMismatch, TrainingDiverged, TrainingStopped: as for `train`.
        HarmExceeded: more harm than `max_harm`; has the report.
        ReportWorse: the gate; has the report.
    """
    settings = DocumentSettings.from_mapping(options)
    check_description({"labels": labels, "licence": licence})
    check_folder(checkpoint_dir, checkpoint_every)
    check_base(base)
    if not text.strip():
        raise UsageError("the document is empty; give a text")
    if gate and previous is None:
        raise UsageError("gate compares with a previous prefix, and there is none; give previous")
    folder = None if checkpoint_dir is None else Path(checkpoint_dir)
    template = document_template(base, folder)
    ids = document_ids(base, template, text)
    if previous is not None:
        settings = going_on(base, settings, previous, template)
    length = settings.length_for(len(ids))
    positions = base.max_positions
    if settings.method == "exact" and positions is not None and length > positions - 2:
        raise WindowExceeded(
            f"the document has {length} tokens, and {base.shown_name} has {positions} positions; take "
            "another method, whose teacher reads the document in chunks"
        )
    base.max_text_tokens(length)
    report_progress = on_progress or (lambda progress: None)
    run = _Run(base, settings, template, text, ids, length, previous, report_progress)
    check_description({"recipe": run.recipe})
    known = () if previous is None else known_chunks(previous.recipe)
    made = run.studies(conversations, known, own_questions=bool(questions))
    about = run.questions(made, questions)
    answers = run.unrelated()
    if settings.method == "exact":
        prefix = run.prefix(exact_key_values(base, ids))
    elif settings.method == "matched":
        prefix = run.prefix(run.matched(made))
    else:
        prefix = run.trained(made, previous or run.start(made), folder, checkpoint_every, on_checkpoint)
    report = run.measured(prefix, made.chunks, about, answers)
    if settings.max_harm is not None and report["harm"] > settings.max_harm:
        raise HarmExceeded(report)
    if gate and previous is not None and (found := worse(report, previous.report)) is not None:
        raise ReportWorse(report, found)
    return dataclasses.replace(prefix, report=report, labels=labels or {}, licence=licence)


def going_on(
    base: BaseModel, settings: DocumentSettings, previous: Prefix, template: Template
) -> DocumentSettings:
    """The settings of a run that goes on from a document's prefix, whose length it keeps.

    Raises:
        UsageError: another method than `studied`, another length, other chunks, or a prefix of no document.
        GeometryMismatch, WrongBaseModel: a prefix of another base.
    """
    if settings.method != "studied":
        raise UsageError(
            f"method is {settings.method}, but only studied goes on from a previous prefix; leave one out"
        )
    known_chunks(previous.recipe)
    base.check_fits(previous)
    if dataclasses.replace(previous.template, date=template.date) != template:
        raise UsageError(
            "the previous prefix has another template than documents of this base have now; compile anew"
        )
    if settings.ratio is not None or settings.length not in (None, previous.length):
        raise UsageError(
            f"the previous prefix has length {previous.length}, which the new one keeps; leave length and "
            "ratio out, or compile anew"
        )
    chunk_tokens = previous.recipe["document"].get("chunk_tokens")
    if chunk_tokens not in (None, settings.chunk_tokens):
        raise UsageError(
            f"the previous prefix was made with chunk_tokens {chunk_tokens}, and with "
            f"{settings.chunk_tokens} all of the document would count as new; give the same, or compile anew"
        )
    return dataclasses.replace(settings, length=previous.length)


def check_base(base: BaseModel) -> None:
    """Refuse a base in which keys and values of a text do not stand for the text.

    Raises:
        UsageError: an encoder-decoder, or a hybrid.
    """
    if base.is_encoder_decoder or base.is_hybrid:
        kind = "an encoder-decoder" if base.is_encoder_decoder else "a hybrid"
        raise UsageError(
            f"{base.shown_name} is {kind}: keys and values of a text do not stand for the text there; take a "
            "decoder-only base with attention alone"
        )


@dataclass(frozen=True)
class _Run:
    """One document on its way to a prefix.

    Attributes:
        ids: the tokens that the prefix stands for; its length is P.
        previous: what training goes on from, where an earlier state of the text was compiled.
    """

    base: BaseModel
    settings: DocumentSettings
    template: Template
    text: str
    ids: list[int]
    length: int
    previous: Prefix | None
    report: Callable[[Progress], None]

    def prefix(self, key_values: KeyValues) -> Prefix:
        """Keys and values as a prefix that stands for this document."""
        base, template = self.base, self.template
        return Prefix(
            tensors=tensor_names(key_values),
            base=base.identity,
            template=template,
            positions=base.positions,
            origin=Origin(seed=self.settings.seed, data_digest=self._digest),
            recipe=self.recipe,
            template_digest=template.rendering_digest(base.tokenizer),
            template_rendering=template.rendering(base.tokenizer),
        )

    @property
    def recipe(self) -> dict[str, Any]:
        """How the prefix is made; known before it is, to be held against the format's limits."""
        found = self.settings.to_json() | {"sha256": self._digest, "tokens": len(self.ids)}
        if len(self._chunks) <= MOST_CHUNKS:
            found["chunks"] = digests(self._chunks)
        if self.previous is not None:
            found["previous"] = self.previous.digest
        return {"document": found}

    @functools.cached_property
    def _digest(self) -> str:
        return text_digest(self.text)

    @functools.cached_property
    def _chunks(self) -> list[Chunk]:
        return chunks_of(self.base, self.text, self.settings)

    def studies(
        self, conversations: Sequence[Conversation] | None, known: Collection[str], *, own_questions: bool
    ) -> Studies:
        """Conversations to train on, and some to choose by and report about.

        Those that do not fit into the base's window are left out, which is said.

        Raises:
            WindowExceeded: none fits, or unrelated prompts do not.
        """
        self._note("making conversations")
        trains = self.settings.method != "exact"
        needed = int(trains) + int(trains or not own_questions)
        made = studies(self._chunks, self.settings, conversations, known, needed)
        if known:
            new = len(changed(self._chunks, known))
            self._note(f"{new} of {len(self._chunks)} parts of the document are new or changed")
        training, held_out = self._fitting(made, made.training), self._fitting(made, made.held_out)
        if left_out := len(made.training) + len(made.held_out) - len(training) - len(held_out):
            self._note(
                f"{left_out} conversations are left out, which do not fit into the {self.base.max_positions} "
                f"positions of {self.base.shown_name}"
            )
        if (trains and not training) or (needed and not held_out):
            raise WindowExceeded(
                f"no conversations fit into the {self.base.max_positions} positions of "
                f"{self.base.shown_name} behind {self.length} virtual tokens or a chunk of "
                f"{self.settings.chunk_tokens} tokens; take a smaller length or smaller chunks"
            )
        return dataclasses.replace(made, training=training, held_out=held_out)

    def _fitting(self, made: Studies, conversations: Sequence[Conversation]) -> list[Conversation]:
        """Those that have room behind the prefix, and behind their chunk."""
        if self.base.max_positions is None:
            return list(conversations)
        ahead = [len(document_ids(self.base, self.template, each.text)) for each in made.chunks]
        return [
            each
            for each in conversations
            if self._fits(each.source, each.target, 0 if each.chunk is None else ahead[each.chunk])
        ]

    def _tokens(self, conversation: Conversation) -> int:
        return _encoded(self.base, self.template, conversation).tokens

    def _fits(self, source: Source, target: Target, ahead: int) -> bool:
        row = encode_example(Example(source, target), self.base.tokenizer, self.template)[0]
        most = self.base.max_positions
        return most is None or max(ahead, self.length) + row.tokens <= most

    def questions(self, made: Studies, given: Sequence[Example] | None) -> list[Question]:
        """What the report is about.

        Raises:
            WindowExceeded: a question of the user's own does not fit.
        """
        if not given:
            return placed(self.base, questions_of(made.held_out), made.chunks)
        found = placed(self.base, given, made.chunks)
        for number, each in enumerate(found):
            chunk = document_ids(self.base, self.template, made.chunks[each.chunk or 0].text)
            if not self._fits(each.source, each.target, len(chunk)):
                raise WindowExceeded(
                    f"question {number + 1} with its answer does not fit into the {self.base.max_positions} "
                    f"positions of {self.base.shown_name} behind {self.length} virtual tokens; shorten it"
                )
        return found

    def matched(self, made: Studies) -> KeyValues:
        """Keys and values that serve some of the conversations as the whole document does."""
        self._note("matching keys and values to the document's")
        rows = [_encoded(self.base, self.template, each) for each in made.training[:REFERENCES]]
        reference = [(*row.source_ids, *row.target_ids) for row in rows]
        return matched_key_values(
            self.base, self.ids, self.length, reference=reference, seed=self.settings.seed
        )

    def start(self, made: Studies) -> Prefix:
        """What training starts from: the matched prefix; pieces of the text where there is none.

        A document that the base can't read at once has none, nor has a base whose layers do not all attend
        to all of it.
        """
        most, settings = self.base.max_positions, self.settings
        fits = most is None or len(self.ids) + max(map(self._tokens, made.training)) <= most
        if fits and can_match(self.base):
            return self.prefix(self.matched(made))
        self._note("starting from pieces of the document")
        return self.prefix(piecewise_start(self.base, self.template, self.text, self.length, settings.seed))

    def trained(
        self,
        made: Studies,
        start: Prefix,
        folder: Path | None,
        checkpoint_every: int | None,
        on_checkpoint: Callable[[Path], None] | None,
    ) -> Prefix:
        """The prefix that training ends in."""
        base, training = self.base, self.settings.training(self.length, made.share)
        # What it begins at is its numbers: when they were computed and what is said of them is no part of a
        # run, which else would not go on a second later, or with another limit of harm.
        start = dataclasses.replace(start, recipe={}, created=BEFORE)
        self._note(f"reading {len(made.training) + len(made.held_out)} conversations as the teacher")
        rows, dev = (study(base, self.template, made.chunks, each) for each in (made.training, made.held_out))
        trainer = build_trainer(base, training, rows, dev, start=start)
        description = describe(base, training, self.template, [], [], start) | {"data": made.digest}
        run_log = RunLog(
            trainer,
            folder=folder,
            description=description,
            on_progress=self.report,
            on_checkpoint=on_checkpoint,
            checkpoint_every=checkpoint_every,
        )
        run_to_end(base, trainer, run_log, f"{base.name}: document, length {self.length}", Distillation())
        prefix = make_prefix(base, trainer, self.template, made.digest, start=start)
        return dataclasses.replace(prefix, recipe=self.recipe)

    def unrelated(self) -> tuple[Example, ...]:
        """The base's own answers to prompts that have nothing to do with the document, to measure harm.

        Raises:
            WindowExceeded: one does not fit behind the prefix.
        """
        base = self.base
        answers = harm_answers(base, bare_template(base, self.template), HARM_PROMPTS)
        if not all(self._fits(each.source, each.target, 0) for each in answers):
            raise WindowExceeded(
                f"a prefix of length {self.length} leaves too little of the {base.max_positions} positions "
                f"of {base.shown_name} for prompts of a sentence and their answers; take a smaller length"
            )
        return answers

    def measured(
        self,
        prefix: Prefix,
        chunks: Sequence[Chunk],
        about: Sequence[Question],
        answers: Sequence[Example],
    ) -> dict[str, Any]:
        """What a prefix's report says."""
        base = self.base
        self._note("measuring")
        pairs = [(each.source, each.target) for each in (*about, *answers)]
        fits = all(self._fits(*pair, len(self.ids)) for pair in pairs)
        document = self.prefix(exact_key_values(base, self.ids)) if fits else None

        def chunk_prefix(number: int) -> Prefix:
            ids = document_ids(base, self.template, chunks[number].text)
            return self.prefix(exact_key_values(base, ids))

        return {
            **measured(base, prefix, about, document, chunk_prefix, len(self.ids)),
            "harm": round(harm(base, prefix, answers), 4),
            "harm_of_document": None if document is None else round(harm(base, document, answers), 4),
            "max_harm": self.settings.max_harm,
            "dev_loss": prefix.origin.dev_loss,
        }

    def _note(self, text: str) -> None:
        self.report(Progress(0, self.settings.steps, note=text))
