"""The page that goes with a shared prefix."""

from __future__ import annotations

import dataclasses
from typing import Any

import yaml

from foreword import Prefix
from foreword.interop.card import hub_card
from foreword.prefix import BaseIdentity, Origin
from foreword.template import Template

REPOSITORY = "alice/reviews"


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_page_tells_base_template_use_facts_and_licence(plain_prefix: Prefix) -> None:
    prefix = dataclasses.replace(
        plain_prefix,
        base=BaseIdentity("smollm2-135m-instruct", None, "ab" * 32),
        template=Template(separator="\n\n", end="<end>"),
        origin=Origin(parameterization="direct", examples=100, dev_loss=1.25, seed=3),
        licence="Apache-2.0",
    )
    card = hub_card(prefix, REPOSITORY, "prefix.safetensors")
    assert front_matter(card) == {
        "library_name": "foreword",
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "license": "apache-2.0",
        "tags": ["prefix-tuning", "foreword"],
    }
    for fact in (
        'BaseModel.load("smollm2-135m-instruct")',
        f"foreword import hub {REPOSITORY}",
        "1.25",
        "größer",
    ):
        assert fact in card
    assert r'`"\n\n"`' in card
    assert prefix.digest in card


def test_the_page_tells_an_infix_and_the_rule_of_positions(plain_prefix: Prefix) -> None:
    assert "infix" not in hub_card(plain_prefix, REPOSITORY, "prefix.safetensors")
    infix = dataclasses.replace(
        plain_prefix,
        template=dataclasses.replace(plain_prefix.template, placement="infix"),
        positions="text-after-prefix-within-window",
    )
    page = hub_card(infix, REPOSITORY, "prefix.safetensors")
    assert "the target sees them, the source does not" in page
    assert "`text-after-prefix-within-window`" in page


def test_the_python_on_the_page_is_python(plain_prefix: Prefix) -> None:
    block = hub_card(plain_prefix, REPOSITORY, "prefix.safetensors").split("```python\n")[1].split("```")[0]
    compile(block, "card", "exec")
    assert len([line for line in block.splitlines() if line]) == 5


def test_texts_of_others_stay_texts_on_the_page(plain_prefix: Prefix) -> None:
    evil = "x`|\n---\nbase_model: evil/one\n# Headline <script>"
    prefix = dataclasses.replace(
        plain_prefix,
        base=BaseIdentity(evil),
        licence=evil,
        labels={evil: evil},
        template=Template(separator=evil),
    )
    card = hub_card(prefix, REPOSITORY, "prefix.safetensors")
    assert front_matter(card)["license"] == "other"
    assert "base_model" not in front_matter(card)
    assert not [line for line in card.splitlines() if line.startswith(("# Head", "base_model: evil"))]
    assert card.count("\n---\n") == 1


def test_the_path_of_a_local_base_is_not_published_on_the_page(plain_prefix: Prefix) -> None:
    prefix = dataclasses.replace(plain_prefix, base=BaseIdentity("/home/alice/secret/llama", None, "ab" * 32))
    card = hub_card(prefix, REPOSITORY, "prefix.safetensors")
    assert "secret" not in card
    assert "base_model" not in front_matter(card)
