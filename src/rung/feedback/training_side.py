"""Reviewed interactions as training rows: checked like rows of a file, and never one that is held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rung.data.examples import examples
from rung.data.rows import Data, Example, Record, SplitReport, hash_of
from rung.errors import DataError
from rung.feedback.interaction import SplitRule
from rung.feedback.records import Case
from rung.task import Task, suggest


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of the reviewed interactions.

    Attributes:
        failures: training rows made of answers that were wrong.
        confirmed: training rows made of answers that a reviewer found right.
        replaced: rows of the training file that a correction of the same input took the place of.
        held_out: left out because their input stands on the test side, or among the validation rows.
        superseded: left out because a later interaction has the same input.
    """

    failures: int = 0
    confirmed: int = 0
    replaced: int = 0
    held_out: int = 0
    superseded: int = 0


def with_corrections(task: Task, data: Data, cases: Sequence[Case]) -> tuple[Data, Taken]:
    """Return the task's data with the reviewed interactions of the training side among the training rows.

    An interaction is held out if it was captured on the test side, if the task's own rule puts its input there, or if
    its input is that of a test or validation row: whichever says so first, it is never trained on.

    Raises:
        DataError: an expected response does not fit the task, such as a label that it does not have.
    """
    rule = SplitRule.of(task) if task.data.test is None else None
    aside = {row.id for row in (*data.validation, *data.test)}
    chosen: dict[str, tuple[Case, Example]] = {}
    held_out = superseded = 0
    for case in sorted(cases, key=lambda one: one.interaction.at):
        example = as_example(task, data, case)
        row = case.interaction
        # The inputs may have been redacted since; `input_id` is of those that came.
        apart = row.split == "test" or row.input_id in aside or example.id in aside
        if apart or (rule is not None and rule.side(example.inputs) == "test"):
            held_out += 1
            continue
        superseded += row.input_id in chosen
        chosen[row.input_id] = (case, example)
    ids = {example.id for _, example in chosen.values()} | set(chosen)
    kept = [row for row in data.train if row.id not in ids]
    added = [example for _, example in chosen.values()]
    failures = sum(case.failure for case, _ in chosen.values())
    taken = Taken(failures, len(chosen) - failures, len(data.train) - len(kept), held_out, superseded)
    made = hash_of([data.fingerprint, [[row.id, *row.outputs] for row in added]], digits=64)
    return replace(data, train=(*kept, *added), fingerprint=made), taken


def as_example(task: Task, data: Data, case: Case) -> Example:
    """Return a reviewed interaction as a row of the task, its expected response as the answer.

    Raises:
        DataError: the expected response does not fit the task; the message names the interaction.
    """
    assert case.expected is not None
    row = case.interaction
    values: dict[str, Any] = dict(row.inputs)
    if task.output.kind == "chat":
        column = task.inputs[0]
        values[column] = [*values[column], {"role": "assistant", "content": case.expected}]
    else:
        assert task.output.column is not None
        values[task.output.column] = case.expected
    expected = case.expected
    if task.output.kind == "category":
        labels = data.labels or tuple(task.output.labels or ())
        values[task.output.column or ""] = expected = expected.strip()
        if expected not in labels:
            raise DataError(
                "unknown-label",
                f"interaction {row.id}: the label {expected!r} is not among those of the task",
                hint=f"{suggest(expected, labels)}; correct it with `rung failures correct`, or add rows of that label",
            )
    report = SplitReport()
    made, _ = examples([Record(values, f"interaction {row.id}")], task, report)
    if not made:
        reason = next(iter(report.dropped))
        raise DataError(
            "bad-output", f"interaction {row.id} is no row of the task {task.name}: {reason}",
            hint="undo the correction with `rung failures undo`",
        )  # fmt: skip
    return made[0]
