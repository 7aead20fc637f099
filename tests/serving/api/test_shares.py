"""One owner's many requests: bounded, counted ahead, and never in the way of another owner's."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from pydantic import ValidationError

from foreword.encoding import TokenReach
from foreword.errors import BadExamples
from foreword.serving.api.pools import Pools
from foreword.serving.config import Limits, of
from foreword.serving.errors import Refused, refused
from foreword.serving.jobs import uploads
from foreword.serving.rate_limits import LONGEST_WAIT, Limiter
from foreword.serving.requests import ChatBody, CompletionBody
from foreword.store import api_keys
from support.gateways import Gateway, running, tiny_chat_base

FILE = ("mine.jsonl", b'{"source": "a", "target": "b"}\n')


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    limits = {"tokens_per_minute": 2000}
    with running(
        tmp_path_factory.mktemp("shares"), tiny_chat_base(), waiting_rows=32, limits=limits
    ) as found:
        yield found


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_an_owner_who_fills_its_share_of_the_places_leaves_some_to_others(gateway: Gateway) -> None:
    gateway.engine.pause = 0.2
    alice, bob = gateway.client("alice"), gateway.client("bob")
    try:
        flood = alice.completions.create(model="tiny-llama", prompt="x", max_tokens=100, n=16, stream=True)
        assert gateway.server.rows == 16
        with pytest.raises(openai.RateLimitError) as caught:
            alice.completions.create(model="tiny-llama", prompt="x", max_tokens=1)
        assert caught.value.code == "too_many_at_once"
        assert caught.value.response.headers["retry-after"]
        assert bob.completions.create(model="tiny-llama", prompt="x", max_tokens=1, n=2).choices
        flood.close()
    finally:
        gateway.engine.pause = 0.0
    until(lambda: gateway.server.rows == 0)
    assert alice.completions.create(model="tiny-llama", prompt="x", max_tokens=1).choices


def test_a_small_body_that_did_not_say_its_size_gives_its_room_back_when_it_is_there(
    gateway: Gateway,
) -> None:
    gateway.engine.pause = 0.2
    bodies = gateway.server.pools.bodies
    body = b'{"model": "tiny-llama", "prompt": "x", "max_tokens": 20, "stream": true}'
    headers = {"authorization": f"Bearer {gateway.key('alice')}", "content-type": "application/json"}
    try:
        with httpx.stream(
            "POST", f"{gateway.url}/v1/completions", content=iter([body]), headers=headers
        ) as answer:
            next(answer.iter_lines())
            assert answer.status_code == 200
            assert bodies._shares.held == 0
    finally:
        gateway.engine.pause = 0.0
    until(lambda: gateway.server.rows == 0)


def test_tokens_are_reserved_before_they_are_written_and_given_back_after(gateway: Gateway) -> None:
    client = gateway.client("carol")
    gateway.engine.pause = 0.2
    ask: dict[str, Any] = {"model": "tiny-llama", "prompt": "x" * 50, "n": 5, "max_tokens": 200}
    try:
        first = client.completions.create(**ask, stream=True)  # 50 and 5 times 200 of 2000
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(**ask)
        assert caught.value.code == "tokens_per_minute_exceeded"
        assert int(caught.value.response.headers["retry-after"]) in range(1, 61)
        first.close()
    finally:
        gateway.engine.pause = 0.0
    until(lambda: gateway.server.rows == 0)
    # What was written is counted, the rest is there again.
    assert client.completions.create(**{**ask, "max_tokens": 20}).usage


def test_what_no_minute_brings_is_refused_for_good(gateway: Gateway) -> None:
    client = gateway.client("dora").with_options(max_retries=2)
    with pytest.raises(openai.RateLimitError, match="may need 2240 tokens.*limit is 2000") as caught:
        client.completions.create(model="tiny-llama", prompt="x" * 8, max_tokens=100_000, n=9, stop="~")
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert "retry-after" not in caught.value.response.headers
    assert client.completions.create(model="tiny-llama", prompt="x", max_tokens=2).choices


def test_what_a_window_can_not_hold_is_not_reserved(gateway: Gateway) -> None:
    """The window is 256 tokens: max_tokens beyond it asks for no more than it holds."""
    client = gateway.client("emil")
    assert client.completions.create(model="tiny-llama", prompt="x" * 240, max_tokens=9_000_000).usage


def test_a_refused_request_counts_by_the_tokens_that_were_made_of_it(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 2000 tokens a minute; each of these would need 2302 of them, and has 190 in its prompt."""
    monkeypatch.setattr(gateway.server, "limiter", Limiter(clock=lambda: 0.0))
    client = gateway.client("nora")
    for count in range(11):
        if count == 10:
            assert client.models.list().data  # 100 are left
        with pytest.raises(openai.RateLimitError, match="may need"):
            client.completions.create(model="tiny-llama", prompt="x" * 190, max_tokens=66, n=32)
    with pytest.raises(openai.RateLimitError, match="limit of 2000 tokens a minute"):
        client.models.list()


def test_where_no_place_is_free_no_token_ids_are_made(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.engine.pause = 0.2
    client, seen = gateway.client("olga"), list[int]()
    try:
        flood = client.completions.create(model="tiny-llama", prompt="x", max_tokens=100, n=16, stream=True)
        kind = type(gateway.server.served.tokenizer)
        monkeypatch.setattr(kind, "_encode_plus", _counted(kind._encode_plus, seen))
        with pytest.raises(openai.RateLimitError, match="texts of yours"):
            _complete(client, "x" * 100)
        assert seen == []
        flood.close()
    finally:
        gateway.engine.pause = 0.0
    until(lambda: gateway.server.rows == 0)


def test_a_refused_upload_counts_where_storage_is_full(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MOST_FILES", 0)
    client = gateway.client("pia")
    with pytest.raises(openai.RateLimitError):
        client.files.create(file=(FILE[0], FILE[1] * 500), purpose="fine-tune")
    with pytest.raises(openai.RateLimitError, match="tokens a minute"):
        client.models.list()


def test_a_refused_request_counts_by_its_size(gateway: Gateway) -> None:
    client = gateway.client("mallory")
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny-llama", prompt="x" * 40_000)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.RateLimitError) as limited:
        client.models.list()
    assert limited.value.code == "tokens_per_minute_exceeded"
    assert int(limited.value.response.headers["retry-after"]) <= 60
    assert gateway.client("alice").models.list().data


def test_a_prompt_with_too_many_characters_is_not_tokenized(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = gateway.server.served
    monkeypatch.setitem(vars(served), "token_reach", TokenReach(2, in_bytes=True))
    seen: list[int] = []
    kind = type(served.tokenizer)
    monkeypatch.setattr(kind, "_encode_plus", _counted(kind._encode_plus, seen))
    fits, beyond = "x" * 255, "x" * 513
    for owner, call in (("fred", _complete), ("gina", _chat)):
        client = gateway.client(owner)
        with pytest.raises(
            openai.BadRequestError, match="characters, more than fit into 256 tokens"
        ) as caught:
            call(client, beyond)
        assert caught.value.code == "context_length_exceeded"
        assert seen == []
        assert _complete(gateway.client(f"{owner}2"), fits).choices
        assert seen
        seen.clear()


def _counted(encode: Any, seen: list[int]) -> Any:
    def encode_plus(self: Any, text: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(len(text))
        return encode(self, text, *args, **kwargs)

    return encode_plus


def _complete(client: openai.OpenAI, text: str) -> Any:
    return client.completions.create(model="tiny-llama", prompt=text, max_tokens=1)


def _chat(client: openai.OpenAI, text: str) -> Any:
    return client.chat.completions.create(model="tiny-llama", messages=[{"role": "user", "content": text}])


def test_keys_are_checked_and_lists_read_while_uploads_hang(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, begun = threading.Event(), threading.Semaphore(0)

    def hanging(*args: Any, **kwargs: Any) -> None:
        begun.release()
        release.wait(60)
        raise Refused(400, "was held up")

    monkeypatch.setattr(uploads, "add", hanging)
    key, other = gateway.key("hans"), gateway.client("ida")
    headers = {"Authorization": f"Bearer {key}"}

    def send(_: int) -> int:
        return httpx.post(
            f"{gateway.url}/v1/files",
            headers=headers,
            data={"purpose": "fine-tune"},
            files={"file": FILE},
            timeout=60,
        ).status_code

    with ThreadPoolExecutor(48) as threads:
        sent = threads.map(send, range(48))
        try:
            assert begun.acquire(timeout=20)
            for _ in range(3):
                assert other.with_options(timeout=20).models.list().data
            monkeypatch.undo()
            assert other.with_options(timeout=20).files.create(file=FILE, purpose="fine-tune").id
        finally:
            release.set()
        assert set(sent) <= {200, 400}


def test_a_good_key_is_not_checked_behind_a_flood_of_wrong_ones(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, begun = threading.Event(), threading.Semaphore(0)
    check = api_keys.caller_of

    def slow(connection: Any, secret: str) -> Any:
        if secret.startswith("wrong"):
            begun.release()
            release.wait(60)
        return check(connection, secret)

    client, revoked = gateway.client("rita"), gateway.client("rita")
    assert client.models.list().data
    assert revoked.models.list().data
    monkeypatch.setattr(api_keys, "caller_of", slow)

    def send(number: int) -> int:
        headers = {"Authorization": f"Bearer wrong{number}"}
        return httpx.get(f"{gateway.url}/v1/models", headers=headers, timeout=60).status_code

    with ThreadPoolExecutor(12) as threads:
        sent = threads.map(send, range(12))
        try:
            assert begun.acquire(timeout=20)
            assert client.with_options(timeout=20).models.list().data
            gateway.store.revoke_key(revoked.api_key.split("_")[1])
            with pytest.raises(openai.AuthenticationError):
                revoked.with_options(timeout=20).models.list()
        finally:
            release.set()
        assert set(sent) == {401}


def test_wrong_keys_of_one_address_leave_threads_to_others() -> None:
    async def run() -> list[str]:
        pool, told, release = Pools(of({})).keys, list[str](), threading.Event()

        def hang() -> None:
            release.wait(60)

        flood = [asyncio.create_task(pool.run("192.0.2.1", hang)) for _ in range(500)]
        await asyncio.sleep(0)
        await asyncio.wait_for(pool.run("192.0.2.2", lambda: told.append("checked")), 20)
        release.set()
        await asyncio.gather(*flood)
        return told

    assert asyncio.run(run()) == ["checked"]


def test_a_body_of_a_million_faults_tells_of_the_first() -> None:
    for kind, body in (
        (CompletionBody, {"model": "x", "prompt": [["a"] * 100_000]}),
        (ChatBody, {"model": "x", "messages": [], **{f"field{number}": 1 for number in range(100_000)}}),
    ):
        with pytest.raises(ValidationError) as caught:
            kind.model_validate(body)
        assert caught.value.error_count() < 10


def test_reserved_tokens_come_back_and_refused_ones_cost_a_minute_at_most() -> None:
    now = 0.0
    limiter, limits = Limiter(clock=lambda: now), Limits(tokens_per_minute=60)
    limiter.reserve("a", limits, 50)
    with pytest.raises(Refused) as caught:
        limiter.reserve("a", limits, 20)
    assert caught.value.headers == {"retry-after": "10"}
    limiter.give_back("a", limits, 40)
    with pytest.raises(Refused) as caught:
        limiter.reserve("a", limits, 60, read=20)
    # 50 are there, 20 of them for what was read in vain; the wait brings what is missing after that.
    assert (caught.value.headers, caught.value.counted) == ({"retry-after": "30"}, True)
    now = 30.0
    limiter.reserve("a", limits, 50, read=20)
    limiter.give_back("a", limits, 1000)  # never more than a minute's worth
    limiter.reserve("a", limits, 60)
    for _ in range(100):
        limiter.charge_refused("a", limits, 10**9)
    with pytest.raises(Refused) as caught:
        limiter.admit("a", limits)
    assert caught.value.headers == {"retry-after": "60"}
    now = 90.0
    limiter.admit("a", limits)
    limiter.reserve("a", Limits(tokens_per_minute=None), 10**9)


def test_who_does_not_stop_asking_while_refused_waits_for_the_refusal() -> None:
    now = 0.0
    limiter = Limiter(clock=lambda: now)
    assert [limiter.refusal_wait("mallory") for _ in range(60)] == [0.0] * 60
    waits = [limiter.refusal_wait("mallory") for _ in range(40)]
    assert waits == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0] + [LONGEST_WAIT] * 31
    assert limiter.refusal_wait("alice") == 0.0
    now = 60.0
    assert limiter.refusal_wait("mallory") == 0.0


def test_a_refusal_that_waits_holds_nothing_and_nobody_up(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, waits = gateway.server, {"": 0.3}
    monkeypatch.setattr(server.limiter, "refusal_wait", lambda who: waits.get(who, 0.0))
    wrong = httpx.AsyncClient(base_url=gateway.url, headers={"authorization": "Bearer fw_none"})

    async def ask() -> list[int]:
        async with wrong:
            calls = [asyncio.create_task(wrong.get("/v1/models")) for _ in range(3)]
            while server.delayed < 3:
                await asyncio.sleep(0.01)
            assert (await asyncio.to_thread(gateway.client("alice").models.list)).data
            return [(await call).status_code for call in calls]

    assert asyncio.run(ask()) == [401, 401, 401]
    assert server.delayed == 0


def test_a_large_body_is_not_parsed_for_a_key_whose_others_cost_too_much_meanwhile(gateway: Gateway) -> None:
    """Both came while the key was within its limit."""
    body = b'{"model": "tiny-llama", "prompt": "%s"}' % (b"x" * 100_000)
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    head += f"authorization: Bearer {gateway.key('nina')}\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    place = ("127.0.0.1", int(gateway.url.rsplit(":", 1)[1]))
    with socket.create_connection(place) as first, socket.create_connection(place) as second:
        for connection in (first, second):
            connection.settimeout(20)
            connection.sendall(head + body[:-1])
        until(lambda: gateway.server.pools.bodies._shares.held == 2 * len(body))
        for connection, status in ((first, b"400"), (second, b"429")):
            before = gateway.server.running
            connection.sendall(body[-1:])
            assert connection.recv(12) == b"HTTP/1.1 " + status
            until(lambda before=before: gateway.server.running == before - 1)  # type: ignore[misc]


def test_files_of_examples_are_read_one_example_at_a_time(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    import foreword.serving.jobs.uploads as module

    alive, most = 0, 0
    read = module.iterate_examples

    def watched(*args: Any, **options: Any) -> Iterator[Any]:
        nonlocal alive, most
        for example in read(*args, **options):
            alive += 1
            most = max(most, alive)
            yield example
            alive -= 1

    monkeypatch.setattr(module, "iterate_examples", watched)
    created = gateway.client("judy").files.create(file=("x.jsonl", FILE[1] * 100), purpose="fine-tune")
    assert most == 1
    assert gateway.client("judy").files.retrieve(created.id).to_dict()["bytes"] == len(FILE[1]) * 100


def test_a_large_file_is_read_outside_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the answer that a small one gets here."""
    wrong = b'{"messages": [{"role": "user"}]}\n'
    with pytest.raises(BadExamples) as small:
        uploads.check(wrong, "x.jsonl")
    monkeypatch.setattr(uploads, "iterate_examples", None)  # nothing is read in this process
    with pytest.raises(Refused) as large:
        uploads.check(wrong + b" " * uploads.LARGE, "x.jsonl")
    expected = refused(small.value)
    assert vars(large.value) == vars(expected)
    chat = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    told = "read 1,000 examples: OpenAI chat messages; 999 repeat earlier ones, and are kept"
    assert uploads.check(chat * 1000, "x") == uploads.Found(1000, "chat", told)


def test_a_write_that_waits_for_another_too_long_gets_503(tmp_path: Path) -> None:
    with running(tmp_path, tiny_chat_base()) as gateway:
        database = gateway.store.database
        database.wait_seconds = 0.05
        client = gateway.client("alice")
        locked, release = threading.Event(), threading.Event()

        def hold(connection: Any) -> None:
            locked.set()
            release.wait(30)

        holding = threading.Thread(target=database.write, args=(hold,))
        holding.start()
        try:
            assert locked.wait(20)
            with pytest.raises(openai.InternalServerError) as caught:
                client.with_options(timeout=20).files.create(file=FILE, purpose="fine-tune")
            assert caught.value.status_code == 503
            assert caught.value.response.headers["retry-after"]
        finally:
            release.set()
            holding.join()
        assert client.files.create(file=FILE, purpose="fine-tune").id


def test_an_owner_has_a_bounded_number_of_files(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MOST_FILES", 2)
    client = gateway.client("kurt")
    ids = [client.files.create(file=FILE, purpose="fine-tune").id for _ in range(2)]
    with pytest.raises(openai.RateLimitError) as caught:
        client.files.create(file=FILE, purpose="fine-tune")
    assert caught.value.code == "files_exceeded"
    assert gateway.client("lena").files.create(file=FILE, purpose="fine-tune").id
    client.files.delete(ids[0])
    assert client.files.create(file=FILE, purpose="fine-tune").id
