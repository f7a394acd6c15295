"""`rung trial`: one artifact beside the one that is served, on live requests, until a sequential test has decided."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from rung.cli.feedback import StorePlace, open_store
from rung.cli.improve import RegistryFolder
from rung.cli.options import ArtifactFolder, Json, Offline, print_json
from rung.errors import ConfigError
from rung.feedback.defaults import PAIRS, REGISTRY, SHARE, STORE

if TYPE_CHECKING:
    from rung.feedback.records import Challenge
    from rung.feedback.registry import Registry
    from rung.feedback.trial_report import TrialReport

app = typer.Typer(no_args_is_help=True)
TaskNamed = Annotated[str, typer.Argument(help="Name of the task.", metavar="TASK")]


@app.command("start")
def start_command(
    task: TaskNamed,
    artifact: ArtifactFolder,
    mode: Annotated[
        str, typer.Option("--mode", help="shadow: answers behind every response; ab: answers a share of the inputs.")
    ] = "shadow",
    share: Annotated[
        float | None,
        typer.Option("--share", help=f"With ab: the share of the inputs that it answers; {SHARE:g} by default."),
    ] = None,
    stop_after: Annotated[int, typer.Option("--stop-after", min=1, help="Pairs after which it ends.")] = PAIRS,
    registry: RegistryFolder = REGISTRY,
    json: Json = False,
    offline: Offline = False,
) -> None:
    """Try an artifact beside what is served; servers that follow the registry begin by themselves."""
    from rung.feedback.commands import command
    from rung.feedback.records import Mode
    from rung.feedback.registry import Registry
    from rung.feedback.trials import start

    known = next((one for one in get_args(Mode) if one == mode), None)
    if known is None:
        raise ConfigError("bad-option", f"--mode {mode!r} is none", hint=f"choose {' or '.join(get_args(Mode))}")
    if share is not None and (known == "shadow" or not 0 < share < 1):
        raise ConfigError(
            "bad-option", f"--share {share:g} with --mode {mode}",
            hint="a share above 0 and below 1 needs --mode ab; a shadow answers everything",
        )  # fmt: skip
    home = Registry(registry, task)
    made = start(home, artifact, mode=known, share=SHARE if share is None else share, most=stop_after)
    if json:
        print_json(_values(made, home))
        return
    what = "every response" if known == "shadow" else f"{made.share:.0%} of the inputs"
    typer.echo(f"{made.artifact[:16]} is tried on {what} beside {made.against[:16]}, up to {made.most:,} pairs")
    typer.echo(f"Next: {command('rung trial show', task, registry=registry)}")


@app.command("show")
def show_command(
    task: TaskNamed,
    store: StorePlace = STORE,
    registry: RegistryFolder = REGISTRY,
    json: Json = False,
    offline: Offline = False,
) -> None:
    """Show how a trial stands: fixed, broken, p, and whether it may be stopped."""
    from rung.feedback.registry import Registry
    from rung.feedback.trial_report import trial_report

    home = Registry(registry, task)
    with open_store(store) as opened:
        report = trial_report(opened, home)
    if not json:
        _show(report)
        return
    found, decision = report.standing, report.standing.decision
    print_json({
        **_values(report.trial, home), "answered": dict(found.answered), "judged": dict(found.judged),
        "pairs": decision.n, "delta": decision.delta, "low": found.interval.low, "high": found.interval.high,
        "fixed": decision.fixed, "broken": decision.broken, "p": decision.p, "state": decision.state,
        "stop": decision.stop, "next": report.next,
    })  # fmt: skip


@app.command("stop")
def stop_command(task: TaskNamed, registry: RegistryFolder = REGISTRY, json: Json = False) -> None:
    """End a trial; what was collected stays, and `show` still shows it."""
    from rung.feedback.registry import Registry
    from rung.feedback.trials import stop

    home = Registry(registry, task)
    ended = stop(home)
    if json:
        print_json(_values(ended, home))
    else:
        typer.echo(f"the trial of {ended.artifact[:16]} is stopped")


def _values(trial: Challenge, home: Registry) -> dict[str, Any]:
    return {
        "id": trial.token, "task": trial.task, "mode": trial.mode, "share": trial.share, "stop_after": trial.most,
        "artifact": trial.artifact, "folder": str(home.path(trial)), "against": trial.against,
        "started": trial.at.isoformat(), "ended": None if trial.ended is None else trial.ended.isoformat(),
        "running": trial.runs(home.current()),
    }  # fmt: skip


def _show(report: TrialReport) -> None:
    trial, decision = report.trial, report.standing.decision
    answered, judged = report.standing.answered, report.standing.judged
    typer.echo(
        f"{trial.mode} of {trial.artifact[:16]} ({report.challenger}) against {trial.against[:16]} ({report.served}): "
        f"{'runs' if report.running else 'is over'}\n"
        f"answered: {answered['a']} by what is served, {answered['b']} by the challenger; "
        f"judged: {judged['a']} and {judged['b']}\n"
        f"{decision.n} of at most {trial.most} pairs: {report.delta} {report.interval}, {decision.fixed} fixed / "
        f"{decision.broken} broken, {report.p}\n{report.verdict}"
    )
    if report.next:
        typer.echo(f"Next: {report.next}")
