"""What of a prefix is trained, and how it becomes the keys and values of a prefix.

Everything here is thrown away after training; only the keys and values it compiles to are kept.

Shapes: L layers, H key/value heads, P prefix length, D head size, E embedding size, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from foreword.base.prefix_batch import KeyValuePair, KeyValues
from foreword.prefix import Positions, Stream, StreamGeometry
from foreword.template import Placement
from foreword.training.settings import ParameterizationSettings


class Parameterization(nn.Module):
    """The trainable parts of one prefix: one independent set for each stream."""

    def __init__(
        self,
        settings: ParameterizationSettings,
        start: Mapping[Stream, KeyValuePair],
        seed: int,
        layers: Mapping[Stream, range] | None = None,
    ) -> None:
        """Build for the shapes of `start`, the keys and values to start from, in float32.

        Args:
            layers: of each stream, the layers that are trained; the others stay as in `start`.
        """
        super().__init__()
        # A generator of its own: what another prefix in the same process draws changes nothing here.
        generator = torch.Generator().manual_seed(seed)
        self.streams = nn.ModuleDict()
        self.layers = layers
        for stream, (key, value) in start.items():
            if layers is not None or settings.freeze_first:
                self.register_buffer(f"start_{stream}_key", key.float().clone(), persistent=False)
                self.register_buffer(f"start_{stream}_value", value.float().clone(), persistent=False)
            if layers is not None:
                chosen = slice(layers[stream].start, layers[stream].stop)
                key, value = key[chosen], value[chosen]
            self.streams[stream] = (
                Direct(key, value)
                if settings.kind == "direct"
                else Network(key, value, settings.width, settings.kind == "mlp+start", generator)
            )
        self.freeze_first = settings.freeze_first

    def forward(self) -> KeyValues:
        """The prefix that the parameters stand for now: keys and values per stream, float32."""
        key_values: KeyValues = {}
        for stream, module in self.streams.items():
            key, value = module()
            key_values[stream] = (  # type: ignore[index]
                self._with_fixed(stream, "key", key),
                self._with_fixed(stream, "value", value),
            )
        return key_values

    def _with_fixed(self, stream: str, part: str, states_LHPD: torch.Tensor) -> torch.Tensor:
        """What is trained, among layers and behind a first token that stay as they were at the start."""
        start_LHPD = getattr(self, f"start_{stream}_{part}", None)
        if start_LHPD is not None and self.layers is not None:
            layers = self.layers[stream]  # type: ignore[index]
            states_LHPD = torch.cat([start_LHPD[: layers.start], states_LHPD, start_LHPD[layers.stop :]])
        if start_LHPD is not None and self.freeze_first:
            states_LHPD = torch.cat([start_LHPD[:, :, :1], states_LHPD[:, :, 1:]], dim=2)
        return states_LHPD


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
        """The prefix that the embeddings stand for now: keys and values per stream, float32."""
        embeddings_PE: torch.Tensor = self.embeddings
        if self.first_1E is not None:
            embeddings_PE = torch.cat([self.first_1E, embeddings_PE[1:]])
        return self.compile_embeddings(embeddings_PE)


class Direct(nn.Module):
    """Keys and values as parameters."""

    def __init__(self, key_LHPD: torch.Tensor, value_LHPD: torch.Tensor) -> None:
        super().__init__()
        self.key = nn.Parameter(key_LHPD.float().clone())
        self.value = nn.Parameter(value_LHPD.float().clone())

    def forward(self) -> KeyValuePair:
        return self.key, self.value


class Network(nn.Module):
    """Embedding(P, W) -> Linear(W, W) -> tanh -> Linear(W, L * H * (key size + value size)).

    With a starting point the last layer starts at zero, so that the first forward pass gives the
    starting point itself; without one it has PyTorch's usual initialisation.
    """

    def __init__(
        self,
        key_LHPD: torch.Tensor,
        value_LHPD: torch.Tensor,
        width: int,
        from_start: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        layers, heads, length, key_dim = key_LHPD.shape
        self.sizes = StreamGeometry(layers, heads, key_dim, value_LHPD.shape[3])
        self.embedding = nn.Embedding(length, width, _weight=torch.empty(length, width))
        self.inner = nn.utils.skip_init(nn.Linear, width, width)
        self.outer = nn.utils.skip_init(nn.Linear, width, layers * heads * (key_dim + value_LHPD.shape[3]))
        with torch.no_grad():
            self.embedding.weight.normal_(generator=generator)
            for linear in (self.inner, self.outer):
                bound = linear.in_features**-0.5  # nn.Linear's own initialisation
                linear.weight.uniform_(-bound, bound, generator=generator)
                linear.bias.uniform_(-bound, bound, generator=generator)
            if from_start:
                self.outer.weight.zero_()
                self.outer.bias.zero_()
        self.start_key: torch.Tensor | None
        self.start_value: torch.Tensor | None
        # Not persistent: rebuilt from the initialisation, and part of the checkpoint in its own right.
        for name, start_LHPD in (("start_key", key_LHPD), ("start_value", value_LHPD)):
            self.register_buffer(name, start_LHPD.float().clone() if from_start else None, persistent=False)

    def forward(self) -> KeyValuePair:
        g = self.sizes
        flat_PX = self.outer(torch.tanh(self.inner(self.embedding.weight)))
        states = flat_PX.view(-1, g.layers, g.kv_heads, g.key_dim + g.value_dim).permute(1, 2, 0, 3)
        key, value = states.split([g.key_dim, g.value_dim], dim=3)
        if self.start_key is not None and self.start_value is not None:
            key, value = self.start_key + key, self.start_value + value
        return key, value


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
        """The prefix as it is now: "decoder.key" and so on, `[L, H, P, D]`, on the CPU."""
        with torch.no_grad():
            key_values = self.key_values()
        return {
            f"{stream}.{part}": tensor.detach().cpu().clone()
            for stream, pair in key_values.items()
            for part, tensor in zip(("key", "value"), pair, strict=True)
        }
