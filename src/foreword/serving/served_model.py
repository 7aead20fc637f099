"""The base model and the store that a configuration names: opened, and the model as requests see it.

The server, its training process and the start of a vLLM open them in the same way, here.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from foreword.base.base_model import BaseModel
from foreword.base.joining import join_prefixes
from foreword.encoding import TokenReach, token_reach
from foreword.errors import TemplateRefuses, UsageError, WindowExceeded
from foreword.grammar import GrammarCompiler, compiler_of
from foreword.prefix import BaseIdentity, Geometry, Prefix
from foreword.serving import logs
from foreword.serving.config import Configuration
from foreword.serving.tool_calls import ToolForm, tool_form
from foreword.store import PrefixStore
from foreword.template import Template


def open_store(configuration: Configuration) -> PrefixStore:
    """The store, made when there is none. Raises as `PrefixStore`."""
    return PrefixStore(configuration.store, blobs=configuration.blobs, checkpoints=configuration.checkpoints)


def open_base(
    configuration: Configuration, store: PrefixStore | None = None, *, weights: bool = True
) -> BaseModel:
    """The base model, with what `store` declares about it now (`BaseModel.equivalent`).

    Args:
        weights: without, what a gateway needs of it.

    Raises as `BaseModel.load`.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()

    def notify(line: str) -> None:
        logs.event("base model", note=line)

    if weights:
        base = BaseModel.load(
            configuration.base,
            device=configuration.device,
            dtype=configuration.dtype,
            attention=configuration.attention,
            quantization=configuration.quantization,
            long_context=configuration.long_context,
            notify=notify,
        )
    else:
        base = BaseModel.without_weights(
            configuration.base,
            dtype=configuration.dtype,
            long_context=configuration.long_context,
            notify=notify,
        )
    if store is not None:
        base.equivalent |= store.equivalents(base.fingerprint)
    return base


@dataclass(frozen=True)
class ServedModel:
    """The base model as requests see it.

    Attributes:
        name: its name in the API.
        identity, geometry: what a prefix must have been made for.
        template: of training, where a job does not say.
        raw_template: of text as it is.
        text_limit: tokens that fit behind a prefix of a length; None for no limit.
        equivalent: fingerprints of other bases whose prefixes run on this one, too.
        check_ids: raises UsageError for token ids that the base has no embedding for.
        check: raises GeometryMismatch, WrongBaseModel or UsageError for a prefix that does not fit.
        join: makes one prefix of several; raises as `join_prefixes`.
    """

    name: str
    identity: BaseIdentity
    geometry: Geometry
    tokenizer: Any
    template: Template
    raw_template: Template
    end_ids: frozenset[int]
    text_limit: Callable[[int], int | None]
    check_ids: Callable[[Sequence[int], str], None]
    check: Callable[[Prefix], object]
    join: Callable[[Sequence[Prefix]], Prefix]
    equivalent: frozenset[str] = frozenset()

    @functools.cached_property
    def token_reach(self) -> TokenReach | None:
        """For how much of a text one token may stand; None where that has no bound."""
        return token_reach(self.tokenizer)

    @property
    def grammars(self) -> GrammarCompiler:
        """Grammars for the tokens of this model."""
        return compiler_of(self.tokenizer)

    @property
    def tool_form(self) -> ToolForm:
        """How its chat template writes calls of tools. Raises TemplateRefuses: see `tool_calls.tool_form`."""
        if isinstance(self._tool_form, TemplateRefuses):
            raise TemplateRefuses(*self._tool_form.args)
        return self._tool_form

    @functools.cached_property
    def _tool_form(self) -> ToolForm | TemplateRefuses:
        try:
            return tool_form(self.tokenizer)
        except TemplateRefuses as error:
            return error

    @property
    def chats(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    @property
    def chat_template(self) -> Template:
        """The base's template with the tokenizer's own form of a conversation."""
        return dataclasses.replace(self.template, style="chat", begin=False)

    def template_of(self, prefix: Prefix | None, *, chat: bool, raw: bool) -> Template:
        """How a prompt becomes tokens: the prefix's own way, unless raw text was asked for."""
        if raw:
            return self.raw_template
        if prefix is not None:
            return prefix.template
        return self.chat_template if chat else self.raw_template

    def check_runs(self, prefix: Prefix) -> None:
        """Refuse a prefix behind which this server could answer nothing.

        Raises:
            BadPrefix, UsageError: as `check`, or a template that these tokens can't write.
            WindowExceeded: the prefix and its template leave no room for text.
        """
        self.check(prefix)
        template, length = prefix.template, prefix.length
        if template.placement == "infix":
            raise UsageError(
                "the prefix is an infix, which stands behind the source; this server puts a prefix in front "
                "of the text. Train it with placement prefix"
            )
        limit = self.text_limit(length)
        ids = template.source_ids(self.tokenizer, "a")
        template.start_ids(self.tokenizer, 0)
        template.target_ids(self.tokenizer, "a")
        self.check_ids(ids, "its template")
        if limit is not None and len(ids) >= limit:
            raise WindowExceeded(
                f"the template of the prefix writes {len(ids)} tokens around a text of one; {limit} fit "
                f"behind its {length} virtual tokens, new tokens among them. Train it with a shorter template"
            )

    def ends_of(self, prefix: Prefix | None) -> frozenset[int]:
        """Tokens that end a text behind this prefix."""
        end = (prefix.template if prefix is not None else self.template).end_id(self.tokenizer)
        return self.end_ids if end is None else self.end_ids | {end}


def served_of(base: BaseModel, name: str | None = None) -> ServedModel:
    """A base model in this process; a folder's path is nobody's business, and no name for a model."""
    return ServedModel(
        name=name or base.shown_name,
        identity=base.identity,
        geometry=base.geometry,
        tokenizer=base.tokenizer,
        template=base.template,
        raw_template=base.raw_template,
        end_ids=base.end_ids,
        text_limit=base.max_text_tokens,
        check_ids=base.check_ids,
        check=lambda prefix: base.per_row(prefix, 1),
        join=lambda prefixes: join_prefixes(base, prefixes),
        equivalent=base.equivalent,
    )
