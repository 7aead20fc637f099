"""Baselines: other ways to adapt the base model, trained and measured like prefixes, to compare them with."""
