"""Models, prefixes and logits that the tests of import and export share."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from foreword import BaseModel, Prefix
from support import by_hand
from support.interop_models import VOCABULARY, build
from support.stand_ins import byte_tokenizer

peft = pytest.importorskip("peft")

IDS = torch.randint(1, VOCABULARY, (2, 11), generator=torch.Generator().manual_seed(3))
LENGTH = 5


def base_model(name: str = "llama", seed: int = 0, **changes: Any) -> BaseModel:
    return BaseModel(build(name, seed), byte_tokenizer(), name=f"tiny-{name}", **changes)


def peft_model(name: str = "llama", config: Any = None) -> Any:
    torch.manual_seed(1)
    config = config or peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=LENGTH)
    model = peft.get_peft_model(build(name), config).eval()
    model.peft_config["default"].base_model_name_or_path = f"tiny-{name}"
    return model


def logits(base: BaseModel, prefix: Prefix) -> torch.Tensor:
    with torch.no_grad():
        return torch.stack(
            [by_hand.logits(base.model, ids, by_hand.layers_of(prefix)) for ids in IDS.tolist()]
        )


def difference(mine: torch.Tensor, model: Any) -> float:
    with torch.no_grad():
        return float((mine - model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits).abs().max())
