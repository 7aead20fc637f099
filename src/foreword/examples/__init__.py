"""Examples: what a prefix is learned from, and the readers for each data format."""

from foreword.examples.example import Example

__all__ = ["Example"]
