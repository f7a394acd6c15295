"""The figures of a climb as text, the same in every report."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any, Literal

import yaml

from rung.artifact.artifact import Artifact
from rung.data.quality import CANDIDATES, WANTED
from rung.data.rows import SHOWN, DataReport
from rung.evaluation.prices import Prices
from rung.evaluation.rag_metrics import MEANS, WRONG
from rung.evaluation.result import ClimbResult, Comparison, RungResult
from rung.progress import Markup, safe

GLOSSARY = Path(__file__).with_name("glossary.yaml")
TRAINING_DATA = "training_data"  # its key among a rung's settings
OPEN, CLOSE = ">>>", "<<<"  # around the supervised part of an example
NAMED = 8  # rungs that a line names
FEW = 3  # skipped rungs, up to which the reason of each is printed
LEVEL = 0.05  # of significance, as in the confirmation


def rows_text(rung: RungResult) -> str:
    """The rows that a rung was measured on: `240 test rows`, or `300 rows out of fold`."""
    return f"{rung.n} rows out of fold" if rung.split == "folds" else f"{rung.n} {rung.split} rows"


def score_text(rung: RungResult) -> str:
    """`85.2 % [82.1, 87.8]`, or `85.2 %` without an interval; empty without a score."""
    if rung.score is None:
        return ""
    interval = "" if rung.low is None or rung.high is None else f" [{100 * rung.low:.1f}, {100 * rung.high:.1f}]"
    return f"{100 * rung.score:.1f} %{interval}"


def against(result: ClimbResult, name: str) -> Comparison | None:
    """The comparison of `name` with the incumbent (`a`): zero-shot, or the served artifact."""
    incumbent = result.rungs[0].name
    return next((c for c in result.comparisons if c.a == incumbent and c.b == name), None)


def delta_text(c: Comparison) -> str:
    """`+4.0 pp [+0.6, +7.5], 23 fixed / 9 broken, p = 0.020`, and what is likely left of a gain on thin evidence."""
    likely = "" if c.shrunken is None else f"; likely about {100 * c.shrunken:+.1f}: thin evidence exaggerates"
    return f"{gap_text(c)}, {c.fixed} fixed / {c.broken} broken, {p_text(c.p)}{likely}"


def gap_text(c: Comparison | None) -> str:
    """`+4.0 pp [+0.6, +7.5]`; empty without a comparison."""
    return "" if c is None else f"{100 * c.delta:+.1f} pp [{100 * c.low:+.1f}, {100 * c.high:+.1f}]"


def outcome_text(c: Comparison | None) -> str:
    """`better`, `worse`, `equivalent`, or `unclear, +120 rows`: how many more rows would likely tell."""
    if c is None:
        return ""
    return c.outcome if c.rows_needed is None else f"{c.outcome}, +{c.rows_needed:,} rows"


QUALITY = ("rows", "difference", "fixed / broken", "p", "outcome", "over yardstick")


def quality(result: ClimbResult, rung: RungResult) -> tuple[str, ...]:
    """How a rung compares, in the order of `QUALITY`; see `quality_notes`."""
    c = against(result, rung.name)
    mark = "" if rung.split == result.rows else {"test": " t", "validation": " v", "folds": " o"}[rung.split]
    if c is None and rung.stopped is not None:
        c, star = rung.stopped, " *"
    else:
        star = ""
    return (
        f"{rung.n}{mark}",
        f"{gap_text(c)}{star}",
        "" if c is None else f"{c.fixed} / {c.broken}",
        "" if c is None else p_text(c.p).removeprefix("p = ").removeprefix("p "),
        outcome_text(c),
        "" if rung.yardstick is None else f"{100 * rung.yardstick.delta:+.1f} pp",
    )


def quality_notes(result: ClimbResult) -> list[str]:
    """What the columns of `QUALITY` are, where the reader has to know it."""
    rungs = measured(result)
    notes = list[str]()
    if result.comparisons:
        incumbent = result.rungs[0].name
        notes.append(
            f"difference, fixed / broken, p: against {incumbent}; an interval leaves out 0 where p < {result.level:.3g}"
        )
    others = {rung.split for rung in rungs} - {result.rows}
    if "validation" in others:
        notes.append(
            "v: on validation rows, by which rungs were chosen; the best of several such scores is too high, "
            "and so is that of a rung that chose its settings there"
        )
    if "folds" in others:
        notes.append("o: out of fold: every row was answered by an artifact that was made without it")
    stopped = [rung for rung in rungs if rung.stopped is not None]
    if stopped:
        notes.append("a rung that stopped early has no interval of its score: its scores chose when to stop")
    if any(against(result, rung.name) is None for rung in stopped):
        notes.append(
            f"*: at the stop, against {result.recommended} on the same rows, with p and an interval that are valid at "
            "every stop"
        )
    if wrong := [rung for rung in rungs if "mae" in rung.errors]:
        figures = (f"{rung.name} {rung.errors['mae']:.4g} / {rung.errors['rmse']:.4g}" for rung in wrong)
        notes.append(f"MAE / RMSE of the answers that are numbers: {', '.join(figures)}")
    if yardstick := next((rung.yardstick.a for rung in rungs if rung.yardstick is not None), None):
        notes.append(f"over yardstick: difference to {yardstick}, the best yardstick, on the rows that both answered")
    return notes


def worth_notes(result: ClimbResult) -> list[str]:
    """Which rungs with a language model do not beat the best yardstick, and so are not worth their price."""
    rungs = {rung.name: rung for rung in measured(result)}
    poor = [r for r in rungs.values() if r.uses_llm and r.yardstick is not None and r.yardstick.low <= 0]
    if not poor:
        return []
    best = rungs[poor[0].yardstick.a] if poor[0].yardstick is not None else None
    names = ", ".join(f"{r.name} {100 * r.yardstick.delta:+.1f} pp" for r in poor if r.yardstick is not None)
    text = f"not shown to beat the best yardstick, {best.name if best else ''}, and so not worth their price: {names}"
    cheapest = min((r.price_per_1000 for r in poor if r.price_per_1000 is not None), default=None)
    if best is not None and best.price_per_1000 and cheapest is not None and cheapest > best.price_per_1000:
        text += f"; they cost {short(cheapest / best.price_per_1000)} times as much or more"
    return [text]


def p_text(p: float) -> str:
    """`p < 0.001` or `p = 0.020`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def count_text(number: float) -> str:
    """`4.9M`, `12k` or `57`."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


COSTS = ("per 1,000", "s/row", "fit s", "took s", "expected s", "tokens in", "tokens out", "trainable", "bytes")


def costs(rung: RungResult) -> tuple[str, ...]:
    """What a rung costs, in the order of `COSTS`: tokens are those of one row."""
    expected, rows = rung.expected_seconds, max(1, rung.n)
    return (
        money_text(rung.price_per_1000),
        "" if rung.seconds_per_row is None else short(rung.seconds_per_row),
        short(rung.fit_seconds),
        short(rung.fit_seconds + rung.seconds),
        "" if expected is None else short(expected),
        f"{rung.prompt_tokens / rows:.0f}",
        f"{rung.completion_tokens / rows:.0f}",
        count_text(rung.trainable_parameters),
        count_text(rung.artifact_bytes) if rung.artifact_bytes else "",  # of arms out of fold, not all are kept
    )


def short(number: float) -> str:
    """Two digits of a number, without an exponent: `0.0034`, `1.2`, `540`."""
    if 0 < number < 1e-6:
        return "<0.000001"
    if number <= 0 or number >= 10:
        return f"{number:,.0f}"
    return f"{number:.{min(6, 1 - math.floor(math.log10(number)))}f}"


def money_text(price: float | None) -> str:
    """A price in the task's currency, or `unknown`."""
    return "unknown" if price is None else short(price)


def spent_lines(result: ClimbResult) -> list[str]:
    """What the climb took in time and money, and by which prices."""
    read, written = result.endpoint_tokens
    lines = [f"the climb took {duration(result.seconds)} and cost {money_text(result.money)}"]
    if read or written:
        billed = f"endpoints billed {money_text(result.endpoint_money)}" if result.endpoint_money else "endpoints"
        lines[0] += f"; {billed}: {read:,} tokens in, {written:,} out"
    if result.prices is not None:
        prices = Prices(**result.prices)
        parts = [f"{money_text(prices.machine_hour)} for an hour of this machine"]
        if not prices.machine_given:
            parts[0] += " (a default in US dollars: set `machine.price_per_hour`)"
        if prices.input is not None:
            tokens = "/".join(map(money_text, (prices.input, prices.output, prices.cached)))
            parts.append(f"{tokens} for a million input/output/cached tokens")
        if any(rung.price_per_1000 is None for rung in measured(result)):
            parts.append("the endpoint's prices are not known: set RUNG_API_PRICE_INPUT and RUNG_API_PRICE_OUTPUT")
        parts.append(f"training is spread over {prices.predictions:,} predictions (`needs.rows_per_day`)")
        lines.append(f"prices: {'; '.join(parts)}")
    return lines


def duration(seconds: float) -> str:
    """`42 s`, `3 min 12 s` or `1 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = whole // 60
    return f"{minutes} min {whole % 60} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@cache
def glossary() -> dict[str, str]:
    """What the words of reports and pages mean."""
    return {str(word): str(text) for word, text in yaml.safe_load(GLOSSARY.read_text("utf-8")).items()}


def term(shown: str, word: str = "") -> Markup:
    """A word whose meaning opens at a click, a tap or a key, on a page that ends with `meanings`.

    `word` is its entry in the glossary, by default what is shown; `title` shows the meaning under a mouse, too.
    """
    word = word or shown
    meaning = safe(glossary()[word])
    return Markup(
        f'<button type="button" class="term" popovertarget="{_anchor(word)}" title="{meaning}">{safe(shown)}</button>'
    )


def meanings() -> Markup:
    """What the words that `term` marks open: each meaning once on a page."""
    return Markup("".join(f'<div popover id="{_anchor(word)}">{safe(text)}</div>' for word, text in glossary().items()))


def _anchor(word: str) -> str:
    return "term-" + re.sub(r"\W+", "-", word)


def measured(result: ClimbResult) -> list[RungResult]:
    """The rungs with a score, in the order of the ladder."""
    return [r for r in result.rungs if r.score is not None]


def left_out(result: ClimbResult) -> list[RungResult]:
    """The rungs that were skipped or failed."""
    return [r for r in result.rungs if r.score is None]


def left_out_lines(result: ClimbResult) -> list[str]:
    """What failed, and what does not suit the task; the reasons of many are left to the report."""
    out = [r for r in left_out(result) if r.name not in result.unfinished]
    lines = [f"failed: {r.name}: {r.reason}" for r in out if r.status == "failed"]
    skipped = [r for r in out if r.status != "failed"]
    if len(skipped) <= FEW:
        return lines + [f"{r.status}: {r.name}: {r.reason}" for r in skipped]
    names = ", ".join(r.name for r in skipped)
    return [*lines, f"not for this task: {names}; the report and --json say why"]


def unfinished_notes(result: ClimbResult) -> list[str]:
    """What was not tried, the most promising first, and how to go on; empty if nothing is left."""
    if not result.unfinished:
        return []
    known = {rung.name: rung for rung in result.rungs}
    rungs = [known[name] for name in result.unfinished]
    rungs.sort(key=lambda r: -r.expected_gain / max(r.expected_seconds or 0.0, 0.1))
    names = ", ".join(
        f"{r.name} ({duration(r.expected_seconds or 0.0)}, {100 * r.expected_gain:+.1f} points)"
        if r.expected_gain
        else r.name
        for r in rungs[:NAMED]
    )
    more = f" and {len(rungs) - NAMED} more" if rungs[NAMED:] else ""
    return [
        f"not tried yet, with the time and the gain to expect: {names}{more}",
        "to go on: the same command with --resume and more --budget; --rungs names what to try",
    ]


def overflow_notes(result: ClimbResult) -> list[str]:
    """For each rung with prompts longer than the model's context: what was left out."""
    return [
        f"{r.name}: {r.overflow_rows} of {r.n} prompts were longer than the model reads; "
        f"{r.dropped_demonstrations} demonstrations were left out of them (overflow: drop_demonstrations)"
        for r in measured(result)
        if r.overflow_rows
    ]


def retrieval_notes(result: ClimbResult) -> list[str]:
    """For each rung that retrieves documents: how good retrieval was, and why wrong answers are wrong."""
    return [f"{r.name}: {retrieval_text(r.retrieval)}" for r in measured(result) if r.retrieval]


def retrieval_text(figures: Mapping[str, float]) -> str:
    """The figures of `rung.evaluation.rag_metrics.summary` in words."""
    parts = [f"{name.replace('_', ' ')} {100 * figures[name]:.1f} %" for name in MEANS if name in figures]
    if "retrieval_failures" in figures:
        parts.append(
            f"of the answers that score below {WRONG:g}, the answer was not among the passages in "
            f"{figures['retrieval_failures']:.0f} and was there, but not used, in {figures['reading_failures']:.0f}"
        )
    if figures["refused"]:
        parts.append(f"{figures['refused']:.0f} of {figures['rows']:.0f} rows refused: nothing relevant was found")
    if figures["overflow_rows"]:
        parts.append(
            f"{figures['overflow_rows']:.0f} prompts were longer than the model reads: "
            f"{figures['dropped_passages']:.0f} passages were left out and {figures['shortened_passages']:.0f} cut "
            "(overflow: shorten_passages)"
        )
    return "; ".join(parts)


def confidence_notes(result: ClimbResult) -> list[str]:
    """How far the recommended artifact's confidence can be trusted; empty if that was not measured."""
    return [] if result.confidence is None else confidence_lines(result.confidence)


def confidence_lines(figures: Mapping[str, Any]) -> list[str]:
    """The calibration error and the effect of abstaining, as `rung.evaluation.calibration.describe` measured them."""

    def percent(values: Mapping[str, float], name: str) -> str:
        return f"{100 * values[name]:.1f} % [{100 * values['low']:.1f}, {100 * values['high']:.1f}]"

    def chance(values: Mapping[str, float]) -> str:
        known = "not distinguishable from" if values["p"] >= LEVEL else "more than"
        return f"{known} chance, which gives {100 * values['expected']:.1f} % ({p_text(values['p'])})"

    how = "isotonic regression" if figures["temperature"] is None else f"temperature {figures['temperature']:.2f}"
    lines = [
        f"confidence of {figures['artifact']}: {how}, fitted on {figures['fitted_on']} validation rows; expected "
        f"calibration error on {figures['rows']} test rows {percent(figures['before'], 'error')} before and "
        f"{percent(figures['after'], 'error')} after, {chance(figures['after'])}"
    ]
    if (chosen := figures["abstaining"]) is not None:
        text = f"abstaining below {chosen['threshold']:g}: {100 * chosen['coverage']:.1f} % of the rows are answered"
        if chosen["accuracy"] is not None:
            text += f", {percent(chosen, 'accuracy')} of them right"
        if chosen["out_of_scope"] is not None:
            text += (
                f"; {100 * chosen['handled']:.1f} % of all rows were handled right: answered correctly, or held back "
                f"where the label is {chosen['out_of_scope']}"
            )
            if chosen["outside_held"] is not None and chosen["inside_held"] is not None:
                text += (
                    f" ({100 * chosen['outside_held']:.1f} % of the rows with that label were held back, and "
                    f"{100 * chosen['inside_held']:.1f} % of the others)"
                )
        lines.append(text)
    for accuracy, point in figures["reaching"].items():
        aim = f"{100 * float(accuracy):.0f} % right on new rows, with 95 % confidence"
        found = f"no threshold is proven on {figures['rows']} rows"
        if point is not None:
            found = f"abstain below {point['threshold']:.3f}: {100 * point['coverage']:.1f} % of the rows are answered"
            found += f", {100 * point['accuracy']:.1f} % of them right here"
        lines.append(f"{aim}: {found}")
    return lines


def method(result: ClimbResult) -> list[str]:
    """How the figures were measured."""
    where = {
        "folds": "Every row was answered by an artifact that was made without it: out of fold.",
        "test": "The confirmation's test rows were not used to train or to choose anything.",
    }
    return [
        "Every rung answered the same rows in the same order, with the same prompt renderer and the same metric.",
        "Search: what takes seconds is measured first, then what is expected to gain most a second. Each is raced "
        "against the leader: it stops when the leader beats it by a test that is valid at every look, or when it has "
        "less than a 1 % chance to be the better choice. A training that cannot reach the leader stops early.",
        f"Confirmation: {where.get(result.rows, '')} It goes on until the decision is made. Every arm is compared with "
        f"{result.rungs[0].name} by a one-sided test that is valid at every look; p-values and intervals are corrected "
        "over these comparisons (Holm), and agree with each other.",
        f"Recommended may be what is better than {result.rungs[0].name}, or cheaper and not worse by more than the "
        "margin. Of these, the cheapest is chosen whose expected loss to the best one is small (Bayesian bootstrap). "
        "The price of a prediction is its tokens at an endpoint's prices, or its measured time on this machine at the "
        "batch size that was used, and its share of training.",
        f"Intervals are at 95 %. Model {result.model}, metric {result.metric}, seed {result.seed}, "
        f"Rung {result.version}, {result.created}.",
    ]


@dataclass(frozen=True, slots=True)
class RungOutcome:
    """What a climb showed of one rung on top of zero-shot.

    `helped` and `hurt` are significant on the test rows, after the correction over all pairs; `beaten` rungs were
    stopped in the race. `text` gives the figures.
    """

    rung: str
    word: Literal["helped", "hurt", "no difference", "beaten", "skipped", "failed", "incumbent"]
    text: str


def outcomes(result: ClimbResult) -> dict[str, RungOutcome]:
    """What the climb showed of every rung on top of zero-shot, by name."""
    return {rung.name: _outcome(result, rung) for rung in result.rungs if len(rung.path) <= 2}


def _outcome(result: ClimbResult, rung: RungResult) -> RungOutcome:
    if rung.status == "skipped" or rung.status == "failed":
        return RungOutcome(rung.name, rung.status, rung.reason)
    if rung.name == result.rungs[0].name:
        return RungOutcome(rung.name, "incumbent", score_text(rung))
    comparison = against(result, rung.name)
    if comparison is None:
        return RungOutcome(rung.name, "beaten", f"{score_text(rung)} on {rung.n} validation rows")
    text = delta_text(comparison)
    if comparison.p >= result.level or comparison.delta == 0:
        return RungOutcome(rung.name, "no difference", text)
    return RungOutcome(rung.name, "helped" if comparison.delta > 0 else "hurt", text)


def training_data_lines(values: Mapping[str, Any]) -> Iterator[str]:
    """The lines of a training data report, from the JSON values of `rung.training.examples.TrainingReport`."""
    kept = f"{values['kept']:,} of {values['rows']:,} rows kept"
    yield f"{kept}: {values['examples']:,} examples, {values['tokens']:,} tokens"
    for reason, count in values["dropped"].items():
        yield f"{count:,} dropped, {reason}: {_places(values['dropped_at'][reason], count)}"
    if count := values["truncated"]:
        tokens = values["truncated_tokens"]
        yield f"{count:,} truncated, {tokens:,} tokens in all: {_places(values['truncated_at'], count)}"
    if bare := values.get("without_thoughts"):
        yield (
            f"{bare:,} {'answer has' if bare == 1 else 'answers have'} no thought, so all are learned without, and the "
            "artifact answers without thinking although the task says to think"
        )
    if count := values.get("thoughts_left_out"):
        yield f"the thoughts of {count:,} turns are left out{'' if bare else ': `thinking` is off'}"
    if count := values["turns_apart"]:
        yield f"{count:,} assistant turns are examples of their own: the template rewrites what is before them"
    if (reached := values.get("reached_share")) is not None and reached < 1:
        yield f"the updates reach {reached:.0%} of the weights of the model's layers: the others stay as they are"
    if spread := values["supervised"]:
        sizes = f"{spread['min']:g} / {spread['median']:g} / {spread['max']:g}"
        yield f"{sizes} supervised tokens an example (min / median / max)"
        yield f"the first example, supervised between {OPEN} and {CLOSE}:"
        yield values["example"]


def told_apart_line(values: Mapping[str, Any]) -> str:
    """How well a rung that learned from preferences tells answers apart, from what its artifact records."""
    share = f"{100 * values['accuracy']:.0f} % [{100 * values['low']:.0f}, {100 * values['high']:.0f}]"
    if "pairs" not in values:
        return f"{share} of {values['answers']:,} {values['rows']} answers moved in the right direction"
    if "likelier_before" not in values:
        longer = 100 * values["longer"]
        text = (
            f"{share} of {values['pairs']:,} {values['rows']} pairs are rated in the right order; in {longer:.0f} % the"
        )
        return f"{text} better answer is the longer one"
    before, after = (f"{100 * values[name]:.0f} %" for name in ("likelier_before", "likelier_after"))
    text = (
        f"{share} of {values['pairs']:,} {values['rows']} pairs moved in the right direction; the better answer is the"
    )
    text += f" likelier one in {after}, before in {before}"
    if (change := values["chosen_change"]) < 0:
        text += f"; better answers lost {-change:.1f} nats: they are written less often than before, so raise `nll`"
    return text


def _places(sources: Sequence[str], count: int) -> str:
    return ", ".join(sources) + (", ..." if count > len(sources) else "")


def data_lines(report: DataReport) -> Iterator[str]:
    """What the report says besides its table: formats, folds, rows per label, what they can show, rows left out."""
    for file, stated in report.formats.items():
        yield f"{file} is read as: {stated}"
    if report.folds:
        yield f"every training row is answered out of fold: {len(report.folds)} folds of {_range(report.folds)} rows"
    for name, counts in report.labels.items():
        if counts:
            rows = sorted(counts.values())
            yield f"{name}: {rows[0]} / {median(rows):g} / {rows[-1]} rows a label (min / median / max)"
    if rare := report.rare():
        more = f" and {len(rare) - SHOWN} more" if rare[SHOWN:] else ""
        yield f"rare in training: {', '.join(rare[:SHOWN])}{more}"
    if counts := report.preferences:
        yield (
            f"preferences: {counts['pairs']:,} pairs, {counts['good']:,} single good and {counts['bad']:,} single bad "
            f"answers; {counts['unseen']:,} are about validation or test rows, and nothing learns them"
        )
    for name, effect in report.detectable.items():
        size = "no difference can be shown"
        if effect is not None:
            size = f"a gain of {100 * effect:.0f} points over zero-shot is likely shown ({CANDIDATES} candidates)"
        number = sum(report.folds) if name == "folds" else report.splits[name].kept
        yield f"{name}: with {number:,} rows, {size}"
    for name, split in report.splits.items():
        for reason, sources in split.dropped.items():
            if reason in WANTED:
                yield f"{name}: {len(sources):,} left out, {reason}"


def _range(values: Sequence[int]) -> str:
    return f"{min(values)} to {max(values)}" if min(values) < max(values) else f"{values[0]}"


def artifact_facts(artifact: Artifact) -> dict[str, Any]:
    """What an artifact is made of, as plain values."""
    shown, retriever, signature = artifact.demonstrations, artifact.retriever, artifact.signature
    demonstrations = None if shown is None else f"{shown.selection}, {shown.k} of {len(shown.pool)}"
    if shown is not None and shown.words is not None:
        demonstrations = f"{demonstrations}, compared by their words"
    if shown is not None and shown.sets > 1:
        demonstrations = f"{demonstrations}, {shown.sets} prompts"
    training = {name: each[TRAINING_DATA] for name, each in artifact.settings.items() if TRAINING_DATA in each}
    search = None if retriever is None else f"{retriever.k} of {retriever.folder}, {retriever.order.replace('_', ' ')}"
    return {
        "name": artifact.name,
        "task": signature.task,
        "kind": signature.kind,
        "inputs": list(signature.inputs),
        "labels": len(signature.labels),
        "model": artifact.model,
        "path": list(artifact.path),
        "instruction": artifact.prompt.head(),
        "template": artifact.prompt.template,
        "retriever": search,
        "demonstrations": demonstrations,
        "weights": artifact.weights.method,
        "trainable": artifact.weights.trainable_parameters,
        "decoder": artifact.decoder.kind,
        "confidence": None if artifact.decoder.confidence is None else artifact.decoder.confidence.method,
        "prompt": artifact.prompt.fingerprint,
        "training_data": training,
    }
