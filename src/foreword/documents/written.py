"""Conversations about a document that a model writes: the base, or one behind an OpenAI-compatible endpoint.

Either is shown a chunk and asked for questions and answers of one kind after the other. What it writes is
divided into the two, checked against the chunk (checking.py), and what fails is left out and counted.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import re
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from foreword.base.base_model import BaseModel
from foreword.documents.checking import facts_of, fault_of
from foreword.documents.chunks import Chunk
from foreword.documents.conversations import Conversation, none_pass
from foreword.errors import BadConversations, UsageError, WriterFailed
from foreword.generation import generate

KINDS: dict[str, str] = {
    "question": "questions that a reader of this text could ask and that it answers: about names, numbers, "
    "dates, conditions, reasons and differences, some of them joining two places of the text",
    "summary": "requests to sum up the text or one part of it, each for another reader or in another length",
    "structuring": "requests to bring what the text says into another form, such as a list, a table, steps "
    "in their order, or JSON, each about another part of it",
    "use case": "cases from practice in which somebody needs what this text says: each tells the person's "
    "situation in a sentence or two and asks what to do or what holds there",
    "creative": "unusual requests that only a reader of this text can fulfil, such as a short dialogue, a "
    "rhyme, a riddle, a quiz question or a letter that uses what it says",
}
"""What a model is asked to write, by kind."""

_TASK = (
    "Below is a text, or a part of one.\n\n<text>\n{text}\n</text>\n\nWrite {n} {task}. Each must be "
    "understood by somebody who does not see the text. Answer each of them from the text alone, without "
    "anything that it does not say. Write each in this form:\n\nQuestion: ...\nAnswer: ..."
)

PAIRS_A_CALL = 4
MOST_CALLS = 3
"""Times as many calls as would do if every pair passed; then what there is has to suffice."""
LONGEST_QUESTION = 2000  # characters
KEY_VARIABLE = "FOREWORD_WRITER_KEY"
MOST_RESPONSE_BYTES = 4 << 20
LONGEST_WAIT = 60.0  # seconds between two tries

# Each part is of one class of characters, and within a line, so that no text takes long to search.
_NAMED = r"^(?:[^\w\n]|[\d_])*(?:{names})(?:[^\S\n]|[\d*_])*:[*_]*"
_QUESTION = re.compile(_NAMED.format(names="Question|Request|Case|Q"), re.MULTILINE | re.IGNORECASE)
_ANSWER = re.compile(_NAMED.format(names="Answer|Response|A"), re.MULTILINE | re.IGNORECASE)


@dataclass(frozen=True)
class Written:
    """What a model wrote about a chunk.

    Attributes:
        pairs: questions with their answers.
        unparsed: questions without an answer, texts without a question, and what was cut off.
    """

    pairs: tuple[tuple[str, str], ...]
    unparsed: int


class Writer(Protocol):
    """A model that writes questions and answers.

    Attributes:
        name: of the model, kept with what it wrote.
        parallel: how many calls it takes at once.
    """

    @property
    def name(self) -> str: ...

    @property
    def parallel(self) -> int: ...

    def write(self, chunk: str, kind: str, n: int) -> Written:
        """Up to `n` questions of a kind about a chunk, with their answers."""


def parse_pairs(text: str, *, cut: bool = False) -> Written:
    """Questions and answers of a text in the form that was asked for, numbered or in bold type too.

    Args:
        cut: the text ended where it had to, not where it was finished; its last pair is left out.
    """
    places = [*_QUESTION.finditer(text)]
    ends = [*(match.start() for match in places[1:]), len(text)][: len(places)]
    pairs, unparsed = [], int(not places and bool(text.strip()))
    for number, (match, end) in enumerate(zip(places, ends, strict=True), 1):
        block = text[match.end() : end]
        parts = _ANSWER.split(block)
        question, answer = parts[0].strip(" \n*_-"), parts[1].strip(" \n*_-#") if len(parts) == 2 else ""
        if question and answer and len(question) <= LONGEST_QUESTION and not (cut and number == len(places)):
            pairs.append((question, answer))
        else:
            unparsed += 1
    return Written(tuple(pairs), unparsed)


def write_conversations(
    writer: Writer,
    chunks: Sequence[Chunk],
    count: int,
    *,
    kinds: Sequence[str] = tuple(KINDS),
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Conversation], Counter[str]]:
    """Conversations about all chunks in turn, of all kinds in turn; and what was left out, by reason.

    Args:
        count: of conversations; fewer where too much of what is written has to be left out.
        on_progress: called with the conversations made, and `count`.

    Raises:
        UsageError: an unknown kind.
        WriterFailed: the endpoint does not answer, or refuses.
        BadConversations: none passes the check.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS] or ([] if kinds else ["none"]):
        raise UsageError(f"kinds of conversations: {unknown[0]!r} is unknown; expected of {', '.join(KINDS)}")
    facts = [facts_of(chunk.text) for chunk in chunks]
    made: list[Conversation] = []
    rejected: Counter[str] = Counter()
    asked: set[str] = set()
    calls = _calls(len(chunks), kinds, math.ceil(count / PAIRS_A_CALL) * MOST_CALLS)
    for number, kind, written in _answers(writer, chunks, calls):
        rejected["not in the form of question and answer"] += written.unparsed
        for question, answer in written.pairs:
            fault = fault_of(question, answer, facts[number])
            if fault is None and question.casefold() in asked:
                fault = "asked before"
            if fault is not None:
                rejected[fault] += 1
            elif len(made) < count:
                asked.add(question.casefold())
                made.append(Conversation(question, answer, number, f"written: {kind}"))
        if on_progress is not None:
            on_progress(len(made), count)
        if len(made) >= count:
            break
    rejected = +rejected  # without reasons that nothing was rejected for
    if not made:
        raise BadConversations(none_pass(f"what {writer.name} wrote", rejected))
    return made, rejected


def _calls(chunks: int, kinds: Sequence[str], most: int) -> Iterator[tuple[int, str]]:
    """Chunk and kind of each call: every chunk once with some kind, then every chunk with the next."""
    for number in range(most):
        lap, chunk = divmod(number, chunks)
        yield chunk, kinds[(chunk + lap) % len(kinds)]


def _answers(
    writer: Writer, chunks: Sequence[Chunk], calls: Iterator[tuple[int, str]]
) -> Iterator[tuple[int, str, Written]]:
    """What the writer makes of each call, in their order, as many at once as it takes."""

    def call(given: tuple[int, str]) -> tuple[int, str, Written]:
        number, kind = given
        return number, kind, writer.write(chunks[number].text, kind, PAIRS_A_CALL)

    if writer.parallel <= 1:
        yield from map(call, calls)
        return
    pool = ThreadPoolExecutor(writer.parallel)
    try:
        while batch := list(itertools.islice(calls, writer.parallel)):
            yield from pool.map(call, batch)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


# -- the base itself -------------------------------------------------------------------------------


class BaseWriter:
    """The base model writes, without a prefix; one pair a row, each sampled for itself."""

    parallel = 1

    def __init__(
        self, base: BaseModel, *, temperature: float = 0.8, max_new_tokens: int = 160, seed: int = 0
    ) -> None:
        self._base = base
        self._temperature = temperature
        self._max_new_tokens = max_new_tokens
        self._seed = seed
        self._calls: Counter[int] = Counter()
        self._chats = bool(getattr(base.tokenizer, "chat_template", None))

    @property
    def name(self) -> str:
        return self._base.name

    def write(self, chunk: str, kind: str, n: int) -> Written:
        """See `Writer`.

        Raises:
            WindowExceeded: a chunk that leaves no room for an answer.
        """
        texts = self._texts(chunk, kind, n)
        parsed = [parse_pairs(text, cut=self._is_cut(text)) for text in texts]
        # What stands behind the first pair is another question, which was not asked for, and often the same.
        return Written(
            tuple(pair for one in parsed for pair in one.pairs[:1]),
            sum(not one.pairs for one in parsed),
        )

    def _texts(self, chunk: str, kind: str, n: int) -> list[str]:
        prompt = _TASK.format(text=chunk, n="one of these:", task=KINDS[kind])
        template = dataclasses.replace(self._base.template, style="chat", begin=False)
        # A model that has not learned to chat goes on with the form that it is shown.
        begun = "" if self._chats else "Question:"
        own = zlib.crc32(f"{kind}\n{chunk}".encode())
        texts = generate(
            self._base,
            [prompt if self._chats else f"{prompt}\n\n{begun}"] * n,
            template=template if self._chats else None,
            raw=not self._chats,
            max_new_tokens=self._max_new_tokens,
            temperature=self._temperature,
            top_p=0.95,
            # Another for each chunk and kind, and each time that one comes again.
            seed=(self._seed + own + (self._calls[own] << 33)) % (1 << 62),
        )
        self._calls[own] += 1
        return [begun + text for text in texts]

    def _is_cut(self, text: str) -> bool:
        ids = self._base.tokenizer(text, add_special_tokens=False)["input_ids"]
        # Read anew, a text can have a token less than it was written with.
        return len(ids) >= self._max_new_tokens - 1


# -- an endpoint -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class EndpointWriter:
    """A model behind `/chat/completions` of an OpenAI-compatible endpoint.

    Attributes:
        base_url: with its version, such as http://localhost:8000/v1.
        model: its name there.
        key: sent as a bearer token; None takes it from the variable `FOREWORD_WRITER_KEY`, if that is set.
        temperature: None leaves it to the endpoint, as models that reason want it.
        max_tokens: of one answer, which holds several pairs; None leaves it to the endpoint.
        seconds: for one answer, from the request to its last byte.
        tries: before a call is given up; those after the first wait longer and longer.
    """

    base_url: str
    model: str
    key: str | None = dataclasses.field(default=None, repr=False)
    temperature: float | None = 0.8
    max_tokens: int | None = 2048
    seconds: float = 120.0
    tries: int = 5
    parallel: int = 4

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            shown = f"{parts.scheme}://{parts.hostname}" if "@" in parts.netloc else self.base_url
            raise UsageError(
                f"base_url is {shown!r}; expected one such as http://localhost:8000/v1, without a "
                "user's name or password"
            )
        if self.key is None:
            object.__setattr__(self, "key", os.environ.get(KEY_VARIABLE) or None)
        if self.key is not None and not re.fullmatch(r"[\x21-\x7e]+", self.key):
            raise UsageError(
                f"the key for {parts.hostname} has characters that no key has, such as a line feed"
            )
        for name in ("seconds", "tries", "parallel"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; expected 1 or more")
        _httpx()

    @property
    def name(self) -> str:
        return self.model

    def write(self, chunk: str, kind: str, n: int) -> Written:
        """See `Writer`.

        Raises:
            WriterFailed: no answer after all tries, one that is too long, or none that this protocol has.
        """
        prompt = _TASK.format(text=chunk, n=n, task=KINDS[kind])
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}]}
        optional = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        content = self._post(body | {name: value for name, value in optional.items() if value is not None})
        try:
            choice = json.loads(content)["choices"][0]
            text, finish = choice["message"]["content"] or "", choice.get("finish_reason")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise self._failed(f"answered {self._excerpt(content)}, which is no chat completion") from error
        if not isinstance(text, str):
            raise self._failed(f"answered {self._excerpt(content)}, whose content is no text")
        # Some models show their thoughts in front of the answer.
        text = re.sub(r"^\s*<think>.*?</think>", "", text, flags=re.DOTALL)
        return parse_pairs(text, cut=finish == "length")

    def _post(self, body: dict[str, Any]) -> bytes:
        """The body of the answer; tries again where that can help."""
        httpx = _httpx()
        for number in range(1, self.tries + 1):
            wait = min(LONGEST_WAIT, 2.0 ** (number - 1))
            try:
                status, headers, content = self._request(body)
            except (httpx.TransportError, TimeoutError) as error:
                why = f"did not answer ({type(error).__name__})"
            else:
                if status == 200:
                    return content
                why = f"answered {status}: {self._excerpt(content)}"
                if status != 429 and status < 500:
                    raise self._failed(why)
                if re.fullmatch(r"\d{1,6}", given := headers.get("retry-after", "")):
                    wait = min(LONGEST_WAIT, max(wait, float(given)))
            if number < self.tries:
                _wait(wait)
        raise self._failed(f"{why}, {self.tries} times")

    def _request(self, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        httpx = _httpx()
        headers = {"accept-encoding": "identity"}  # what is packed could be large unpacked
        if self.key is not None:
            headers["authorization"] = f"Bearer {self.key}"
        until = time.monotonic() + self.seconds
        content = b""
        timeout = httpx.Timeout(self.seconds, connect=min(self.seconds, 10.0))
        with (
            httpx.Client(timeout=timeout, follow_redirects=False) as client,
            client.stream(
                "POST", f"{self.base_url.rstrip('/')}/chat/completions", json=body, headers=headers
            ) as answer,
        ):
            for piece in answer.iter_raw():
                content += piece
                if len(content) > MOST_RESPONSE_BYTES:
                    raise self._failed(f"answered more than {MOST_RESPONSE_BYTES >> 20} MiB")
                if time.monotonic() > until:  # a byte now and then keeps every other limit quiet
                    raise TimeoutError
            return answer.status_code, dict(answer.headers), content

    def _excerpt(self, content: bytes) -> str:
        text = " ".join(content[:4000].decode(errors="replace").split())
        return repr((text.replace(self.key, "<key>") if self.key else text)[:300])

    def _failed(self, why: str) -> WriterFailed:
        parts = urlsplit(self.base_url)
        return WriterFailed(
            f"the model {self.model} at {parts.scheme}://{parts.netloc} {why}; "
            "check its address, name, key and load"
        )


def _wait(seconds: float) -> None:
    time.sleep(seconds)


def _httpx() -> Any:
    try:
        import httpx
    except ImportError as error:
        raise UsageError(
            "a model behind an endpoint needs httpx; install it with: pip install 'foreword[documents]'"
        ) from error
    return httpx
