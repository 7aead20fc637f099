"""Loss, gradient and measures of TRL's own trainer, of the same pairs behind the same prefix."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from peft import PrefixTuningConfig

from foreword import BaseModel, Prefix, Template
from foreword.base.prefix_batch import PrefixBatch
from foreword.examples import Preference
from foreword.interop.peft import export_peft
from foreword.training.preference import DPO, encode_preferences, with_reference
from support.stand_ins import END, byte_tokenizer, random_prefix, tiny_llama

REASON = "not installed; the extra dev has trl, which brings datasets"
datasets = pytest.importorskip("datasets", reason=REASON)
trl = pytest.importorskip("trl", reason=REASON)

PAIRS = [
    Preference("how are you? ", "fine, thanks", "go away"),
    Preference("the time: ", "four", "four oh four, and then some"),
    Preference("a", "b", "c"),
]
LENGTH, BETA = 4, 0.3
TEMPLATE = Template(style="raw", end=END)


def in_peft(prefix: Prefix, base: BaseModel, folder: Path) -> torch.Tensor:
    """Keys and values as PEFT's embedding has them, `[P, N]`."""
    export_peft(prefix, folder, base)
    return safetensors.torch.load_file(folder / "adapter_model.safetensors")["prompt_embeddings"]


def trl_trainer(folder: Path, loss_type: str = "sigmoid") -> Any:
    columns = [{"prompt": p.source, "chosen": p.chosen, "rejected": p.rejected} for p in PAIRS]
    settings: dict[str, Any] = {"bf16": False, "use_cpu": True, "gradient_checkpointing": False}
    return trl.DPOTrainer(
        model=tiny_llama(),
        args=trl.DPOConfig(
            output_dir=str(folder),
            beta=BETA,
            report_to=[],
            per_device_train_batch_size=len(PAIRS),
            **settings,
        ),
        train_dataset=datasets.Dataset.from_list(columns),
        processing_class=byte_tokenizer(),
        peft_config=PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=LENGTH),
    )


@pytest.mark.filterwarnings("ignore")  # those of other libraries about each other
def test_loss_and_gradient_are_those_of_trl(tmp_path: Path) -> None:
    base = BaseModel(tiny_llama(), byte_tokenizer(), name="tiny-llama")
    prefix = random_prefix(base, LENGTH)
    trainer = trl_trainer(tmp_path / "trl")
    weight_PN = next(each for each in trainer.model.parameters() if each.requires_grad)
    with torch.no_grad():
        weight_PN.copy_(in_peft(prefix, base, tmp_path / "prefix"))
    trainer.model.train()
    expected = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
    expected.backward()

    encoded, _ = encode_preferences(PAIRS, base.tokenizer, TEMPLATE)
    pairs = with_reference(base, encoded, None, "prefix")
    leaves = {
        stream: (key.clone().requires_grad_(), value.clone().requires_grad_())
        for stream, (key, value) in prefix.key_values().items()
    }
    prefixes = PrefixBatch.from_tensors([leaves], [0] * len(pairs), ["prefix"], [base.positions])
    found = DPO(BETA).losses(base, pairs, prefixes)
    found.losses_M.mean().backward()

    torch.testing.assert_close(found.losses_M.mean(), expected, rtol=1e-4, atol=1e-5)
    (key, value) = leaves["decoder"]
    gradient = dataclasses.replace(prefix, tensors={"decoder.key": key.grad, "decoder.value": value.grad})
    gradient_PN = in_peft(gradient, base, tmp_path / "gradient")
    assert float(gradient_PN.abs().max()) > 1e-3
    torch.testing.assert_close(gradient_PN, weight_PN.grad, rtol=1e-3, atol=1e-5)
    for name, theirs in (("reward_accuracy", "rewards/accuracies"), ("reward_margin", "rewards/margins")):
        assert float(found.measures[name].mean()) == pytest.approx(
            trainer._metrics["train"][theirs][0], rel=1e-3
        )
