"""The frozen base model, and how a prefix enters its attention."""
