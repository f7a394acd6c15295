"""The OpenAPI description, with an endpoint of its own for each task that is served now."""

from __future__ import annotations

import copy
from typing import Any

from fastapi import FastAPI

from rung.serving.served import Served, ServedArtifact

ANY_TASK = "/v1/tasks/{name}/predict"


def describe_tasks(app: FastAPI, served: Served) -> None:
    """Make the application describe every served task with its own columns and labels."""
    plain = app.openapi

    def described() -> dict[str, Any]:
        document = copy.deepcopy(plain())
        for one in served.artifacts():
            document["paths"][f"/v1/tasks/{one.name}/predict"] = _task(document["paths"][ANY_TASK], one)
        return document

    app.openapi = described  # type: ignore[method-assign]


def _task(any_task: dict[str, Any], one: ServedArtifact) -> dict[str, Any]:
    """Return the endpoint of one task."""
    path = copy.deepcopy(any_task)
    operation = path["post"]
    operation["operationId"] = f"predict_{one.name}"
    operation["summary"] = f"Answer rows of the task {one.artifact.shape.task}"
    operation["parameters"] = []
    row = {
        "type": "object",
        "properties": {column: _column(one) for column in one.artifact.shape.inputs},
        "required": list(one.artifact.shape.inputs),
        "additionalProperties": False,
    }
    body = {
        "type": "object",
        "properties": {
            "rows": {"type": "array", "minItems": 1, "items": row},
            "top": {"type": "integer", "minimum": 0, "maximum": 1000, "default": 0},
        },
        "required": ["rows"],
        "additionalProperties": False,
    }
    operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    operation["responses"]["200"] = {
        "description": "One prediction per row, in order.",
        "content": {"application/json": {"schema": _predictions(one)}},
    }
    return path


def _column(one: ServedArtifact) -> dict[str, Any]:
    if one.artifact.shape.kind != "chat":
        return {}  # any value: what is no text is shown to the model as JSON
    turn = {
        "type": "object",
        "properties": {
            "role": {"enum": ["system", "user", "assistant", "tool"]},
            "content": {"type": "string"},
        },
        "required": ["role", "content"],
    }
    return {"type": "array", "minItems": 1, "items": turn}


def _predictions(one: ServedArtifact) -> dict[str, Any]:
    output: dict[str, Any] = {"type": "string"}
    if one.artifact.shape.labels:
        output["enum"] = list(one.artifact.shape.labels)
    prediction = {
        "type": "object",
        "properties": {
            "id": {"type": "string"},
            "output": output,
            "confidence": {"type": ["number", "null"]},
            "finish_reason": {"type": "string"},
        },
        "required": ["id", "output", "confidence", "finish_reason"],
    }
    return {
        "type": "object",
        "properties": {
            "object": {"const": "predictions"},
            "task": {"type": "string"},
            "artifact": {"type": "string"},
            "predictions": {"type": "array", "items": prediction},
            "usage": {"type": "object"},
        },
        "required": ["object", "task", "artifact", "predictions", "usage"],
    }
