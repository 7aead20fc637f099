"""Where a prefix is made from a text."""

from __future__ import annotations

from foreword.documents.compile import compile_document
from foreword.documents.compile_many import compile_documents

__all__ = ["compile_document", "compile_documents"]
