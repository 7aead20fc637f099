"""foreword train on an encoder-decoder: which streams, and how long each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from foreword import BaseModel, Prefix, train
from foreword.examples import read_examples
from support.tiny_bart import tiny_bart_base

QUICK = ("--steps", 4, "--batch-size", 4)


@pytest.fixture
def bart(tmp_path: Path) -> str:
    base = tiny_bart_base()
    base.model.save_pretrained(tmp_path / "bart")
    base.tokenizer.save_pretrained(tmp_path / "bart")
    return "bart"


@pytest.mark.parametrize(
    ("options", "settings", "lengths"),
    [
        (("--length", 3), {"length": 3}, {"decoder": 3, "encoder": 3, "cross": 3}),
        (
            ("--length", "encoder=5,cross=2"),
            {"length": {"encoder": 5, "cross": 2}},
            {"encoder": 5, "cross": 2},
        ),
        (
            ("--length", 3, "--streams", "decoder,cross"),
            {"length": 3, "streams": ("decoder", "cross")},
            {"decoder": 3, "cross": 3},
        ),
        (("--streams", "encoder"), {"streams": ("encoder",)}, {"encoder": 10}),
    ],
)
def test_the_prefix_has_the_streams_and_lengths_that_were_asked_for(
    run: Any,
    bart: str,
    data: str,
    options: tuple[Any, ...],
    settings: dict[str, Any],
    lengths: dict[str, int],
) -> None:
    done = run("train", data, "--base", bart, "--out", "a.prefix", *QUICK, *options)
    assert done.status == 0, done.stderr
    found = Prefix.load("a.prefix")
    assert {name.split(".")[0]: found.tensors[name].shape[2] for name in found.tensors} == lengths
    expected = train(BaseModel.load(bart), read_examples(data), steps=4, batch_size=4, **settings)
    assert all(torch.equal(found.tensors[name], expected.tensors[name]) for name in expected.tensors)
    assert found.tensors.keys() == expected.tensors.keys()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--length", "encoder=5,encoder=2"), "each once"),
        (("--length", "encoder=five"), "expected a whole number"),
        (("--length", "encoder"), "expected a whole number"),
        (("--length", "encoder=0"), "length of encoder is 0; expected"),
        (("--length", "middle=5"), "no stream is called 'middle'; expected some of decoder"),
        (("--streams", "decoder,decoder"), "each once"),
        (("--streams", "decoder,,cross"), "each once"),
        (("--streams", "middle"), "no stream is called 'middle'; expected some of decoder"),
        (("--streams", "decoder", "--length", "encoder=5"), "streams are decoder but length names encoder"),
    ],
)
def test_streams_that_are_none_are_refused(
    run: Any, bart: str, data: str, options: tuple[Any, ...], told: str
) -> None:
    done = run("train", data, "--base", bart, "--out", "a.prefix", *QUICK, *options)
    assert done.status == 2, done.stderr
    assert told in done.stderr
    assert not Path("a.prefix").exists()


def test_a_decoder_only_model_has_one_stream(run: Any, base: str, data: str) -> None:
    done = run("train", data, "--base", base, "--out", "a.prefix", *QUICK, "--streams", "cross")
    assert done.status == 2
    assert "this base has no cross stream; it has decoder" in done.stderr
    assert not Path("a.prefix").exists()
