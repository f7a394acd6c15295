"""`rung trial`: one artifact beside the one that is served, on live requests, until a sequential test has decided."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from rung.cli.failures import StorePlace, open_store
from rung.cli.improve import RegistryFolder
from rung.cli.options import ArtifactFolder, Json, Offline, print_json
from rung.errors import ConfigError

if TYPE_CHECKING:
    from rung.failures.challenge import Standing
    from rung.failures.records import Challenge
    from rung.failures.registry import Registry

app = typer.Typer(no_args_is_help=True)
TaskNamed = Annotated[str, typer.Argument(help="Name of the task.", metavar="TASK")]
WINNERS = {
    "open": "undecided so far",
    "none": "the rows ran out, and neither was shown to be better",
    "a": "what is served is better",
    "b": "the challenger is better",
}


@app.command("start")
def start_command(
    task: TaskNamed,
    artifact: ArtifactFolder,
    mode: Annotated[
        str, typer.Option("--mode", help="shadow: answers behind every response; ab: answers a share of the inputs.")
    ] = "shadow",
    share: Annotated[
        float | None, typer.Option("--share", help="With ab: the share of the inputs that it answers; 0.1 by default.")
    ] = None,
    stop_after: Annotated[int, typer.Option("--stop-after", min=1, help="Pairs after which it ends.")] = 10_000,
    registry: RegistryFolder = Path("registry"),
    json: Json = False,
    offline: Offline = False,
) -> None:
    """Try an artifact beside what is served; servers that follow the registry begin by themselves."""
    from rung.failures.challenge import start
    from rung.failures.records import Mode
    from rung.failures.registry import Registry

    known = next((one for one in get_args(Mode) if one == mode), None)
    if known is None:
        raise ConfigError("bad-option", f"--mode {mode!r} is none", hint=f"choose {' or '.join(get_args(Mode))}")
    if share is not None and (known == "shadow" or not 0 < share < 1):
        raise ConfigError(
            "bad-option", f"--share {share:g} with --mode {mode}",
            hint="a share above 0 and below 1 needs --mode ab; a shadow answers everything",
        )  # fmt: skip
    home = Registry(registry, task)
    made = start(home, artifact, mode=known, share=0.1 if share is None else share, most=stop_after)
    if json:
        print_json(_values(made, home))
        return
    what = "every response" if known == "shadow" else f"{made.share:.0%} of the inputs"
    typer.echo(f"{made.artifact[:16]} is tried on {what} beside {made.against[:16]}, up to {made.most:,} pairs")
    typer.echo(f"Next: rung trial show {task}")


@app.command("show")
def show_command(
    task: TaskNamed,
    store: StorePlace = "failures.db",
    registry: RegistryFolder = Path("registry"),
    json: Json = False,
    offline: Offline = False,
) -> None:
    """Show how a trial stands: fixed, broken, p, and whether it may be stopped."""
    from rung.artifact import Artifact
    from rung.failures.challenge import standing
    from rung.failures.registry import Registry

    home = Registry(registry, task)
    trial = home.trial()
    if trial is None:
        raise ConfigError("no-trial", f"no trial was started for {task}", hint="rung trial start TASK ARTIFACT")
    with open_store(store) as opened:
        found = standing(opened, trial, Artifact.load(home.path(trial)).shape.scorer())
    if json:
        decision = found.decision
        print_json({
            **_values(trial, home), "answered": dict(found.answered), "judged": dict(found.judged),
            "pairs": decision.n, "delta": decision.delta, "fixed": decision.fixed, "broken": decision.broken,
            "p": decision.p, "state": decision.state, "stop": decision.stop,
        })  # fmt: skip
    else:
        _show(trial, home, found)


@app.command("stop")
def stop_command(task: TaskNamed, registry: RegistryFolder = Path("registry"), json: Json = False) -> None:
    """End a trial; what was collected stays, and `show` still shows it."""
    from rung.failures.challenge import stop
    from rung.failures.registry import Registry

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


def _show(trial: Challenge, home: Registry, found: Standing) -> None:
    decision, answered, judged = found.decision, found.answered, found.judged
    running = "runs" if trial.runs(home.current()) else "is over"
    typer.echo(
        f"{trial.mode} of {trial.artifact[:16]} against {trial.against[:16]}: {running}\n"
        f"answered: {answered['a']} by what is served, {answered['b']} by the challenger; "
        f"judged: {judged['a']} and {judged['b']}\n"
        f"{decision.n} of at most {trial.most} pairs: {100 * decision.delta:+.1f} pp, {decision.fixed} fixed / "
        f"{decision.broken} broken, p = {decision.p:.3g}\n"
        f"{WINNERS[decision.state]}{'; the trial may be stopped' if decision.stop else ''}"
    )
    if decision.state == "b":
        reason = f"trial {trial.token[:8]}: {100 * decision.delta:+.1f} pp, p = {decision.p:.3g}"
        typer.echo(f'Next: rung promote {home.path(trial)} --reason "{reason}"')
    elif decision.stop and trial.ended is None:
        typer.echo(f"Next: rung trial stop {trial.task}")
