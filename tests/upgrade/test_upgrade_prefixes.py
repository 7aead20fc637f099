"""Prefix files that earlier releases wrote are read as they were meant, and do what they did."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from foreword import BaseModel, Prefix, generate
from upgrade import surface, tiny_base

FOLDER = surface.FIXTURES / "prefixes"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())


def rows_of(name: str) -> list[surface.Example]:
    if name == "chat":
        return surface.chats(3)
    return [*surface.examples(3), surface.Example("abcdefgh" * 4, "ijkl")]


@pytest.mark.parametrize("name", tiny_base.FINGERPRINTS)
def test_the_base_has_the_fingerprint_that_the_prefixes_name(models: dict[str, BaseModel], name: str) -> None:
    assert models[name].fingerprint == tiny_base.FINGERPRINTS[name]


@pytest.mark.parametrize("name", EXPECTED)
def test_a_prefix_file_says_what_it_said(name: str) -> None:
    prefix, expected = Prefix.load(FOLDER / f"{name}.prefix"), EXPECTED[name]
    assert surface.digest(prefix.tensors) == expected["tensors"]
    assert {k: surface.digest({k: t}) for k, t in prefix.tensors.items()} == expected["by tensor"]
    assert {k: list(t.shape) for k, t in prefix.tensors.items()} == expected["shapes"]
    assert str(prefix.dtype) == expected["dtype"]
    assert list(prefix.streams) == expected["streams"]
    assert prefix.length == expected["length"]
    for part in ("base", "origin", "template"):
        found = dataclasses.asdict(getattr(prefix, part))
        assert {key: found[key] for key in expected[part]} == expected[part]  # there may be more by now
    for part in ("created", "licence", "positions"):
        assert getattr(prefix, part) == expected[part]
    assert dict(prefix.labels) == expected["labels"]


@pytest.mark.parametrize("name", EXPECTED)
def test_its_identity_is_still_that_of_its_file(name: str) -> None:
    # Stores and hub pages name it by the SHA-256 of these bytes.
    assert Prefix.load(FOLDER / f"{name}.prefix").digest == EXPECTED[name]["digest"]


@pytest.mark.parametrize("name", EXPECTED)
def test_it_does_to_its_base_what_it_did(models: dict[str, BaseModel], name: str) -> None:
    prefix, expected = Prefix.load(FOLDER / f"{name}.prefix"), EXPECTED[name]
    base = models[expected["base"]["name"]]
    losses = base.token_losses(rows_of(name), prefixes=prefix)
    for found, before in zip(losses, expected["losses"], strict=True):
        torch.testing.assert_close(found, torch.tensor(before), rtol=1e-4, atol=1e-4)
    texts = generate(base, [row.source for row in rows_of(name)], prefixes=prefix, max_new_tokens=8)
    if (
        surface.machine() == surface.recorded("made.json")["machine"]
    ):  # elsewhere a near tie may fall otherwise
        assert texts == expected["texts"]
