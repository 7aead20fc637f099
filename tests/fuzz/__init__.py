"""Fuzzers for everything that reads what others wrote: `make test-fuzz`, and longer by `make fuzz`."""

from fuzz import prefix_files
from fuzz.harness import Target

TARGETS: tuple[Target, ...] = (prefix_files.TARGET,)
