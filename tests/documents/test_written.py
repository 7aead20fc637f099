"""Conversations written by a model: what it writes is divided, checked and counted; an endpoint may misbehave."""

from __future__ import annotations

import itertools
import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from foreword import BaseModel
from foreword.documents import written
from foreword.documents.chunks import Chunk
from foreword.documents.written import (
    KINDS,
    BaseWriter,
    EndpointWriter,
    Written,
    parse_pairs,
    write_conversations,
)
from foreword.errors import BadConversations, UsageError, WriterFailed
from support.stand_ins import END, byte_tokenizer, tiny_llama

CHUNKS = [
    Chunk("The office opens at seven.", "Opening", 0, 26),
    Chunk("A berth costs 20 € a day.", "Berths", 27, 52),
]

# -- parsing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "pairs", "unparsed"),
    [
        ("Question: a?\nAnswer: b\n\nQuestion: c?\nAnswer: d\ne", [("a?", "b"), ("c?", "d\ne")], 0),
        (
            "Sure!\n\n**Question 1:** a?\n**Answer 1:** b\n\n### Question 2: c?\nAnswer: d",
            [("a?", "b"), ("c?", "d")],
            0,
        ),
        ("1. Q: a?\n   A: b\n2. Q: c?\n   A: d", [("a?", "b"), ("c?", "d")], 0),
        ("Request: a\nResponse: b", [("a", "b")], 0),
        ("Question: a?\nQuestion: b?\nAnswer: c", [("b?", "c")], 1),
        ("Question: a?\nAnswer:", [], 1),
        ("Question: a?\nAnswer: b\nAnswer: c", [], 1),
        ("I can't do that.", [], 1),
        ("", [], 0),
        ("Question: " + "a" * 3000 + "\nAnswer: b", [], 1),
    ],
)
def test_questions_and_answers_are_told_apart(text: str, pairs: list[tuple[str, str]], unparsed: int) -> None:
    assert parse_pairs(text) == Written(tuple(pairs), unparsed)


def test_what_was_cut_off_is_no_answer() -> None:
    text = "Question: a?\nAnswer: b\nQuestion: c?\nAnswer: the office op"
    assert parse_pairs(text, cut=True) == Written((("a?", "b"),), 1)


# -- over all chunks and kinds -----------------------------------------------------------------------


@dataclass
class Scripted:
    """Writes the same about everything, and keeps what it was asked."""

    pairs: tuple[tuple[str, str], ...]
    unparsed: int = 0
    parallel: int = 1
    name: str = "scripted"
    asked: list[tuple[str, str, int]] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def write(self, chunk: str, kind: str, n: int) -> Written:
        self.asked.append((chunk, kind, n))
        number = next(self.numbers)
        return Written(
            tuple((question.format(number), answer) for question, answer in self.pairs), self.unparsed
        )


@pytest.mark.parametrize("parallel", [1, 3])
def test_every_chunk_gets_every_kind_in_turn(parallel: int) -> None:
    writer = Scripted((("a {}?", "yes"), ("b {}?", "no")), parallel=parallel)
    seen: list[tuple[int, int]] = []
    made, rejected = write_conversations(writer, CHUNKS, 20, on_progress=lambda *done: seen.append(done))
    assert len(made) == 20
    assert not rejected
    assert {(chunk, kind) for chunk, kind, _ in writer.asked} == {
        (chunk.text, kind) for chunk in CHUNKS for kind in KINDS
    }
    assert made[0].kind == "written: question"
    assert [one.chunk for one in made[:4]] == [0, 0, 1, 1]
    assert seen[-1] == (20, 20)


def test_answers_are_checked_against_their_chunk_and_counted() -> None:
    writer = Scripted((("a {}?", "Twenty: 20 €."), ("same?", "yes"), ("c {}?", "Bob.")), unparsed=2)
    made, rejected = write_conversations(writer, CHUNKS, 4, kinds=["summary"])
    assert [(one.source, one.chunk) for one in made] == [("same?", 0), ("a 2?", 1)]
    assert rejected == {
        "number": 2,
        "name": 3,
        "asked before": 2,
        "not in the form of question and answer": 6,
    }
    assert len(writer.asked) == 3  # three times what would do, then it is enough


def test_none_that_pass_is_an_error_with_the_counts() -> None:
    writer = Scripted((("a {}?", "At 8."), ("b {}?", "Bob.")), unparsed=1)
    with pytest.raises(
        BadConversations, match=r"what scripted wrote: no conversation passes.*3 \(name\).*3 \(number\)"
    ):
        write_conversations(writer, CHUNKS, 4)


@pytest.mark.parametrize("kinds", [["question", "poem"], []])
def test_an_unknown_kind_is_refused(kinds: list[str]) -> None:
    with pytest.raises(UsageError, match="is unknown; expected of question, summary"):
        write_conversations(Scripted(()), CHUNKS, 4, kinds=kinds)


# -- the base ------------------------------------------------------------------------------------------


def test_the_base_writes_the_same_at_every_run_and_another_at_every_call() -> None:
    base = BaseModel(tiny_llama(max_position_embeddings=1024), byte_tokenizer(), name="tiny-llama")
    first = [
        BaseWriter(base, max_new_tokens=8, seed=1)._texts(CHUNKS[0].text, "summary", 2) for _ in range(2)
    ]
    assert first[0] == first[1]
    writer = BaseWriter(base, max_new_tokens=8, seed=1)
    texts = [
        writer._texts(*given, 2)
        for given in ((CHUNKS[0].text, "summary"), (CHUNKS[0].text, "summary"), (CHUNKS[1].text, "summary"))
    ]
    assert texts[0] == first[0]
    assert len({text for pair in texts for text in pair}) == 6
    assert writer.name == "tiny-llama"
    assert writer.write(CHUNKS[0].text, "question", 2) == Written((), 2)  # nonsense is counted


@pytest.mark.parametrize("chats", [True, False])
def test_the_base_is_asked_in_its_own_form(chats: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_tokenizer()
    if chats:
        tokenizer.chat_template = (
            "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[assistant]"
        )
    base = BaseModel(tiny_llama(max_position_embeddings=1024), tokenizer, name="tiny-llama")
    prompts: list[str] = []

    def generated(base: BaseModel, sources: list[str], *, template: Any, raw: bool, **_: Any) -> list[str]:
        used = base.raw_template if raw else template
        prompts.extend(tokenizer.decode(used.source_ids(base.tokenizer, source)) for source in sources)
        return ["Question: a?\nAnswer: b\nQuestion: c?" if chats else " a?\nAnswer: b\nQuestion: c?"] * len(
            sources
        )

    monkeypatch.setattr(written, "generate", generated)
    assert BaseWriter(base).write("The text.", "creative", 2) == Written((("a?", "b"),) * 2, 0)
    assert "The text." in prompts[0]
    assert prompts[0].startswith("[user]") == chats
    assert prompts[0].endswith("[assistant]" if chats else "Question:")
    assert END not in prompts[0]


# -- an endpoint -----------------------------------------------------------------------------------------

KEY = "sk-very-secret-key"


@dataclass
class Endpoint:
    """A stand-in that answers what its script says: (status, headers, body) for each request."""

    script: list[tuple[int, dict[str, str], bytes]]
    address: str = ""
    requests: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)
    drips: bool = False


def completion(text: object, finish: str = "stop") -> tuple[int, dict[str, str], bytes]:
    return (
        200,
        {},
        json.dumps({"choices": [{"message": {"content": text}, "finish_reason": finish}]}).encode(),
    )


GOOD = completion("Question: a?\nAnswer: b")


@contextmanager
def serving(*script: tuple[int, dict[str, str], bytes], drips: bool = False) -> Iterator[Endpoint]:
    endpoint = Endpoint(list(script), drips=drips)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            endpoint.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            status, headers, content = endpoint.script[min(len(endpoint.requests), len(endpoint.script)) - 1]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            try:
                for place in range(0, len(content), 1 if endpoint.drips else 1 << 16):
                    self.wfile.write(content[place : place + (1 if endpoint.drips else 1 << 16)])
                    if endpoint.drips:
                        time.sleep(0.05)
            except OSError:
                pass  # the client has left

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    endpoint.address = f"http://127.0.0.1:{server.server_address[1]}/v1/"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was waited between tries, without waiting."""
    waited: list[float] = []
    monkeypatch.setattr(written, "_wait", waited.append)
    return waited


def test_an_endpoint_is_asked_as_openais() -> None:
    with serving(GOOD) as endpoint:
        writer = EndpointWriter(endpoint.address, "big", key=KEY, temperature=None, max_tokens=99)
        assert writer.write("The text.", "use case", 3) == Written((("a?", "b"),), 0)
    ((path, headers, body),) = endpoint.requests
    assert path == "/v1/chat/completions"
    assert headers["authorization"] == f"Bearer {KEY}"
    assert {name: body[name] for name in body if name != "messages"} == {"model": "big", "max_tokens": 99}
    ((message),) = body["messages"]
    assert message["role"] == "user"
    assert "The text." in message["content"]
    assert "Write 3 cases from practice" in message["content"]
    assert KEY not in repr(writer)


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREWORD_WRITER_KEY", "from-outside")
    assert EndpointWriter("http://localhost/v1", "m").key == "from-outside"
    assert EndpointWriter("http://localhost/v1", "m", key="own").key == "own"
    monkeypatch.delenv("FOREWORD_WRITER_KEY")
    with serving(GOOD) as endpoint:
        EndpointWriter(endpoint.address, "m").write("x", "question", 1)
    assert "authorization" not in endpoint.requests[0][1]


def test_thoughts_in_front_of_the_answer_are_no_part_of_it() -> None:
    with serving(
        completion("<think>Question: no?\nAnswer: no</think>\nQuestion: a?\nAnswer: b", "length")
    ) as endpoint:
        assert EndpointWriter(endpoint.address, "m").write("x", "question", 1) == Written((), 1)


def test_a_busy_endpoint_is_asked_again_and_later_each_time(waits: list[float]) -> None:
    busy, broken = (429, {}, b"slow down"), (503, {}, b"")
    with serving(
        busy, broken, (429, {"retry-after": "7"}, b""), (500, {"retry-after": "9999"}, b""), GOOD
    ) as endpoint:
        assert EndpointWriter(endpoint.address, "m").write("x", "question", 1).pairs
    assert len(endpoint.requests) == 5
    assert waits == [1, 2, 7, 60]


def test_an_endpoint_that_stays_busy_is_given_up(waits: list[float]) -> None:
    with (
        serving((429, {}, b"slow down")) as endpoint,
        pytest.raises(WriterFailed, match=r"answered 429: 'slow down', 3 times"),
    ):
        EndpointWriter(endpoint.address, "m", tries=3).write("x", "question", 1)
    assert len(waits) == 2
    with pytest.raises(WriterFailed, match=r"did not answer \(ConnectError\), 2 times; check its address"):
        EndpointWriter(endpoint.address, "m", tries=2).write("x", "question", 1)


def test_a_refusal_is_not_asked_again_and_names_no_key(
    waits: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    body = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}" + "x" * 5000}}).encode()
    with (
        serving((401, {}, body)) as endpoint,
        pytest.raises(WriterFailed, match="answered 401.*<key>") as caught,
    ):
        EndpointWriter(endpoint.address, "m", key=KEY).write("x", "question", 1)
    assert len(endpoint.requests) == 1
    assert not waits
    assert KEY not in f"{caught.value}{caught.value.__cause__}{caplog.text}"
    assert len(str(caught.value)) < 600


def test_no_redirect_is_followed_with_the_key() -> None:
    with serving(GOOD) as other, serving((307, {"location": other.address}, b"")) as endpoint:
        with pytest.raises(WriterFailed, match="answered 307"):
            EndpointWriter(endpoint.address, "m", key=KEY).write("x", "question", 1)
        assert not other.requests


@pytest.mark.parametrize(
    "answer",
    [
        (200, {}, b"<html>"),
        (200, {}, b"[]"),
        (200, {}, b'{"choices": []}'),
        (200, {}, b'{"choices": [{"message": null}]}'),
        (200, {}, b'{"choices": 5}'),
        (200, {}, b"[" * 100_000),
        completion(["a"]),
    ],
)
def test_what_is_no_chat_completion_is_an_error_by_name(answer: tuple[int, dict[str, str], bytes]) -> None:
    with serving(answer) as endpoint, pytest.raises(WriterFailed, match="no chat completion|no text"):
        EndpointWriter(endpoint.address, "m").write("x", "question", 1)


def test_an_answer_without_content_is_counted() -> None:
    with serving(completion(None)) as endpoint:
        assert EndpointWriter(endpoint.address, "m").write("x", "question", 1) == Written((), 0)


def test_an_answer_without_end_is_not_kept_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(written, "MOST_RESPONSE_BYTES", 1 << 20)
    with (
        serving((200, {}, b" " * (3 << 20))) as endpoint,
        pytest.raises(WriterFailed, match="more than 1 MiB"),
    ):
        EndpointWriter(endpoint.address, "m").write("x", "question", 1)


def test_an_answer_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
    with serving((200, {}, b" " * 1000), drips=True) as endpoint:
        writer = EndpointWriter(endpoint.address, "m", tries=1, seconds=1)
        now = iter(range(1000))
        monkeypatch.setattr(written.time, "monotonic", lambda: float(next(now)))
        with pytest.raises(WriterFailed, match=r"did not answer \(TimeoutError\)"):
            writer.write("x", "question", 1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"base_url": "localhost:8000"}, "expected one such as http://localhost:8000/v1"),
        ({"base_url": "file:///etc/passwd"}, "expected one such as"),
        ({"base_url": "http://me:pass@host/v1"}, r"base_url is 'http://host'; .* without a user's name"),
        ({"key": "a\nb"}, "characters that no key has"),
        ({"tries": 0}, "tries is 0; expected 1 or more"),
        ({"seconds": 0.0}, "seconds is 0.0; expected 1 or more"),
    ],
)
def test_wrong_settings_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        EndpointWriter(**{"base_url": "http://localhost/v1", "model": "m", **given})
    assert "pass@" not in str(caught.value)


def test_an_endpoint_that_fails_ends_the_writing() -> None:
    with serving((400, {}, b"no such model")) as endpoint, pytest.raises(WriterFailed, match="no such model"):
        write_conversations(EndpointWriter(endpoint.address, "m"), CHUNKS, 8)
