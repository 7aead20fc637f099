"""Fine-tuning jobs: their queue, the worker that runs them, uploaded files."""
