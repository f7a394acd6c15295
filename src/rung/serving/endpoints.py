"""The other endpoints: models, artifacts loaded at run time, predictions, health and metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi import Path as PathPart
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from rung.errors import DataError, RungError
from rung.serving.completions import FAILURES, usage_of
from rung.serving.context import Context, RequestContext
from rung.serving.limits import Refused
from rung.serving.requests import answer_fields, answering, checked_row
from rung.serving.schemas import LoadRequest, PredictRequest
from rung.serving.served import Servable, ServedArtifact, ServedEncoder
from rung.serving.shadows import new_id

router = APIRouter(prefix="/v1", tags=["OpenAI"], responses=FAILURES)
rung_router = APIRouter(prefix="/v1", tags=["Rung"], responses=FAILURES)
operation_router = APIRouter(tags=["Operation"])
NewName = Annotated[str, PathPart(pattern=r"^\w[\w.:-]{0,127}$", description="Letters, digits and . _ : -")]


# ---- models, and artifacts that come and go


@router.get("/models")
async def models(context: Context) -> Response:
    """List what is served: base models, encoders and artifacts."""
    served = context.server.served
    listed = [_described(each) for each in served.all()]
    listed += [_described(context.server.find(name)) | {"id": name} for name in served.aliases]
    return JSONResponse({"object": "list", "data": listed})


@router.get("/models/{model:path}")
async def model(model: str, context: Context) -> Response:
    """Describe one of them."""
    return JSONResponse(_described(await context.server.need(model)) | {"id": model})


@rung_router.put("/artifacts/{name}")
async def load(name: NewName, body: LoadRequest, context: Context) -> Response:
    """Serve an artifact under a name, replacing the artifact of that name; running requests end as they began."""
    folder, server = _loadable(context, body.folder), context.server
    replace = isinstance(server.served.find(name), ServedArtifact)
    try:
        # Not by the threads that render: a few loads that wait for one another would keep all requests waiting.
        served = await asyncio.to_thread(server.served.load, folder, name, replace=replace)
    except RungError as error:
        raise Refused(409, error.code, str(error)) from error
    return JSONResponse(_described(served))


@rung_router.delete("/artifacts/{name}")
async def unload(name: str, context: Context) -> Response:
    """Stop serving an artifact."""
    _administrators_only(context)
    context.server.find(name)
    try:
        context.server.served.unload(name)
    except RungError as error:
        raise Refused(409, error.code, str(error)) from error
    return JSONResponse({"id": name, "object": "model", "deleted": True})


def _administrators_only(context: RequestContext) -> Path:
    """Refuse requests that may not change what is served; return the folder that artifacts are loaded from."""
    if context.server.load_from is None:
        raise Refused(403, "loading-off", "artifacts are not loaded over HTTP here: serve with `--load-from FOLDER`")
    if not context.may_decide:
        raise Refused(403, "not-admin", "this key may not: make one with `rung keys create --admin`")
    return context.server.load_from


def _loadable(context: RequestContext, folder: str) -> Path:
    """Resolve a folder inside the one that artifacts are loaded from; a link or `..` that leads out is refused."""
    root = _administrators_only(context).resolve()
    try:
        path = (root / folder).resolve()
    except (OSError, ValueError):
        path = root
    if path == root or not path.is_relative_to(root):
        raise Refused(403, "outside", f"{folder!r} is not inside the folder that artifacts are loaded from")
    return path


def _described(served: Servable) -> dict[str, Any]:
    described: dict[str, Any]
    if isinstance(served, ServedArtifact):
        artifact = served.artifact
        described = {
            "kind": "artifact", "task": artifact.signature.task, "inputs": list(artifact.signature.inputs),
            "output": artifact.signature.kind, "rungs": list(artifact.path),
            "model": artifact.model if served.base is None else served.base.name, "fingerprint": served.fingerprint,
        }  # fmt: skip
        if served.trial is not None:
            test = served.trial
            described["trial"] = {"id": test.token, "mode": test.mode, "share": test.share, "artifact": test.artifact}
    elif isinstance(served, ServedEncoder):
        described = {"kind": "encoder"}
    else:
        info = served.engine.info
        described = {"kind": "model", "engine": info.engine, "parameters": info.parameters, "context": info.context}
    return {"id": served.name, "object": "model", "created": served.created, "owned_by": "rung", "rung": described}


# ---- predictions


@rung_router.post("/tasks/{name}/predict")
async def predict(name: str, body: PredictRequest, context: Context) -> Response:
    """Answer rows as `rung predict` does."""
    served, most = await context.server.need(name), context.server.limits.choices
    if not isinstance(served, ServedArtifact):
        raise Refused(404, "no-task", f"{name!r} is not an artifact, so it has no task")
    if len(body.rows) > most:
        raise Refused(400, "too-many-rows", f"{most} rows are allowed at once", param="rows")
    rows = []
    for number, values in enumerate(body.rows):
        try:
            rows.append(checked_row(served.artifact, values))
        except DataError as error:
            raise Refused(400, error.code, f"rows[{number}]: {error}; {error.hint}", param="rows") from error
    context.admit(len(rows))
    by = [answering(served, row) for row in rows]
    predictions: list[dict[str, Any]] = [{}] * len(rows)
    prompt = completion = 0
    for artifact in dict.fromkeys(by):  # the rows of each artifact together
        numbers = [number for number, other in enumerate(by) if other is artifact]
        answers = await context.answer_rows(artifact, [rows[number] for number in numbers])
        for number, (answer, finish) in zip(numbers, answers, strict=True):
            identity = new_id("pred")
            context.record(artifact, rows[number], answer, identity=identity, finish=finish)
            fields: dict[str, Any] = {"id": identity, "finish_reason": finish, "output": answer.text}
            fields |= {"artifact": artifact.fingerprint, **answer_fields(artifact.artifact, answer)}
            if body.top and answer.probabilities:
                best = ranked(artifact, answer.probabilities)[: body.top]
                fields["top"] = [{"label": label, "probability": prob} for label, prob in best]
            predictions[number] = fields
            prompt, completion = prompt + answer.prompt_tokens, completion + answer.completion_tokens
    context.server.metrics.used(name, prompt, completion)
    head = {"object": "predictions", "task": served.artifact.signature.task, "artifact": served.fingerprint}
    return JSONResponse({**head, "predictions": predictions, "usage": usage_of(prompt, completion)})


def ranked(served: ServedArtifact, probs: Sequence[float]) -> list[tuple[str, float]]:
    """Sort the labels of an artifact's task, the likeliest first."""
    return sorted(zip(served.artifact.signature.labels, probs, strict=True), key=lambda pair: -pair[1])


# ---- for those who run the server


@operation_router.get("/health")
async def health() -> Response:
    """Say that the process lives."""
    return JSONResponse({"status": "ok"})


@operation_router.get("/ready", responses={503: {"description": "The server is ending and takes no new requests."}})
async def ready(context: Context) -> Response:
    """Say whether the server takes requests: all is loaded, and it is not ending."""
    yes = context.server.ready
    return JSONResponse({"status": "ready" if yes else "ending"}, status_code=200 if yes else 503)


@operation_router.get("/metrics")
async def metrics(context: Context) -> Response:
    """Give Prometheus all metrics."""
    return Response(context.server.metrics.text(), media_type=CONTENT_TYPE_LATEST)
