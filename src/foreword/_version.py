"""The release; the build reads it from here, so that importing it imports nothing."""

__version__ = "0.1.0"
