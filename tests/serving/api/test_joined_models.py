"""A model's name that joins several prefixes: who may use it, which may be joined, and what is kept of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from foreword import generate
from foreword.errors import BadName
from foreword.serving.requests import MOST_JOINED
from foreword.store.names import parse
from support.gateways import Gateway, running, tiny_chat_base
from support.refusals import error
from support.stand_ins import random_prefix

TOGETHER = {"together": "handbooks of 2026"}
HELLO: Any = [{"role": "user", "content": "hello"}]
RECIPES: dict[str, dict[str, Any]] = {
    "alice/a": TOGETHER,
    "alice/b": TOGETHER,
    "bob/c": TOGETHER,
    "alice/other": {"together": "of another run"},
    "alice/alone": {},
    "alice/empty": {"together": ""},
    "alice/list": {"together": ["a"]},
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running(tmp_path_factory.mktemp("gateway"), tiny_chat_base()) as found:
        for seed, (name, recipe) in enumerate(RECIPES.items()):
            found.store.put(name, random_prefix(found.base, 4, seed=seed, recipe=recipe))
        found.store.put("alice/long", random_prefix(found.base, 250, seed=50, recipe=TOGETHER))
        yield found


def offline(gateway: Gateway, *names: str) -> str:
    parts = [gateway.store.get(name) for name in names]
    return generate(gateway.base, ["hello"], prefixes=[parts], max_new_tokens=9)[0]


def answer(gateway: Gateway, model: str, owner: str = "alice") -> Any:
    return gateway.client(owner).chat.completions.create(
        model=model, messages=HELLO, temperature=0, max_tokens=9
    )


def refusal(gateway: Gateway, model: str, status: int, owner: str = "alice") -> dict[str, Any]:
    headers = {"authorization": f"Bearer {gateway.key(owner)}"}
    body = {"model": model, "messages": HELLO}
    found = error(httpx.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers), status)
    assert found["param"] == "model"
    shown = error(httpx.get(f"{gateway.url}/v1/models/{model}", headers=headers), status)
    assert shown == found
    return found


def test_prefixes_trained_together_answer_together(gateway: Gateway) -> None:
    joined = answer(gateway, "alice/a+alice/b")
    assert joined.choices[0].message.content == offline(gateway, "alice/a", "alice/b")
    assert joined.model == "alice/a+alice/b"
    assert joined.usage.prompt_tokens == len("hello\n")
    assert offline(gateway, "alice/a", "alice/b") != offline(gateway, "alice/a")
    text = gateway.client("alice").completions.create(
        model="alice/b@1+alice/a@latest", prompt="hello", temperature=0, max_tokens=9
    )
    assert text.choices[0].text == offline(gateway, "alice/b", "alice/a")
    model = gateway.client("alice").models.retrieve("alice/a+alice/b")
    assert (model.id, model.owned_by) == ("alice/a+alice/b", "alice")


def test_what_they_make_is_kept_once_and_gone_with_each_of_their_owners(gateway: Gateway) -> None:
    view, model = gateway.store, "alice/a+carol/d"
    view.put("carol/d", random_prefix(gateway.base, 4, seed=70, recipe=TOGETHER))
    view.share("carol/d", "alice")
    before = view.cache.memory.size
    expected = answer(gateway, model).choices[0].message.content
    added = view.cache.memory.size - before
    joined = 7 * 4 * 2 * 3 * 2 * 8  # P, float32, keys and values, layers, heads, D
    assert added >= joined
    assert answer(gateway, model).choices[0].message.content == expected
    assert view.cache.memory.size - before == added
    view.forget("carol")
    assert view.cache.memory.size - before <= added - joined
    assert refusal(gateway, model, 404)["code"] == "model_not_found"


def test_each_is_looked_up_as_a_model_of_its_own(gateway: Gateway) -> None:
    for model in ("alice/a+bob/c", "bob/c+alice/a", "alice/a+alice/nobody", "alice/a+", "+alice/a"):
        assert refusal(gateway, model, 404)["code"] == "model_not_found"
    assert refusal(gateway, "alice/a+alice/b", 404, owner="bob")["code"] == "model_not_found"
    gateway.store.share("bob/c", "alice")
    assert answer(gateway, "alice/a+bob/c").choices[0].message.content == offline(gateway, "alice/a", "bob/c")
    gateway.store.unshare("bob/c", "alice")
    assert refusal(gateway, "alice/a+bob/c", 404)["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ("alice/a+alice/other", "alice/other"),
        ("alice/a+alice/alone", "alice/alone"),
        ("alice/alone+alice/a", "alice/alone"),
        ("alice/empty+alice/a", "alice/empty"),
        ("alice/list+alice/a", "alice/list"),
    ],
)
def test_prefixes_trained_apart_are_refused_by_name(gateway: Gateway, model: str, named: str) -> None:
    found = refusal(gateway, model, 400)
    assert found["code"] == "not_trained_together"
    assert f"'{named}' was not trained together" in found["message"]


@pytest.mark.parametrize(
    ("model", "message", "code"),
    [
        ("alice/a+tiny-llama", "'tiny-llama' is the base model", "invalid_value"),
        (
            "+".join(["alice/a"] * (MOST_JOINED + 1)),
            "joins 11 prefixes; expected at most 10",
            "invalid_value",
        ),
        ("alice/a+alice/a@1", "is there twice", "invalid_value"),
        ("alice/long+alice/a+alice/b", "250 + 4 + 4 virtual tokens are 256", "context_length_exceeded"),
    ],
)
def test_what_can_not_be_joined_is_refused(gateway: Gateway, model: str, message: str, code: str) -> None:
    found = refusal(gateway, model, 400)
    assert found["code"] == code
    assert message in found["message"]


def test_a_prompt_fits_behind_all_of_them_or_is_refused(gateway: Gateway) -> None:
    with pytest.raises(openai.BadRequestError, match="fit behind this model's 253 virtual tokens"):
        answer(gateway, "alice/a+alice/long")


def test_training_starts_from_one(gateway: Gateway) -> None:
    headers = {"authorization": f"Bearer {gateway.key('alice')}"}
    body = {"model": "alice/a+alice/b", "training_file": "file-0"}
    found = error(httpx.post(f"{gateway.url}/v1/fine_tuning/jobs", json=body, headers=headers), 400)
    assert (found["param"], "joins several prefixes" in found["message"]) == ("model", True)


@pytest.mark.parametrize("name", ["alice/a+b", "a+b/c", "alice/a@b+c", "alice/a+bob/c"])
def test_no_name_of_a_prefix_has_the_sign_that_joins(gateway: Gateway, name: str) -> None:
    with pytest.raises(BadName):
        parse(name)
    with pytest.raises(BadName):
        gateway.store.put(name, random_prefix(gateway.base, 3))


def test_a_joined_name_can_not_be_deleted(gateway: Gateway) -> None:
    with pytest.raises(openai.NotFoundError):
        gateway.client("alice").models.delete("alice/a+alice/b")
    assert gateway.store.get("alice/a")
