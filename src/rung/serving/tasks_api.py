"""POST /v1/tasks/NAME/predict: rows in, answers with confidence out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from rung.artifact.parts import Answer
from rung.errors import DataError
from rung.serving.artifacts import answers_of, checked_row, told_of
from rung.serving.chat import FAILURES
from rung.serving.context import Context, context_of
from rung.serving.errors import Refused
from rung.serving.identity import new_id
from rung.serving.recording import record_answer
from rung.serving.schemas import PredictRequest
from rung.serving.served import ServedArtifact, scheduled
from rung.serving.trials import answering
from rung.serving.visit import Visit, visit_of

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
