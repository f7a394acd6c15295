"""`rung serve`: an OpenAI-compatible server of artifacts and base models; `rung keys`: its API keys."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, get_args
from urllib.parse import quote

from typer import Argument, Option

from rung.cli import options, render
from rung.cli.help import CommandGroup
from rung.errors import ConfigError, EngineError, needed_by
from rung.feedback.records import REGISTRY, STORE

if TYPE_CHECKING:
    from rung.feedback.api import FeedbackService
    from rung.progress import Progress
    from rung.serving.served import LongTexts, Served, ServedArtifact

KeyFile = Annotated[Path, Option("--key-file", help="The file of hashed keys.", metavar="FILE")]
keys = CommandGroup(help="Manage the API keys of `rung serve`.", no_args_is_help=True)


def serve(
    artifacts: Annotated[
        list[str] | None,
        Argument(help="Artifacts, run folders, base models, or tasks with documents and no rows; NAME=FOLDER names it.",
                 metavar="ARTIFACT..."),
    ] = None,
    model: Annotated[list[str] | None, Option(help="Serve this base model as well.")] = None,
    encoder: Annotated[list[str] | None, Option(help="Serve this sentence encoder as well.")] = None,
    alias: Annotated[
        list[str] | None, Option(help="One more name of what is served.", metavar="NAME=SERVED")
    ] = None,
    long_texts: Annotated[
        str | None, Option(help="What encoders do with texts beyond their limit: refuse (default), or window.")
    ] = None,
    host: Annotated[str, Option(help="Address to listen on; beyond loopback keys are needed.")] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    key_file: Annotated[Path | None, Option(help="Require a key of this file.", metavar="FILE")] = None,
    allow_host: Annotated[list[str] | None, Option(help="A Host header to answer to.")] = None,
    allow_origin: Annotated[list[str] | None, Option(help="Another site whose pages may use the API.")] = None,
    load_from: Annotated[
        Path | None, Option(help="Let artifacts below this folder be loaded over HTTP.", metavar="FOLDER")
    ] = None,
    on_demand: Annotated[
        Path | None, Option(help="Serve the artifacts in this folder by their names, each from its first request on.",
                            metavar="FOLDER")
    ] = None,
    keep: Annotated[
        int | None, Option(min=1, help="Most artifacts of --on-demand that are served at once; 16 by default.")
    ] = None,
    queue: Annotated[int, Option(min=1, help="Most answers waited for; beyond it: 429.")] = 512,
    max_body: Annotated[int, Option(min=1024, help="Longest request, in bytes.")] = 4 * 2**20,
    per_address: Annotated[
        int, Option(min=1, help="Most connections of one address; all behind a proxy have its address.")
    ] = 1024,
    drain: Annotated[float, Option(min=0, help="Seconds to finish answers in at the end.")] = 30.0,
    conversation: Annotated[
        str, Option(help="What artifacts read of several messages: the last, condense, or refuse.")
    ] = "last",
    engine: Annotated[str | None, Option(help="What runs base models; auto by default.")] = None,
    capture: Annotated[str, Option(help="What is recorded: off, sampled or on.")] = "off",
    sample: Annotated[
        float | None, Option(min=0, max=1, help="The share that --capture sampled records; 0.1 by default.")
    ] = None,
    store: options.StorePlace = STORE,
    redact: Annotated[list[str] | None, Option(help="Do not keep what this matches.", metavar="NAME=REGEX")] = None,
    registry: Annotated[
        Path | None, Option(help="Serve what is promoted in this folder, and follow it.", metavar="FOLDER")
    ] = None,
    pages: Annotated[bool, Option("--pages/--no-pages", help="Serve web pages as well as the API.")] = True,
    runs: Annotated[Path, Option(help="The climbs that the pages show.", metavar="FOLDER")] = options.RUN_FOLDERS,
    start: Annotated[
        Path | None, Option(help="Let the pages climb on the tasks in this folder, and take uploaded rows into it.",
                            metavar="FOLDER")
    ] = None,
    quiet: options.QuietFlag = False, offline: options.Offline = False,
) -> None:  # fmt: skip
    """Serve artifacts and base models to OpenAI's clients, and pages to people."""
    if not (artifacts or model or encoder or registry or on_demand):
        hint = "rung serve FOLDER, or rung serve --model embedded"
        raise ConfigError("bad-option", "there is nothing to serve", hint=hint)
    options.only_with("--on-demand", on_demand, keep=keep)
    options.only_with("--capture sampled", capture == "sampled", sample=sample)
    options.only_with("--capture", capture != "off", redact=redact)
    options.only_with("--pages", pages, start=start)
    with needed_by("serving", extra="serve", error=EngineError):
        from rung.climbing.trust import check_allowed
        from rung.serving.access import KeyRing, access_rules
        from rung.serving.app import BACKLOG, HttpServer, app_with, exiting_on_sigterm, listen
        from rung.serving.conversations import ConversationPolicy
        from rung.serving.limits import RequestLimits
        from rung.serving.metrics import CAPTURE
        from rung.serving.on_demand import MOST, OnDemand
        from rung.serving.served import LongTexts, Served
        from rung.serving.web.site import PageSources
        from rung.serving.web.starter import Starter

    ring = None if key_file is None else KeyRing(key_file)
    names, sites = frozenset(name.lower() for name in allow_host or ()), frozenset(allow_origin or ())
    access = access_rules(host, ring, hosts=names, origins=sites)
    beyond = None if long_texts is None else options.choose("--long-texts", long_texts, get_args(LongTexts))
    policy = options.choose("--conversation", conversation, get_args(ConversationPolicy))
    patterns = dict(options.pairs("--redact", redact, "'customer=C[0-9]{8}': what matches is kept as its name"))
    by_name = None if on_demand is None else OnDemand(_folder(on_demand, "--on-demand"), keep or MOST, check_allowed)
    starter = None
    if start is not None:
        out = ("--out", str(runs.absolute()))
        captured = ("--registry", str((registry or REGISTRY).absolute()))
        place = store if "://" in store else str(Path(store).absolute())  # in the environment: a URL has a password
        starter = Starter(
            _folder(start, "--start").absolute(), {"RUNG_STORE": place}, out,
            None if capture == "off" and registry is None else captured,
        )  # fmt: skip
    # A port that is taken is an error before models are loaded.
    with listen(host, port) as socket, exiting_on_sigterm():
        served, limits = Served(), RequestLimits(body_bytes=max_body, queue=queue, per_address=per_address)
        _load(served, artifacts or [], model or [], encoder or [], engine, beyond, options.progress(quiet))
        with _capturing(served, capture, sample, store, patterns, registry) as wiring:
            for name, target in options.pairs("--alias", alias, "gpt-4o-mini=embedded"):
                served.alias(name, target)
            app = app_with(
                served, access=access, limits=limits, load_from=load_from, conversation=policy,
                on_demand=by_name,
                recorder=None if wiring is None else wiring.capture, routers=() if wiring is None else wiring.routers,
                pages=PageSources(runs, None if wiring is None else wiring.store, registry, starter) if pages else None,
            )  # fmt: skip
            if wiring is not None:
                app.state.rung.metrics.watch("rung_capture", CAPTURE, lambda: wiring.capture.counts)
            url = f"http://{f'[{host}]' if ':' in host else host}:{socket.getsockname()[1]}"
            render.note(f"serving {', '.join(each.name for each in served.all())}")
            if pages:
                render.note(f"pages: {url}/")
            if asked := next(iter(served.artifacts()), None):
                render.note(f"Next: {_curl(url, asked, with_key=ring is not None)}")
            socket.listen(BACKLOG)  # who reads the address may ask at once
            render.say(f"{url}/v1")
            sys.stdout.flush()
            HttpServer(app, drain_seconds=drain).run(sockets=[socket])


def _curl(url: str, asked: ServedArtifact, *, with_key: bool) -> str:
    """The command that asks an artifact for one answer."""
    chat = asked.artifact.signature.kind == "chat"
    row = {name: [{"role": "user", "content": "..."}] if chat else "..." for name in asked.artifact.signature.inputs}
    key = " -H 'Authorization: Bearer KEY'" if with_key else ""
    body = shlex.quote(json.dumps({"rows": [row]}))
    return f"curl {url}/v1/tasks/{quote(asked.name)}/predict{key} -H 'Content-Type: application/json' -d {body}"


def _folder(path: Path, option: str) -> Path:
    if not path.is_dir():
        raise ConfigError("no-such-file", f"{option}: {path} is not a folder", hint="check the path")
    return path


@contextmanager
def _capturing(
    served: Served, mode: str, rate: float | None, store: str, patterns: dict[str, str], registry: Path | None
) -> Iterator[FeedbackService | None]:
    """Capture answers and follow the registry, if either was asked for; at the end, everything is written."""
    if mode == "off" and registry is None:
        yield None
        return
    from rung.feedback.api import build_capture
    from rung.feedback.capture import CaptureMode, Redactor
    from rung.serving.context import key_of, reviewers_only

    rate = (0.1 if rate is None else rate) if mode == "sampled" else 1.0
    wiring = build_capture(
        store, mode=options.choose("--capture", mode, get_args(CaptureMode)), rate=rate,
        redact=Redactor(own=patterns), key_of=key_of, registry=registry, allowed=reviewers_only,
        labels=served.labels,
        load=lambda folder, name: served.load(folder, name, replace=True),
        challenge=lambda name, what: served.withdraw(name) if what is None else served.challenge(name, *what),
    )  # fmt: skip
    try:
        yield wiring
    finally:
        wiring.close()


def _load(
    served: Served,
    artifacts: list[str],
    models: list[str],
    encoders: list[str],
    engine: str | None,
    long_texts: LongTexts | None,
    progress: Progress,
) -> None:
    from rung.artifact.files import artifact_folder
    from rung.climbing.trust import permits_of
    from rung.models.checkpoint import is_encoder
    from rung.models.reference import is_endpoint, resolve

    for text in artifacts:
        if not _is_model(text):
            continue
        options.named(text)
        embeds = not is_endpoint(text) and is_encoder(resolve(text, progress=progress))
        (encoders if embeds else models).append(text)
    options.only_with("--model", models, engine=engine)
    options.only_with("--encoder", encoders, long_texts=long_texts)
    for reference in models:
        options.named(reference)
        served.add_model(reference, engine=engine or "auto", progress=progress)
    for reference in encoders:
        options.named(reference)
        served.add_encoder(reference, long_texts=long_texts or "refuse", progress=progress)
    for text in artifacts:
        if _is_model(text):
            continue
        named = "=" in text and not Path(text).exists()
        name, folder = text.split("=", 1) if named else (None, text)
        if not options.is_asked(Path(folder)):
            home = artifact_folder(Path(folder))
            options.consent_to(permits_of(home), home)
            served.load(home, name, progress=progress)
            continue
        with TemporaryDirectory() as scratch:  # what is served is loaded whole
            served.load(
                options.artifact_or_asking(Path(folder)).save(Path(scratch) / "asking"), name, progress=progress
            )


def _is_model(text: str) -> bool:
    """Say whether an argument names a base model or an encoder, as people write `serve MODEL`, and no artifact."""
    from rung.artifact.files import MANIFEST
    from rung.models import embedded
    from rung.models.reference import hub_name, is_cached, is_endpoint

    path = Path(text)
    if path.is_dir():
        return (path / "config.json").is_file() and not (path / MANIFEST).is_file()
    if embedded.find(text) is not None or is_endpoint(text) or path.suffix.lower() == ".gguf":
        return True
    # Without a folder of that name, ORG/NAME is a Hub id; with the parent folder there, it is a misspelled path.
    return hub_name(text) is not None and (is_cached(text) or not path.parent.is_dir())


@keys.command("create")
def create(
    key_file: KeyFile,
    name: Annotated[str, Option(help="Whose key it is.")] = "",
    per_minute: Annotated[int | None, Option(min=1, help="Most requests a minute.")] = None,
    admin: Annotated[bool, Option("--admin", help="It may load artifacts, start climbs, review and promote.")] = False,
    reviewer: Annotated[bool, Option("--reviewer", help="It may review failures.")] = False,
    json: options.Json = False,
) -> None:
    """Create a key and print it, this once; the file keeps its hash."""
    from rung.serving.access import create_key

    secret, key = create_key(key_file, name, per_minute=per_minute, admin=admin, reviewer=reviewer)
    render.result(json, {"id": key.id, "key": secret}, secret)
    if not json:
        render.note(f"key {key.id}, kept as a hash in {key_file}; it is not shown again")


@keys.command("list")
def show(key_file: KeyFile, json: options.Json = False) -> None:
    """List the keys of a file, without the keys."""
    from rung.serving.access import read_keys

    for key in read_keys(key_file):
        values = {name: getattr(key, name) for name in ("id", "name", "created", "per_minute", "admin", "reviewer")}
        rate = "" if key.per_minute is None else f"  {key.per_minute} a minute"
        role = "  admin" if key.admin else "  reviewer" if key.reviewer else ""
        render.result(json, values, f"{key.id}  {key.created}  {key.name}{rate}{role}")


@keys.command("revoke")
def revoke(key_file: KeyFile, key_id: Annotated[str, Argument(help="Its id.", metavar="ID")]) -> None:
    """Take a key out of the file; a running server refuses it from then on."""
    from rung.serving.access import revoke_key

    revoke_key(key_file, key_id)
    render.note(f"key {key_id} is revoked")
