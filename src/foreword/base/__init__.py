"""The frozen base model, and how a prefix enters its attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foreword.base.base_model import BaseModel

__all__ = ["BaseModel"]


def __getattr__(name: str) -> Any:
    """BaseModel, imported when it is first used: other files of this folder must not wait for it."""
    if name == "BaseModel":
        from foreword.base.base_model import BaseModel

        return BaseModel
    raise AttributeError(f"module 'foreword.base' has no attribute {name!r}")
