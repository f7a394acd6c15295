"""What the server's metrics were lately, for charts: a sample every few seconds while the server runs."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from rung.serving.metrics import SECONDS

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

EVERY = 2.0  # seconds
KEPT = 150  # samples: five minutes
OWN = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/tasks/{name}/predict")  # those of clients


@dataclass(frozen=True, slots=True)
class Sample:
    """The metrics at one moment; counters count from the server's start.

    Attributes:
        at: `time.monotonic`.
        queue: answers waited for.
        running: completions in engines.
        tokens: written so far.
        answered: requests of clients so far.
        buckets: how many of them took at most so many seconds, at each bound of the histogram.
    """

    at: float
    queue: float
    running: float
    tokens: float
    answered: float
    buckets: tuple[float, ...]


def sample(registry: CollectorRegistry) -> Sample:
    """Read the metrics now."""
    queue = running = tokens = answered = 0.0
    buckets = dict.fromkeys((*map(float, SECONDS), float("inf")), 0.0)
    for family in registry.collect():
        for one in family.samples:
            if one.name == "rung_queue":
                queue = one.value
            elif one.name == "rung_running":
                running += one.value
            elif one.name == "rung_tokens_total" and one.labels["kind"] == "completion":
                tokens += one.value
            elif one.name == "rung_request_seconds_bucket" and one.labels["endpoint"] in OWN:
                buckets[float(one.labels["le"])] += one.value
            elif one.name == "rung_request_seconds_count" and one.labels["endpoint"] in OWN:
                answered += one.value
    return Sample(time.monotonic(), queue, running, tokens, answered, tuple(buckets.values()))


def quantile(buckets: Sequence[float], share: float) -> float | None:
    """Return the latency, in seconds, that a share of requests stay below, from cumulative counts.

    Linear within a bucket, as Prometheus's `histogram_quantile`; the last bound where it lies beyond all bounds, and
    None without requests.
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


class History:
    """The latest samples of one server. `start` begins a thread that `close` ends."""

    def __init__(self, registry: CollectorRegistry, *, every: float = EVERY) -> None:
        self._registry, self._every = registry, every
        self._samples: deque[Sample] = deque([sample(registry)], KEPT)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rung-history", daemon=True)

    def start(self) -> None:
        """Take samples from now on."""
        self._thread.start()

    def close(self) -> None:
        """Take no more."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> list[Sample]:
        """Return the samples, and one of this moment at the end."""
        return [*self._samples, sample(self._registry)]

    def _run(self) -> None:
        while not self._end.wait(self._every):
            self._samples.append(sample(self._registry))


def rates(samples: Sequence[Sample], name: str) -> list[float]:
    """Return how much a counter grew a second, between each sample and the next."""
    values = [
        (getattr(after, name) - getattr(before, name)) / max(after.at - before.at, 1e-9)
        for before, after in pairwise(samples)
    ]
    return [max(0.0, value) for value in values]


def polyline(values: Sequence[float], width: float, height: float, most: float) -> str:
    """Return the points of an SVG polyline, the newest at the right edge; `most` is the value at the top."""
    step = width / max(1, KEPT - 1)
    first = width - step * (len(values) - 1)
    return " ".join(
        f"{first + step * place:.1f},{height - height * min(1.0, value / most if most else 0.0):.1f}"
        for place, value in enumerate(values)
    )


def latencies(buckets: Sequence[float]) -> Mapping[str, float | None]:
    """Return the median and the tail."""
    return {"p50": quantile(buckets, 0.5), "p95": quantile(buckets, 0.95), "p99": quantile(buckets, 0.99)}
