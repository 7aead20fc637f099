"""Training a prefix to predict what the same model predicts with a text in its context.

The teacher is the frozen base behind the text's own keys and values, the student the base behind the prefix.
The loss is KL(teacher || student) over the teacher's likeliest tokens at each token of an answer; the top 20
serve as well as the whole vocabulary (Cartridges, arXiv 2506.06266).

Prefixes that were trained apart disturb each other when they are joined. So where documents are trained
together, some rows of one are read behind its own prefix joined with others', as base/joining.py joins them,
the own one at any place among them (mixed visibility; Cartridges at Scale, arXiv 2606.04557).

Shapes: M target tokens of all rows, K likeliest tokens.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from foreword import files
from foreword.base.base_model import BaseModel
from foreword.base.batch import batches_by_length
from foreword.base.joining import joined_key_values
from foreword.base.loss import SoftTargets, likeliest_tokens, target_losses
from foreword.base.prefix_batch import KeyValues, PrefixBatch
from foreword.documents.settings import TogetherSettings
from foreword.encoding import EncodedExample
from foreword.training.objective import RowLosses
from foreword.training.trainer import Trainer

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


# -- what the teacher predicted, kept for a run that goes on --------------------------------------


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


# -- several documents in sight of each other ------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class VisibleExample(DistilledExample):
    """A conversation of one of several documents.

    Attributes:
        document, number: whose it is, and which one of them.
        held_out: from training; what stands beside it is then the same at every step.
    """

    document: int
    number: int
    held_out: bool


class MixedVisibility:
    """The loss of `Distillation`, some rows behind their own prefix joined with others.

    A row's gradient goes to its own document's prefix, which learns to answer among others. The others' keys
    and values, as they are at this step, are constants of it: so a step of a document is the mean over its
    own rows, whatever passes they share, and no prefix learns from a text that is not its own.
    """

    def __init__(
        self, base: BaseModel, trainers: Sequence[Trainer], together: TogetherSettings, seed: int
    ) -> None:
        """`trainers`: of the documents, in the order that rows number them in."""
        self._rotations = base.key_rotations
        self._trainers = trainers
        self._together = together
        self._seed = seed
        self._alone = Distillation()

    def count(self, row: EncodedExample) -> int:
        """The target's tokens."""
        return self._alone.count(row)

    def losses(
        self, base: BaseModel, rows: Sequence[EncodedExample], prefixes: PrefixBatch | None
    ) -> RowLosses:
        """One pass; `prefixes` has each row's own."""
        return self._alone.losses(base, rows, prefixes and self.visible(base, rows, prefixes))

    def visible(self, base: BaseModel, rows: Sequence[EncodedExample], prefixes: PrefixBatch) -> PrefixBatch:
        """What each row is read behind: its own prefix, alone or joined with others."""
        distinct = prefixes.key_values()
        others: dict[int, KeyValues] = {}
        of_row: list[int | None] = []
        for row, place in zip(rows, prefixes.of_row, strict=True):
            assert isinstance(row, VisibleExample)
            assert place is not None
            order = self.order(row)
            if len(order) > 1:
                for number in order:
                    if number not in others:
                        others[number] = self._constants(number, base.device)
                parts = [distinct[place] if each == row.document else others[each] for each in order]
                distinct.append(joined_key_values(parts, self._rotations))
                place = len(distinct) - 1
            of_row.append(place)
        placements, positions = ["prefix"] * len(distinct), [base.positions] * len(distinct)
        return PrefixBatch.from_tensors(distinct, of_row, placements, positions)  # type: ignore[arg-type]

    def order(self, row: VisibleExample) -> list[int]:
        """The documents whose prefixes stand in front of a row, its own among them."""
        step = "held out" if row.held_out else self._trainers[row.document].step
        # A string seed is hashed the same way in every process.
        rng = random.Random(f"{self._seed}/{step}/{row.document}/{row.number}")
        if rng.random() >= self._together.mixed:
            return [row.document]
        others = [number for number in range(len(self._trainers)) if number != row.document]
        order = rng.sample(others, rng.randint(1, min(self._together.neighbours, len(others))))
        order.insert(rng.randint(0, len(order)), row.document)
        return order

    @torch.no_grad()
    def _constants(self, document: int, device: torch.device) -> KeyValues:
        key_values = self._trainers[document].trained.key_values()
        return {place: (key.to(device), value.to(device)) for place, (key, value) in key_values.items()}
