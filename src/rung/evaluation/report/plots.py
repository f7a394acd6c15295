"""Plots of a climb, as figures of matplotlib and as SVG: ladder, price, confusions, reliability, coverage, loss, time.

The colours are those of Okabe and Ito, which colour-blind readers can distinguish. Backgrounds are transparent, and
text is a middle grey with enough contrast on white and on black.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from rung.evaluation.metrics.labels import confusion
from rung.evaluation.report.words import duration, measured, money_text, p_text
from rung.evaluation.result import YARDSTICK, ClimbResult, Prediction

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY, INK = "#2481BF", "#D55E00", "#8A8A8A", "#767676"
MOST_CONFUSED = 10
TIME_UNITS = ((7200, 3600, "hours"), (180, 60, "minutes"), (0, 1, "seconds"))  # from seconds on, divided by, name


STYLE: Any = {
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "font.size": 10, "font.family": "sans-serif", "axes.spines.top": False, "axes.spines.right": False,
    "svg.hashsalt": "rung", "svg.fonttype": "none",
}  # fmt: skip


@contextmanager
def _drawing(title: str, width: float, height: float) -> Iterator[Figure]:
    """A figure, and the style while it is drawn."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        figure = _shown_figure()(figsize=(width, height), layout="constrained")
        figure.set_label(title)
        figure.patch.set_alpha(0)
        yield figure


@cache
def _shown_figure() -> type[Figure]:
    """A figure that notebooks show, also those in which nobody has imported pyplot."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    class ShownFigure(Figure):
        def _repr_png_(self) -> bytes:
            drawn = io.BytesIO()
            with rc_context(STYLE):
                self.savefig(drawn, format="png", dpi=90)
            return drawn.getvalue()

    return ShownFigure


def svg(figure: Figure | None) -> str | None:
    """Write a figure as SVG; None without one."""
    from matplotlib import rc_context

    if figure is None:
        return None
    text = io.StringIO()
    with rc_context(STYLE):  # ticks are made when the figure is saved
        title = str(figure.get_label())
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Title": title})
    markup = text.getvalue()
    return markup[markup.index("<svg") :]


def ladder(result: ClimbResult) -> Figure:
    """The score of every rung with its 95 % interval, its rows and its price; the line is the incumbent's score."""
    rungs = measured(result)
    with _drawing(f"The ladder of {result.task}", 8.5, 1.1 + 0.32 * len(rungs)) as figure:
        axes = figure.add_subplot()
        axes.axvline(100 * (rungs[0].score or 0.0), color=INK, linewidth=0.8, linestyle=":")
        for place, rung in enumerate(rungs):
            colour = ORANGE if rung.name == result.recommended else BLUE if rung.stopped is None else GREY
            if rung.low is not None and rung.high is not None:
                axes.plot([100 * rung.low, 100 * rung.high], [place, place], color=colour, linewidth=2)
            axes.plot(100 * (rung.score or 0.0), place, "o" if rung.stopped is None else "D", color=colour)
        prices = (r.price_per_1000 for r in rungs)
        costs = ("" if price is None else f", {money_text(price)} per 1,000" for price in prices)
        names = [f"{rung.name} ({rung.n} rows{cost})" for rung, cost in zip(rungs, costs, strict=True)]
        axes.set_yticks(range(len(rungs)), names)
        axes.invert_yaxis()
        axes.set_xlabel(f"{result.metric}, %, with 95 % intervals")
        axes.grid(axis="x", alpha=0.2)
        return figure


def price(result: ClimbResult) -> Figure | None:
    """Quality against the price of 1,000 predictions, with the efficient frontier: nothing cheaper is as good.

    Where a price is not known, the seconds per row take its place. None with fewer than two rungs.
    """
    rungs = measured(result)
    prices = [rung.price_per_1000 for rung in rungs]
    label = "price of 1,000 predictions"
    if any(price is None for price in prices):
        prices, label = [rung.seconds_per_row for rung in rungs], "seconds per row"
    points = [(x, 100 * (r.score or 0.0), r) for x, r in zip(prices, rungs, strict=True) if x is not None and x > 0]
    if len(points) < 2:
        return None
    with _drawing(f"Quality against price for {result.task}", 5.4, 4.2) as figure:
        axes = figure.add_subplot()
        axes.set_xscale("log")
        axes.margins(x=0.2, y=0.15)
        frontier = efficient([(x, y) for x, y, _ in points])
        axes.plot(*zip(*frontier, strict=True), color="#009E73", linewidth=1.5, linestyle="--", drawstyle="steps-post")
        for x, y, rung in points:
            kind = "^" if rung.family == YARDSTICK else "D" if rung.stopped is not None else "o"
            colour = ORANGE if rung.name == result.recommended else GREY if kind != "o" else BLUE
            axes.plot(x, y, kind, color=colour, markersize=8 if colour == ORANGE else 6)
        axes.set(xlabel=label, ylabel=f"{result.metric}, %")
        axes.grid(alpha=0.2)
        _legend(axes, {rung.family == YARDSTICK for *_, rung in points}, {r.stopped is not None for *_, r in points})
        _label(figure, axes, [(x, y, rung.name) for x, y, rung in points], frontier)
        return figure


def efficient(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no cheaper one equals, from the cheapest to the best."""
    kept: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or y > kept[-1][1]:
            kept.append((x, y))
    return kept


def _legend(axes: Any, yardsticks: set[bool], stopped: set[bool]) -> None:
    from matplotlib.lines import Line2D

    kinds = [("recommended", "o", ORANGE, True), ("measured to the end", "o", BLUE, True)]
    kinds += [("yardstick", "^", GREY, True in yardsticks), ("stopped early", "D", GREY, True in stopped)]
    marks = [Line2D([], [], marker=m, color=c, linestyle="", label=name) for name, m, c, there in kinds if there]
    marks.append(Line2D([], [], color="#009E73", linestyle="--", label="nothing cheaper is as good"))
    axes.figure.legend(handles=marks, loc="outside upper left", ncols=3, frameon=False, fontsize=8)


def _label(
    figure: Any, axes: Any, points: Sequence[tuple[float, float, str]], steps: Sequence[tuple[float, float]]
) -> None:
    """Write names beside their points, each at the first place where it covers no point, name, or line of the steps."""
    figure.draw_without_rendering()
    inside = axes.get_window_extent()
    spots = [axes.transData.transform((x, y)) for x, y, _ in points]
    taken = [_box(x, y, 11, 11) for x, y in spots]
    corners = [axes.transData.transform(step) for step in steps]
    for (x, y), (next_x, next_y) in pairwise(corners):
        taken += [(x, y - 1, next_x, y + 1), (next_x - 1, y, next_x + 1, next_y)]
    for x, y, name in sorted(points, key=lambda point: -point[1]):
        text = axes.annotate(name, (x, y), fontsize=9, va="center", textcoords="offset points", xytext=(0, 0))
        extent = text.get_window_extent()
        width, height = extent.width, extent.height
        spot = axes.transData.transform((x, y))
        scale = figure.dpi / 72
        places = [
            (side, step * 10)
            for step in (0, 1, -1, 2, -2, 3, -3, 4, -4, 5, -5)
            for side in ((7, -7 - width / scale) if step == 0 else (7, -7 - width / scale, -width / scale / 2))
        ]
        for dx, dy in places:
            box = _box(spot[0] + dx * scale + width / 2, spot[1] + dy * scale, width, height)
            fits = inside.x0 <= box[0] and box[2] <= inside.x1 and inside.y0 <= box[1] and box[3] <= inside.y1
            if fits and not any(_overlap(box, other) for other in taken):
                break
        else:
            dx, dy = places[0]
            box = _box(spot[0] + dx * scale + width / 2, spot[1], width, height)
        taken.append(box)
        text.set_position((dx, dy))
        if abs(dy) > 15:  # far from its point: a line leads to it
            axes.annotate(
                "", (x, y), xytext=(dx + (width / scale if dx < 0 else 0), dy), textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.6},
            )  # fmt: skip


Box = tuple[float, float, float, float]


def _box(x: float, y: float, width: float, height: float) -> Box:
    return (x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def confusions(result: ClimbResult, rows: Sequence[Prediction]) -> Figure | None:
    """How often the recommended rung confuses its most confused labels; None where answers are no labels, or right."""
    if result.kind != "category":
        return None
    expected = [row.expected[0] for row in rows]
    pairs = confusion([row.prediction for row in rows], expected, sorted(set(expected)))
    if not pairs:
        return None
    labels: list[str] = []
    for pair in pairs:
        labels += [label for label in (pair.expected, pair.predicted) if label not in labels]
        if len(labels) >= MOST_CONFUSED:
            break
    labels = labels[:MOST_CONFUSED]
    counts = [
        [sum(e == a and r.prediction == b for r, e in zip(rows, expected, strict=True)) for b in labels] for a in labels
    ]
    with _drawing(f"Most confused labels of {result.recommended}", 8, 6.2) as figure:
        axes = figure.add_subplot()
        # Vector cells, not an image: the report's content policy allows no images.
        axes.pcolormesh(range(len(labels)), range(len(labels)), counts, cmap="cividis", shading="nearest")
        axes.invert_yaxis()
        highest = max(map(max, counts)) or 1
        for i, line in enumerate(counts):
            for j, count in enumerate(line):
                if count:
                    axes.text(
                        j, i, str(count), ha="center", va="center", color="black" if count > highest / 2 else "white"
                    )
        axes.set_xticks(range(len(labels)), labels, rotation=40, ha="right", fontsize=8)
        axes.set_yticks(range(len(labels)), labels, fontsize=8)
        axes.set(xlabel="predicted", ylabel="expected")
        return figure


def reliability(result: ClimbResult) -> Figure | None:
    """How often answers are right against their confidence, before and after fitting; None if not measured."""
    if result.confidence is None:
        return None
    with _drawing(f"Reliability of {result.confidence['artifact']}", 7.5, 3.9) as figure:
        for number, (name, colour) in enumerate((("before", GREY), ("after", ORANGE)), start=1):
            figures = result.confidence[name]
            axes = figure.add_subplot(1, 2, number)
            axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":")
            largest = max(rows for rows, *_ in figures["bins"])
            for rows, confidence, accuracy, low, high in figures["bins"]:
                axes.plot([confidence, confidence], [low, high], color=colour, linewidth=1.2, alpha=0.7)
                axes.plot(confidence, accuracy, "o", color=colour, markersize=3 + 7 * (rows / largest) ** 0.5)
            side = "share of right answers" if number == 1 else ""
            axes.set(xlim=(0, 1.03), ylim=(0, 1.03), xlabel=f"confidence {name} fitting", ylabel=side)
            axes.set_title(f"error {100 * figures['error']:.1f} % ({p_text(figures['p'])})", fontsize=10)
            axes.grid(alpha=0.2)
        return figure


def coverage(result: ClimbResult) -> Figure | None:
    """Accuracy against the share of rows answered, the most confident first; None if confidence was not measured."""
    if result.confidence is None:
        return None
    _, coverage, accuracy = zip(*result.confidence["curve"], strict=True)
    chosen = result.confidence["abstaining"]
    with _drawing("Coverage against accuracy", 7.5, 3.4) as figure:
        axes = figure.add_subplot()
        axes.plot([100 * c for c in coverage], [100 * a for a in accuracy], color=BLUE, linewidth=1.8)
        if chosen is not None and chosen["accuracy"] is not None:
            x, y = 100 * chosen["coverage"], 100 * chosen["accuracy"]
            axes.plot([x, x], [100 * chosen["low"], 100 * chosen["high"]], color=ORANGE, linewidth=2.2)
            axes.plot(x, y, "o", color=ORANGE, markersize=7)
            axes.annotate(
                f"abstain below {chosen['threshold']:g}", (x, y), (-8, -14), textcoords="offset points", color=ORANGE,
                ha="right",
            )  # fmt: skip
        axes.set(xlim=(0, 102), xlabel="rows answered, % (the most confident first)", ylabel="right among them, %")
        axes.grid(alpha=0.2)
        return figure


def loss(result: ClimbResult) -> Figure | None:
    """The training loss of every trained rung over its steps, raw and smoothed; None if none was trained."""
    curves = [rung for rung in result.rungs if rung.losses]
    if not curves:
        return None
    with _drawing("Training loss", 7.5, 3.4) as figure:
        axes = figure.add_subplot()
        for rung, colour in zip(curves, (BLUE, ORANGE, "#009E73", "#CC79A7") * len(curves), strict=False):
            steps, losses = zip(*rung.losses, strict=True)
            smooth, mean = [], losses[0]
            for loss in losses:
                mean = 0.9 * mean + 0.1 * loss
                smooth.append(mean)
            axes.plot(steps, losses, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(steps, smooth, color=colour, linewidth=1.8, label=rung.name)
        axes.set(xlabel="step", ylabel="loss per answer token", ylim=(0, None))
        axes.legend(frameon=False)
        axes.grid(alpha=0.2)
        return figure


def learning_curve(result: ClimbResult) -> Figure | None:
    """The score of a head or of the recommended arm against training rows, and what twice as many would bring."""
    if not result.curve:
        return None
    rows, scores, low, high = zip(*result.curve, strict=True)
    with _drawing(f"Learning curve of {result.curve_of}", 5.4, 3.6) as figure:
        axes = figure.add_subplot()
        axes.fill_between(rows, [100 * x for x in low], [100 * x for x in high], color=BLUE, alpha=0.18, linewidth=0)
        label = "measured, with 95 % interval"
        axes.plot(rows, [100 * x for x in scores], "o-", color=BLUE, linewidth=1.8, label=label)
        ticks = list(rows)
        if result.doubled is not None:
            x, y = result.doubled
            axes.plot([rows[-1], x], [100 * scores[-1], 100 * y], "--", color=ORANGE, linewidth=1.5)
            axes.plot(x, 100 * y, "o", color=ORANGE, fillstyle="none", label="expected of twice as many rows")
            axes.annotate(
                f"{100 * (y - scores[-1]):+.1f}", (x, 100 * y), (0, 8), textcoords="offset points", color=ORANGE,
                ha="center",
            )  # fmt: skip
            ticks.append(x)
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
        axes.margins(x=0.1, y=0.2)
        axes.set(xlabel=f"training rows of {result.curve_of}", ylabel=f"{result.metric} on other rows, %")
        axes.legend(frameon=False, fontsize=8, loc="lower right")
        axes.grid(alpha=0.2)
        return figure


def budget(result: ClimbResult) -> Figure | None:
    """When each arm was made and when it answered, with what it took; None without records."""
    spans = result.spending
    if not spans:
        return None
    from matplotlib.patches import Patch

    names = list(dict.fromkeys(span.name for span in spans))
    end = max(result.seconds, *(span.start + span.seconds for span in spans))
    scale, unit = next((s, u) for least, s, u in TIME_UNITS if end >= least)
    colours = {"making": ORANGE, "answering": BLUE}
    with _drawing("Where the time went", 7.5, 1.4 + 0.32 * len(names)) as figure:
        axes = figure.add_subplot()
        for place, name in enumerate(names):
            own = [span for span in spans if span.name == name]
            for span in own:
                width = max(span.seconds, end / 400) / scale  # what is short stays visible
                axes.barh(place, width, left=span.start / scale, height=0.6, color=colours[span.work])
            took, money = sum(span.seconds for span in own), sum(span.money for span in own)
            text = duration(took) + (f", {money:.2g} billed" if money else "")
            at = max(span.start + max(span.seconds, end / 400) for span in own) / scale
            axes.annotate(text, (at, place), (5, 0), textcoords="offset points", va="center", fontsize=8)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.02 * end / scale)
        if result.budget_seconds is not None and result.budget_seconds <= 1.02 * end:
            axes.axvline(result.budget_seconds / scale, color=INK, linewidth=0.8, linestyle=":")
        axes.set_xlabel(f"{unit} since the climb began")
        marks = [Patch(color=colours["making"], label="making the rung"), Patch(color=BLUE, label="answering rows")]
        figure.legend(handles=marks, loc="outside upper left", ncols=2, frameon=False, fontsize=8)
        axes.grid(axis="x", alpha=0.2)
        return figure
