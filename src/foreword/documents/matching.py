"""Keys and values that stand for a document at a fraction of its length, fitted by least squares.

No gradient and no training: of the document's own keys each layer keeps those that reference texts attend to
most, and changes them and their values so that attention over the few gives those texts what attention over
all of them gives. The idea is Attention Matching (arXiv 2602.16284); here a prefix holds plain keys and
values, so what that paper stores as a bias for each key is folded into the key.

Reference texts are read behind the prefix, once. A layer's keys and values are fitted when the pass reaches
it, so its queries are those that a reader makes who has the fitted ones in all layers before. For a query q
and the reader's own text, attention over the document has an output o and a mass m, its share of the softmax:

1. T keys become P: the first token, which is the attention sink, and those of the largest sum of squared
   attention weights. Each head chooses its own.
2. A weight w >= 0 for each chosen key, so that the weighted P have the mass m (least squares). log w is added
   to the key's products with queries as a step along u, the direction with q . u = 1 for all queries as
   nearly as may be (least squares, too: the queries of a head have much in common, so little is missing).
3. Values so that the output is o (least squares, with a small ridge that keeps them near the chosen ones).

All keys are moved by P - T positions, some to negative ones: a reader's text starts at P where it would start
at T, and rotary embeddings know differences of positions alone. So every distance stays what it was.

Shapes: L layers, H key/value heads, Q query heads, G query heads that share a key/value head, T document
tokens, N reference tokens, M = G * N queries of a key/value head, P prefix length, D head size.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from foreword.base.attention import (
    AttentionCall,
    AttentionContext,
    LayerInfo,
    attention_context,
    capture_kv,
)
from foreword.base.base_model import BaseModel
from foreword.base.batch import PackedLayout
from foreword.base.compatibility import sliding_windows
from foreword.base.loading import choose_kernel
from foreword.base.prefix_batch import KeyValues, PrefixBatch
from foreword.encoding import EncodedExample
from foreword.errors import UnsupportedArchitecture, UsageError

PIECE_TOKENS = 64
"""Of the pieces of the document that are read again where no reference is given."""

REFERENCE_TOKENS = 1024
"""Of all pieces or reference texts together; time grows with them."""

WEIGHT_STEPS = 100
"""Steps towards the keys' weights; the mass has converged long before."""

LARGEST_BIAS = 3.0
"""Of log w: what stands for more than 20 keys of its kind would be far from each of them."""

RIDGE = 1e-3
"""Of every least squares problem, as a share of the mean of its matrix's diagonal."""

TINY = 1e-9
"""Keeps quotients and logarithms finite."""

SCORES = 1 << 19
"""Products of queries and keys at once: what fits into a core's cache."""

FIT_WORK = 1_000_000_000
"""Queries times P * P of a fit at the most: with more keys, every n-th query is left out."""


@torch.no_grad()
def matched_key_values(
    base: BaseModel,
    document_ids: Sequence[int],
    length: int,
    *,
    reference: Sequence[Sequence[int]] | None = None,
    seed: int = 0,
    on_layer: Callable[[int], None] | None = None,
) -> KeyValues:
    """Keys and values by place (prefix_sizes.py) of a document's prefix of `length`, float32 on the CPU.

    Args:
        document_ids: T tokens, all that stand in front of the text; the first is the attention sink.
        length: P, of them.
        reference: texts as they would stand behind the document, such as questions with answers, of which
            about `REFERENCE_TOKENS` tokens are read; None: pieces of the document, read again.
        seed: draws the texts, or the pieces.
        on_layer: called with the number of layers that are fitted, as each is.

    Raises:
        UsageError: a length out of range, reference texts without tokens, or a token that the base
            does not have.
        WindowExceeded: the base has no positions left behind so many.
        UnsupportedArchitecture: an encoder-decoder, a hybrid, layers with a sliding window, or keys that
            can't be moved.
    """
    ids = list(document_ids)
    check_can_match(base)
    if not 1 <= length <= len(ids):
        raise UsageError(
            f"length is {length}, but the document has {len(ids)} tokens, its template's included; expected "
            f"1 to {len(ids)}"
        )
    texts = _pieces(ids, seed) if reference is None else _drawn(reference, seed)
    if not texts:
        raise UsageError("the reference texts have no tokens; expected at least one")
    base.check_ids([*ids, *(token for text in texts for token in text)], "a document or a reference text")
    base.max_text_tokens(len(ids))
    ids_1T = torch.tensor([ids], device=base.device)
    inputs = {"input_ids": ids_1T, "attention_mask": torch.ones_like(ids_1T)}
    # Without the head: over a large vocabulary its logits of all tokens cost a fifth of the pass.
    key_values = capture_kv(base.model.base_model, inputs)[1]
    if length == len(ids):
        return key_values
    moved = _layers(key_values)
    moved = [
        (rotation.move(key_HTD, length - len(ids)), value_HTD)
        for rotation, (key_HTD, value_HTD) in zip(base.key_rotations, moved, strict=True)
    ]
    chosen = {
        place: tuple(part[..., :length, :].clone() for part in pair) for place, pair in key_values.items()
    }
    return _fit_along(base, texts, moved, chosen, on_layer)  # type: ignore[arg-type]


def check_can_match(base: BaseModel) -> None:
    """Refuse a base whose attention over a document is not a softmax over movable keys in every layer.

    Raises:
        UnsupportedArchitecture: says why.
    """
    if (why := _why_not(base)) is not None:
        raise UnsupportedArchitecture(
            f"keys and values of a document can't be matched for {base.shown_name}: {why}. Take another "
            "method"
        )
    _ = base.key_rotations  # raises where keys can't be moved


def can_match(base: BaseModel) -> bool:
    """Whether `check_can_match` lets a base pass."""
    try:
        check_can_match(base)
    except UnsupportedArchitecture:
        return False
    return True


def _why_not(base: BaseModel) -> str | None:
    if base.is_encoder_decoder:
        return "it is an encoder-decoder, whose decoder does not stand behind the document"
    if base.is_hybrid:
        return "it is a hybrid: some layers keep a state of the document that no keys and values hold"
    if windowed := sliding_windows(base.model):
        window = max(module.foreword_layer.sliding_window for module in windowed)
        return f"{len(windowed)} of its layers have a sliding window and see no more than {window} tokens"
    if choose_kernel(base.model.config, type(base.model)) == "eager":
        return "its attention is more than a softmax of products (a soft cap, or a weight for no token)"
    return None


def _pieces(ids: Sequence[int], seed: int) -> list[list[int]]:
    """Pieces of a document at even distances, the first at a place that the seed draws."""
    if len(ids) <= PIECE_TOKENS:
        return [list(ids)]
    last = len(ids) - PIECE_TOKENS
    count = max(1, min(REFERENCE_TOKENS, len(ids)) // PIECE_TOKENS)
    step = (last + 1) / count
    first = random.Random(seed).random() * step
    starts = [int(first + number * step) for number in range(count)]
    return [list(ids[start : start + PIECE_TOKENS]) for start in starts]


def _drawn(reference: Sequence[Sequence[int]], seed: int) -> list[list[int]]:
    """Texts with tokens in an order that the seed draws, until there are tokens enough."""
    texts = [list(text) for text in reference if len(text)]
    random.Random(seed).shuffle(texts)
    ends = itertools.accumulate(map(len, texts))
    return [text for text, end in zip(texts, ends, strict=True) if end - len(text) < REFERENCE_TOKENS]


def _layers(key_values: KeyValues) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values `[H, T, D]` of each layer, whether or not they are one tensor."""
    if "decoder" in key_values:
        return list(zip(*key_values["decoder"], strict=True))
    return [key_values[f"decoder.{layer}"] for layer in range(len(key_values))]


# -- the pass over the reference texts ---------------------------------------------------------------


def _fit_along(
    base: BaseModel,
    texts: Sequence[Sequence[int]],
    document: Sequence[tuple[torch.Tensor, torch.Tensor]],
    start: KeyValues,
    on_layer: Callable[[int], None] | None,
) -> KeyValues:
    """One pass over the texts behind a prefix of which each layer is fitted just before it is read.

    Args:
        document: keys and values `[H, T, D]` of each layer, the keys moved to where the prefix's reader has
            them.
        start: of the prefix's length; what it holds does not matter.
    """
    device = base.device
    on_device = {place: (key.to(device), value.to(device)) for place, (key, value) in start.items()}
    rows = [EncodedExample(tuple(text[:1]), (*text[1:], 0)) for text in texts]  # the last predicts nothing
    prefixes = PrefixBatch.from_tensors([on_device], [0] * len(rows))
    batch = base.batch(rows, prefixes, "flat")
    assert batch.layout is not None  # movable keys are movable texts
    layout, block = batch.layout, prefixes.blocks["decoder"]
    fitted: set[int] = set()

    def fit(call: AttentionCall) -> None:
        layer: LayerInfo = call.module.foreword_layer  # type: ignore[assignment]
        if layer.layer in fitted:  # it shares the keys of one before it
            return
        fitted.add(layer.layer)
        key_HTD, value_HTD = (part.to(call.query.device) for part in document[layer.layer])
        reader = Readers.of_call(call, layout, key_HTD.shape[0])
        own_key, own_value = block.layers[layer.layer]
        key_HPD, value_HPD = match_layer(reader, key_HTD, value_HTD, block.longest)
        own_key[0].copy_(key_HPD)
        own_value[0].copy_(value_HPD)
        if on_layer is not None:
            on_layer(len(fitted))

    context = AttentionContext(
        prefixes=prefixes,
        layout=layout,
        target_starts=batch.target_starts,
        last_positions=batch.last_positions,
        record=fit,
    )
    with attention_context(context):
        base.model.base_model(**batch.inputs, use_cache=False)
    layers = [(key[0].cpu(), value[0].cpu()) for key, value in block.layers]
    if "decoder" not in start:
        return {f"decoder.{number}": pair for number, pair in enumerate(layers)}
    keys, values = zip(*layers, strict=True)
    return {"decoder": (torch.stack(keys), torch.stack(values))}


@dataclass(frozen=True)
class Readers:
    """The queries of one layer over all reference texts, and what they get from their own text alone.

    Attributes:
        query_HMD: scaled, so that products with keys are what the softmax takes.
        own_HMD: attention over the text's own tokens alone.
        own_mass_HM: logarithm of the sum of its exponentials.
    """

    query_HMD: torch.Tensor
    own_HMD: torch.Tensor
    own_mass_HM: torch.Tensor

    @classmethod
    def of_call(cls, call: AttentionCall, layout: PackedLayout, heads: int) -> Readers:
        """From the layer's call, whose rows stand end to end."""
        scale = call.options.get("scaling") or call.query.shape[-1] ** -0.5
        states = (layout.to_rows(part.float()) for part in (call.query * scale, call.key, call.value))
        query_BQTD, key_BHTD, value_BHTD = states
        rows, _, longest, size = query_BQTD.shape
        query_BHGTD = query_BQTD.view(rows, heads, -1, longest, size)
        scores = query_BHGTD @ key_BHTD[:, :, None].transpose(-1, -2)
        causal = torch.ones(longest, longest, dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~causal, -math.inf)
        mass_BHGT = scores.logsumexp(-1)
        own_BHGTD = (scores - mass_BHGT[..., None]).exp() @ value_BHTD[:, :, None]
        places = layout.on(scores.device).row_index_N

        def flat(states_BHGTX: torch.Tensor) -> torch.Tensor:
            """`[H, M, X]`, each token once."""
            of_tokens = states_BHGTX.movedim(3, 1).flatten(0, 1)[places]
            return of_tokens.permute(1, 2, 0, 3).flatten(1, 2)

        return cls(flat(query_BHGTD), flat(own_BHGTD), flat(mass_BHGT[..., None])[..., 0])

    def every(self, step: int) -> Readers:
        """Every n-th of the queries."""
        return Readers(self.query_HMD[:, ::step], self.own_HMD[:, ::step], self.own_mass_HM[:, ::step])


# -- one layer ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Targets:
    """What readers get with the whole document in front of them.

    Attributes:
        output_HMD: attention over the document and their own text.
        total_HM: logarithm of the sum of all exponentials.
        share_HM: the document's share of that sum.
    """

    output_HMD: torch.Tensor
    total_HM: torch.Tensor
    share_HM: torch.Tensor


def match_layer(
    readers: Readers, key_HTD: torch.Tensor, value_HTD: torch.Tensor, length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values `[H, P, D]` with which readers get nearly what the document's T give them."""
    targets, score_HT = attend_to_document(readers, key_HTD, value_HTD)
    score_HT[:, 0] = math.inf  # the attention sink
    chosen_HP = score_HT.topk(length, dim=1).indices.sort(dim=1).values
    key_HPD, value_HPD = (
        part.gather(1, chosen_HP[..., None].expand(-1, -1, part.shape[-1])) for part in (key_HTD, value_HTD)
    )
    step = max(1, readers.query_HMD.shape[1] * length * length // FIT_WORK)
    readers = readers.every(step)
    targets = Targets(targets.output_HMD[:, ::step], targets.total_HM[:, ::step], targets.share_HM[:, ::step])
    key_HPD = weigh_keys(readers, targets, key_HPD)
    return key_HPD, fit_values(readers, targets, key_HPD, value_HPD)


def attend_to_document(
    readers: Readers, key_HTD: torch.Tensor, value_HTD: torch.Tensor
) -> tuple[Targets, torch.Tensor]:
    """What readers get from the whole document, and the sum of squares of each token's weights, `[H, T]`."""
    heads, tokens, _ = key_HTD.shape
    queries = readers.query_HMD.shape[1]
    with_one = torch.cat([value_HTD, torch.ones_like(value_HTD[..., :1])], dim=-1)  # sums come with products
    output_HMD = torch.empty_like(readers.own_HMD)
    total_HM, share_HM = (torch.empty_like(readers.own_mass_HM) for _ in range(2))
    score_HT = torch.zeros_like(key_HTD[..., 0])
    block = max(16, SCORES // (heads * tokens))
    for start in range(0, queries, block):
        of_block = slice(start, start + block)
        scores_HBT = readers.query_HMD[:, of_block] @ key_HTD.transpose(1, 2)
        largest_HB1 = scores_HBT.amax(dim=-1, keepdim=True)
        scores_HBT.sub_(largest_HB1).exp_()
        products = scores_HBT @ with_one
        largest_HB, own_mass_HB = largest_HB1[..., 0], readers.own_mass_HM[:, of_block]
        total_HB = torch.logaddexp(largest_HB + products[..., -1].log(), own_mass_HB)
        factor_HB, own_HB = (largest_HB - total_HB).exp(), (own_mass_HB - total_HB).exp()
        output_HMD[:, of_block] = (
            factor_HB[..., None] * products[..., :-1] + own_HB[..., None] * readers.own_HMD[:, of_block]
        )
        total_HM[:, of_block], share_HM[:, of_block] = total_HB, factor_HB * products[..., -1]
        score_HT += (factor_HB.square()[:, None] @ scores_HBT.square_())[:, 0]
    return Targets(output_HMD, total_HM, share_HM), score_HT


def weigh_keys(readers: Readers, targets: Targets, key_HPD: torch.Tensor) -> torch.Tensor:
    """Keys each of which counts as often as it must for all to have the document's share of the softmax."""
    query_HMD, share_HM = readers.query_HMD, targets.share_HM
    weight_HMP = (query_HMD @ key_HPD.transpose(1, 2) - targets.total_HM[..., None]).exp_()
    turned_HPM = weight_HMP.transpose(1, 2)
    # Of many keys and few queries the P * P products would be larger than all else.
    gram_HPP = turned_HPM @ weight_HMP if weight_HMP.shape[2] <= weight_HMP.shape[1] else None
    wanted_HP1 = turned_HPM @ share_HM[..., None]
    times_HP1 = torch.ones_like(wanted_HP1)
    for _ in range(WEIGHT_STEPS):  # multiplicative, so that no weight becomes negative
        mass_HP1 = turned_HPM @ (weight_HMP @ times_HP1) if gram_HPP is None else gram_HPP @ times_HP1
        times_HP1 = times_HP1 * wanted_HP1 / (mass_HP1 + TINY)
    bias_HP1 = times_HP1.clamp_min(TINY).log().clamp(-LARGEST_BIAS, LARGEST_BIAS)
    # The direction whose product with every query is 1, where the document counts most.
    counted_HMD = query_HMD * share_HM[..., None]
    one_HD1 = solve(counted_HMD.transpose(1, 2) @ query_HMD, counted_HMD.sum(1)[..., None])
    folded_HPD = key_HPD + bias_HP1 * one_HD1.transpose(1, 2)
    # Where a head's queries have little in common there is no such direction: then its keys stay as they are.
    error_H, folded_error_H = (
        ((query_HMD @ keys.transpose(1, 2) - targets.total_HM[..., None]).exp_().sum(-1) - share_HM)
        .square()
        .sum(-1)
        for keys in (key_HPD, folded_HPD)
    )
    return torch.where((folded_error_H < error_H)[:, None, None], folded_HPD, key_HPD)


def fit_values(
    readers: Readers, targets: Targets, key_HPD: torch.Tensor, value_HPD: torch.Tensor
) -> torch.Tensor:
    """Values with which readers get the output, near the given ones where that leaves room."""
    scores_HMP = readers.query_HMD @ key_HPD.transpose(1, 2)
    total_HM = torch.logaddexp(scores_HMP.logsumexp(-1), readers.own_mass_HM)
    weight_HMP = (scores_HMP - total_HM[..., None]).exp_()
    own_HM1 = (readers.own_mass_HM - total_HM).exp()[..., None]
    missing_HMD = targets.output_HMD - own_HM1 * readers.own_HMD - weight_HMP @ value_HPD
    return value_HPD + least_squares(weight_HMP, missing_HMD)


def least_squares(weight_HMP: torch.Tensor, wanted_HMD: torch.Tensor) -> torch.Tensor:
    """Numbers `[H, P, D]` whose weighted sums are the wanted ones, by ridge regression.

    Of fewer queries than keys from a matrix of M * M, which gives the same: (W'W + r)^-1 W' = W'(WW' + r)^-1.
    """
    turned_HPM = weight_HMP.transpose(1, 2)
    equations, unknowns = weight_HMP.shape[1:]
    if unknowns <= equations:
        return solve(turned_HPM @ weight_HMP, turned_HPM @ wanted_HMD)
    return turned_HPM @ solve(weight_HMP @ turned_HPM, wanted_HMD, RIDGE * equations / unknowns)


def solve(gram: torch.Tensor, right: torch.Tensor, ridge: float = RIDGE) -> torch.Tensor:
    """Ridge regression from normal equations, in float64: keys nearly alike make them all but singular."""
    gram = gram.double()
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    diagonal += ridge * diagonal.mean(-1, keepdim=True) + TINY
    return torch.cholesky_solve(right.double(), torch.linalg.cholesky(gram)).to(right.dtype)
