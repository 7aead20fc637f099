"""Training: one loop for one prefix or many; schedule, checkpoints, resume, early stop."""

from foreword.training.settings import TrainingSettings
from foreword.training.train import Progress, TrainingStopped, train

__all__ = ["Progress", "TrainingSettings", "TrainingStopped", "train"]
