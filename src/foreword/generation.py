"""Rows of (prompt, prefix) to text, through transformers' own `generate`.

transformers decodes; this file gives it what it does not know: which prefix each row has, where
each row's text begins to count, what ends each row, and randomness that belongs to a row.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.cache_utils import Cache

from foreword.base.attention import AttentionContext, attention_context
from foreword.base.base_model import BaseModel, PrefixesArgument
from foreword.base.batch import pad_rows
from foreword.base.kv_cache import cache_argument, prefixed_cache
from foreword.base.loss import not_finite
from foreword.base.prefix_batch import PrefixBatch
from foreword.base.prepacked_linear import is_prepared, prepacked_weights, prepacking_pays
from foreword.errors import BadSchema, TemplateRefuses, UsageError, WindowExceeded
from foreword.grammar import Grammar, GrammarRows, Schema, compiler_of, json_grammar
from foreword.prefix import Prefix
from foreword.sampling import (
    GREEDY_BELOW,
    Decoding,
    EndedRows,
    FiniteRows,
    RowSampling,
    SampledRows,
    StopStrings,
    TextStreamer,
    banned_token_ids,
    first_stop,
    row_seed,
)
from foreword.template import Source, Template
from foreword.validation import checks_arguments

EXCLUDED = ("stop", "banned", "min_new_tokens")
"""Settings that could end a text inside its JSON, or keep it from ending."""


@dataclass(frozen=True)
class _Row:
    place: int
    ids: list[int]
    prefix: Prefix | None
    end_ids: frozenset[int]
    max_new_tokens: int
    start_ids: tuple[int, ...]  # what a decoder of its own reads before its text; else none
    grammar: Grammar | None = None


@checks_arguments
def generate(
    base: BaseModel,
    prompts: Sequence[Source] | str,
    prefixes: PrefixesArgument = None,
    *,
    max_new_tokens: int = 64,
    min_new_tokens: int = 0,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    beams: int = 1,
    length_penalty: float = 1.0,
    stop: Sequence[str] | str = (),
    banned: Sequence[str] | str = (),
    seed: int = 0,
    schema: Schema | type | Sequence[Schema | type | None] | None = None,
    template: Template | None = None,
    raw: bool = False,
    batch_size: int = 32,
    on_text: Callable[[int, str], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Text after each prompt, each row under its own prefix.

    Args:
        prompts: B sources (text, or chat messages for a prefix with a chat template).
        prefixes: one for all, or one (or None) per row; several in one row, as in `[(a, b), None]`, are
            joined (base/joining.py).
        template: for rows without a prefix (default: `base.template`); rows with one use the
            prefix's own, so that they see exactly what training saw.
        raw: take every prompt as it is, without any template; only the special tokens that the tokenizer
            itself puts around a text, such as its first one, are there.
        schema: JSON schema that each text follows, as a mapping or a pydantic model; one for all, or one (or
            None) per row. A text that ends by itself is valid, one that is cut at `max_new_tokens` may not
            be.
            Excludes `beams`, `stop`, `banned` and `min_new_tokens`. Needs the extra `structured`.
        batch_size: rows in one batch.
        on_text: streaming: called with (row, piece of text) as soon as the piece is certain. Not
            with beams, whose text is certain only at the end.
        on_progress: called after each batch with the rows done, and all rows.
        max_new_tokens, min_new_tokens, temperature, top_p, top_k, beams, length_penalty, stop, banned,
            seed: see `Decoding`.

    Returns:
        One text per prompt, without the prompt, the end token and the stop text.

    Raises:
        UsageError: an option out of range or of another type, or another number of prefixes than prompts.
        BadSchema: a schema that can't be satisfied, is not understood or asks for too much.
        TemplateRefuses: a chat template that can't write a prompt's messages.
        WindowExceeded: a prompt that leaves no room for a new token.
        NotFinite: a row's logits are NaN or infinite; what was streamed before was right.
        GeometryMismatch, WrongBaseModel: a prefix of another base.
    """
    decoding = Decoding(
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        beams=beams,
        length_penalty=length_penalty,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        banned=(banned,) if isinstance(banned, str) else tuple(banned),
        seed=seed,
    )
    if on_text is not None and beams > 1:
        raise UsageError("streaming and beams exclude each other: a beam's text is certain only at its end")
    if batch_size < 1:
        raise UsageError(f"batch_size is {batch_size}; expected at least 1")
    sources: list[Source] = [prompts] if isinstance(prompts, str) else list(prompts)
    listed = base.per_row(prefixes, len(sources))
    grammars = _grammars(base, schema, len(sources), decoding)
    fallback = base.raw_template if raw else (template or base.template)
    rows = [
        dataclasses.replace(_row(base, place, source, prefix, fallback, raw, max_new_tokens), grammar=grammar)
        for place, (source, prefix, grammar) in enumerate(zip(sources, listed, grammars, strict=True))
    ]
    texts = [""] * len(rows)
    done = 0
    for batch in _batches(rows, batch_size, pads_left=base.pads_left):
        for row, ids in zip(batch, _generate_batch(base, batch, decoding, on_text), strict=True):
            texts[row.place] = _text(base, row, ids, decoding.stop)
        done += len(batch)
        if on_progress is not None:
            on_progress(done, len(rows))
    return texts


def _grammars(base: BaseModel, schema: Any, rows: int, decoding: Decoding) -> list[Grammar | None]:
    """What each row's text has to follow."""
    several = isinstance(schema, Sequence) and not isinstance(schema, str)
    schemas = list(schema) if several else [schema] * rows
    if len(schemas) != rows:
        raise UsageError(f"{len(schemas)} schemas for {rows} prompts; give one for all, or one for each")
    if all(each is None for each in schemas):
        return [None] * rows
    excluded = {"beams": decoding.beams > 1, **{name: getattr(decoding, name) for name in EXCLUDED}}
    if given := [name for name, value in excluded.items() if value]:
        raise UsageError(f"schema and {given[0]} exclude each other; leave one of them out")
    compiler, made = compiler_of(base.tokenizer), dict[int, Grammar]()
    for place, each in enumerate(schemas):
        if each is not None and id(each) not in made:
            try:
                made[id(each)] = compiler.compile(json_grammar(each))
            except BadSchema as error:
                raise BadSchema(f"schema {place}: {error}" if several else str(error)) from error
    return [None if each is None else made[id(each)] for each in schemas]


def _row(
    base: BaseModel,
    place: int,
    source: Source,
    prefix: Prefix | None,
    fallback: Template,
    raw: bool,
    max_new_tokens: int,
) -> _Row:
    template = prefix.template if prefix is not None and not raw else fallback
    try:
        ids = template.source_ids(base.tokenizer, source)
    except (UsageError, TemplateRefuses) as error:
        raise type(error)(f"prompt {place}: {error}") from error
    if not ids:
        raise UsageError(f"prompt {place} is empty; give at least one token of text")
    marked = prefix.template if prefix is not None else template  # of targets: what is around them
    start_ids = tuple(marked.start_ids(base.tokenizer, base.start_id)) if base.is_encoder_decoder else ()
    base.check_ids([*ids, *start_ids], f"prompt {place}")
    length = 0 if prefix is None else prefix.length
    if (limit := base.max_text_tokens(length)) is not None:
        used = len(start_ids) - 1 if base.is_encoder_decoder else len(ids)
        if len(ids) > limit or used >= limit:
            raise WindowExceeded(
                f"prompt {place} has {len(ids)} tokens; {limit} fit behind a prefix of length {length} in "
                f"{base.name}{base.window_note}, new tokens among them. Shorten it"
            )
        max_new_tokens = min(max_new_tokens, limit - used)
    end = marked.end_id(base.tokenizer)
    ends = base.end_ids if end is None else base.end_ids | {end}
    return _Row(place, ids, prefix, ends, max_new_tokens, start_ids)


def _batches(rows: Sequence[_Row], batch_size: int, *, pads_left: bool) -> list[list[_Row]]:
    """Rows that start and end alike and may write as much, those of like length together.

    No row is cut short because its neighbour has no positions left. Where padding in front of a text would
    reach it, rows of one length only share a batch.
    """
    alike: dict[tuple[Any, ...], list[_Row]] = {}
    for row in rows:
        length = 0 if pads_left else len(row.ids)
        alike.setdefault((row.start_ids, row.end_ids, row.max_new_tokens, length), []).append(row)
    batches = []
    for group in alike.values():
        group.sort(key=lambda row: len(row.ids))
        batches += [group[start : start + batch_size] for start in range(0, len(group), batch_size)]
    return batches


@torch.no_grad()
def _generate_batch(
    base: BaseModel,
    rows: Sequence[_Row],
    decoding: Decoding,
    on_text: Callable[[int, str], None] | None,
) -> list[list[int]]:
    """New token ids of each row, the end token (and padding after it) still there.

    When half of the rows have ended, the others go on without them. Beams, streaming and caches other than
    ours stay together to the end.
    """
    prefixes = PrefixBatch.stack([row.prefix for row in rows], base.device)
    pad_id = base.tokenizer.pad_token_id
    pad_id = min(rows[0].end_ids, default=0) if pad_id is None or pad_id >= base.vocabulary else pad_id
    inputs: dict[str, Any] = {**_padded(base, rows, prefixes, pad_id)}
    start = len(rows[0].start_ids) if base.is_encoder_decoder else inputs["input_ids"].shape[1]
    if start > 1 and base.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.tensor([row.start_ids for row in rows], device=base.device)
    if base.cache_takes_prefixes:
        text_tokens = start + rows[0].max_new_tokens
        inputs[cache_argument(base.model)] = prefixed_cache(base.geometry, prefixes, text_tokens)
    apart = base.cache_takes_prefixes and decoding.beams == 1 and on_text is None
    settings = (decoding.temperature, decoding.top_p, decoding.top_k)
    sampled = SampledRows([RowSampling(*settings, row_seed(decoding.seed, row.place)) for row in rows], start)
    drawn = [sampled] if decoding.temperature >= GREEDY_BELOW else []
    following = GrammarRows([row.grammar for row in rows], rows[0].end_ids, start)
    masking = [following] if any(row.grammar for row in rows) else []
    stop = StopStrings(base.tokenizer, decoding.stop, start) if decoding.stop else None
    config = _settings(base, rows[0], decoding, pad_id)
    written: list[list[int]] = [[] for _ in rows]
    running, made = list(range(len(rows))), 0
    while True:
        ending = EndedRows(rows[0].end_ids, stop, early=apart)
        criteria = [ending] if decoding.beams == 1 else [stop] if stop else []
        finite = FiniteRows(ending)
        check = partial(_check_finite, finite, [rows[place] for place in running], decoding.beams)
        streamer = None
        if on_text is not None:
            streamer = TextStreamer(
                base.tokenizer,
                [row.place for row in rows],
                rows[0].end_ids,
                decoding.stop,
                on_text,
                check,
            )
        # The last token of the prompt predicts the first new one, and is the last of its pass.
        last = (-1,) * len(running)
        read = [len(rows[place].ids) + made for place in running]
        ahead = prefixes.lengths("decoder") if prefixes is not None else (0,) * len(running)
        attention = AttentionContext(
            prefixes=prefixes,
            in_cache=base.cache_takes_prefixes,
            target_starts=last,
            last_positions=tuple(length + text - 1 for length, text in zip(ahead, read, strict=True)),
            unpadded=not base.is_encoder_decoder and len(set(read)) == 1,
        )
        packed = is_prepared(base.model) and prepacking_pays(len(running) * decoding.beams)
        config.max_new_tokens = rows[0].max_new_tokens - made
        config.min_new_tokens = max(min(decoding.min_new_tokens, rows[0].max_new_tokens) - made, 0) or None
        with attention_context(attention), prepacked_weights(packed):
            ids_BT = _own_settings(base.model).generate(
                **inputs,
                generation_config=config,
                logits_processor=LogitsProcessorList([finite, *masking, *drawn]),
                stopping_criteria=StoppingCriteriaList(criteria),
                streamer=streamer,
            )
        check()
        for row, ids in zip(running, ids_BT.tolist(), strict=True):
            written[row] = ids[start:]
        made = ids_BT.shape[1] - start
        staying = ending.staying(len(running)) if apart and made < rows[0].max_new_tokens else []
        if not staying:
            return written
        running = [running[place] for place in staying]
        sampled.keep(staying)
        following.keep(staying)
        prefixes = prefixes.only(staying) if prefixes is not None else None
        inputs = _of_rows(inputs, ids_BT, staying)


def _check_finite(finite: FiniteRows, rows: Sequence[_Row], beams: int) -> None:
    if bad := finite.bad():
        row = min((rows[place // beams] for place in bad), key=lambda row: row.place)
        raise not_finite(f"prompt {row.place}", "logits", prefixed=row.prefix is not None)


def _settings(base: BaseModel, row: _Row, decoding: Decoding, pad_id: int) -> GenerationConfig:
    """Of transformers' `generate`, for rows like `row`; without lengths, which change as rows leave."""
    suppressed, sequences = banned_token_ids(base.tokenizer, decoding.banned, base.vocabulary)
    declared = base.model.generation_config  # of it, only what the model is never meant to say
    suppressed = [*suppressed, *(declared.suppress_tokens or ())]
    sequences = [*sequences, *(declared.bad_words_ids or ())]
    return GenerationConfig(
        do_sample=False,  # sampling is greedy choice after the row's own noise (Gumbel-max)
        num_beams=decoding.beams,
        length_penalty=decoding.length_penalty,
        early_stopping=False,
        eos_token_id=sorted(row.end_ids) or None,
        pad_token_id=pad_id,
        decoder_start_token_id=row.start_ids[0] if row.start_ids else None,
        suppress_tokens=suppressed or None,
        bad_words_ids=sequences or None,
    )


def _of_rows(inputs: dict[str, Any], ids_BT: torch.Tensor, places: list[int]) -> dict[str, Any]:
    """What `generate` needs to go on with some of the rows, from what it was given and has written."""
    chosen = torch.tensor(places, device=ids_BT.device)
    new = ids_BT.shape[1] - inputs["input_ids"].shape[1]
    kept = {name: part[chosen] for name, part in inputs.items() if torch.is_tensor(part)}
    kept["input_ids"] = ids_BT[chosen]
    kept["attention_mask"] = torch.nn.functional.pad(kept["attention_mask"], (0, new), value=1)
    if "position_ids" in kept:
        steps_1T = torch.arange(1, new + 1, device=ids_BT.device)[None]
        positions_BT = kept["position_ids"]
        kept["position_ids"] = torch.cat([positions_BT, positions_BT[:, -1:] + steps_1T], dim=1)
    caches = {name: part for name, part in inputs.items() if isinstance(part, Cache)}
    for cache in caches.values():
        cache.batch_select_indices(chosen)
    return {**kept, **caches}


def _padded(
    base: BaseModel, rows: Sequence[_Row], prefixes: PrefixBatch | None, pad_id: int
) -> dict[str, torch.Tensor]:
    """Prompts padded on the left, where a decoder's text must end together; an encoder's on the right."""
    ids_BT, mask_BT, steps_BT = pad_rows(
        [row.ids for row in rows],
        left=not base.is_encoder_decoder,
        pad_id=pad_id,
        device=torch.device("cpu"),
    )
    inputs: dict[str, Any] = {"input_ids": ids_BT, "attention_mask": mask_BT.long()}
    if base.takes_positions:
        offsets_B = torch.tensor(prefixes.lengths("decoder") if prefixes else [0] * len(rows))
        inputs["position_ids"] = (steps_BT + offsets_B[:, None]).clamp(min=0)
    return {name: tensor.to(base.device) for name, tensor in inputs.items()}


def _own_settings(model: Any) -> Any:
    """The same model without its checkpoint's generation settings.

    transformers takes from them whatever a call leaves out: forced first and last tokens, suppressed
    tokens, another cache. A prefix was trained without any of it.
    """
    own = copy.copy(model)
    own.generation_config = GenerationConfig()
    return own


def _text(base: BaseModel, row: _Row, ids: list[int], stop: tuple[str, ...]) -> str:
    ends = [place for place, token in enumerate(ids) if token in row.end_ids]
    text: str = base.tokenizer.decode(ids[: ends[0]] if ends else ids, skip_special_tokens=True)
    return text[: first_stop(text, stop)]
