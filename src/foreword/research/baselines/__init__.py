"""Baselines: other ways to adapt the base model, in one harness with prefixes, for experiments to compare."""
