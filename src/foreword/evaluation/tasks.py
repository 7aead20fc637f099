"""Tasks: the paper's data sets as plain data: where they are, how they are read, decoded and scored.

What a number means and where it is from stands beside it. "paper": Li & Liang 2021 and its code,
XiangLi1999/PrefixTuning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from foreword.errors import UsageError

Layout = Literal["e2e", "webnlg", "dart", "records"]


@dataclass(frozen=True)
class HubData:
    """Where `datasets` finds the task: repository, configuration, and what it calls the splits."""

    repository: str
    configuration: str | None = None
    splits: Mapping[str, str] = field(
        default_factory=lambda: {"train": "train", "dev": "validation", "test": "test"}
    )


@dataclass(frozen=True)
class Task:
    """A data set, and everything that has to be alike for its figures to be compared.

    Attributes:
        layout: how its official files are written: `records` are JSON lines.
        hub: its name at the Hugging Face Hub, for `datasets`.
        fields: for records: (source, target) names, the first pair that a file has counts.
        source_is_list: for records: the source is a list of sentences, as SciTLDR has it, or a text.
        owner_field: for records: who wrote it, where the data says so.
        decoding: for `generate` and `evaluate`.
        cut_source: tokens after which sources are cut, for those longer than most windows; None: never.
        metrics: names of `foreword.evaluation.metrics`.
        unseen: categories that the official training data does not have.
    """

    name: str
    title: str
    layout: Layout
    hub: HubData
    decoding: Mapping[str, Any]
    metrics: tuple[str, ...]
    fields: tuple[tuple[str, str], ...] = ()
    source_is_list: bool = False
    owner_field: str | None = None
    cut_source: int | None = None
    unseen: frozenset[str] = frozenset()


# paper: "beam 5, at most 100 new tokens, length penalty 1, newlines forbidden" for tables.
TABLES: Mapping[str, Any] = MappingProxyType(
    {"beams": 5, "max_new_tokens": 100, "length_penalty": 1.0, "banned": ("\n",)}
)

_ALL = (
    Task(
        name="e2e",
        title="E2E NLG Challenge",
        layout="e2e",
        hub=HubData("tuetschek/e2e_nlg"),
        decoding=TABLES,
        metrics=("e2e",),
    ),
    Task(
        name="webnlg",
        title="WebNLG 2017",
        layout="webnlg",
        hub=HubData(
            "webnlg-challenge/web_nlg",
            "webnlg_challenge_2017",
            {"train": "train", "dev": "dev", "test": "test"},
        ),
        decoding=TABLES,
        metrics=("webnlg",),
        unseen=frozenset({"Athlete", "Artist", "CelestialBody", "MeanOfTransportation", "Politician"}),
    ),
    Task(
        name="dart",
        title="DART 1.1.1",
        layout="dart",
        hub=HubData("Yale-LILY/dart"),
        decoding=TABLES,
        metrics=("dart",),
    ),
    Task(
        name="xsum",
        title="XSum",
        layout="records",
        fields=(("document", "summary"), ("source", "target")),
        hub=HubData("EdinburghNLP/xsum"),
        # beams and lengths: paper's code; length penalty: paper's text, from memory.
        decoding=MappingProxyType(
            {"beams": 6, "min_new_tokens": 11, "max_new_tokens": 62, "length_penalty": 0.8}
        ),
        cut_source=512,
        metrics=("rouge",),
    ),
    Task(
        name="cnn",
        title="CNN/Daily Mail",
        layout="records",
        fields=(("article", "highlights"), ("source", "target")),
        hub=HubData("abisee/cnn_dailymail", "3.0.0"),
        # BART's published setting (Lewis et al. 2020); the paper has no figures for this task.
        decoding=MappingProxyType(
            {"beams": 4, "min_new_tokens": 55, "max_new_tokens": 140, "length_penalty": 2.0}
        ),
        cut_source=1024,
        metrics=("rouge",),
    ),
    Task(
        name="scitldr",
        title="SciTLDR, abstracts",
        layout="records",
        fields=(("source", "target"),),
        source_is_list=True,
        hub=HubData("allenai/scitldr", "Abstract"),
        decoding=MappingProxyType({"beams": 5, "max_new_tokens": 62, "length_penalty": 1.0}),  # our choice
        metrics=("rouge",),
    ),
    Task(
        name="aeslc",
        title="AESLC, subject lines of e-mails",
        layout="records",
        fields=(("email_body", "subject_line"), ("source", "target")),
        owner_field="user",
        hub=HubData("Yale-LILY/aeslc"),
        decoding=MappingProxyType(
            {"beams": 5, "max_new_tokens": 32, "length_penalty": 1.0, "banned": ("\n",)}  # our choice
        ),
        metrics=("rouge",),
    ),
)

TASKS: Mapping[str, Task] = MappingProxyType({task.name: task for task in _ALL})


def find_task(name: str) -> Task:
    """The task called `name`.

    Raises:
        UsageError: there is none.
    """
    if name not in TASKS:
        raise UsageError(f"no task {name!r}; expected {', '.join(TASKS)}")
    return TASKS[name]
