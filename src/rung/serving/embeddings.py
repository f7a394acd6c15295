"""POST /v1/embeddings: unit vectors of a sentence encoder, or mean hidden states of a base model."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from rung.engines.local import LocalModel
from rung.engines.opening import open_encoder
from rung.errors import ConfigError
from rung.models.tokenizer import Tokenizer
from rung.serving.completions import FAILURES
from rung.serving.context import Context
from rung.serving.limits import Refused
from rung.serving.schemas import EmbeddingRequest
from rung.serving.served import ServedArtifact, ServedEncoder, ServedModel

router = APIRouter(prefix="/v1", tags=["OpenAI"], responses=FAILURES)
TOGETHER = 64  # texts that run at once; other requests run between two such parts of a large one


@router.post("/embeddings")
async def embed(body: EmbeddingRequest, context: Context) -> Response:
    """Embed texts, or the token ids of texts."""
    target = await context.server.need(body.model)
    if isinstance(target, ServedArtifact):
        raise Refused(400, "no-embeddings", f"{body.model} is an artifact: ask its base model", param="model")
    texts = await context.server.render(texts_of, target, body.inputs)
    context.admit(min(len(texts), TOGETHER))
    parts, tokens = [], 0
    for first in range(0, len(texts), TOGETHER):
        vectors, count = await context.server.answer(target.embed, texts[first : first + TOGETHER])
        if body.dimensions not in (None, vectors.shape[1]):
            problem = f"vectors of {body.model} have {vectors.shape[1]} dimensions, and no others"
            raise Refused(400, "invalid-request", problem, param="dimensions")
        parts.append(vectors)
        tokens += count
    context.server.metrics.used(body.model, tokens, 0)
    encoded: list[Any] = np.concatenate(parts).tolist()
    if body.encoding_format == "base64":
        encoded = [base64.b64encode(vector.astype("<f4").tobytes()).decode() for part in parts for vector in part]
    data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(encoded)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse({"object": "list", "model": body.model, "data": data, "usage": usage})


def texts_of(target: ServedModel | ServedEncoder, inputs: Sequence[str] | Sequence[Sequence[int]]) -> list[str]:
    """Read texts, or the texts of which these are the token ids; check that the encoder reads each as a whole."""
    if not isinstance(inputs[0], str):
        if isinstance(target, ServedEncoder):
            tokenizer: Tokenizer | None = open_encoder(target.reference).tokenizer
        else:
            tokenizer = target.engine.tokenizer if isinstance(target.engine, LocalModel) else None
        inputs = [_text(tokenizer, cast("Sequence[int]", ids)) for ids in inputs]
    texts = list(cast("Sequence[str]", inputs))
    if isinstance(target, ServedEncoder):
        target.check(texts)
    return texts


def _text(tokenizer: Tokenizer | None, ids: Sequence[int]) -> str:
    """Find the text of token ids; ids that the model's own tokenizer would not write are another tokenizer's."""
    if tokenizer is not None and max(ids) < tokenizer.vocabulary_size:
        text = tokenizer.decode(ids)
        if tuple(ids) == tokenizer.encode_whole(text):
            return text
    raise ConfigError(
        "bad-request", "`input` has token ids that are not those of this model's tokenizer, special tokens included",
        hint="send text; in LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False)",
    )  # fmt: skip
