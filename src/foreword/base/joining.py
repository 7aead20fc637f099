"""Several prefixes as one: their virtual tokens one after the other, keys moved to where they then stand.

The first prefix stays at positions 0 to P - 1. Of each further one the first token goes: it is the attention
sink, which document prefixes keep as it was, and one sink is enough for all. Its other keys were trained at
positions from 1 and are rotated to those behind what stands before; values have no position.

A rotary embedding turns pairs of a key's numbers by angles that grow with its position, so a key at position
p stands at p + s when each pair is turned by the angles of s. Which numbers are pairs differs between
architectures: halves (LLaMA), neighbours (GLM, Cohere), of all numbers or of the first or last ones. So it is
found out and not assumed: of every layer's keys at several positions, the one arrangement counts that makes
the keys further on of those at the start. A model for which there is none is refused.

Shapes: L layers, H key/value heads, P prefix length, T tokens, D key size, N pairs of numbers.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from foreword.base.attention import IMPLEMENTATIONS, LayerInfo, capture_attention
from foreword.base.compatibility import name, probe, rotary_embeddings, rotary_layer_type
from foreword.base.float32 import trial_numbers
from foreword.base.loading import choose_kernel, model_class
from foreword.base.prefix_batch import KeyValues
from foreword.base.rope import max_positions, take_long_factors
from foreword.errors import (
    GeometryMismatch,
    UnsupportedArchitecture,
    UsageError,
    WindowExceeded,
    WrongBaseModel,
)
from foreword.prefix import Prefix
from foreword.prefix_sizes import layer_of, tensor_names
from foreword.template import Template

if TYPE_CHECKING:
    from foreword.base.base_model import BaseModel

_IDS = (1, 2, 3)
_NEAR = 7
"""A distance at which rotations are tried, beside the farthest that the model has positions for."""
_FARTHEST = 1000
"""That distance where the architecture sets no limit."""
_FAR = 1e-3
"""What two ways to compute a key may differ by, as a share: angles of far positions are rounded."""


@dataclass(frozen=True)
class KeyRotation:
    """How the keys of one layer are moved to other positions.

    Attributes:
        rotary: the model's module that makes cosines and sines of positions; None for a layer whose keys are
            the same at every position.
        layer_type: an argument of the module beside the positions, in models of several rotary embeddings.
        angles_N: which of the module's angles are those of the N pairs; others repeat them.
        first_N, second_N: the two numbers of each pair, by their places in a key.
    """

    rotary: nn.Module | None = None
    layer_type: str | None = None
    angles_N: tuple[int, ...] = ()
    first_N: tuple[int, ...] = ()
    second_N: tuple[int, ...] = ()

    def move(self, key_HPD: torch.Tensor, steps: int) -> torch.Tensor:
        """Keys `steps` positions further on, in their own type; computed in float32 at least."""
        if self.rotary is None or not steps:
            return key_HPD
        if max(self.first_N + self.second_N) >= key_HPD.shape[-1]:
            raise GeometryMismatch(f"keys have {key_HPD.shape[-1]} numbers; the model rotates more")
        cosines_N, sines_N = (
            part[[*self.angles_N]].to(key_HPD.device) for part in _angles(self.rotary, self.layer_type, steps)
        )
        wide_HPD = key_HPD.to(torch.promote_types(key_HPD.dtype, torch.float32))
        first_HPN, second_HPN = wide_HPD[..., self.first_N], wide_HPD[..., self.second_N]
        moved_HPD = wide_HPD.clone()
        moved_HPD[..., self.first_N] = first_HPN * cosines_N - second_HPN * sines_N
        moved_HPD[..., self.second_N] = second_HPN * cosines_N + first_HPN * sines_N
        return moved_HPD.to(key_HPD.dtype)


def join_prefixes(base: BaseModel, prefixes: Sequence[Prefix]) -> Prefix:
    """One prefix of several: the first as it is, of the others all but their first token, moved behind it.

    A single one is returned as it is. Prefixes that were trained apart can disturb each other: train them
    together, or measure the result.

    Raises:
        UsageError: no prefix, one of them twice, templates or positions that differ, an infix, or a further
            prefix of one token.
        GeometryMismatch, WrongBaseModel: a prefix of another base, or of two.
        WindowExceeded: together they leave no room for text.
        UnsupportedArchitecture: the base's keys can't be moved.
    """
    prefixes = list(prefixes)
    check_joinable(prefixes)
    for prefix in prefixes:
        base.check_fits(prefix)
    if len(prefixes) == 1:
        return prefixes[0]
    length = sum(prefix.length for prefix in prefixes) - len(prefixes) + 1
    try:
        base.max_text_tokens(length)
    except WindowExceeded as error:
        listed = " + ".join(str(prefix.length) for prefix in prefixes)
        raise WindowExceeded(
            f"prefixes of {listed} virtual tokens are {length} when they are joined (one token of each but "
            f"the first goes), which leaves no room for text in the {base.max_positions} positions of "
            f"{base.shown_name}{base.window_note}; join fewer, or shorter ones"
        ) from error
    return concatenated(prefixes, base.key_rotations)


def join_rows(base: BaseModel, rows: Sequence[Prefix | Sequence[Prefix] | None]) -> list[Prefix | None]:
    """Of each row one prefix, or None; what several rows join is made once. Raises as `join_prefixes`."""
    made: dict[tuple[int, ...], Prefix] = {}
    listed: list[Prefix | None] = []
    for number, row in enumerate(rows):
        if row is None or isinstance(row, Prefix):
            listed.append(row)
            continue
        if (parts := tuple(map(id, row))) not in made:
            try:
                made[parts] = join_prefixes(base, row)
            except UsageError as error:
                raise UsageError(f"prefixes of row {number}: {error}") from error
        listed.append(made[parts])
    return listed


def check_joinable(prefixes: Sequence[Prefix]) -> None:
    """Refuse what can't be one prefix, whatever the base. Raises as `join_prefixes`."""
    if not prefixes:
        raise UsageError("there are no prefixes to join; give at least one, or None for a row without")
    first = prefixes[0]
    if twice := [digest for digest, count in Counter(p.digest for p in prefixes).items() if count > 1]:
        raise UsageError(f"the prefix {twice[0][:12]} is there twice; join each prefix once")
    if len(prefixes) > 1 and any(prefix.template.placement == "infix" for prefix in prefixes):
        raise UsageError("an infix stands behind the source and can't be joined to others; join prefixes")
    for number, other in enumerate(prefixes[1:], 1):
        if other.base.fingerprint != first.base.fingerprint:
            raise WrongBaseModel(
                f"prefix {number} is for {other.base.shown_name} ({_short(other)}), prefix 0 for "
                f"{first.base.shown_name} ({_short(first)}); join prefixes of one base model"
            )
        if other.geometry != first.geometry:
            raise GeometryMismatch(
                f"prefix {number} has {other.geometry}, prefix 0 {first.geometry}; join prefixes of one base "
                "model"
            )
        if differing := _differing_templates(first, other):
            raise UsageError(
                f"the template of prefix {number} has {differing}; join prefixes of equal templates: one "
                "text stands behind them all"
            )
        if other.positions != first.positions:
            raise UsageError(
                f"prefix {number} has positions {other.positions}, prefix 0 {first.positions}; join prefixes "
                "of equal positions"
            )
        if other.length < 2:
            raise UsageError(
                f"prefix {number} has one virtual token, and the first of each goes but that of prefix 0 "
                "(the attention sink), so nothing of it would be left; leave it out"
            )


def _differing_templates(first: Prefix, other: Prefix) -> str:
    """What of the templates differs, in words; a day that stands within the prefixes may."""
    fields = [field.name for field in dataclasses.fields(Template)]
    if first.template.system_in_prefix and first.template_digest == other.template_digest is not None:
        fields.remove("date")  # what comes behind them is the same
    return ", ".join(
        f"{name} {there!r:.200}, that of prefix 0 {here!r:.200}"
        for name in fields
        if (there := getattr(other.template, name)) != (here := getattr(first.template, name))
    )


def _short(prefix: Prefix) -> str:
    return (prefix.base.fingerprint or "unknown weights")[:12]


def concatenated(prefixes: Sequence[Prefix], rotations: Sequence[KeyRotation]) -> Prefix:
    """The joined prefix, of prefixes that `check_joinable` lets pass. Equal parts give an equal prefix.

    Args:
        rotations: of each layer of the decoder.
    """
    first = prefixes[0]
    return Prefix(
        tensors=tensor_names(joined_key_values([prefix.key_values() for prefix in prefixes], rotations)),
        base=first.base,
        template=first.template,
        created=max(prefix.created for prefix in prefixes),
        licence=" AND ".join(dict.fromkeys(p.licence for p in prefixes if p.licence)) or None,
        positions=first.positions,
        template_digest=first.template_digest,
        template_rendering=first.template_rendering,
        recipe={"joined": [prefix.digest for prefix in prefixes]},
    )


def joined_key_values(parts: Sequence[KeyValues], rotations: Sequence[KeyRotation]) -> KeyValues:
    """Keys and values of one prefix of several; gradients flow through them to the parts.

    Args:
        rotations: of each layer of the decoder.
    """
    lengths = [next(iter(part.values()))[0].shape[-2] for part in parts]
    # Each stands so far behind where it was trained, at positions from 1.
    all_steps = list(itertools.accumulate(length - 1 for length in lengths[:-1]))
    joined: KeyValues = {}
    for place, (key, value) in parts[0].items():
        layer = layer_of(place)
        of_layers = rotations if layer is None else rotations[layer : layer + 1]
        keys, values = [key], [value]
        for steps, part in zip(all_steps, parts[1:], strict=True):
            key, value = (states[..., 1:, :] for states in part[place])
            keys.append(_moved(key, of_layers, steps))
            values.append(value)
        joined[place] = torch.cat(keys, dim=-2), torch.cat(values, dim=-2)
    return joined


def _moved(key: torch.Tensor, rotations: Sequence[KeyRotation], steps: int) -> torch.Tensor:
    """Keys `[L, H, P, D]`, or `[H, P, D]` of one layer, further on."""
    if all(rotation == rotations[0] for rotation in rotations):  # of most models, and then at once
        return rotations[0].move(key, steps)
    layers = zip(rotations, key, strict=True)
    return torch.stack([rotation.move(key_HPD, steps) for rotation, key_HPD in layers])


# -- how the keys of a model are moved ---------------------------------------------------------------


def find_rotations(model: Any, *, farthest: int | None, positions: bool) -> tuple[KeyRotation, ...]:
    """How the keys of each layer of a probed decoder are moved, as a trial of the model shows.

    Args:
        farthest: positions that the model has; None: unlimited.
        positions: whether the model takes `position_ids`.

    Raises:
        UnsupportedArchitecture: some layer's keys can't be moved.
    """
    if model.config.is_encoder_decoder or not positions:
        why = "it is an encoder-decoder" if model.config.is_encoder_decoder else "it counts positions itself"
        raise _cannot(model, why)
    embeddings = rotary_embeddings(model)
    if not embeddings:
        raise _cannot(model, "its positions are not rotary")
    last = (farthest or _FARTHEST) - len(_IDS)
    steps = sorted({min(_NEAR, last), last})
    with torch.no_grad():
        at_start = _keys(model, 0)
        further = {s: _keys(model, s) for s in steps}
        found = []
        for layer, (module, key_HTD) in enumerate(at_start.items()):
            tried = [
                (_error(candidate, key_HTD, {s: keys[module] for s, keys in further.items()}), candidate)
                for candidate in _candidates(model, module, embeddings, key_HTD.shape[-1])
            ]
            error, best = min(tried, key=lambda each: each[0])
            if not error <= _FAR:  # nor NaN
                raise _cannot(
                    model,
                    f"those of layer {layer} at other positions differ by {error:.2g} of their size from "
                    "what its rotary embedding makes of those at the start",
                )
            found.append(best)
    if all(rotation.rotary is None for rotation in found):
        raise _cannot(model, "its keys do not depend on their positions, so something else counts them")
    return tuple(found)


def _cannot(model: Any, why: str) -> UnsupportedArchitecture:
    return UnsupportedArchitecture(
        f"prefixes of {name(model)} can't be joined: its keys cannot be moved to other positions ({why}). "
        "Take one prefix for a row"
    )


def _keys(model: Any, first: int) -> dict[nn.Module, torch.Tensor]:
    """Keys `[H, T, D]` that each layer with keys of its own makes of a short text at position `first`."""
    device = model.get_input_embeddings().weight.device
    ids_1T = torch.tensor([_IDS], device=device)
    inputs = {
        "input_ids": ids_1T,
        "attention_mask": torch.ones_like(ids_1T),
        "position_ids": torch.arange(first, first + len(_IDS), device=device)[None],
    }
    with trial_numbers(model)[0]:
        _, calls = capture_attention(model, inputs)
    keys: dict[int, tuple[nn.Module, torch.Tensor]] = {}
    for call in calls:
        layer: LayerInfo = call.module.foreword_layer  # type: ignore[assignment]
        keys.setdefault(layer.layer, (call.module, call.key[0].float().cpu()))
    return dict(keys[layer] for layer in range(len(keys)))


def _error(rotation: KeyRotation, key_HTD: torch.Tensor, further: Mapping[int, torch.Tensor]) -> float:
    """By which share of their size keys differ at the most from those that the model makes further on."""
    return max(
        float((rotation.move(key_HTD, steps) - moved_HTD).norm() / moved_HTD.norm())
        for steps, moved_HTD in further.items()
    )


def _candidates(
    model: Any, module: nn.Module, embeddings: Sequence[nn.Module], size: int
) -> Iterator[KeyRotation]:
    """Every way that is known to turn keys of D = `size` numbers; first none at all."""
    yield KeyRotation()
    for rotary in embeddings:
        layer_type = rotary_layer_type(model, rotary, module)
        angles = _angles(rotary, layer_type, 1)[0].shape[0]
        for places in (range(angles // 2), range(0, angles, 2), range(angles)):
            pairs = len(places)
            if not 0 < 2 * pairs <= size:
                continue
            starts = sorted({0, size - 2 * pairs})
            for start, halves, back in itertools.product(starts, (True, False), (True, False)):
                turned = range(start, start + 2 * pairs)
                pair = (turned[:pairs], turned[pairs:]) if halves else (turned[::2], turned[1::2])
                first_N, second_N = (tuple(each) for each in (reversed(pair) if back else pair))
                yield KeyRotation(rotary, layer_type, tuple(places), first_N, second_N)


def _angles(rotary: nn.Module, layer_type: str | None, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of `steps` positions, each one row of numbers in the model's own arrangement.

    Some embeddings also scale what they turn (YaRN, LongRoPE). What is moved has been scaled already, so
    of both the length is made one.
    """
    tensor = next(itertools.chain(rotary.buffers(), rotary.parameters()), None)
    device = torch.device("cpu") if tensor is None else tensor.device
    positions_11 = torch.tensor([[steps]], device=device)
    more = () if layer_type is None else (layer_type,)
    with torch.no_grad():
        made = rotary(torch.zeros(1, device=device), positions_11, *more)
    cosines, sines = (made.real, made.imag) if torch.is_tensor(made) else made
    cosines, sines = (part.detach().float().cpu().flatten() for part in (cosines, sines))
    scale = torch.hypot(cosines, sines)
    return cosines / scale, sines / scale


# -- of a configuration alone ------------------------------------------------------------------------


def rotations_of(model: str, *, long_context: bool) -> tuple[KeyRotation, ...]:
    """How the keys of a model are moved of which only the folder or Hugging Face id is known.

    Args:
        long_context: it has LongRoPE's long factors for every text.

    Raises as `find_rotations`.
    """
    config = AutoConfig.from_pretrained(model)
    if long_context:
        take_long_factors(config)
    return find_rotations(small_model(config), farthest=max_positions(config), positions=True)


_SMALL = {"vocab_size": 8, "intermediate_size": 8, "moe_intermediate_size": 8, "num_key_value_heads": 1}


def small_model(config: Any) -> Any:
    """A probed model of random weights whose keys are moved as those of `config`'s model are.

    One head, the other sizes as small as can be: for a process that has no weights.

    Raises:
        UnsupportedArchitecture: there is none.
    """
    small = copy.deepcopy(config.get_text_config(decoder=True))
    settings: Mapping[str, Any] = {
        **_SMALL,
        "hidden_size": small.hidden_size // small.num_attention_heads,
        "num_attention_heads": 1,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
    }
    for field, value in settings.items():
        if getattr(small, field, None) is not None:
            setattr(small, field, value)
    kernel = choose_kernel(small, model_class(AutoModelForCausalLM, small))
    try:
        with torch.device("cpu"), torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(
                small, attn_implementation=IMPLEMENTATIONS[kernel], dtype=torch.float32
            ).eval()
        probe(model)
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise UnsupportedArchitecture(
            f"prefixes of model type {config.model_type} can't be joined where its weights are not loaded: "
            f"{error}"
        ) from error
    return model
