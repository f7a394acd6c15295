"""`rung cluster`: groups of similar texts, named."""

from __future__ import annotations

import csv
import io
import json as json_module
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from rung.cli.options import Json, Offline, Quiet, Seed, Sets, TaskFile, overrides, print_json, progress
from rung.errors import ConfigError, DataError

if TYPE_CHECKING:
    from rung.clustering import Grouping
    from rung.data.rows import Record


KINDS = (".csv", ".jsonl")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("cluster")(cluster)


def cluster(
    data: Annotated[Path, typer.Argument(help="A table: CSV, TSV, JSON, JSONL or Parquet.", metavar="DATA")],
    column: Annotated[str, typer.Option("--column", help="The column of texts.")],
    k: Annotated[str, typer.Option("--k", help="Number of clusters, or auto: the best silhouette.")] = "auto",
    method: Annotated[str, typer.Option("--method", help="kmeans, or hdbscan, which leaves rows out.")] = "kmeans",
    least: Annotated[int, typer.Option("--least", min=2, help="Fewest rows of a cluster for hdbscan.")] = 5,
    label: Annotated[str | None, typer.Option("--label", help="A column to compare the clusters with.")] = None,
    encoder: Annotated[str, typer.Option("--encoder", help="The sentence encoder.")] = "embedded-encoder",
    model: Annotated[
        str, typer.Option("--model", help="The model that names clusters; none for numbers.")
    ] = "embedded",
    out: Annotated[Path | None, typer.Option("--out", help="Write every row with its cluster: .csv or .jsonl.")] = None,
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
    offline: Offline = False,
) -> None:
    """Group the texts of a table by what they mean, and name the groups."""
    from rung.clustering import group
    from rung.engines.opening import open_encoder

    if method not in ("kmeans", "hdbscan"):
        raise ConfigError("bad-option", f"--method {method} is neither kmeans nor hdbscan", hint="choose one of them")
    if method == "kmeans" and least != 5:
        raise ConfigError("bad-option", "--least has no effect on kmeans", hint="add --method hdbscan")
    if out is not None and (out.suffix.lower() not in KINDS or out.exists()):
        raise ConfigError(
            "file-exists" if out.exists() else "bad-option",
            f"{out} exists" if out.exists() else f"--out {out} is none of {', '.join(KINDS)}",
            hint="name another file",
        )
    number = _number(k)
    records, texts = _texts(data, column)
    told = progress(quiet)
    vectors = open_encoder(encoder, progress=told).embed(texts, progress=told)
    found = group(
        vectors, k=number, method=cast("Any", method), least=least, seed=seed, progress=told
    )  # fmt: skip
    named = _names(model, found, texts, told)
    result = summary(found, named, texts) | ({} if label is None else _agreement(records, label, found))
    if out is not None:
        write(out, records, found, named)
        sys.stderr.write(f"{len(records)} rows: {out}\n")
    if json:
        print_json(result)
    else:
        typer.echo(shown(result))


def _number(k: str) -> int | None:
    if k == "auto":
        return None
    if not k.isdigit() or k == "0":
        raise ConfigError("bad-option", f"--k {k} is neither a number from 1 nor auto", hint="write --k 12")
    return int(k)


def _texts(data: Path, column: str) -> tuple[list[Record], list[str]]:
    """Read the rows and their texts; a row without text is an error, as it would belong anywhere."""
    from rung.data.examples import column as value_of
    from rung.data.examples import text_of
    from rung.data.sources import read_rows

    records = list(read_rows(data))
    texts = [text_of(value_of(record, column)).strip() for record in records]
    if (empty := next((i for i, text in enumerate(texts) if not text), None)) is not None:
        raise DataError(
            "bad-row", f"{records[empty].source}: {column!r} is empty", hint="leave out rows without a text"
        )
    return records, texts


def _names(model: str, found: Grouping, texts: list[str], told: Any) -> list[str]:
    from rung.clustering import EXAMPLES, names
    from rung.engines.opening import open_engine

    if model == "none":
        return [f"cluster {number + 1}" for number in range(found.count)]
    central = [found.central(number, texts, EXAMPLES) for number in range(found.count)]
    return names(open_engine(model, progress=told), central, progress=told)


def summary(found: Grouping, named: list[str], texts: list[str]) -> dict[str, Any]:
    """Return what was found, as plain values."""
    sizes = [int((found.clusters == number).sum()) for number in range(found.count)]
    return {
        "rows": len(texts),
        "clusters": [
            {"name": name, "rows": size, "central": found.central(number, texts, 3)}
            for number, (name, size) in enumerate(zip(named, sizes, strict=True))
        ],
        "noise": len(texts) - sum(sizes),
        "silhouette": found.silhouette,
        "tried": [{"k": k, "silhouette": value} for k, value in found.tried.items()],
    }


def _agreement(records: list[Record], label: str, found: Grouping) -> dict[str, Any]:
    from rung.clustering import adjusted_rand, normalized_mutual_information
    from rung.data.examples import column, text_of

    labels, clusters = [text_of(column(record, label)) for record in records], found.clusters.tolist()
    return {
        "labels": len(set(labels)),
        "adjusted_rand": adjusted_rand(labels, clusters),
        "normalized_mutual_information": normalized_mutual_information(labels, clusters),
    }


def shown(result: dict[str, Any]) -> str:
    """Return what was found, for people."""
    lines = [f"{one['rows']:6}  {one['name']}\n        e.g. {one['central'][0][:90]}" for one in result["clusters"]]
    if result["noise"]:
        lines.append(f"{result['noise']:6}  in no cluster")
    silhouette = result["silhouette"]
    lines.append(
        f"{result['rows']} rows, {len(result['clusters'])} clusters"
        + ("" if silhouette is None else f", silhouette {silhouette:.3f}")
    )
    if "labels" in result:
        lines.append(
            f"against {result['labels']} labels: adjusted Rand {result['adjusted_rand']:.3f}, "
            f"normalized mutual information {result['normalized_mutual_information']:.3f}"
        )
    return "\n".join(lines)


def write(out: Path, records: list[Record], found: Grouping, named: list[str]) -> None:
    """Write every row with `cluster`, `cluster_name` and `centrality`; the file appears when it is whole.

    Raises:
        DataError: the table has one of these columns already.
    """
    added = ("cluster", "cluster_name", "centrality")
    if taken := [name for name in added if any(name in record.values for record in records)]:
        raise DataError("duplicate-name", f"the table has a column {taken[0]!r} already", hint="rename it first")
    rows = [
        {**record.values, "cluster": number, "cluster_name": named[number] if number >= 0 else "", "centrality": near}
        for record, number, near in zip(
            records, found.clusters.tolist(), found.centrality.astype(float).round(4).tolist(), strict=True
        )
    ]
    scratch = out.with_name(out.name + ".tmp")
    if out.suffix.lower() == ".csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        scratch.write_text(text.getvalue(), encoding="utf-8")
    else:
        scratch.write_text("".join(json_module.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    os.replace(scratch, out)  # noqa: PTH105


# --------------------
# `rung judge`: how far a task's judge agrees with people.


def register_judge(app: typer.Typer) -> None:
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
            "bad-option", f"the metric of {loaded.name} is {loaded.metric_name}, not a judge",
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
                "bad-row", f"{record.source}: the preference {preference!r} is none of first, second and tie",
                hint="of several people take the majority, and write tie where there is none",
            )  # fmt: skip
        question = question_of({name: column(record, name) for name in inputs})
        pairs.append(Pair(question, str(column(record, "first")), str(column(record, "second"))))
        preferences.append(preference)
    if not pairs:
        raise DataError("too-few-rows", f"{file} has no rows", hint="write at least one pair")
    return pairs, preferences
