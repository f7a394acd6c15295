"""POST /v1/embeddings."""

from __future__ import annotations

import base64
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from rung.engines.base import Floats
from rung.serving.chat import FAILURES
from rung.serving.context import context_of
from rung.serving.errors import Refused
from rung.serving.schemas import EmbeddingRequest
from rung.serving.served import Base, Encoder
from rung.serving.visit import visit_of

router = APIRouter(prefix="/v1", tags=["OpenAI"])


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
