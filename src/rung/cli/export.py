"""Commands that take things out of Rung: `merge` and `export`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from rung.cli.artifacts import note_dropped, source_rows
from rung.cli.options import ArtifactFolder, Json, Offline, QuietFlag, Rows, progress
from rung.cli.render import print_json
from rung.errors import ConfigError

if TYPE_CHECKING:
    from rung.artifact.artifact import Artifact

Out = Annotated[Path | None, typer.Option("--out", help="A new folder.", metavar="FOLDER")]
PROMPTS = ("messages", "text", "openai")
SERVERS = ("vllm", "ollama", "kserve")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("merge")(merge)
    app.command("export")(export)


def merge(
    artifact: ArtifactFolder,
    out: Annotated[Path, typer.Option("--out", help="A new folder.", metavar="FOLDER")],
    data: Rows = None,
    json: Json = False,
    quiet: QuietFlag = False,
    offline: Offline = False,
) -> None:
    """Merge tuned weights into the base model: FOLDER/model for any program, FOLDER/artifact for Rung."""
    from rung.artifact.artifact import Artifact
    from rung.export.card import evidence
    from rung.export.merge import merge

    loaded = Artifact.load(artifact)
    rows, source = _rows(artifact, data)
    known = evidence(artifact, loaded.name)
    done = merge(loaded, out, rows=rows, source=source, known=known, progress=progress(quiet))
    if json:
        print_json({"artifact": str(out / "artifact"), "model": str(out / "model"), **asdict(done.difference)})
    else:
        typer.echo(f'{out / "model"}: {done.difference}\nNext: rung run {out / "artifact"} "your text"')


def export(
    artifact: ArtifactFolder,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            help="Write tuned weights (peft, huggingface, openvino, gguf) or for a server (vllm, ollama, kserve).",
        ),
    ] = None,
    out: Out = None,
    precision: Annotated[
        str | None, typer.Option("--precision", help="With openvino: int8, fp32. With gguf: f16, q8_0, f32.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="Write prompts instead: messages, text or openai.")
    ] = None,
    data: Rows = None,
    row: Annotated[
        int | None, typer.Option("--row", min=1, help="With prompts: only this row, counted from 1.")
    ] = None,
    json: Json = False,
    quiet: QuietFlag = False,
    offline: Offline = False,
) -> None:
    """Write tuned weights for other programs, or the exact prompts of rows as JSON lines."""
    if to in SERVERS:
        _for_server(artifact, to, out, json, quiet, unused=(precision, prompt, data, row))
    elif to is not None:
        _weights(artifact, to, out, precision, prompt, data, row, json, quiet)
    elif out is not None or precision is not None:
        raise ConfigError("bad-option", "--out and --precision are for weights", hint="say what to write: --to peft")
    else:
        _prompts(artifact, prompt or "messages", data, row)


def _for_server(artifact: Path, to: str, out: Path | None, json: bool, quiet: bool, *, unused: tuple[Any, ...]) -> None:
    from rung.artifact.artifact import Artifact
    from rung.export.servers import ServerName, export_for

    if any(value is not None for value in unused):
        raise ConfigError(
            "bad-option", f"--to {to} takes --out alone", hint="leave --precision, --prompt, --data and --row out"
        )
    if out is None:
        raise ConfigError("bad-option", f"--to {to} needs a folder", hint="name a new one: --out FOLDER")
    server = next(known for known in get_args(ServerName) if known == to)
    command = export_for(server, Artifact.load(artifact), out, progress=progress(quiet))
    if json:
        print_json({"folder": str(out), "server": to, "start": command})
    else:
        typer.echo(f"{out}: {to}\nNext: cd {out} && {command}")


def _rows(artifact: Path, data: Path | None) -> tuple[list[dict[str, Any]], str]:
    """Return rows to measure on: those of --data, or of the climb that made the artifact, or none."""
    from rung.data.sources import read_rows
    from rung.export.merge import PROMPTS, known_rows

    if data is None:
        return known_rows(artifact)
    return [record.values for record, _ in zip(read_rows(data), range(PROMPTS), strict=False)], data.name


def _weights(
    artifact: Path, to: str, out: Path | None, precision: str | None, prompt: str | None, data: Path | None,
    row: int | None, json: bool, quiet: bool,
) -> None:  # fmt: skip
    from rung.artifact.artifact import Artifact
    from rung.export.card import Form, evidence
    from rung.export.export import export

    if prompt is not None or row is not None:
        raise ConfigError("bad-option", "--prompt and --row are for prompts", hint="leave --to out, or these")
    form = next((known for known in get_args(Form) if known == to), None)
    if form is None:
        raise ConfigError("unknown-name", f"--to {to!r}", hint=f"choose {', '.join((*get_args(Form), *SERVERS))}")
    if out is None:
        raise ConfigError("bad-option", f"--to {to} needs a folder", hint="name a new one: --out FOLDER")
    loaded = Artifact.load(artifact)
    rows, source = _rows(artifact, data)
    done = export(
        loaded, form, out, precision=precision, rows=rows, source=source, known=evidence(artifact, loaded.name),
        progress=progress(quiet),
    )  # fmt: skip
    difference = None if done.difference is None else asdict(done.difference)
    if json:
        print_json({"folder": str(out), "format": to, "precision": done.precision, "difference": difference})
    else:
        typer.echo(f"{out}: {to}{f', {done.precision}' if done.precision else ''}")
        if done.difference is not None:
            typer.echo(f"merged: {done.difference}")


def _prompts(artifact: Path, form: str, data: Path | None, row: int | None) -> None:
    from rung.artifact.artifact import Artifact

    if form not in PROMPTS:
        raise ConfigError("unknown-name", f"--prompt {form!r}", hint=f"choose {', '.join(PROMPTS)}")
    loaded = Artifact.load(artifact)
    rows = source_rows(artifact, data, row or 1)
    for values in [rows[row - 1]] if row else rows:
        for member in loaded.prompt_variants():
            print_json(_exported(member, values, form))


def _exported(artifact: Artifact, row: dict[str, Any], form: str) -> dict[str, Any]:

    rendered = artifact.rendered(row)
    note_dropped(rendered)
    messages = rendered.messages
    if form == "text":
        return {"prompt": artifact.decoder.text(artifact, messages)}
    if form == "messages":
        return {"messages": list(messages)}
    request: dict[str, Any] = {"model": artifact.model, "messages": list(messages), "temperature": 0}
    if artifact.decoder.max_new_tokens is not None:
        request["max_completion_tokens"] = artifact.decoder.max_new_tokens
    return request
