"""Training a prefix to predict what the same model predicts with a text in its context.

The teacher is the frozen base behind the text's own keys and values, the student the base behind the prefix.
The loss is KL(teacher || student) over the teacher's likeliest tokens at each token of an answer; the top 20
serve as well as the whole vocabulary (Cartridges, arXiv 2506.06266).

Shapes: M target tokens of all rows, K likeliest tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from foreword.base.base_model import BaseModel
from foreword.base.batch import batches_by_length
from foreword.base.loss import SoftTargets, likeliest_tokens, target_losses
from foreword.base.prefix_batch import KeyValues, PrefixBatch
from foreword.encoding import EncodedExample
from foreword.training.objective import RowLosses

LIKELIEST = 20
"""Tokens of the teacher's distribution that are kept."""

TEACHER_TOKENS = 2048
"""Tokens of one pass of the teacher on a CPU; only memory depends on it."""


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
