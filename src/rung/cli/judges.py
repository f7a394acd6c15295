"""`rung judge`: how far a task's judge agrees with people."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from rung.cli.options import Json, Offline, Sets, TaskFile, overrides, print_json
from rung.errors import ConfigError, DataError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("judge")(judge)


def judge(
    task: TaskFile,
    human: Annotated[
        Path,
        typer.Argument(
            help="Pairs that people judged: the task's inputs, `first`, `second`, and `preference` "
            "(first, second or tie).",
            metavar="HUMAN",
        ),
    ],
    sets: Sets = None,
    json: Json = False,
    offline: Offline = False,
) -> None:
    """Say how far the judge of a task (`metric: {name: judge, ...}`) agrees with people."""
    from rung.evaluation.metrics.judge import RUBRIC, agreement, open_judge
    from rung.task import Task

    loaded = Task.load(task, overrides(sets))
    if loaded.metric_name != "judge":
        raise ConfigError(
            "no-judge", f"the metric of {loaded.name} is {loaded.metric_name}, not a judge",
            hint="write `metric: {name: judge, model: ..., rubric: ...}`",
        )  # fmt: skip
    pairs, preferences = _pairs(human, loaded.inputs)
    settings = loaded.metric_settings
    verdicts = open_judge(settings["model"], settings.get("rubric", RUBRIC)).compare(pairs)
    found = agreement(verdicts, preferences)
    if json:
        print_json({"judge": settings["model"], **asdict(found)})
        return
    typer.echo(
        f"{settings['model']} agrees with people on {found.agreed} of {found.pairs} pairs: Cohen's kappa "
        f"{found.kappa:.2f} (1: fully, 0: as by chance)\n"
        f"{found.consistent} verdicts hold when the answers swap places\n"
        f"{found.unreadable} verdicts could not be read"
    )


def _pairs(file: Path, inputs: list[str]) -> tuple[list[Any], list[Any]]:
    """Read pairs and what people prefer."""
    from rung.data.examples import column
    from rung.data.sources import read_rows
    from rung.evaluation.metrics.judge import Pair, question_of

    pairs, preferences = [], []
    for record in read_rows(file):
        preference = str(column(record, "preference")).strip().lower()
        if preference not in ("first", "second", "tie"):
            raise DataError(
                "bad-preference", f"{record.source}: the preference {preference!r} is none of first, second and tie",
                hint="of several people take the majority, and write tie where there is none",
            )  # fmt: skip
        question = question_of({name: column(record, name) for name in inputs})
        pairs.append(Pair(question, str(column(record, "first")), str(column(record, "second"))))
        preferences.append(preference)
    if not pairs:
        raise DataError("empty-file", f"{file} has no rows", hint="write at least one pair")
    return pairs, preferences
