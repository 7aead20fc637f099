"""`foreword reproduce`: an experiment, and a report with its figures."""

from foreword.cli.reproduce.commands import app

__all__ = ["app"]
