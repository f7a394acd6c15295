"""Recent samples of the server's metrics, and the rates, quantiles and lines that the page of its load shows."""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from prometheus_client import CollectorRegistry

from rung.serving.metrics import SECONDS

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


def polyline(values: Sequence[float], width: float, height: float, most: float) -> str:
    """Format the points of an SVG polyline, the newest at the right edge; `most` is the value at the top."""
    step = width / max(1, KEPT - 1)
    first = width - step * (len(values) - 1)
    return " ".join(
        f"{first + step * i:.1f},{height - height * min(1.0, value / most if most else 0.0):.1f}"
        for i, value in enumerate(values)
    )
