"""Chat and completions through the official client, against what the model itself says."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
import torch

from foreword import Prefix, generate
from support.by_hand import layers_of, logits
from support.gateways import Gateway, running, tiny_chat_base
from support.stand_ins import random_prefix

HELLO: Any = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running(tmp_path_factory.mktemp("gateway"), tiny_chat_base()) as found:
        for number, name in enumerate(("alice/one", "alice/two", "bob/one")):
            found.store.put(name, random_prefix(found.base, 5, seed=number))
        chat = found.served_template("chat")
        found.store.put("alice/chat", random_prefix(found.base, 4, seed=9, template=chat))
        yield found


@pytest.fixture
def client(gateway: Gateway) -> openai.OpenAI:
    return gateway.client("alice")


def offline(gateway: Gateway, prompt: Any, name: str | None, new: int = 12, **options: Any) -> str:
    prefix = None if name is None else gateway.store.get(name)
    return generate(gateway.base, [prompt], prefixes=prefix, max_new_tokens=new, **options)[0]


def test_chat_behind_a_prefix_is_what_generate_says(gateway: Gateway, client: openai.OpenAI) -> None:
    for name in ("alice/one", "alice/two", "alice/two@1"):
        answer = client.chat.completions.create(model=name, messages=HELLO, temperature=0, max_tokens=12)
        assert answer.choices[0].message.content == offline(gateway, "hello", name)
        assert answer.model == name
    assert offline(gateway, "hello", "alice/one") != offline(gateway, "hello", "alice/two")


def test_usage_counts_the_text_and_no_virtual_token(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="alice/one", messages=HELLO, temperature=0, max_tokens=7)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len("hello\n"), 7)
    assert answer.usage.total_tokens == len("hello\n") + 7


def test_the_base_answers_in_the_form_of_its_chat_template(gateway: Gateway, client: openai.OpenAI) -> None:
    messages: Any = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]},
    ]
    answer = client.chat.completions.create(
        model="tiny-llama", messages=messages, temperature=0, max_completion_tokens=9
    )
    expected = offline(gateway, "s: be brief\nu: hello\na: ", None, 9, raw=True)
    assert answer.choices[0].message.content == expected


def test_a_prefix_of_conversations_takes_conversations(gateway: Gateway, client: openai.OpenAI) -> None:
    messages: Any = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    answer = client.chat.completions.create(
        model="alice/chat", messages=messages, temperature=0, max_tokens=8
    )
    assert answer.choices[0].message.content == offline(gateway, tuple(messages), "alice/chat", 8)


def test_a_prefix_of_single_texts_refuses_a_conversation_instead_of_guessing(client: openai.OpenAI) -> None:
    messages: Any = [*HELLO, {"role": "assistant", "content": "x"}, *HELLO]
    with pytest.raises(openai.BadRequestError, match="trained without the chat template") as caught:
        client.chat.completions.create(model="alice/one", messages=messages)
    assert caught.value.param == "messages"


def test_a_stream_is_the_whole_answer_in_pieces(gateway: Gateway, client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="alice/one",
        messages=HELLO,
        temperature=0,
        max_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == offline(gateway, "hello", "alice/one")
    assert len([text for text in texts if text]) > 5
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_completions_stream_the_same_text(gateway: Gateway, client: openai.OpenAI) -> None:
    whole = client.completions.create(model="alice/one", prompt="hello", temperature=0, max_tokens=12)
    stream = client.completions.create(
        model="alice/one", prompt="hello", temperature=0, max_tokens=12, stream=True
    )
    assert whole.choices[0].text == offline(gateway, "hello", "alice/one")
    assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text


def test_stop_texts_cut_the_answer_and_never_show(gateway: Gateway, client: openai.OpenAI) -> None:
    text = offline(gateway, "hello", "alice/one", 30)
    stop = text[4:7]
    expected = offline(gateway, "hello", "alice/one", 30, stop=stop)
    asked: Any = {"model": "alice/one", "messages": HELLO, "temperature": 0, "max_tokens": 30, "stop": [stop]}
    whole = client.chat.completions.create(**asked)
    pieces = [c.choices[0] for c in client.chat.completions.create(**asked, stream=True)]
    assert whole.choices[0].message.content == expected == text[: text.index(stop)]
    assert whole.choices[0].finish_reason == pieces[-1].finish_reason == "stop"
    assert "".join(piece.delta.content or "" for piece in pieces) == expected


def test_an_answer_does_not_end_before_its_shortest_length(gateway: Gateway, client: openai.OpenAI) -> None:
    third = offline(gateway, "hello", "alice/one")[2]
    prefix = gateway.store.get("alice/one")
    ending = dataclasses.replace(prefix, template=dataclasses.replace(prefix.template, end=third))
    gateway.store.put("alice/ending", ending)
    asked: Any = {"model": "alice/ending", "temperature": 0, "max_tokens": 12}
    short = client.chat.completions.create(**asked, messages=HELLO)
    assert len(short.choices[0].message.content or "") <= 2
    longer: Any = {**asked, "extra_body": {"min_tokens": 6}}
    expected = offline(gateway, "hello", "alice/ending", min_new_tokens=6)
    assert len(expected) >= 6
    assert client.chat.completions.create(**longer, messages=HELLO).choices[0].message.content == expected
    assert client.completions.create(**longer, prompt="hello").choices[0].text == expected
    client.models.delete("alice/ending")


def test_the_same_seed_gives_the_same_texts_and_each_of_n_its_own(client: openai.OpenAI) -> None:
    asked: Any = {"model": "alice/one", "messages": HELLO, "n": 3, "max_tokens": 12, "temperature": 1.5}
    first = client.chat.completions.create(**asked, seed=5)
    again = client.chat.completions.create(**asked, seed=5)
    other = client.chat.completions.create(**asked, seed=6)
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert [choice.message.content for choice in again.choices] == texts
    assert [choice.message.content for choice in other.choices] != texts
    assert first.usage is not None
    assert first.usage.prompt_tokens == len("hello\n")
    alone = client.chat.completions.create(**{**asked, "n": 1}, seed=5)
    assert alone.choices[0].message.content == texts[0]


def test_top_p_of_zero_takes_the_likeliest_token(gateway: Gateway, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="alice/one", messages=HELLO, temperature=2, top_p=0, max_tokens=12
    )
    assert answer.choices[0].message.content == offline(gateway, "hello", "alice/one")


def first_logprobs(gateway: Gateway, prefix: Prefix, prompt: str) -> torch.Tensor:
    ids = gateway.base.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    return logits(gateway.base.model, ids, layers_of(prefix))[-1].log_softmax(-1)


def test_logprobs_are_the_models_own(gateway: Gateway, client: openai.OpenAI) -> None:
    prefix = gateway.store.get("alice/one")
    expected_V = first_logprobs(gateway, prefix, "hello\n")
    best = expected_V.topk(3)
    chat = client.chat.completions.create(
        model="alice/one", messages=HELLO, temperature=0, max_tokens=3, logprobs=True, top_logprobs=3
    )
    assert chat.choices[0].logprobs is not None
    told = chat.choices[0].logprobs.content
    assert told is not None
    assert len(told) == 3
    assert "".join(token.token for token in told) == chat.choices[0].message.content
    assert [t.logprob for t in told[0].top_logprobs] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert bytes(told[0].bytes or []).decode() == told[0].token
    completion = client.completions.create(
        model="alice/one", prompt="hello", temperature=0, max_tokens=3, logprobs=2
    )
    plain = completion.choices[0].logprobs
    assert plain is not None
    assert plain.token_logprobs is not None
    assert plain.token_logprobs[0] == pytest.approx(float(best.values[0]), abs=1e-5)
    assert plain.text_offset == [0, 1, 2]
    streamed = client.completions.create(
        model="alice/one", prompt="hello", temperature=0, max_tokens=3, logprobs=2, stream=True
    )
    chosen = [c.choices[0].logprobs for c in streamed]
    assert [offset for part in chosen if part for offset in part.text_offset or []] == [0, 1, 2]


def test_several_prompts_as_text_and_as_tokens(gateway: Gateway, client: openai.OpenAI) -> None:
    texts = client.completions.create(model="alice/one", prompt=["hello", "bye"], temperature=0, max_tokens=6)
    assert [c.text for c in texts.choices] == [offline(gateway, p, "alice/one", 6) for p in ("hello", "bye")]
    ids = [gateway.base.tokenizer(f"{p}\n")["input_ids"] for p in ("hello", "bye")]
    tokens = client.completions.create(model="alice/one", prompt=ids, temperature=0, max_tokens=6)
    assert [c.text for c in tokens.choices] == [c.text for c in texts.choices]
    one = client.completions.create(model="alice/one", prompt=ids[1], temperature=0, max_tokens=6)
    assert one.choices[0].text == texts.choices[1].text


def test_raw_text_leaves_the_template_out(gateway: Gateway, client: openai.OpenAI) -> None:
    raw = {"raw": True}
    completion = client.completions.create(
        model="alice/one", prompt="hello", temperature=0, max_tokens=6, extra_body=raw
    )
    assert completion.choices[0].text == offline(gateway, "hello", "alice/one", 6, raw=True)
    assert completion.usage is not None
    assert completion.usage.prompt_tokens == len("hello")
    chat = client.chat.completions.create(
        model="tiny-llama", messages=HELLO, temperature=0, max_tokens=6, extra_body=raw
    )
    assert chat.choices[0].message.content == offline(gateway, "hello", None, 6, raw=True)


def test_an_answer_ends_where_the_window_ends(gateway: Gateway, client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="alice/one", prompt="x" * 240, temperature=0, max_tokens=1000, stop=None
    )
    assert answer.usage is not None
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens <= 256 - 5


def test_many_clients_at_once_each_get_the_answer_they_would_get_alone(gateway: Gateway) -> None:
    alice, bob = gateway.client("alice"), gateway.client("bob")
    asked = [(name, f"prompt {n}") for n in range(8) for name in ("alice/one", "alice/two", "bob/one")]

    def ask(place: int) -> str:
        name, prompt = asked[place]
        client = bob if name.startswith("bob") else alice
        options: Any = {"model": name, "prompt": prompt, "max_tokens": 10, "temperature": 0}
        if place % 2:
            return client.completions.create(**options).choices[0].text
        return "".join(chunk.choices[0].text for chunk in client.completions.create(**options, stream=True))

    with ThreadPoolExecutor(24) as threads:
        texts = list(threads.map(ask, range(len(asked))))
    assert texts == [offline(gateway, prompt, name, 10) for name, prompt in asked]


def test_models_are_the_base_and_what_the_caller_may_read(gateway: Gateway) -> None:
    names = [model.id for model in gateway.client("alice").models.list()]
    assert names == ["tiny-llama", "alice/chat", "alice/one", "alice/two"]
    assert [model.id for model in gateway.client("bob").models.list()] == ["tiny-llama", "bob/one"]
    found = gateway.client("alice").models.retrieve("alice/one@1")
    assert (found.id, found.owned_by) == ("alice/one@1", "alice")


def test_the_list_of_models_has_pages(gateway: Gateway) -> None:
    client = gateway.client("alice")
    names, after = [], None
    for _ in range(4):
        query = {"limit": 1, **({} if after is None else {"after": after})}
        page: Any = client.models.list(extra_query=query)
        names += [model.id for model in page.data]
        after = page.next
    assert names == ["tiny-llama", "alice/chat", "alice/one", "alice/two"]
    assert page.has_more is False
