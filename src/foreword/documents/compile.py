"""compile_document: a text and a base model in, a prefix that stands for the text out."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from foreword.base.base_model import BaseModel
from foreword.base.prefix_batch import KeyValues
from foreword.documents.chunks import Chunk
from foreword.documents.conversations import Conversation, text_digest
from foreword.documents.distillation import (
    LIKELIEST,
    Distillation,
    DistilledExample,
    keep_taught,
    kept_taught,
)
from foreword.documents.edits import MOST_CHUNKS, changed, digests, going_on, known_chunks, worse
from foreword.documents.exact import (
    document_ids,
    document_template,
    exact_key_values,
    piecewise_start,
    rounded,
)
from foreword.documents.matching import can_match, matched_key_values
from foreword.documents.report import (
    MEASURED_STEPS,
    Question,
    bare_template,
    divergence,
    harm,
    harm_answers,
    measured,
    placed,
    questions_of,
    recovered,
    rounded_figure,
)
from foreword.documents.settings import DocumentOptions, DocumentSettings
from foreword.documents.studies import Studies, chunks_of, encoded, studies, study
from foreword.encoding import encode_example
from foreword.errors import HarmExceeded, ReportWorse, UsageError, WindowExceeded
from foreword.examples import Example
from foreword.prefix import Origin, Prefix
from foreword.prefix_file import check_description
from foreword.prefix_sizes import tensor_names
from foreword.template import Source, Target, Template
from foreword.training.checkpoint import prepare_folder
from foreword.training.run_log import Progress, RunLog
from foreword.training.train import check_folder, describe, make_prefix, run_to_end
from foreword.training.trainer import Trainer, build_trainer
from foreword.validation import checks_arguments

BEFORE = "1970-01-01T00:00:00+00:00"
"""Of what training starts from, which is the same whenever it is made."""

TAUGHT = "teacher.safetensors"
"""What the teacher predicts, in the folder of checkpoints."""

HARM_PROMPTS = 24
"""Unrelated prompts that a report's harm is measured on; benchmarks/documents.py takes all 100."""

REFERENCES = 32
"""Conversations that keys and values are matched along."""


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
        gate: fail where the prefix is worse than `previous` at the same questions, those about parts of the
            text that both know, or does more harm.
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
    if gate and previous is None:
        raise UsageError("gate compares with a previous prefix, and there is none; give previous")
    folder = None if checkpoint_dir is None else Path(checkpoint_dir)
    run = begin(base, text, settings, folder, on_progress or (lambda progress: None), previous)
    known = () if previous is None else known_chunks(previous.recipe)
    made = run.studies(conversations, known, own_questions=bool(questions))
    about = run.questions(made, questions)
    answers = run.unrelated()
    if settings.method == "exact":
        prefix = run.prefix(rounded(exact_key_values(base, run.ids), settings.precision))
    elif settings.method == "matched":
        prefix = run.prefix(run.matched(made))
    else:
        prefix = run.trained(made, previous or run.start(made), folder, checkpoint_every, on_checkpoint)
    report = run.measured(prefix, made.chunks, about, answers, previous if gate else None)
    if gate and (found := worse(report["gate"])) is not None:
        raise ReportWorse(report, found)
    return dataclasses.replace(prefix, report=report, labels=labels or {}, licence=licence)


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


def begin(
    base: BaseModel,
    text: str,
    settings: DocumentSettings,
    folder: Path | None,
    report: Callable[[Progress], None],
    previous: Prefix | None = None,
) -> DocumentRun:
    """A document on its way to a prefix, once it is known that it can be one.

    Args:
        folder: of checkpoints.

    Raises as `compile_document`, of the text and the previous prefix.
    """
    if not text.strip():
        raise UsageError("the document is empty; give a text")
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
    run = DocumentRun(base, settings, template, text, ids, length, previous, report)
    check_description({"recipe": run.recipe})
    return run


def as_start(prefix: Prefix) -> Prefix:
    """A prefix as what training begins at, which is its numbers."""
    # When they were computed and what is said of them is no part of a run, which else would not go on a
    # second later, or with another limit of harm.
    return dataclasses.replace(prefix, recipe={}, created=BEFORE)


@dataclass(frozen=True)
class DocumentRun:
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
        return encoded(self.base, self.template, conversation).tokens

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
        layers = self.base.geometry.streams["decoder"].layers
        done = self._phase("matching keys and values to the document's, by layer", layers)
        # Along questions by rule less is matched: on two documents R 0.50 to 0.61, and 0.64 to 0.75 without.
        others = ("words", "question", "unrelated")
        usual = [each for each in made.training if each.kind not in others] or made.training
        rows = [encoded(self.base, self.template, each) for each in usual[:REFERENCES]]
        reference = [(*row.source_ids, *row.target_ids) for row in rows]
        return matched_key_values(
            self.base,
            self.ids,
            self.length,
            reference=reference,
            seed=self.settings.seed,
            on_layer=done,
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
        base, start = self.base, as_start(start)
        trainer, description = self.trainer(made, start, *self.rows(made, folder))
        run_log = RunLog(
            trainer,
            folder=folder,
            description=description,
            on_progress=self.report,
            on_checkpoint=on_checkpoint,
            checkpoint_every=checkpoint_every,
        )
        run_to_end(base, trainer, run_log, f"{base.name}: document, length {self.length}", Distillation())
        return self.result(trainer, made, start)

    def rows(
        self, made: Studies, folder: Path | None
    ) -> tuple[list[DistilledExample], list[DistilledExample]]:
        """The conversations to train on and those held out, with what the teacher predicts.

        Args:
            folder: of checkpoints, where that is kept for a run that goes on.
        """
        read = self._taught(made, folder)
        return read[: len(made.training)], read[len(made.training) :]

    def _taught(self, made: Studies, folder: Path | None) -> list[DistilledExample]:
        """What the teacher predicts along all conversations, kept beside the checkpoints."""
        base, conversations = self.base, [*made.training, *made.held_out]
        told = [made.digest, base.identity.fingerprint, str(base.dtype), str(base.device), LIKELIEST]
        key = text_digest(json.dumps([told, self.template.to_json()], sort_keys=True))
        path = None if folder is None else folder / TAUGHT
        if path is not None:
            rows = [encoded(base, self.template, each) for each in conversations]
            if (kept := kept_taught(path, rows, key)) is not None:
                return kept
        done = self._phase("reading conversations as the teacher", len(conversations))
        read = study(base, self.template, made.chunks, conversations, done)
        if path is not None:
            prepare_folder(path.parent)
            keep_taught(path, read, key)
        return read

    def trainer(
        self,
        made: Studies,
        start: Prefix,
        rows: Sequence[DistilledExample],
        dev: Sequence[DistilledExample],
        owner: str | None = None,
    ) -> tuple[Trainer, dict[str, Any]]:
        """The trainer of this document's prefix, and what its checkpoints must agree with."""
        base, training = self.base, self.settings.training(self.length, made.share)
        trainer = build_trainer(base, training, rows, dev, start=start, owner=owner)
        return trainer, describe(base, training, self.template, [], [], start) | {"data": made.digest}

    def result(self, trainer: Trainer, made: Studies, start: Prefix) -> Prefix:
        """What training ended in."""
        prefix = make_prefix(self.base, trainer, self.template, made.digest, start=start)
        return dataclasses.replace(prefix, recipe=self.recipe)

    def unrelated(self) -> tuple[Example, ...]:
        """The base's own answers to prompts that have nothing to do with the document, to measure harm.

        Raises:
            WindowExceeded: one does not fit behind the prefix.
        """
        base = self.base
        done = self._phase("answering unrelated prompts without a prefix", 1)
        answers = harm_answers(base, bare_template(base, self.template), HARM_PROMPTS)
        done(1)
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
        previous: Prefix | None = None,
    ) -> dict[str, Any]:
        """What a prefix's report says.

        Args:
            previous: to be measured beside it.

        Raises:
            HarmExceeded: more harm than the settings allow.
        """
        base = self.base
        done = self._phase("measuring", MEASURED_STEPS + 2)
        steps = itertools.count(1)

        def step() -> None:
            done(next(steps))

        pairs = [(each.source, each.target) for each in (*about, *answers)]
        fits = all(self._fits(*pair, len(self.ids)) for pair in pairs)
        document = None
        if fits and self.settings.method == "exact" and self.settings.precision == "float32":
            document = prefix
        elif fits:
            document = self.prefix(exact_key_values(base, self.ids))

        @functools.cache
        def chunk_prefix(number: int) -> Prefix:
            ids = document_ids(base, self.template, chunks[number].text)
            return self.prefix(exact_key_values(base, ids))

        found = measured(base, prefix, about, document, chunk_prefix, len(self.ids), step)
        if self.settings.precision != "float32" and document is not None:
            found["rounding_loss"] = round(divergence(base, document, prefix, about), 6)
        own_harm = round(harm(base, prefix, answers), 4)
        done(MEASURED_STEPS + 1)
        document_harm = None if document is None else round(harm(base, document, answers), 4)
        done(MEASURED_STEPS + 2)
        if previous is not None:
            new = set(changed(chunks, known_chunks(previous.recipe)))
            both = [each for each in about if each.chunk not in new] or about
            reference = document or [chunk_prefix(each.chunk or 0) for each in both]
            shares = [recovered(base, each, reference, both)[""].share for each in (prefix, previous)]
            found["gate"] = {
                "answers": len(both),
                "recovered_share": rounded_figure(shares[0]),
                "recovered_share_before": rounded_figure(shares[1]),
                "harm": own_harm,
                "harm_before": round(harm(base, previous, answers), 4),
            }
        report = {
            "method": self.settings.method,
            **found,
            "harm": own_harm,
            "harm_of_document": document_harm,
            "max_harm": self.settings.max_harm,
            "dev_loss": prefix.origin.dev_loss,
        }
        if self.settings.max_harm is not None and report["harm"] > self.settings.max_harm:
            raise HarmExceeded(report)
        return report

    def _phase(self, text: str, total: int) -> Callable[[int], None]:
        """Say what a while is spent on; the result is called with how much of it is done."""
        now = Progress(0, self.settings.steps, note=text, done=0, total=total)
        self.report(now)
        return lambda done: self.report(dataclasses.replace(now, done=done))

    def _note(self, text: str) -> None:
        self.report(Progress(0, self.settings.steps, note=text))
