"""The loop from captured failures to what is served: `failures`, `improve`, `promote`, `rollback`, `trial`."""

from __future__ import annotations

import getpass
import sys
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

from typer import Argument, Option

from rung.cli import options, render, render_feedback
from rung.cli.climb import write_reports
from rung.cli.help import CommandGroup
from rung.errors import ConfigError
from rung.feedback.records import PAIRS, REASONS, REGISTRY, SHARE, STORE, CaseFilter, TrialMode, command
from rung.models.files import write_atomically

if TYPE_CHECKING:
    from rung.feedback.records import ABTest, Promotion
    from rung.feedback.registry import Registry

app = CommandGroup(no_args_is_help=True)
trial_app = CommandGroup(no_args_is_help=True)

Id = Annotated[str, Argument(help="Id of the response.", metavar="ID")]
ReviewerOption = Annotated[str | None, Option("--reviewer", help="Who says so; by default the user.", metavar="NAME")]
CommentOption = Annotated[str, Option("--comment", help="Why.")]
OfTask = Annotated[str | None, Option("--task", help="Of this task only.", metavar="NAME")]
SplitName = Annotated[str | None, Option("--split", help="train or test.")]
RegistryFolder = Annotated[
    Path, Option("--registry", envvar="RUNG_REGISTRY", help="Folder of promoted artifacts.", metavar="FOLDER")
]


@app.command("list")
def list_cases(
    store: options.StorePlace = STORE, task: OfTask = None, split: SplitName = None,
    reason: Annotated[str | None, Option(help="Suspicious for this reason.")] = None,
    reviewed: Annotated[bool | None, Option("--reviewed/--unreviewed", help="Reviewed, or not.")] = None,
    wrong: Annotated[bool, Option("--wrong", help="Reviewed and found wrong.")] = False,
    contested: Annotated[bool, Option("--contested", help="Reviewers contradict each other.")] = False,
    everything: Annotated[bool, Option("--all", help="Also answers that nothing speaks against.")] = False,
    text: Annotated[str | None, Option(help="With this text in input or response.")] = None,
    limit: Annotated[int, Option(min=1, help="Most cases to show.")] = 50,
    json: options.Json = False,
) -> None:  # fmt: skip
    """List suspicious answers, the worst first; by default those that nobody reviewed."""
    narrowed = everything or wrong or contested or reviewed is not None
    which = _filter(
        task=task, split=split, reason=reason, text=text, failure=True if wrong else None,
        reviewed=reviewed if narrowed else False, suspicious=None if narrowed else True, contested=contested,
    )  # fmt: skip
    with options.open_store(store) as opened:
        cases, count = opened.cases(which, limit=limit), opened.count(which)
    values = {"cases": [case.as_dict() for case in cases], "count": count}
    then = command("rung failures show", cases[0].interaction.id, store=store) if cases else ""
    render.result(json, values, lambda: render_feedback.cases(cases, count), then=then)


@app.command()
def show(case_id: Id, store: options.StorePlace = STORE, json: options.Json = False) -> None:
    """Show one case: the question, the answer, the expected answer, its feedback and its history."""
    with options.open_store(store) as opened:
        values = opened.details(case_id)
    then = command("rung failures correct", case_id, "the expected response", store=store)
    render.result(json, values, lambda: render_feedback.case(values), then=then)


@app.command()
def correct(
    case_id: Id,
    expected: Annotated[str, Argument(help="The expected response; repeat the actual one if it was right.")],
    reviewer: ReviewerOption = None, comment: CommentOption = "",
    task: Annotated[Path | None, Option("--task", help="The task's file: checks a label.", metavar="TASK")] = None,
    store: options.StorePlace = STORE, json: options.Json = False,
) -> None:  # fmt: skip
    """Say what was expected. Nothing is overwritten: the history keeps every correction."""
    from rung.feedback.corrections import labels_of_task, matched_label

    if task is not None and (labels := labels_of_task(options.load_task(task))):
        expected = matched_label(expected, labels, case_id)
    with options.open_store(store, redacting=True) as opened:
        number = opened.correct(case_id, expected, _reviewer(reviewer), comment)
        case = opened.case(case_id)
    text = f"{number}. {case_id}: {'expected ' + repr(case.expected) if case.failure else 'the answer was right'}"
    values = {"correction": number, "failure": case.failure, "split": case.interaction.split}
    render.result(json, values, text, then=command("rung failures list", store=store))


@app.command()
def undo(
    case_id: Id, reviewer: ReviewerOption = None, comment: CommentOption = "", store: options.StorePlace = STORE,
    json: options.Json = False,
) -> None:  # fmt: skip
    """Undo your latest correction of a case; the one before it holds again, and those of others stay."""
    with options.open_store(store, redacting=True) as opened:
        number = opened.undo(case_id, _reviewer(reviewer), comment)
        case = opened.case(case_id)
    text = f"{number}. {case_id}: {'expected ' + repr(case.expected) if case.reviewed else 'not reviewed'}"
    then = command("rung failures show", case_id, store=store)
    render.result(json, {"correction": number, "expected": case.expected}, text, then=then)


@app.command("import")
def import_cases(
    file: Annotated[Path, Argument(help="A table with the four columns, or an exported JSONL.", metavar="FILE")],
    task: options.TaskFile, reviewer: ReviewerOption = None, store: options.StorePlace = STORE,
    encoding: options.Encoding = "auto", separator: options.Separator = "auto", quoting: options.Quoting = "auto",
    sheet: options.Sheet = None,
    json: options.Json = False,
) -> None:  # fmt: skip
    """Take cases and their expected responses from a file."""
    from rung.data.sources import AUTO
    from rung.feedback.exchange import read

    loaded = options.load_task(task, runs=False)
    form = options.file_format(encoding, separator, quoting, sheet, file)
    form = replace(form, encoding=loaded.data.encoding) if encoding == AUTO else form
    with options.open_store(store, must_exist=False) as opened:
        done = read(file, loaded, opened, _reviewer(reviewer), form)
    if done.format:
        render.note(f"{file} is read as: {done.format}")
    render.result(json, asdict(done), str(done), then=command("rung improve", task, store=store))


@app.command()
def export(
    to: Annotated[str, Option(help="chat, completion, preference, csv or jsonl.")] = "jsonl",
    out: Annotated[Path | None, Option(help="A new file; stdout by default.", metavar="FILE")] = None,
    store: options.StorePlace = STORE, task: OfTask = None, split: SplitName = None,
    wrong: Annotated[bool, Option("--wrong", help="Only what was reviewed and found wrong.")] = False,
) -> None:  # fmt: skip
    """Write reviewed cases for tuning tools, spreadsheets or another store. Train on --split train only."""
    from rung.feedback.exchange import CaseFormat, write

    form = options.choose("--to", to, get_args(CaseFormat))
    if out is not None and out.exists():
        raise ConfigError("file-exists", f"{out} exists", hint="name another file, or remove it first")
    which = _filter(task=task, split=split, reviewed=True, failure=True if wrong else None)
    with options.open_store(store) as opened:
        cases = opened.cases(which)
    if out is None:
        write(cases, form, sys.stdout)
        return
    text = StringIO()
    count = write(cases, form, text)
    write_atomically(out, text.getvalue(), private=True)
    then = ("rung", "init", out, "--out", out.with_suffix(".yaml")) if count and form in ("chat", "completion") else ()
    render.result(False, None, f"{out}: {count} cases", then=then)


@app.command()
def stats(store: options.StorePlace = STORE, task: OfTask = None, json: options.Json = False) -> None:
    """Count what was captured, what is suspicious and why, what was reviewed, and how it is split."""
    with options.open_store(store) as opened:

        def count(**values: Any) -> int:
            return opened.count(_filter(task=task, **values))

        values: dict[str, Any] = {
            "captured": count(), "suspicious": count(suspicious=True), "queue": count(suspicious=True, reviewed=False),
            "reviewed": count(reviewed=True),
            "wrong": {side: count(failure=True, split=side) for side in ("train", "test")},
            "reasons": {name: count(reason=name) for name in REASONS}, "fixed": len(opened.fixed(task)),
        }  # fmt: skip
    then = command("rung failures list", store=store) if values["queue"] else ""
    render.result(json, values, lambda: render_feedback.statistics(values), then=then)


@app.command()
def check(
    artifact: options.ArtifactFolder, store: options.StorePlace = STORE,
    compare: Annotated[bool, Option("--compare/--rules-only", help="Also have it answer.")] = True,
    json: options.Json = False, quiet: options.QuietFlag = False, offline: options.Offline = False,
) -> None:  # fmt: skip
    """Find unreviewed answers that break the task's rules, or with which an artifact, a stronger one, disagrees."""
    from rung.artifact.files import fingerprint
    from rung.feedback.corrections import check

    loaded, progress = options.load_artifact(artifact, quiet=quiet), options.progress(quiet)
    with options.open_store(store) as opened:
        counts = check(opened, loaded, fingerprint(artifact), compare=compare, progress=progress)
    text = f"{counts.looked_at} looked at: {counts.invalid} invalid, {counts.disagreed} disagreements"
    found = counts.invalid + counts.disagreed
    render.result(json, asdict(counts), text, then=command("rung failures list", store=store) if found else "")


@app.command()
def purge(
    older_than: Annotated[str, Option(help="Age from which answers are deleted, such as 30d or 12h.")],
    store: options.StorePlace = STORE, json: options.Json = False,
) -> None:  # fmt: skip
    """Delete captured answers of a certain age, with their feedback and corrections, for good."""
    from rung.climbing.budget import parse_duration

    before = datetime.now(UTC) - timedelta(seconds=parse_duration(older_than))
    with options.open_store(store) as opened:
        count = opened.purge(before)
    text = f"{count} answers from before {before:%Y-%m-%d %H:%M} UTC are deleted"
    render.result(json, {"deleted": count}, text, then=command("rung failures stats", store=store))


def _filter(*, split: str | None = None, reason: str | None = None, **values: Any) -> CaseFilter:
    side = options.choose("--split", split, ("train", "test"))
    return CaseFilter(split=side, reason=options.choose("--reason", reason, tuple(REASONS)), **values)


def _reviewer(name: str | None) -> str:
    return getpass.getuser() if name is None else name


def improve(
    task: options.TaskFile, store: options.StorePlace = STORE, registry: RegistryFolder = REGISTRY,
    budget: options.Budget = None, rungs: options.RungNames = None, resume: options.Resume = False,
    out: options.RunFolders = options.RUN_FOLDERS, seed: options.SeedOption = 0, engine: options.EngineOption = "auto",
    sets: options.Sets = None, json: options.Json = False, quiet: options.QuietFlag = False,
    offline: options.Offline = False,
) -> None:  # fmt: skip
    """Climb again with the reviewed failures, against what is served."""
    from rung.feedback.improve import improve
    from rung.feedback.registry import Registry

    loaded, progress = options.load_task(task, sets), options.progress(quiet)
    how = options.climb_options(budget=budget, rungs=rungs, seed=seed, engine=engine, out=out, resume=resume)
    with options.open_store(store) as opened:
        improvement = improve(loaded, opened, Registry(registry, loaded.name), options=how, progress=progress)
    write_reports(improvement.climb)
    then = "" if improvement.better else command("rung failures list", store=store)
    render.result(
        json, improvement.as_dict(), lambda: render_feedback.improvement(improvement, registry, store), then=then
    )


def promote(
    what: Annotated[
        Path, Argument(help="A run folder of `rung improve` or of a climb, or an artifact.", metavar="WHAT")
    ],
    store: options.StorePlace = STORE, registry: RegistryFolder = REGISTRY, reviewer: ReviewerOption = None,
    reason: Annotated[str, Option(help="Why; needed for an artifact, which has no evidence.")] = "",
    accept_regressions: Annotated[
        bool, Option("--accept-regressions", help="Even if what was fixed once is wrong again.")
    ] = False,
    json: options.Json = False,
) -> None:  # fmt: skip
    """Serve an artifact from now on, at once; servers that follow the registry switch by themselves."""
    from rung.artifact.files import MANIFEST, artifact_folder
    from rung.feedback.improve import IMPROVEMENT, promote, read_improvement
    from rung.feedback.registry import Registry

    who, found = _reviewer(reviewer), what if (what / IMPROVEMENT).is_file() else artifact_folder(what)
    plain, what = (found / MANIFEST).is_file(), found
    if plain and not reason.strip():
        raise ConfigError("missing-field", f"{what} is an artifact without evidence", hint='say why: --reason "..."')
    task = options.load_artifact(what, runs=False).signature.task if plain else read_improvement(what)["task"]
    home = Registry(registry, task)
    with options.open_store(store, must_exist=False) as opened:
        if plain:
            promotion = home.promote(what, opened, evidence={"reason": reason}, reviewer=who)
        else:
            promotion = promote(what, home, opened, reviewer=who, accept_regressions=accept_regressions)
    _show_promotion(promotion, home, json)


def rollback(
    task: options.TaskName, store: options.StorePlace = STORE, registry: RegistryFolder = REGISTRY,
    reviewer: ReviewerOption = None,
    reason: Annotated[str, Option(help="Why.")] = "",
    json: options.Json = False,
) -> None:  # fmt: skip
    """Serve again what was served before the last promotion, at once."""
    from rung.feedback.registry import Registry

    home = Registry(registry, task)
    with options.open_store(store) as opened:
        promotion = home.rollback(opened, reviewer=_reviewer(reviewer), reason=reason)
    _show_promotion(promotion, home, json)


def _show_promotion(promotion: Promotion, home: Registry, json: bool) -> None:
    folder = home.path(promotion)
    values = {
        "task": promotion.task, "kind": promotion.kind, "artifact": promotion.artifact, "folder": str(folder),
        "reviewer": promotion.reviewer, "at": promotion.at.isoformat(), "evidence": dict(promotion.evidence),
    }  # fmt: skip
    then = ("rung", "serve", "--registry", home.root, "--capture", "on")
    render.result(json, values, f"{promotion.task} is served from {folder}", then=then)


@trial_app.command("start")
def start_trial(
    task: options.TaskName, artifact: options.ArtifactFolder,
    mode: Annotated[
        str, Option(help="shadow: answers after every response; ab: answers a share of the inputs.")
    ] = "shadow",
    share: Annotated[
        float | None, Option(help=f"With ab: the share of the inputs that it answers; {SHARE:g} by default.")
    ] = None,
    stop_after: Annotated[int, Option(min=1, help="Pairs after which it ends.")] = PAIRS,
    registry: RegistryFolder = REGISTRY, json: options.Json = False, offline: options.Offline = False,
) -> None:  # fmt: skip
    """Try an artifact next to the served one; servers that follow the registry begin by themselves."""
    from rung.feedback.registry import Registry
    from rung.feedback.trials import start

    kind = options.choose("--mode", mode, get_args(TrialMode))
    if share is not None and (kind == "shadow" or not 0 < share < 1):
        hint = "a share above 0 and below 1 needs --mode ab; a shadow answers everything"
        raise ConfigError("bad-option", f"--share {share:g} with --mode {mode}", hint=hint)
    home = Registry(registry, task)
    test = start(home, artifact, mode=kind, share=SHARE if share is None else share, max_pairs=stop_after)
    what = "every response" if kind == "shadow" else f"{test.share:.0%} of the inputs"
    text = f"{test.artifact[:16]} is tried on {what} next to {test.against[:16]}, up to {test.most:,} pairs"
    render.result(json, _values(test, home), text, then=command("rung trial show", task, registry=registry))


@trial_app.command("show")
def show_trial(
    task: options.TaskName, store: options.StorePlace = STORE, registry: RegistryFolder = REGISTRY,
    json: options.Json = False, offline: options.Offline = False,
) -> None:  # fmt: skip
    """Show a trial's results so far: fixed, broken, p, and whether it may be stopped."""
    from rung.feedback.registry import Registry
    from rung.feedback.trials import trial_report

    home = Registry(registry, task)
    with options.open_store(store) as opened:
        report = trial_report(opened, home)
    standing, decision = report.standing, report.standing.decision
    values = {
        **_values(report.trial, home), "answered": dict(standing.answered), "judged": dict(standing.judged),
        "pairs": decision.n, "delta": decision.delta, "low": standing.interval.low, "high": standing.interval.high,
        "fixed": decision.fixed, "broken": decision.broken, "p": decision.p, "state": decision.state,
        "stop": decision.stop, "next": report.next, "measure": report.measure, "no_worse": report.no_worse,
        "both": standing.both, "differing": standing.differing, "rated": standing.rated,
        "response_rates": standing.response_rates, "remarks": report.remarks,
    }  # fmt: skip
    render.result(json, values, lambda: render_feedback.trial(report))


@trial_app.command("stop")
def stop_trial(task: options.TaskName, registry: RegistryFolder = REGISTRY, json: options.Json = False) -> None:
    """End a trial; what was collected stays, and `show` still shows it."""
    from rung.feedback.registry import Registry
    from rung.feedback.trials import stop

    home = Registry(registry, task)
    ended = stop(home)
    then = command("rung trial show", task, registry=registry)
    render.result(json, _values(ended, home), f"the trial of {ended.artifact[:16]} is stopped", then=then)


def _values(trial: ABTest, home: Registry) -> dict[str, Any]:
    return {
        "id": trial.token, "task": trial.task, "mode": trial.mode, "share": trial.share, "stop_after": trial.most,
        "artifact": trial.artifact, "folder": str(home.path(trial)), "against": trial.against,
        "started": trial.at.isoformat(), "ended": None if trial.ended is None else trial.ended.isoformat(),
        "running": trial.runs(home.current()),
    }  # fmt: skip
