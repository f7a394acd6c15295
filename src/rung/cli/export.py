"""Commands that write artifacts for other programs: `merge` and `export`."""

from __future__ import annotations

from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

from typer import Option

from rung.cli import options, render
from rung.errors import ConfigError

if TYPE_CHECKING:
    from rung.artifact.artifact import Artifact

PROMPTS = ("messages", "text", "openai")


def merge(
    artifact: options.ArtifactFolder,
    out: Annotated[Path, Option("--out", help="A new folder.", metavar="FOLDER")],
    data: options.Rows = None, json: options.Json = False, quiet: options.QuietFlag = False,
    offline: options.Offline = False,
) -> None:  # fmt: skip
    """Merge tuned weights into the base model: FOLDER/model for any program, FOLDER/artifact for Rung."""
    from rung.export.card import evidence
    from rung.export.export import merge

    loaded, (rows, source) = options.load_artifact(artifact), _rows(artifact, data)
    known, progress = evidence(artifact, loaded.name), options.progress(quiet)
    difference = merge(loaded, out, rows=rows, source=source, known=known, progress=progress)
    values = {"artifact": str(out / "artifact"), "model": str(out / "model"), **asdict(difference)}
    text = f'{values["model"]}: {difference}\nNext: rung run {values["artifact"]} "your text"'
    render.result(json, values, text)


def export(
    artifact: options.ArtifactFolder,
    to: Annotated[str | None, Option(
        "--to", help="Write tuned weights (peft, huggingface, openvino, gguf) or for a server (vllm, ollama, kserve).",
    )] = None,
    out: Annotated[Path | None, Option("--out", help="A new folder.", metavar="FOLDER")] = None,
    precision: Annotated[
        str | None, Option("--precision", help="With openvino: int8, fp32. With gguf: f16, q8_0, f32.")
    ] = None,
    prompt: Annotated[str | None, Option("--prompt", help="Write prompts instead: messages, text or openai.")] = None,
    data: options.Rows = None,
    row: Annotated[int | None, Option("--row", min=1, help="With prompts: only this row, counted from 1.")] = None,
    json: options.Json = False, quiet: options.QuietFlag = False, offline: options.Offline = False,
) -> None:  # fmt: skip
    """Write tuned weights for other programs, or the exact prompts of rows as JSON lines."""
    from rung.export.card import ExportFormat
    from rung.export.servers import ServerName, export_for

    if to is None:
        if out is not None or precision is not None:
            message = "--out and --precision are for weights"
            raise ConfigError("bad-option", message, hint="say what to write: --to peft")
        _write_prompts(artifact, options.choose("--prompt", prompt or PROMPTS[0], PROMPTS), data, row)
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
    command = export_for(kind, options.load_artifact(artifact), out, progress=options.progress(quiet))
    text = f"{out}: {to}\nNext: cd {out} && {command}"
    render.result(json, {"folder": str(out), "server": to, "start": command}, text)


def _write_weights(
    artifact: Path, to: Any, out: Path, precision: str | None, data: Path | None, json: bool, quiet: bool
) -> None:
    from rung.export.card import evidence
    from rung.export.export import export

    loaded, (rows, source) = options.load_artifact(artifact), _rows(artifact, data)
    known, progress = evidence(artifact, loaded.name), options.progress(quiet)
    done = export(loaded, to, out, precision=precision, rows=rows, source=source, known=known, progress=progress)
    difference = None if done.difference is None else asdict(done.difference)
    values = {"folder": str(out), "format": to, "precision": done.precision, "difference": difference}
    text = f"{out}: {to}{f', {done.precision}' if done.precision else ''}"
    render.result(json, values, text if difference is None else f"{text}\nmerged: {done.difference}")


def _rows(artifact: Path, data: Path | None) -> tuple[list[dict[str, Any]], str]:
    """Rows to measure on: those of --data, or of the climb that made the artifact, or none."""
    from rung.data.sources import read_rows
    from rung.export.merge import PROMPTS, known_rows

    if data is None:
        return known_rows(artifact)
    return [record.values for record in islice(read_rows(data), PROMPTS)], data.name


def _write_prompts(artifact: Path, form: str, data: Path | None, row: int | None) -> None:
    from rung.artifact.predict_file import rows_of

    loaded, rows = options.load_artifact(artifact), rows_of(artifact, data, row or 1)
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
