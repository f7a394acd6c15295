"""Commands that measure techniques: `advise`, `climb`, `fit`, `report`, `eval`, `judge`, `rungs`, `tune`."""

from __future__ import annotations

import math
import shlex
import sys
import webbrowser
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer
from typer import Argument, Option

from rung.cli import options, render
from rung.errors import ConfigError, MachineError, PreemptedError, ThresholdError

if TYPE_CHECKING:
    from rung.climbing import Climb
    from rung.evaluation.metrics.judge import AnswerPair
    from rung.evaluation.result import ClimbResult

DEMO = Path("rung-demo")
Tracked = Annotated[
    str | None, Option(help="Write the result into a tracker: mlflow, wandb or tensorboard.", metavar="TRACKER"),
]  # fmt: skip


def advise(
    task: options.TaskFile,
    runs: Annotated[Path, Option(help="Folder with the runs of climbs.")] = options.RUN_FOLDERS,
    sets: options.Sets = None, json: options.Json = False, offline: options.Offline = False,
) -> None:  # fmt: skip
    """Say what rules expect of every technique and why, and what a climb measured; nothing is downloaded or run."""
    from rung import advice
    from rung.evaluation.report.words import outcomes
    from rung.evaluation.result import ClimbResult

    loaded = options.load_task(task, sets, runs=False)
    guide, run = advice.advise(loaded), advice.latest_run(loaded, runs)
    measured, climbed = None, None
    if run is not None:
        measured = outcomes(ClimbResult.read(run[0]))
        rungs = [asdict(outcome) for outcome in measured.values()]
        climbed = {"run": str(run[0]), "same_task": run[1], "rungs": rungs}

    def show() -> None:
        render.advice(guide, measured)
        if run is not None:
            render.say(f"measured: {run[0]}{'' if run[1] else '; the task file has changed since'}")

    then = options.with_sets(sets, "rung", "climb", task, "--plan")
    render.result(json, {**guide.as_dict(), "measured": climbed}, show, then=then)


def climb(
    task: options.TaskFile, budget: options.Budget = None, rungs: options.RungNames = None,
    plan: Annotated[bool, Option("--plan", help="Only say what would run and what it would take.")] = False,
    resume: options.Resume = False, out: options.RunFolders = options.RUN_FOLDERS, seed: options.SeedOption = 0,
    engine: options.EngineOption = "auto", workers: options.Workers = None, on: options.On = None,
    jobs: options.Jobs = None, track: Tracked = None, sets: options.Sets = None,
    json: options.Json = False, quiet: options.QuietFlag = False, offline: options.Offline = False,
) -> None:  # fmt: skip
    """Measure every technique on the same rows and recommend the cheapest that is as good as the best."""
    from rung.climbing.plan import plan_rows
    from rung.climbing.run import climb

    _alone("climb")
    loaded = options.load_task(task, sets, runs=not plan)
    tracker = _tracker(track)
    crew = None if plan else options.crew(workers, on, jobs)
    how = options.climb_options(
        budget=budget, rungs=rungs, seed=seed, engine=engine, out=out, resume=resume, crew=crew
    )  # fmt: skip
    if plan:
        several = options.wants_workers(workers, on, jobs)
        rows, notes = plan_rows(loaded, how)
        if several:
            notes.append("these times are for one process; workers share the work, so the climb takes less")
        then = f"rung {_again('--plan')}"
        render.result(json, {"plan": rows, "notes": notes}, lambda: render.climb_plan(rows, notes), then=then)
        return
    try:
        done = climb(loaded, progress=options.progress(quiet), options=how)
    except KeyboardInterrupt:
        again = _again("--resume")
        render.note(f"\ninterrupted; nothing finished is lost. Continue with:\n  rung {again} --resume")
        raise typer.Exit(130) from None
    write_reports(done)
    if tracker is not None:
        render.note(f"tracked in {tracker(done.result, done.folder)}")
    again = _again("--resume", *(("--budget",) if done.result.unfinished else ()))
    render.result(json, done.result.summary(), lambda: render.climb_report(done.result, done.folder, again))


def _tracker(name: str | None) -> Callable[[ClimbResult, Path], str] | None:
    """What writes a climb into a tracker; its library is imported at once, so that none is missing after the climb."""
    from rung.climbing.track import Tracker, library, track

    if name is None:
        return None
    tracker: Tracker = options.choose("--track", name, get_args(Tracker))
    library(tracker)
    return lambda result, folder: track(result, folder, tracker)


def _again(*without: str) -> str:
    """The command as it was given, without these options; all but `--resume` and `--plan` go with their values."""
    parts, kept = iter(sys.argv[1:]), list[str]()
    for part in parts:
        name, given, _ = part.partition("=")
        if name not in without:
            kept.append(part)
        elif name not in ("--resume", "--plan") and not given:
            next(parts, None)
    return shlex.join(kept)


def _alone(command: str) -> None:
    from rung.training.distributed import launched

    if not launched().alone:
        raise ConfigError(
            "not-distributed", f"`rung {command}` would run once in each process that torchrun or srun started",
            hint="start one process; `rung fit` trains in several",
        )  # fmt: skip


def fit(
    task: options.TaskFile,
    rung: Annotated[str, Argument(help="The rung, such as lora.", metavar="RUNG")],
    out: Annotated[Path, Option(help="Folder of the artifact that is made.", metavar="FOLDER")],
    base: Annotated[
        Path | None, Option(help="The artifact to put it on; default: zero-shot.", metavar="ARTIFACT")
    ] = None,
    devices: Annotated[
        int | None, Option(min=1, help="Processes that train together, one for each device; default: 1.")
    ] = None,
    slurm: Annotated[
        str | None, Option(help="Only print the batch script for Slurm.", metavar="NODESxDEVICES")
    ] = None,
    seed: options.SeedOption = 0, engine: options.EngineOption = "auto", sets: options.Sets = None,
    json: options.Json = False, quiet: options.QuietFlag = False, offline: options.Offline = False,
) -> None:  # fmt: skip
    """Make one artifact with one rung, without measuring it; torchrun and srun start it in several processes."""
    from rung.training.distributed import joined, launch, launched, slurm_script

    world = launched()
    if devices is not None and (slurm is not None or not world.alone):
        why = "with --slurm" if slurm is not None else f"in the {world.size} processes that torchrun or srun started"
        raise ConfigError("bad-option", f"--devices {devices} has no effect {why}", hint="leave --devices out")
    if slurm is not None:
        nodes, times, each = slurm.partition("x")
        if not (times and nodes.isdecimal() and each.isdecimal() and int(nodes) and int(each)):
            raise ConfigError("bad-option", f"--slurm {slurm!r} is not NODESxDEVICES", hint="write --slurm 2x8")
        render.say(slurm_script(int(nodes), int(each), f"rung {_again('--slurm')}"))
        return
    if devices is not None and devices > 1:
        raise typer.Exit(launch(devices, shlex.split(_again("--devices"))))
    try:
        with joined(world):
            _fit(task, rung, out, base, seed, engine, sets, json, quiet or not world.first)
    except (ConfigError, PreemptedError) as error:  # the same in every process
        if world.first:
            raise
        raise typer.Exit(error.exit_code) from None


def _fit(
    file: Path, name: str, out: Path, base: Path | None, seed: int, engine: str, sets: list[str] | None, json: bool,
    quiet: bool,
) -> None:  # fmt: skip
    from rung.artifact.artifact import Artifact
    from rung.artifact.files import check_new
    from rung.rungs import build
    from rung.training.distributed import current

    world = current()
    if world.first or (out.exists() and any(out.iterdir())):
        check_new(out)
    task = options.load_task(file, sets)
    (chosen,) = build((name,), task, seed)
    data = task.read()
    start = (
        options.load_artifact(base, quiet=quiet) if base is not None
        else Artifact.zero_shot(task.only(task.model), data.labels, engine=engine)
    )  # fmt: skip
    if not (suits := chosen.applies(start, data)).applies:
        raise ConfigError("bad-option", f"{name} does not apply: {suits.reason}", hint="choose another rung, or --base")
    made = chosen.fit(start, data, progress=options.progress(quiet))
    if world.first:
        made.save(out)
        values = {"artifact": str(out), "rung": name, "processes": world.size}
        then = ("rung", "eval", out, file) if data.test else render.asking(out, task.inputs)
        render.result(json, values, f"{out}", then=then)


def demo(
    folder: Annotated[Path, Argument(help="Where the demo's task and run are written.", metavar="FOLDER")] = DEMO,
    budget: options.Budget = "60s", json: options.Json = False, quiet: options.QuietFlag = False,
    offline: options.Offline = False,
) -> None:  # fmt: skip
    """Climb on a small task that comes with Rung, in about a minute: 8 intents of a bank's customers.

    The first time, its two small models are fetched; downloads are not part of a climb's budget.
    """
    from importlib.resources import files

    from rung.climbing.run import climb

    folder.mkdir(parents=True, exist_ok=True)
    for file in files("rung.cli").joinpath("demo").iterdir():
        if not (folder / file.name).exists():
            (folder / file.name).write_bytes(file.read_bytes())
    task = folder / "task.yaml"
    how = options.climb_options(budget=budget, rungs=None, seed=0, engine="auto", out=folder / "runs", resume=False)
    done = climb(options.load_task(task), progress=options.progress(quiet), options=how)
    write_reports(done)

    def show() -> None:
        render.climb_report(done.result, done.folder)
        render.say(f"\nThe task is {task}; `rung init` makes one of your own table.")

    render.result(json, done.result.summary(), show, then=("rung", "init", "data.csv"))


def write_reports(climbed: Climb) -> None:
    """Write a climb's reports into its run folder."""
    from rung.evaluation.report.html import write_html

    climbed.result.write(climbed.folder)
    write_html(climbed.result, climbed.predictions, climbed.folder)


def report(
    run: Annotated[Path, Argument(help="A run folder, such as runs/banking77.", metavar="RUN")],
    show: Annotated[bool, Option("--open", help="Open the page in the browser.")] = False,
    rows: Annotated[
        str | None, Option(help="Print the rows that the recommended rung answered: wrong, broken, suspect, all, ...",
                           metavar="KIND")
    ] = None,
    track: Tracked = None, json: options.Json = False,
) -> None:  # fmt: skip
    """Show the report of a finished climb again; with --rows, what it gets wrong, row by row."""
    from rung.climbing.store import watch_predictions
    from rung.evaluation.report.explorer import KINDS, answered_rows
    from rung.evaluation.report.words import measured
    from rung.evaluation.result import ClimbResult

    if not (run / "report.json").is_file():
        hint = "give a run folder of a finished climb, or resume it first"
        raise ConfigError("wrong-folder", f"{run} has no report.json", hint=hint)
    result = ClimbResult.read(run)
    if (tracker := _tracker(track)) is not None:
        render.note(f"tracked in {tracker(result, run)}")
    page = (run / "report.html").resolve().as_uri()
    if rows is None:
        render.result(json, result.summary(), lambda: render.climb_report(result, run))
    else:
        kind = options.choose("--rows", rows, tuple(KINDS))
        if not result.recommends:
            render.note(result.decision)
        found = answered_rows(result, {rung.name: watch_predictions(run, rung.name) for rung in measured(result)})
        chosen = found.chosen(found.place, {"kind": kind})
        then = ("rung", "report", run, "--open")
        chosen_rows = [found.rows[number] for number in chosen]
        render.result(json, chosen_rows, lambda: render.mistakes(found, kind), then=then)
    if show and not webbrowser.open(page):
        raise MachineError("no-browser", f"no browser opens {page}", hint="copy the file to a machine with one")


def evaluate(
    artifact: options.ArtifactFolder, task: options.TaskOfRows,
    split: Annotated[str, Option(help="validation or test.")] = "test",
    judge: Annotated[
        str | None, Option(
            help="The model that judges whether answers follow from their documents.", metavar="MODEL",
            callback=options.named,
        )
    ] = None,
    at_least: Annotated[list[str] | None, Option(help="Fail below this.", metavar="METRIC=VALUE")] = None,
    sets: options.Sets = None, json: options.Json = False, quiet: options.QuietFlag = False,
    offline: options.Offline = False,
) -> None:  # fmt: skip
    """Score an artifact on a split of a task; with --at-least, exit 1 below the bar."""
    from rung.engines.opening import open_engine
    from rung.evaluation.rag_metrics import FaithfulnessJudge
    from rung.evaluation.scoring import check_suits, summarize

    part = options.choose("--split", split, ("validation", "test"))
    bars = [(name, _bar(name, value)) for name, value in options.pairs("--at-least", at_least, "accuracy=0.9")]
    loaded = options.load_task(task, sets)
    rows, answering = loaded.read().rows_of(part), options.load_artifact(artifact, quiet=quiet)
    check_suits(answering, loaded, rows)
    if judge is not None and answering.retriever is None:
        message = f"--judge {judge} has no effect: {artifact} retrieves no documents"
        raise ConfigError("bad-option", message, hint="leave --judge out")
    by = None if judge is None else FaithfulnessJudge(open_engine(judge))
    values = summarize(answering, rows, part, folder=loaded.folder, progress=options.progress(quiet), judge=by,
                       statistics=[name for name, _ in bars])  # fmt: skip
    then = ("rung", "predict", artifact, "new.csv", "--out", "answers.csv")
    render.result(json, values, lambda: render.scores(values, split), then=then)
    measured = {name: value["score"] for name, value in values["metrics"].items()} | values["whole"]
    for name, bar in bars:
        if name not in measured:
            more = "; of labels also macro_f2, recall:LABEL, precision:LABEL, f1:LABEL, and accuracy@2 by probabilities"
            hint = f"measured: {', '.join(measured)}{more if loaded.output.kind == 'category' else ''}"
            raise ConfigError("unknown-name", f"{name!r} was not measured", hint=hint)
        if (score := measured[name]) < bar:
            raise ThresholdError("below-threshold", f"{name} is {score:.4f}, below {bar:g}")


def _bar(name: str, text: str) -> float:
    """Read the bar of a metric; one that no score can miss or reach, NaN too, would check nothing."""
    if name in ("mae", "rmse", "not_a_number"):
        hint = "bar the score: --at-least closeness=0.9"
        raise ConfigError("bad-option", f"--at-least {name}: it is an error, of which less is better", hint=hint)
    least = -1 if name == "quadratic_kappa" else 0
    try:
        bar = float(text)
    except ValueError:
        bar = math.nan
    if not least <= bar <= 1:
        problem = f"--at-least {name}: {text!r} is not a number from {least} to 1"
        raise ConfigError("bad-option", problem, hint=f"write --at-least {name}=0.9")
    return bar


def judge(
    task: options.TaskFile,
    human: Annotated[Path | None, Argument(metavar="[HUMAN]", help=(
        "Pairs that people judged: the task's inputs, `first`, `second`, and `preference` (first, second or tie)."
    ))] = None,
    run: Annotated[Path | None, Option(help="A run folder, whose answers are judged instead.")] = None,
    of: Annotated[str | None, Option(help="The rung whose answers are judged; default: the recommended one.")] = None,
    over: Annotated[str, Option(help="The rung that it is compared with.")] = "zero-shot",
    model: Annotated[str | None, Option(
        help="The model that judges; default: that of the task's metric.", callback=options.named,
    )] = None,
    sets: options.Sets = None, json: options.Json = False, quiet: options.QuietFlag = False,
    offline: options.Offline = False,
) -> None:  # fmt: skip
    """Say how far a judge agrees with people, or how often it prefers one rung's answers to another's."""
    from rung.evaluation.metrics.judge import RUBRIC, agreement, open_judge, read_pairs, win_rate

    loaded = options.load_task(task, sets)
    settings = loaded.metric_settings if loaded.metric_name == "judge" else {}
    if (name := model or settings.get("model")) is None:
        message = f"the metric of {loaded.name} is {loaded.metric_name}, not a judge"
        hint = "write `metric: {name: judge, model: ..., rubric: ...}`, or give --model"
        raise ConfigError("bad-option", message, hint=hint)
    if (human is None) == (run is None):
        raise ConfigError("bad-option", "give HUMAN or --run, and not both", hint="rung judge TASK pairs.jsonl")
    opened = open_judge(str(name), settings.get("rubric", RUBRIC))
    if run is not None:
        side, pairs = _answers_of(run, of, over)
        rate = win_rate(pairs, opened.compare(pairs, options.progress(quiet)))
        share, low, high, controlled = (100 * value for value in (rate.rate, rate.low, rate.high, rate.controlled))
        text = (
            f"{side} wins {share:.1f} % [{low:.1f}, {high:.1f}] against {over}, {controlled:.1f} % at equal lengths\n"
            f"{rate.wins} wins, {rate.losses} losses, {rate.ties} ties and {rate.unreadable} unreadable verdicts on "
            f"{rate.rows} rows, each judged in both orders\n{rate.words:.1f} words an answer, against "
            f"{rate.other_words:.1f}"
        )
        values = {"judge": name, "of": side, "over": over, **asdict(rate)}
        render.result(json, values, text, then=("rung", "report", run, "--open"))
        return
    assert human is not None
    pairs, preferences = read_pairs(human, loaded.inputs)
    measured = agreement(opened.compare(pairs, options.progress(quiet)), preferences)
    text = (
        f"{name} agrees with people on {measured.agreed} of {measured.pairs} pairs: Cohen's kappa "
        f"{measured.kappa:.2f} (1: fully, 0: as by chance)\n"
        f"{measured.consistent} verdicts hold when the answers swap places\n"
        f"{measured.unreadable} verdicts could not be read"
    )
    then = options.with_sets(sets, "rung", "climb", task, "--plan")
    render.result(json, {"judge": name, **asdict(measured)}, text, then=then)


def _answers_of(run: Path, of: str | None, over: str) -> tuple[str, list[AnswerPair]]:
    """The answers of two rungs of a run to the same rows of its confirmation, as pairs."""
    from rung.climbing.store import RunStore
    from rung.evaluation.metrics.judge import AnswerPair, question_of
    from rung.evaluation.result import ClimbResult

    result, store = ClimbResult.read(run), RunStore(run)
    side = of or result.recommended
    own, other = (
        {key: row for key, row in store.predictions(name).items() if row.split == result.rows} for name in (side, over)
    )
    if side == over or not own.keys() & other.keys():
        known = ", ".join(each.name for each in result.rungs if each.score is not None)
        message = f"{run} has no rows that both {side} and {over} answered"
        raise ConfigError("bad-option", message, hint=f"give two rungs with --of and --over: {known}")
    return side, [
        AnswerPair(question_of(row.inputs), row.prediction, other[key].prediction)
        for key, row in own.items() if key in other
    ]  # fmt: skip


def rungs(
    name: Annotated[str | None, Argument(help="One rung, with its settings.", metavar="RUNG")] = None,
    json: options.Json = False,
) -> None:
    """List the techniques, and the settings that a task file may give each."""
    from rung.data.spec import DataSource, Output
    from rung.rungs import build, default_names, names
    from rung.rungs.base import settable
    from rung.task import Task

    plain = Task(
        name="none", instruction="none", inputs=["text"], system="none",
        output=Output(kind="category", column="label"), data=DataSource(train="none.csv"),
    )  # fmt: skip
    entries = []
    for rung in build((name,) if name else names(), plain, 0):
        does = (type(rung).__doc__ or "").strip().splitlines()[0]
        facts = {"name": rung.name, "family": rung.family, "default": rung.name in default_names(), "does": does}
        entries.append({**facts, "settings": {key: getattr(rung, key) for key in settable(rung)}})
    render.result(json, entries, lambda: render.rungs(entries, settings=name is not None))


def tune(
    task: options.TaskFile,
    rung: Annotated[str | None, Option(help="The rung to search; default: the last one of a default climb.")] = None,
    trials: Annotated[int, Option(min=1, help="Most trials.")] = 20,
    budget: options.Budget = None, out: options.RunFolders = options.RUN_FOLDERS, seed: options.SeedOption = 0,
    engine: options.EngineOption = "auto", workers: options.Workers = None, on: options.On = None,
    jobs: options.Jobs = None, sets: options.Sets = None, json: options.Json = False,
    quiet: options.QuietFlag = False, offline: options.Offline = False,
) -> None:  # fmt: skip
    """Search the settings of one rung; the same command continues an interrupted search."""
    from rung.climbing.budget import NO_LIMITS, parse_budget
    from rung.climbing.tune import tune
    from rung.rungs import default_names

    _alone("tune")
    limits = NO_LIMITS if budget is None else parse_budget(budget)
    try:
        search = tune(
            options.load_task(task, sets), rung or default_names()[-1], trials=trials, budget_seconds=limits.seconds,
            budget_money=limits.money, seed=seed, engine=engine, out=out, crew=options.search_crew(workers, on, jobs),
            progress=options.progress(quiet),
        )  # fmt: skip
    except KeyboardInterrupt:
        render.note("\ninterrupted; finished trials are kept. Run the same command to continue.")
        raise typer.Exit(130) from None
    then = options.with_sets(sets, "rung", "climb", task, "--rungs", search.rung)
    render.result(json, search.as_dict(), lambda: render.tuning(search), then=then)


def worker(
    job: Annotated[str, Argument(help="The file or URI of the job.", metavar="JOB")], json: options.Json = False,
) -> None:  # fmt: skip
    """Run one job of `--on`, as its command does on another machine; one that is done is not run again."""
    from rung.cluster.worker import run_job

    manifest = run_job(job)
    render.result(json, {"manifest": manifest}, manifest)
