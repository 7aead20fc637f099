"""evaluate: examples in; their loss, and how close the texts written for their sources come, out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from foreword.base import BaseModel
from foreword.evaluation.losses import token_loss
from foreword.evaluation.text_metrics import text_scores
from foreword.examples import Example, references
from foreword.generation import generate
from foreword.prefix import Prefix
from foreword.template import Source, Template


@dataclass(frozen=True)
class Prediction:
    """What was written for one source, beside what could have been.

    Attributes:
        source: of the examples.
        references: the targets of all examples with that source.
        text: generated.
    """

    source: Source
    references: tuple[str, ...]
    text: str


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


def evaluate(
    base: BaseModel,
    examples: Sequence[Example],
    prefix: Prefix | None = None,
    *,
    text: bool = True,
    max_new_tokens: int = 64,
    batch_size: int = 32,
    template: Template | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
    **decoding: Any,
) -> Evaluation:
    """Measure `prefix`, or the base model alone, on `examples`.

    A source that comes several times, with another target each time, is generated once and scored
    against all of them.

    Args:
        text: false measures losses only, which is much faster.
        template: how sources become text when there is no prefix; default: the base's own. To compare
            with a prefix, give the prefix's.
        max_new_tokens, batch_size, decoding: as for `generate` (beams, length_penalty, stop, ...).
        on_progress: called with what is done ("losses", "texts"), how many are done, and how many there
            are.

    Raises:
        BadExamples: no examples.
        UsageError: a decoding option out of range.
        WindowExceeded: an example that does not fit behind the prefix; nothing is cut here.
        GeometryMismatch, WrongBaseModel: a prefix of another base.
    """

    def report(what: str) -> Callable[[int, int], None]:
        return lambda done, total: None if on_progress is None else on_progress(what, done, total)

    measured = token_loss(base, examples, prefix, template=template, on_progress=report("losses"))
    groups = references(examples)
    outputs: tuple[Prediction, ...] = ()
    if text:
        written = generate(
            base,
            [source for source, _ in groups],
            prefix,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            template=template,
            on_progress=report("texts"),
            **decoding,
        )
        outputs = tuple(
            Prediction(source, tuple(targets), made)
            for (source, targets), made in zip(groups, written, strict=True)
        )
    scores = text_scores([o.text for o in outputs], [o.references for o in outputs]) if outputs else None
    return Evaluation(
        tokens=measured.tokens,
        examples=len(examples),
        sources=len(groups),
        loss=measured.mean,
        perplexity=measured.perplexity,
        bleu=None if scores is None else scores.bleu,
        chrf=None if scores is None else scores.chrf,
        signatures={} if scores is None else scores.signatures,
        outputs=outputs,
    )
