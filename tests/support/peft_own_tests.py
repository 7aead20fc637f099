"""A pytest plugin that runs PEFT's own tests on folders that `export_peft` wrote.

PEFT's tests are not in its wheel. With its source beside this project, from the folder of that source:

    PYTHONPATH=.:<this project>/tests pytest -p support.peft_own_tests tests/test_decoder_models.py \
        -k "(PrefixTuning or prefix_tuning) and not GPTJ"

Wherever a test would make a new prefix tuning, it gets one that Foreword exported and PEFT loaded. Models
that the tests fetch from the hub are replaced by tiny ones of the same kind with random weights.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import sys
import tempfile
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import peft
import pytest
import torch
import transformers

from foreword import BaseModel
from foreword.interop import export_peft
from support.stand_ins import byte_tokenizer, random_prefix

_COMMON: dict[str, Any] = {"vocab_size": 1000, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_LLAMA: dict[str, Any] = {
    **_COMMON,
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "head_dim": 8,
}
CONFIGS = {
    "opt": transformers.OPTConfig(
        **_COMMON,
        hidden_size=32,
        ffn_dim=37,
        num_hidden_layers=5,
        num_attention_heads=4,
        max_position_embeddings=100,
        word_embed_proj_dim=32,
    ),
    "gpt2": transformers.GPT2Config(**_COMMON, n_embd=32, n_layer=5, n_head=4, n_positions=512),
    "llama": transformers.LlamaConfig(**_LLAMA),
    "qwen2": transformers.Qwen2Config(**_LLAMA),
    "qwen3": transformers.Qwen3Config(**_LLAMA),
    "gemma3": transformers.Gemma3TextConfig(**_LLAMA, sliding_window=128),
    "mistral": transformers.MistralConfig(**_LLAMA),
}

exported = 0
_make, _load = peft.get_peft_model, transformers.AutoModelForCausalLM.from_pretrained


def _tiny_model(cls: Any, name: Any, *arguments: Any, **named: Any) -> Any:
    if Path(str(name)).exists():
        return _load(name, *arguments, **named)
    kind = next((kind for kind in CONFIGS if kind in str(name).lower()), None)
    if kind is None:
        pytest.skip(f"there is no tiny model of the kind of {name}")
    torch.manual_seed(0)
    wanted = {option: named[option] for option in ("dtype", "attn_implementation") if option in named}
    model = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[kind]), **wanted)
    model.name_or_path = model.config._name_or_path = str(name)
    return model.eval()


def _exported_model(model: Any, config: Any, adapter_name: str = "default", **named: Any) -> Any:
    if not isinstance(config, peft.PrefixTuningConfig) or config.prefix_projection:
        return _make(model, config, adapter_name, **named)
    global exported
    exported += 1
    twin = copy.deepcopy(model).float().cpu()  # a base model takes Foreword's attention; the test's must not
    base = BaseModel(twin, byte_tokenizer(), name=model.config._name_or_path)
    folder = Path(tempfile.mkdtemp()) / "exported"
    export_peft(random_prefix(base, config.num_virtual_tokens), folder, base)
    return peft.PeftModel.from_pretrained(model, folder, adapter_name=adapter_name)


def pytest_configure(config: pytest.Config) -> None:
    """Before PEFT's tests import anything; what they import for other methods need not be installed."""
    for name, attribute in (("diffusers", "StableDiffusionPipeline"), ("datasets", "Dataset")):
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = ModuleType(name)
            sys.modules[name].__spec__ = ModuleSpec(name, loader=None)
            for wanted in (attribute, "load_dataset"):
                setattr(sys.modules[name], wanted, type(wanted, (), {}))
    peft.get_peft_model = _exported_model
    transformers.AutoModelForCausalLM.from_pretrained = classmethod(_tiny_model)


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [m for name, m in sys.modules.items() if name.startswith("tests.")]:
        if hasattr(module, "hub_online_once"):
            monkeypatch.setattr(module, "hub_online_once", lambda *_, **__: contextlib.nullcontext())


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.write_line(f"{exported} exported folders were loaded by PEFT")
