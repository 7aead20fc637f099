"""Metrics for Prometheus. No owner, model or key is a label: what one does is no other's business."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from foreword.errors import ForewordError
from foreword.serving import logs

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry, buckets=SECONDS)
        self.requests = counter("foreword_requests", "Requests by route and status.", ("route", "status"))
        self.request_seconds = histogram(
            "foreword_request_seconds",
            "From the first byte of a request to the last of its answer.",
            ("route",),
        )
        self.first_token = histogram(
            "foreword_first_token_seconds", "From a checked request to its first text."
        )
        self.tokens = counter(
            "foreword_tokens", "Tokens of prompts and answers, virtual ones not among them.", ("kind",)
        )
        self.rows = gauge("foreword_rows", "Texts that are being written or wait for it.")
        self.running = gauge("foreword_requests_running", "Requests under way.")
        self.prefix_load = histogram(
            "foreword_prefix_load_seconds",
            "From a model's name to its checked prefix, from whichever tier.",
            buckets=(0.0005, 0.001, 0.0025, *SECONDS),
        )
        self.refused = counter("foreword_refused", "Requests refused, by code.", ("code",))

    def measure(
        self,
        name: str,
        text: str,
        read: Callable[[], Mapping[str, float]],
        label: str,
        seconds: float = 0.0,
    ) -> None:
        """Add gauges that are read when Prometheus asks, by one label, and not again for some seconds."""
        self.registry.register(_Readings(name, text, read, label, seconds))

    def exposition(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self.registry)


@dataclass(eq=False)  # the registry tells them apart by identity
class _Readings(Collector):
    name: str
    text: str
    read: Callable[[], Mapping[str, float]]
    label: str
    seconds: float
    _until: float = 0.0
    _last: Mapping[str, float] = field(default_factory=dict)

    def collect(self) -> Iterable[Metric]:
        """What is read now, or was a moment ago."""
        if time.monotonic() >= self._until:
            try:
                self._last = self.read()
            except ForewordError as error:  # the database is away: the others are told all the same
                logs.failure("not measured", error, measurement=self.name)
                self._last = {}
            self._until = time.monotonic() + self.seconds
        family = GaugeMetricFamily(self.name, self.text, labels=(self.label,))
        for value, number in self._last.items():
            family.add_metric((value,), number)
        return [family]
