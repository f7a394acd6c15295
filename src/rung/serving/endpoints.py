"""GET /v1/models, and artifacts that come and go while the server runs."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from rung.artifact.parts import Answer
from rung.engines.base import Floats
from rung.errors import DataError, RungError
from rung.serving.artifacts import answering, answers_of, checked_row, told_of
from rung.serving.chat import FAILURES
from rung.serving.context import Context, context_of, new_id, record_answer
from rung.serving.front import Visit, visit_of
from rung.serving.limits import Refused
from rung.serving.schemas import EmbeddingRequest, LoadRequest, PredictRequest
from rung.serving.served import Base, Encoder, ModelNotFoundError, ServedArtifact, scheduled

if TYPE_CHECKING:
    from fastapi import FastAPI

    from rung.feedback.capture import Capture


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


# --------------------
# POST /v1/tasks/NAME/predict: rows in, answers with confidence out.


tasks_router = APIRouter(prefix="/v1/tasks", tags=["Rung"])


@tasks_router.post("/{name}/predict", responses=FAILURES)
async def predict(name: str, body: PredictRequest, request: Request) -> Response:
    """Answer rows as `rung predict` does."""
    context, visit = context_of(request), visit_of(request)
    served = context.find(name)
    if not isinstance(served, ServedArtifact):
        raise Refused(404, "no-task", f"{name!r} is no artifact, so it has no task")
    if len(body.rows) > context.limits.choices:
        raise Refused(400, "too-many-rows", f"{context.limits.choices} rows are allowed at once", param="rows")
    rows = []
    for number, values in enumerate(body.rows):
        try:
            rows.append(checked_row(served.artifact, values))
        except DataError as error:
            raise Refused(400, error.code, f"rows[{number}]: {error}; {error.hint}", param="rows") from error
    visit.admit(len(rows))
    by = [answering(served, row) for row in rows]
    answers = await _answered(context, visit, by, rows)
    predictions = []
    for one, row, (answer, finish) in zip(by, rows, answers, strict=True):
        identity = new_id("pred")
        record_answer(context, one, row, answer, visit, identity=identity, finish=finish)
        predictions.append({"id": identity, "finish_reason": finish, **_prediction(one, answer, body.top)})
    prompt = sum(answer.prompt_tokens for answer, _ in answers)
    completion = sum(answer.completion_tokens for answer, _ in answers)
    context.metrics.used(name, prompt, completion)
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    told = {"object": "predictions", "task": served.artifact.shape.task, "artifact": served.fingerprint}
    return JSONResponse({**told, "predictions": predictions, "usage": usage})


async def _answered(
    context: Context, visit: Visit, by: Sequence[ServedArtifact], rows: Sequence[Mapping[str, Any]]
) -> list[tuple[Answer, str]]:
    """Answer every row by its artifact, those of the same one together; return why each answer ended as well."""
    found: dict[int, tuple[Answer, str]] = {}
    for served in dict.fromkeys(by):
        places = [place for place, one in enumerate(by) if one is served]
        artifact, engine = scheduled(served)
        if engine is not None:
            visit.at_end(engine.leave)
        answers = await context.answer(answers_of, artifact, [rows[place] for place in places])
        known = engine is not None and len(engine.reasons) == len(places)
        reasons = engine.reasons if engine is not None and known else ["stop"] * len(places)
        found |= dict(zip(places, zip(answers, reasons, strict=True), strict=True))
    return [found[place] for place in range(len(rows))]


def _prediction(served: ServedArtifact, answer: Answer, top: int) -> dict[str, Any]:
    told = {"output": answer.text, "artifact": served.fingerprint, **told_of(served.artifact, answer)}
    if top and answer.probabilities:
        ranked = sorted(zip(served.artifact.shape.labels, answer.probabilities, strict=True), key=lambda one: -one[1])
        told["top"] = [{"label": label, "probability": chance} for label, chance in ranked[:top]]
    return told


# --------------------
# POST /v1/embeddings.


@router.post("/embeddings", responses=FAILURES)
async def embed(body: EmbeddingRequest, request: Request) -> Response:
    """Return unit vectors of texts: of a sentence encoder, or mean hidden states of a base model."""
    context, visit = context_of(request), visit_of(request)
    target = context.find(body.model)
    texts = [body.input] if isinstance(body.input, str) else body.input
    if len(texts) > context.limits.choices:
        raise Refused(400, "too-many-texts", f"{context.limits.choices} texts are allowed at once", param="input")
    visit.admit(len(texts))
    if isinstance(target, Encoder):
        vectors, tokens = await context.answer(target.embed, texts)
    elif isinstance(target, Base):
        vectors, tokens = await context.answer(_embed, target, texts)
    else:
        raise Refused(400, "no-embeddings", f"{body.model} is an artifact: ask its base model", param="model")
    context.metrics.used(body.model, tokens, 0)
    data = [
        {"object": "embedding", "index": i, "embedding": _written(vector, body.encoding_format)}
        for i, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse({"object": "list", "model": body.model, "data": data, "usage": usage})


def _embed(base: Base, texts: list[str]) -> tuple[Floats, int]:
    tokens = sum(len(base.engine.encode(text)) for text in texts)
    return base.scheduler.embed(texts).result(), tokens


def _written(vector: Any, form: str) -> Any:
    return vector.tolist() if form == "float" else base64.b64encode(vector.astype("<f4").tobytes()).decode()


# --------------------
# GET /health, /ready and /metrics: for those who run the server.


health_router = APIRouter(tags=["Operation"])


@health_router.get("/health")
async def health() -> Response:
    """Say that the process lives."""
    return JSONResponse({"status": "ok"})


@health_router.get("/ready", responses={503: {"description": "It ends, and takes nothing new."}})
async def ready(request: Request) -> Response:
    """Say whether requests are taken: everything is loaded, and the server is not ending."""
    yes = context_of(request).ready
    return JSONResponse({"status": "ready" if yes else "ending"}, status_code=200 if yes else 503)


@health_router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Tell Prometheus what happened so far."""
    return Response(context_of(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)


# --------------------
# What the endpoints of `rung.feedback` need of this server: who asks, who may review, and what capture dropped.


def key_of(request: Request) -> str | None:
    """Return the id of the key that a request came with."""
    key = visit_of(request).key
    return None if key is None else key.id


def reviewers_only(request: Request) -> None:
    """Refuse requests whose key may not review: what is corrected is trained on.

    Raises:
        HTTPException: it may not.
    """
    key = visit_of(request).key
    if key is None or not key.admin:
        raise HTTPException(403, "this key may not review: make one with `rung keys create --admin`")


def watch_capture(app: FastAPI, capture: Capture) -> None:
    """Show among the metrics what became of the interactions that were offered to a capture."""
    told = {
        "offered": "Interactions offered to capture.",
        "left_out": "Interactions that the mode of capture leaves out.",
        "dropped": "Interactions lost: the queue was full, or the store could not be written.",
        "waiting": "Interactions that wait to be written.",
        "written": "Interactions in the store.",
    }
    app.state.rung.metrics.watch("rung_capture", told, lambda: capture.counts)
