"""Other commands: `judge` compares a judge with people, `cluster` groups similar texts."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from rung.cli import options, render
from rung.errors import ConfigError


def judge(
    task: options.TaskFile,
    human: Annotated[Path, Argument(metavar="HUMAN", help=(
        "Pairs that people judged: the task's inputs, `first`, `second`, and `preference` (first, second or tie)."
    ))],
    sets: options.Sets = None, json: options.Json = False, offline: options.Offline = False,
) -> None:  # fmt: skip
    """Say how far the judge of a task (`metric: {name: judge, ...}`) agrees with people."""
    from rung.evaluation.metrics.judge import RUBRIC, agreement, open_judge, read_pairs

    loaded = options.load_task(task, sets)
    if loaded.metric_name != "judge":
        message = f"the metric of {loaded.name} is {loaded.metric_name}, not a judge"
        raise ConfigError("bad-option", message, hint="write `metric: {name: judge, model: ..., rubric: ...}`")
    pairs, preferences = read_pairs(human, loaded.inputs)
    settings = loaded.metric_settings
    verdicts = open_judge(settings["model"], settings.get("rubric", RUBRIC)).compare(pairs)
    measured = agreement(verdicts, preferences)
    text = (
        f"{settings['model']} agrees with people on {measured.agreed} of {measured.pairs} pairs: Cohen's kappa "
        f"{measured.kappa:.2f} (1: fully, 0: as by chance)\n"
        f"{measured.consistent} verdicts hold when the answers swap places\n"
        f"{measured.unreadable} verdicts could not be read"
    )
    render.result(json, {"judge": settings["model"], **asdict(measured)}, text)


def cluster(
    data: Annotated[Path, Argument(help="A table: CSV, TSV, JSON, JSONL or Parquet.", metavar="DATA")],
    column: Annotated[str, Option("--column", help="The column of texts.")],
    k: Annotated[str, Option("--k", help="Number of clusters, or auto: the best silhouette.")] = "auto",
    method: Annotated[str, Option("--method", help="kmeans, or hdbscan, which leaves rows out.")] = "kmeans",
    min_size: Annotated[int, Option("--min-cluster-size", min=2, help="Minimum size of a cluster for hdbscan.")] = 5,
    label: Annotated[str | None, Option("--label", help="A column to compare the clusters with.")] = None,
    encoder: Annotated[str, Option("--encoder", help="The sentence encoder.")] = "embedded-encoder",
    model: Annotated[str, Option("--model", help="The model that names clusters; none for numbers.")] = "embedded",
    out: Annotated[Path | None, Option("--out", help="Write every row with its cluster: .csv or .jsonl.")] = None,
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
