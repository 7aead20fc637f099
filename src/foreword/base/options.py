"""Model options: how a base model is loaded, each defined once. Imports no torch: help reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from foreword.validation import check_settings, setting

SECTION = "Base model"


@dataclass(frozen=True)
class ModelOptions:
    """The keywords of `BaseModel.load` that a command, a server or a file can give.

    A test holds names and defaults equal to those of `BaseModel.load`, which says what they mean.
    """

    device: str = setting(
        "auto", metavar="NAME", section=SECTION, help="auto, cpu, cuda, cuda:1, mps or balanced"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto", section=SECTION, help="Data type of the base model"
    )
    attention: Literal["auto", "sdpa", "eager"] = setting(
        "auto", section=SECTION, help="Attention implementation"
    )
    quantization: Literal["int8", "nf4"] | None = setting(
        None, section=SECTION, help="Quantize the frozen weights; see docs/quantization.md"
    )
    long_context: bool = setting(
        False,
        section=SECTION,
        help="Take LongRoPE's long factors for every text, short ones too; see docs/base-models.md",
    )

    def __post_init__(self) -> None:
        check_settings(self)
