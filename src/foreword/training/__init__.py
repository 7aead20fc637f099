"""Training: one loop for one prefix or many; schedule, checkpoints, resume, early stop."""

from foreword.training.course import Progress
from foreword.training.many import train_many
from foreword.training.settings import TrainingSettings
from foreword.training.train import TrainingStopped, train

__all__ = ["Progress", "TrainingSettings", "TrainingStopped", "train", "train_many"]
