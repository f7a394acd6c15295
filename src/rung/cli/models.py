"""`rung models`: which base models there are, what they are, and where they lie."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rung.cli.options import Json, Offline, Quiet, print_json, progress
from rung.errors import ConfigError

if TYPE_CHECKING:
    from rung.machine import Machine
    from rung.models.open_models import Found, OpenModel, Wanted


app = typer.Typer(help="Base models: what is there, where from, and where it lies.", no_args_is_help=True)

Reference = Annotated[
    str,
    typer.Argument(
        help="`embedded`, `embedded-encoder`, a folder, a .gguf file, or a Hub id (org/name, org/name@revision).",
        metavar="MODEL",
    ),
]


@app.command("list")
def list_models(json: Json = False) -> None:
    """List the models that come with Rung."""
    from rung.models.embedded import EMBEDDED
    from rung.models.reference import is_cached

    models: list[dict[str, Any]] = [
        {
            "reference": model.alias,
            "name": model.name,
            "kind": model.kind,
            "parameters": model.parameters,
            "context": model.context,
            "licence": model.licence,
            "cached": is_cached(model.alias),
            "about": model.about,
        }
        for model in EMBEDDED
    ]
    if json:
        print_json(models)
        return
    for model in models:
        state = "cached" if model["cached"] else "not pulled"
        typer.echo(
            f"{model['reference']:17} {model['name']:22} {_count(model['parameters']):>6}  {state:10}  {model['about']}"
        )
    typer.echo("Any Hub id, local folder or .gguf file is a model too: rung models show org/name")
    typer.echo("Open models by task, language, licence and memory: rung models search --task summarization")


@app.command()
def show(reference: Reference, json: Json = False, quiet: Quiet = False, offline: Offline = False) -> None:
    """Say what a model is; one that is not here is described from the catalogue, or fetched."""
    facts = _facts(reference, quiet)
    if json:
        print_json(facts)
        return
    for name, value in facts.items():
        typer.echo(f"{name.replace('_', ' '):18} {value}")


def _facts(reference: str, quiet: bool) -> dict[str, Any]:
    from rung.models.embedded import find
    from rung.models.reference import is_cached, resolve

    known = find(reference)
    about = {} if known is None else {"kind": known.kind, "source": known.source, "about": known.about}
    if known is not None and not is_cached(reference):
        facts = {name: getattr(known, name) for name in ("name", "parameters", "context", "licence")}
        return {"reference": reference, **facts, **about, "cached": False, "download_megabytes": known.megabytes}
    files = resolve(reference, progress=progress(quiet))
    return {**asdict(files), "folder": str(files.folder), **about, "cached": True}


@app.command()
def pull(
    reference: Reference,
    openvino: Annotated[
        bool, typer.Option("--openvino", help="Export it to OpenVINO now, as its first use would: for images.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    offline: Offline = False,
) -> None:
    """Fetch and convert a model, so that it works offline from then on."""
    from rung.models.reference import resolve

    files = resolve(reference, progress=progress(quiet))
    if openvino:
        from rung.engines.opening import export_ahead

        export_ahead(files, progress=progress(quiet))
    if json:
        print_json({**asdict(files), "folder": str(files.folder)})
    else:
        typer.echo(f"{files.name}: {_count(files.parameters)} parameters in {files.folder}")


@app.command()
def path(reference: Reference) -> None:
    """Print the folder of a model that is here."""
    from rung.errors import ModelError
    from rung.models.reference import is_cached, resolve

    if not is_cached(reference):
        raise ModelError("model-not-cached", f"{reference} was not pulled yet", hint=f"rung models pull {reference}")
    typer.echo(resolve(reference).folder)


@app.command()
def search(
    task: Annotated[str | None, typer.Option(help="What for: summarization, extraction, ...")] = None,
    language: Annotated[str | None, typer.Option(help="A language code its maker lists, such as de.")] = None,
    licence: Annotated[str | None, typer.Option(help="permissive, or an identifier such as mit.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory to run in, such as 16GB.")] = None,
    context: Annotated[str | None, typer.Option(help="Tokens to read at least, such as 32k.")] = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Ask the Hub for newer facts first.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    offline: Offline = False,
) -> None:
    """List open models that suit, by their published facts, with memory and speed for this machine."""
    from rung.machine import this_machine
    from rung.models import open_models

    task, memory_bytes, tokens = _task(task), _size(memory, "--memory"), _size(context, "--context")
    if refresh:
        _refresh(quiet)
    wanted = open_models.Wanted(task, _language(language), _licence_named(licence), memory_bytes, tokens)
    found, machine = open_models.search(wanted), this_machine()
    if json:
        print_json(
            {
                "wanted": asdict(wanted),
                "models": [open_models.as_dict(model, machine) for model in found.suitable],
                "unknown": [{"id": model.id, "fact": fact} for model, fact in found.unknown],
            }
        )
    else:
        _print_found(found, wanted, machine)


def _task(name: str | None) -> str | None:
    from rung.models.open_models import TASKS

    if name is not None and name not in TASKS:
        near = get_close_matches(name, TASKS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(TASKS)}"
        raise ConfigError("unknown-name", f"no task is named {name!r}", hint=hint)
    return name


def _language(code: str | None) -> str | None:
    """Check that a language is written as the catalogue writes them."""
    from rung.models.open_models import load

    if code is None or re.fullmatch("[a-z]{2,3}", lowered := code.strip().lower()):
        return code and lowered
    known = sorted({listed for model in load() for listed in model.languages or ()})
    raise ConfigError(
        "unknown-name", f"{code!r} is no code of a language",
        hint=f"write German as de; makers list {', '.join(known)}",
    )  # fmt: skip


def _licence_named(name: str | None) -> str | None:
    """Check a licence's name against those of the catalogue."""
    from rung.models.open_models import load

    known = ["permissive", *sorted({model.licence for model in load() if model.licence})]
    if name is None or (lowered := name.strip().lower()) in known:
        return name and lowered
    raise ConfigError(
        "unknown-name", f"no model of the catalogue has the licence {name!r}", hint=f"give {', '.join(known)}"
    )


def _size(text: str | None, option: str) -> int | None:
    from rung.models.open_models import bytes_of, tokens_of

    if text is None:
        return None
    size = (bytes_of if option == "--memory" else tokens_of)(text)
    if size is None or size <= 0:
        example = "16GB" if option == "--memory" else "32k"
        raise ConfigError("bad-option", f"{option} {text!r} is no size", hint=f"write {option} {example}")
    return size


def _refresh(quiet: bool) -> None:
    from datetime import UTC, datetime

    from rung.models import open_models

    count, failures = open_models.refresh(datetime.now(UTC).date().isoformat(), progress=progress(quiet))
    sys.stderr.write(f"{count} models refreshed from the Hub\n")
    for failure in failures:
        sys.stderr.write(f"not refreshed: {failure}\n")


def _print_found(found: Found, wanted: Wanted, machine: Machine) -> None:
    from rich.console import Console

    console = Console()
    for line in _lines(found, wanted, machine, console.width):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for line in _notes(found, wanted, machine):
        console.print(line, highlight=False, markup=False, style="dim")


def _lines(found: Found, wanted: Wanted, machine: Machine, width: int) -> Iterator[str]:
    """Yield the table: a line per model where that fits into `width` columns, else two, the name on its own."""
    from rung.models.open_models import TASKS

    if not found.suitable:
        return
    benchmarks = TASKS[wanted.task] if wanted.task else ("IFEval", "MMLU")
    names = ["model", *(model.id for model in found.suitable)]
    heads = ["size", "context", "fits in", "bf16", "int4", "tokens/s", *benchmarks]
    facts = _aligned([heads, *(_row(model, benchmarks, wanted, machine) for model in found.suitable)])
    licences = ["licence", *(_licence(model) for model in found.suitable)]
    longest = max(map(len, names))
    if longest + 2 + len(facts[0]) + 2 + max(map(len, licences)) <= width:
        for name, fact, licence in zip(names, facts, licences, strict=True):
            yield f"{name:{longest}}  {fact}  {licence}"
        return
    for name, fact, licence in zip(names, facts, licences, strict=True):
        yield f"{name:{longest}}  {licence}"
        yield f"  {fact}"


def _row(model: OpenModel, benchmarks: Sequence[str], wanted: Wanted, machine: Machine) -> list[str]:
    """Return the figures of one model, in the order of the table's columns."""
    needed, speed = model.memory(), model.tokens_per_second(machine)
    scores = [model.score(name) for name in benchmarks]
    return [
        _count(model.parameters) if model.parameters else "unknown",
        "unknown" if model.context is None else _tokens(model.scaled_context or model.context),
        model.fits(wanted.memory or machine.memory_bytes) or "-",
        *(f"{needed[name] / 1e9:.1f} GB" if needed else "unknown" for name in ("bf16", "int4")),
        "unknown" if speed is None else f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}",
        *(f"{score.value:.1f}" if score else "-" for score in scores),
    ]


def _licence(model: OpenModel) -> str:
    return f"{model.licence or 'unknown'}{', gated' if model.access == 'gated' else ''}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return each row as one line, its cells pushed to the right under those of the others."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [" ".join(f"{cell:>{size}}" for cell, size in zip(row, widths, strict=True)) for row in rows]


def _notes(found: Found, wanted: Wanted, machine: Machine) -> Iterator[str]:
    if not found.suitable:
        yield "no model of the catalogue is known to suit"
    for fact in dict.fromkeys(fact for _, fact in found.unknown):
        names = ", ".join(model.id for model, missing in found.unknown if missing == fact)
        yield f"{fact} not known, so left out: {names}"
    limit = wanted.memory or machine.memory_bytes
    yield (
        f"fits in: the finest precision whose weights and 1 GiB of room fit into {limit / 1e9:.0f} GB "
        "(long prompts take more); tokens/s: prompt tokens in fp32, foreseen from this machine's measured rate"
    )
    yield (
        "Scores are those that makers published, in their own settings (--json names source and date): "
        "`model: [a, b]` in a task compares models on its rows."
    )


def _tokens(context: int) -> str:
    return f"{context // 1024}k" if context >= 1024 else str(context)


def _count(parameters: int) -> str:
    """Write a number of parameters the short way: 135M, 7.2B."""
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.0f}M"


# --------------------
# `rung doctor` and `rung cache`.


cache = typer.Typer(help="Remembered answers: where, how much, and forget them.", no_args_is_help=True)

LOCAL = ("torch", "transformers", "peft", "sentence-transformers", "scikit-learn", "openvino-genai", "optimum-intel")


def register_machine(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("doctor")(doctor)
    app.add_typer(cache, name="cache")


def doctor(json: Json = False) -> None:
    """Say what this machine has, what is missing, and how to get it."""
    from rung.engines.opening import explain
    from rung.machine import this_machine
    from rung.models.cache import cache_dir, offline

    machine = this_machine()
    found: dict[str, Any] = {
        "cores": machine.cores,
        "memory_gib": round(machine.memory_bytes / 2**30, 1),
        "gflops_fp32": round(machine.flops / 1e9),
        "cache": str(cache_dir()),
        "offline": offline(),
        "engine": explain("embedded", "auto"),
        "packages": {name: _version(name) for name in LOCAL},
    }
    missing = [name for name, there in found["packages"].items() if there is None]
    found["missing"] = missing
    found["gpu"] = None if "torch" in missing else _gpu()
    if json:
        print_json(found)
        return
    typer.echo(f"machine   {found['cores']} cores, {found['memory_gib']} GiB, {found['gflops_fp32']} GFLOP/s fp32")
    typer.echo(f"gpu       {found['gpu'] or 'none'}")
    typer.echo(f"cache     {found['cache']}{' (offline)' if found['offline'] else ''}")
    typer.echo(f"engine    {found['engine']}")
    for name, there in found["packages"].items():
        typer.echo(f"{'ok' if there else 'missing':9} {name} {there or ''}")
    if missing:
        typer.echo("hint: uv pip install 'rung[local]'")


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

    typer.echo(store_path())


@cache.command("size")
def cache_size(json: Json = False) -> None:
    """Print how many answers are remembered, and their bytes on disk."""
    from rung.engines.response_cache import open_store, store_path

    entries, size = open_store(store_path()).size()
    if json:
        print_json({"entries": entries, "bytes": size})
    else:
        typer.echo(f"{entries} answers, {size / 2**20:.1f} MiB")


@cache.command("clear")
def cache_clear() -> None:
    """Forget all remembered answers."""
    from rung.engines.response_cache import open_store, store_path

    open_store(store_path()).clear()
    typer.echo("cleared")
