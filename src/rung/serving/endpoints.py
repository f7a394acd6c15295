"""GET /v1/models, and artifacts that come and go while the server runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from rung.errors import RungError
from rung.serving.chat import FAILURES
from rung.serving.context import Context, context_of
from rung.serving.errors import Refused
from rung.serving.schemas import LoadRequest
from rung.serving.served import Base, Encoder, ModelNotFoundError, ServedArtifact
from rung.serving.visit import visit_of

router = APIRouter(prefix="/v1", tags=["OpenAI"])
loading = APIRouter(prefix="/v1/artifacts", tags=["Rung"])


@router.get("/models", responses=FAILURES)
async def models(request: Request) -> Response:
    """List what is served: base models, encoders and artifacts."""
    return JSONResponse({"object": "list", "data": [_model(one) for one in context_of(request).served.all()]})


@router.get("/models/{model:path}", responses=FAILURES)
async def model(model: str, request: Request) -> Response:
    """Describe one of them."""
    return JSONResponse(_model(context_of(request).find(model)))


@loading.put("/{name}", responses=FAILURES)
async def load(name: str, body: LoadRequest, request: Request) -> Response:
    """Serve an artifact under a name, in place of what is served under it now; nothing is answered by halves."""
    context = _administered(request)
    try:
        served = await context.render(
            context.served.load, _inside(context, body.folder), name, replace=_is_artifact(context, name)
        )
    except RungError as error:
        raise Refused(409, error.code, str(error)) from error
    return JSONResponse(_model(served))


@loading.delete("/{name}", responses=FAILURES)
async def unload(name: str, request: Request) -> Response:
    """Stop serving an artifact."""
    context = _administered(request)
    context.find(name)
    try:
        context.served.unload(name)
    except RungError as error:
        raise Refused(409, error.code, str(error)) from error
    return JSONResponse({"id": name, "object": "model", "deleted": True})


def _administered(request: Request) -> Context:
    """Return the context, if the request may change what is served."""
    context, key = context_of(request), visit_of(request).key
    if context.load_from is None:
        raise Refused(403, "loading-off", "artifacts are not loaded over HTTP here: serve with `--load-from FOLDER`")
    if context.keyed and not (key and key.admin):
        raise Refused(403, "not-admin", "this key may not: make one with `rung keys create --admin`")
    return context


def _inside(context: Context, folder: str) -> Path:
    """Return a folder below the one that artifacts are loaded from; a link or `..` that leads out is refused."""
    assert context.load_from is not None
    root = context.load_from.resolve()
    try:
        path = (root / folder).resolve()
    except (OSError, ValueError):
        path = root
    if path == root or not path.is_relative_to(root):
        raise Refused(403, "outside", f"{folder!r} is not inside the folder that artifacts are loaded from")
    return path


def _is_artifact(context: Context, name: str) -> bool:
    try:
        return isinstance(context.served.find(name), ServedArtifact)
    except ModelNotFoundError:
        return False


def _model(one: Base | Encoder | ServedArtifact) -> dict[str, Any]:
    told: dict[str, Any]
    if isinstance(one, ServedArtifact):
        artifact = one.artifact
        told = {
            "kind": "artifact",
            "task": artifact.shape.task,
            "inputs": list(artifact.shape.inputs),
            "output": artifact.shape.kind,
            "rungs": list(artifact.path),
            "model": artifact.model if one.base is None else one.base.name,
            "fingerprint": one.fingerprint,
        }
        if one.trial is not None:
            record = one.trial.record
            told["trial"] = {
                "id": record.token,
                "mode": record.mode,
                "share": record.share,
                "artifact": record.artifact,
            }
    elif isinstance(one, Encoder):
        told = {"kind": "encoder"}
    else:
        info = one.engine.info
        told = {"kind": "model", "engine": info.engine, "parameters": info.parameters, "context": info.context}
    return {"id": one.name, "object": "model", "created": one.created, "owned_by": "rung", "rung": told}
