"""POST /v1/tasks/NAME/predict: rows in, answers with confidence out."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from rung.errors import DataError
from rung.parts import Answer
from rung.serving.answering import answers_of, checked_row, told_of
from rung.serving.chat_api import FAILURES
from rung.serving.context import context_of
from rung.serving.errors import Refused
from rung.serving.identity import new_id
from rung.serving.recording import record_answer
from rung.serving.schemas import PredictRequest
from rung.serving.served import ServedArtifact, scheduled
from rung.serving.visit import visit_of

router = APIRouter(prefix="/v1/tasks", tags=["Rung"])


@router.post("/{name}/predict", responses=FAILURES)
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
    artifact, engine = scheduled(served)
    if engine is not None:
        visit.at_end(engine.leave)
    answers = await context.answer(answers_of, artifact, rows)
    reasons = engine.reasons if engine is not None and len(engine.reasons) == len(rows) else []
    predictions = []
    for number, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        identity = new_id("pred")
        finish = reasons[number] if reasons else "stop"
        record_answer(context.recorder, served, row, answer, visit, identity=identity, finish=finish)
        predictions.append({"id": identity, "finish_reason": finish, **_prediction(served, answer, body.top)})
    prompt = sum(answer.prompt_tokens for answer in answers)
    completion = sum(answer.completion_tokens for answer in answers)
    context.metrics.used(name, prompt, completion)
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    told = {"object": "predictions", "task": served.artifact.shape.task, "artifact": served.fingerprint}
    return JSONResponse({**told, "predictions": predictions, "usage": usage})


def _prediction(served: ServedArtifact, answer: Answer, top: int) -> dict[str, Any]:
    told = {"output": answer.text, **told_of(served.artifact, answer)}
    if top and answer.probabilities:
        ranked = sorted(zip(served.artifact.shape.labels, answer.probabilities, strict=True), key=lambda one: -one[1])
        told["top"] = [{"label": label, "probability": chance} for label, chance in ranked[:top]]
    return told
