"""The frozen base model, and how a prefix enters its attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foreword import _aliases

if TYPE_CHECKING:
    from foreword.base.base_model import BaseModel

__all__ = ["BaseModel"]


def __getattr__(name: str) -> Any:
    """BaseModel, imported when it is first used: other files of this folder must not wait for it."""
    if name == "BaseModel":
        from foreword.base.base_model import BaseModel

        return BaseModel
    return _aliases.old_name(__name__, name)
