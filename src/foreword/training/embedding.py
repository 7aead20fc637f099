"""Input embeddings of P virtual tokens, and the keys and values that the model makes of them.

One forward pass of the frozen base model over the embeddings alone, at positions 0 to P-1. Gradients
flow back through it to the embeddings, and to no weight. A virtual token sees those in front of it,
so this is exactly what the model would hold of these tokens in front of a text (of a hybrid, states aside).

Shapes: P prefix length, E embedding size, L layers, H key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from foreword.base.attention import capture_kv
from foreword.base.base_model import BaseModel
from foreword.base.loss import keeps_logits
from foreword.base.prefix_batch import KeyValues
from foreword.encoding import EncodedExample
from foreword.errors import UnsupportedArchitecture, UsageError
from foreword.training.initialization import activations, starting_ids
from foreword.training.settings import Initialization

SAMPLED = 4096
"""Tokens of the vocabulary whose embeddings tell the size of random ones."""


def compile_embeddings(base: BaseModel, embeddings_PE: torch.Tensor) -> KeyValues:
    """Keys and values of embeddings by place, float32, with a gradient if they have one."""
    inputs_1PE = embeddings_PE[None].to(base.device, base.dtype)
    inputs: dict[str, Any] = {
        "inputs_embeds": inputs_1PE,
        "attention_mask": torch.ones(inputs_1PE.shape[:2], dtype=torch.long, device=base.device),
    }
    if keeps_logits(base.model):
        inputs["logits_to_keep"] = 1
    return capture_kv(base.model, inputs, device=embeddings_PE.device)[1]


@torch.no_grad()
def starting_embeddings(
    base: BaseModel,
    initialization: Initialization,
    length: int,
    examples: Sequence[EncodedExample],
    seed: int,
) -> torch.Tensor:
    """Input embeddings `[P, E]` to start from, float32 on the CPU: of the initialisation's tokens, or random.

    Raises:
        UsageError: an encoder-decoder, or a text without tokens.
        UnsupportedArchitecture: embeddings do not give this model what token ids give it.
    """
    if base.is_encoder_decoder:
        raise UsageError(
            f"parameterization is 'embedding', but {base.shown_name} is an encoder-decoder: one text can't "
            "give encoder, decoder and cross-attention their keys and values; take direct or mlp+start"
        )
    start_PE: torch.Tensor
    table = base.model.get_input_embeddings()
    if initialization.kind != "random":
        ids, _ = starting_ids(base, initialization, length, examples, seed)
        start_PE = table(torch.tensor(ids, device=base.device)).float().cpu()
    else:
        ids = [place % table.num_embeddings for place in range(length)]
        sampled = torch.linspace(0, table.num_embeddings - 1, min(SAMPLED, table.num_embeddings)).long()
        words = table(sampled.to(base.device)).float()  # by the module: some scale what the matrix holds
        generator = torch.Generator().manual_seed(seed)
        start_PE = torch.randn(length, words.shape[1], generator=generator) * float(words.std())
    _check_exact(base, ids)
    return start_PE


def _check_exact(base: BaseModel, ids: Sequence[int]) -> None:
    """Refuse a model to which token ids tell more than their embeddings (per-layer embeddings)."""
    config = base.model.config.get_text_config(decoder=True)
    if getattr(config, "hidden_size_per_layer_input", 0):  # from embeddings, Gemma 4 searches its vocabulary
        raise UnsupportedArchitecture(
            f"the layers of {base.shown_name} have embeddings of each token id of their own, which its input "
            "embeddings do not tell; take another parameterization than 'embedding'"
        )
    expected = activations(base, ids, ids, len(ids))
    embeddings_PE = base.model.get_input_embeddings()(torch.tensor(list(ids), device=base.device))
    try:
        compiled = compile_embeddings(base, embeddings_PE)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise UnsupportedArchitecture(f"{base.shown_name} takes no embeddings as input: {error}") from error
    far = 1e-3 if base.dtype == torch.float32 else 0.05
    pairs = (pair for place in expected for pair in zip(compiled[place], expected[place], strict=True))
    for one, other in pairs:
        if float((one.cpu() - other).norm()) > far * float(other.norm()):
            raise UnsupportedArchitecture(
                f"{base.shown_name} computes other keys and values from embeddings than from their token "
                "ids; take another parameterization than 'embedding'"
            )
