"""Commands on an artifact: `run`, `chat`, `predict`, `show`."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rung.agents.trace import trace
from rung.cli.options import ArtifactFolder, Json, Offline, QuietFlag, Rows, Sets, TaskOfRows, load_task, progress
from rung.cli.render import print_json
from rung.errors import ConfigError, DataError

if TYPE_CHECKING:
    from rung.artifact.artifact import Artifact
    from rung.artifact.decoder import Answer
    from rung.prompts.overflow import Rendered


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("run")(run)
    app.command("chat")(chat)
    app.command("predict")(predict)
    app.command("show")(show)
    app.command("confidence")(confidence)


def run(
    artifact: ArtifactFolder,
    text: Annotated[list[str], typer.Argument(help="The input; COLUMN=TEXT where there are several columns.")],
    engine: Annotated[
        str | None, typer.Option("--engine", help="What runs the model, instead of what measured it.")
    ] = None,
    json: Json = False,
    offline: Offline = False,
) -> None:
    """Answer one input."""
    from rung.artifact.artifact import Artifact

    loaded = Artifact.load(artifact)
    if engine is not None:
        loaded = _on_engine(loaded, engine)
    answer = loaded.predict([_row(loaded, text)])[0]
    note_dropped(answer)
    if json:
        print_json(_answer(loaded, answer))
    else:
        typer.echo(_line(answer))
        print_sources(answer)


def note_dropped(answer: Answer | Rendered) -> None:
    """Say on stderr what was left out of a prompt, if anything was."""
    parts = []
    if answer.dropped_demonstrations:
        parts.append(f"{answer.dropped_demonstrations} demonstrations were left out")
    if answer.dropped_passages:
        parts.append(f"{answer.dropped_passages} passages were left out")
    if answer.shortened_passages:
        parts.append(f"{answer.shortened_passages} passages were cut")
    if parts:
        sys.stderr.write(f"the prompt was longer than the model reads: {', '.join(parts)}\n")


def print_sources(answer: Answer) -> None:
    """Print where an answer from documents comes from: what it cites, or, where it cites nothing, what it read."""
    from rung.retrieval.passage import shown_sources

    heading, found = shown_sources(answer.citations, answer.passages, refused=answer.refused)
    if heading:
        typer.echo(f"\n{heading}:")
    for source in found:
        typer.echo(f"  {source}")


def _on_engine(artifact: Artifact, engine: str) -> Artifact:
    """Return the artifact on another engine; its answers may differ from what was measured."""
    from dataclasses import replace

    if artifact.decoder.members or not artifact.decoder.uses_llm:
        raise ConfigError(
            "bad-option",
            f"--engine {engine} has no effect: this artifact does not answer with a language model of its own",
            hint="leave --engine out",
        )
    return replace(artifact, engine=engine)


def _row(artifact: Artifact, texts: Sequence[str]) -> dict[str, Any]:
    """Return the row that command arguments stand for."""
    columns = artifact.signature.inputs
    if artifact.signature.kind == "chat":
        return {columns[0]: [{"role": "user", "content": " ".join(texts)}]}
    if len(columns) == 1:
        return {columns[0]: " ".join(texts)}
    row = dict(text.partition("=")[::2] for text in texts)
    missing = [column for column in columns if column not in row]
    if missing:
        raise ConfigError(
            "missing-column",
            f"no value for the column {missing[0]!r}",
            hint="write " + " ".join(f'"{column}=..."' for column in columns),
        )
    return row


def _line(answer: Answer) -> str:
    text = answer.written or answer.text if answer.confidence is None else f"{answer.text}\t{answer.confidence:.3f}"
    return f"{text}\tabstained" if answer.abstained else text


def _answer(artifact: Artifact, answer: Answer) -> dict[str, Any]:
    from rung.artifact.predict_file import sources

    values: dict[str, Any] = {"output": answer.text, "confidence": answer.confidence}
    if artifact.decoder.abstains:
        values["abstained"] = answer.abstained
    if answer.dropped_demonstrations:
        values["dropped_demonstrations"] = answer.dropped_demonstrations
    if artifact.retriever is not None:
        values |= sources(answer)
    values |= trace(answer.steps, answer.stopped)
    if answer.probabilities:
        ranked = sorted(zip(artifact.signature.labels, answer.probabilities, strict=True), key=lambda pair: -pair[1])
        values["top"] = [{"label": label, "probability": p} for label, p in ranked[:5]]
    return values


def chat(artifact: ArtifactFolder, offline: Offline = False) -> None:
    """Talk to an artifact, line by line; chat tasks remember the conversation."""
    from rung.artifact.artifact import Artifact

    loaded = Artifact.load(artifact)
    loaded.open()
    sys.stderr.write("An empty line or Ctrl-D ends the conversation.\n")
    turns: list[dict[str, str]] = []
    while text := _ask():
        if loaded.signature.kind == "chat":
            turns.append({"role": "user", "content": text})
            row: dict[str, Any] = {loaded.signature.inputs[0]: list(turns)}
        else:
            row = _row(loaded, [text] if len(loaded.signature.inputs) == 1 else text.split("|"))
        reply = _say(loaded, row)
        turns.append({"role": "assistant", "content": reply})


def _ask() -> str:
    try:
        if sys.stdin.isatty():
            return input("> ").strip()
        return sys.stdin.readline().strip()
    except EOFError:
        return ""


def _say(artifact: Artifact, row: dict[str, Any]) -> str:
    """Print the answer, as it is written where it is generated."""
    from rung.artifact.decoder import Answer, finish, refusal

    decoder = artifact.decoder
    if not (decoder.streams and decoder.unconstrained):
        answer = artifact.predict([row])[0]
        typer.echo(_line(answer))
        print_sources(answer)
        return answer.text
    rendered = artifact.rendered(row)
    note_dropped(rendered)
    if rendered.refused:
        refused = refusal(artifact, rendered)
        typer.echo(refused.text)
        return refused.text
    request = decoder.request(artifact, rendered.messages)
    pieces = []
    for piece in artifact.open().stream(request):
        pieces.append(piece)
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    text = "".join(pieces)
    print_sources(finish(artifact, Answer(text.strip(), None, None, 0, len(pieces), 0.0, rendered.messages), rendered))
    return text


def predict(
    artifact: ArtifactFolder,
    data: Annotated[Path, typer.Argument(help="Rows: CSV, TSV, JSON, JSONL or Parquet.", metavar="DATA")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Write here instead of stdout: a table for .csv and .parquet, else JSON lines."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the rows that --out already holds.")] = False,
    quiet: QuietFlag = False,
    offline: Offline = False,
) -> None:
    """Answer every row of a file, in the order of the rows; memory does not grow with the file."""
    from rung.artifact.artifact import Artifact
    from rung.artifact.files import fingerprint
    from rung.artifact.predict_file import origin_file, predict_file
    from rung.data.tables import TABLES, lines_file, write_table

    if resume and out is None:
        raise ConfigError("bad-option", "--resume needs --out", hint="name the file to go on with: --out answers.jsonl")
    loaded = Artifact.load(artifact)
    table = out is not None and out.suffix.lower() in TABLES
    if out is not None and table and out.exists():
        raise ConfigError("file-exists", f"{out} exists", hint="a table is written at the end, whole: remove it first")
    lines = lines_file(out) if out is not None and table else out
    made = predict_file(
        loaded, data, lines, fingerprint=fingerprint(artifact), resume=resume, progress=progress(quiet)
    )  # fmt: skip
    if out is not None and lines is not None and table:
        schema = getattr(loaded.decoder, "json_schema", None)
        write_table(lines, out, records=loaded.signature.kind == "json", schema=schema)
        lines.unlink()
        origin_file(lines).unlink()
    if out is not None or made.overflow_rows:
        sys.stderr.write(f"{made}{'' if out is None else f': {out}'}\n")


def show(
    artifact: ArtifactFolder,
    prompt: Annotated[bool, typer.Option("--prompt", help="Show the exact final prompt of a row.")] = False,
    row: Annotated[int, typer.Option("--row", min=1, help="Which row, counted from 1.")] = 1,
    data: Rows = None,
    json: Json = False,
    offline: Offline = False,
) -> None:
    """Show what an artifact is made of, or the exact prompt of a row."""
    from rung.artifact.artifact import Artifact
    from rung.evaluation.report.words import training_data_lines

    loaded = Artifact.load(artifact)
    if prompt:
        values = source_rows(artifact, data, row)[row - 1]
        texts = [_prompt_text(member, values) for member in loaded.prompt_variants()]
        if json:
            more = {"more_prompts": texts[1:]} if texts[1:] else {}
            print_json({"row": values, "prompt": texts[0], **more})
        else:
            typer.echo("\n\n---- and, averaged with it:\n\n".join(texts))
        return
    described = describe(loaded)
    if json:
        print_json(described)
        return
    training = described.pop("training_data")
    for key, value in described.items():
        typer.echo(f"{key:15} {value}")
    for name, told in training.items():
        typer.echo(f"\n{name} was trained on:")
        for line in training_data_lines(told):
            typer.echo(f"  {line}")


def _prompt_text(artifact: Artifact, row: dict[str, Any]) -> str:
    rendered = artifact.rendered(row)
    note_dropped(rendered)
    return artifact.decoder.text(artifact, rendered.messages)


def describe(artifact: Artifact) -> dict[str, Any]:
    """Return what an artifact is made of, as plain values."""
    from rung.evaluation.report.words import TRAINING_DATA

    shown, looks = artifact.demonstrations, artifact.retriever
    return {
        "name": artifact.name,
        "task": artifact.signature.task,
        "kind": artifact.signature.kind,
        "inputs": list(artifact.signature.inputs),
        "labels": len(artifact.signature.labels),
        "model": artifact.model,
        "path": list(artifact.path),
        "instruction": artifact.prompt.head(),
        "template": artifact.prompt.template,
        "retriever": None if looks is None else f"{looks.k} of {looks.folder}, {looks.order.replace('_', ' ')}",
        "demonstrations": None
        if shown is None
        else f"{shown.selection}, {shown.k} of {len(shown.pool)}"
        + (f", {shown.sets} prompts" if shown.sets > 1 else ""),
        "weights": artifact.weights.method,
        "trainable": artifact.weights.trainable_parameters,
        "decoder": artifact.decoder.kind,
        "confidence": None if artifact.decoder.confidence is None else artifact.decoder.confidence.method,
        "fingerprint": artifact.prompt.fingerprint,
        "training_data": {
            name: settings[TRAINING_DATA] for name, settings in artifact.settings.items() if TRAINING_DATA in settings
        },
    }


def source_rows(folder: Path, data: Path | None, least: int) -> list[dict[str, Any]]:
    """Return rows to show prompts of: those of --data, or those that the climb answered with this artifact."""
    from rung.data.sources import read_rows

    beside = folder.resolve().parent / "predictions.jsonl"
    if data is None and not beside.is_file():
        raise ConfigError(
            "too-few-rows", "there are no rows to show a prompt of", hint="name a file with rows: --data rows.csv"
        )
    if data is not None:
        rows = [record.values for record in read_rows(data)]
    else:
        rows = [json_module.loads(line)["inputs"] for line in beside.read_text(encoding="utf-8").splitlines()]
    if len(rows) < least:
        raise DataError(
            "too-few-rows", f"row {least} was asked for, and there are {len(rows)}", hint="give a lower --row"
        )
    return rows


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
    quiet: QuietFlag = False,
    offline: Offline = False,
) -> None:
    """Fit confidence on the validation rows, measure it on the test rows, and say what abstaining would give."""
    from rung.artifact.artifact import Artifact
    from rung.climbing.conclude import fit_confidence, measure_confidence
    from rung.task import Confidence

    loaded = load_task(task, sets)
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
        raise ConfigError("too-few-rows", "the test split has no rows", hint="give `data.test`")
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
