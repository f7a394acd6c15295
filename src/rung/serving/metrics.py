"""The server's Prometheus metrics; and their recent samples, with rates and quantiles, for the page of its load."""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
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


# ---- recent samples

EVERY = 2.0  # seconds between samples
KEPT = 150  # samples: five minutes
OWN = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/tasks/{name}/predict")  # those of clients


@dataclass(frozen=True, slots=True)
class MetricsSample:
    """The metrics at one moment; counters count from the server's start."""

    at: float  # `time.monotonic`
    queue: float  # pending answers
    running: float  # completions in engines
    tokens: float  # written so far
    answered: float  # requests of clients so far
    buckets: tuple[float, ...]  # how many of them took at most so many seconds, at each bound of the histogram


def sample(registry: CollectorRegistry) -> MetricsSample:
    """Read the metrics now."""
    totals: defaultdict[str, float] = defaultdict(float)
    buckets = dict.fromkeys((*map(float, SECONDS), float("inf")), 0.0)
    for family in registry.collect():
        for each in family.samples:
            labels = each.labels
            if labels.get("kind", "completion") != "completion" or labels.get("endpoint", OWN[0]) not in OWN:
                continue
            totals[each.name] += each.value
            if each.name == "rung_request_seconds_bucket":
                buckets[float(labels["le"])] += each.value
    load = totals["rung_queue"], totals["rung_running"]
    counts = totals["rung_tokens_total"], totals["rung_request_seconds_count"]
    return MetricsSample(time.monotonic(), *load, *counts, tuple(buckets.values()))


class History:
    """The latest samples of one server. `start` begins a thread that `close` ends."""

    def __init__(self, registry: CollectorRegistry, *, every: float = EVERY) -> None:
        self._registry, self._every = registry, every
        self._samples: deque[MetricsSample] = deque([sample(registry)], KEPT)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rung-history", daemon=True)

    def start(self) -> None:
        """Begin to take samples."""
        self._thread.start()

    def close(self) -> None:
        """Stop taking samples."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> list[MetricsSample]:
        """List the samples, with one of this moment at the end."""
        return [*self._samples, sample(self._registry)]

    def _run(self) -> None:
        while not self._end.wait(self._every):
            self._samples.append(sample(self._registry))


def rates(samples: Sequence[MetricsSample], name: str) -> list[float]:
    """Compute how much a counter grew a second, between each sample and the next."""
    return [
        max(0.0, (getattr(after, name) - getattr(before, name)) / max(after.at - before.at, 1e-9))
        for before, after in pairwise(samples)
    ]


def quantile(buckets: Sequence[float], share: float) -> float | None:
    """Estimate the seconds that a share of requests stays below, from cumulative counts; None without requests.

    Linear within a bucket, as Prometheus's `histogram_quantile`; the last bound for values beyond all bounds.
    """
    total = buckets[-1]
    if total == 0:
        return None
    rank, below, lower = share * total, 0.0, 0.0
    for bound, count in zip(SECONDS, buckets, strict=False):
        if count >= rank:
            return lower + (bound - lower) * (rank - below) / (count - below) if count > below else bound
        below, lower = count, float(bound)
    return float(SECONDS[-1])
