"""Sizes that differ by layer, and layers that share keys and values: Gemma 3n, Gemma 4 and MiMo."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, Gemma3nTextConfig, Gemma4TextConfig

from foreword import BaseModel, Example, Prefix, PrefixStore, generate, train
from foreword.errors import GeometryMismatch, UnsupportedArchitecture
from foreword.prefix_sizes import Geometry, StreamGeometry, tensor_names
from foreword.training.initialization import Initialization, initial_key_values
from support import by_hand
from support.architectures.zoo import DECODER_ONLY
from support.stand_ins import VOCABULARY, byte_tokenizer, random_examples, random_prefix

SMALL: dict[str, Any] = {
    **DECODER_ONLY,
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": 64,  # more than the texts here have: transformers' cache keeps all of a prefix
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
}
TASK = random_examples(4, longest=8)
QUICK: dict[str, Any] = {"length": 3, "steps": 2, "batch_size": 2, "seed": 1, "init": "words:hello"}


def base_of(config: Any) -> BaseModel:
    torch.manual_seed(0)
    return BaseModel(
        AutoModelForCausalLM.from_config(config).eval(), byte_tokenizer(), name=config.model_type
    )


def gemma_3n(**changes: Any) -> BaseModel:
    sizes = {"laurel_rank": 8, "activation_sparsity_pattern": [0.0] * 4}
    return base_of(Gemma3nTextConfig(**{**SMALL, **sizes, **changes}))


@pytest.fixture(scope="module")
def gemma_4() -> BaseModel:
    return base_of(Gemma4TextConfig(**SMALL, global_head_dim=16))


def test_the_geometry_counts_layers_with_keys_and_values_of_their_own(gemma_4: BaseModel) -> None:
    assert gemma_4.geometry == Geometry({"decoder": StreamGeometry(2, 2, (8, 16), (8, 16))})
    assert gemma_3n().geometry == Geometry({"decoder": StreamGeometry(2, 2, 8, 8)})
    shown = "decoder: 2 layers (1 of 2 key/value heads x 8, 1 of 2 key/value heads x 16)"
    assert shown in repr(gemma_4)
    assert gemma_4.geometry.parameters(5) == random_prefix(gemma_4, 5).numel() == 5 * 2 * 2 * (8 + 16)


@pytest.mark.parametrize("model", ["gemma_3n", "gemma_4"])
@torch.no_grad()
def test_losses_and_tokens_are_those_of_a_prefix_in_the_cache_of_transformers(
    model: str, gemma_4: BaseModel
) -> None:
    """A layer that shares keys and values gets the prefix from the cache of the layer it shares them with."""
    base = gemma_4 if model == "gemma_4" else gemma_3n()
    prefix, example = random_prefix(base, 5), Example("some source ", "its target")
    source, target = (base.tokenizer(text)["input_ids"] for text in (example.source, example.target))
    raw = dataclasses.replace(prefix, template=dataclasses.replace(prefix.template, style="raw", end=None))
    expected = by_hand.token_losses(base.model, source, target, by_hand.layers_of(prefix))
    torch.testing.assert_close(base.token_losses([example], raw)[0], expected, rtol=1e-5, atol=1e-5)
    (text,) = generate(base, [example.source], [raw], max_new_tokens=6)
    tokens = by_hand.greedy(base.model, source, by_hand.layers_of(prefix), 6, base.end_ids)
    assert text == base.tokenizer.decode(tokens, skip_special_tokens=True)


def test_layers_that_share_get_the_prefix_from_a_cache_that_holds_it() -> None:
    base = gemma_3n(layer_types=["full_attention"] * 4)
    # Newer releases than 5.19 have places in the cache for layers that share, too; ours is not taken there.
    places = len(DynamicCache(config=base.model.config).layers)
    assert base.cache_takes_prefixes == (places == base.geometry.streams["decoder"].layers)
    prefixes = [random_prefix(base, 5), None, random_prefix(base, 2, seed=1)]
    prompts = ["some prompt", "another", "a"]
    for prompt, prefix, text in zip(
        prompts, prefixes, generate(base, prompts, prefixes, max_new_tokens=6), strict=True
    ):
        ids = base.template.source_ids(base.tokenizer, prompt)
        layers = None if prefix is None else by_hand.layers_of(prefix)
        expected = by_hand.greedy(base.model, ids, layers, 6, base.end_ids)
        assert text == base.tokenizer.decode(expected, skip_special_tokens=True)


def test_a_prefix_with_one_for_each_layer_that_shares_is_refused_by_name() -> None:
    """As an earlier release made them for Gemma 3n."""
    base = gemma_3n()
    of_all = {f"decoder.{part}": torch.ones(4, 2, 3, 8) for part in ("key", "value")}
    prefix = Prefix(of_all, base.identity, base.template)
    with pytest.raises(GeometryMismatch, match=r"4 layers.*has 2 layers.*those that share.*Train it again"):
        base.token_losses(TASK, prefix)


@pytest.mark.parametrize("kind", ["direct", "scaled", "mlp", "mlp+start"])
def test_every_parameterization_learns_and_starts_where_it_should(kind: str, gemma_4: BaseModel) -> None:
    losses: list[float] = []

    def note(progress: Any) -> None:
        if progress.loss is not None:
            losses.append(progress.loss)

    options = {**QUICK, "steps": 30, "batch_size": 4, "learning_rate": 0.03}
    options |= (
        {"parameterization": kind} if kind in ("direct", "scaled") else {"parameterization": kind, "width": 8}
    )
    if kind == "mlp":  # it has no starting point
        del options["init"]
    prefix = train(gemma_4, TASK, **options, on_progress=note)
    assert prefix.geometry == gemma_4.geometry
    assert losses[-1] < 0.9 * losses[0]
    if kind != "mlp":
        start = initial_key_values(gemma_4, Initialization("words", "hello"), 3, [], 0)
        begun = Prefix(tensor_names(start), gemma_4.identity, gemma_4.template)
        mean = torch.cat(gemma_4.token_losses(TASK, begun)).mean()
        assert losses[0] == pytest.approx(float(mean), rel=1e-4)


def test_layers_and_a_first_token_that_are_not_trained_stay_bit_for_bit(gemma_4: BaseModel) -> None:
    start = initial_key_values(gemma_4, Initialization("words", "hello"), 3, [], 0)
    prefix = train(gemma_4, TASK, **QUICK, layers="last:1", freeze_first=True)
    for found, begun in zip(prefix.layers()[0], start["decoder.0"], strict=True):
        assert torch.equal(found, begun)
    for found, begun in zip(prefix.layers()[1], start["decoder.1"], strict=True):
        assert torch.equal(found[:, 0], begun[:, 0])
        assert not torch.equal(found[:, 1:], begun[:, 1:])


def test_training_goes_on_from_a_prefix_and_embeddings_are_refused_by_name(gemma_4: BaseModel) -> None:
    prefix = train(gemma_4, TASK, **{**QUICK, "steps": 1})
    further = train(gemma_4, TASK, **{**QUICK, "init": None}, start=prefix)
    assert not torch.equal(further.layers()[1][0], prefix.layers()[1][0])
    with pytest.raises(UnsupportedArchitecture, match="embeddings of each token id"):
        train(gemma_4, TASK, **QUICK, parameterization="embedding")


def test_a_store_keeps_it_and_lists_its_sizes(gemma_4: BaseModel, tmp_path: Path) -> None:
    prefix = random_prefix(gemma_4, 3)
    store = PrefixStore(tmp_path / "store")
    store.put("alice/notes", prefix)
    assert store.get("alice/notes") == prefix
    (record,) = store.list()
    assert record.facts["geometry"] == str(prefix.geometry)
