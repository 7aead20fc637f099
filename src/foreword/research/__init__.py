"""Measurements: other methods to compare prefixes with, benchmarks, experiments.

Of the package only the command line imports it.
"""
