"""How tokens are chosen, and how they become text: what each row needs to be generated for itself.

Shapes: B rows of the batch (times beams), R of them that are sampled, N of those with top_p, K candidates,
V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import LogitsProcessor, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from foreword.errors import UsageError
from foreword.validation import LARGEST_SEED, SMALLEST_SEED, Setting, check_fields, check_whole_text

UNFINISHED = "\ufffd"
"""What a tokenizer writes for bytes that are no whole character, or not yet."""

GREEDY_BELOW = 1e-5
"""Temperature below which the likeliest token is taken: logits over less would leave float32."""

SEEDS = 2**63
GOLDEN = 0x9E3779B97F4A7C15
"""2^64 divided by the golden ratio, odd: its multiples modulo 2^64 (and 2^63) are all different."""

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
"""How vocabularies with byte fallback (Llama 2, Mistral, Gemma, Phi-3) name the token of one byte."""

_token_texts: WeakKeyDictionary[Any, list[str]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: at most this many, fewer where the window ends.
        min_new_tokens: no end token comes before this many; a stop text ends a row before, too.
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
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    beams: int = 1
    length_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    banned: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {self.max_new_tokens}; expected at least 1")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise UsageError(
                f"min_new_tokens is {self.min_new_tokens}; expected 0 or more, and at most max_new_tokens, "
                f"which is {self.max_new_tokens}"
            )
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"temperature is {self.temperature}; expected 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p}; expected a share above 0 and up to 1")
        if self.top_k < 0 or self.beams < 1:
            raise UsageError(f"top_k is {self.top_k}, beams is {self.beams}; expected 0 or more, 1 or more")
        if self.beams > 1 and self.temperature > 0:
            raise UsageError("beams and temperature exclude each other; set one of them")
        Setting("", "seed", type=int, ge=SMALLEST_SEED, le=LARGEST_SEED).check(self.seed)
        if "" in self.stop or "" in self.banned:
            raise UsageError("stop and banned texts must not be empty")
        for name in ("stop", "banned"):
            for text in getattr(self, name):
                check_whole_text(name, text)


@dataclass(frozen=True)
class RowSampling:
    """How one row's tokens are chosen: see `Decoding`. `seed` is the row's own: see `row_seed`."""

    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0


def row_seed(seed: int, place: int) -> int:
    """The seed of the row at a place of a call or request; no two places of one have the same."""
    return (seed + place * GOLDEN) % SEEDS


class TokenSampler:
    """Chooses the next token of every row in one pass, on the logits' device, which nothing leaves.

    A row's choice is a function of its logits, its settings, its seed and the number of the token alone.
    """

    def __init__(self, rows: Sequence[RowSampling], device: torch.device) -> None:
        """`rows`: the settings of all B rows, in their order."""
        places = [place for place, row in enumerate(rows) if row.temperature >= GREEDY_BELOW]
        drawn = [rows[place] for place in places]
        # All settings of rows that are drawn: what the loops over tokens need is on the device already.
        self._drawn = len(drawn)
        self._places_R = None if len(drawn) == len(rows) else torch.tensor(places, device=device)
        self._seeds_R = torch.tensor([_signed(row.seed) for row in drawn], device=device)
        self._temperature_R1 = torch.tensor([[row.temperature] for row in drawn], device=device)
        self._most = max((row.top_k for row in drawn), default=0)
        last = [[row.top_k - 1 if row.top_k else -1] for row in drawn]
        self._last_R1 = torch.tensor(last, device=device)
        nucleus = [place for place, row in enumerate(drawn) if row.top_p < 1]
        self._nucleus_N = torch.tensor(nucleus, device=device) if nucleus else None
        self._beyond_N1 = torch.tensor([[1 - drawn[place].top_p] for place in nucleus], device=device)

    def choose(self, logits_BV: torch.Tensor, steps_B: torch.Tensor) -> torch.Tensor:
        """The rows' next tokens `[B]`, from float32 logits; `steps_B` are the tokens that each has so far."""
        chosen_B = logits_BV.argmax(-1)
        if not self._drawn:
            return chosen_B
        if self._places_R is None:
            return self.noisy(logits_BV, steps_B).argmax(-1)
        drawn_R = self.noisy(logits_BV[self._places_R], steps_B[self._places_R]).argmax(-1)
        return chosen_B.index_copy(0, self._places_R, drawn_R)

    def noisy(self, logits_RV: torch.Tensor, steps_R: torch.Tensor) -> torch.Tensor:
        """Scores of which the largest is a sample: argmax(scores + Gumbel noise) follows softmax(scores).

        Of the R rows that are drawn. Drawing for the batch as a whole, as multinomial does, would make a
        row depend on its neighbours.
        """
        return self.warped(logits_RV) - exponential_noise(self._seeds_R, steps_R, logits_RV.shape[-1]).log()

    def warped(self, logits_RV: torch.Tensor) -> torch.Tensor:
        """Logits by temperature, top-k and top-p in the order and with the ties of transformers' warpers."""
        scores_RV = logits_RV / self._temperature_R1
        if self._most:
            best_RK = scores_RV.topk(min(self._most, scores_RV.shape[-1])).values
            last_R1 = self._last_R1.clamp(max=best_RK.shape[-1] - 1)
            worst_R1 = best_RK.gather(1, last_R1.clamp(min=0)).masked_fill(last_R1 < 0, -torch.inf)
            scores_RV = scores_RV.masked_fill(scores_RV < worst_R1, -torch.inf)
        if self._nucleus_N is None:
            return scores_RV
        ascending_NV, order_NV = scores_RV[self._nucleus_N].sort(-1)
        removed_NV = ascending_NV.softmax(-1).cumsum(-1) <= self._beyond_N1
        removed_NV[:, -1] = False  # the likeliest stays
        kept_NV = ascending_NV.masked_fill(removed_NV, -torch.inf)
        nucleus_NV = torch.empty_like(kept_NV).scatter_(1, order_NV, kept_NV)
        return scores_RV.index_copy(0, self._nucleus_N, nucleus_NV)


def exponential_noise(seeds_B: torch.Tensor, steps_B: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Draws of the standard exponential distribution, `[B, V]` in float32: each a function of its row's seed,
    its row's step and its place in the vocabulary alone.

    A counter-based generator (SplitMix64: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
    generators"), so that no state has to be kept for a row and all are computed at once. The random bits are
    the same on every device and in every batch; their logarithm, in float32, can differ in its last place
    between devices.
    """
    keys_B = _mixed(_mixed(seeds_B) + steps_B)
    places_V = torch.arange(1, vocabulary + 1, device=seeds_B.device) * _signed(GOLDEN)
    bits_BV = _mixed(keys_B[:, None] + places_V)
    # 53 bits, never 0. float32 is fine near 0, where the draws are that become the largest Gumbel noise.
    uniform_BV = (_shifted(bits_BV, 11) | 1).to(torch.float32).mul_(2.0**-53)
    return torch.log1p(-uniform_BV).neg_()


def _mixed(bits: torch.Tensor) -> torch.Tensor:
    """SplitMix64's output function of every element; int64, whose products wrap like unsigned ones."""
    bits = (bits ^ _shifted(bits, 30)).mul_(_signed(0xBF58476D1CE4E5B9))
    bits = (bits ^ _shifted(bits, 27)).mul_(_signed(0x94D049BB133111EB))
    return bits ^ _shifted(bits, 31)


def _shifted(bits: torch.Tensor, by: int) -> torch.Tensor:
    """Shifted right with zeros coming in: torch's own shift brings copies of the sign."""
    return (bits >> by).bitwise_and_((1 << (64 - by)) - 1)


def _signed(bits: int) -> int:
    """The int64 that has the lowest 64 bits of a whole number."""
    return (bits + 2**63) % 2**64 - 2**63


class SampledRows(LogitsProcessor):
    """Scores of which transformers' greedy choice is each row's own sample."""

    def __init__(self, rows: Sequence[RowSampling], start: int) -> None:
        """`start`: tokens of a row in front of its first new one."""
        self._rows = list(rows)
        self._start = start
        self._sampler: TokenSampler | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self._sampler is None:
            self._sampler = TokenSampler(self._rows, scores.device)
        step_1 = torch.full((1,), input_ids.shape[1] - self._start, device=scores.device)
        return self._sampler.noisy(scores, step_1)

    def keep(self, places: Sequence[int]) -> None:
        """Of the rows of the batch, these go on."""
        self._rows, self._sampler = [self._rows[place] for place in places], None


class StopStrings(StoppingCriteria):
    """Ends a row when its new text contains one of the stop texts."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], start: int) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._start = start
        # A stop text of n characters is spelt by at most that many tokens of UTF-8 bytes each.
        self._tail = max(len(word.encode()) for word in stop) + 1

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        new_ids = input_ids[:, self._start :][:, -self._tail :].tolist()
        texts = self._tokenizer.batch_decode(new_ids, skip_special_tokens=True)
        done = [any(word in text for word in self._stop) for text in texts]
        return torch.tensor(done, device=input_ids.device)


class EndedRows(StoppingCriteria):
    """Ends rows, and the call of `generate` as soon as half of its rows have ended; not for beams."""

    def __init__(self, end_ids: frozenset[int], stop: StopStrings | None, *, early: bool = True) -> None:
        """`early`: whether the call ends before the last row does."""
        self._end_ids = torch.tensor(sorted(end_ids), dtype=torch.long)
        self._stop = stop
        self._early = early
        self.ended_B: torch.Tensor | None = None  # before the first token: none

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self._end_ids = self._end_ids.to(input_ids.device)  # copied at the first token alone
        ended_B = torch.isin(input_ids[:, -1], self._end_ids)
        if self._stop is not None:
            ended_B |= self._stop(input_ids, scores, **kwargs)
        if self.ended_B is not None:
            ended_B |= self.ended_B
        self.ended_B = ended_B
        return ended_B | (2 * ended_B.sum() >= len(ended_B)) if self._early else ended_B

    def staying(self, rows: int) -> list[int]:
        """Places of the rows that have not ended, of `rows`."""
        ended = [False] * rows if self.ended_B is None else self.ended_B.tolist()
        return [place for place in range(rows) if not ended[place]]


class FiniteRows(LogitsProcessor):
    """Notes the rows of which some token was to be chosen by logits that are no numbers.

    On the logits' device, which nothing leaves before `bad` is asked.
    """

    def __init__(self, ending: EndedRows) -> None:
        """`ending`: what follows the text of a row that it has ended does not count."""
        self._ending = ending
        self._bad_B: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        # The largest of any NaN is NaN. Where every token is banned, it is minus infinity.
        bad_B = ~(scores.amax(-1) < torch.inf)
        if self._ending.ended_B is not None:
            bad_B &= ~self._ending.ended_B
        self._bad_B = bad_B if self._bad_B is None else self._bad_B | bad_B
        return scores

    def bad(self) -> list[int]:
        """Places of such rows in the batch (times beams)."""
        return [] if self._bad_B is None else self._bad_B.nonzero().flatten().tolist()


class Detokenizer:
    """The growing text of one row, handed out as soon as it is certain.

    The same text as of the whole row decoded at its end, cut at the first stop text, in pieces that never
    hold half a character or the beginning of a stop text.

    Attributes:
        stopped: a stop text came: nothing comes behind it.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._cleans = _takes_out_spaces(tokenizer)
        self._ids: list[int] = []
        # Only the tokens since `_from` are decoded: those in front of `_read` are handed out already and
        # stay for one round, because a tokenizer may spell a token differently at the very start.
        self._from = 0
        self._read = 0
        self._in_bytes = False
        self._held = ""

    def add(self, token: int | None, *, final: bool = False) -> str:
        """What becomes certain with the next token (None: no more of the text), or because it is the last."""
        if token is not None:
            self._ids.append(token)
        if token is not None or final:
            self._held += self._decoded(final=final)
        if (cut := first_stop(self._held, self._stop)) is not None:
            self._held, self.stopped = self._held[:cut], True
        certain = len(self._held) if final or self.stopped else len(self._held) - self._may_stop()
        text, self._held = self._held[:certain], self._held[certain:]
        return text

    def _decoded(self, *, final: bool) -> str:
        """Text that the newest tokens add; none while later ones may change it.

        Three things do that: a character of which bytes are missing; a run of byte tokens, which is decoded
        as a whole and comes to nothing but replacement characters if it is no UTF-8 in the end; spaces that
        the tokenizer takes out in front of punctuation.
        """
        if not final and self._is_byte(self._ids[-1]):
            self._in_bytes = True
            return ""
        before = self._text(self._ids[self._from : self._read])
        end = len(self._ids)
        now = self._text(self._ids[self._from :])
        if not final:
            if not self._goes_on(before, now):
                return ""
            if self._in_bytes and now == self._text(self._ids[self._from : -1]):
                return ""  # a special token, which is skipped: the run goes on behind it
            self._in_bytes = False
            if self._cleans:  # only what is in front of the newest word
                end -= 1
                now = self._text(self._ids[self._from : end])
                if not self._begins_a_word() or not self._goes_on(before, now):
                    return ""
        self._from, self._read = self._read, end
        return now[len(before) :]

    @staticmethod
    def _goes_on(before: str, now: str) -> bool:
        return len(now) > len(before) and not now.endswith(UNFINISHED)

    def _is_byte(self, token: int) -> bool:
        """Whether the token is one byte of a character that the vocabulary lacks (byte fallback)."""
        return bool(_BYTE_TOKEN.fullmatch(str(self._tokenizer.convert_ids_to_tokens(token))))

    def _begins_a_word(self) -> bool:
        """Whether a space comes with the newest token, and what is in front of it can't change any more.

        Every text of which transformers takes out spaces begins with one, and only " ' " ends with one.
        """
        before, now = (
            self._text(self._ids[self._from : end], clean_up_tokenization_spaces=False)
            for end in (len(self._ids) - 1, len(self._ids))
        )
        return now[len(before) :].startswith(" ") and not before.endswith((" ", "'"))

    def _text(self, ids: Sequence[int], **options: bool) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, **options)) if ids else ""

    def _may_stop(self) -> int:
        """Characters at the end that may be the beginning of a stop text."""
        return max((beginning_at_end(self._held, word) for word in self._stop), default=0)


def _takes_out_spaces(tokenizer: Any) -> bool:
    """Whether a tokenizer takes out spaces in front of punctuation; transformers 5 leaves those of BPE."""
    if not getattr(tokenizer, "clean_up_tokenization_spaces", False):
        return False
    model = type(getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)).__name__
    asked = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
    return model != "BPE" or bool(getattr(tokenizer, asked, True))


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the first stop text in `text` begins; None: there is none."""
    places = [place for word in stop if (place := text.find(word)) >= 0]
    return min(places, default=None)


def beginning_at_end(text: str, word: str) -> int:
    """Characters at the end of `text` that `word` begins with, as many as there are; not the whole word."""
    place = max(0, len(text) - len(word) + 1)
    while (place := text.find(word[0], place)) >= 0:
        if word.startswith(text[place:]):
            return len(text) - place
        place += 1
    return 0


class TextStreamer(BaseStreamer):
    """Hands out each row's text as it grows, through transformers' interface for streaming."""

    def __init__(
        self,
        tokenizer: Any,
        places: Sequence[int],
        end_ids: frozenset[int],
        stop: Sequence[str],
        on_text: Callable[[int, str], None],
        check: Callable[[], None],
    ) -> None:
        """`check`: called before tokens are looked at; raises where they mean nothing."""
        self._places = places
        self._check = check
        self._end_ids = end_ids
        self._on_text = on_text
        self._began = False
        self._texts = [Detokenizer(tokenizer, stop) for _ in places]
        self._ended = [False] * len(places)

    def put(self, value: torch.Tensor) -> None:
        """The next token of every row; first comes what the decoder begins with, no part of the text.

        That is the prompt, or an encoder-decoder's start token, which for BART's kind is the end token, too.
        """
        if not self._began:
            self._began = True
            return
        self._check()
        for row, token in enumerate(value.flatten().tolist()):
            ends = token in self._end_ids
            self._send(row, None if ends else token, final=ends)

    def end(self) -> None:
        """No more tokens: what was held back is certain now."""
        for row in range(len(self._places)):
            self._send(row, None, final=True)

    def _send(self, row: int, token: int | None, *, final: bool) -> None:
        if self._ended[row]:
            return
        if text := self._texts[row].add(token, final=final):
            self._on_text(self._places[row], text)
        self._ended[row] = final or self._texts[row].stopped


def banned_token_ids(
    tokenizer: Any, banned: Sequence[str], vocabulary: int
) -> tuple[list[int], list[list[int]]]:
    """Tokens never to be chosen, and sequences never to be completed, so that no text of `banned` appears.

    Covers every single token that contains a banned text, and the tokenizer's own spellings of it over
    several tokens, with and without a space in front. Added tokens from `vocabulary` on have no embedding and
    are never chosen: they need no ban.
    """
    if not banned:
        return [], []
    texts = _texts_of_tokens(tokenizer)
    single = [n for n, text in enumerate(texts[:vocabulary]) if any(word in text for word in banned)]
    spelt = [
        tokenizer(variant, add_special_tokens=False)["input_ids"]
        for word in banned
        for variant in (word, " " + word)
    ]
    return single, [ids for ids in spelt if len(ids) > 1 and max(ids) < vocabulary]


def _texts_of_tokens(tokenizer: Any) -> list[str]:
    if tokenizer not in _token_texts:
        _token_texts[tokenizer] = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return _token_texts[tokenizer]
