"""What the pages show beside the server's own state, and how they are added to the application."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.requests import Request

from rung.evaluation.report.words import count_text
from rung.serving.access import Sessions
from rung.serving.context import context_of
from rung.serving.limits import Refused
from rung.serving.metrics import SECONDS

if TYPE_CHECKING:
    from jinja2 import Environment
    from prometheus_client import CollectorRegistry

    from rung.feedback.store import FeedbackStore


# --------------------
# What the server's metrics were lately, for charts: a sample every few seconds while the server runs.


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


@dataclass(frozen=True, slots=True)
class PageSources:
    """Where pages read from.

    Attributes:
        runs: folder of run folders.
        store: of captured answers and corrections, or None where nothing is captured.
        registry: folder of promoted artifacts, or None where the server follows none.
    """

    runs: Path
    store: FeedbackStore | None = None
    registry: Path | None = None


@dataclass(frozen=True, slots=True)
class Site:
    """The state of the pages.

    Attributes:
        places: that they read from.
        sessions: who is signed in.
        history: what the metrics were lately.
    """

    places: PageSources
    sessions: Sessions
    history: History

    @property
    def runs(self) -> Path:
        """The folder of run folders."""
        return self.places.runs

    @property
    def store(self) -> FeedbackStore | None:
        """The store, where there is one."""
        return self.places.store

    @property
    def registry(self) -> Path | None:
        """The registry's folder, where there is one."""
        return self.places.registry


def site_of(request: Request) -> Site:
    """Return the site of the application that serves a request."""
    site = request.app.state.site
    assert isinstance(site, Site)
    return site


def may_review(request: Request) -> bool:
    """Tell whether whoever asks may correct and promote: anyone where no key is set, else admin keys."""
    key = context_of(request).key
    return not (context_of(request).server.access.keys is not None) or (key is not None and key.admin)


def reviewers_only(request: Request) -> None:
    """Refuse everybody else.

    Raises:
        Refused: 403.
    """
    if not may_review(request):
        raise Refused(403, "forbidden", "this key may not review: make one with `rung keys create --admin`")


# --------------------
# Pages from templates. Text of users and models is only ever a value in them, and every value is escaped.


HERE = Path(__file__).parent
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with `no-referrer`, browsers would hide the Origin of our own forms
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
PAGES = (("/", "Overview"), ("/runs", "Climbs"), ("/playground", "Playground"), ("/failures", "Failures"),
         ("/promotions", "Promotions"), ("/trials", "Trials"), ("/load", "Load"))  # fmt: skip


def page(request: Request, template: str, title: str, *, status: int = 200, **values: Any) -> Response:
    """Return a page.

    Args:
        request: what it answers.
        template: a file of `templates/`, without `.html`.
        title: of the page.
        status: of the answer.
        values: what the template shows.
    """
    site, key = site_of(request), context_of(request).key
    shared = {
        "title": title, "pages": PAGES, "here": "/" + request.url.path.split("/")[1], "key": key,
        "form_token": site.sessions.form_token(request.headers.get("cookie", "")),
        "inside": key is not None or not (context_of(request).server.access.keys is not None),
    }  # fmt: skip
    text = _environment().get_template(f"{template}.html").render({**shared, **values})
    return HTMLResponse(text.encode(errors="replace"), status, HEADERS)


def error_page(request: Request, refused: Refused) -> Response:
    """Return a refusal as a page."""
    answer = page(request, "error", "Not possible", status=refused.status, refused=refused)
    answer.headers.update(refused.headers)
    return answer


def see_other(path: str) -> Response:
    """Send the browser to another page, after a form."""
    return RedirectResponse(path, 303, HEADERS)


def wants_page(request: Request) -> bool:
    """Tell whether an error should be a page: a browser asks, and not for the API."""
    has_site = getattr(request.app.state, "site", None) is not None
    return has_site and "text/html" in request.headers.get("accept", "") and not request.url.path.startswith("/v1/")


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        autoescape=True, loader=FileSystemLoader(HERE / "templates"), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    filters: Mapping[str, Any] = {
        "percent": lambda value: f"{100 * value:.1f} %",
        "short": lambda value: str(value)[:12],
        "count": count_text,
        "time": _time,
        "seconds": _seconds,
    }
    made.filters.update(filters)
    return made


def _time(value: datetime | float) -> str:
    """Return `2026-01-02 03:04` in UTC."""
    moment = datetime.fromtimestamp(value, UTC) if isinstance(value, (int, float)) else value.astimezone(UTC)
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _seconds(value: float) -> str:
    """Return `35 ms`, `4.1 s` or `12 min`."""
    if value < 1:
        return f"{1000 * value:.0f} ms"
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.0f} min"


# --------------------
# Forms: read without parsing anything but names and values, and only from pages of this server.


FIELDS = 100  # of one form
TOKEN = "form_token"  # noqa: S105  the name of a field


async def form_of(request: Request) -> dict[str, str]:
    """Return the values of a form.

    Raises:
        Refused: it is no form, or it did not come from a page of this session.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise Refused(415, "no-form", "this takes forms, which are application/x-www-form-urlencoded")
    try:
        text = (await request.body()).decode()
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=FIELDS, errors="strict")
    except ValueError as error:
        raise Refused(400, "bad-form", f"the form cannot be read: {error}") from error
    values = dict(pairs)
    given = values.pop(TOKEN, "")
    if not site_of(request).sessions.is_form_token(request.headers.get("cookie", ""), given):
        raise Refused(403, "form-expired", "this form is of another session: load the page again")
    return {name: value.replace("\r\n", "\n") for name, value in values.items()}
