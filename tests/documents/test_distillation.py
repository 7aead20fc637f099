"""The loss is KL to the same model with the text in its context, as computed by hand."""

from __future__ import annotations

import pytest
import torch

from foreword import BaseModel
from foreword.base import loss
from foreword.base.prefix_batch import PrefixBatch
from foreword.documents.distillation import Distillation, taught
from foreword.documents.exact import exact_key_values
from foreword.encoding import EncodedExample
from support import by_hand
from support.stand_ins import VOCABULARY, random_prefix

TEXT = tuple(range(5, 25))
ROWS = [
    EncodedExample((3, 9, 27), (4, 8, 0)),
    EncodedExample((50, 51), (70,)),
    EncodedExample((3, 9), (5, 6)),
]


def log_probabilities(base: BaseModel, context: tuple[int, ...], row: EncodedExample) -> torch.Tensor:
    """By transformers alone, the text in front: `[M, V]`."""
    ids = [*context, *row.source_ids, *row.target_ids[:-1]]
    with torch.no_grad():
        logits_TV = base.model(torch.tensor([ids])).logits[0]
    return torch.log_softmax(logits_TV[-len(row.target_ids) :].float(), -1)


def test_the_teacher_predicts_what_the_model_does_with_the_text_in_front(tiny_base: BaseModel) -> None:
    found = taught(tiny_base, ROWS, exact_key_values(tiny_base, TEXT), 20)
    alone = taught(tiny_base, ROWS, None, 5)
    for row, with_text, without in zip(ROWS, found, alone, strict=True):
        assert (with_text.source_ids, with_text.target_ids) == (row.source_ids, row.target_ids)
        for each, context, count in ((with_text, TEXT, 20), (without, (), 5)):
            expected = log_probabilities(tiny_base, context, row).exp().topk(count)
            assert torch.equal(each.teacher.ids_MK, expected.indices)
            torch.testing.assert_close(each.teacher.weights_MK, expected.values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("count", [VOCABULARY, 7])
def test_the_loss_is_the_divergence_by_hand(tiny_base: BaseModel, count: int) -> None:
    prefix = random_prefix(tiny_base, 4)
    rows = taught(tiny_base, ROWS, exact_key_values(tiny_base, TEXT), count)
    prefixes = PrefixBatch.stack([prefix] * len(rows), tiny_base.device)
    found = Distillation().losses(tiny_base, rows, prefixes)
    expected = []
    for row in ROWS:
        logits_TV = by_hand.logits(
            tiny_base.model, [*row.source_ids, *row.target_ids[:-1]], by_hand.layers_of(prefix)
        )
        student_MV = torch.log_softmax(logits_TV[-len(row.target_ids) :].float(), -1)
        teacher_MV = log_probabilities(tiny_base, TEXT, row)
        kept = teacher_MV.topk(count).indices
        terms = teacher_MV.exp() * (teacher_MV - student_MV)
        expected.append(terms.gather(1, kept).sum(1))
    torch.testing.assert_close(found.losses_M, torch.cat(expected), rtol=1e-4, atol=1e-5)
    assert found.counts == (3, 1, 2)
    if count == VOCABULARY:
        assert (found.losses_M > 0).all()


def test_behind_the_text_itself_nothing_is_left_to_learn(tiny_base: BaseModel) -> None:
    key_values = exact_key_values(tiny_base, TEXT)
    rows = taught(tiny_base, ROWS, key_values, VOCABULARY)
    prefixes = PrefixBatch.from_tensors([key_values], [0] * len(rows), ["prefix"], [tiny_base.positions])
    losses_M = Distillation().losses(tiny_base, rows, prefixes).losses_M
    torch.testing.assert_close(losses_M, torch.zeros_like(losses_M), atol=1e-5, rtol=0)


def test_gradients_of_soft_targets_are_those_of_all_logits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "PART", 2 * 40)
    torch.manual_seed(0)
    head = torch.nn.Linear(6, 40).requires_grad_(False)
    states = torch.randn(9, 6, requires_grad=True)
    weights = torch.rand(9, 3) * torch.tensor([1.0, 0.5, 0.0])
    soft = loss.SoftTargets(torch.randint(40, (9, 3)), weights)
    found = loss.head_losses(head, states, torch.zeros(9, dtype=torch.long), soft)
    (gradient,) = torch.autograd.grad(found.square().sum(), states)
    log_MV = torch.log_softmax(head(states), -1)
    expected = -(log_MV.gather(1, soft.ids_MK) * weights).sum(1)
    (expected_gradient,) = torch.autograd.grad(expected.square().sum(), states)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_divergences_are_over_the_whole_vocabulary(tiny_base: BaseModel) -> None:
    prefix = random_prefix(tiny_base, 4)
    prefixes = PrefixBatch.stack([prefix] * len(ROWS), tiny_base.device)
    one, other = tiny_base.batch(ROWS, None, "flat"), tiny_base.batch(ROWS, prefixes, "flat")
    found_M = loss.divergences(tiny_base.model, one, None, other, prefixes)
    expected = []
    for row in ROWS:
        ids = [*row.source_ids, *row.target_ids[:-1]]
        behind = by_hand.logits(tiny_base.model, ids, by_hand.layers_of(prefix))[-len(row.target_ids) :]
        alone_MV = log_probabilities(tiny_base, (), row)
        expected.append((alone_MV.exp() * (alone_MV - torch.log_softmax(behind.float(), -1))).sum(1))
    torch.testing.assert_close(found_M, torch.cat(expected), rtol=1e-4, atol=1e-5)
