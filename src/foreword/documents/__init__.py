"""Where a prefix is made from a text."""
