"""Conversations about a document, from which a prefix that stands for it is trained.

A prefix is trained on question and answer, and the teacher reads the same with a chunk of the document in
its context. Where they come from: drawn.py makes them of the text's own sentences, written.py lets a model
write them, and a file can hold the user's own.
"""

from __future__ import annotations

from dataclasses import dataclass

from foreword.template import Source


@dataclass(frozen=True)
class Conversation:
    """A question about a document, and an answer.

    Attributes:
        source: the question, or messages that end in one.
        target: the answer, on whose tokens the prefix is trained to predict as the teacher does.
        chunk: number of the chunk that the teacher has in its context; None: of an unrelated prompt, where
            the teacher is the base without anything.
        kind: how it was made, such as "continue", "cloze", "written", "given", "unrelated".
    """

    source: Source
    target: str
    chunk: int | None
    kind: str
