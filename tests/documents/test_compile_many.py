"""Many documents in one run: each as if alone, and one that fails keeps nobody from a prefix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from foreword import BaseModel, Prefix, compile_document
from foreword.documents import compile_documents
from foreword.documents.compile_many import is_result
from foreword.documents.settings import DocumentSettings
from foreword.errors import CheckpointMismatch, DocumentsFailed, UsageError
from support.few_prompts import take_few_prompts
from support.stand_ins import byte_tokenizer, tiny_llama

TEXTS = {
    "gate": "The gate opens at nine. Mr. Ott has the key. It closes at noon, and Ada rings a bell.",
    "well": "The well is 30 metres deep. Mrs. Lund has the rope. Nobody drinks from it in May, says Ada.",
}
QUICK: dict[str, Any] = {"steps": 3, "batch_size": 4, "draw": 16, "chunk_tokens": 60, "length": 8}


@pytest.fixture
def base() -> BaseModel:
    return BaseModel(tiny_llama(max_position_embeddings=512), byte_tokenizer(), name="tiny-llama")


@pytest.fixture(autouse=True)
def _few_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    take_few_prompts(monkeypatch)


def same(one: Prefix, two: Prefix) -> bool:
    return all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)


def test_each_document_is_as_if_alone_and_failures_are_named(base: BaseModel, tmp_path: Path) -> None:
    failed: list[str] = []
    owners: set[str | None] = set()
    with pytest.raises(
        DocumentsFailed, match="1 documents ended without a prefix: void: the document"
    ) as told:
        compile_documents(
            base,
            {"void": " ", **TEXTS},
            checkpoint_dir=tmp_path,
            labels={"kind": "test"},
            on_failure=lambda name, error: failed.append(name),
            on_progress=lambda progress: owners.add(progress.owner),
            **QUICK,
        )
    assert failed == list(told.value.errors) == ["void"]
    assert owners == {"void", "gate", "well"}
    for name, prefix in told.value.prefixes.items():
        assert same(prefix, compile_document(base, TEXTS[name], **QUICK))
        assert prefix.labels == {"kind": "test"}
        assert list((tmp_path / f"@{name}").glob("*.checkpoint"))


def test_checkpoints_of_another_run_fail_their_document_or_go(base: BaseModel, tmp_path: Path) -> None:
    one = {"gate": TEXTS["gate"]}
    compile_documents(base, one, checkpoint_dir=tmp_path, **QUICK)
    changed = {**QUICK, "length": 9}
    with pytest.raises(DocumentsFailed) as told:
        compile_documents(base, one, checkpoint_dir=tmp_path, **changed)
    assert isinstance(told.value.errors["gate"], CheckpointMismatch)
    made = compile_documents(base, one, checkpoint_dir=tmp_path, restart=True, **changed)
    assert made["gate"].length == 9


def test_what_is_wrong_with_the_call_stops_it(base: BaseModel) -> None:
    with pytest.raises(UsageError, match="'gate' comes twice"):
        compile_documents(base, [("gate", TEXTS["gate"])] * 2, **QUICK)
    with pytest.raises(UsageError, match="steps is 0"):
        compile_documents(base, TEXTS, steps=0)


def test_a_result_is_told_by_its_text_and_settings(base: BaseModel, tmp_path: Path) -> None:
    compile_document(base, TEXTS["gate"], **QUICK).save(tmp_path / "a.prefix")
    prefix = Prefix.load(tmp_path / "a.prefix")
    settings = DocumentSettings(**QUICK)
    assert is_result(prefix, base, TEXTS["gate"], settings)
    assert not is_result(prefix, base, TEXTS["well"], settings)
    for harm, expected in ((1e-9, False), (1e9, True)):
        limited = DocumentSettings(**{**QUICK, "max_harm": harm})
        assert is_result(prefix, base, TEXTS["gate"], limited) == expected
    assert not is_result(prefix, base, TEXTS["gate"], settings, {"kind": "test"})
    assert not is_result(prefix, base, TEXTS["gate"], settings, licence="MIT")
    assert not is_result(prefix, base, TEXTS["gate"], DocumentSettings(**{**QUICK, "seed": 1}))
    other = BaseModel(tiny_llama(seed=3, max_position_embeddings=512), byte_tokenizer(), name="other")
    assert not is_result(prefix, other, TEXTS["gate"], settings)
