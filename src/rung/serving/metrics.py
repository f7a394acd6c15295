"""The server's Prometheus metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from rung.serving.limits import Gate
    from rung.serving.served import Served

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)  # bounds of the histograms
CAPTURE = {
    "offered": "Interactions offered to capture.",
    "left_out": "Interactions that the mode of capture leaves out.",
    "dropped": "Interactions lost: the queue was full, or the store could not be written.",
    "waiting": "Interactions that wait to be written.",
    "written": "Interactions in the store.",
}
SHADOW = {
    "offered": "Rows that a challenger should answer after the response.",
    "dropped": "Rows dropped: the queue was full, or the server ended.",
    "waiting": "Rows that wait for their turn, or for a moment without clients.",
    "beside": "Rows that ran beside clients, because the server was never idle.",
    "answered": "Rows that a challenger answered.",
    "failed": "Rows that a challenger failed on; recorded with an empty answer.",
}


class Metrics:
    """Counters and gauges of one server. Labels take few values: names of models only where they are served."""

    def __init__(self, served: Served, gate: Gate) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        timed: dict[str, Any] = {"registry": self.registry, "buckets": SECONDS}
        self.requests = Counter("rung_requests", "Requests, by status.", ["endpoint", "status"], **own)
        meaning = "From a request's first byte to the answer's last."
        self.seconds = Histogram("rung_request_seconds", meaning, ["endpoint"], **timed)
        meaning = "From a request's first byte to the first token."
        self.first_token = Histogram("rung_first_token_seconds", meaning, ["model"], **timed)
        self.tokens = Counter("rung_tokens", "Tokens read (prompt) and written (completion).", ["model", "kind"], **own)
        self.failures = Counter("rung_failures", "Requests that failed, by error code.", ["code"], **own)
        self.cancelled = Counter("rung_cancelled", "Requests whose client left before the end.", **own)
        self.registry.register(_Load(served, gate))

    def used(self, model: str, prompt: int, completion: int) -> None:
        """Count the tokens of an answer."""
        self.tokens.labels(model, "prompt").inc(prompt)
        self.tokens.labels(model, "completion").inc(completion)

    def watch(self, prefix: str, meanings: Mapping[str, str], counts: Callable[[], Any]) -> None:
        """Export the attributes of `counts()`, read at each scrape; `meanings` maps them to their descriptions."""
        for name, meaning in meanings.items():
            gauge = Gauge(f"{prefix}_{name}", meaning, registry=self.registry)
            gauge.set_function(lambda name=name: float(getattr(counts(), name)))  # type: ignore[misc]

    def text(self) -> bytes:
        """Format all metrics for Prometheus."""
        return generate_latest(self.registry)


class _Load(Collector):
    """Gauges of the queue and the engines, read at each scrape."""

    def __init__(self, served: Served, gate: Gate) -> None:
        self._served, self._gate = served, gate

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily("rung_queue", "Pending answers, those being written included.", self._gate.inside)
        yield GaugeMetricFamily("rung_queue_limit", "Most answers that may be pending.", self._gate.limit)
        running = GaugeMetricFamily("rung_running", "Completions in an engine.", labels=["model"])
        waiting = GaugeMetricFamily("rung_waiting", "Completions and calls before an engine.", labels=["model"])
        for name, scheduler in self._served.schedulers():
            running.add_metric([name], scheduler.running)
            waiting.add_metric([name], scheduler.waiting)
        yield from (running, waiting)
