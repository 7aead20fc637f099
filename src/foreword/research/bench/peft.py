"""PEFT's prefix tuning as a user would run it: the peer that Foreword is measured against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import PrefixTuningConfig, TaskType, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from foreword.base.base_model import BaseModel
from foreword.encoding import EncodedExample
from foreword.training.trainer import rate_factor


def load(folder: str, *, length: int, projection: bool, like: BaseModel) -> Any:
    """A frozen model with a fresh PEFT prefix of `length` virtual tokens, in type and place of `like`."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=like.dtype, attn_implementation="sdpa")
    config = PrefixTuningConfig(
        task_type=TaskType.CAUSAL_LM,
        num_virtual_tokens=length,
        prefix_projection=projection,
        encoder_hidden_size=512 if projection else None,
    )
    return get_peft_model(model, config).to(like.device)


def padded(rows: Sequence[EncodedExample], pad_id: int = 0) -> dict[str, torch.Tensor]:
    """Right-padded inputs with labels on the target tokens, as a collator makes them."""
    longest = max(row.tokens + 1 for row in rows)
    ids = torch.full((len(rows), longest), pad_id)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full((len(rows), longest), -100)
    for index, row in enumerate(rows):
        text = [*row.source_ids, *row.target_ids]
        ids[index, : len(text)] = torch.tensor(text)
        mask[index, : len(text)] = 1
        labels[index, len(row.source_ids) : len(text)] = torch.tensor(row.target_ids)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _inputs(model: Any, rows: Sequence[EncodedExample]) -> dict[str, torch.Tensor]:
    return {name: tensor.to(model.device) for name, tensor in padded(rows).items()}


def trainer(
    model: Any, *, learning_rate: float, warmup: int, steps: int
) -> Callable[[Sequence[EncodedExample]], float]:
    """One optimiser step on a batch, with Foreword's own schedule and clipping; returns the loss."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    done = 0

    def step(rows: Sequence[EncodedExample]) -> float:
        nonlocal done
        loss = model(**_inputs(model, rows)).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * rate_factor(done, warmup=warmup, steps=steps)
        optimizer.step()
        done += 1
        return float(loss.detach())

    return step


@torch.no_grad()
def dev_loss(model: Any, rows: Sequence[EncodedExample], batch_size: int = 8) -> float:
    """Mean loss per target token, in nats."""
    model.eval()
    total, count = 0.0, 0
    ordered = sorted(rows, key=lambda row: row.tokens)
    for start in range(0, len(ordered), batch_size):
        inputs = _inputs(model, ordered[start : start + batch_size])
        labels = inputs.pop("labels")
        logits = model(**inputs).logits[:, -labels.shape[1] :]
        losses = cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
        )
        total += float(losses)
        count += int((labels[:, 1:] != -100).sum())
    return total / count
