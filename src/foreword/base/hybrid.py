"""Hybrids: models in which some layers keep a state of the text, beside attention or instead of it.

State-space layers, linear attention and short convolutions have no keys and values for a prefix to stand in
front of. A prefix of a hybrid has those of its attention layers alone, in their order; the other layers see
the text and nothing else. So a text's own keys and values do not stand for that text here, as they do in a
model of attention alone, and the trial is another one (`try_hybrid`).

A state runs on from token to token, so rows can't stand end to end in one sequence as they do elsewhere. They
are padded on the right, which a state comes to after the text. Padding on the left is in front of the text:
`pads_left` tries whether the model keeps it out of its states.

Shapes: P prefix length, T text tokens, L attention layers, H key/value heads, D head size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import CacheLayerMixin, LinearAttentionCacheLayerMixin

from foreword.base.attention import AttentionCall, AttentionContext, attention_context
from foreword.base.batch import decoder_batch, pad_rows
from foreword.base.float32 import trial_numbers
from foreword.base.prefix_batch import PrefixBatch, StreamBlock
from foreword.encoding import EncodedExample
from foreword.errors import UnsupportedArchitecture

_PREFIX_IDS, _TEXT_IDS = (5, 4), (1, 2, 3)

FAR = 1e-4
"""What two ways to compute a state may differ by in float32, as a share: in chunks, and step by step."""

PADDING = 6
"""Places of padding in front of a text when that is tried: more than a short convolution reaches."""


def attention_layers(config: Any) -> tuple[int, ...] | None:
    """Numbers of the layers, from 0, that keep keys and values in a hybrid; None: the model is no hybrid.

    Read from the cache that transformers makes for such a config.
    """
    if config.is_encoder_decoder:
        return None
    try:
        layers = DynamicCache(config=config).layers
    except (KeyError, TypeError, AttributeError):  # a kind of layer that transformers has no cache for
        return None
    if not any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers):
        return None
    return tuple(number for number, layer in enumerate(layers) if isinstance(layer, CacheLayerMixin))


def try_hybrid(model: Any, name: str, slack: float, *, positions: bool, farthest: int | None) -> None:
    """Compare a prefix of two tokens with transformers' own cache, on a probed hybrid.

    The cache is given the same keys and values in its attention layers and no state, and the text stands at
    positions from P: with a prefix, our attention must compute the same. A row beside it, longer and without
    a prefix, must stay what the model computes of it alone, and so must both with one at the model's last
    position beside them. Whether positions are obeyed is seen where the
    model goes on from its own cache, states and all: it must compute what it computes of the whole text.

    Args:
        name: of the model, for messages.
        slack: see `trial_numbers`, in force here.
        positions: whether the model takes `position_ids`.
        farthest: positions that it has for prefix and text; None: unlimited.

    Raises:
        UnsupportedArchitecture: one of these is not so.
    """
    device = model.get_input_embeddings().weight.device
    whole_ids = (*_PREFIX_IDS, *_TEXT_IDS)
    own_cache, kept = _cache_of(model, name)
    key_1LHPD, value_1LHPD = (
        torch.stack([part.to(device) for part in parts], dim=1) for parts in zip(*kept, strict=True)
    )
    length = len(_PREFIX_IDS)
    rows = [EncodedExample(ids[:1], (*ids[1:], 0)) for ids in (_TEXT_IDS, whole_ids, _TEXT_IDS)]
    offsets = [length, 0, 0]
    if positions and farthest is not None:  # a row at the last position: angles must not depend on it
        rows, offsets = [*rows, EncodedExample(_TEXT_IDS[:1], (0,))], [*offsets, farthest - 1]
    of_rows = (0, *(None,) * (len(rows) - 1))
    prefixes = PrefixBatch({"decoder": StreamBlock(key_1LHPD, value_1LHPD, (length,))}, of_rows)
    groups = [None] * len(rows)
    batch = decoder_batch(rows, offsets, groups, layout="right", device=device, positions=positions)
    with attention_context(AttentionContext(prefixes=prefixes)):
        logits_BTV = model(**batch.inputs, use_cache=False).logits
    with_TV, without_TV = (logits_BTV[row, : len(_TEXT_IDS)] for row in (0, 2))
    plain_TV = model(input_ids=torch.tensor([whole_ids], device=device), use_cache=False).logits[0]
    next_TV = _go_on(model, own_cache, _TEXT_IDS[:1], length, positions=positions)
    seeded = DynamicCache(config=model.config)
    for layer, (key_1HPD, value_1HPD) in zip(attention_layers(model.config) or (), kept, strict=True):
        seeded.update(key_1HPD, value_1HPD, layer)
    seeded_TV = _go_on(model, seeded, _TEXT_IDS, length, positions=positions)
    share, floor = 0.01 + 10 * slack, FAR + slack
    effect = _far(without_TV, seeded_TV)
    error, leak = _far(with_TV, seeded_TV), _far(logits_BTV[1], plain_TV)
    moved = _far(next_TV, plain_TV[length : length + 1])
    right = {
        f"a prefix does not do what transformers' cache does with the same keys and values (difference "
        f"{error:.2g}, effect {effect:.2g})": error <= share * effect + floor,
        "a prefix changes nothing": effect > floor,
        f"a row without a prefix is changed by what is beside it or was before ({leak:.2g})": leak <= floor,
        f"text behind its own cache is not what it is in one pass ({moved:.2g})": moved <= floor,
    }
    if not all(right.values()):
        listed = "; ".join(fault for fault, absent in right.items() if not absent)
        raise UnsupportedArchitecture(
            f"{name}: {listed}. The model counts positions or makes masks on its own, or its states, or the "
            "angles of its queries and keys, are not each row's own"
        )


def _far(found_TV: torch.Tensor, expected_TV: torch.Tensor) -> float:
    """The difference as a share of what is expected."""
    return float((found_TV - expected_TV).norm() / expected_TV.norm())


def _cache_of(model: Any, name: str) -> tuple[DynamicCache, list[tuple[torch.Tensor, torch.Tensor]]]:
    """The model's own cache behind a text of P tokens, and its L keys and values, each `[1, H, P, D]`.

    Raises:
        UnsupportedArchitecture: the cache does not keep them as attention sees them.
    """
    calls: list[AttentionCall] = []
    cache = DynamicCache(config=model.config)
    with attention_context(AttentionContext(record=calls.append)):
        _go_on(model, cache, _PREFIX_IDS, 0, positions=False)
    layers = [cache.layers[number] for number in attention_layers(model.config) or ()]
    seen = [(call.key.shape, call.value.shape) for call in calls]
    if seen != [(layer.keys.shape, layer.values.shape) for layer in layers]:
        raise UnsupportedArchitecture(
            f"{name}: its cache does not keep keys and values as attention sees them (latent attention), so "
            "there is nothing to compare a prefix with"
        )
    return cache, [(layer.keys, layer.values) for layer in layers]


def _go_on(
    model: Any, cache: DynamicCache, ids: tuple[int, ...], held: int, *, positions: bool
) -> torch.Tensor:
    """Logits `[T, V]` of a text behind a cache that holds so many columns."""
    from foreword.base.kv_cache import cache_argument  # needed for hybrids alone

    device = model.get_input_embeddings().weight.device
    inputs: dict[str, Any] = {
        "input_ids": torch.tensor([ids], device=device),
        "attention_mask": torch.ones(1, held + len(ids), dtype=torch.long, device=device),
        cache_argument(model): cache,
    }
    if positions:
        inputs["position_ids"] = torch.arange(held, held + len(ids), device=device)[None]
    return model(**inputs, use_cache=True).logits[0]  # type: ignore[no-any-return]


@torch.no_grad()
def pads_left(model: Any, *, positions: bool) -> bool:
    """Whether padding in front of a text leaves a hybrid's states as if the text began there.

    Most set the padding's input to zero, but a bias behind it makes a state of that.
    """
    device = model.get_input_embeddings().weight.device
    texts = [_TEXT_IDS, (_TEXT_IDS[0],) * (len(_TEXT_IDS) + PADDING)]
    ids_BT, mask_BT, steps_BT = pad_rows(texts, left=True, pad_id=_PREFIX_IDS[0], device=device)
    inputs = {"input_ids": ids_BT, "attention_mask": mask_BT.long()}
    if positions:
        inputs["position_ids"] = steps_BT.clamp(min=0)
    numbers, slack = trial_numbers(model)
    with numbers:
        padded_TV = model(**inputs, use_cache=False).logits[0, PADDING:]
        alone_TV = model(input_ids=torch.tensor([_TEXT_IDS], device=device), use_cache=False).logits[0]
    return _far(padded_TV, alone_TV) <= FAR + slack
