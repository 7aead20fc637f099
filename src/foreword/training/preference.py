"""Training a prefix on preferences: of two answers, the better one shall become the likelier one.

The loss of a pair is that of DPO (Rafailov et al., 2023, arXiv 2305.18290),
-log sigmoid(beta * ((chosen - its reference) - (rejected - its reference))), of log probabilities, each the
sum over an answer's tokens. The reference is the base model behind the prefix that training starts from, or
alone.

It never changes, so its log probabilities are computed once, before the first step: one forward pass over the
data, instead of two more rows for each pair in every pass of training.

Shapes: B pairs, M target tokens of all answers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from foreword.base.base_model import BaseModel
from foreword.base.batch import batches_by_length
from foreword.base.device_memory import tokens_at_once
from foreword.base.loss import target_losses
from foreword.base.prefix_batch import PrefixBatch
from foreword.encoding import EncodedExample, Truncation, encode_example, naming
from foreword.errors import BadExamples
from foreword.examples import Example, Preference
from foreword.prefix import Prefix
from foreword.template import Placement, Template
from foreword.training.loop import EVALUATION_TOKENS
from foreword.training.objective import RowLosses

ACCURACY, MARGIN = "reward_accuracy", "reward_margin"
"""What is measured of each pair beside its loss, as TRL has it: whether the chosen answer has the higher
reward, and by how much. A reward is beta times an answer's log probability less that of the reference."""


@dataclass(frozen=True, kw_only=True)
class EncodedPreference(EncodedExample):
    """A pair of answers as token ids; `target_ids` is the chosen one.

    Attributes:
        rejected_ids: the tokens of the other one, the end token among them.
        reference: log probabilities of the chosen and the rejected answer under the reference; None: not yet
            computed.
    """

    rejected_ids: tuple[int, ...]
    reference: tuple[float, float] | None = None

    @property
    def rows(self) -> tuple[EncodedExample, EncodedExample]:
        """Each answer as an example of its own."""
        return (
            EncodedExample(self.source_ids, self.target_ids, self.start_id),
            EncodedExample(self.source_ids, self.rejected_ids, self.start_id),
        )

    @property
    def tokens(self) -> int:
        """Tokens the model reads, of both."""
        return sum(row.tokens for row in self.rows)


class DPO:
    """Direct preference optimization: a loss term for each pair of answers."""

    def __init__(self, beta: float) -> None:
        """`beta`: how strongly the result is held to the reference."""
        self.beta = beta

    def count(self, row: EncodedExample) -> int:
        """One, of the pair."""
        return 1

    def losses(
        self, base: BaseModel, rows: Sequence[EncodedExample], prefixes: PrefixBatch | None
    ) -> RowLosses:
        """One pass over both answers of each pair, which share their source's tokens in packed rows."""
        pairs = [row for row in rows if isinstance(row, EncodedPreference)]
        logps_B2 = answer_log_probabilities(base, pairs, prefixes)
        reference_B2 = torch.tensor([pair.reference for pair in pairs], device=logps_B2.device)
        reward_B2 = self.beta * (logps_B2 - reference_B2)
        margin_B = reward_B2[:, 0] - reward_B2[:, 1]
        measures = {ACCURACY: (margin_B > 0).float(), MARGIN: margin_B.detach()}
        return RowLosses(-logsigmoid(margin_B), (1,) * len(pairs), measures)


def answer_log_probabilities(
    base: BaseModel, pairs: Sequence[EncodedPreference], prefixes: PrefixBatch | None
) -> torch.Tensor:
    """Log probabilities of the chosen and the rejected answers in one pass, `[B, 2]`, float32, in nats."""
    rows = [row for pair in pairs for row in pair.rows]
    if prefixes is not None:
        prefixes = prefixes.only([place for place in range(len(pairs)) for _ in range(2)])
    batch = base.batch(rows, prefixes, "flat")
    of_tokens = RowLosses(target_losses(base.model, batch, prefixes), batch.targets)
    losses_M = of_tokens.losses_M
    return -losses_M.new_zeros(len(rows)).index_add(0, of_tokens.row_M, losses_M).view(-1, 2)


@torch.no_grad()
def with_reference(
    base: BaseModel, pairs: Sequence[EncodedPreference], start: Prefix | None, placement: Placement
) -> list[EncodedPreference]:
    """Pairs with their log probabilities under the base, behind `start` if there is one.

    Args:
        placement: of the prefix in training, which `start` has here, too: then every margin begins at zero.

    Raises:
        GeometryMismatch, WrongBaseModel: `start` is a prefix of another base.
    """
    made = list(pairs)
    held = None
    if start is not None:
        base.check_fits(start)
        held = {
            place: (key.to(base.device), value.to(base.device))
            for place, (key, value) in start.key_values().items()
        }
    most = tokens_at_once(base.model, base.device, gradient=False) or EVALUATION_TOKENS
    for indices in batches_by_length(pairs, most):
        part = [pairs[index] for index in indices]
        prefixes = None
        if held is not None:
            prefixes = PrefixBatch.from_tensors([held], [0] * len(part), [placement], [base.positions])
        found = answer_log_probabilities(base, part, prefixes).tolist()
        for index, pair, (chosen, rejected) in zip(indices, part, found, strict=True):
            made[index] = dataclasses.replace(pair, reference=(chosen, rejected))
    return made


def encode_preferences(
    preferences: Sequence[Preference],
    tokenizer: Any,
    template: Template,
    limit: int | None = None,
    *,
    apart: bool = False,
) -> tuple[list[EncodedPreference], Truncation]:
    """As `encode`, of preferences: both answers have the same source, cut to what the longer one leaves.

    Raises:
        BadExamples: answers that are equal as tokens, or once they are cut.
    """
    pairs, sources, targets, tokens = [], 0, 0, 0
    for number, one in enumerate(preferences):
        with naming(number, one):
            (chosen, cut), (rejected, other_cut) = (
                encode_example(Example(one.source, answer), tokenizer, template, limit, apart=apart)
                for answer in (one.chosen, one.rejected)
            )
            if chosen.target_ids == rejected.target_ids:
                once_cut = f" once they are cut to {limit} tokens" if cut.targets or other_cut.targets else ""
                raise BadExamples(
                    f"chosen and rejected are equal as tokens{once_cut}, so that neither is better; leave "
                    "such a pair out"
                )
        source_ids = min(chosen.source_ids, rejected.source_ids, key=len)
        pairs.append(
            EncodedPreference(
                source_ids, chosen.target_ids, chosen.start_id, rejected_ids=rejected.target_ids
            )
        )
        sources += max(cut.sources, other_cut.sources)
        targets += cut.targets + other_cut.targets
        tokens += cut.tokens + other_cut.tokens
    return pairs, Truncation(sources, targets, tokens, limit)
