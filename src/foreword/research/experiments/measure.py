"""Measuring: one subject on one group of entries: its loss, and how close its texts come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foreword.evaluation import Prediction, token_loss
from foreword.evaluation.metrics.bleu_chrf import plain_scores
from foreword.examples import Entry, source_key
from foreword.generation import generate
from foreword.research.baselines.protocol import Subject
from foreword.research.experiments.splits import distinct_sources, few_targets

LOSS = "loss"
LOSS_TARGETS = 3
"""References of one entry that the loss is measured on, the first ones; texts are compared with all."""


def measure(
    subject: Subject, entries: Sequence[Entry], decoding: Mapping[str, Any]
) -> tuple[dict[str, float], list[Prediction]]:
    """The figures of `subject` on `entries`, and what it wrote, in their order.

    Every distinct source is written for once. Entries of the same source are scored each with its own
    references, as in the official evaluations.

    Args:
        decoding: keywords of `generate`, the same for all that are compared.
    """
    loss = token_loss(
        subject.base, few_targets(entries, LOSS_TARGETS), subject.prefix, template=subject.template
    )
    sources = distinct_sources(entries)
    texts = generate(subject.base, sources, subject.prefix, template=subject.template, **decoding)
    written = {source_key(source): text.strip() for source, text in zip(sources, texts, strict=True)}
    predictions = [
        Prediction(entry.source, entry.references, written[source_key(entry.source)], entry.category)
        for entry in entries
    ]
    compared = plain_scores([each.text for each in predictions], [each.references for each in predictions])
    return {LOSS: loss.mean, **compared}, predictions
