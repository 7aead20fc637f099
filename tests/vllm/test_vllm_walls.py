"""Walls between owners, and against what the server did not sign."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from foreword import BaseModel, Prefix
from foreword.errors import AlteredBlob, UnknownPrefix
from foreword.serving.engine.protocol import Row
from foreword.serving.vllm import ticket
from foreword.serving.vllm.launch import BLOCK_SIZE
from support.stand_ins import byte_tokenizer, random_prefix, tiny_llama
from support.vllm_servers import LOADED, LOCAL_HITS, SECRET, VllmServer, ask, local, row

LONG = "a prompt that fills several blocks of the cache by itself, whatever stands in front of it"
LENGTH = BLOCK_SIZE + 5


def strong_prefix(base: BaseModel, seed: int) -> Prefix:
    """One that is told from another by the first tokens behind a long prompt."""
    return random_prefix(base, LENGTH, seed=seed, scale=4.0)


def body_of(server: VllmServer, base: BaseModel, asked: Row) -> dict[str, Any]:
    """The gateway's own request, not streamed."""
    return {**server.engine(base).body(asked, asked.sampling.max_tokens), "stream": False}


def answer(server: VllmServer, body: dict[str, Any], *, signed: bool = True) -> tuple[list[int], int]:
    """Token ids, and how many of the prompt vLLM had in its cache or from the connector."""
    response = server.post(body, signed=signed)
    assert response.status_code == 200, response.text
    told = response.json()
    return told["choices"][0]["token_ids"], told["usage"]["prompt_tokens_details"]["cached_tokens"]


def ids(tokens: list[Any]) -> list[int]:
    return [token.token_id for token in tokens]


def test_two_owners_with_the_same_prefix_and_prompt_share_no_cached_block(
    server: VllmServer, base: BaseModel
) -> None:
    prefix = strong_prefix(base, 20)
    server.put(prefix)
    bodies = [body_of(server, base, row(base, LONG, prefix, owner=owner)) for owner in ("alice", "bob")]
    expected = ids(local(base, [row(base, LONG, prefix)])[0])
    whole = (LENGTH + len(LONG)) // BLOCK_SIZE * BLOCK_SIZE
    before = server.counters()
    for body in bodies:
        assert answer(server, body) == (expected, LENGTH)  # the prefix from the connector, nothing else
    between = server.counters()
    assert between[LOCAL_HITS] == before[LOCAL_HITS]
    assert between[LOADED] - before[LOADED] == 2 * LENGTH
    for body in bodies:  # each finds its own again, whole blocks of it
        assert answer(server, body) == (expected, whole)


def test_two_owners_without_prefix_share_no_cached_block(server: VllmServer, base: BaseModel) -> None:
    bodies = [body_of(server, base, row(base, "plain: " + LONG, owner=owner)) for owner in ("carol", "dave")]
    assert [answer(server, body)[1] for body in bodies] == [0, 0]
    assert all(answer(server, body)[1] >= 2 * BLOCK_SIZE for body in bodies)


def test_prefixes_of_one_owner_are_told_apart_in_the_cache(server: VllmServer, base: BaseModel) -> None:
    """Same owner, same length, same prompt, and so the same token ids."""
    prefixes = [strong_prefix(base, seed) for seed in (21, 22)]
    rows = [row(base, LONG, prefix, owner="erin") for prefix in prefixes]
    expected = local(base, rows)
    assert expected[0] != expected[1]
    for _ in range(2):
        assert [server.run(base, [asked])[0] for asked in rows] == expected


def test_raw_placeholder_ids_meet_no_prefix(server: VllmServer, base: BaseModel) -> None:
    """Sent as a prompt behind no prefix by the same owner, before and after the prefix is cached."""
    prefix = strong_prefix(base, 23)
    asked = row(base, LONG, prefix, owner="frank")
    raw = Row((ticket.PLACEHOLDER,) * LENGTH + asked.prompt_ids, None, "frank", asked.sampling, asked.end_ids)
    text, with_prefix = local(base, [raw, asked])
    assert text != with_prefix
    for _ in range(2):
        assert server.run(base, [raw])[0] == text
        assert server.run(base, [asked])[0] == with_prefix
    straight = {**body_of(server, base, raw)}
    del straight["cache_salt"]  # past the gateway, with the key
    assert answer(server, straight, signed=False)[0] == ids(text)


@pytest.mark.parametrize("field", ["kv_transfer_params", "cache_salt"])
def test_what_the_gateway_did_not_sign_is_refused_at_the_door(
    server: VllmServer, base: BaseModel, field: str
) -> None:
    prefix = strong_prefix(base, 24)
    server.put(prefix)
    body = body_of(server, base, row(base, LONG, prefix))
    alone = {name: value for name, value in body.items() if name not in ("kv_transfer_params", "cache_salt")}
    response = server.post({**alone, field: body[field]})
    assert response.status_code == 400
    assert f"{field} is set by the server" in response.json()["error"]["message"]
    nested = server.post({**alone, "vllm_xargs": {field: "x"}})
    assert nested.status_code == 400


@pytest.mark.parametrize("extra", [{"prompt_logprobs": 1}, {"echo": True, "logprobs": 1}])
def test_log_probabilities_of_the_prompt_are_refused(
    server: VllmServer, base: BaseModel, extra: dict[str, Any]
) -> None:
    prefix = strong_prefix(base, 25)
    server.put(prefix)
    response = server.post({**body_of(server, base, row(base, LONG, prefix)), **extra}, signed=True)
    assert response.status_code == 400
    assert "not possible with a prefix" in response.json()["error"]["message"]


def test_a_caller_without_the_key_is_refused(server: VllmServer, base: BaseModel) -> None:
    body = body_of(server, base, row(base, "ab"))
    assert [server.post(body, signed=True, key=key).status_code for key in ("none", SECRET)] == [401] * 2


# -- the connector alone, without the door -----------------------------------------------------------


def forged(case: str, good: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """A request made from a good one by somebody who has seen it, or another owner's, but not the secret."""
    params = good["kv_transfer_params"]["foreword"]
    return {
        "own salt": {**good, "cache_salt": "mine"},
        "no salt": {**good, "cache_salt": None},
        "another owner's salt": {**good, "cache_salt": other["cache_salt"]},
        "another prompt": {**good, "prompt": [*good["prompt"], 5]},
        "another prefix": {
            **good,
            "kv_transfer_params": {
                "foreword": {**params, "digest": other["kv_transfer_params"]["foreword"]["digest"]}
            },
        },
        "shorter": {**good, "kv_transfer_params": {"foreword": {**params, "length": LENGTH - 1}}},
        "not signed": {**good, "kv_transfer_params": {"foreword": {**params, "signature": "0" * 64}}},
        "no ticket": {**good, "kv_transfer_params": {"do_remote_prefill": False}},
        "no mapping": {**good, "kv_transfer_params": None, "vllm_xargs": {"kv_transfer_params": "x"}},
        "log-probabilities of the prompt": {**good, "prompt_logprobs": 1},
        "echo": {**good, "echo": True, "logprobs": 1},
    }[case]


CASES = [
    *("own salt", "no salt", "another owner's salt", "another prompt", "another prefix", "shorter"),
    *("not signed", "no ticket", "no mapping", "log-probabilities of the prompt", "echo"),
]


@pytest.mark.parametrize("case", CASES)
def test_the_connector_fails_what_is_not_signed_and_keeps_nothing_of_it(
    cramped: VllmServer, base: BaseModel, case: str
) -> None:
    """An error, no text; and the good request afterwards has the prefix's own tokens."""
    number = CASES.index(case)
    prefixes = [strong_prefix(base, seed) for seed in (200 + number, 300 + number)]
    for prefix in prefixes:
        cramped.put(prefix)
    rows = [
        row(base, LONG, prefix, owner=owner) for prefix, owner in zip(prefixes, ("alice", "bob"), strict=True)
    ]
    good, other = (body_of(cramped, base, asked) for asked in rows)
    expected = [ids(tokens) for tokens in local(base, rows)]
    assert expected[0] != expected[1]
    for _ in range(2):  # cold, and with the good one's blocks in the cache
        response = cramped.post(forged(case, good, other))
        assert response.status_code == 500, response.text
        assert "choices" not in response.json()
        assert [answer(cramped, body)[0] for body in (good, other)] == expected


# -- files -------------------------------------------------------------------------------------------


def test_a_damaged_file_gives_an_error_and_no_text(cramped: VllmServer, base: BaseModel) -> None:
    """Rows of it fail, those beside them in the batch go on; with the file restored all is well."""
    prefixes = [strong_prefix(base, seed) for seed in (30, 31)]
    damaged, whole = ([row(base, prompt, p) for prompt in ("ab", "cd")] for p in prefixes)
    expected = local(base, [*damaged, *whole])
    path = cramped.put(prefixes[0])
    content = path.read_bytes()
    for bad in (content[:-1] + bytes([content[-1] ^ 1]), content[: len(content) // 2], b"", None):
        if bad is None:
            path.unlink()
            found = cramped.run(base, whole)
            failed = _failing(cramped, base, damaged)
        else:
            path.write_bytes(bad)
            found = cramped.run(base, [*damaged, *whole])
            failed, found = found[:2], found[2:]
        assert [type(error) for error in failed] == [UnknownPrefix if bad is None else AlteredBlob] * 2
        assert prefixes[0].digest[:12] in str(failed[0])
        assert found == expected[2:]
    path.write_bytes(content)
    assert cramped.run(base, [*damaged, *whole]) == expected


def _failing(server: VllmServer, base: BaseModel, rows: list[Row]) -> list[Any]:
    return ask(lambda: server.engine(base), rows)  # without putting the file back


@pytest.mark.parametrize("what", ["sizes", "weights"])
def test_a_prefix_of_another_base_under_a_right_name_is_no_prefix_here(
    cramped: VllmServer, base: BaseModel, what: str
) -> None:
    """What the gateway would have refused: the worker looks for itself."""
    other = random_prefix(BaseModel(tiny_llama(), byte_tokenizer(), name="other"), LENGTH, seed=1)
    if what == "weights":
        other = dataclasses.replace(random_prefix(base, LENGTH, seed=1), base=other.base)
    cramped.put(other)
    salt = ticket.salt(SECRET, "alice", other.digest)
    prompt = [ticket.PLACEHOLDER] * LENGTH + [5, 6, 7]
    signed = ticket.sign(SECRET, other.digest, LENGTH, salt, prompt)
    body = {**body_of(cramped, base, row(base, "ab")), "prompt": prompt, "cache_salt": salt}
    assert cramped.post({**body, "kv_transfer_params": signed.params()}).status_code == 500
