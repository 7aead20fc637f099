"""Fewer and shorter prompts for tiny models that compile documents: what is measured is not their number."""

from __future__ import annotations

import pytest

from foreword.documents.conversations import Conversation

PROMPTS = ["Hello?", "Two plus two?", "A colour?"]


def take_few_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train beside three unrelated prompts, and measure harm on them."""
    others = [Conversation(each, "Yes.", None, "unrelated") for each in PROMPTS]
    monkeypatch.setattr("foreword.documents.studies.unrelated", lambda: others)
    monkeypatch.setattr("foreword.documents.report.harm_prompts", lambda: PROMPTS)
    monkeypatch.setattr("foreword.documents.report.HARM_TOKENS", 4)
