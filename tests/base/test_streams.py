"""Streams: the three of an encoder-decoder, each with a length of its own, each optional."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch

from foreword import BaseModel, Prefix, generate, train, train_many
from foreword.encoding import encode
from foreword.errors import UsageError
from support.architectures.decoder_only import DECODER_ONLY_WORKING
from support.architectures.encoder_decoder import ENCODER_DECODER_WORKING
from support.by_hand_attention import greedy, logits, token_losses
from support.stand_ins import VOCABULARY, random_examples, random_prefix

BY_TYPE = {each.model_type: each for each in DECODER_ONLY_WORKING + ENCODER_DECODER_WORKING}
QUICK: dict[str, Any] = {"steps": 2, "batch_size": 2}
LENGTHS = {"encoder": 5, "decoder": 7, "cross": 2}


@pytest.fixture(params=["bart", "t5", "t5gemma"])
def base(request: pytest.FixtureRequest) -> BaseModel:
    return BY_TYPE[request.param].base


def with_streams(base: BaseModel, streams: tuple[str, ...]) -> Prefix:
    tensors = {}
    for stream in streams:
        whole = random_prefix(base, LENGTHS[stream], seed=len(stream)).tensors
        tensors |= {name: tensor for name, tensor in whole.items() if name.startswith(stream)}
    return Prefix(tensors=tensors, base=base.identity, template=base.template)


SUBSETS = [s for n in (1, 2, 3) for s in itertools.combinations(("encoder", "decoder", "cross"), n)]


def test_rows_with_different_streams_and_lengths_share_a_batch(base: BaseModel) -> None:
    prefixes = [*(with_streams(base, streams) for streams in SUBSETS), None]
    examples = random_examples(len(prefixes))
    found = base.token_losses(examples, prefixes)
    rows, _ = encode(examples, base.tokenizer, base.template)
    for mine, row, prefix in zip(found, rows, prefixes, strict=True):
        tensors = None if prefix is None else prefix.tensors
        expected = token_losses(base.model, row.source_ids, row.target_ids, tensors)
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-4)
    texts = generate(base, ["a prompt"] * len(prefixes), prefixes, max_new_tokens=5)
    ids = base.template.source_ids(base.tokenizer, "a prompt")
    for text, prefix in zip(texts, prefixes, strict=True):
        tensors = None if prefix is None else prefix.tensors
        expected_ids = greedy(base.model, ids, tensors, 5, base.end_ids)
        assert text == base.tokenizer.decode(expected_ids, skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["direct", "scaled", "mlp", "mlp+start"])
def test_training_takes_the_streams_and_lengths_it_is_told(base: BaseModel, kind: str) -> None:
    examples = random_examples(4)

    def lengths(prefix: Prefix) -> dict[str, int]:
        return {stream: prefix.stream_length(stream) for stream in prefix.streams}

    options: dict[str, Any] = {**QUICK, "parameterization": kind}
    assert lengths(train(base, examples, length=LENGTHS, **options)) == LENGTHS
    assert lengths(train(base, examples, length=3, streams=("cross",), **options)) == {"cross": 3}
    assert lengths(train(base, examples, length={"encoder": 4}, **options)) == {"encoder": 4}
    assert lengths(train(base, examples, length=3, **options)) == dict.fromkeys(LENGTHS, 3)


def test_every_stream_alone_lowers_the_loss() -> None:
    base = BY_TYPE["bart"].base
    examples = [*random_examples(4)]
    before = float(torch.cat(base.token_losses(examples)).mean())
    for stream in LENGTHS:
        prefix = train(base, examples, length={stream: 4}, steps=20, batch_size=4)
        assert float(torch.cat(base.token_losses(examples, prefix)).mean()) < before - 0.05


def test_many_owners_train_streams_too() -> None:
    base = BY_TYPE["t5"].base
    by_owner = {name: random_examples(3, seed=seed) for seed, name in enumerate("ab")}
    together = train_many(base, by_owner, length=LENGTHS, isolated=True, **QUICK)
    for owner, examples in by_owner.items():
        alone = train(base, examples, length=LENGTHS, **QUICK)
        assert all(torch.equal(alone.tensors[n], together[owner].tensors[n]) for n in alone.tensors)


def test_training_goes_on_from_a_prefix_with_its_streams(base: BaseModel) -> None:
    start = with_streams(base, ("decoder", "cross"))
    options: dict[str, Any] = {**QUICK, "learning_rate": 1e-6}
    length = {"decoder": 7, "cross": 2}
    found = train(base, random_examples(2), start=start, length=length, **options)
    assert found.streams == start.streams
    torch.testing.assert_close(found.key("cross"), start.key("cross"), rtol=0, atol=1e-4)
    with pytest.raises(UsageError, match=r"start has length decoder 7, cross 2, the run has .*encoder 5"):
        train(base, random_examples(2), start=start, length=LENGTHS, **options)


def test_streams_that_are_not_there_are_refused(base: BaseModel) -> None:
    examples = random_examples(1)
    with pytest.raises(UsageError, match="no stream is called 'middle'"):
        train(base, examples, streams=("middle",))
    with pytest.raises(UsageError, match="no stream is left"):
        train(base, examples, streams=())
    with pytest.raises(UsageError, match="length of cross is 0"):
        train(base, examples, length={"cross": 0})
    with pytest.raises(UsageError, match="streams are encoder but length names cross"):
        train(base, examples, streams=("encoder",), length={"cross": 1})
    with pytest.raises(UsageError, match="this base has no cross stream; it has decoder"):
        train(BY_TYPE["llama"].base, examples, streams=("decoder", "cross"))


@pytest.mark.parametrize("model_type", ["bart", "marian", "t5"])
@torch.no_grad()
def test_beam_search_finds_the_likeliest_text(model_type: str) -> None:
    """With as many beams as there are texts, beam search is exhaustive: compare with all of them."""
    base = BY_TYPE[model_type].base
    prefix = with_streams(base, ("encoder", "decoder", "cross"))
    found = generate(base, ["ab"], [prefix], beams=VOCABULARY, max_new_tokens=2, length_penalty=0.0)
    ids = base.template.source_ids(base.tokenizer, "ab")
    first = logits(base.model, ids, [], prefix.tensors)[-1].log_softmax(-1)
    best_score, best = first[0], []  # the end at once
    for token in range(1, VOCABULARY):
        second = logits(base.model, ids, [token], prefix.tensors)[-1].log_softmax(-1)
        score, last = (first[token] + second).max(-1)
        if score > best_score:
            best_score, best = score, [token, int(last)]
    assert found == [base.tokenizer.decode(best, skip_special_tokens=True)]


@pytest.mark.parametrize("depths", [(4, 2), (1, 3)])
@pytest.mark.parametrize("model_type", ["bart", "t5"])
def test_encoder_and_decoder_may_differ_in_depth_either_way(model_type: str, depths: tuple[int, int]) -> None:
    encoder, decoder = depths
    settings = {"encoder_layers": encoder, "decoder_layers": decoder}
    settings |= {"num_layers": encoder, "num_decoder_layers": decoder}
    architecture = dataclasses.replace(BY_TYPE[model_type], settings=settings)
    base = BaseModel(architecture.model(), BY_TYPE[model_type].base.tokenizer, name="uneven")
    prefix = with_streams(base, ("encoder", "decoder", "cross"))
    assert prefix.key("encoder").shape[0] == encoder
    assert prefix.key("cross").shape[0] == prefix.key("decoder").shape[0] == decoder
    ids = base.template.source_ids(base.tokenizer, "a prompt")
    expected = base.tokenizer.decode(greedy(base.model, ids, prefix.tensors, 8, base.end_ids))
    assert generate(base, ["a prompt", "ab"], [prefix, None], max_new_tokens=8)[0] == expected


@pytest.mark.parametrize("model_type", ["bart", "llama"])
def test_settings_of_the_checkpoint_do_not_decode(model_type: str) -> None:
    """Forced and suppressed first tokens, another cache: training saw none of it."""
    architecture = BY_TYPE[model_type]
    base = BaseModel(architecture.model(), architecture.base.tokenizer, name="with-settings")
    prefixes = [random_prefix(base, 3), None]
    plain = generate(base, ["ab", "abc"], prefixes, max_new_tokens=6)
    changes = {
        "forced_bos_token_id": 7,
        "forced_eos_token_id": 9,
        "begin_suppress_tokens": list(range(1, VOCABULARY - 1)),
        "exponential_decay_length_penalty": (0, 5.0),
        "cache_implementation": "static",
        "num_beams": 3,
    }
    for name, value in changes.items():
        setattr(base.model.generation_config, name, value)
    assert generate(base, ["ab", "abc"], prefixes, max_new_tokens=6) == plain
    base.model.generation_config.suppress_tokens = [base.tokenizer(plain[0][0])["input_ids"][0]]
    assert plain[0][0] not in generate(base, ["ab"], prefixes[:1], max_new_tokens=6)[0]
