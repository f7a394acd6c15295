"""Commands on tables and task files: `init`, `cluster`, `check`, `schema`; and `explain`, on error codes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from difflib import get_close_matches
from importlib.util import find_spec
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

from typer import Argument, Exit, Option

from rung.cli import options, render
from rung.errors import ConfigError, RungError, explanations, install_command
from rung.models.files import write_atomically

if TYPE_CHECKING:
    from rung.data.guess import Guess
    from rung.data.kinds import OutputKind
    from rung.task import Task


def init(
    data: Annotated[Path, Argument(help="A table, hf:org/name, or a folder with tables or documents.", metavar="DATA")],
    output: Annotated[
        str | None, Option(help="The column of the expected answer; with commas, labels or fields of a record.")
    ] = None,
    kind: Annotated[str | None, Option(help="The kind of the answer: text, category, json, ...")] = None,
    inputs: Annotated[str | None, Option(help="The columns that the model reads, with commas.")] = None,
    model: Annotated[str | None, Option(help="The model; default: embedded, with a larger one proposed.")] = None,
    out: Annotated[Path, Option(help="The task file to write.")] = Path("task.yaml"),
    force: Annotated[bool, Option("--force", help="Replace the task file if there is one.")] = False,
    yes: Annotated[bool, Option("--yes", "-y", help="Take the guess, and ask nothing.")] = False,
    encoding: options.Encoding = "auto", separator: options.Separator = "auto", quoting: options.Quoting = "auto",
    sheet: options.Sheet = None, offline: options.Offline = False,
) -> None:  # fmt: skip
    """Guess a task from a table or a folder of documents, ask on a terminal, and write a commented task file."""
    from rung.data.guess import KINDS, guess_task
    from rung.data.task_file import SCHEMA_FILE, task_schema, task_text
    from rung.machine import this_machine
    from rung.models.embedded import proposed

    if out.exists() and not force:
        hint = "name another file with --out, or replace it with --force"
        raise ConfigError("file-exists", f"{out} exists", hint=hint)
    chosen = None if kind is None else cast("OutputKind", options.choose("--kind", kind, KINDS))
    how = options.file_format(encoding, separator, quoting, sheet, data)
    guess = guess_task(data, output, chosen, _columns(inputs), how)
    if not yes and sys.stdin.isatty() and sys.stdout.isatty():
        guess = _asked(data, guess, output, chosen, _columns(inputs))
    schema = out.parent / guess.schema_file
    if guess.schema is not None and schema.exists() and not force:
        raise ConfigError("file-exists", f"{schema} exists", hint="replace it with --force")
    if guess.schema is not None:
        write_atomically(schema, dumps(guess.schema, ensure_ascii=False, indent=2) + "\n")
    write_atomically(out.parent / SCHEMA_FILE, task_schema() + "\n")
    larger, why = proposed(this_machine())
    note = "" if model is not None or larger.alias else f"{larger.reference}: {why}"
    text = task_text(guess, out.resolve().parent, model or "embedded", note)
    write_atomically(out, text)  # the last, so that a failure leaves no task file
    render.result(False, None, lambda: render.guess(guess, out), then=("rung", "check", out))


def _columns(names: str | None) -> list[str] | None:
    return None if names is None else [name.strip() for name in names.split(",") if name.strip()]


def _asked(
    data: Path, guess: Guess, output: str | None, kind: OutputKind | None, inputs: list[str] | None
) -> Guess:  # fmt: skip
    """Ask for the answer, its kind and the inputs, as far as no option gave them; the guess is the default."""
    from rung.data.guess import KINDS, guess_task

    def again(change: Callable[[str], Guess], question: str, default: str) -> Guess:
        while True:
            text = render.ask(question, default)
            try:
                return guess if text == default else change(text)
            except RungError as error:
                render.note(error.render())

    render.note(f"{data}: {guess.reason}")
    if output is None and "column" in guess.output and guess.data is not None:
        could = ", ".join(f"{name} ({held})" for name, held in guess.others.items())
        question = f"Which column is the answer?{f' It could also be {could}.' if could else ''}"
        guess = again(
            lambda text: guess_task(data, text, kind, inputs, guess.how), question, str(guess.output["column"])
        )
        output = str(guess.output["column"])
    if kind is None and guess.data is not None:
        question = f"What kind of answer is it? ({', '.join(KINDS)})"

        def of_kind(text: str) -> Guess:
            return guess_task(
                data, output, cast("OutputKind", options.choose("the kind", text, KINDS)), inputs, guess.how
            )

        guess = again(of_kind, question, guess.kind)
    if inputs is None and guess.data is not None:
        left = ", ".join(f"{name} ({why})" for name, why in guess.left_out.items())
        question = f"Which columns does the model read?{f' Left out: {left}.' if left else ''}"
        known = guess.kind

        def reading(text: str) -> Guess:
            return guess_task(data, output, known, _columns(text), guess.how)

        guess = again(reading, question, ", ".join(guess.inputs))
    return guess


def check(
    task: options.TaskFile,
    tuning: Annotated[
        bool, Option("--tuning", help="Also show what tuning would learn from; needs the model's tokenizer.")
    ] = False,
    row: Annotated[int | None, Option(
        min=1, help="With --tuning: show every token of this training row, and which ones are trained on."
    )] = None,
    sets: options.Sets = None, json: options.Json = False, offline: options.Offline = False,
) -> None:  # fmt: skip
    """Validate a task file and its data without a model; exit code 2 if a climb would be meaningless."""
    from rung.climbing.check import check_task, trained_row

    if row is not None and not tuning:
        raise ConfigError("bad-option", "--row needs --tuning", hint=f"rung check {task} --tuning --row {row}")
    loaded = options.load_task(task, sets, runs=False)
    if row is not None and loaded.data.train is None:
        raise ConfigError("bad-option", f"{task} has no training rows", hint="leave --row out")
    if loaded.data.train is None:
        _check_documents(loaded, task, json)
        return
    checked = check_task(loaded, tuning=tuning)
    values = {"task": loaded.name, "unit": checked.unit, **checked.data.report.as_dict()}
    values |= {"warnings": list(checked.warnings), "notes": list(checked.notes), "verdict": checked.verdict}
    values |= {"training": checked.training} if tuning else {}
    shown = None if row is None else trained_row(loaded, checked.data, row)
    values |= {} if shown is None else {"training_row": shown}
    then = () if checked.problems else options.with_sets(sets, "rung", "climb", task, "--plan")
    render.result(json, values, lambda: render.task_check(checked, shown), then=then)
    if checked.problems:
        raise Exit(2)


def _check_documents(task: Task, file: Path, json: bool) -> None:
    """Check a task without rows: its documents can be asked, and nothing can be measured."""
    from rung.climbing.check import check_documents

    listing = check_documents(task)
    left_out = {each.source: each.what for each in listing.problems}
    values = {"task": task.name, "documents": len(listing.sources), "left_out": left_out}
    count = "1 document" if len(listing.sources) == 1 else f"{len(listing.sources):,} documents"
    lines = [count, *(f"  left out: {name}: {why}" for name, why in left_out.items())]
    needs = "" if find_spec("lancedb") else install_command("rag")
    lines.append(f"{task.name} has no rows, so nothing can be measured: add `data: {{train: questions.csv}}` for that.")
    lines.append("To ask its documents, install what retrieval needs." if needs else "Its documents can be asked.")
    render.result(json, values, "\n".join(lines), then=needs or ("rung", "run", file, "your question"))


def trust(
    place: Annotated[Path, Argument(help="A task file, or a folder with tasks or artifacts.", metavar="FOLDER")],
    yes: Annotated[bool, Option("--yes", "-y", help="Allow it without asking.")] = False,
    revoke: Annotated[bool, Option("--revoke", help="Take the consent back.")] = False,
    json: options.Json = False,
) -> None:
    """Show what the files in a folder would run or reach, and allow it on this machine until they change."""
    from rung import user_code
    from rung.artifact.files import MANIFEST
    from rung.climbing.trust import permits_of

    permits = permits_of(place)
    if revoke:
        user_code.revoke(permits)
    elif not yes and not json:
        for permit in permits:
            render.say(str(permit))
        options.consent_to(permits, place, keys=True)
    elif yes:
        user_code.allow(permits)
    left = user_code.missing(permits, keys=True)
    values = {"permits": [{**asdict(permit), "allowed": permit not in left} for permit in permits]}
    text = f"{place}: {len(permits) - len(left)} of {len(permits)} allowed" if permits else f"{place} runs no code"
    verb = "check" if place.is_file() else "show" if (place / MANIFEST).is_file() else ""
    render.result(json, values, text, then=("rung", verb, place) if verb and not left else ())


def schema() -> None:
    """Print the JSON Schema of task files, for editors."""
    from rung.data.task_file import task_schema

    render.say(task_schema())


def explain(code: Annotated[str | None, Argument(help="The code in error[CODE].", metavar="CODE")] = None) -> None:
    """Say what an error code means and how to fix it; without a code, list them."""
    entries = explanations()
    if code is None:
        width = max(map(len, entries))
        for name, entry in entries.items():
            render.say(f"{name:{width}}  {entry.meaning}")
    elif code in entries:
        render.say(f"error[{code}]\n\n{entries[code]}")
    else:
        near = get_close_matches(code, entries, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "`rung explain` lists all codes"
        raise ConfigError("unknown-name", f"no error has the code {code!r}", hint=hint)


def cluster(
    data: Annotated[Path, Argument(help="A table of any kind, or hf:org/name.", metavar="DATA")],
    column: Annotated[str, Option(help="The column of texts.")],
    k: Annotated[str, Option(help="Number of clusters, or auto: the best silhouette.")] = "auto",
    method: Annotated[str, Option(help="kmeans, or hdbscan, which leaves rows out.")] = "kmeans",
    min_size: Annotated[int, Option("--min-cluster-size", min=2, help="Minimum size of a cluster for hdbscan.")] = 5,
    label: Annotated[str | None, Option(help="A column to compare the clusters with.")] = None,
    encoder: Annotated[str, Option(help="The sentence encoder.")] = "embedded-encoder",
    model: Annotated[
        str, Option(help="The model that names clusters; none for numbers.", callback=options.named)
    ] = "embedded",
    out: Annotated[Path | None, Option(help="Write every row with its cluster: .csv or .jsonl.")] = None,
    seed: options.SeedOption = 0, json: options.Json = False, quiet: options.QuietFlag = False,
    offline: options.Offline = False,
) -> None:  # fmt: skip
    """Group the texts of a table by what they mean, and name the groups."""
    from rung import clustering
    from rung.engines.opening import open_encoder, open_engine

    kind = options.choose("--method", method, ("kmeans", "hdbscan"))
    if method == "kmeans" and min_size != 5:
        raise ConfigError("bad-option", "--min-cluster-size has no effect on kmeans", hint="add --method hdbscan")
    if out is not None and out.exists():
        raise ConfigError("file-exists", f"{out} exists", hint="name another file")
    if out is not None and out.suffix.lower() not in clustering.TABLE_KINDS:
        kinds = " or ".join(clustering.TABLE_KINDS)
        raise ConfigError("bad-option", f"--out {out} does not end in {kinds}", hint="name another file")
    if k != "auto" and (not k.isdigit() or k == "0"):
        raise ConfigError("bad-option", f"--k {k} is neither a number from 1 nor auto", hint="write --k 12")
    records, texts = clustering.read_texts(data, column)
    progress = options.progress(quiet)
    vectors = open_encoder(encoder, progress=progress).embed(texts, progress=progress)
    number = None if k == "auto" else int(k)
    groups = clustering.group(vectors, k=number, method=kind, min_cluster_size=min_size, seed=seed, progress=progress)
    names = [f"cluster {number}" for number in range(groups.count)]
    if model != "none":
        central = [groups.central(number, texts, clustering.EXAMPLES) for number in range(groups.count)]
        names = clustering.names(open_engine(model, progress=progress), central, progress=progress)
    result = clustering.summary(groups, names, texts)
    if label is not None:
        result |= clustering.label_agreement(records, label, groups)
    if out is not None:
        clustering.write_clusters(out, records, groups, names)
        render.note(f"{len(records)} rows: {out}")
    again = ("rung", "cluster", data, "--column", column, "--out", "clusters.csv")
    then = again if out is None else ("rung", "init", out, "--output", "cluster_name")
    render.result(json, result, lambda: render.clusters(result), then=then)
