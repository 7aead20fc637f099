"""Where a prefix is made from a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foreword.documents.compile import compile_document
    from foreword.documents.compile_many import compile_documents

__all__ = ["compile_document", "compile_documents"]


def __getattr__(name: str) -> Any:
    """Imported when first used: the command line's help reads the settings, not torch."""
    if name == "compile_document":
        from foreword.documents.compile import compile_document

        return compile_document
    if name == "compile_documents":
        from foreword.documents.compile_many import compile_documents

        return compile_documents
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
