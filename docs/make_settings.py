"""Write docs/settings.md: every setting of training and of loading a base model, from its own definition.

python docs/make_settings.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foreword.base.options import ModelOptions
from foreword.serving.jobs.settings import ELSEWHERE, Hyperparameters, PreferenceHyperparameters
from foreword.training.settings import OwnersSettings, TrainingSettings
from foreword.validation import Setting, flat_settings

OUTPUT = Path(__file__).with_name("settings.md")
INTRODUCTION = """# Settings of training

Made from the settings' own definitions by `python docs/make_settings.py`; a test keeps it in step. Why the
defaults are what they are: [defaults.md](defaults.md). A setting is a keyword of `train` and `train_many`, an
option of `foreword train` and, of a fine-tuning job, a hyperparameter ([serve.md](serve.md)).

A name that a setting had before is still taken, with a word about the new one.
"""


COLUMNS = "| setting | type | default | range | option | hyperparameter | |\n|---|---|---|---|---|---|---|\n"


def render(*kinds: Any) -> str:
    """The content of docs/settings.md."""
    parts, section = [INTRODUCTION], None
    for kind in kinds or (TrainingSettings, OwnersSettings, ModelOptions):
        for each in flat_settings(kind):
            if each.section != section:
                section = each.section
                parts.append(f"\n## {section}\n\n{COLUMNS}")
            parts.append(_row(each))
        if gone := getattr(kind, "GONE", {}):
            parts.append("\nTaken, and without effect:\n\n")
            parts += [f"- `{name}`: {why}.\n" for name, why in gone.items()]
    return "".join(parts)


def _row(each: Setting) -> str:
    job = ELSEWHERE.get(each.name, each.name)
    taken = {*Hyperparameters.model_fields, *PreferenceHyperparameters.model_fields, "seed", "method"}
    old = f"; before: {', '.join(f'`{alias}`' for alias in each.aliases)}" if each.aliases else ""
    cells = (
        f"`{each.name}`",
        _type(each),
        each.shown_default or "none",
        each.range or "",
        f"`{each.option}`",
        f"`{job}`" if job in taken else "",
        f"{each.help}{old}",
    )
    return f"| {' | '.join(cells)} |\n"


def _type(each: Setting) -> str:
    if each.choices:
        return ", ".join(f"`{choice}`" for choice in each.choices)
    named = {int: "whole number", float: "number", bool: "true or false", str: "text"}
    return named.get(each.alternatives[0], "text")


if __name__ == "__main__":
    OUTPUT.write_text(render())
