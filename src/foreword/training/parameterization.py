"""What of a prefix is trained, and how it becomes the keys and values of a prefix.

Everything here is thrown away after training; only the keys and values it compiles to are kept.

Shapes: L layers, H key/value heads, P prefix length, D head size, E embedding size, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from foreword.base.prefix_batch import KeyValuePair, KeyValues
from foreword.prefix import Positions
from foreword.prefix_sizes import Stream, layer_of, stream_of, tensor_name, tensor_names
from foreword.template import Placement
from foreword.training.settings import ParameterizationSettings

SMALLEST_UNIT = 1e-6
"""Of a layer whose keys or values are all zero at the start."""


class Parameterization(nn.Module):
    """The trainable parts of one prefix: one independent set for each stream."""

    def __init__(
        self,
        settings: ParameterizationSettings,
        start: Mapping[str, KeyValuePair],
        seed: int,
        layers: Mapping[Stream, range] | None = None,
    ) -> None:
        """Build for the shapes of `start`, the keys and values to start from, by place, in float32.

        Args:
            layers: of each stream, the layers that are trained; the others stay as in `start`.
        """
        super().__init__()
        # A generator of its own: what another prefix in the same process draws changes nothing here.
        generator = torch.Generator().manual_seed(seed)
        self.streams = nn.ModuleDict()
        self.places = tuple(start)
        self.layers = layers
        self.freeze_first = settings.freeze_first
        trained: dict[Stream, dict[str, KeyValuePair]] = {}
        for place, (key, value) in start.items():
            stream, layer = stream_of(place), layer_of(place)
            if layers is not None or settings.freeze_first:
                self.register_buffer(
                    f"start_{_attribute(place, 'key')}", key.float().clone(), persistent=False
                )
                self.register_buffer(
                    f"start_{_attribute(place, 'value')}", value.float().clone(), persistent=False
                )
            if layers is not None and layer is None:
                chosen = slice(layers[stream].start, layers[stream].stop)
                key, value = key[chosen], value[chosen]
            if layers is None or layer is None or layer in layers[stream]:
                trained.setdefault(stream, {})[place] = (key, value)
        for stream, start_of_stream in trained.items():
            self.streams[stream] = (
                Direct(start_of_stream, scaled=settings.kind == "scaled")
                if settings.kind in ("direct", "scaled")
                else Network(start_of_stream, settings.width, settings.kind == "mlp+start", generator)
            )

    def forward(self) -> KeyValues:
        """The prefix that the parameters stand for now: keys and values by place, float32."""
        trained: KeyValues = {}
        for module in self.streams.values():
            trained |= module()
        return {
            place: (self._with_fixed(place, "key", trained), self._with_fixed(place, "value", trained))
            for place in self.places
        }

    def _with_fixed(self, place: str, part: str, trained: KeyValues) -> torch.Tensor:
        """What is trained, among layers and behind a first token that stay as they were at the start."""
        start: torch.Tensor | None = getattr(self, f"start_{_attribute(place, part)}", None)
        if place not in trained:  # a layer of its own size that is not trained
            assert start is not None
            return start
        states = trained[place][0 if part == "key" else 1]
        if start is not None and self.layers is not None and layer_of(place) is None:
            layers = self.layers[stream_of(place)]
            states = torch.cat([start[: layers.start], states, start[layers.stop :]])
        if start is not None and self.freeze_first:
            states = torch.cat([start[..., :1, :], states[..., 1:, :]], dim=-2)
        return states


def _attribute(place: str, part: str) -> str:
    """A name for a module's attribute: `decoder_key`, `decoder_key_3`."""
    return tensor_name(place, part).replace(".", "_")


class Embeddings(nn.Module):
    """Input embeddings of P virtual tokens as parameters; the base model compiles them."""

    def __init__(
        self,
        settings: ParameterizationSettings,
        start_PE: torch.Tensor,
        compile_embeddings: Callable[[torch.Tensor], KeyValues],
    ) -> None:
        """`compile_embeddings`: from `[P, E]` to keys and values, differentiable."""
        super().__init__()
        self.embeddings = nn.Parameter(start_PE.float().clone())
        self.compile_embeddings = compile_embeddings
        self.first_1E: torch.Tensor | None
        first_1E = start_PE[:1].float().clone() if settings.freeze_first else None
        self.register_buffer("first_1E", first_1E, persistent=False)

    def forward(self) -> KeyValues:
        """The prefix that the embeddings stand for now: keys and values by place, float32."""
        embeddings_PE: torch.Tensor = self.embeddings
        if self.first_1E is not None:
            embeddings_PE = torch.cat([self.first_1E, embeddings_PE[1:]])
        return self.compile_embeddings(embeddings_PE)


class Direct(nn.Module):
    """Keys and values of one stream as parameters.

    Scaled, a parameter is in units of the root mean square of its layer's keys or values at the start. A step
    of the optimizer is then as large a share of each: values of the first layers are a thirtieth of those of
    the last, and the step that changes these a little would replace those.
    """

    def __init__(self, start: Mapping[str, KeyValuePair], *, scaled: bool = False) -> None:
        super().__init__()
        self.names = {place: [_parameter(place, "key"), _parameter(place, "value")] for place in start}
        for place, pair in start.items():
            for name, states in zip(self.names[place], pair, strict=True):
                # Contiguous, as a checkpoint has the optimizer's state: its fused step takes both as they lie
                # in memory.
                own = states.float().clone(memory_format=torch.contiguous_format)
                if scaled:
                    # Without the first token, mostly the attention sink, whose keys have another size.
                    most = own[..., 1:, :] if own.shape[-2] > 1 else own
                    unit = most.square().mean((-3, -2, -1), keepdim=True).sqrt().clamp(min=SMALLEST_UNIT)
                    self.register_buffer(f"unit_{name}", unit, persistent=False)
                    own = own / unit
                self.register_parameter(name, nn.Parameter(own))

    def forward(self) -> KeyValues:
        return {place: (self._states(key), self._states(value)) for place, (key, value) in self.names.items()}

    def _states(self, name: str) -> torch.Tensor:
        states: torch.Tensor = getattr(self, name)
        unit: torch.Tensor | None = getattr(self, f"unit_{name}", None)
        return states if unit is None else states * unit


def _parameter(place: str, part: str) -> str:
    """A parameter's name within its stream, by which checkpoints have it: `key`, `key_3`."""
    return _attribute(place, part).partition("_")[2]


class Network(nn.Module):
    """Embedding(P, W) -> Linear(W, W) -> tanh -> Linear(W, N), for one stream.

    N is how many numbers one virtual token's keys and values have in all layers. With a starting point the
    last layer starts at zero, so that the first forward pass gives the starting point itself; without one it
    has PyTorch's usual initialisation.
    """

    def __init__(
        self,
        start: Mapping[str, KeyValuePair],
        width: int,
        from_start: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        # What stands in front of P and behind it: [L, H, P, D], or [H, P, D] of one layer.
        self.sizes = {
            place: (tuple(key.shape[:-2]), key.shape[-1], value.shape[-1])
            for place, (key, value) in start.items()
        }
        length = next(iter(start.values()))[0].shape[-2]
        self.embedding = nn.Embedding(length, width, _weight=torch.empty(length, width))
        self.inner = nn.utils.skip_init(nn.Linear, width, width)
        self.outer = nn.utils.skip_init(nn.Linear, width, sum(self._widths()))
        with torch.no_grad():
            self.embedding.weight.normal_(generator=generator)
            for linear in (self.inner, self.outer):
                bound = linear.in_features**-0.5  # nn.Linear's own initialisation
                linear.weight.uniform_(-bound, bound, generator=generator)
                linear.bias.uniform_(-bound, bound, generator=generator)
            if from_start:
                self.outer.weight.zero_()
                self.outer.bias.zero_()
        self.from_start = from_start
        # Not persistent: rebuilt from the initialisation, and part of the checkpoint in its own right.
        for place, pair in start.items() if from_start else ():
            for part, states in zip(("key", "value"), pair, strict=True):
                self.register_buffer(
                    f"start_{_parameter(place, part)}", states.float().clone(), persistent=False
                )

    def _widths(self) -> list[int]:
        return [math.prod(lead) * (key_dim + value_dim) for lead, key_dim, value_dim in self.sizes.values()]

    def forward(self) -> KeyValues:
        flat_PN = self.outer(torch.tanh(self.inner(self.embedding.weight)))
        key_values: KeyValues = {}
        for place, states_PN in zip(self.sizes, flat_PN.split(self._widths(), dim=1), strict=True):
            lead, key_dim, value_dim = self.sizes[place]
            states = states_PN.view(-1, *lead, key_dim + value_dim).movedim(0, -2)
            key, value = states.split([key_dim, value_dim], dim=-1)
            if self.from_start:
                key = getattr(self, f"start_{_parameter(place, 'key')}") + key
                value = getattr(self, f"start_{_parameter(place, 'value')}") + value
            key_values[place] = key, value
        return key_values


@dataclass(frozen=True)
class TrainedPrefix:
    """A prefix in training, as a `Trainable` of the loop; a call of `parameters` gives keys and values."""

    parameters: nn.Module
    placement: Placement = "prefix"
    positions: Positions = "text-after-prefix"

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """All of the module's."""
        return self.parameters.named_parameters()

    def key_values(self) -> KeyValues:
        """The keys and values that the parameters stand for now."""
        return self.parameters()  # type: ignore[no-any-return]

    def tensors(self) -> dict[str, torch.Tensor]:
        """The prefix as it is now, by the names of `Prefix.tensors`, on the CPU."""
        with torch.no_grad():
            key_values = self.key_values()
        return {name: tensor.detach().cpu().clone() for name, tensor in tensor_names(key_values).items()}
