"""`rung confidence`: fit and measure how sure an artifact's answers are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from rung.cli.options import ArtifactFolder, Json, Offline, Quiet, Sets, TaskOfRows, overrides, print_json, progress
from rung.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("confidence")(confidence)


def confidence(
    artifact: ArtifactFolder,
    task: TaskOfRows,
    out: Annotated[Path | None, typer.Option(help="Save the artifact with its confidence here.")] = None,
    method: Annotated[str | None, typer.Option(help="temperature or isotonic; else the task's.")] = None,
    abstain_below: Annotated[
        float | None, typer.Option(help="Mark answers with less confidence as abstained; else the task's.")
    ] = None,
    sets: Sets = None,
    json: Json = False,
    quiet: Quiet = False,
    offline: Offline = False,
) -> None:
    """Fit confidence on the validation rows, measure it on the test rows, and say what abstaining would give."""
    from rung.artifact.artifact import Artifact
    from rung.climbing.confidence import fit_confidence, measure_confidence
    from rung.task import Confidence, Task

    loaded = Task.load(task, overrides(sets))
    wanted = loaded.confidence or Confidence()
    chosen = _method(method or wanted.method)
    below = wanted.abstain_below if abstain_below is None else abstain_below
    if below is not None and not 0 < below < 1:
        raise ConfigError("bad-option", f"--abstain-below is {below:g}", hint="give a number between 0 and 1")
    data, shown = loaded.read(), progress(quiet)
    fitted = fit_confidence(
        Artifact.load(artifact), data.validation, chosen,
        abstain_below=below, out_of_scope=wanted.out_of_scope, progress=shown,
    )  # fmt: skip
    if not data.test:
        raise ConfigError("empty-split", "the test split has no rows", hint="give `data.test`")
    told = measure_confidence(fitted, data.test, fitted_on=len(data.validation), progress=shown)
    if out is not None:
        fitted.save(out)
    if json:
        print_json({**told, "saved": None if out is None else str(out)})
    else:
        _print(told, out)


def _method(name: str) -> Literal["temperature", "isotonic"]:
    if name == "temperature":
        return "temperature"
    if name == "isotonic":
        return "isotonic"
    raise ConfigError("bad-option", f"--method {name!r}", hint="choose temperature or isotonic")


def _print(told: dict[str, Any], out: Path | None) -> None:
    from rung.evaluation.report.words import confidence_lines

    for line in confidence_lines(told):
        typer.echo(line)
    for accuracy, found in told["reaching"].items():
        what = "at no threshold"
        if found is not None:
            what = f"abstain below {found['threshold']:.3f}; {100 * found['coverage']:.1f} % of the rows are answered"
        typer.echo(f"{100 * float(accuracy):g} % of the answers right: {what}")
    if out is not None:
        typer.echo(f"saved: {out}")
