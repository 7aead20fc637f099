"""evaluate: examples in; their loss per target token, and how close generated texts come to theirs, out."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from foreword.base.base_model import BaseModel
from foreword.errors import BadExamples
from foreword.evaluation.metrics import require
from foreword.evaluation.metrics.bleu_chrf_rouge import text_scores
from foreword.evaluation.scoring import Prediction, scores_by_part
from foreword.examples import Entry, Example, entries_of, examples_of
from foreword.generation import generate
from foreword.prefix import Prefix
from foreword.template import Template

EXAMPLES_BETWEEN_REPORTS = 64


@dataclass(frozen=True)
class TokenLoss:
    """A mean over target tokens in nats, end tokens among them: long targets weigh more than short ones."""

    mean: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(mean); infinite where that is too large for a float."""
        try:
            return math.exp(self.mean)
        except OverflowError:
            return math.inf


def token_loss(
    base: BaseModel,
    examples: Sequence[Example],
    prefix: Prefix | None = None,
    *,
    template: Template | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> TokenLoss:
    """The mean loss per target token, of all examples together.

    Args:
        template: how sources become text when there is no prefix; default: the base's own.
        on_progress: called with examples done and examples in all, now and then.

    Raises:
        BadExamples: no examples, or one that the chat template refuses (`TemplateRefuses`).
        WindowExceeded: an example that does not fit behind the prefix; nothing is cut here.
        NotFinite: a loss that is NaN or infinite.
        GeometryMismatch, WrongBaseModel: a prefix of another base.
    """
    if not examples:
        raise BadExamples("there are no examples to evaluate; give at least one")
    for number, example in enumerate(examples):  # before minutes of work, not after them
        base.encode_checked(example, prefix, template, number)
    total, tokens = 0.0, 0
    # Of like length together, so that a part computes little padding on models that need it.
    characters = [len(str(example.source)) + len(str(example.target)) for example in examples]
    order = sorted(range(len(examples)), key=characters.__getitem__)
    for start in range(0, len(order), EXAMPLES_BETWEEN_REPORTS):
        part = order[start : start + EXAMPLES_BETWEEN_REPORTS]
        chosen = [examples[number] for number in part]
        for losses in base.token_losses(chosen, prefix, template=template, numbers=part):
            total += float(losses.double().sum())
            tokens += losses.numel()
        if on_progress is not None:
            on_progress(start + len(part), len(order))
    return TokenLoss(total / tokens, tokens)


@dataclass(frozen=True)
class Evaluation:
    """Figures over a set of examples.

    Attributes:
        tokens, examples, sources: target tokens, examples, and distinct sources among them.
        loss: mean per target token, in nats.
        perplexity: exp(loss).
        bleu, chrf: of the generated texts, 0 to 100; None where none were generated.
        signatures: what sacrebleu computed, by metric.
        outputs: the generated texts, in the order in which their sources first come.
        figures: of the metrics asked for, by set and name; of parts of the data under "webnlg seen" and
            the like.
    """

    tokens: int
    examples: int
    sources: int
    loss: float
    perplexity: float
    bleu: float | None
    chrf: float | None
    signatures: dict[str, str]
    outputs: tuple[Prediction, ...]
    figures: dict[str, dict[str, float]] = field(default_factory=dict)


def evaluate(
    base: BaseModel,
    examples: Sequence[Example | Entry],
    prefix: Prefix | None = None,
    *,
    text: bool = True,
    metrics: Sequence[str] = (),
    unseen: Collection[str] = (),
    max_new_tokens: int = 64,
    batch_size: int = 32,
    template: Template | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
    **decoding: Any,
) -> Evaluation:
    """Measure `prefix`, or the base model alone, on `examples`.

    A source that comes several times, with another target each time, is generated once and scored
    against all of them. Entries of a task are each generated once, whatever their sources.

    Args:
        text: false measures losses only, which is much faster.
        metrics: names of `foreword.evaluation.metrics`, computed beside BLEU and chrF.
        unseen: categories of entries that training did not have: metrics are computed for them and for
            the others apart, too.
        template: how sources become text when there is no prefix; default: the base's own. To compare
            with a prefix, give the prefix's.
        max_new_tokens, batch_size, decoding: as for `generate` (beams, length_penalty, stop, ...).
        on_progress: called with what is done ("losses", "texts"), how many are done, and how many there
            are.

    Raises:
        BadExamples: no examples.
        UsageError: a decoding option out of range, or unknown metrics.
        MetricUnavailable: what a metric needs is not there.
        WindowExceeded: an example that does not fit behind the prefix; nothing is cut here.
        NotFinite: losses or logits that are NaN or infinite.
        GeometryMismatch, WrongBaseModel: a prefix of another base.
    """

    def report(what: str) -> Callable[[int, int], None]:
        return lambda done, total: None if on_progress is None else on_progress(what, done, total)

    if text:
        require(metrics)  # before minutes of work, not after them
    if not examples:
        raise BadExamples("there are no examples to evaluate; give at least one")
    entries = entries_of(examples)
    pairs = [
        example
        for one in examples
        for example in (examples_of([one], fit_only=False) if isinstance(one, Entry) else [one])
    ]
    measured = token_loss(base, pairs, prefix, template=template, on_progress=report("losses"))
    outputs: tuple[Prediction, ...] = ()
    if text:
        written = generate(
            base,
            [entry.source for entry in entries],
            prefix,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            template=template,
            on_progress=report("texts"),
            **decoding,
        )
        outputs = tuple(
            Prediction(entry.source, entry.references, made, entry.category)
            for entry, made in zip(entries, written, strict=True)
        )
    scores = text_scores([o.text for o in outputs], [o.references for o in outputs]) if outputs else None
    return Evaluation(
        tokens=measured.tokens,
        examples=len(pairs),
        sources=len(entries),
        loss=measured.mean,
        perplexity=measured.perplexity,
        bleu=None if scores is None else scores.bleu,
        chrf=None if scores is None else scores.chrf,
        signatures={} if scores is None else scores.signatures,
        outputs=outputs,
        figures=scores_by_part(metrics, outputs, unseen) if outputs else {},
    )
