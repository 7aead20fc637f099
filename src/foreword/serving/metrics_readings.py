"""Measuring: what Prometheus gets to know of the caches, the jobs and the engine, read when it asks."""

from __future__ import annotations

from foreword.serving.api.state import ServerState
from foreword.serving.jobs import queue
from foreword.serving.jobs.supervisor import Supervisor


def add_readings(server: ServerState, supervisor: Supervisor | None) -> None:
    """Add what is measured only when Prometheus asks."""
    metrics, store = server.metrics, server.store
    memory = store.cache.memory
    metrics.measure(
        "foreword_cache_bytes", "Prefix files kept.", lambda: {"memory": float(memory.size)}, "tier"
    )
    metrics.measure(
        "foreword_cache_prefixes", "Prefixes kept.", lambda: {"memory": float(len(memory))}, "tier"
    )
    metrics.measure("foreword_cache_reads", "Prefixes read so far.", lambda: dict(store.cache.reads), "tier")
    metrics.measure("foreword_jobs", "Jobs.", lambda: queue.counted(store.catalogue), "state")
    metrics.measure(
        "foreword_training",
        "Training: tokens of finished jobs; processes of this server.",
        lambda: {
            "tokens": queue.trained_tokens(store.catalogue),
            "running": float(supervisor is not None and supervisor.runs),
            "started": float(supervisor.started if supervisor else 0),
            "died": float(supervisor.died if supervisor else 0),
        },
        "what",
    )
    # An engine that can tell more does: how full its batches are, how many rows wait.
    if (facts := getattr(server.engine, "measurements", None)) is not None:
        metrics.measure("foreword_engine", "The engine's own measurements.", facts, "what")
