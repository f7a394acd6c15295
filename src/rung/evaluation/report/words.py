"""Figures as text, the same in every report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rung.evaluation.rag_metrics import MEANS, WRONG
from rung.evaluation.result import ClimbResult, Comparison, RungResult

TRAINING_DATA = "training_data"  # its key among a rung's settings
OPEN, CLOSE = ">>>", "<<<"  # around the supervised part of an example


def score_text(rung: RungResult) -> str:
    """Return `85.2 % [82.1, 87.8]`, or nothing without a score."""
    if rung.score is None or rung.low is None or rung.high is None:
        return ""
    return f"{100 * rung.score:.1f} % [{100 * rung.low:.1f}, {100 * rung.high:.1f}]"


def against(result: ClimbResult, name: str) -> Comparison | None:
    """Return the comparison of `name` with the incumbent, zero-shot or what was served, with that as `a`."""
    incumbent = result.rungs[0].name
    return next((c for c in result.comparisons if c.a == incumbent and c.b == name), None)


def delta_text(c: Comparison) -> str:
    """Return `+4.0 pp [+0.6, +7.5], 23 fixed / 9 broken, p = 0.020`."""
    interval = f"{100 * c.delta:+.1f} pp [{100 * c.low:+.1f}, {100 * c.high:+.1f}]"
    return f"{interval}, {c.fixed} fixed / {c.broken} broken, {p_text(c.p)}"


def p_text(p: float) -> str:
    """Return `p < 0.001` or `p = 0.020`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def count_text(number: float) -> str:
    """Return `4.9M`, `12k` or `57`."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def per_row(rung: RungResult) -> tuple[str, str]:
    """Return milliseconds and tokens per answered row."""
    return (f"{1000 * rung.seconds / rung.n:.0f}", f"{rung.tokens / rung.n:.0f}") if rung.n else ("", "")


def measured(result: ClimbResult) -> list[RungResult]:
    """Return the rungs that have a score, in the order of the ladder."""
    return [r for r in result.rungs if r.score is not None]


def left_out(result: ClimbResult) -> list[RungResult]:
    """Return the rungs that were skipped or failed."""
    return [r for r in result.rungs if r.score is None]


def overflow_notes(result: ClimbResult) -> list[str]:
    """Say of every rung whose prompts did not all fit the model's context what was left out of them."""
    return [
        f"{r.name}: {r.overflow_rows} of {r.n} prompts were longer than the model reads; "
        f"{r.dropped_demonstrations} demonstrations were left out of them (overflow: drop_demonstrations)"
        for r in measured(result)
        if r.overflow_rows
    ]


def retrieval_notes(result: ClimbResult) -> list[str]:
    """Say of every rung that looks documents up what it found, and why its wrong answers are wrong."""
    return [f"{r.name}: {retrieval_text(r.retrieval)}" for r in measured(result) if r.retrieval]


def retrieval_text(told: Mapping[str, float]) -> str:
    """Return one rung's retrieval in words."""
    parts = [f"{name.replace('_', ' ')} {100 * told[name]:.1f} %" for name in MEANS if name in told]
    if "retrieval_failures" in told:
        parts.append(
            f"of the answers that score below {WRONG:g}, the answer was not among the passages in "
            f"{told['retrieval_failures']:.0f} and was there, but not used, in {told['reading_failures']:.0f}"
        )
    if told["refused"]:
        parts.append(f"{told['refused']:.0f} of {told['rows']:.0f} rows refused: nothing relevant was found")
    if told["overflow_rows"]:
        parts.append(
            f"{told['overflow_rows']:.0f} prompts were longer than the model reads: {told['dropped_passages']:.0f} "
            f"passages were left out and {told['shortened_passages']:.0f} cut (overflow: shorten_passages)"
        )
    return "; ".join(parts)


def confidence_notes(result: ClimbResult) -> list[str]:
    """Say how far the recommended artifact's confidence can be trusted, if that was measured."""
    return [] if result.confidence is None else confidence_lines(result.confidence)


def confidence_lines(told: Mapping[str, Any]) -> list[str]:
    """Say what `rung.evaluation.calibration.describe` found: the calibration error, and what abstaining gives."""
    errors = [
        f"{100 * told[name]['error']:.1f} % [{100 * told[name]['low']:.1f}, {100 * told[name]['high']:.1f}]"
        for name in ("before", "after")
    ]
    how = "isotonic regression" if told["temperature"] is None else f"temperature {told['temperature']:.2f}"
    lines = [
        f"confidence of {told['artifact']}: {how}, fitted on {told['fitted_on']} validation rows; expected calibration "
        f"error on {told['rows']} test rows {errors[0]} before and {errors[1]} after, "
        f"where chance alone gives {100 * told['after']['expected']:.1f} %"
    ]
    if (chosen := told["abstaining"]) is not None:
        text = f"abstaining below {chosen['threshold']:g}: {100 * chosen['coverage']:.1f} % of the rows are answered"
        if chosen["accuracy"] is not None:
            text += (
                f", {100 * chosen['accuracy']:.1f} % [{100 * chosen['low']:.1f}, {100 * chosen['high']:.1f}] "
                "of them right"
            )
        if chosen["out_of_scope"] is not None:
            text += (
                f"; {100 * chosen['handled']:.1f} % of all rows were handled right: answered so, or abstained on where "
                f"the label is {chosen['out_of_scope']}"
            )
            if chosen["outside_held"] is not None and chosen["inside_held"] is not None:
                text += (
                    f" ({100 * chosen['outside_held']:.1f} % of the rows with that label were held back, and "
                    f"{100 * chosen['inside_held']:.1f} % of the others)"
                )
        lines.append(text)
    return lines


def method(result: ClimbResult) -> list[str]:
    """Say how the figures were measured."""
    return [
        "Every rung answered the same rows, with the same prompt renderer and the same metric.",
        "Race: validation rows in one fixed shuffled order, in growing batches; a rung is stopped when another beats it"
        " by a one-sided test whose level is shared among all looks and all rungs that can apply, so that the best rung"
        " is dropped with a probability of at most 5 %. The race ends where one is left.",
        "Confirmation: finalists answered the untouched test rows once. Differences of 0/1 scores are tested by the "
        "exact McNemar test, others by a paired sign-flip test; p-values are corrected over all pairs (Holm).",
        "Recommended is the cheapest rung that significantly beats "
        f"{result.rungs[0].name} and that no other significantly beats; its"
        " cost is operations per prediction, training shared among 10,000 predictions.",
        f"Intervals are at 95 %. Model {result.model}, metric {result.metric}, seed {result.seed}, "
        f"Rung {result.version}, {result.created}.",
    ]


def training_data_lines(values: Mapping[str, Any]) -> Iterator[str]:
    """The lines of a training data report, from the JSON values of `rung.training.examples.TrainingReport`."""
    kept = f"{values['kept']:,} of {values['rows']:,} rows kept"
    yield f"{kept}: {values['examples']:,} examples, {values['tokens']:,} tokens"
    for reason, count in values["dropped"].items():
        yield f"{count:,} dropped, {reason}: {_places(values['dropped_at'][reason], count)}"
    if count := values["truncated"]:
        places = _places(values["truncated_at"], count)
        yield f"{count:,} truncated, {values['truncated_tokens']:,} tokens in all: {places}"
    if count := values["turns_apart"]:
        yield f"{count:,} assistant turns are examples of their own: the template rewrites what is before them"
    if spread := values["supervised"]:
        yield (
            f"{spread['min']:g} / {spread['median']:g} / {spread['max']:g} supervised tokens an example "
            "(min / median / max)"
        )
        yield f"the first example, supervised between {OPEN} and {CLOSE}:"
        yield values["example"]


def _places(sources: Sequence[str], count: int) -> str:
    return ", ".join(sources) + (", ..." if count > len(sources) else "")
