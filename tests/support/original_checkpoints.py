"""Checkpoints of the original prefix-tuning code, as gpt2/train_control.py and seq2seq/prefixTuning.py write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

LENGTH, MIDDLE = 4, 6


class PrefixTuning(nn.Module):
    """The original module, as far as its result depends on it."""

    def __init__(
        self, layers: int, heads: int, size: int, *, deep: bool = False, sets: tuple[str, ...] = ("",)
    ):
        super().__init__()
        self.layers, self.heads, self.size, self.sets = layers, heads, size, sets
        width = heads * size
        for suffix in sets:
            between = [nn.Linear(MIDDLE, MIDDLE), nn.Tanh()] if deep else []
            network = nn.Sequential(
                nn.Linear(width, MIDDLE), nn.Tanh(), *between, nn.Linear(MIDDLE, layers * 2 * width)
            )
            setattr(self, f"wte{suffix}", nn.Embedding(LENGTH, width))
            setattr(self, f"control_trans{suffix}", network)
        for parameter in self.parameters():
            nn.init.normal_(parameter)

    def get_prompt(self, suffix: str = "") -> Any:
        """get_prompt_p5 for one row: per layer `[2, 1, H, P, D]`."""
        input_tokens = torch.arange(LENGTH).unsqueeze(0)
        past_key_values = getattr(self, f"control_trans{suffix}")(getattr(self, f"wte{suffix}")(input_tokens))
        past_key_values = past_key_values.view(1, LENGTH, self.layers * 2, self.heads, self.size)
        return past_key_values.permute([2, 0, 3, 1, 4]).split(2)


def save(module: nn.Module, folder: Path) -> Path:
    folder.mkdir()
    torch.save(module.state_dict(), folder / "pytorch_model.bin")
    return folder
