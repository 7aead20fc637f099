"""Training: one loop for one prefix or many; schedule, checkpoints, resume, early stop."""

from foreword.training.run_log import Progress
from foreword.training.settings import TrainingSettings
from foreword.training.train import TrainingStopped, train
from foreword.training.train_many import train_many

__all__ = ["Progress", "TrainingSettings", "TrainingStopped", "train", "train_many"]
