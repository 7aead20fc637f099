"""Examples as token ids, cut to the positions that the base model has where they must be.

Nothing is cut in silence: what was cut is counted and goes back to the caller.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from foreword.errors import BadExamples, TemplateRefuses, UsageError, WindowExceeded
from foreword.examples import Example, Preference
from foreword.template import Source, Template


@dataclass(frozen=True)
class EncodedExample:
    """One example as token ids.

    Attributes:
        source_ids: everything in front of the target; never empty.
        target_ids: the tokens that carry the loss, the end token among them.
        start_id: what the decoder of an encoder-decoder reads first; None: the model's own start token.
    """

    source_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    start_id: int | None = None

    @property
    def tokens(self) -> int:
        """Tokens the model reads: the last target token is predicted, never read."""
        return len(self.source_ids) + len(self.target_ids) - 1


@dataclass(frozen=True)
class Truncation:
    """What had to be cut to fit.

    Attributes:
        sources: examples whose source was cut at its end.
        targets: examples whose target was cut at its end (and so lost its end token).
        tokens: tokens cut in all.
        limit: tokens that an example could have.
    """

    sources: int = 0
    targets: int = 0
    tokens: int = 0
    limit: int | None = None

    def __bool__(self) -> bool:
        return bool(self.sources or self.targets)

    def __str__(self) -> str:
        return (
            f"{self.sources} sources and {self.targets} targets were cut to fit {self.limit} tokens "
            f"({self.tokens} tokens lost)"
        )


def encode_example(
    example: Example,
    tokenizer: Any,
    template: Template,
    limit: int | None = None,
    *,
    apart: bool = False,
) -> tuple[EncodedExample, Truncation]:
    """Token ids of one example, of at most `limit` tokens to read.

    Source and target share the limit: a target may take all of it but for a source of one token in
    four; the source gets what the target leaves, and is cut at its end.

    Args:
        apart: each may have the whole limit: an encoder and a decoder read them apart.

    Raises:
        UsageError: nothing stands in front of the target, so its first token can't be predicted.
        TemplateRefuses: its chat template can't write the messages.
        WindowExceeded: chat messages that do not fit even with their text cut away.
    """
    source_ids = template.source_ids(tokenizer, example.source)
    target = template.target_text(tokenizer, example.source, example.target)
    target_ids = template.target_ids(tokenizer, target)
    if not source_ids:
        raise UsageError(
            "the text in front of the target is empty; give a source, a separator, or a template that begins "
            "with the beginning-of-text token"
        )
    whole = len(source_ids) + len(target_ids)
    source_cut = target_cut = False
    if limit is not None:
        most = limit if apart else limit + 1  # the last target token is predicted, never read
        target_limit = most if apart else most - min(len(source_ids), max(limit // 4, 1))
        if len(target_ids) > target_limit and (apart or whole > most):
            target_ids, target_cut = target_ids[:target_limit], True
        source_limit = most if apart else most - len(target_ids)
        if len(source_ids) > source_limit:
            source_ids, source_cut = _cut_source(example.source, tokenizer, template, source_limit), True
    start_id = None if template.start is None else template.start_ids(tokenizer, 0)[0]
    encoded = EncodedExample(tuple(source_ids), tuple(target_ids), start_id)
    lost = whole - len(source_ids) - len(target_ids)
    return encoded, Truncation(int(source_cut), int(target_cut), lost, limit)


def encode(
    examples: Sequence[Example],
    tokenizer: Any,
    template: Template,
    limit: int | None = None,
    *,
    apart: bool = False,
) -> tuple[list[EncodedExample], Truncation]:
    """`encode_example` for many, and the sum of what was cut; errors name the example as `name_of` does."""
    pairs = []
    for number, example in enumerate(examples):
        with naming(number, example):
            pairs.append(encode_example(example, tokenizer, template, limit, apart=apart))
    total = Truncation(
        sources=sum(cut.sources for _, cut in pairs),
        targets=sum(cut.targets for _, cut in pairs),
        tokens=sum(cut.tokens for _, cut in pairs),
        limit=limit,
    )
    return [encoded for encoded, _ in pairs], total


@contextlib.contextmanager
def naming(number: int, example: Example | Preference) -> Iterator[None]:
    """Put an example's number, and where it stands if that is known, in front of errors about it."""
    try:
        yield
    except (UsageError, WindowExceeded, BadExamples) as error:
        raise type(error)(f"{name_of(number, example)}: {error}") from error


def name_of(number: int, example: Example | Preference) -> str:
    """An example for a message: its number, from 0, and its file and line if they are known."""
    return f"example {number}" + (f" ({example.place})" if example.place else "")


def _cut_source(source: Source, tokenizer: Any, template: Template, limit: int) -> list[int]:
    """Source ids of at most `limit` tokens, by shortening the (longest) text and building it again.

    The text is cut, not the ids: what the template puts behind the source has to stay.
    """
    texts = [source] if isinstance(source, str) else [message["content"] for message in source]
    longest = max(range(len(texts)), key=lambda index: len(texts[index]))
    content_ids = tokenizer(texts[longest], add_special_tokens=False)["input_ids"]
    keep = len(content_ids)
    ids = whole = template.source_ids(tokenizer, source)
    while len(ids) > limit and keep > 0:
        keep = max(0, keep - (len(ids) - limit))
        shorter = tokenizer.decode(content_ids[:keep]) if keep else ""
        if isinstance(source, str):
            ids = template.source_ids(tokenizer, shorter)
        else:
            changed = [dict(message) for message in source]
            changed[longest]["content"] = shorter
            try:
                ids = template.source_ids(tokenizer, tuple(changed))
            except TemplateRefuses as error:  # it took the whole text
                raise WindowExceeded(
                    f"a source has {len(whole)} tokens, {limit} fit, and {error} once their longest text is "
                    "cut. Shorten the conversation"
                ) from error
    if len(ids) > limit or not ids:
        raise WindowExceeded(
            f"a source has {len(ids)} tokens even with its longest text cut away; {limit} fit. Shorten the "
            "conversation or the template"
        )
    return ids


_KEEPING = {"Sequence", "Prepend", "ByteLevel", "NFD", "NFKD", "Digits", "Metaspace", "UnicodeScripts"}
"""What tokenizers do to a text that takes no character out of it (names of the library `tokenizers`)."""
_COMPOSING = {"NFC": 4, "NFKC": 4}
"""So many characters become one at most (unicode.org/faq/normalization.html)."""


@dataclass(frozen=True)
class TokenReach:
    """For how much of a text one token may stand.

    Attributes:
        most: bytes of UTF-8, or characters, of the longest token.
        in_bytes: which of both.
        dropped: bytes that the vocabulary lacks; they become no token at all.
    """

    most: int
    in_bytes: bool
    dropped: bytes = b""

    def least_tokens(self, text: str) -> int:
        """A number of tokens that no text of this length goes below."""
        if not self.in_bytes:
            return -(-len(text) // self.most)
        return -(-len(text.encode(errors="ignore").translate(None, self.dropped)) // self.most)


def token_reach(tokenizer: Any) -> TokenReach | None:
    """For how much of a text one token may stand; None where that has no bound, or is not known.

    There is none where spaces are taken out, or where a run of characters that the vocabulary lacks becomes
    one token.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    parts = json.loads(backend.to_str())
    composed = 1
    for step in _steps(parts["normalizer"]) + _steps(parts["pre_tokenizer"]):
        kind = step["type"]
        if kind in _COMPOSING:
            composed = max(composed, _COMPOSING[kind])
        elif kind == "Replace":
            old, new = step["pattern"].get("String"), step["content"]
            if old is None or len(new) < len(old) or len(new.encode()) < len(old.encode()):
                return None
        elif kind in ("Split", "Punctuation"):
            if step["behavior"] == "Removed":
                return None
        elif kind not in _KEEPING:
            return None
    if any(token["lstrip"] or token["rstrip"] for token in parts["added_tokens"]):
        return None  # it takes the spaces beside it along
    vocabulary, model = tokenizer.get_vocab(), parts["model"]
    added = (len(token["content"].encode()) for token in parts["added_tokens"])
    most = composed * max(*map(len, vocabulary), *added)
    if model["type"] not in ("BPE", "Unigram"):
        return None
    if model.get("byte_fallback"):
        known = all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
        return TokenReach(most, in_bytes=False) if known else None
    steps = {step["type"] for step in _steps(parts["pre_tokenizer"]) + _steps(parts["normalizer"])}
    if model["type"] != "BPE" or "ByteLevel" not in steps or model["unk_token"] is not None:
        return None
    from transformers.convert_slow_tokenizer import bytes_to_unicode  # reading examples needs no transformers

    dropped = bytes(byte for byte, letter in bytes_to_unicode().items() if letter not in vocabulary)
    if dropped and parts["normalizer"] is not None:
        return None  # what it makes of a text may be dropped where the text itself would not be
    return TokenReach(most, in_bytes=True, dropped=dropped)


def _steps(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer and what it consists of."""
    if part is None:
        return []
    inner = part.get("normalizers", part.get("pretokenizers", []))
    return [part, *(step for each in inner for step in _steps(each))]
