"""Commands on tables and task files: `init`, `cluster`, `check`, `schema`; and `explain`, on error codes."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from rung.cli import options, render
from rung.errors import ConfigError, explanations


def init(
    data: Annotated[Path, Argument(help="A table with inputs and expected answers.", metavar="DATA")],
    output: Annotated[str | None, Option(help="The column of the expected answer.")] = None,
    out: Annotated[Path, Option(help="The task file to write.")] = Path("task.yaml"),
    force: Annotated[bool, Option("--force", help="Replace the task file if there is one.")] = False,
) -> None:
    """Guess a task from a table and write a commented task file."""
    from rung.data.guess import SCHEMA_FILE, guess_task, task_schema, task_text

    if out.exists() and not force:
        hint = "name another file with --out, or replace it with --force"
        raise ConfigError("file-exists", f"{out} exists", hint=hint)
    guess = guess_task(data, output)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(task_text(guess, data.resolve(), out.resolve().parent), encoding="utf-8")
    (out.parent / SCHEMA_FILE).write_text(task_schema() + "\n", encoding="utf-8")
    render.say(f"wrote {out}: {guess.kind}, because {guess.reason}\nNext: look at it, then\n  rung check {out}")


def check(
    task: options.TaskFile,
    tuning: Annotated[
        bool, Option("--tuning", help="Also show what tuning would learn from; needs the model's tokenizer.")
    ] = False,
    sets: options.Sets = None, json: options.Json = False,
) -> None:  # fmt: skip
    """Validate a task file and its data without a model, and print the data report."""
    from rung.climbing.check import check_task

    loaded = options.load_task(task, sets)
    checked = check_task(loaded, tuning=tuning)
    values = {"task": loaded.name, "unit": checked.unit, **checked.data.report.as_dict()}
    values |= {"training": checked.training} if tuning else {}
    render.result(json, values, lambda: render.task_check(loaded, checked, task))


def schema() -> None:
    """Print the JSON Schema of task files, for editors."""
    from rung.data.guess import task_schema

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
    data: Annotated[Path, Argument(help="A table: CSV, TSV, JSON, JSONL or Parquet.", metavar="DATA")],
    column: Annotated[str, Option(help="The column of texts.")],
    k: Annotated[str, Option(help="Number of clusters, or auto: the best silhouette.")] = "auto",
    method: Annotated[str, Option(help="kmeans, or hdbscan, which leaves rows out.")] = "kmeans",
    min_size: Annotated[int, Option("--min-cluster-size", min=2, help="Minimum size of a cluster for hdbscan.")] = 5,
    label: Annotated[str | None, Option(help="A column to compare the clusters with.")] = None,
    encoder: Annotated[str, Option(help="The sentence encoder.")] = "embedded-encoder",
    model: Annotated[str, Option(help="The model that names clusters; none for numbers.")] = "embedded",
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
    names = [f"cluster {number + 1}" for number in range(groups.count)]
    if model != "none":
        central = [groups.central(number, texts, clustering.EXAMPLES) for number in range(groups.count)]
        names = clustering.names(open_engine(model, progress=progress), central, progress=progress)
    result = clustering.summary(groups, names, texts)
    if label is not None:
        result |= clustering.label_agreement(records, label, groups)
    if out is not None:
        clustering.write_clusters(out, records, groups, names)
        render.note(f"{len(records)} rows: {out}")
    render.result(json, result, lambda: render.clusters(result))
