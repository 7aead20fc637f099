"""Evaluation: the loss of examples under a prefix, and how close its texts come to theirs."""

from foreword.evaluation.evaluate import Evaluation, Prediction, evaluate
from foreword.evaluation.losses import TokenLoss, token_loss
from foreword.evaluation.text_metrics import TextScores, text_scores

__all__ = [
    "Evaluation",
    "Prediction",
    "TextScores",
    "TokenLoss",
    "evaluate",
    "text_scores",
    "token_loss",
]
