"""Experiments: each measures a claim on the user's data by one command and writes a report."""
