"""`rung models`: which base models there are, what they are, and where they lie."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from rung.cli.options import Json, Offline, Quiet, print_json, progress

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
    from rung.models.catalogue import EMBEDDED
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
    from rung.models.catalogue import find
    from rung.models.reference import is_cached, resolve

    known = find(reference)
    about = {} if known is None else {"kind": known.kind, "source": known.source, "about": known.about}
    if known is not None and not is_cached(reference):
        facts = {name: getattr(known, name) for name in ("name", "parameters", "context", "licence")}
        return {"reference": reference, **facts, **about, "cached": False, "download_megabytes": known.megabytes}
    files = resolve(reference, progress=progress(quiet))
    return {**asdict(files), "folder": str(files.folder), **about, "cached": True}


@app.command()
def pull(reference: Reference, json: Json = False, quiet: Quiet = False, offline: Offline = False) -> None:
    """Fetch and convert a model, so that it works offline from then on."""
    from rung.models.reference import resolve

    files = resolve(reference, progress=progress(quiet))
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


def _count(parameters: int) -> str:
    """Write a number of parameters the short way: 135M, 7.2B."""
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.0f}M"
