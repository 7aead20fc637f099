"""Tasks: the paper's data sets as plain data: where they are, how they are read, decoded and scored.

What a number means and where it is from stands beside it. "paper": Li & Liang 2021 and its code,
XiangLi1999/PrefixTuning.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from foreword.errors import UsageError

Layout = Literal["e2e", "webnlg", "dart", "records"]


@dataclass(frozen=True)
class HubData:
    """Where `datasets` finds the task: repository, configuration, and what it calls the dev split."""

    repository: str
    configuration: str | None = None
    dev: str = "validation"

    @property
    def splits(self) -> dict[str, str]:
        """What it calls each split."""
        return {"train": "train", "dev": self.dev, "test": "test"}


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


def _tables(name: str, title: str, hub: HubData, unseen: Collection[str] = ()) -> Task:
    """A task whose sources are tables or triples, in a layout and with metrics of its own."""
    return Task(name, title, name, hub, TABLES, (name,), unseen=frozenset(unseen))  # type: ignore[arg-type]


def _summaries(
    name: str, title: str, hub: HubData, fields: tuple[str, str], decoding: Mapping[str, Any], **more: Any
) -> Task:
    """A task of summaries: records with fields of these names, or with source and target."""
    both = tuple(dict.fromkeys((fields, ("source", "target"))))
    return Task(name, title, "records", hub, MappingProxyType(decoding), ("rouge",), fields=both, **more)


_ALL = (
    _tables("e2e", "E2E NLG Challenge", HubData("tuetschek/e2e_nlg")),
    _tables(
        "webnlg",
        "WebNLG 2017",
        HubData("webnlg-challenge/web_nlg", "webnlg_challenge_2017", dev="dev"),
        unseen=("Athlete", "Artist", "CelestialBody", "MeanOfTransportation", "Politician"),
    ),
    _tables("dart", "DART 1.1.1", HubData("Yale-LILY/dart")),
    _summaries(
        "xsum",
        "XSum",
        HubData("EdinburghNLP/xsum"),
        ("document", "summary"),
        # beams and lengths: paper's code; length penalty: paper's text, from memory.
        {"beams": 6, "min_new_tokens": 11, "max_new_tokens": 62, "length_penalty": 0.8},
        cut_source=512,
    ),
    _summaries(
        "cnn",
        "CNN/Daily Mail",
        HubData("abisee/cnn_dailymail", "3.0.0"),
        ("article", "highlights"),
        # BART's published setting (Lewis et al. 2020); the paper has no figures for this task.
        {"beams": 4, "min_new_tokens": 55, "max_new_tokens": 140, "length_penalty": 2.0},
        cut_source=1024,
    ),
    _summaries(
        "scitldr",
        "SciTLDR, abstracts",
        HubData("allenai/scitldr", "Abstract"),
        ("source", "target"),
        {"beams": 5, "max_new_tokens": 62, "length_penalty": 1.0},  # our choice
        source_is_list=True,
    ),
    _summaries(
        "aeslc",
        "AESLC, subject lines of e-mails",
        HubData("Yale-LILY/aeslc"),
        ("email_body", "subject_line"),
        {"beams": 5, "max_new_tokens": 32, "length_penalty": 1.0, "banned": ("\n",)},  # our choice
        owner_field="user",
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
