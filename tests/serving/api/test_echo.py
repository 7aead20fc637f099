"""`echo` of /v1/completions: the prompt in front of the text, with its log-probabilities, as harnesses ask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
import torch

from support.by_hand import layers_of, logits
from support.gateways import Gateway, running, tiny_chat_base
from support.stand_ins import random_prefix


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running(tmp_path_factory.mktemp("gateway"), tiny_chat_base()) as found:
        found.store.put("alice/one", random_prefix(found.base, 5))
        yield found


@pytest.fixture
def client(gateway: Gateway) -> openai.OpenAI:
    return gateway.client("alice")


@torch.no_grad()
def by_hand(gateway: Gateway, model: str, ids: list[int]) -> list[float]:
    prefix = None if model == "tiny-llama" else layers_of(gateway.store.get(model))
    logprobs_TV = logits(gateway.base.model, ids, prefix).log_softmax(-1)
    return [float(logprobs_TV[place, token]) for place, token in enumerate(ids[1:])]


@pytest.mark.parametrize("model", ["tiny-llama", "alice/one"])
def test_a_prompt_alone_has_the_log_probability_of_each_token(
    gateway: Gateway, client: openai.OpenAI, model: str
) -> None:
    """As evaluation harnesses ask: tokens of context and continuation in one prompt, and nothing new."""
    ids = gateway.base.tokenizer("the cafe", add_special_tokens=False)["input_ids"]
    answer = client.completions.create(model=model, prompt=ids, max_tokens=0, echo=True, logprobs=1)
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason) == ("the cafe", "length")
    told = choice.logprobs
    assert told is not None
    assert told.token_logprobs is not None
    assert told.token_logprobs[0] is None
    assert told.token_logprobs[1:] == pytest.approx(by_hand(gateway, model, ids), abs=1e-4)
    assert told.top_logprobs is not None
    assert told.top_logprobs[0] is None
    assert all(top and 1 <= len(top) <= 2 for top in told.top_logprobs[1:])
    assert told.text_offset is not None
    assert told.text_offset[:8] == list(range(8))
    assert len(told.tokens or ()) == len(ids)
    usage = answer.usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(ids), 0)


def test_the_prompt_stands_in_front_of_each_text_whole_and_streamed(client: openai.OpenAI) -> None:
    asked: Any = {"model": "alice/one", "max_tokens": 4, "temperature": 0, "raw": True}
    prompts = ["one word", "and two"]
    without = client.post("/completions", body={**asked, "prompt": prompts}, cast_to=object)
    body = {**asked, "prompt": prompts, "echo": True, "logprobs": 0, "stop": ["w"]}
    with_echo: Any = client.post("/completions", body={**body, "stop": []}, cast_to=object)
    texts = [choice["text"] for choice in without["choices"]]  # type: ignore[index]
    assert [choice["text"] for choice in with_echo["choices"]] == [
        p + t for p, t in zip(prompts, texts, strict=True)
    ]
    for choice, prompt in zip(with_echo["choices"], prompts, strict=True):
        assert len(choice["logprobs"]["token_logprobs"]) >= len(prompt)
        assert choice["logprobs"]["token_logprobs"].count(None) == 1
    stopped: Any = client.post("/completions", body=body, cast_to=object)  # no stop inside the prompt
    assert all(c["text"].startswith(p) for c, p in zip(stopped["choices"], prompts, strict=True))
    stream = client.completions.create(
        model="alice/one", prompt=prompts[0], max_tokens=4, temperature=0, echo=True, stream=True,
        extra_body={"raw": True},
    )  # fmt: skip
    assert "".join(chunk.choices[0].text for chunk in stream) == prompts[0] + texts[0]


def test_the_prompt_is_said_as_the_model_reads_it(gateway: Gateway, client: openai.OpenAI) -> None:
    template = gateway.store.get("alice/one").template
    answer = client.completions.create(model="alice/one", prompt="hello", max_tokens=0, echo=True)
    assert answer.choices[0].text == template.source_text(gateway.base.tokenizer, "hello")
    assert answer.choices[0].logprobs is None


def test_no_new_tokens_go_with_echo_alone(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="set 'echo' with it"):
        client.completions.create(model="tiny-llama", prompt="hello", max_tokens=0)
    with pytest.raises(openai.BadRequestError, match="-1 instead"):
        client.completions.create(model="tiny-llama", prompt="hello", max_tokens=-1, echo=True)


def test_a_prompt_alone_may_fill_the_window(gateway: Gateway, client: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny-llama", "max_tokens": 0, "echo": True}
    answer = client.completions.create(prompt=[3] * 256, **asked)
    assert answer.usage is not None
    assert answer.usage.total_tokens == 256
    with pytest.raises(openai.BadRequestError, match="257 tokens"):
        client.completions.create(prompt=[3] * 257, **asked)
