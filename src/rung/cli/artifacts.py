"""Commands on an artifact: `run`, `chat`, `predict`, `show`, `confidence`; for other programs, `merge` and `export`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import islice
from json import loads
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from typer import Argument, Option

from rung.cli import options, render
from rung.errors import ConfigError, ThresholdError
from rung.progress import QUIET

if TYPE_CHECKING:
    from rung.artifact.artifact import Artifact
    from rung.cluster.executor import Executor

PROMPT_FORMS = ("messages", "text", "openai")


def run(
    artifact: options.ArtifactOrTask,
    text: Annotated[list[str], Argument(
        help="The input; COLUMN=TEXT if there are several columns; - reads it from stdin.",
    )],
    engine: Annotated[str | None, Option(help="What runs the model, instead of what measured it.")] = None,
    json: options.Json = False, offline: options.Offline = False,
) -> None:  # fmt: skip
    """Answer one input."""
    from rung.artifact.predict_file import answer_values

    loaded = options.artifact_or_asking(artifact, quiet=json)
    if engine is not None:
        if loaded.decoder.members or not loaded.decoder.uses_llm:
            message = f"--engine {engine} has no effect: this artifact does not answer with a language model"
            raise ConfigError("bad-option", message, hint="leave --engine out")
        loaded = replace(loaded, engine=engine)
    progress = options.progress(quiet=json)
    if loaded.decoder.uses_llm:
        loaded.open(progress)  # at the first time it downloads and exports the model
    answer = loaded.predict([_row(loaded, text)], progress=progress)[0]
    render.dropped(answer)
    values = answer_values(loaded, answer)
    if answer.dropped_demonstrations:
        values["dropped_demonstrations"] = answer.dropped_demonstrations
    if answer.probabilities:
        ranked = sorted(zip(loaded.signature.labels, answer.probabilities, strict=True), key=lambda pair: -pair[1])
        values["top"] = [{"label": label, "probability": p} for label, p in ranked[:5]]
    render.result(json, values, lambda: render.answer(answer))
    if artifact.is_dir() and not json and sys.stdout.isatty():  # a pipe gets the answer alone
        render.note(f"Next: {shlex.join(('rung', 'predict', str(artifact)))} rows.csv --out answers.csv")


def _row(artifact: Artifact, texts: Sequence[str]) -> dict[str, Any]:
    """Make a row of a command's arguments: the text, or COLUMN=TEXT for each of several columns.

    `-` is the text, or a JSON object with the columns, from stdin.
    """
    columns = artifact.signature.inputs
    if list(texts) == ["-"]:
        given = sys.stdin.read().rstrip("\n")
        if not given.strip():
            raise ConfigError("bad-option", "stdin is empty", hint="pipe a text into the command: echo text | rung run")
        if len(columns) == 1:
            texts = [given]
        else:
            return _json_row(given, columns)
    if artifact.signature.kind == "chat":
        return {columns[0]: [{"role": "user", "content": " ".join(texts)}]}
    if len(columns) == 1:
        return {columns[0]: " ".join(texts)}
    return dict(text.partition("=")[::2] for text in texts)


def _json_row(text: str, columns: Sequence[str]) -> dict[str, Any]:
    try:
        row = loads(text)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        hint = 'write {"' + columns[0] + '": ..., ...}'
        raise ConfigError("bad-option", f"stdin is not a JSON object with {', '.join(columns)}", hint=hint)
    return row


def chat(artifact: options.ArtifactOrTask, offline: options.Offline = False) -> None:
    """Talk to an artifact, line by line; chat tasks remember the conversation."""
    loaded = options.artifact_or_asking(artifact)
    if loaded.decoder.uses_llm:
        loaded.open(options.progress(quiet=False))
    columns = loaded.signature.inputs
    render.note("An empty line or Ctrl-D ends the conversation.")
    turns: list[dict[str, str]] = []
    while text := _ask():
        if loaded.signature.kind == "chat":
            turns.append({"role": "user", "content": text})
            row: dict[str, Any] = {columns[0]: list(turns)}
        else:
            row = _row(loaded, [text] if len(columns) == 1 else text.split("|"))
        turns.append({"role": "assistant", "content": _reply(loaded, row)})


def _ask() -> str:
    try:
        return input("> ").strip() if sys.stdin.isatty() else sys.stdin.readline().strip()
    except EOFError:
        return ""


def _reply(artifact: Artifact, row: dict[str, Any]) -> str:
    """Print the answer, piece by piece if the decoder can stream."""
    from rung.artifact.decoder import Answer, finish, refusal
    from rung.models.thinking import AfterThought

    decoder = artifact.decoder
    if not (decoder.streams and decoder.unconstrained):
        answer = artifact.predict([row], progress=QUIET)[0]
        render.answer(answer)
        return answer.text
    rendered = artifact.rendered(row)
    render.dropped(rendered)
    if rendered.refused:
        refused = refusal(artifact, rendered)
        render.say(refused.text)
        return refused.text
    pieces, shown = [], AfterThought()
    for piece in artifact.open().stream(decoder.request(artifact, rendered.messages)):
        pieces.append(piece)
        render.say(shown.more(piece), nl=False)
    render.say(shown.end())
    text = "".join(pieces)
    answer = Answer(text.strip(), None, None, 0, len(pieces), 0.0, rendered.messages)
    render.sources(finish(artifact, answer, rendered))
    return text


def predict(
    artifact: options.ArtifactFolder,
    data: Annotated[Path, Argument(help="Rows: a table of any kind, or hf:org/name.", metavar="DATA")],
    out: Annotated[
        Path | None, Option(help="Write here instead of stdout: a table for .csv, .xlsx and .parquet, else JSON lines.")
    ] = None,
    keep: Annotated[str, Option(help="Columns of the rows to keep: all, none, or names.", metavar="COLUMNS")] = "all",
    top_k: Annotated[int, Option(min=0, help="Also list this many of the most probable labels.")] = 0,
    encoding: options.Encoding = "auto", separator: options.Separator = "auto", quoting: options.Quoting = "auto",
    sheet: options.Sheet = None,
    resume: Annotated[bool, Option("--resume", help="Continue after the rows that --out already holds.")] = False,
    workers: options.Workers = None, on: options.On = None, jobs: options.Jobs = None,
    json: options.Json = False, quiet: options.QuietFlag = False, offline: options.Offline = False,
) -> None:  # fmt: skip
    """Answer every row of a file and write the rows with their answers, in their order; exit 1 if some have none."""
    from rung.artifact.files import fingerprint
    from rung.artifact.predict_file import origin_file, predict_file
    from rung.data.tables import TABLES, lines_file, write_table

    if resume and out is None:
        raise ConfigError("bad-option", "--resume needs --out", hint="name the file to continue: --out answers.jsonl")
    loaded = options.load_artifact(artifact, quiet=quiet)
    table = out if out is not None and out.suffix.lower() in TABLES else None
    if table is not None and table.exists():
        hint = "a table is written at the end, whole: remove it first"
        raise ConfigError("file-exists", f"{table} exists", hint=hint)
    lines, progress = out if table is None else lines_file(table), options.progress(quiet)
    form = options.file_format(encoding, separator, quoting, sheet, data)
    if (executor := _executor(workers, on, jobs, lines)) is None or lines is None:
        done = predict_file(
            loaded, data, lines, fingerprint=fingerprint(artifact), form=form, keep=keep, top_k=top_k,
            as_list=json, resume=resume, progress=progress,
        )  # fmt: skip
    else:
        from rung.cluster.parts import predict_in_parts

        done = predict_in_parts(
            loaded, artifact, data, lines, executor, fingerprint=fingerprint(artifact), form=form, keep=keep,
            top_k=top_k, resume=resume, jobs=jobs or "", progress=progress,
        )  # fmt: skip
    if table is not None and lines is not None:
        write_table(
            lines, table, kept=done.columns.kept, name=done.columns.name, records=loaded.signature.kind == "json",
            schema=getattr(loaded.decoder, "json_schema", None),
            source=data if data.suffix.lower() == ".parquet" else None,
        )  # fmt: skip
        lines.unlink()
        origin_file(lines).unlink()
    if done.format:
        render.note(f"{data} is read as: {done.format}")
    if (name := done.columns.name("output")) != "output":
        render.note(f"the rows have a column 'output', so the answers are in the column {name!r}")
    if whole := out is not None and json:
        counts = {name: value for name, value in asdict(done).items() if name not in ("format", "columns")}
        render.print_json({**counts, "out": str(out), "format": done.format, "answer_column": name})
    if done.error_rows or (not whole and (out is not None or done.overflow_rows)):
        render.note(f"{done}{'' if out is None else f': {out}'}")
    if done.error_rows:
        raise typer.Exit(ThresholdError.exit_code)
    if not json and not quiet and out is not None:
        render.note(f"Next: {shlex.join(('rung', 'serve', str(artifact)))}")


def _executor(workers: str | None, on: str | None, jobs: str | None, out: Path | None) -> Executor | None:
    """What answers in parts; None for this process alone."""
    if (workers or on) and out is None:
        raise ConfigError("bad-option", "--workers and --on need --out", hint="name a file: --out answers.jsonl")
    from rung.artifact.predict_file import parts_folder

    executor = options.executor(workers, on, jobs)
    if executor is None and out is not None and (parts := parts_folder(out)).exists():
        hint = "go on with --resume --workers 1, or more workers; or remove it"
        raise ConfigError("file-exists", f"{parts} holds answers of an earlier run in parts", hint=hint)
    return executor


def show(
    artifact: options.ArtifactFolder,
    prompt: Annotated[bool, Option("--prompt", help="Show the exact final prompt of a row.")] = False,
    row: Annotated[int, Option(min=1, help="Which row, counted from 1.")] = 1,
    data: options.Rows = None, json: options.Json = False, offline: options.Offline = False,
) -> None:  # fmt: skip
    """Show what an artifact is made of, or the exact prompt of a row."""
    from rung.artifact.files import artifact_folder, fingerprint
    from rung.artifact.predict_file import rows_of
    from rung.evaluation.report.words import artifact_facts

    loaded = options.load_artifact(artifact, runs=False)
    if not prompt:
        facts = {**artifact_facts(loaded), "fingerprint": fingerprint(artifact_folder(artifact))}
        render.result(
            json, facts, lambda: render.artifact(facts), then=render.asking(artifact, loaded.signature.inputs)
        )
        return
    values, texts = rows_of(loaded, artifact, data, row)[row - 1], []
    for variant in loaded.prompt_variants():
        rendered = variant.rendered(values)
        render.dropped(rendered)
        texts.append(variant.decoder.text(variant, rendered.messages))
    prompts = {"row": values, "prompt": texts[0], **({"more_prompts": texts[1:]} if texts[1:] else {})}
    render.result(json, prompts, "\n\n---- and, averaged with it:\n\n".join(texts))


def confidence(
    artifact: options.ArtifactFolder, task: options.TaskOfRows,
    out: Annotated[Path | None, Option(help="Save the artifact with its confidence here.")] = None,
    method: Annotated[str | None, Option(help="temperature or isotonic; default: the task's.")] = None,
    abstain_below: Annotated[
        float | None, Option(help="Mark answers with less confidence as abstained; default: the task's.")
    ] = None,
    sets: options.Sets = None, json: options.Json = False, quiet: options.QuietFlag = False,
    offline: options.Offline = False,
) -> None:  # fmt: skip
    """Fit confidence on the validation rows, measure it on the test rows, and say what abstaining would give."""
    from rung.climbing.conclude import fit_confidence, measure_confidence
    from rung.data.sections import Confidence
    from rung.evaluation.scoring import check_suits

    loaded, progress = options.load_task(task, sets), options.progress(quiet)
    wanted = loaded.confidence or Confidence()
    how = options.choose("--method", method or wanted.method, ("temperature", "isotonic"))
    below = wanted.abstain_below if abstain_below is None else abstain_below
    if below is not None and not 0 < below < 1:
        raise ConfigError("bad-option", f"--abstain-below is {below:g}", hint="give a number between 0 and 1")
    data = loaded.read()
    validation, test = data.rows_of("validation"), data.rows_of("test")
    answering = options.load_artifact(artifact, quiet=quiet)
    check_suits(answering, loaded, validation)
    check_suits(answering, loaded, test)
    fitted = fit_confidence(
        answering, validation, how,
        abstain_below=below, out_of_scope=wanted.out_of_scope, progress=progress,
    )  # fmt: skip
    measured = measure_confidence(fitted, test, fitted_on=len(validation), progress=progress)
    if out is not None:
        fitted.save(out)
    values = {**measured, "saved": None if out is None else str(out)}
    then = ("rung", "confidence", artifact, task, "--out", "sure") if out is None else ("rung", "serve", out)
    render.result(json, values, lambda: render.confidence(values), then=then)


def merge(
    artifact: options.ArtifactFolder,
    out: Annotated[Path, Option(help="A new folder.", metavar="FOLDER")],
    data: options.Rows = None, json: options.Json = False, quiet: options.QuietFlag = False,
    offline: options.Offline = False,
) -> None:  # fmt: skip
    """Merge tuned weights into the base model: FOLDER/model for any program, FOLDER/artifact for Rung."""
    from rung.export.card import evidence
    from rung.export.export import merge

    loaded, (rows, source) = options.load_artifact(artifact, quiet=quiet), _rows(artifact, data)
    known, progress = evidence(artifact, loaded.name), options.progress(quiet)
    difference = merge(loaded, out, rows=rows, source=source, known=known, progress=progress)
    values = {"artifact": str(out / "artifact"), "model": str(out / "model"), **asdict(difference)}
    render.result(
        json, values, f"{values['model']}: {difference}", then=render.asking(out / "artifact", loaded.signature.inputs)
    )


def export(
    artifact: options.ArtifactFolder,
    to: Annotated[str | None, Option(
        "--to", help="Write tuned weights (peft, huggingface, openvino, gguf) or for a server (vllm, ollama, kserve).",
    )] = None,
    out: Annotated[Path | None, Option(help="A new folder.", metavar="FOLDER")] = None,
    precision: Annotated[str | None, Option(help="With openvino: int8, int4, fp32. With gguf: f16, q8_0, f32.")] = None,
    prompt: Annotated[str | None, Option(help="Write prompts instead: messages, text or openai.")] = None,
    data: options.Rows = None,
    row: Annotated[int | None, Option(min=1, help="With prompts: only this row, counted from 1.")] = None,
    json: options.Json = False, quiet: options.QuietFlag = False, offline: options.Offline = False,
) -> None:  # fmt: skip
    """Write tuned weights for other programs, or the exact prompts of rows as JSON lines."""
    from rung.export.card import ExportFormat
    from rung.export.servers import ServerName, export_for

    if to is None:
        if out is not None or precision is not None:
            message = "--out and --precision are for weights"
            raise ConfigError("bad-option", message, hint="say what to write: --to peft")
        _write_prompts(artifact, options.choose("--prompt", prompt or PROMPT_FORMS[0], PROMPT_FORMS), data, row)
        return
    kind = options.choose("--to", to, (*get_args(ExportFormat), *get_args(ServerName)))
    server = to in get_args(ServerName)
    unused = {"--prompt": prompt, "--row": row, **({"--precision": precision, "--data": data} if server else {})}
    if given := [name for name, value in unused.items() if value is not None]:
        raise ConfigError("bad-option", f"--to {to} does not use {', '.join(given)}", hint="leave these options out")
    if out is None:
        raise ConfigError("bad-option", f"--to {to} needs a folder", hint="name a new one: --out FOLDER")
    if not server:
        _write_weights(artifact, to, out, precision, data, json, quiet)
        return
    loaded = options.load_artifact(artifact, quiet=quiet)
    command = export_for(kind, loaded, out, progress=options.progress(quiet))
    values = {"folder": str(out), "server": to, "start": command}
    render.result(json, values, f"{out}: {to}", then=f"cd {shlex.quote(str(out))} && {command}")


def push(
    folder: Annotated[Path, Argument(help="A folder that `rung export` wrote.", metavar="FOLDER")],
    repository: Annotated[str, Argument(help="Repository on the Hugging Face Hub: org/name.", metavar="REPOSITORY")],
    public: Annotated[bool, Option("--public", help="Let everybody read a new repository.")] = False,
    json: options.Json = False, offline: options.Offline = False,
) -> None:  # fmt: skip
    """Upload an exported folder to the Hugging Face Hub, with its model card."""
    from rung.export.push import push

    done = push(folder, repository, public=public)
    text = f"{done.url}: {len(done.files)} files, {done.megabytes:.1f} MB"
    whole = (folder / "config.json").is_file()  # a model, which other tasks may start from; not an adapter
    render.result(json, done._asdict(), text, then=("rung", "models", "pull", repository) if whole else ())


def _write_weights(
    artifact: Path, to: Any, out: Path, precision: str | None, data: Path | None, json: bool, quiet: bool
) -> None:
    from rung.artifact.files import fingerprint
    from rung.export.card import evidence
    from rung.export.export import export

    loaded, (rows, source) = options.load_artifact(artifact, quiet=quiet), _rows(artifact, data)
    known, progress = evidence(artifact, loaded.name), options.progress(quiet)
    done = export(
        loaded, to, out, precision=precision, rows=rows, source=source, known=known, identity=fingerprint(artifact),
        progress=progress,
    )  # fmt: skip
    difference = None if done.difference is None else asdict(done.difference)
    values = {"folder": str(out), "format": to, "precision": done.precision, "difference": difference}
    text = f"{out}: {to}{f', {done.precision}' if done.precision else ''}"
    text = text if difference is None else f"{text}\nmerged: {done.difference}"
    render.result(json, values, text, then=("rung", "push", out, "ORG/NAME"))


def _rows(artifact: Path, data: Path | None) -> tuple[list[dict[str, Any]], str]:
    """Rows to measure on: those of --data, or of the climb that made the artifact, or none."""
    from rung.data.sources import read_rows
    from rung.export.merge import PROMPTS, known_rows

    if data is None:
        return known_rows(artifact)
    return [record.values for record in islice(read_rows(data), PROMPTS)], data.name


def _write_prompts(artifact: Path, form: str, data: Path | None, row: int | None) -> None:
    from rung.artifact.predict_file import rows_of

    loaded = options.load_artifact(artifact, runs=False)
    rows = rows_of(loaded, artifact, data, row or 1)
    for values in [rows[row - 1]] if row else rows:
        for variant in loaded.prompt_variants():
            render.print_json(_exported(variant, values, form))


def _exported(artifact: Artifact, row: dict[str, Any], form: str) -> dict[str, Any]:
    rendered = artifact.rendered(row)
    render.dropped(rendered)
    if form == "text":
        return {"prompt": artifact.decoder.text(artifact, rendered.messages)}
    messages = list(rendered.messages)
    if form == "messages":
        return {"messages": messages}
    request: dict[str, Any] = {"model": artifact.model, "messages": messages, "temperature": 0}
    if artifact.decoder.max_new_tokens is not None:
        request["max_completion_tokens"] = artifact.decoder.max_new_tokens
    return request
