"""From the model's name and the prompt of a request to rows for the engine."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

from foreword.documents.settings import TOGETHER
from foreword.errors import (
    BadName,
    ForewordError,
    GeometryMismatch,
    TemplateRefuses,
    UnknownPrefix,
    UnsupportedArchitecture,
    UsageError,
    WrongBaseModel,
)
from foreword.prefix import Prefix
from foreword.sampling import SEEDS, row_seed
from foreword.serving.api.state import RequestIdentity, ServerState
from foreword.serving.api.structured import characters_of_form, chat_messages
from foreword.serving.engine.detokenizer import Echo
from foreword.serving.engine.protocol import Row, Sampling
from foreword.serving.errors import Refused, refused, shown, unknown_model
from foreword.serving.requests import JOINS, MOST_JOINED, ChatBody, CompletionBody, Sampled
from foreword.serving.served_model import ServedModel
from foreword.store import PrefixStore
from foreword.store.names import parse
from foreword.template import Source, Template

SMALLEST_TOP_P = 1e-6
"""What a `top_p` of 0 means: the likeliest token alone."""


def find_prefix(server: ServerState, view: PrefixStore, name: str) -> Prefix | None:
    """The prefix that a model's name means to the caller; None for the base model alone.

    Raises:
        Refused: 404 for what is absent or somebody else's; 400 for a prefix of another base.
    """
    if name == server.served.name:
        return None
    start_time = time.perf_counter()
    try:
        prefix = view.get(name)
    except (BadName, UnknownPrefix) as error:
        raise unknown_model(name) from error
    server.metrics.prefix_load.observe(time.perf_counter() - start_time)
    try:
        server.served.check(prefix)
    except (GeometryMismatch, WrongBaseModel) as error:
        raise Refused(400, refused(error).message, code="wrong_base_model", param="model") from error
    return prefix


def find_model(server: ServerState, view: PrefixStore, name: str) -> tuple[Prefix | None, tuple[str, ...]]:
    """What a model's name means to the caller, and the digests of the prefixes that it joins.

    `alice/a+alice/b` joins prefixes that were trained together. Each is looked up as a model of its own, at
    every request; what they make together is kept in the store's memory, under the names of all their owners.

    Raises:
        Refused: as `find_prefix` for each; 400 for prefixes that were trained apart, or can't be joined.
    """
    listed = name.split(JOINS)
    if name == server.served.name or len(listed) == 1:
        return find_prefix(server, view, name), ()
    if len(listed) > MOST_JOINED:
        raise _not_joined(f"the model joins {len(listed)} prefixes; expected at most {MOST_JOINED}")
    epoch = view.cache.epoch
    prefixes = []
    for each in listed:
        if (prefix := find_prefix(server, view, each)) is None:
            raise _not_joined(f"{shown(each)} is the base model, which is no prefix to join; leave it out")
        prefixes.append(prefix)
    groups = [prefix.recipe.get(TOGETHER) for prefix in prefixes]  # of any JSON that a file may have
    together = [isinstance(group, str) and group != "" and group == groups[0] for group in groups]
    if not all(together):
        raise Refused(
            400,
            f"{shown(listed[together.index(False)])} was not trained together with "
            "the others, and prefixes that were trained apart disturb each other. Name one of them alone, or "
            "compile their documents with --together",
            code="not_trained_together",
            param="model",
        )
    digests = tuple(prefix.digest for prefix in prefixes)
    owners = [parse(each).owner for each in listed]
    try:
        joined = view.cache.joined(owners, digests, lambda: server.served.join(prefixes), epoch)
    except UnsupportedArchitecture as error:
        raise _not_joined(str(error)) from error
    except ForewordError as error:
        answer = refused(error)
        raise Refused(answer.status, answer.message, code=answer.code, param="model") from error
    return joined, digests


def _not_joined(message: str) -> Refused:
    return Refused(400, message, code="invalid_value", param="model")


def conversation(server: ServerState, prefix: Prefix | None, body: ChatBody) -> Source:
    """The messages of a chat as the source that the model's template takes.

    Raises:
        Refused: a prefix that was trained without the chat template, and more than one message.
    """
    messages = body.messages
    style = server.served.template_of(prefix, chat=True, raw=bool(body.raw)).style
    if style == "chat":
        return chat_messages(body)
    if len(messages) > 1 or messages[0].role != "user":
        what = "raw text was asked for" if body.raw else f"{body.model} was trained without the chat template"
        raise Refused(
            400,
            f"{what}: expected one message of the user, found {len(messages)} "
            f"({', '.join(m.role for m in messages[:4])}). Send one alone, or train it with the chat "
            "template",
            code="single_message_expected",
            param="messages",
        )
    return messages[0].text


def prompt_ids(
    server: ServerState, prefix: Prefix | None, source: Source | Sequence[int], body: Sampled
) -> tuple[int, ...]:
    """Token ids of a prompt, template applied; ids that were sent are taken as they are.

    Raises:
        Refused: empty, too long, no token of this model, or nothing that its template can write.
        UsageError: a token that the model has no embedding for.
    """
    served, chat = server.served, isinstance(body, ChatBody)
    param = "messages" if chat else "prompt"
    length = 0 if prefix is None else prefix.length
    limit = served.text_limit(length)
    if isinstance(source, list):
        ids = source
        if (highest := max(ids)) >= len(served.tokenizer):
            raise Refused(
                400, f"{highest} is no token of {served.name}; it has {len(served.tokenizer)}", param=param
            )
    else:
        template = served.template_of(prefix, chat=chat, raw=bool(body.raw))
        if template.style == "chat" and not served.chats:
            raise Refused(
                400,
                f"{served.name} has no chat template; use /v1/completions, or a model that was trained on "
                "single texts",
                code="no_chat_template",
                param="model",
            )
        try:
            if limit is not None:
                _check_characters(served, template, source, limit, param)  # type: ignore[arg-type]
            ids = template.source_ids(served.tokenizer, source)  # type: ignore[arg-type]
        except (TemplateRefuses, UsageError) as error:
            raise Refused(400, str(error), param=param) from error
    if not ids:
        raise Refused(400, "the prompt is empty; give at least one token of text", param=param)
    served.check_ids(ids, "the prompt")
    least = 0 if body.max_tokens == 0 else 1
    if limit is not None and len(ids) + least > limit:
        raise Refused(
            400,
            f"the prompt has {len(ids)} tokens; {limit} fit behind this model's {length} virtual tokens, new "
            "tokens among them. Shorten it",
            code="context_length_exceeded",
            param=param,
        )
    return tuple(ids)


def _check_characters(
    served: ServedModel, template: Template, source: Source, limit: int, param: str
) -> None:
    """Refuse, before token ids are made of it, a text that can't fit whatever its tokens are.

    Raises:
        Refused: 400, longer than so many tokens can stand for.
    """
    messages = () if isinstance(source, str) else source
    beside = (json.dumps(each[part]) for each in messages for part in ("tools", "tool_calls") if part in each)
    texts = (source,) if isinstance(source, str) else (*(each["content"] for each in messages), *beside)
    if sum(map(len, texts)) < limit or (reach := served.token_reach) is None:
        return
    if sum(map(reach.least_tokens, texts)) <= limit:
        return
    # A chat template may leave messages, or parts of them, out: what it writes counts.
    text = template.source_text(served.tokenizer, source)
    if reach.least_tokens(text) > limit:
        raise Refused(
            400,
            f"the prompt has {len(text)} characters, more than fit into {limit} tokens. Shorten it",
            code="context_length_exceeded",
            param=param,
        )


def characters_of(body: Sampled) -> int:
    """Characters of all prompts of a request; none where it gives token ids."""
    if isinstance(body, ChatBody):
        return sum(len(message.text) for message in body.messages) + characters_of_form(body)
    prompt: Any = body.prompt  # type: ignore[attr-defined]
    return sum(
        len(text) for text in ([prompt] if isinstance(prompt, str) else prompt) if isinstance(text, str)
    )


def prompts_of(body: CompletionBody) -> list[Any]:
    """The prompts of a request, each a text or token ids."""
    given: Any = body.prompt
    return given if isinstance(given, list) and not isinstance(given[0], int) else [given]


def echoes_of(server: ServerState, rows: Sequence[Row], body: CompletionBody) -> list[Echo]:
    """The prompts that a request's texts are to begin with, as the model reads them: template applied."""
    given = [prompt for prompt in prompts_of(body) for _ in range(body.n or 1)]
    tokenizer, raw = server.served.tokenizer, bool(body.raw)
    found = []
    for row, prompt in zip(rows, given, strict=True):
        if isinstance(prompt, str):
            text = server.served.template_of(row.prefix, chat=False, raw=raw).source_text(tokenizer, prompt)
        else:
            text = tokenizer.decode(prompt, skip_special_tokens=True)
        scored = row.sampling.prompt_logprobs is not None
        found.append(Echo(text, row.prompt_ids if scored else ()))
    return found


def texts_of(body: Sampled) -> int:
    """How many texts a request asks for."""
    return (1 if isinstance(body, ChatBody) else len(prompts_of(body))) * (body.n or 1)  # type: ignore[arg-type]


def check_count(server: ServerState, texts: int, body: Sampled) -> None:
    """Refuse more texts than one request may have. Raises Refused: 400."""
    each = body.n or 1
    if texts > server.configuration.rows:
        raise Refused(
            400,
            f"{texts // each} prompts with n = {each} are {texts} texts; expected at most "
            f"{server.configuration.rows} in one request",
            param="n",
        )


def make_rows(
    server: ServerState,
    identity: RequestIdentity,
    prefix: Prefix | None,
    prompts: Sequence[tuple[int, ...]],
    body: Sampled,
    *,
    max_tokens: int,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
) -> list[Row]:
    """`n` rows for every prompt, each with a seed of its own.

    Raises:
        Refused: a shortest length above the longest.
    """
    min_tokens = body.min_tokens or 0
    if min_tokens > max_tokens:
        raise Refused(
            400,
            f"min_tokens is {min_tokens}, and a text here has at most {max_tokens}; give more max_tokens, or "
            "fewer min_tokens",
            param="min_tokens",
        )
    seed = secrets.randbelow(SEEDS) if body.seed is None else body.seed
    ends = server.served.ends_of(prefix)
    temperature = 1.0 if body.temperature is None else body.temperature
    top_p = 1.0 if body.top_p is None else max(body.top_p, SMALLEST_TOP_P)
    numbered = [ids for ids in prompts for _ in range(body.n or 1)]
    return [
        Row(
            prompt_ids=ids,
            prefix=prefix,
            owner=identity.account,
            sampling=Sampling(
                max_tokens=max_tokens,
                temperature=temperature,
                top_p=top_p,
                seed=row_seed(seed, index),
                logprobs=logprobs,
                min_tokens=min_tokens,
                prompt_logprobs=prompt_logprobs,
            ),
            end_ids=ends,
        )
        for index, ids in enumerate(numbered)
    ]
