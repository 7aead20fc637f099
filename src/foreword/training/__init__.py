"""Training: one loop for one prefix or many; schedule, checkpoints, resume, early stop."""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foreword.training.run_log import Progress
    from foreword.training.settings import TrainingSettings
    from foreword.training.train import TrainingStopped, train
    from foreword.training.train_many import train_many

__all__ = ["Progress", "TrainingSettings", "TrainingStopped", "train", "train_many"]

_HOMES = {
    "Progress": "run_log",
    "TrainingSettings": "settings",
    "TrainingStopped": "train",
    "train": "train",
    "train_many": "train_many",
}


class _Package(types.ModuleType):
    """The package, whose names are imported when first used: help reads the settings, not torch.

    `train` and `train_many` are functions and the modules that they stand in. The import of such a
    module would put it in the function's place here, so each name is a property that can't be replaced.
    """


def _lazy(name: str) -> property:
    def found(package: types.ModuleType) -> Any:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)

    def keep(package: types.ModuleType, value: Any) -> None:
        pass

    return property(found, keep)


for _name in _HOMES:
    setattr(_Package, _name, _lazy(_name))
sys.modules[__name__].__class__ = _Package
