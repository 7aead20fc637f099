"""Fuzzers for everything that reads what others wrote: `make test-fuzz`, and longer by `make fuzz`."""

from fuzz import configurations, documents, foreign_files, prefix_files, requests, training_files
from fuzz.harness import Target

TARGETS: tuple[Target, ...] = (
    prefix_files.TARGET,
    training_files.TARGET,
    configurations.TARGET,
    foreign_files.TARGET,
    documents.TARGET,
    requests.TARGET,
)
