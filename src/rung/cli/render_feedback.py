"""What the commands print of captured answers, improvements and trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rung.cli.render import climb_result, one_line, say, table

if TYPE_CHECKING:
    from rung.feedback.improve import Improvement
    from rung.feedback.records import ReviewCase
    from rung.feedback.trials import TrialReport

CELL = 60  # characters of a cell with a user's text


def cases(shown: Sequence[ReviewCase], total: int) -> None:
    """Print captured answers as a table; others' text cannot control the terminal."""
    from rung.data.cells import text_of

    rows = []
    for case in shown:
        row = case.interaction
        given = " ".join(text_of(value) for value in row.inputs.values())
        expected = case.expected if case.expected is not None else f"({case.suggestion}?)" if case.suggestion else ""
        rows.append([one_line(text, CELL) for text in (row.id, ", ".join(case.reasons), given, row.actual, expected)])
    if rows:
        table(("id", "why", "input", "actual", "expected"), rows, wrapped=("why", "input", "actual", "expected"))
    say(f"{len(shown)} of {total} cases")


def case(values: Mapping[str, Any]) -> None:
    """Print one case with its feedback and history."""
    for name, value in values.items():
        if name not in ("feedback", "history", "shadowed_by") and value not in (None, "", []):
            say(f"{name}: {', '.join(value) if isinstance(value, list) else value}")
    for each in values["feedback"]:
        parts = [each["thumb"], each["score"], each["comment"], each["expected"] and f"expected {each['expected']!r}"]
        text = ", ".join(str(part) for part in parts if part not in (None, ""))
        say(f"feedback {each['at']} by {each['source']}: {text}")
    for each in values["shadowed_by"]:
        say(f"in a trial, the artifact {each['artifact'][:16]} answered {each['actual']!r}")
    for each in values["history"]:
        what = f"undid {each['undoes']}" if each["undoes"] else f"expected {each['expected']!r}"
        say(f"{each['number']}. {each['at']} {each['reviewer']}: {what} {each['comment']}".rstrip())


def statistics(values: Mapping[str, Any]) -> None:
    """Print how many answers were captured, suspicious, reviewed and wrong."""
    say(f"{values['captured']} captured, {values['suspicious']} suspicious, {values['queue']} to review")
    for name, count in values["reasons"].items():
        say(f"  {count} {name}")
    train, test = values["wrong"]["train"], values["wrong"]["test"]
    say(f"{values['reviewed']} reviewed, {train} wrong to train on, {test} wrong and held out")
    say(f"{values['fixed']} failures were fixed once, and are watched")


def improvement(improved: Improvement, registry: Path, store: str) -> None:
    """Print what a climb with the reviewed failures gained, and how to promote it."""
    from rung.feedback.records import command

    taken, outcome = improved.taken, improved.outcome
    say(
        f"{taken.failures} corrected and {taken.confirmed} confirmed answers joined the training rows "
        f"({taken.replaced} rows replaced, {taken.held_out} held out, {taken.superseded} superseded)\n"
        f"preferences: {taken.pairs} pairs from corrections, {taken.thumbs} thumbs ({taken.disputed} disputed)\n"
        f"rungs: {', '.join(improved.rungs)}: {improved.reason}\n"
    )
    climb_result(improved.climb.result)
    (fixed, train), (test_fixed, test) = outcome.of_train, outcome.of_test
    say(
        f"\nreviewed failures answered better: {fixed} of {train} trained on, {test_fixed} of {test} held out\n"
        f"fixed once and wrong again: {len(outcome.regressions)} of {outcome.watched}\n"
        f"report: {improved.climb.folder / 'report.html'}"
    )
    if improved.shift:
        say(improved.shift)
    if not improved.better:
        return
    accepting = ["--accept-regressions"] if outcome.regressions else []
    if accepting:
        say(f"Next: {command('rung failures show', outcome.regressions[0], store=store)}")
    promote = command("rung promote", improved.climb.folder, *accepting, registry=registry, store=store)
    say(f"{'And, if that is acceptable: ' if accepting else 'Next: '}{promote}")


def trial(report: TrialReport) -> None:
    """Print how a trial is going."""
    test, decision = report.trial, report.standing.decision
    answered, judged = report.standing.answered, report.standing.judged
    say(
        f"{test.mode} of {test.artifact[:16]} ({report.challenger}) against {test.against[:16]} ({report.served}): "
        f"{'runs' if report.running else 'is over'}\n"
        f"answered: {answered['a']} by what is served, {answered['b']} by the challenger; "
        f"judged: {judged['a']} and {judged['b']}\n"
        f"{decision.n} of at most {test.most} pairs: {report.measure} {report.delta} {report.interval}, "
        f"{decision.fixed} fixed / {decision.broken} broken, {report.p}\n{report.verdict}"
    )
    for remark in report.remarks:
        say(remark)
    if report.next:
        say(f"Next: {report.next}")
