"""A tokenizer with more tokens than the model has embeddings: refused at load, or where such a token is met."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from foreword import BaseModel, Example, Prefix, generate, train
from foreword.errors import ForewordError, UsageError
from foreword.serving.engine.protocol import Row, Sampling, check_row
from foreword.serving.served_model import served_of
from support.saved_bases import save_tiny
from support.stand_ins import VOCABULARY, byte_tokenizer, random_prefix, tiny_llama

IMAGE = "<image>"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([IMAGE], special_tokens=True)
    return tokenizer


@pytest.fixture(scope="module")
def base(tokenizer: PreTrainedTokenizerFast) -> BaseModel:
    """As Gemma 3's text models: the tokenizer has a token for images, and the model no embedding for it."""
    assert len(tokenizer) == VOCABULARY + 1
    return BaseModel(tiny_llama(), tokenizer, name="text")


@pytest.fixture(scope="module")
def prefix(base: BaseModel) -> Prefix:
    return random_prefix(base, 2)


def test_ordinary_tokens_without_embeddings_are_refused_at_load() -> None:
    said = "has 97 tokens, the model embeddings for 90: 7 ordinary tokens have none"
    with pytest.raises(UsageError, match=said):
        BaseModel(tiny_llama(vocab_size=90), byte_tokenizer(), name="short")
    BaseModel(tiny_llama(vocab_size=104), byte_tokenizer(), name="padded")


SAID = r"has the token 97 \(<image>\), but text has embeddings for 97 tokens, 0 to 96"


@pytest.mark.parametrize("example", [Example(f"see {IMAGE}", "a"), Example("see", f"a{IMAGE}")])
def test_an_added_token_without_an_embedding_is_refused_in_an_example(
    base: BaseModel, prefix: Prefix, example: Example
) -> None:
    good = Example("see", "a")
    read = dataclasses.replace(example, place="f.jsonl, line 2")
    with pytest.raises(UsageError, match=rf"training example 1 \(f.jsonl, line 2\) {SAID}"):
        train(base, [good, read], length=2, steps=1)
    with pytest.raises(UsageError, match=f"dev example 0 {SAID}"):
        train(base, [good], dev=[example], length=2, steps=1)
    with pytest.raises(UsageError, match=f"example 1 {SAID}"):
        base.token_losses([good, example], prefix)
    assert base.token_losses([good], prefix)[0].isfinite().all()


def test_an_added_token_without_an_embedding_is_refused_elsewhere(base: BaseModel, prefix: Prefix) -> None:
    with pytest.raises(UsageError, match=f"prompt 1 {SAID}"):
        generate(base, ["a", f"b{IMAGE}"], prefix, max_new_tokens=1)
    with pytest.raises(UsageError, match=SAID):
        train(base, [Example("a", "b")], length=2, steps=1, init=f"words: {IMAGE}")
    row = Row((5, VOCABULARY), prefix, "owner", Sampling(max_tokens=2), frozenset())
    with pytest.raises(UsageError, match=f"the prompt {SAID}"):
        check_row(base, row)
    with pytest.raises(UsageError, match=SAID):
        served_of(base).check_ids([VOCABULARY], "the prompt")


def test_the_path_of_a_folder_is_in_no_message_to_other_people(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """What HTTP answers and jobs say of a base is said here, by the base, its prefixes and the engines."""
    folder = save_tiny(tmp_path / "tiny")
    base = BaseModel.load(folder)
    assert base.name == str(folder)
    row = Row((5,) * 128, None, "owner", Sampling(max_tokens=2), frozenset())
    other = BaseModel(tiny_llama(seed=1), byte_tokenizer(), name=str(tmp_path / "other"))
    larger = BaseModel(tiny_llama(num_hidden_layers=4), byte_tokenizer(), name=str(tmp_path / "other"))
    for refused in (
        lambda: served_of(base).check_ids([VOCABULARY], "the prompt"),
        lambda: served_of(base).text_limit(127),
        lambda: check_row(base, dataclasses.replace(row, prompt_ids=(VOCABULARY,))),
        lambda: check_row(base, row),
        lambda: served_of(base).check(random_prefix(other, 2)),
        lambda: served_of(base).check(random_prefix(larger, 2)),
    ):
        with pytest.raises(ForewordError, match="tiny") as found:
            refused()
        assert str(tmp_path) not in str(found.value)


def test_padding_with_such_a_token_is_padding_all_the_same(base: BaseModel) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([IMAGE], special_tokens=True)
    tokenizer.pad_token = IMAGE
    padded = BaseModel(base.model, tokenizer, name="text")
    examples = [Example("abc", "d"), Example("a", "bcdefg")]
    for layout in ("right", "left"):
        found = padded.token_losses(examples, layout=layout)
        assert [row.tolist() for row in found] == [
            row.tolist() for row in base.token_losses(examples, layout=layout)
        ]
    prompts = ["a", "long prompt"]
    assert generate(padded, prompts, max_new_tokens=4) == generate(base, prompts, max_new_tokens=4)


def test_a_banned_text_may_be_an_added_token_without_an_embedding(base: BaseModel) -> None:
    """It can't be chosen, so nothing is to be banned; other texts beside it still are."""
    (whole,) = generate(base, ["see"], max_new_tokens=4)
    options = {"temperature": 0.0, "max_new_tokens": 4}
    assert generate(base, ["see"], banned=[IMAGE, "<im"], **options) == [whole]
    expected = generate(base, ["see"], banned=[whole[0]], **options)
    assert generate(base, ["see"], banned=[IMAGE, whole[0]], **options) == expected != [whole]
