"""Serving: the OpenAI API over one base model and any number of prefixes."""
