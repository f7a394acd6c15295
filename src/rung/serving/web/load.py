"""How busy the server is: queue, tokens a second, latency, failures."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from rung.serving.context import context_of
from rung.serving.web.history import EVERY, KEPT, latencies, polyline, rates
from rung.serving.web.rendering import page
from rung.serving.web.site import site_of

router = APIRouter(include_in_schema=False)
WIDTH, HEIGHT = 300.0, 60.0


@router.get("/load")
def load(request: Request) -> Response:
    """Show the metrics now and over the last minutes."""
    samples = site_of(request).history.look()
    now = samples[-1]
    written = rates(samples, "tokens")
    queue = [one.queue for one in samples]
    answered = rates(samples, "answered")
    charts = [_chart("Answers waited for", "", queue), _chart("Tokens written", "a second", written),
              _chart("Requests", "a second", answered)]  # fmt: skip
    return page(
        request, "load", "Load", charts=charts, now=now, latencies=latencies(now.buckets), minutes=KEPT * EVERY / 60,
        tables=_tables(request), width=WIDTH, height=HEIGHT,
    )  # fmt: skip


def _chart(name: str, unit: str, values: list[float]) -> dict[str, object]:
    most = max([*values, 1.0])
    points = polyline(values, WIDTH, HEIGHT - 4, most)
    return {"name": name, "unit": unit, "now": values[-1] if values else 0.0, "most": most, "points": points}


def _tables(request: Request) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """Return heading, columns and rows of what is counted by label."""
    registry = context_of(request).metrics.registry
    found: dict[str, list[tuple[str, ...]]] = {"tokens": [], "requests": [], "failures": [], "capture": []}
    for family in registry.collect():
        for one in family.samples:
            value = f"{one.value:,.0f}"
            if one.name == "rung_tokens_total":
                found["tokens"].append((one.labels["model"], one.labels["kind"], value))
            elif one.name == "rung_requests_total" and one.labels["endpoint"].startswith("/v1/"):
                found["requests"].append((one.labels["endpoint"], one.labels["status"], value))
            elif one.name == "rung_failures_total":
                found["failures"].append((one.labels["code"], value))
            elif one.name.startswith("rung_capture_"):
                found["capture"].append((one.name.removeprefix("rung_capture_").replace("_", " "), value))
    return [
        ("Tokens", ("model", "kind", "tokens"), found["tokens"]),
        ("Requests", ("endpoint", "status", "requests"), found["requests"]),
        ("Failures", ("code", "requests"), found["failures"]),
        ("Capture", ("answers", "count"), found["capture"]),
    ]
