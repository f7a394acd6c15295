"""Find suspicious answers, and turn reviewed interactions into training rows.

An answer is suspicious if it breaks the task's rules, or if another artifact contradicts it. A reviewed interaction is
checked like a row of a file, and never becomes a training row if it is held out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rung.artifact.artifact import Artifact
from rung.data.examples import examples, read_inputs
from rung.data.rows import Data, Example, Preference, Record, SplitReport, example_id, hash_of
from rung.engines.constraints import schema_problem
from rung.errors import DataError, suggest
from rung.feedback.records import CaseFilter, Feedback, Interaction, Opinions, ReviewCase, SplitRule
from rung.feedback.store import FeedbackStore
from rung.progress import QUIET, Progress
from rung.task import Task

BATCH = 32


@dataclass(frozen=True, slots=True)
class CheckCounts:
    """How many unreviewed interactions were checked, and how many of them are newly invalid or contradicted."""

    looked_at: int
    invalid: int
    disagreed: int


def check(
    store: FeedbackStore, artifact: Artifact, fingerprint: str, *, compare: bool = True, progress: Progress = QUIET
) -> CheckCounts:
    """Check the unreviewed interactions of an artifact's task, and store the findings as feedback.

    The artifact defines which answers are valid. With `compare` it also answers itself: the disagreement of a stronger
    artifact is worth a review. A finding is stored once, and an artifact answers an interaction at most once.
    """
    cases = store.cases(CaseFilter(task=artifact.signature.task, reviewed=False))
    known, source = store.sources(), f"artifact:{fingerprint}"
    invalid = disagreed = 0
    for case in cases:
        id, problem = case.interaction.id, invalidity(artifact, case.interaction.actual)  # noqa: A001
        if problem and "check" not in known.get(id, ()):
            store.add_feedback(Feedback(id, comment=problem, source="check"))
            invalid += 1
    rows = [case.interaction for case in cases if case.interaction.artifact != fingerprint]
    rows = [row for row in rows if source not in known.get(row.id, ())]
    if compare and rows:
        progress.start("answering again", len(rows))
        for first in range(0, len(rows), BATCH):
            batch = rows[first : first + BATCH]
            examples = [Example(row.input_id, row.inputs, (), row.id) for row in batch]
            for row, answer in zip(batch, artifact.answer(examples, full=False), strict=True):
                # Agreement is stored too: it says that this artifact has answered the interaction.
                store.add_feedback(Feedback(row.id, expected=answer.text, source=source))
                disagreed += answer.text.strip() != row.actual.strip()
            progress.advance(len(batch))
        progress.finish(f"{disagreed} disagreements")
    return CheckCounts(len(cases), invalid, disagreed)


def invalidity(artifact: Artifact, actual: str) -> str:
    """Why an answer breaks the rules of the artifact's task; empty if it does not."""
    kind = artifact.signature.kind
    if not actual.strip():
        return "the answer is empty"
    if kind == "category" and actual.strip() not in artifact.signature.labels:
        return "the answer is none of the labels"
    if kind == "json":
        try:
            value = json.loads(actual)
        except (ValueError, RecursionError):
            return "the answer is not valid JSON"
        schema = artifact.decoder.answer_schema
        if schema and (problem := schema_problem(value, schema)):
            return f"the answer does not fit the schema: {problem}"
    return ""


def labels_of_task(task: Task) -> tuple[str, ...]:
    """The labels of a task of categories: those that it lists, else those of its rows."""
    if task.output.kind != "category":
        return ()
    return tuple(task.output.labels or ()) or task.held_out().read().labels


def matched_label(expected: str, labels: Sequence[str], source: str) -> str:
    """Find the label that a reviewer means: case, underscores, hyphens and spaces may differ.

    Raises:
        DataError: `unknown-label`: none of the labels, or several.
    """
    text = expected.strip()
    if text in labels:
        return text
    meant = [label for label in labels if folded(label) == folded(text)]
    if len(meant) != 1:
        problem = f"{source}: {text!r} is none of the {len(labels)} labels of the task"
        raise DataError("unknown-label", problem, hint=suggest(text, labels))
    return meant[0]


def folded(name: str) -> str:
    """Reduce a name to what people keep when they type it: no case, single spaces for underscores and hyphens."""
    return " ".join(re.sub(r"[_\-\s]+", " ", name).casefold().split())


def contradictions(task: Task, store: FeedbackStore) -> list[str]:
    """Describe the inputs about which reviewers of labels contradict each other; see `Opinions.contested`.

    Other answers may differ in their words, so the last correction holds.
    """
    if task.output.kind != "category":
        return []
    contested = [each for each in store.opinions(task.name).values() if each.contested]
    return [", ".join(f"{reviewer}: {expected!r}" for reviewer, expected in each.words.items()) for each in contested]


@dataclass(frozen=True, slots=True)
class CorrectionCounts:
    """How the reviewed interactions were used."""

    failures: int = 0  # training rows from wrong answers
    confirmed: int = 0  # training rows from answers that a reviewer found right
    replaced: int = 0  # rows of the training file that a correction of the same input replaced
    held_out: int = 0  # left out because their input is on the test side, or among the validation rows
    superseded: int = 0  # left out because a later interaction has the same input
    pairs: int = 0  # preferences: an expected response, and the wrong answer that it corrects
    thumbs: int = 0  # preferences: answers that were not reviewed, but got a thumb
    disputed: int = 0  # thumbs left out because users disagree


def with_corrections(
    task: Task, data: Data, cases: Sequence[ReviewCase], opinions: Mapping[tuple[str, str], Opinions] | None = None,
    thumbs: Sequence[tuple[Interaction, bool | None]] = (),
) -> tuple[Data, CorrectionCounts]:  # fmt: skip
    """Add the reviewed interactions of the training side to the task's training rows, and what they prefer.

    Of several interactions with one input, the last one counts; with `opinions`, the one that the last word is about.

    An interaction is held out if it was captured on the test side, if the task's own rule puts its input there, or if
    its input equals a test or validation row. One of these is enough. A corrected answer is worse than the expected
    one, and an answer with a thumb is good or bad by itself; those that are held out measure what is learned.

    Raises:
        DataError: an expected response does not fit the task, such as a label that it does not have.
    """
    rule = SplitRule.of(task) if task.data.test is None else None
    aside = {row.id for row in (*data.validation, *data.test)}

    def is_held_out(row: Interaction, example: Example) -> bool:
        # Redaction may have changed the inputs; `input_id` is that of the original ones.
        in_aside = row.split == "test" or row.input_id in aside or example.id in aside
        return in_aside or (rule is not None and rule.side(example.inputs) == "test")

    chosen: dict[str, tuple[ReviewCase, Example]] = {}
    judged: tuple[list[Preference], list[Preference]] = ([], [])  # that may be learned, that may not
    held_out = superseded = 0
    for case in sorted(cases, key=lambda case: case.interaction.at):
        example, row = as_example(task, data, case), case.interaction
        unseen = is_held_out(row, example)
        word = (opinions or {}).get((row.task, row.input_id))
        agreed = word is None or word.expected == case.expected
        if case.failure and row.actual.strip() and agreed:
            judged[unseen].append(Preference(example, replace(example, outputs=(row.actual.strip(),), turn=None)))
        if unseen:
            held_out += 1
            continue
        if not agreed:
            superseded += 1
            continue
        superseded += row.input_id in chosen
        chosen[row.input_id] = (case, example)
    reviewed = {case.interaction.id for case in cases}
    given = [(row, up) for row, up in thumbs if row.id not in reviewed and row.actual.strip()]
    for row, up in given:
        source = f"interaction {row.id}"
        inputs = read_inputs(row.inputs, task.inputs, task.output.kind, source)
        example = Example(example_id(inputs), inputs, (row.actual.strip(),), source)
        if up is not None:
            judged[is_held_out(row, example)].append(Preference(example, None) if up else Preference(None, example))
    ids = {example.id for _, example in chosen.values()} | set(chosen)
    kept = [row for row in data.train if row.id not in ids]
    added = [example for _, example in chosen.values()]
    failures = sum(case.failure for case, _ in chosen.values())
    pairs = sum(each.pair is not None for each in judged[0])
    counts = CorrectionCounts(
        failures, len(chosen) - failures, len(data.train) - len(kept), held_out, superseded, pairs,
        len(judged[0]) - pairs, sum(up is None for _, up in given),
    )  # fmt: skip
    changed = [data.fingerprint, [[row.id, *row.outputs] for row in added], [each.id for each in judged[0]]]
    return replace(
        data, train=(*kept, *added), fingerprint=hash_of(changed, digits=64),
        preferences=(*data.preferences, *judged[0]), unseen_preferences=(*data.unseen_preferences, *judged[1]),
    ), counts  # fmt: skip


def as_example(task: Task, data: Data, case: ReviewCase) -> Example:
    """A reviewed interaction as a row of the task, with the expected response as the answer.

    A DataError names the interaction whose expected response does not fit the task.
    """
    assert case.expected is not None
    expected, source = case.expected, f"interaction {case.interaction.id}"
    values: dict[str, Any] = dict(case.interaction.inputs)
    if task.output.kind == "category":
        expected = matched_label(expected, data.labels or tuple(task.output.labels or ()), source)
    if task.output.kind == "chat":
        column = task.inputs[0]
        values[column] = [*values[column], {"role": "assistant", "content": expected}]
    else:
        column = task.output.column or "expected"
        values[column] = expected
        if task.output.columns is not None:  # the answer is written as one text, not in a column for each part
            output = task.output.model_copy(update={"column": column, "columns": None})
            task = task.model_copy(update={"output": output})
    report = SplitReport()
    rows, _ = examples([Record(values, source)], task, report)
    if not rows:
        problem = f"{source} is not a valid row of the task {task.name}: {next(iter(report.dropped))}"
        raise DataError("bad-row", problem, hint="undo the correction with `rung failures undo`")
    return rows[0]
