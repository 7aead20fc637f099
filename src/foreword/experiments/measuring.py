"""Measuring: one subject on one group of examples: its loss, and how close its texts come."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from foreword.baselines.trainee import Subject
from foreword.evaluation import Prediction, text_scores, token_loss
from foreword.examples import Example, references
from foreword.experiments.material import few_targets
from foreword.generation import generate

LOSS = "loss"
LOSS_TARGETS = 3
"""Targets of one source that the loss is measured on, the first ones; texts are compared with all."""

TextMetrics = Callable[[Sequence[str], Sequence[Sequence[str]]], Mapping[str, float]]
"""Figures by name, higher is better, of texts against the references of each."""


def corpus_scores(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """BLEU and chrF by sacrebleu."""
    scores = text_scores(texts, references)
    return {"BLEU": scores.bleu, "chrF": scores.chrf}


def measure(
    subject: Subject,
    examples: Sequence[Example],
    decoding: Mapping[str, Any],
    metrics: TextMetrics = corpus_scores,
) -> tuple[dict[str, float], list[Prediction]]:
    """The figures of `subject` on `examples`, and what it wrote.

    Args:
        decoding: keywords of `generate`, the same for all that are compared.
    """
    loss = token_loss(
        subject.base, few_targets(examples, LOSS_TARGETS), subject.prefix, template=subject.template
    )
    groups = references(examples)
    texts = generate(
        subject.base,
        [source for source, _ in groups],
        subject.prefix,
        template=subject.template,
        **decoding,
    )
    written = [text.strip() for text in texts]
    predictions = [
        Prediction(source, tuple(targets), text)
        for (source, targets), text in zip(groups, written, strict=True)
    ]
    figures = {LOSS: loss.mean, **metrics(written, [targets for _, targets in groups])}
    return figures, predictions
