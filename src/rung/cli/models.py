"""`rung models`: the base models; `rung doctor`: this machine; `rung cache`: remembered answers."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

from typer import Argument, Option

from rung.cli import options, render, render_models
from rung.cli.help import CommandGroup
from rung.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from rung.models.reference import ModelFiles

app = CommandGroup(help="Base models: what is there, where it is from, and where it is kept.", no_args_is_help=True)
cache = CommandGroup(help="Remembered answers: where, how much, and forget them.", no_args_is_help=True)

LOCAL = ("torch", "transformers", "peft", "sentence-transformers", "scikit-learn", "openvino-genai", "optimum-intel")
Reference = Annotated[str, Argument(
    help="`embedded`, `embedded-encoder`, `builtin:NAME`, a folder, a .gguf file, or a Hub id (org/name[@revision]).",
    metavar="MODEL",
)]  # fmt: skip


@app.command("list")
def list_models(json: options.Json = False) -> None:
    """List the models that come with Rung, and the GGUF files that it has converted."""
    from rung.models import gguf
    from rung.models.cache import size_of
    from rung.models.embedded import EMBEDDED
    from rung.models.hub import text_settings
    from rung.models.reference import is_cached, tensor_sizes

    models = [
        {
            "reference": model.reference, "name": model.name, "kind": model.kind, "parameters": model.parameters,
            "context": model.context, "licence": model.licence, "cached": is_cached(model.reference),
            "about": model.about,
        }
        for model in EMBEDDED
    ] + [
        {
            "reference": str(folder), "name": name, "kind": "language model",
            "parameters": sum(tensor_sizes(folder).values()),
            "context": text_settings(folder).get("max_position_embeddings"), "licence": licence, "cached": True,
            "about": f"{size_of(folder) / 1e9:.1f} GB, converted from a GGUF file: rung models rm {folder}",
        }
        for folder, name, licence in gguf.converted()
    ]  # fmt: skip
    render.result(json, models, lambda: render_models.built_in_models(models))


@app.command()
def show(
    reference: Reference, json: options.Json = False, quiet: options.QuietFlag = False, offline: options.Offline = False
) -> None:
    """Describe a model; one that is not here is described from the catalogue, or fetched."""
    from rung.models.checkpoint import kind_of, verify
    from rung.models.embedded import find
    from rung.models.open_models import find as find_open
    from rung.models.reference import is_cached, resolve
    from rung.models.thinking import answer_beginning
    from rung.models.tokenizer import Tokenizer

    known, listed = find(reference), find_open(reference)
    about = {} if known is None else {"kind": known.kind, "source": known.source, "about": known.about}
    about |= {name: value for name in ("thinking", "note") if listed and (value := getattr(listed, name))}
    facts: dict[str, Any]
    then: tuple[str, ...]
    if known is not None and not is_cached(reference):
        facts = {name: getattr(known, name) for name in ("name", "parameters", "context", "licence")}
        facts = {"reference": reference, **facts, **about, "cached": False, "download_megabytes": known.megabytes}
        then = ("rung", "models", "pull", reference)
    else:
        files = resolve(reference, progress=options.progress(quiet))
        verify(files)
        if kind_of(files) == "language model":
            answer_beginning(Tokenizer.load(files.folder))  # raises where its chat template shows no conversation
        facts = {**asdict(files), "folder": str(files.folder), "kind": kind_of(files), **about, "cached": True}
        then = _starting(reference, files)
    render.result(json, facts, lambda: render.facts(facts, width=18), then=then)


@app.command("verify")
def verify_model(
    reference: Reference, json: options.Json = False, quiet: options.QuietFlag = False, offline: options.Offline = False
) -> None:
    """Read every byte of a model again, and compare it with what was first read: finds damage of the disk."""
    from rung.models.checkpoint import hash_again, verify
    from rung.models.reference import resolve

    files = resolve(reference, progress=options.progress(quiet))
    read = hash_again(files)
    verify(files)
    render.result(json, {"folder": str(files.folder), "bytes": read}, f"{files.folder}: {read:,} bytes are unchanged")


@app.command()
def pull(
    reference: Reference,
    openvino: Annotated[
        bool, Option("--openvino", help="Export it to OpenVINO now, as its first use would: for container images.")
    ] = False,
    precision: Annotated[
        str | None, Option(help="Of the exported weights: int8, int4, fp32; int8 if not given, for encoders fp32.")
    ] = None,
    json: options.Json = False, quiet: options.QuietFlag = False, offline: options.Offline = False,
) -> None:  # fmt: skip
    """Fetch and convert a model, so that it works offline from then on."""
    from rung.engines.opening import export_ahead
    from rung.engines.openvino_export import ExportPrecision
    from rung.models.checkpoint import verify
    from rung.models.reference import resolve

    chosen = options.choose("--precision", precision, get_args(ExportPrecision))
    if chosen and not openvino:
        raise ConfigError("bad-option", "--precision is that of an export", hint="add --openvino")
    files = resolve(reference, progress=options.progress(quiet))
    verify(files)
    if openvino:
        export_ahead(files, chosen, progress=options.progress(quiet))
    text = f"{files.name}: {render_models.count(files.parameters)} parameters in {files.folder}"
    values = {**asdict(files), "folder": str(files.folder)}
    render.result(json, values, text, then=_starting(reference, files))


def _starting(reference: str, files: ModelFiles) -> tuple[str, ...]:
    """The command that makes a task with a model, if it is one that writes."""
    from rung.models.embedded import find
    from rung.models.tokenizer import chat_template_of

    known = find(reference)
    writes = chat_template_of(files.folder) is not None if known is None else known.kind == "language model"
    return ("rung", "init", "rows.csv", "--model", reference) if writes else ()


@app.command()
def rm(reference: Reference) -> None:
    """Remove a built-in model or a converted .gguf file, its exports and started downloads from the cache."""
    from rung.models import gguf
    from rung.models.embedded import BUILTIN, find, remove

    model = find(reference)
    freed = gguf.remove(Path(reference).expanduser()) if model is None else remove(model)
    if freed is None:
        hint = f"Rung keeps embedded and {BUILTIN} models, and converted .gguf files: `rung models list`; those of the "
        raise ModelError(
            "unknown-model", f"{reference} is not a built-in model, nor a converted .gguf file",
            hint=f"{hint}Hub are in its own cache (`hf cache`)",
        )  # fmt: skip
    render.say(f"{freed / 1e9:.2f} GB removed")


@app.command()
def path(reference: Reference) -> None:
    """Print the folder of a model that is here."""
    from rung.models.reference import is_cached, resolve

    if not is_cached(reference):
        raise ModelError("model-not-cached", f"{reference} was not pulled yet", hint=f"rung models pull {reference}")
    render.say(str(resolve(reference).folder))


@app.command()
def search(
    task: Annotated[str | None, Option(help="What for: summarization, extraction, ...")] = None,
    language: Annotated[str | None, Option(help="A language code its maker lists, such as de.")] = None,
    licence: Annotated[str | None, Option(help="permissive, or an identifier such as mit.")] = None,
    memory: Annotated[str | None, Option(help="Memory to run in, such as 16GB.")] = None,
    context: Annotated[str | None, Option(help="Tokens to read at least, such as 32k.")] = None,
    refresh: Annotated[bool, Option("--refresh", help="Ask the Hub for newer facts first.")] = False,
    json: options.Json = False, quiet: options.QuietFlag = False, offline: options.Offline = False,
) -> None:  # fmt: skip
    """List open models that suit, by their published facts, with memory and speed for this machine."""
    from rung.machine import this_machine
    from rung.models import open_models

    wanted = open_models.wanted_from(task, language, licence, memory, context)
    if refresh:
        today = datetime.now(UTC).date().isoformat()
        count, failures = open_models.refresh(today, progress=options.progress(quiet))
        render.note("\n".join([f"{count} models refreshed from the Hub", *(f"not refreshed: {f}" for f in failures)]))
    matches, machine = open_models.search(wanted), this_machine()
    suitable = [open_models.as_dict(model, machine) for model in matches.suitable]
    unknown = [{"id": model.id, "fact": fact} for model, fact in matches.unknown]
    values = {"wanted": asdict(wanted), "models": suitable, "unknown": unknown}
    then = ("rung", "models", "pull", suitable[0]["id"]) if suitable else ()
    render.result(json, values, lambda: render_models.open_models(matches, wanted, machine), then=then)


@app.command()
def matrix(json: options.Json = False) -> None:
    """Show what was measured of families of models, against their plain forward pass; reasons with --json."""
    from rung.models.open_models import families

    values = families()
    render.result(json, values, lambda: render_models.matrix(values))


def doctor(json: options.Json = False) -> None:
    """Show what this machine has, what is missing, and how to get it."""
    from rung.engines.opening import explain
    from rung.machine import this_machine
    from rung.models.cache import cache_dir, offline
    from rung.models.embedded import proposed

    machine, packages = this_machine(), {name: _version(name) for name in LOCAL}
    missing = [name for name, installed in packages.items() if installed is None]
    facts: dict[str, Any] = {
        "cores": machine.cores, "memory_gib": round(machine.memory_bytes / 2**30, 1),
        "gflops_fp32": round(machine.flops / 1e9), "cache": str(cache_dir()), "offline": offline(),
        "engine": explain("embedded", "auto"), "packages": packages, "missing": missing,
        "gpu": None if "torch" in missing else _gpu(),
    }  # fmt: skip
    model, why = proposed(machine)
    facts |= {"model": model.reference, "model_because": why}
    render.result(json, facts, lambda: render_models.doctor(facts), then=() if missing else ("rung", "demo"))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


@cache.command("path")
def cache_path() -> None:
    """Print where answers are remembered."""
    from rung.engines.response_cache import store_path

    render.say(str(store_path()))


@cache.command("size")
def cache_size(json: options.Json = False) -> None:
    """Print how many answers are remembered, and their bytes on disk."""
    from rung.engines.response_cache import open_store, store_path

    entries, size = open_store(store_path()).size()
    render.result(json, {"entries": entries, "bytes": size}, f"{entries} answers, {size / 2**20:.1f} MiB")


@cache.command("clear")
def cache_clear() -> None:
    """Forget all remembered answers."""
    from rung.engines.response_cache import open_store, store_path

    open_store(store_path()).clear()
    render.say("cleared")
