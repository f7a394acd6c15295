"""What a server tells Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from rung.serving.limits import Gate
    from rung.serving.served import Served

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counters and gauges of one server. Labels take few values: names of models only where they are served."""

    def __init__(self, served: Served, gate: Gate) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        self.requests = Counter("rung_requests", "Requests, by status.", ["endpoint", "status"], registry=own)
        self.seconds = Histogram(
            "rung_request_seconds", "From a request's first byte to the answer's last.", ["endpoint"],
            buckets=SECONDS, registry=own,
        )  # fmt: skip
        self.first = Histogram(
            "rung_first_token_seconds", "From a request's first byte to the first token.", ["model"],
            buckets=SECONDS, registry=own,
        )  # fmt: skip
        self.tokens = Counter(
            "rung_tokens", "Tokens read (prompt) and written (completion).", ["model", "kind"], registry=own
        )
        self.failures = Counter("rung_failures", "Requests that failed, by error code.", ["code"], registry=own)
        self.cancelled = Counter("rung_cancelled", "Requests whose client left before the end.", registry=own)
        self.registry.register(_Now(served, gate))

    def used(self, model: str, prompt: int, completion: int) -> None:
        """Count the tokens of an answer."""
        self.tokens.labels(model, "prompt").inc(prompt)
        self.tokens.labels(model, "completion").inc(completion)

    def watch(self, prefix: str, told: Mapping[str, str], counts: Callable[[], Any]) -> None:
        """Show counts that are read when they are asked for: `told` says what each attribute of them means."""
        for name, meaning in told.items():
            gauge = Gauge(f"{prefix}_{name}", meaning, registry=self.registry)
            gauge.set_function(lambda name=name: float(getattr(counts(), name)))  # type: ignore[misc]

    def text(self) -> bytes:
        """Return everything in Prometheus's text format."""
        return generate_latest(self.registry)


class _Now(Collector):
    """Gauges that are read when they are asked for."""

    def __init__(self, served: Served, gate: Gate) -> None:
        self._served, self._gate = served, gate

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily("rung_queue", "Answers waited for, those under way included.", self._gate.inside)
        yield GaugeMetricFamily("rung_queue_limit", "Most answers that may be waited for.", self._gate.limit)
        running = GaugeMetricFamily("rung_running", "Completions in an engine.", labels=["model"])
        waiting = GaugeMetricFamily("rung_waiting", "Completions and calls before an engine.", labels=["model"])
        for name, scheduler in self._served.schedulers():
            running.add_metric([name], scheduler.running)
            waiting.add_metric([name], scheduler.waiting)
        yield running
        yield waiting
