"""The engine that asks a vLLM, without one: the door, answers, what is asked and refused."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fastapi import FastAPI
from transformers import GenerationConfig, MistralConfig, MistralForCausalLM

from foreword import BaseModel
from foreword.base.joining import join_prefixes
from foreword.errors import (
    AlteredBlob,
    EngineStopped,
    NonFinitePrefix,
    StoreUnavailable,
    UnsupportedArchitecture,
    UsageError,
    WindowExceeded,
    WrongBaseModel,
)
from foreword.serving import serve
from foreword.serving.api.state import ServerState
from foreword.serving.config import of
from foreword.serving.engine.protocol import Row, Sampling, Token
from foreword.serving.serve import make_engine
from foreword.serving.served_model import ServedModel, served_of
from foreword.serving.vllm import door, launch, ticket
from foreword.serving.vllm import engine as answer
from foreword.serving.vllm.checks import check_base, check_version
from foreword.serving.vllm.engine import DATA, Broken, VllmEngine
from support.saved_bases import save_tiny
from support.stand_ins import VOCABULARY, byte_tokenizer, random_prefix, tiny_llama
from support.tiny_bart import tiny_bart_base

SECRET = "0123456789abcdef" * 4


# -- the door -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        {"cache_salt": "x"},
        {"kv_transfer_params": {}},
        {"kv_transfer_params": {"foreword": {}}},
        {"vllm_xargs": {"kv_transfer_params": "x"}},
        {"messages": [{"content": [{"cache_salt": 1}]}]},
        {"cache_salt": "x", "metadata": {"cache_salt": None}},
        [[{"cache_salt": "x"}]],
    ],
)
def test_what_only_the_gateway_sets_is_refused_from_others(body: Any) -> None:
    content = json.dumps({"prompt": [0, 0, 5], "body": body}).encode()
    escaped = content.replace(b"_salt", b"\\u005fsalt").replace(b"kv_", b"kv\\u005f")
    for text in (content, escaped, content.decode().encode("utf-16")):
        why = door.refusal(text, signed=False)
        assert why is not None
        assert "never by its caller" in why


def test_plain_requests_pass_the_door_and_prompt_logprobs_pass_without_a_prefix() -> None:
    for body in (
        {"prompt": "kv_transfer_params"},
        {"prompt": [0, 0, 5], "prompt_logprobs": 1},
        {"cache_salt": None, "kv_transfer_params": None},
    ):
        assert door.refusal(json.dumps(body).encode(), signed=False) is None
    assert door.refusal(b"not json", signed=False) is None
    assert door.refusal(b"--form\ncache_salt", signed=False) is not None


@pytest.mark.parametrize("extra", [{"prompt_logprobs": 0}, {"prompt_logprobs": 3}, {"echo": True}])
def test_log_probabilities_of_the_prompt_are_refused_with_a_prefix(extra: dict[str, Any]) -> None:
    body = {"kv_transfer_params": {"foreword": {}}, "cache_salt": "x"}
    assert door.refusal(json.dumps(body).encode(), signed=True) is None
    why = door.refusal(json.dumps({**body, **extra}).encode(), signed=True)
    assert why is not None
    assert next(iter(extra)) in why


@pytest.mark.parametrize("pieces", [1, 3])
def test_the_door_hands_on_the_body_it_has_read(pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ticket.SECRET, SECRET)
    content = b'{"prompt": [5], "cache_salt": "x"}'
    size = -(-len(content) // pieces)
    parts = [content[start : start + size] for start in range(0, len(content), size)]
    assert b"".join(parts) == content

    async def app(scope: Any, receive: Any, send: Any) -> None:
        got = b""
        while True:
            message = await receive()
            got += message.get("body", b"")
            if not message.get("more_body"):
                break
        await send({"type": "got", "body": got})
        await send(await receive())

    async def ask(headers: list[tuple[bytes, bytes]]) -> list[Any]:
        messages = [
            {"type": "http.request", "body": part, "more_body": part is not parts[-1]} for part in parts
        ]
        coming = iter([*messages, {"type": "http.disconnect"}])
        sent: list[Any] = []

        async def receive() -> Any:
            return next(coming)

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "headers": headers, "path": "/v1/completions"}
        await door.Door(app)(scope, receive, send)
        return sent

    name, key = door.HEADER.encode(), (b"authorization", f"Bearer {ticket.api_key(SECRET)}".encode())
    signed = (name, door.signature_of(SECRET, content).encode())
    passed = asyncio.run(ask([key, signed]))
    assert passed == [{"type": "got", "body": content}, {"type": "http.disconnect"}]
    for headers in ([], [(name, door.signature_of(SECRET, b"other").encode())], [(name, b"\xff")]):
        assert asyncio.run(ask([key, *headers]))[0]["status"] == 400
    for wrong in ([], [(b"authorization", b"Bearer x")], [(b"authorization", b"\xff")]):
        assert asyncio.run(ask([*wrong, signed]))[0]["status"] == 401
    monkeypatch.setattr(door, "LARGEST_BODY", len(content) - 1)
    assert asyncio.run(ask([key, signed]))[0]["status"] == 413


def test_nobody_opens_a_websocket_of_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ticket.SECRET, SECRET)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def app(*_: Any) -> None:
        raise AssertionError("it is not let through")

    asyncio.run(door.Door(app)({"type": "websocket", "path": "/v1/realtime"}, app, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


# -- answers ------------------------------------------------------------------------------------------


def read_answer(lines: list[str], *, max_new_tokens: int = 9, **sampling: Any) -> list[Token]:
    async def stream() -> AsyncIterator[str]:
        for line in lines:
            yield line

    async def all_of_them() -> list[Token]:
        row = Row((5,), None, "alice", Sampling(9, **sampling), frozenset({2}))
        return [token async for token in answer.tokens(stream(), row, max_new_tokens)]

    return asyncio.run(all_of_them())


def chunk(ids: list[int], **more: Any) -> str:
    return "data: " + json.dumps({"choices": [{"text": "", "token_ids": ids, **more}]})


def test_the_last_token_says_why_it_is_the_last() -> None:
    lines = [chunk([7]), "", chunk([]), chunk([8, 9]), chunk([2], finish_reason="stop"), "data: [DONE]"]
    found = read_answer(lines)
    assert [token.token_id for token in found] == [7, 8, 9, 2]
    assert [token.finish_reason for token in found] == [None, None, None, "stop"]
    assert [token.finish_reason for token in read_answer(lines, max_new_tokens=2)] == [None, "length"]


def test_a_stream_that_breaks_is_an_error_and_no_short_text() -> None:
    for lines in (
        [chunk([7])],
        [chunk([7]), "data: [DONE]"],
        [chunk([7]), 'data: {"error": {"message": "x"}}'],
    ):
        with pytest.raises(answer.Broken):
            read_answer(lines)


def test_log_probabilities_are_told_by_token_id() -> None:
    told = {
        "token_logprobs": [-2.5],
        "top_logprobs": [{"token_id:4": -1.0, "token_id:2": -2.5, "token_id:3": -0.7}],
    }
    (token,) = read_answer([chunk([2], logprobs=told)], logprobs=2)
    assert (token.logprob, token.likeliest) == (-2.5, ((3, -0.7), (4, -1.0)))
    none = {"token_logprobs": [-2.5], "top_logprobs": [None]}
    assert read_answer([chunk([2], logprobs=none)], logprobs=0)[0].likeliest == ()


# -- the engine without a vLLM ------------------------------------------------------------------------


def test_a_request_says_every_setting_and_puts_placeholders_in_the_prefixs_place(
    tiny_base: BaseModel,
) -> None:
    engine = VllmEngine(tiny_base, "http://127.0.0.1:9/", SECRET)
    prefix = random_prefix(tiny_base, 4)
    sampling = Sampling(7, temperature=0.5, top_p=0.9, seed=11, logprobs=2, min_tokens=6)
    body = engine.body(Row((5, 6), prefix, "alice", sampling, frozenset({3, 1})), 7)
    assert body["prompt"] == [0, 0, 0, 0, 5, 6]
    made = ticket.read(body["kv_transfer_params"])
    assert made is not None
    assert (made.digest, made.length) == (prefix.digest, 4)
    ticket.verify(SECRET, made, body["cache_salt"], body["prompt"])
    assert [body[name] for name in ("max_tokens", "temperature", "top_p", "seed")] == [7, 0.5, 0.9, 11]
    assert (body["stop_token_ids"], body["ignore_eos"], body["logprobs"]) == ([1, 3], True, 2)
    assert body["min_tokens"] == 6
    plain = engine.body(Row((5, 6), None, "alice", sampling, frozenset()), 7)
    assert plain["prompt"] == [5, 6]
    assert "kv_transfer_params" not in plain
    assert plain["cache_salt"] not in (None, body["cache_salt"])
    full = engine.body(Row((5, 6), None, "alice", sampling, frozenset()), 4)  # the window leaves 4
    assert (full["max_tokens"], full["min_tokens"]) == (4, 4)  # vLLM refuses more of the second


def test_a_joined_prefix_is_asked_for_by_the_digests_of_its_parts(tiny_base: BaseModel) -> None:
    """vLLM's worker reads stored files only; the order counts, and so the cache is another one."""
    parts = [random_prefix(tiny_base, 3, seed=seed) for seed in (1, 2)]
    engine = VllmEngine(tiny_base, "http://127.0.0.1:9", SECRET)
    salts = set()
    for some in (parts, parts[::-1], parts[:1]):
        joined = join_prefixes(tiny_base, some)
        digests = tuple(part.digest for part in some)
        row = Row((5, 6), joined, "alice", Sampling(7), frozenset(), digests if len(some) > 1 else ())
        body = engine.body(row, 7)
        made = ticket.read(body["kv_transfer_params"])
        assert made is not None
        assert (made.digest, made.length) == ("+".join(digests), joined.length)
        ticket.verify(SECRET, made, body["cache_salt"], body["prompt"])
        salts.add(body["cache_salt"])
    assert len(salts) == 3


def test_a_vllm_that_is_not_there_is_said_so(tiny_base: BaseModel) -> None:
    async def ask(row: Row) -> None:
        engine = VllmEngine(tiny_base, "http://127.0.0.1:9", SECRET)
        try:
            async for _ in engine.stream(row):
                pass
        finally:
            await engine.close()

    fits = Row((5,), None, "alice", Sampling(4), frozenset())
    with pytest.raises(EngineStopped, match="does not answer"):
        asyncio.run(ask(fits))
    with pytest.raises(WindowExceeded, match="129 tokens; 128 fit"):
        asyncio.run(ask(Row((5,) * 129, None, "alice", Sampling(4), frozenset())))
    with pytest.raises(UsageError, match="at most"):
        asyncio.run(ask(Row((5,), None, "alice", Sampling(4, logprobs=21), frozenset())))


class PretendedVllm:
    """Takes requests on a port of this machine; answers as many with a token each second as it was told to."""

    def __init__(self, talkative: int) -> None:
        self._left = talkative

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        self._left -= 1
        for _ in range(6 if self._left >= 0 else 0):
            writer.write(f"data: {chunk([5]).removeprefix(DATA)}\n\n".encode())
            await writer.drain()
            await asyncio.sleep(0.1)
        await asyncio.sleep(60 if self._left < 0 else 0)
        writer.close()


def test_rows_are_given_up_when_no_row_gets_a_token(tiny_base: BaseModel) -> None:
    """One row alone may wait for long beside one that gets tokens; then nobody gets any."""
    said: list[str] = []

    async def all_of_it() -> tuple[int, float]:
        server = await asyncio.start_server(PretendedVllm(talkative=1).answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        engine = VllmEngine(
            tiny_base, f"http://127.0.0.1:{port}", SECRET, silent_seconds=0.3, on_silence=said.append
        )
        row = Row((5,), None, "alice", Sampling(6), frozenset())
        talking = [token async for token in engine.stream(row)]  # longer than the silence that is allowed
        assert len(talking) == 6
        assert not said
        begin = asyncio.get_running_loop().time()
        with pytest.raises(EngineStopped, match="no token for 0 s"):
            async for _ in engine.stream(row):
                pass
        waited = asyncio.get_running_loop().time() - begin
        await engine.close()
        server.close()
        return len(talking), waited

    _, waited = asyncio.run(all_of_it())
    assert waited >= 0.3
    assert said == ["no token for 0 s, and 1 texts wait"]


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        (lambda digest: None, EngineStopped),
        (
            lambda digest: (_ for _ in ()).throw(StoreUnavailable("the database does not answer")),
            StoreUnavailable,
        ),
        (lambda digest: (_ for _ in ()).throw(AlteredBlob("other bytes")), AlteredBlob),
    ],
)
def test_why_a_prefix_was_not_loaded_is_asked_of_the_store(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch, read: Any, kind: type[Exception]
) -> None:
    monkeypatch.setattr("foreword.serving.vllm.engine.answers", lambda url: True)
    engine = VllmEngine(tiny_base, "http://127.0.0.1:9", SECRET, read=read)
    prefix, broken = random_prefix(tiny_base, 2), Broken("status 500: KV load failed")
    for joined in ((), ("one", "other")):
        row = Row((5,), prefix, "alice", Sampling(7), frozenset(), joined)
        assert type(asyncio.run(engine._meaning(broken, row))) is kind


@pytest.mark.parametrize("version", ["0.30.0", "0.9.2.post2", "unknown"])
def test_a_vllm_that_is_too_old_is_refused(version: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"vLLM is {version}")):
        check_version(version)


def test_a_vllm_that_is_newer_than_any_that_was_tried_is_remarked() -> None:
    assert check_version("0.32.1+cpu") is None
    assert "tried with 0.31 to 0.32" in (check_version("0.33.0") or "")
    assert "tried with 0.31 to 0.32" in (check_version("1.0.0") or "")


def test_a_vllm_with_a_shorter_window_ends_rows_there(tiny_base: BaseModel) -> None:
    engine = VllmEngine(tiny_base, "http://127.0.0.1:9", SECRET, max_positions=20)
    prefix = random_prefix(tiny_base, 10)

    async def ask(row: Row) -> None:
        async for _ in engine.stream(row):
            pass

    for prompt, behind, limit in (((5,) * 10, prefix, 10), ((5,) * 20, None, 20)):
        with pytest.raises(WindowExceeded, match=f"{len(prompt)} tokens; {limit} fit"):
            asyncio.run(ask(Row(prompt, behind, "alice", Sampling(4), frozenset())))
    with pytest.raises(EngineStopped, match="does not answer"):  # there is room for one
        asyncio.run(ask(Row((5,) * 9, prefix, "alice", Sampling(4), frozenset())))


def sliding_window_base() -> BaseModel:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        sliding_window=16,
    )
    return BaseModel(MistralForCausalLM(config), byte_tokenizer(), name="sliding")


@pytest.mark.parametrize("make", [tiny_bart_base, sliding_window_base])
def test_bases_that_vllm_would_get_wrong_are_refused(make: Any) -> None:
    with pytest.raises(UnsupportedArchitecture, match="can't be served by vLLM"):
        VllmEngine(make(), "http://127.0.0.1:9", SECRET)


def test_a_prefix_of_other_weights_of_the_same_sizes_is_refused_by_the_worker(tiny_base: BaseModel) -> None:
    prefix = random_prefix(tiny_base, 3)
    check_base(prefix, tiny_base.fingerprint)
    check_base(prefix, None)
    other = BaseModel(tiny_llama(seed=1), byte_tokenizer(), name="other")
    with pytest.raises(WrongBaseModel, match=f"vLLM has {other.fingerprint[:12]}"):
        check_base(prefix, other.fingerprint)
    with pytest.raises(WrongBaseModel):
        check_base(prefix, other.fingerprint, {None, other.fingerprint})
    check_base(prefix, other.fingerprint, {None, tiny_base.fingerprint})  # declared equivalent


def test_a_configuration_with_a_vllm_that_is_not_there_says_what_to_start(
    tiny_base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ticket.SECRET, SECRET)
    folder = save_tiny(tmp_path / "model")
    configuration = of({"engine": "vllm", "engine_url": "http://127.0.0.1:9", "base": str(folder)})
    with pytest.raises(EngineStopped, match="start one with:\n.*vllm.* --kv-transfer-config"):
        make_engine(configuration, tiny_base)


def started_without_vllm(
    folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> tuple[ServedModel, VllmEngine, list[str], list[BaseModel]]:
    """What `serve` makes of the base and the engine, with the command of the vLLM that would be started."""
    commands: list[list[str]] = []
    bases: list[BaseModel] = []

    class Started:
        url = "http://127.0.0.1:9"

        def __init__(self, command: list[str], *more: Any, **seconds: float) -> None:
            commands.append(command)

        def wait(self) -> None: ...

        def restart(self, why: str) -> None: ...

        def close(self) -> None: ...

    def served_model(base: BaseModel, name: str | None) -> ServedModel:
        bases.append(base)
        return served_of(base, name)

    monkeypatch.setattr(launch, "VllmProcess", Started)
    monkeypatch.setattr(launch, "program", lambda model: ["vllm", "serve", model])
    monkeypatch.setattr(launch, "_max_positions_of", lambda url, secret: 128)
    monkeypatch.setattr(launch, "_version_of", lambda url: "0.32.0")
    monkeypatch.setattr(serve, "served_of", served_model)
    states: list[ServerState] = []
    monkeypatch.setattr(serve, "make_app", lambda state: states.append(state) or FastAPI())
    monkeypatch.setattr(serve, "_Runner", lambda *given: SimpleNamespace(run=lambda sockets: None))
    given = {"engine": "vllm", "base": str(folder), "port": 0, "keys": False, "training": False, **settings}
    serve.serve(of({**given, "store": str(folder.parent / "store")}), announce=lambda url, name: None)
    (state,) = states
    asyncio.run(state.engine.close())
    return state.served, state.engine, commands[0], bases  # type: ignore[return-value]


def test_the_gateway_of_a_vllm_holds_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows of the base what it knows when it has them."""
    folder = save_tiny(tmp_path / "model")
    GenerationConfig(eos_token_id=[0, 7]).save_pretrained(folder)
    loaded = BaseModel.load(folder)
    with monkeypatch.context() as patch:
        patch.setattr(BaseModel, "load", lambda *given, **more: pytest.fail("weights are loaded"))
        served, engine, command, (base,) = started_without_vllm(folder, patch)
    assert all(tensor.is_meta for tensor in (*base.model.parameters(), *base.model.buffers()))
    assert served.identity == loaded.identity
    assert served.geometry == loaded.geometry
    assert served.end_ids == loaded.end_ids == {0, 7}
    assert served.template == loaded.template
    assert served.text_limit(10) == loaded.max_text_tokens(10)
    served.check(random_prefix(loaded, 3))
    other = BaseModel(tiny_llama(seed=1), byte_tokenizer(), name="other")
    with pytest.raises(WrongBaseModel):
        served.check(random_prefix(other, 3))
    row = Row((5, 6), random_prefix(loaded, 3), "alice", Sampling(4), served.end_ids)
    assert engine.body(row, 4)["stop_token_ids"] == [0, 7]
    assert command[command.index("--dtype") + 1] == "auto"  # of vLLM's device, not of the gateway's


def test_the_data_type_that_is_set_is_vllms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_tiny(tmp_path / "model")
    _, _, command, _ = started_without_vllm(folder, monkeypatch, dtype="bfloat16")
    assert command[command.index("--dtype") + 1] == "bfloat16"


def test_numbers_beyond_the_data_type_that_is_set_are_refused_by_the_gateway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At upload, not by vLLM at each request."""
    folder = save_tiny(tmp_path / "model")
    for dtype, refused in (("float16", True), ("bfloat16", False), ("auto", False)):
        with monkeypatch.context() as patch:
            served, _, _, (base,) = started_without_vllm(folder, patch, dtype=dtype)
        assert base.dtype == (torch.float16 if refused else torch.bfloat16)
        large = random_prefix(base, 3, scale=1e6)
        with pytest.raises(NonFinitePrefix, match="infinite in float16") if refused else nullcontext():
            served.check(large)


def test_a_gateway_refuses_windows_without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = MistralConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, sliding_window=4,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, bos_token_id=None,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(UnsupportedArchitecture, match="layers all see the whole text"):
        started_without_vllm(tmp_path / "model", monkeypatch)
