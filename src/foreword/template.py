"""Template: how a source becomes the text in front of its target.

The template of the training text travels in the prefix file, so that generating, evaluating and
serving use exactly what training used. Source and target are tokenised apart: the tokens in front
of the target are the same whether the target is known (training) or not (generation).
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from foreword.errors import TemplateRefuses, UsageError
from foreword.validation import check_fields, check_whole_text

Message = dict[str, Any]
"""Role and content, both text. The first message of a conversation may have the `tools` that it declares (as
a system message without text, where there is no other), the assistant's `tool_calls`, and a tool's
`tool_call_id` and `name`, all as transformers' chat templates take them."""
Source = str | tuple[Message, ...]
Target = str | Message
"""Text, or a message of the assistant with `tool_calls`."""
Placement = Literal["prefix", "infix"]
SpecialTokens = tuple[tuple[str, ...], tuple[str, ...]]
"""Tokens that stand in front of a text, and behind it."""


@dataclass(frozen=True)
class Template:
    """How the text of one example is built.

    Attributes:
        style: `separator` puts `separator` behind the source; `chat` renders the source as messages
            with the tokenizer's chat template; `raw` takes the source as it is.
        separator: text between source and target, for `separator` only.
        begin: put the tokenizer's beginning-of-text token first (never for `chat`, whose template
            writes its own; for `raw` unless the source begins with it).
        end: text of the token that ends a target, or None if nothing marks the end.
        system: system message for `chat`; None leaves it to the chat template.
        placement: which text sees the virtual tokens: all of it (`prefix`), or the target alone, from
            the last source token on, which predicts its first (`infix`; docs/ablations.md).
        source_tokens: special tokens in front of the source and behind it, as tokenizers of
            encoder-decoders add them; None for none. Never for `chat`.
        target_tokens: the same of the target, `end` among them or behind them. The target is then
            tokenised as the tokenizer's `text_target`, which may differ from how it reads a source.
        start: text of the token that an encoder-decoder's decoder begins with; None: the model's own.
        date: day that the chat template takes for today, ISO 8601; None: today.
        system_in_prefix: the prefix holds everything up to the end of the system message's text, and a
            source is what the chat template writes behind it. A system message among the source's own
            messages stands there, too. For `chat` only.
    """

    style: Literal["separator", "chat", "raw"] = "separator"
    separator: str = "\n"
    begin: bool = False
    end: str | None = None
    system: str | None = None
    placement: Placement = "prefix"
    source_tokens: SpecialTokens | None = None
    target_tokens: SpecialTokens | None = None
    start: str | None = None
    date: str | None = None
    system_in_prefix: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("separator", "system", "end"):
            check_whole_text(name, getattr(self, name) or "")
        if self.system is not None and self.style != "chat":
            raise UsageError("a system message needs the template style 'chat'")
        if self.system_in_prefix and self.style != "chat":
            raise UsageError("system_in_prefix needs the template style 'chat'")
        if self.system_in_prefix and self.system is not None:
            raise UsageError("with system_in_prefix the prefix holds the system message; leave system out")
        if self.date is not None:
            try:
                datetime.date.fromisoformat(self.date)
            except ValueError as error:
                raise UsageError(f"date is {self.date!r}; expected one such as 2026-11-30") from error

    def source_ids(self, tokenizer: Any, source: Source) -> list[int]:
        """Token ids of everything in front of the target.

        Raises:
            UsageError: messages without the chat style, chat without a chat template, or what is neither
                text nor messages.
            TemplateRefuses: the chat template can't write these messages.
        """
        _check_source(source)
        if self.style == "chat" and not self.system_in_prefix:
            return [int(i) for i in self._apply_chat_template(tokenizer, source, tokenize=True)]
        text = self.source_text(tokenizer, source)
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        if self.source_tokens is not None:
            front, behind = (_ids_of(tokenizer, tokens) for tokens in self.source_tokens)
            ids = [*front, *ids, *behind]
        if not self.begin:
            return ids
        if tokenizer.bos_token_id is None:
            raise UsageError(
                "the template begins with a beginning-of-text token, which this tokenizer does not have"
            )
        # Raw text is what its writer says: who wrote the token does not get a second one.
        there = self.style == "raw" and ids[:1] == [tokenizer.bos_token_id]
        return ids if there else [tokenizer.bos_token_id, *ids]

    def source_text(self, tokenizer: Any, source: Source) -> str:
        """The text that becomes `source_ids`, without special tokens around it. Raises as `source_ids`."""
        _check_source(source)
        if self.system_in_prefix:
            return self._around_system(tokenizer, source)[1]
        if self.style == "chat":
            return str(self._apply_chat_template(tokenizer, source, tokenize=False))
        if not isinstance(source, str):
            raise UsageError(f"a source of chat messages needs the template style 'chat', not {self.style!r}")
        return source + self.separator if self.style == "separator" else source

    def opening(self, tokenizer: Any) -> str:
        """What a prefix that holds the system message has in front of that message's text.

        Raises:
            UsageError: `system_in_prefix` is off.
            TemplateRefuses: the chat template writes neither a system message nor a user's.
        """
        if not self.system_in_prefix:
            raise UsageError("only a template with system_in_prefix has an opening")
        return self._around_system(tokenizer, "?")[0]

    def _around_system(self, tokenizer: Any, source: Source) -> tuple[str, str]:
        """What the chat template writes in front of a system message's text, and behind it.

        A template without system messages has that text at the beginning of the first user message.
        """
        messages = [{"role": "user", "content": source}] if isinstance(source, str) else list(source)
        if "tools" in messages[0]:
            raise TemplateRefuses(
                "the conversation declares tools, whose place the prefix takes with that of the system "
                "message; leave them out"
            )
        own = messages[0]["content"] if messages[0]["role"] == "system" else None
        others = messages if own is None else messages[1:]
        held = _HELD if own is None else f"{_HELD}\n\n{own}"
        as_system = ({"role": "system", "content": held}, *others)
        try:
            text = str(self._apply_chat_template(tokenizer, as_system, tokenize=False))
        except TemplateRefuses:
            text = ""
        if _HELD not in text:
            if not others or others[0]["role"] != "user":
                raise TemplateRefuses(
                    "the base's chat template writes no system message, and the messages do not begin with "
                    "a user's, where the prefix's text could stand; begin with one"
                )
            first = {"role": "user", "content": f"{held}\n\n{others[0]['content']}"}
            text = str(self._apply_chat_template(tokenizer, (first, *others[1:]), tokenize=False))
        if _HELD not in text:
            raise TemplateRefuses("the base's chat template writes neither a system message nor a user's")
        front, _, behind = text.partition(_HELD)
        if len(others) > 1 and front != self.opening(tokenizer):
            raise TemplateRefuses(
                "the base's chat template writes earlier turns in front of the system message, where the "
                f"prefix stands instead; take the last user message alone, not {len(others)} messages"
            )
        return front, behind

    def target_ids(self, tokenizer: Any, target: str) -> list[int]:
        """Token ids that carry the loss: the target, and the tokens around it that end it."""
        end = self.end_id(tokenizer)
        if self.target_tokens is None:
            ids: list[int] = tokenizer(target, add_special_tokens=False)["input_ids"]
            return ids if end is None else [*ids, end]
        front, behind = (_ids_of(tokenizer, tokens) for tokens in self.target_tokens)
        ids = tokenizer(text_target=target, add_special_tokens=False)["input_ids"]
        return [*front, *ids, *behind, *([] if end is None or end in behind else [end])]

    def target_text(self, tokenizer: Any, source: Source, target: Target) -> str:
        """What the model is to write: a text as it is, and calls of tools as the chat template writes them.

        Raises:
            UsageError: calls without the chat style.
            TemplateRefuses: the chat template has no tools, or writes an answer otherwise than it begins one.
        """
        if isinstance(target, str):
            return target
        if self.style != "chat":
            raise UsageError(f"a target that calls tools needs the template style 'chat', not {self.style!r}")
        messages = (*([{"role": "user", "content": source}] if isinstance(source, str) else source),)
        front = str(self._apply_chat_template(tokenizer, messages, tokenize=False))
        plain = {"role": "assistant", "content": _HELD}
        whole, held = (
            str(self._apply_chat_template(tokenizer, (*messages, last), tokenize=False, answer=True))
            for last in (target, plain)
        )
        if not whole.startswith(front):
            raise TemplateRefuses(
                "the base's chat template begins an answer that calls tools otherwise than it asks for "
                "one, so the calls can't be learned"
            )
        behind = held.partition(_HELD)[2]  # what the template writes behind an answer; `end` stands for it
        text = whole.removeprefix(front).removesuffix(behind).rstrip()
        return text if self.end is None else text.removesuffix(self.end).rstrip()

    def end_id(self, tokenizer: Any) -> int | None:
        """Id of the token that ends a target, or None.

        Raises:
            UsageError: the tokenizer does not have `end` as one token.
        """
        return None if self.end is None else _id_of(tokenizer, self.end, "to end a target with")

    def start_ids(self, tokenizer: Any, start_id: int) -> list[int]:
        """What a decoder of its own reads in front of what it writes: `start`, or `start_id`, and the special
        tokens that every target begins with, such as that of its language."""
        first = start_id if self.start is None else _id_of(tokenizer, self.start, "to start a target with")
        return [first, *(_ids_of(tokenizer, self.target_tokens[0]) if self.target_tokens else ())]

    # -- the date -------------------------------------------------------------------------------

    def writes_date(self, tokenizer: Any) -> bool:
        """Whether the chat template can ask for the day (`strftime_now`), as those of Llama 3.x do."""
        return self.style == "chat" and "strftime_now" in str(getattr(tokenizer, "chat_template", None))

    def dated(self, tokenizer: Any) -> Template:
        """The same with today's date as its own, where the chat template asks for the day."""
        if self.date is not None or not self.writes_date(tokenizer):
            return self
        return dataclasses.replace(self, date=datetime.date.today().isoformat())

    # -- what it renders ------------------------------------------------------------------------

    def rendering_digest(self, tokenizer: Any) -> str | None:
        """SHA-256 of the token ids that this template makes of a fixed conversation; None where it can't.

        docs/format.md has the conversation. A tokenizer, a chat template or a release of a library that makes
        other ids of it has another digest.
        """
        try:
            ids = [
                self.source_ids(tokenizer, self._fixed_source),
                self.target_ids(tokenizer, _CONVERSATION[1]["content"]),
            ]
        except (UsageError, TemplateRefuses):
            return None
        return hashlib.sha256(json.dumps(ids, separators=(",", ":")).encode()).hexdigest()

    def rendering(self, tokenizer: Any) -> str | None:
        """What the chat template writes for the fixed conversation, then, after a line feed, for the same
        with a system message, where it takes one: the beginning of each. None where it refuses the first.

        Other styles have none: their text is the template's own.
        """
        if self.style != "chat":
            return None
        try:
            if self.system_in_prefix:
                return self.source_text(tokenizer, _CONVERSATION)[:LONGEST_RENDERING]
            texts = [self._apply_chat_template(tokenizer, _CONVERSATION, tokenize=False)]
        except (UsageError, TemplateRefuses):
            return None
        with contextlib.suppress(TemplateRefuses):
            texts.append(self._apply_chat_template(tokenizer, (_SYSTEM, *_CONVERSATION), tokenize=False))
        return "\n".join(text[:LONGEST_RENDERING] for text in texts)

    @property
    def _fixed_source(self) -> Source:
        return _CONVERSATION if self.style == "chat" else _CONVERSATION[0]["content"]

    # -- plain data -----------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Plain data for the prefix file."""
        data = dataclasses.asdict(self)
        if self.placement == "prefix":  # files from before there was a choice keep their digest
            del data["placement"]
        for name in ("source_tokens", "target_tokens"):
            if data[name] is not None:
                data[name] = [list(tokens) for tokens in data[name]]
        if not self.system_in_prefix:
            del data["system_in_prefix"]
        return {name: value for name, value in data.items() if value is not None or name not in _LATER}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Template:
        """The reverse of `to_json`; unknown fields are an error, never ignored."""
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := set(data) - known:
            raise UsageError(f"template has unknown fields {sorted(unknown)}; expected {sorted(known)}")
        return cls(**data)

    def _apply_chat_template(
        self, tokenizer: Any, source: Source, *, tokenize: bool, answer: bool = False
    ) -> Any:
        """What the chat template makes of a source: text, or its token ids; with `answer`, of a conversation
        that ends in one, instead of asking for it."""
        if not getattr(tokenizer, "chat_template", None):
            raise UsageError(
                "the template style is 'chat' but this tokenizer has no chat template; use 'separator' or "
                "'raw'"
            )
        messages = (
            [{"role": "user", "content": source}] if isinstance(source, str) else [dict(m) for m in source]
        )
        given: dict[str, Any] = {"add_generation_prompt": not answer, "return_dict": False}
        if tools := messages[0].pop("tools", None):
            given["tools"] = tools
            if messages[0] == _NO_SYSTEM:
                del messages[0]
        if self.system is not None and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self.system})
        if self.date is not None:  # a variable of the rendering hides the function of the same name
            given["strftime_now"] = datetime.datetime.fromisoformat(self.date).strftime

        def render(messages: Sequence[Message], tokenize: bool, **given: Any) -> Any:
            return tokenizer.apply_chat_template(messages, tokenize=tokenize, **given)

        try:
            made = render(messages, tokenize, **given)
            if missing := _unwritten(functools.partial(render, tokenize=False), messages, given):
                raise TemplateRefuses(
                    f"the base's chat template has no tools: it leaves out {missing}. Train on a base whose "
                    "template has them, or leave such conversations out"
                )
        except TemplateRefuses:
            raise
        except Exception as error:  # it is a program of its own, and may fail with any error
            roles = ", ".join(message["role"] for message in messages[:4])
            more = ", ..." if len(messages) > 4 else ""
            raise TemplateRefuses(
                f"the base's chat template refuses the messages ({roles}{more}): "
                f"{str(error) or type(error).__name__}"
            ) from error
        return made


_NO_SYSTEM: Message = {"role": "system", "content": ""}
"""Stands in front of a conversation for the tools alone."""


def _unwritten(render: Callable[..., Any], messages: Sequence[Message], given: dict[str, Any]) -> str | None:
    """What of a conversation's tools a chat template leaves out without a word; None if nothing."""
    tools = given.get("tools", ())
    if not tools and not any(message.get("tool_calls") or message["role"] == "tool" for message in messages):
        return None
    text = render(messages, **given)
    for tool in tools:
        if (name := tool["function"]["name"]) not in text:
            return f"the tool {name!r}"
    # The first of each kind: of a long conversation, each rendering takes long.
    called = [number for number, message in enumerate(messages) if message.get("tool_calls")]
    answered = [number for number, message in enumerate(messages) if message["role"] == "tool"]
    for number in (*called[:1], *answered[:1]):
        message = messages[number]
        other = [*messages[:number], dict(message), *messages[number + 1 :]]
        if calls := other[number].pop("tool_calls", None):
            what = f"the call of {calls[0]['function']['name']!r}"
        elif message["role"] == "tool":
            other[number]["content"], what = _HELD, f"the tool's answer {message['content']!r:.60}"
        else:
            continue
        if render(other, **given) == text:
            return what
    return None


RAW = Template(style="raw")

_LATER = ("source_tokens", "target_tokens", "start", "date")
"""Fields that are left out where they say nothing: files from before they were there keep their digest."""

_HELD = "\ue000system\ue001"
"""Stands for the system message's text in a rendering that is divided there: letters of the private use area,
which no template's own text has. What users write comes behind it, where it is no longer looked for."""

LONGEST_RENDERING = 1000
"""Characters of each of two texts that are kept to tell what differs."""

_CONVERSATION: tuple[Message, ...] = (
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "The capital of France is Paris."},
    {"role": "user", "content": "How many people live there?"},
)
_SYSTEM: Message = {"role": "system", "content": "Answer in one sentence."}


def default_template(tokenizer: Any, **changes: Any) -> Template:
    """A base's own where there is no chat template: source, newline, target, end-of-text.

    A beginning-of-text token is added where the tokenizer itself would add one.
    """
    return dataclasses.replace(
        raw_template(tokenizer), **{"style": "separator", "end": tokenizer.eos_token, **changes}
    )


def training_template(template: Template, tokenizer: Any) -> Template:
    """What training uses when nothing is said, of a base whose own is `template`: the chat template, so that
    a prefix answers the second message of a conversation, too; as it is without one, or of another kind.
    """
    if not getattr(tokenizer, "chat_template", None) or template != default_template(tokenizer):
        return template
    return dataclasses.replace(template, style="chat", begin=False, source_tokens=None)


def raw_template(tokenizer: Any) -> Template:
    """Text as it is, behind what the tokenizer itself puts in front: a beginning-of-text token, mostly."""
    front, _ = _added_tokens(tokenizer, "text")
    begins = tokenizer.bos_token is not None and front == (tokenizer.bos_token,)
    return Template(style="raw", begin=begins, source_tokens=None if begins or not front else (front, ()))


def encoder_decoder_template(tokenizer: Any, *, wraps: bool = False) -> Template:
    """Source and target as the tokenizer itself has them, which is how such a model was trained.

    Languages are those that the tokenizer has (`src_lang`, `tgt_lang`).

    Args:
        wraps: the model's own training moves the last token of a target to its front, as mBART's does.
    """
    source, target = _added_tokens(tokenizer, "text"), _added_tokens(tokenizer, "text_target")
    return Template(
        style="raw",
        end=tokenizer.eos_token,
        source_tokens=source if any(source) else None,
        target_tokens=target if any(target) else None,
        start=target[1][-1] if wraps and target[1] else None,
    )


def _added_tokens(tokenizer: Any, argument: Literal["text", "text_target"]) -> SpecialTokens:
    """The special tokens that the tokenizer puts in front of a source (or target) and behind it."""
    text: dict[str, Any] = {argument: "a"}
    ids = tokenizer(**text)["input_ids"]
    plain = tokenizer(**text, add_special_tokens=False)["input_ids"]
    for place in range(len(ids) - len(plain) + 1):
        if plain and ids[place : place + len(plain)] == plain:
            front, behind = ids[:place], ids[place + len(plain) :]
            return tuple(tokenizer.convert_ids_to_tokens(front)), tuple(
                tokenizer.convert_ids_to_tokens(behind)
            )
    return (), ()


def _id_of(tokenizer: Any, token: str, purpose: str) -> int:
    token_id = tokenizer.convert_tokens_to_ids(token)
    if token_id is None or (token_id == tokenizer.unk_token_id and token != tokenizer.unk_token):
        raise UsageError(f"the tokenizer has no token {token!r:.80} {purpose}")
    return int(token_id)


def _ids_of(tokenizer: Any, tokens: Sequence[str]) -> list[int]:
    return [_id_of(tokenizer, token, "to put around a text") for token in tokens]


def _check_source(source: Any) -> None:
    """Refuse what no template can write, by name."""
    if isinstance(source, str):
        texts = [source]
    elif isinstance(source, (list, tuple)) and source and all(_is_message(one) for one in source):
        texts = [text for message in source for text in (message["role"], message["content"])]
    else:
        what = f"{source!r:.80}" if isinstance(source, (list, tuple)) else f"of type {type(source).__name__}"
        raise UsageError(
            f"the source is {what}; expected text, or several messages: mappings with role and content, both "
            "text"
        )
    for text in texts:
        check_whole_text("the source", text)


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(value.get(name), str) for name in ("role", "content")
    )
