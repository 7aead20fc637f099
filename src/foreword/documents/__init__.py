"""Where a prefix is made from a text."""

from __future__ import annotations

from foreword.documents.compile import compile_document

__all__ = ["compile_document"]
