"""Examples: what a prefix is learned from, and the readers for each data format."""

from foreword.examples.example import Entry, Example, digest, entries_of, examples_of, references, source_key
from foreword.examples.readers import read_examples

__all__ = [
    "Entry",
    "Example",
    "digest",
    "entries_of",
    "examples_of",
    "read_examples",
    "references",
    "source_key",
]
