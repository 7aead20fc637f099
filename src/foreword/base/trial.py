"""Trial: whether a prefix does in this model what it should, found out before any work.

That every layer asks for our attention function does not say that the model works: it can count
positions on its own, carry a state beside attention, or make its own mask. So three tokens are tried.

Decoder-only: keys and values of a text's first token, given as a prefix to the tokens behind it, must
give the logits of the whole text. That is exact for attention, and false for everything else. The
rows are tried end to end, one with and one without, so that they are shown not to meet.
Encoder-decoder: each stream must have an effect, on its own row only, and the decoder stay causal.
There a prefix stands for no tokens (it does not move the text), so no text can be compared with.

Shapes: B rows, T text tokens, H key/value heads, D head size, V vocabulary, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from foreword.base.attention import Attending, attending
from foreword.base.batch import Layout, decoder_batch, encoder_decoder_batch
from foreword.base.compatibility import name
from foreword.base.prefix_batch import RowPrefixes, StreamBlock
from foreword.encoding import EncodedExample
from foreword.errors import UnsupportedArchitecture
from foreword.geometry import Stream

_IDS = (1, 2, 3)

# Settings with which a model does something that no three tokens can show.
_UNSHOWN = {
    "attn_temperature_tuning": "attention counts the text's positions without the prefix",
    "expert_capacity": "experts take so many tokens of a batch and drop others, so rows depend on each other",
}


def try_prefix(model: Any, *, positions: bool) -> None:
    """Try a prefix of one token on a probed model.

    Args:
        positions: whether the model takes `position_ids`.

    Raises:
        UnsupportedArchitecture: the result is not what attention alone would give.
    """
    config = model.config.get_text_config(decoder=True)
    for field, reason in _UNSHOWN.items():
        if getattr(config, field, None):
            raise UnsupportedArchitecture(f"{name(model)} has {field} on: {reason}")
    with torch.no_grad():
        try:
            if model.config.is_encoder_decoder:
                _try_encoder_decoder(model)
            else:
                _try_decoder(model, positions)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise UnsupportedArchitecture(f"{name(model)} fails with a prefix in front: {error}") from error


def _try_decoder(model: Any, positions: bool) -> None:
    device = model.get_input_embeddings().weight.device
    whole_1TV, blocks = _first_token(model, {"input_ids": torch.tensor([_IDS], device=device)})
    text = EncodedExample(_IDS[1:2], (*_IDS[2:], 0))
    prefixes = RowPrefixes(blocks, (0, None))
    layout: Layout = "flat" if positions else "right"
    batch = decoder_batch(
        [text, text], (1, 1), (None, None), layout=layout, device=device, positions=positions
    )
    with attending(Attending(prefixes=prefixes, layout=batch.layout)):
        logits = model(**batch.inputs, use_cache=False).logits
    with_prefix_TV, without_TV = logits.reshape(2, len(_IDS) - 1, -1)
    whole_TV = whole_1TV[0, 1:]
    error, effect = (float((found - whole_TV).norm()) for found in (with_prefix_TV, without_TV))
    # In 16 bits two ways to compute one thing differ visibly, and a router may choose another expert.
    exact = logits.dtype in (torch.float32, torch.float64)
    share, floor = (0.01, 1e-5) if exact else (0.5, 0.05)
    if error > share * effect + floor * float(whole_TV.norm()):
        raise UnsupportedArchitecture(
            f"{name(model)}: a prefix does not do what the tokens it was taken from do (difference "
            f"{error:.2g}, effect of the tokens {effect:.2g}). Something beside attention carries the text, "
            "or the model counts positions or makes masks on its own"
        )


def _try_encoder_decoder(model: Any) -> None:
    device = model.get_input_embeddings().weight.device
    start_id = model.config.decoder_start_token_id or 0
    of_one_row = encoder_decoder_batch([EncodedExample(_IDS, (1, 0))], start_id=start_id, device=device)
    plain_1TV, blocks = _first_token(model, of_one_row.inputs)
    streams = list(blocks)
    # One row for each stream alone, one without any, and one with all streams and another last token.
    apart = {
        stream: StreamBlock(
            key_RLHPD=block.key_RLHPD.expand(len(streams) + 1, -1, -1, -1, -1),
            value_RLHPD=-block.value_RLHPD.expand(len(streams) + 1, -1, -1, -1, -1),
            lengths=(*(int(stream == other) for other in streams), 1),
        )
        for stream, block in blocks.items()
    }
    last = len(streams)
    prefixes = RowPrefixes(apart, (*range(last), None, last, last))
    rows = [EncodedExample(_IDS, (1, 0))] * (last + 2) + [EncodedExample(_IDS, (2, 0))]
    batch = encoder_decoder_batch(rows, start_id=start_id, device=device)
    with attending(Attending(prefixes=prefixes)):
        logits_BTV = model(**batch.inputs, use_cache=False).logits
    far = 0.05 if logits_BTV.dtype in (torch.float16, torch.bfloat16) else 1e-4

    def same(one: torch.Tensor, other: torch.Tensor) -> bool:
        return float((one - other).norm()) <= far * float(other.norm())

    plain_TV, all_TV, other_TV = logits_BTV[last], logits_BTV[last + 1], logits_BTV[last + 2]
    idle = [stream for row, stream in enumerate(streams) if torch.equal(logits_BTV[row], plain_TV)]
    faults = {
        f"a prefix in {', '.join(idle)} attention changes nothing": bool(idle),
        "a row without a prefix is changed by its neighbours' prefixes": not same(plain_TV, plain_1TV[0]),
        "with a prefix, a token is changed by the tokens behind it": not same(all_TV[0], other_TV[0]),
    }
    if any(faults.values()):
        found = "; ".join(fault for fault, there in faults.items() if there)
        raise UnsupportedArchitecture(f"{name(model)}: {found}. Its attention takes no prefix as it is")


def _first_token(
    model: Any, inputs: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, dict[Stream, StreamBlock]]:
    """Logits of a text, and the keys and values of its first token as a prefix."""
    found: dict[Stream, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def record(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: Mapping[str, Any],
    ) -> None:
        slot = module.foreword_slot
        found.setdefault(slot.stream, []).append((key[:, :, :1].cpu(), value[:, :, :1].cpu()))  # type: ignore

    with attending(Attending(record=record)):
        logits_BTV = model(**inputs, use_cache=False).logits
    blocks = {
        stream: StreamBlock(
            key_RLHPD=torch.stack([key for key, _ in layers], dim=1),
            value_RLHPD=torch.stack([value for _, value in layers], dim=1),
            lengths=(1,),
        )
        for stream, layers in found.items()
    }
    return logits_BTV, blocks
