"""The local engine: rows of many requests in one continuous batch."""
