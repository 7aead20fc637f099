"""Documents that are trained in sight of each other: what a row is read behind, its gradient, and the whole run."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from foreword import BaseModel, Prefix, generate
from foreword.base.joining import join_prefixes
from foreword.base.prefix_batch import KeyValues, PrefixBatch
from foreword.documents import compile_documents
from foreword.documents.compile_many import is_result, together_id
from foreword.documents.distillation import Distillation, MixedVisibility, VisibleExample, taught
from foreword.documents.exact import exact_key_values
from foreword.documents.settings import DocumentSettings, TogetherSettings
from foreword.encoding import EncodedExample
from foreword.errors import (
    CheckpointMismatch,
    DocumentsFailed,
    UnsupportedArchitecture,
    UsageError,
    WindowExceeded,
)
from foreword.training.settings import TrainingSettings
from foreword.training.train import TrainingStopped
from foreword.training.trainer import build_trainer
from support import by_hand
from support.architectures.decoder_only import DECODER_ONLY_WORKING
from support.few_prompts import take_few_prompts
from support.stand_ins import VOCABULARY, byte_tokenizer, random_prefix, tiny_llama

TEXTS = {
    "gate": "The gate opens at nine. Mr. Ott has the key. It closes at noon, and Ada rings a bell.",
    "well": "The well is 30 metres deep. Mrs. Lund has the rope. Nobody drinks from it in May, says Ada.",
    "mill": "The mill stands still in July. Its wheel is of oak. The miller, Mr. Berg, sleeps until ten.",
}
QUICK: dict[str, Any] = {
    **{"steps": 4, "batch_size": 4, "draw": 16, "chunk_tokens": 60, "length": 8},
    **{"together": True, "mixed": 0.7, "neighbours": 2},
}
LENGTHS = (4, 6, 3)
TEXT = tuple(range(5, 25))
IDS = [((3, 9, 27), (4, 8, 0)), ((50, 51), (70,)), ((3, 9), (5, 6))]


@pytest.fixture
def base() -> BaseModel:
    return BaseModel(tiny_llama(max_position_embeddings=512), byte_tokenizer(), name="tiny-llama")


@pytest.fixture(autouse=True)
def _few_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    take_few_prompts(monkeypatch)
    monkeypatch.setattr("foreword.training.run_log.draw", lambda *a, **k: None)  # the picture of each run


def same(one: Prefix, two: Prefix) -> bool:
    return all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)


# -- the objective ---------------------------------------------------------------------------------


def rows_of(base: BaseModel, document: int, *, held_out: bool = False) -> list[VisibleExample]:
    rows = taught(base, [EncodedExample(*ids) for ids in IDS], exact_key_values(base, TEXT), VOCABULARY)
    return [
        VisibleExample(
            **{**vars(row), "document": document, "number": number, "held_out": held_out},
        )
        for number, row in enumerate(rows)
    ]


def objective_of(
    base: BaseModel, prefixes: list[Prefix], **together: Any
) -> tuple[MixedVisibility, list[list[VisibleExample]]]:
    """An objective over a trainer for each prefix, and the rows of each."""
    rows = [rows_of(base, document) for document in range(len(prefixes))]
    trainers = [
        build_trainer(
            base,
            TrainingSettings.from_mapping(
                {"length": prefix.length, "parameterization": "scaled", "freeze_first": True, "steps": 9}
            ),
            own,
            [],
            start=prefix,
        )
        for prefix, own in zip(prefixes, rows, strict=True)
    ]
    settings = TogetherSettings(**{"together": True, "mixed": 1.0, "neighbours": 2, **together})
    return MixedVisibility(base, trainers, settings, seed=5), rows


def prefixes_of(base: BaseModel) -> list[Prefix]:
    return [random_prefix(base, length, seed=seed) for seed, length in enumerate(LENGTHS)]


def test_rows_are_read_behind_what_joining_makes(tiny_base: BaseModel) -> None:
    prefixes = prefixes_of(tiny_base)
    objective, by_document = objective_of(tiny_base, prefixes)
    rows = [row for own in by_document for row in own]
    orders = [objective.order(row) for row in rows]
    assert any(order[0] != row.document for order, row in zip(orders, rows, strict=True))
    assert {len(order) for order in orders} == {2, 3}
    own = PrefixBatch.stack([prefixes[row.document] for row in rows], tiny_base.device)
    found = objective.losses(tiny_base, rows, own)
    joined = [join_prefixes(tiny_base, [prefixes[number] for number in order]) for order in orders]
    batch = PrefixBatch.stack(joined, tiny_base.device)
    expected = Distillation().losses(tiny_base, rows, batch)
    assert found.counts == expected.counts
    torch.testing.assert_close(found.losses_M, expected.losses_M, rtol=1e-5, atol=1e-6)
    alone = Distillation().losses(tiny_base, rows, own)
    assert (found.losses_M - alone.losses_M).abs().max() > 0.01


def turned(key_HPD: torch.Tensor, steps: int, theta: float) -> torch.Tensor:
    """LLaMA's keys `steps` positions further on, from its formula alone."""
    half = key_HPD.shape[-1] // 2
    angles = steps * theta ** (-torch.arange(half) / half)
    first, second = key_HPD[..., :half], key_HPD[..., half:]
    return torch.cat(
        [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1
    )


def test_a_rows_gradient_goes_to_its_own_prefix_as_by_hand(tiny_base: BaseModel) -> None:
    prefixes = prefixes_of(tiny_base)[:2]
    objective, by_document = objective_of(tiny_base, prefixes, neighbours=1)
    rows = by_document[1]
    assert {tuple(objective.order(row)) for row in rows} == {(0, 1), (1, 0)}
    leaves: list[KeyValues] = [
        {
            place: (key.clone().requires_grad_(), value.clone().requires_grad_())
            for place, (key, value) in prefix.key_values().items()
        }
        for prefix in prefixes
    ]
    own = PrefixBatch.from_tensors(leaves, [1] * len(rows), ["prefix"] * 2, [tiny_base.positions] * 2)
    objective.losses(tiny_base, rows, own).losses_M.sum().backward()

    theta = tiny_base.model.config.rope_parameters["rope_theta"]
    other_key, other_value = prefixes[0].key_values()["decoder"]
    key, value = (each.clone().requires_grad_() for each in prefixes[1].key_values()["decoder"])
    total = torch.zeros(())
    for row in rows:
        # Of what stands first all; of the other its tokens from 1, as far on as the first has tokens from 1.
        if objective.order(row) == [0, 1]:
            keys = torch.cat([other_key, turned(key[:, :, 1:], LENGTHS[0] - 1, theta)], -2)
            values = torch.cat([other_value, value[:, :, 1:]], -2)
        else:
            keys = torch.cat([key, turned(other_key[:, :, 1:], LENGTHS[1] - 1, theta)], -2)
            values = torch.cat([value, other_value[:, :, 1:]], -2)
        logits_TV = by_hand.logits(
            tiny_base.model,
            [*row.source_ids, *row.target_ids[:-1]],
            list(zip(keys, values, strict=True)),
        )
        student_MV = torch.log_softmax(logits_TV[-len(row.target_ids) :].float(), -1)
        total = total - (student_MV.gather(1, row.teacher.ids_MK) * row.teacher.weights_MK).sum()
    total.backward()
    found_key, found_value = leaves[1]["decoder"]
    assert key.grad is not None
    assert key.grad.abs().max() > 0.01
    torch.testing.assert_close(found_key.grad, key.grad, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found_value.grad, value.grad, rtol=1e-3, atol=1e-5)
    for neighbour in leaves[0]["decoder"]:
        assert neighbour.grad is None or not neighbour.grad.any()


def test_what_stands_beside_a_row_is_decided_by_seed_step_and_row(tiny_base: BaseModel) -> None:
    objective, by_document = objective_of(tiny_base, prefixes_of(tiny_base), mixed=0.4)
    (row, *_), held_out = by_document[1], rows_of(tiny_base, 1, held_out=True)[0]
    drawn, fixed = [], []
    for step in range(300):
        objective._trainers[1].step = step
        drawn.append(tuple(objective.order(row)))
        fixed.append(tuple(objective.order(held_out)))
        assert drawn[-1] == tuple(objective.order(row))
    assert len(set(fixed)) == 1
    assert sum(len(order) > 1 for order in drawn) == pytest.approx(0.4 * 300, abs=30)
    mixed = {order for order in drawn if len(order) > 1}
    assert mixed == {
        (0, 1),
        (1, 0),
        (2, 1),
        (1, 2),
        *((a, b, 3 - a - b) for a in range(3) for b in {0, 1, 2} - {a}),
    }


@pytest.mark.parametrize("by_layer", [False, True])
def test_a_batch_gives_back_what_it_stacks(by_layer: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    places = {"decoder.0": (2, 4), "decoder.1": (1, 6)} if by_layer else {"decoder": (3, 2, 4)}
    parts = []
    for length in LENGTHS:
        shapes = {place: (*lead, length, size) for place, (*lead, size) in places.items()}
        parts.append(
            {
                place: (torch.randn(shape, generator=generator), torch.randn(shape, generator=generator))
                for place, shape in shapes.items()
            }
        )
    found = PrefixBatch.from_tensors(parts, [0, 1, 2]).key_values()
    for one, other in zip(found, parts, strict=True):
        assert one.keys() == other.keys()
        for place in one:
            assert all(torch.equal(a, b) for a, b in zip(one[place], other[place], strict=True))


# -- the run ---------------------------------------------------------------------------------------


def test_documents_of_one_run_have_its_id_and_can_be_joined(base: BaseModel) -> None:
    owners: set[str | None] = set()
    made = compile_documents(
        base, TEXTS, labels={"kind": "t"}, on_progress=lambda each: owners.add(each.owner), **QUICK
    )
    assert list(made) == list(TEXTS)
    assert owners == set(TEXTS)
    settings = DocumentSettings(**{k: v for k, v in QUICK.items() if k in DocumentSettings().to_json()})
    together = TogetherSettings(together=True, mixed=0.7, neighbours=2)
    identity = together_id(base, TEXTS.values(), settings, together)
    for name, prefix in made.items():
        assert (prefix.recipe["together"], prefix.labels) == (identity, {"kind": "t"})
        assert prefix.report["recovered_share"] is not None
        assert is_result(prefix, base, TEXTS[name], settings, {"kind": "t"}, together=identity)
        assert not is_result(prefix, base, TEXTS[name], settings, {"kind": "t"})
        assert not is_result(prefix, base, TEXTS[name], settings, {"kind": "t"}, together="another")
    texts = generate(base, ["Who?", "Who?"], prefixes=[(made["gate"], made["well"]), None], max_new_tokens=4)
    assert len(texts) == 2
    apart = compile_documents(base, TEXTS, **{**QUICK, "together": False, "mixed": None, "neighbours": None})
    assert "together" not in apart["gate"].recipe
    assert not any(same(apart[name], made[name]) for name in TEXTS)
    # The first token, of which one is left when prefixes are joined, is as it was at the start.
    assert all(torch.equal(apart[n].key()[:, :, 0], made[n].key()[:, :, 0]) for n in TEXTS)
    ids = {
        together_id(base, texts, one, other)
        for texts in (TEXTS.values(), list(TEXTS.values())[:2])
        for one in (settings, DocumentSettings(steps=5))
        for other in (together, TogetherSettings(together=True))
    }
    assert len(ids) == 8
    assert together_id(base, TEXTS.values(), DocumentSettings(max_harm=1.0), together) == together_id(
        base, TEXTS.values(), DocumentSettings(), together
    )


def test_a_stopped_run_ends_in_the_same_prefixes(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = compile_documents(base, TEXTS, **QUICK)
    asked: list[int] = []

    def stop(progress: Any) -> None:
        if progress.step == 3 and not asked:
            asked.append(progress.step)
            os.kill(os.getpid(), signal.SIGINT)

    kept: dict[str, Any] = {**QUICK, "checkpoint_dir": tmp_path, "checkpoint_every": 1}
    with pytest.raises(TrainingStopped):
        compile_documents(base, TEXTS, on_progress=stop, **kept)
    # As if the machine had gone off between two of the files.
    assert [path.name for path in sorted((tmp_path / "@well").glob("*.checkpoint"))] == [
        "step-0000002.checkpoint",
        "step-0000003.checkpoint",
    ]
    (tmp_path / "@well" / "step-0000003.checkpoint").unlink()
    steps: list[int] = []
    monkeypatch.setattr("foreword.documents.compile.study", lambda *a: pytest.fail("asked the teacher again"))
    resumed = compile_documents(base, TEXTS, on_progress=lambda each: steps.append(each.step), **kept)
    assert 1 not in steps
    assert all(same(resumed[name], whole[name]) for name in TEXTS)
    log = (tmp_path / "@gate" / "log.jsonl").read_text().splitlines()
    assert [row["step"] for row in map(json.loads, log) if "loss" in row] == [1, 2, 3, 4]


def test_checkpoints_of_another_run_are_refused_or_go(base: BaseModel, tmp_path: Path) -> None:
    compile_documents(base, TEXTS, checkpoint_dir=tmp_path, **QUICK)
    for changed in ({**QUICK, "neighbours": 1}, {**QUICK, "mixed": 0.6}):
        with pytest.raises(CheckpointMismatch, match="together"):
            compile_documents(base, TEXTS, checkpoint_dir=tmp_path, **changed)
    fewer = {name: TEXTS[name] for name in ("gate", "well")}
    with pytest.raises(CheckpointMismatch, match=r"together\.run"):
        compile_documents(base, fewer, checkpoint_dir=tmp_path, **QUICK)
    made = compile_documents(base, fewer, checkpoint_dir=tmp_path, restart=True, **QUICK)
    assert all(same(made[name], prefix) for name, prefix in compile_documents(base, fewer, **QUICK).items())


def test_a_document_that_cannot_be_begun_is_named_and_the_others_go_on(base: BaseModel) -> None:
    with pytest.raises(DocumentsFailed, match="1 documents ended without a prefix: void: ") as told:
        compile_documents(base, {"void": " ", **TEXTS}, **QUICK)
    assert set(told.value.prefixes) == set(TEXTS)
    with pytest.raises(DocumentsFailed, match="no other document is left") as told:
        compile_documents(base, {"void": " ", "gate": TEXTS["gate"]}, **QUICK)
    assert set(told.value.errors) == {"void", "gate"}
    with pytest.raises(DocumentsFailed, match="one virtual token"):
        compile_documents(base, TEXTS, **{**QUICK, "length": 1})


def test_what_cannot_be_trained_together_is_refused(base: BaseModel) -> None:
    for documents in ({}, {"gate": TEXTS["gate"]}):
        with pytest.raises(UsageError, match=f"there are {len(documents)} documents"):
            compile_documents(base, documents, **QUICK)
    with pytest.raises(UsageError, match="'gate' comes twice"):
        compile_documents(base, [("gate", TEXTS["gate"])] * 2, **QUICK)
    for method in ("exact", "matched"):
        with pytest.raises(UsageError, match=f"method is {method}, but only"):
            compile_documents(base, TEXTS, method=method, together=True)
    for options, message in (
        ({"neighbours": 2}, "neighbours is 2, but it is about documents that are trained together"),
        ({"mixed": 0.5}, "mixed is 0.5, but it is about"),
        ({"together": True, "neighbours": 0}, "neighbours is 0"),
        ({"together": True, "mixed": 1.5}, "mixed is 1.5"),
    ):
        with pytest.raises(UsageError, match=message):
            compile_documents(base, TEXTS, **options)  # type: ignore[arg-type]


def test_joined_prefixes_that_leave_no_room_are_refused_before_training() -> None:
    narrow = BaseModel(tiny_llama(max_position_embeddings=190), byte_tokenizer(), name="narrow")
    options = {**QUICK, "length": 50}
    with pytest.raises(
        WindowExceeded, match="joined with 2 others has 148 virtual tokens.*190 positions.*neighbours"
    ):
        compile_documents(narrow, TEXTS, **options)
    assert len(compile_documents(narrow, TEXTS, **{**options, "neighbours": 1, "steps": 1})) == 3


def test_a_base_with_learned_positions_is_refused_by_name() -> None:
    base = next(each for each in DECODER_ONLY_WORKING if each.model_type == "gpt2").base
    with pytest.raises(UnsupportedArchitecture, match="documents can't be trained together: prefixes of"):
        compile_documents(base, TEXTS, **QUICK)
