"""Evaluation: the loss of examples under a prefix, and scores of the texts generated with it."""

from foreword.evaluation.evaluate import Evaluation, TokenLoss, evaluate, token_loss
from foreword.evaluation.metrics import METRICS, score
from foreword.evaluation.metrics.bleu_chrf_rouge import TextScores, text_scores
from foreword.evaluation.scoring import Prediction, read_outputs, scores_by_part
from foreword.evaluation.task_data import cut_sources, fetch_task, read_task, without_categories
from foreword.evaluation.tasks import TASKS, Task, find_task

__all__ = [
    "METRICS",
    "TASKS",
    "Evaluation",
    "Prediction",
    "Task",
    "TextScores",
    "TokenLoss",
    "cut_sources",
    "evaluate",
    "fetch_task",
    "find_task",
    "read_outputs",
    "read_task",
    "score",
    "scores_by_part",
    "text_scores",
    "token_loss",
    "without_categories",
]
