"""Experiments: runs that measure a claim and write a report with the figures, each by one command."""
