"""Rotary embeddings whose angles depend on a text's length: how far texts may go so that none does.

An angle is a function of a token's position alone in every kind of rotary embedding of transformers
(`ROPE_INIT_FUNCTIONS`: default, linear, yarn, llama3, proportional, and mrope, which has three positions) but
two. These two look at the farthest position of a whole batch, so that one long row would turn the queries
and keys of all others, and those of its own beginning once it grows:

- dynamic (NTK) changes beyond `max_position_embeddings`: no text goes there;
- longrope (arXiv 2402.13753) changes beyond `original_max_position_embeddings`: no text goes there either, or
  every text has the long factors (`take_long_factors`).

So every text gets the angles that transformers gives it alone. A kind that is not known here is found out
when a model is tried beside a token at its last position (`compatibility.check_prefix_effect`).
"""

from __future__ import annotations

import hashlib
from typing import Any

from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from foreword.errors import UsageError

LONG, DYNAMIC = "longrope", "dynamic"
CHANGING = (DYNAMIC, LONG)
"""Rotary embeddings whose angles depend on the length of the text: a position is not one angle."""


def rope_settings(config: Any) -> dict[str | None, dict[str, Any]]:
    """The decoder's rotary embeddings: by kind of layer, or one for all by None."""
    found = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    by_layer: dict[str | None, dict[str, Any]] = {
        kind: each for kind, each in found.items() if isinstance(each, dict)
    }
    return by_layer or ({None: found} if found else {})


def is_dynamic(config: Any) -> bool:
    """Whether angles change with the length beyond the positions of training."""
    return any(each.get("rope_type") == DYNAMIC for each in rope_settings(config).values())


def short_positions(config: Any) -> int | None:
    """Positions up to which LongRoPE takes its short factors; None for other kinds."""
    ends = [
        int(each["original_max_position_embeddings"])
        for each in rope_settings(config).values()
        if each.get("rope_type") == LONG and "original_max_position_embeddings" in each
    ]
    return min(ends, default=None)


def max_positions(config: Any) -> int | None:
    """Positions up to which no text's angles depend on its length; None: the architecture sets no limit."""
    text = config.get_text_config(decoder=True)
    if hasattr(text, "relative_attention_num_buckets"):  # T5's kind counts distances, not positions
        return None
    fields = (getattr(text, field, None) for field in ("max_position_embeddings", "n_positions"))
    limits = [*(n for n in fields if isinstance(n, int))][:1]
    return min([*limits, *filter(None, [short_positions(config)])], default=None)


def take_long_factors(config: Any) -> None:
    """Change a configuration, before its model is made, so that LongRoPE has its long factors for every text.

    What else depends on the two lengths stays: the factor by which attention is scaled is written down first.

    Raises:
        UsageError: a model without LongRoPE.
    """
    text = config.get_text_config(decoder=True)
    long = {kind: each for kind, each in rope_settings(config).items() if each.get("rope_type") == LONG}
    if not long:
        kinds = sorted({str(each.get("rope_type")) for each in rope_settings(config).values()})
        raise UsageError(
            f"long_context is on, but the positions of model type {config.model_type} are "
            f"{', '.join(kinds) or 'not rotary'}, not longrope, and have no long factors; leave it out"
        )
    for kind, each in long.items():
        more = {} if kind is None else {"layer_type": kind}
        _, each["attention_factor"] = ROPE_INIT_FUNCTIONS[LONG](text, **more)  # type: ignore[arg-type]
        each["short_factor"] = each["long_factor"]
        if "long_mscale" in each:  # Phi-3.5-MoE has one for each
            each["short_mscale"] = each["long_mscale"]
        each["original_max_position_embeddings"] = text.max_position_embeddings
    if hasattr(text, "original_max_position_embeddings"):  # Phi-3 would drop its cache on reaching it
        text.original_max_position_embeddings = text.max_position_embeddings


def long_fingerprint(weights: str) -> str:
    """Fingerprint of a base with these weights that has the long factors for every text."""
    return hashlib.sha256(f"{weights} long factors".encode()).hexdigest()
