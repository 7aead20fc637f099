"""Examples: what a prefix is learned from, and the readers for each data format."""

from foreword.examples.digest import digest
from foreword.examples.example import Example
from foreword.examples.grouping import references
from foreword.examples.reading import read_examples

__all__ = ["Example", "digest", "read_examples", "references"]
