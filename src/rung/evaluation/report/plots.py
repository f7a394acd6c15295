"""Plots of a climb as SVG: the ladder, quality against cost, confusions, loss curves.

The colours are those of Okabe and Ito, which colour-blind readers can distinguish. Backgrounds are transparent, and
text is a middle grey with enough contrast on white and on black.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rung.evaluation.metrics.labels import confusion
from rung.evaluation.report.words import measured, p_text
from rung.evaluation.result import ClimbResult, Prediction, RungResult

BLUE, ORANGE, GREY, INK = "#2481BF", "#D55E00", "#8A8A8A", "#767676"
MOST_CONFUSED = 10


@contextmanager
def _figure(width: float, height: float) -> Iterator[Any]:
    """A figure, and the style while it is drawn and saved."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style: Any = {
        "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
        "font.size": 10, "font.family": "sans-serif", "axes.spines.top": False, "axes.spines.right": False,
        "svg.hashsalt": "rung", "svg.fonttype": "none",
    }  # fmt: skip
    with rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.patch.set_alpha(0)
        yield figure


def _svg(figure: Any, title: str) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Title": title})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def ladder_svg(result: ClimbResult) -> str:
    """The ladder: one dot with its interval per rung, zero-shot at the bottom, the recommended one in orange."""
    rungs = measured(result)
    with _figure(7.5, 0.9 + 0.42 * len(rungs)) as figure:
        axes = figure.add_subplot()
        for height, rung in enumerate(rungs):
            if rung.score is None or rung.low is None or rung.high is None:
                continue
            best = rung.name == result.recommended
            colour = ORANGE if best else BLUE if rung.split == "test" else GREY
            axes.plot([100 * rung.low, 100 * rung.high], [height, height], color=colour, linewidth=2.2)
            axes.plot(100 * rung.score, height, "o" if rung.split == "test" else "D", color=colour, markersize=7)
            axes.annotate(
                f"{100 * rung.score:.1f}", (100 * rung.high, height), (7, 0), textcoords="offset points", va="center",
                color=colour, fontweight="bold" if best else "normal",
            )  # fmt: skip
        axes.set_yticks(range(len(rungs)), [rung.name for rung in rungs])
        label = f"{result.metric}, % with 95 % interval (diamonds: stopped in the race, validation rows)"
        axes.set(ylim=(-0.6, len(rungs) - 0.4), xlabel=label, xlim=(0, None))
        axes.margins(x=0.08)
        axes.grid(axis="x", alpha=0.25)
        return _svg(figure, f"The ladder of {result.task}")


def cost_svg(result: ClimbResult) -> str:
    """Quality against four costs: time and tokens per row, trainable parameters, artifact size."""
    panels: list[tuple[str, Callable[[RungResult], float]]] = [
        ("milliseconds per row", lambda r: 1000 * r.seconds / max(1, r.n)),
        ("tokens per row", lambda r: r.tokens / max(1, r.n)),
        ("trainable parameters", lambda r: r.trainable_parameters),
        ("artifact bytes", lambda r: r.artifact_bytes),
    ]
    rungs = measured(result)
    with _figure(9, 6.4) as figure:
        for number, (label, cost) in enumerate(panels, start=1):
            axes = figure.add_subplot(2, 2, number)
            points = [(cost(rung), 100 * (rung.score or 0), rung.name) for rung in rungs]
            for x, y, name in points:
                axes.plot(x, y, "o", color=ORANGE if name == result.recommended else BLUE, markersize=6)
            axes.margins(x=0.35, y=0.15)
            if min(x for x, _, _ in points) > 0:
                axes.set_xscale("log")
            else:
                axes.set_xscale("symlog", linthresh=1000)
                axes.set_xlim(-300, 50 * max(1000, *(x for x, _, _ in points)))
            _label(axes, points)
            axes.set(xlabel=label, ylabel=f"{result.metric}, %" if number % 2 else "")
            axes.grid(alpha=0.2)
        return _svg(figure, f"Quality against cost for {result.task}")


def _label(axes: Any, points: Sequence[tuple[float, float, str]]) -> None:
    """Write names next to points, pushed apart vertically so that none covers another."""
    low, high = axes.get_ylim()
    step = (high - low) * 0.075
    taken: list[float] = []
    for x, y, name in sorted(points, key=lambda point: point[1]):
        at = max([y, *(t + step for t in taken if t + step > y)])
        taken.append(at)
        axes.annotate(
            name, (x, y), fontsize=8, va="center", ha="left", xytext=(8, (at - y) / (high - low) * 190),
            textcoords="offset points",
        )  # fmt: skip


def confusion_svg(result: ClimbResult, rows: Sequence[Prediction]) -> str | None:
    """How often the recommended rung confuses its most confused labels; None if it confuses none."""
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
    with _figure(8, 6.2) as figure:
        axes = figure.add_subplot()
        # Vector cells, not an image: the report's content policy allows no images.
        axes.pcolormesh(range(len(labels)), range(len(labels)), counts, cmap="cividis", shading="nearest")
        axes.invert_yaxis()
        highest = max(map(max, counts)) or 1
        for i, line in enumerate(counts):
            for j, count in enumerate(line):
                if count:
                    axes.text(j, i, count, ha="center", va="center", color="black" if count > highest / 2 else "white")
        axes.set_xticks(range(len(labels)), labels, rotation=40, ha="right", fontsize=8)
        axes.set_yticks(range(len(labels)), labels, fontsize=8)
        axes.set(xlabel="predicted", ylabel="expected")
        return _svg(figure, f"Most confused labels of {result.recommended}")


def reliability_svg(result: ClimbResult) -> str | None:
    """How often answers are right against their confidence, before and after fitting; None if not measured."""
    if result.confidence is None:
        return None
    with _figure(7.5, 3.9) as figure:
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
        return _svg(figure, f"Reliability of {result.confidence['artifact']}")


def coverage_svg(result: ClimbResult) -> str | None:
    """Accuracy against the share of rows answered, the most confident first; None if confidence was not measured."""
    if result.confidence is None:
        return None
    _, coverage, accuracy = zip(*result.confidence["curve"], strict=True)
    chosen = result.confidence["abstaining"]
    with _figure(7.5, 3.4) as figure:
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
        return _svg(figure, "Coverage against accuracy")


def loss_svg(result: ClimbResult) -> str | None:
    """The training loss of every trained rung over its steps, raw and smoothed; None if none was trained."""
    curves = [rung for rung in result.rungs if rung.losses]
    if not curves:
        return None
    with _figure(7.5, 3.4) as figure:
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
        return _svg(figure, "Training loss")
