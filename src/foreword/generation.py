"""Generation: rows of (prompt, prefix) to text, through transformers' own `generate`.

transformers decodes; this file gives it what it does not know: which prefix each row has, where
each row's text begins to count, what ends each row, and randomness that belongs to a row.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from foreword.attention import Attending, attending
from foreword.base import BaseModel, PrefixesArgument
from foreword.cache import prefixed_cache
from foreword.decoding import NoiseOfTheRow, StopOfTheRow, TextOfTheRow, banned_token_ids, sampling_warpers
from foreword.errors import UsageError, WindowExceeded
from foreword.packing import is_prepared, packed_weights
from foreword.packing_trial import packing_pays
from foreword.prefix import Prefix
from foreword.row_prefixes import RowPrefixes
from foreword.template import RAW, Source, Template


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: at most this many, fewer where the window ends.
        temperature: 0 takes the likeliest token; above, samples.
        top_p, top_k: sample among the likeliest tokens of this share, of this number (0: all).
        beams: number of beams; 1 for none. Excludes sampling.
        length_penalty: exponent of the length that beam scores are divided by.
        stop: texts that end a row; they are not part of the result.
        banned: texts that no row contains: no token that has one of them in it, and none of its usual
            ways to be spelt by several tokens.
        seed: of sampling. A row's text depends on the seed and its place in the call, never on the
            other rows.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    beams: int = 1
    length_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    banned: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {self.max_new_tokens}; expected at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"temperature is {self.temperature}; expected 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p}; expected a share above 0 and up to 1")
        if self.top_k < 0 or self.beams < 1:
            raise UsageError(f"top_k is {self.top_k}, beams is {self.beams}; expected 0 or more, 1 or more")
        if self.beams > 1 and self.temperature > 0:
            raise UsageError("beams and temperature exclude each other; set one of them")
        if "" in self.stop or "" in self.banned:
            raise UsageError("stop and banned texts must not be empty")


@dataclass(frozen=True)
class _Row:
    place: int
    ids: list[int]
    prefix: Prefix | None
    end_ids: frozenset[int]
    room: int


def generate(
    base: BaseModel,
    prompts: Sequence[Source] | str,
    prefixes: PrefixesArgument = None,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    beams: int = 1,
    length_penalty: float = 1.0,
    stop: Sequence[str] | str = (),
    banned: Sequence[str] | str = (),
    seed: int = 0,
    template: Template | None = None,
    raw: bool = False,
    batch_size: int = 32,
    on_text: Callable[[int, str], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Text after each prompt, each row under its own prefix.

    Args:
        prompts: B sources (text, or chat messages for a prefix with a chat template).
        prefixes: one for all, or one (or None) per row.
        template: for rows without a prefix (default: `base.template`); rows with one use the
            prefix's own, so that they see exactly what training saw.
        raw: take every prompt as it is, without any template.
        batch_size: rows in one batch.
        on_text: streaming: called with (row, piece of text) as soon as the piece is certain. Not
            with beams, whose text is certain only at the end.
        on_progress: called after each batch with the rows done, and all rows.
        max_new_tokens, temperature, top_p, top_k, beams, length_penalty, stop, banned, seed: see
            `Decoding`.

    Returns:
        One text per prompt, without the prompt, the end token and the stop text.

    Raises:
        UsageError: an option out of range, or another number of prefixes than prompts.
        WindowExceeded: a prompt that leaves no room for a new token.
        GeometryMismatch, WrongBaseModel: a prefix of another base.
    """
    decoding = Decoding(
        max_new_tokens=max_new_tokens,
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
    rows = [
        _row(base, place, source, prefix, RAW if raw else (template or base.template), raw, max_new_tokens)
        for place, (source, prefix) in enumerate(zip(sources, listed, strict=True))
    ]
    texts = [""] * len(rows)
    done = 0
    for batch in _batches(rows, batch_size):
        for row, ids in zip(batch, _generate_batch(base, batch, decoding, on_text), strict=True):
            texts[row.place] = _text(base, row, ids, decoding.stop)
        done += len(batch)
        if on_progress is not None:
            on_progress(done, len(rows))
    return texts


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
    ids = template.source_ids(base.tokenizer, source)
    if not ids:
        raise UsageError(f"prompt {place} is empty; give at least one token of text")
    length = 0 if prefix is None else prefix.length
    room = max_new_tokens
    if (limit := base.text_limit(length)) is not None:
        used = 0 if base.is_encoder_decoder else len(ids)
        if len(ids) > limit or used >= limit:
            raise WindowExceeded(
                f"prompt {place} has {len(ids)} tokens; {limit} fit behind a prefix of length {length} in "
                f"{base.name}, new tokens among them. Shorten it"
            )
        room = min(room, limit - used)
    end = (prefix.template if prefix is not None else template).end_id(base.tokenizer)
    ends = base.end_ids if end is None else base.end_ids | {end}
    return _Row(place, ids, prefix, ends, room)


def _batches(rows: Sequence[_Row], batch_size: int) -> list[list[_Row]]:
    """Rows that end alike and have the same room, those of like length together.

    A row's room is its own: no row is cut short because a neighbour's window is full.
    """
    alike: dict[tuple[frozenset[int], int], list[_Row]] = {}
    for row in rows:
        alike.setdefault((row.end_ids, row.room), []).append(row)
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
    """New token ids of each row, the end token (and padding after it) still there."""
    prefixes = RowPrefixes.stack([row.prefix for row in rows], base.device)
    pad_id = base.tokenizer.pad_token_id
    pad_id = min(rows[0].end_ids, default=0) if pad_id is None else pad_id
    inputs: dict[str, Any] = {**_padded(base, rows, prefixes, pad_id)}
    processors = LogitsProcessorList()
    if decoding.temperature > 0:
        processors.extend(sampling_warpers(decoding.temperature, decoding.top_k, decoding.top_p))
        processors.append(NoiseOfTheRow(decoding.seed, [row.place for row in rows]))
    start = 1 if base.is_encoder_decoder else inputs["input_ids"].shape[1]
    stopping = StoppingCriteriaList()
    if decoding.stop:
        stopping.append(StopOfTheRow(base.tokenizer, decoding.stop, start))
    suppressed, sequences = banned_token_ids(base.tokenizer, decoding.banned)
    declared = base.model.generation_config  # of it, only what the model is never meant to say
    suppressed = [*suppressed, *(declared.suppress_tokens or ())]
    sequences = [*sequences, *(declared.bad_words_ids or ())]
    config = GenerationConfig(
        max_new_tokens=rows[0].room,
        do_sample=False,  # sampling is greedy choice after the row's own noise (Gumbel-max)
        num_beams=decoding.beams,
        length_penalty=decoding.length_penalty,
        early_stopping=False,
        eos_token_id=sorted(rows[0].end_ids) or None,
        pad_token_id=pad_id,
        decoder_start_token_id=base.start_id if base.is_encoder_decoder else None,
        suppress_tokens=suppressed or None,
        bad_words_ids=sequences or None,
    )
    streamer = None
    if on_text is not None:
        streamer = TextOfTheRow(
            base.tokenizer,
            [row.place for row in rows],
            rows[0].end_ids,
            decoding.stop,
            on_text,
            skip=0 if base.is_encoder_decoder else 1,
        )
    room = inputs["input_ids"].shape[1] + rows[0].room
    if base.cache_takes_prefixes:
        inputs["past_key_values"] = prefixed_cache(base.geometry, prefixes, room)
    # The last token of the prompt predicts the first new one, and is the last of its pass.
    last = (-1,) * len(rows)
    attention = Attending(prefixes=prefixes, in_cache=base.cache_takes_prefixes, answers_from=last)
    packed = is_prepared(base.model) and packing_pays(len(rows) * decoding.beams)
    with attending(attention), packed_weights(packed):
        ids_BT = _own_settings(base.model).generate(
            **inputs,
            generation_config=config,
            logits_processor=processors,
            stopping_criteria=stopping,
            streamer=streamer,
        )
    return [ids[start:] for ids in ids_BT.tolist()]


def _padded(
    base: BaseModel, rows: Sequence[_Row], prefixes: RowPrefixes | None, pad_id: int
) -> dict[str, torch.Tensor]:
    """Prompts padded on the left, where a decoder's text must end together; an encoder's on the right."""
    longest = max(len(row.ids) for row in rows)
    gaps_B = torch.tensor([0 if base.is_encoder_decoder else longest - len(row.ids) for row in rows])
    lengths_B = torch.tensor([len(row.ids) for row in rows])
    steps_BT = torch.arange(longest)[None] - gaps_B[:, None]
    ids_BT = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    for index, row in enumerate(rows):
        ids_BT[index, gaps_B[index] : gaps_B[index] + len(row.ids)] = torch.tensor(row.ids)
    mask_BT = (steps_BT >= 0) & (steps_BT < lengths_B[:, None])
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
    cuts = [place for word in stop if (place := text.find(word)) >= 0]
    return text[: min(cuts)] if cuts else text
