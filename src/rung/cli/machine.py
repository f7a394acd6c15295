"""`rung doctor` and `rung cache`."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import typer

from rung.cli.options import Json, print_json

cache = typer.Typer(help="Remembered answers: where, how much, and forget them.", no_args_is_help=True)

LOCAL = ("torch", "transformers", "peft", "sentence-transformers", "scikit-learn", "openvino-genai", "optimum-intel")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("doctor")(doctor)
    app.add_typer(cache, name="cache")


def doctor(json: Json = False) -> None:
    """Say what this machine has, what is missing, and how to get it."""
    from rung.engines.engine_choice import explain
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
