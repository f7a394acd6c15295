"""`rung serve`: artifacts and base models behind an OpenAI-compatible server; `rung keys`: who may ask it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from rung.cli.feedback import StorePlace
from rung.cli.options import Json, Offline, Quiet, print_json, progress
from rung.errors import ConfigError, EngineError, needed_by
from rung.feedback.records import STORE

if TYPE_CHECKING:
    from rung.feedback.api import FeedbackService
    from rung.progress import Progress
    from rung.serving.served import Served

KeyFile = Annotated[Path, typer.Option("--key-file", help="The file of hashed keys.", metavar="FILE")]
keys = typer.Typer(help="Keys that clients of `rung serve` show.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("serve")(serve)
    app.add_typer(keys, name="keys", help="Keys that clients of `rung serve` show.")


def serve(
    artifacts: Annotated[
        list[str] | None, typer.Argument(help="Artifact folders; NAME=FOLDER to choose a name.", metavar="ARTIFACT...")
    ] = None,
    model: Annotated[list[str] | None, typer.Option("--model", help="Serve this base model as well.")] = None,
    encoder: Annotated[list[str] | None, typer.Option("--encoder", help="Serve this sentence encoder as well.")] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; beyond loopback keys are needed.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    key_file: Annotated[
        Path | None, typer.Option("--key-file", help="Ask for a key of this file.", metavar="FILE")
    ] = None,
    allow_host: Annotated[list[str] | None, typer.Option("--allow-host", help="A Host header to answer to.")] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option("--allow-origin", help="Another site whose pages may ask.")
    ] = None,
    load_from: Annotated[
        Path | None,
        typer.Option("--load-from", help="Let artifacts below this folder be loaded over HTTP.", metavar="FOLDER"),
    ] = None,
    queue: Annotated[int, typer.Option("--queue", min=1, help="Most answers waited for; beyond it: 429.")] = 512,
    max_body: Annotated[int, typer.Option("--max-body", min=1024, help="Longest request, in bytes.")] = 4 * 2**20,
    drain: Annotated[float, typer.Option("--drain", min=0, help="Seconds to finish in, when told to end.")] = 30.0,
    engine: Annotated[str, typer.Option("--engine", help="What runs the models of --model.")] = "auto",
    capture: Annotated[str, typer.Option("--capture", help="What is recorded: off, sampled or on.")] = "off",
    sample: Annotated[
        float, typer.Option("--sample", min=0, max=1, help="The share that --capture sampled records.")
    ] = 0.1,
    store: StorePlace = STORE,
    redact: Annotated[
        list[str] | None, typer.Option("--redact", help="Do not keep what this matches.", metavar="NAME=REGEX")
    ] = None,
    registry: Annotated[
        Path | None,
        typer.Option("--registry", help="Serve what is promoted in this folder, and follow it.", metavar="FOLDER"),
    ] = None,
    pages: Annotated[bool, typer.Option("--pages/--no-pages", help="Serve web pages beside the API.")] = True,
    runs: Annotated[Path, typer.Option("--runs", help="The climbs that the pages show.", metavar="FOLDER")] = Path(
        "runs"
    ),
    quiet: Quiet = False,
    offline: Offline = False,
) -> None:
    """Serve artifacts and base models to OpenAI's clients, and pages to people."""
    if not (artifacts or model or encoder or registry):
        raise ConfigError(
            "bad-option", "there is nothing to serve", hint="rung serve FOLDER, or rung serve --model embedded"
        )
    _check_extra()
    from rung.serving.access import KeyRing, access_rules
    from rung.serving.app import HttpServer, app_with, exiting_on_sigterm, listen
    from rung.serving.limits import RequestLimits
    from rung.serving.metrics import CAPTURE
    from rung.serving.served import Served
    from rung.serving.web.site import PageSources

    ring = None if key_file is None else KeyRing(key_file)
    names, sites = frozenset(one.lower() for one in allow_host or ()), frozenset(allow_origin or ())
    access = access_rules(host, ring, hosts=names, origins=sites)
    socket = listen(host, port)  # a port that is taken is said before models are loaded
    with exiting_on_sigterm():
        served = Served()
        _load(served, artifacts or [], model or [], encoder or [], engine, progress(quiet))
        limits = RequestLimits(body_bytes=max_body, queue=queue)
        with _wired(
            served, capture, sample, store, _patterns(redact or []), registry, keyed=ring is not None
        ) as wiring:
            app = app_with(
                served, access=access, limits=limits, load_from=load_from,
                recorder=None if wiring is None else wiring.capture, routers=() if wiring is None else wiring.routers,
                pages=PageSources(runs, None if wiring is None else wiring.store, registry) if pages else None,
            )  # fmt: skip
            if wiring is not None:
                app.state.rung.metrics.watch("rung_capture", CAPTURE, lambda: wiring.capture.counts)
            shown = f"[{host}]" if ":" in host else host
            url = f"http://{shown}:{socket.getsockname()[1]}"
            sys.stderr.write(f"serving {', '.join(one.name for one in served.all())}\n")
            if pages:
                sys.stderr.write(f"pages: {url}/\n")
            typer.echo(f"{url}/v1")
            sys.stdout.flush()
            HttpServer(app, drain_seconds=drain).run(sockets=[socket])


@contextmanager
def _wired(
    served: Served, mode: str, rate: float, store: str, patterns: dict[str, str], registry: Path | None, *, keyed: bool
) -> Iterator[FeedbackService | None]:
    """Open what records and what is promoted; nothing where neither was asked for. Closed, all is written."""
    if mode == "off" and registry is None:
        yield None
        return
    from rung.feedback.api import build_capture
    from rung.feedback.capture import CaptureMode, Redactor
    from rung.serving.context import key_of, reviewers_only

    known = next((one for one in get_args(CaptureMode) if one == mode), None)
    if known is None:
        raise ConfigError("bad-option", f"no mode of capture is named {mode!r}", hint="choose off, sampled or on")
    wiring = build_capture(
        store, mode=known, rate=rate if mode == "sampled" else 1.0, redact=Redactor(own=patterns), key_of=key_of,
        allowed=reviewers_only, registry=registry,
        load=lambda folder, name: served.load(folder, name, replace=True),
        challenge=lambda name, what: served.withdraw(name) if what is None else served.challenge(name, *what),
    )  # fmt: skip
    try:
        yield wiring
    finally:
        wiring.close()


def _patterns(texts: list[str]) -> dict[str, str]:
    patterns = dict(text.partition("=")[::2] for text in texts)
    if unnamed := [name for name, pattern in patterns.items() if not name or not pattern]:
        raise ConfigError(
            "bad-option", f"--redact {unnamed[0]!r} has no name or no pattern",
            hint="write --redact 'customer=C[0-9]{8}': what matches is kept as its name",
        )  # fmt: skip
    return patterns


def _load(
    served: Served, artifacts: list[str], models: list[str], encoders: list[str], engine: str, told: Progress
) -> None:
    for reference in models:
        served.add_model(reference, engine=engine, progress=told)
    for reference in encoders:
        served.add_encoder(reference, progress=told)
    for text in artifacts:
        name, equals, folder = text.partition("=")
        if equals and not Path(text).is_dir():
            served.load(Path(folder), name, progress=told)
        else:
            served.load(Path(text), progress=told)


def _check_extra() -> None:
    with needed_by("serving", extra="serve", error=EngineError):
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401


@keys.command("create")
def create(
    key_file: KeyFile,
    name: Annotated[str, typer.Option("--name", help="Whose key it is.")] = "",
    per_minute: Annotated[int | None, typer.Option("--per-minute", min=1, help="Most requests a minute.")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="It may load artifacts, review failures and promote.")] = False,
    json: Json = False,
) -> None:
    """Make a key and print it, this once; the file keeps its hash."""
    from rung.serving.access import create_key

    secret, key = create_key(key_file, name, per_minute=per_minute, admin=admin)
    if json:
        print_json({"id": key.id, "key": secret})
        return
    typer.echo(secret)
    sys.stderr.write(f"key {key.id}, kept as a hash in {key_file}; it is not shown again\n")


@keys.command("list")
def show(key_file: KeyFile, json: Json = False) -> None:
    """List the keys of a file, without the keys."""
    from rung.serving.access import read_keys

    for key in read_keys(key_file):
        if json:
            print_json({"id": key.id, "name": key.name, "created": key.created, "per_minute": key.per_minute,
                        "admin": key.admin})  # fmt: skip
            continue
        rate = "" if key.per_minute is None else f"  {key.per_minute} a minute"
        typer.echo(f"{key.id}  {key.created}  {key.name}{rate}{'  admin' if key.admin else ''}")


@keys.command("revoke")
def revoke(key_file: KeyFile, key_id: Annotated[str, typer.Argument(help="Its id.", metavar="ID")]) -> None:
    """Take a key out of the file; a running server refuses it from then on."""
    from rung.serving.access import revoke_key

    revoke_key(key_file, key_id)
    sys.stderr.write(f"key {key_id} is revoked\n")
