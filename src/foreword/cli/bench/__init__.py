"""`foreword bench`: speed and memory on this machine."""

from foreword.cli.bench.commands import app

__all__ = ["app"]
