"""The key/value cache of a batch while it generates, with the prefixes in front of the text.

With the prefix in the cache, a decoding step concatenates nothing: a layer writes its new token behind
what is there. transformers sees a cache of the text alone, so positions and masks stay what they are
without a prefix; attention knows that the P columns in front are there (`AttentionContext.in_cache`).

Only for caches that keep every token, as attention sees it. A sliding window would drop the prefix, so
those models keep it in front of attention instead.

Shapes: B rows (times beams), H key/value heads, S tokens held, P prefix length, D head size.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from foreword.base.pass_metadata import PassMetadata
from foreword.base.prefix_batch import PrefixBatch
from foreword.prefix import Geometry


class PrefixedLayer(DynamicLayer):
    """One layer's keys and values, in a buffer that holds the prefix and the text that is expected."""

    # On MPS transformers runs a step too far and cuts it off again, where a cache can be cut: not this one.
    is_croppable = False

    def __init__(self, layer: int, metadata: PassMetadata | None, text_tokens: int) -> None:
        """`text_tokens`: how many are expected; the buffer grows when more come."""
        super().__init__()
        self._layer = layer
        self._metadata = metadata  # its prefixes go in front
        self._text_tokens = text_tokens
        self._ahead = 0  # P: columns of the prefixes, in front of the text
        self._held = 0  # columns that are filled, those of the prefixes among them

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make the buffers for the rows and device of the first keys, and put the prefixes in."""
        self.dtype, self.device = key_states.dtype, key_states.device
        metadata = self._metadata
        prefixes = None if metadata is None else metadata.prefixes
        self._ahead = self._held = prefixes.blocks["decoder"].longest if prefixes else 0
        self._key_BHSD, self._value_BHSD = (
            states.new_zeros(*states.shape[:2], self._ahead + self._text_tokens, states.shape[3])
            for states in (key_states, value_states)
        )
        if metadata is not None and prefixes is not None:
            key, value = metadata.on(self.device).prefix_rows("decoder", self._layer, key_states)
            self._key_BHSD[:, :, : self._ahead] = key
            self._value_BHSD[:, :, : self._ahead] = value
        self._show()
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new keys and values behind those held; return prefix and text."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self._held + key_states.shape[2]
        if end > self._key_BHSD.shape[2]:
            # At least doubled, so that a long text is not copied at every token.
            more = max(end - self._key_BHSD.shape[2], self._key_BHSD.shape[2])
            self._key_BHSD = torch.nn.functional.pad(self._key_BHSD, (0, 0, 0, more))
            self._value_BHSD = torch.nn.functional.pad(self._value_BHSD, (0, 0, 0, more))
        self._key_BHSD[:, :, self._held : end] = key_states
        self._value_BHSD[:, :, self._held : end] = value_states
        self._held = end
        self._show()
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Tokens of text held: transformers counts positions by it."""
        return self._held - self._ahead

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Beams that go on from others; a row's beams share its prefix, so it moves with them."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Rows that go on, each with its prefix."""
        if self.is_initialized:
            self._key_BHSD = self._key_BHSD.index_select(0, indices.to(self.device))
            self._value_BHSD = self._value_BHSD.index_select(0, indices.to(self.device))
            self._show()

    def _show(self) -> None:
        self.keys = self._key_BHSD[:, :, : self._held]
        self.values = self._value_BHSD[:, :, : self._held]


def takes_prefixes(model: Any, geometry: Geometry) -> bool:
    """Whether a cache of `model` can hold prefixes: it keeps every token, as attention sees it.

    Some keep less (windows), or keep what keys and values are made from (latent attention): one token
    shows it. Layers that share those of another have no place in the cache, and get the other's from it.
    """
    if model.config.is_encoder_decoder:
        return False
    cache = DynamicCache(config=model.config)
    if any(type(layer) is not DynamicLayer for layer in cache.layers):
        return False
    token = torch.zeros(1, 1, dtype=torch.long, device=model.get_input_embeddings().weight.device)
    with torch.no_grad():
        model(input_ids=token, use_cache=True, **{cache_argument(model): cache})
    shapes = [(tuple(layer.keys.shape), tuple(layer.values.shape)) for layer in cache.layers]
    return shapes == [
        ((1, heads, 1, key_dim), (1, heads, 1, value_dim))
        for heads, key_dim, value_dim in geometry.streams["decoder"].by_layer
    ]


def cache_argument(model: Any) -> str:
    """What forward pass and `generate` call a cache: `past_key_values`, or `cache` in transformers to come.

    transformers 5.24 has both, the older with a warning; 5.40 is to be without it.
    """
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def prefixed_cache(geometry: Geometry, prefixes: PrefixBatch | None, text_tokens: int) -> Cache:
    """A cache with the prefixes in front and so much text to come, for a model whose cache takes them."""
    layers, metadata = geometry.streams["decoder"].layers, PassMetadata(prefixes)
    return Cache(layers=[PrefixedLayer(layer, metadata, text_tokens) for layer in range(layers)])
