"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from rung.artifact.parts import Answer
from rung.engines.base import Delta, GenerateRequest
from rung.engines.local import LocalModel
from rung.models.tokenizer import Tokenizer
from rung.serving.artifacts import Direct, Plan, answer_of, answers_of, plan_chat, told_of
from rung.serving.context import Context, context_of, new_id, record_answer, record_plain
from rung.serving.front import Visit, visit_of
from rung.serving.limits import Refused
from rung.serving.schemas import ChatRequest, Error
from rung.serving.served import Encoder, ending, scheduled
from rung.serving.streams import Made, Running, Token, Trimmed, chat_logprobs, event_stream, spelled
from rung.serving.tools import calls_in

router = APIRouter(prefix="/v1", tags=["OpenAI"])
FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": Error} for status in (400, 401, 403, 404, 408, 413, 429, 500, 503)
}


@router.post("/chat/completions", responses=FAILURES)
async def chat(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation with a base model, or a request with an artifact."""
    context, visit = context_of(request), visit_of(request)
    target = context.find(body.model)
    if isinstance(target, Encoder):
        raise Refused(400, "no-chat", f"{body.model} embeds texts and writes none", param="model")
    if body.n > context.limits.choices:
        raise Refused(400, "too-many-choices", f"`n` may be {context.limits.choices} here", param="n")
    visit.admit(body.n)
    plan = await context.render(plan_chat, target, body)
    reply = _Reply(context, visit, body)
    if isinstance(plan, Direct):
        return await reply.direct(plan)
    running = Running(plan.base.scheduler, plan.requests, visit)
    if body.stream:
        return await event_stream(reply.events(plan, running))
    return await reply.whole(plan, running)


class _Reply:
    """The answer to one request, whole or in pieces."""

    def __init__(self, context: Context, visit: Visit, body: ChatRequest) -> None:
        self._context, self._visit, self._body = context, visit, body
        self._id = new_id("chatcmpl")
        self._created = int(time.time())

    # ---- an artifact's own way

    async def direct(self, plan: Direct) -> Response:
        """Answer through `Artifact.answer`."""
        answer, finish = await answer_row(self._context, self._visit, plan)
        record_answer(self._context, plan.served, plan.row, answer, self._visit, identity=self._id, finish=finish)
        usage = _usage(answer.prompt_tokens, answer.completion_tokens)
        self._context.metrics.used(self._body.model, answer.prompt_tokens, answer.completion_tokens)
        told = said(plan, answer)
        message = _message(answer.written or answer.text)
        choices = [
            {"index": index, "message": message, "logprobs": None, "finish_reason": finish}
            for index in range(plan.choices)
        ]
        if self._body.stream:
            return await event_stream(self._at_once(choices, usage, told))
        return JSONResponse(self._body_of(choices, usage, told))

    # ---- completions

    async def whole(self, plan: Plan, running: Running) -> Response:
        """Answer when everything is there."""
        made = await running.finish()
        choices, usage, told = await self._ended(plan, made)
        return JSONResponse(self._body_of(choices, usage, told))

    async def events(self, plan: Plan, running: Running) -> AsyncIterator[dict[str, Any]]:
        """Yield the chunks of a stream."""
        if not plan.in_pieces:
            made = await running.finish()
            choices, usage, told = await self._ended(plan, made)
            async for chunk in self._at_once(choices, usage, told):
                yield chunk
            return
        trimmed = [Trimmed() if plan.served else None for _ in plan.requests]
        begun: set[int] = set()
        left = len(plan.requests)
        end: dict[str, Any] = {}
        async for index, delta in running:
            if not begun:
                self._context.metrics.first.labels(self._body.model).observe(self._visit.seconds)
            one = trimmed[index]
            text = delta.text if one is None else one.more(delta.text)
            logprobs = None
            if self._body.logprobs and delta.tokens and isinstance(plan.base.engine, LocalModel):
                logprobs = chat_logprobs(without_end(plan.base.engine.tokenizer, delta))
            if index not in begun:
                begun.add(index)
                yield self._chunk(index, {"role": "assistant", "content": text}, logprobs=logprobs)
            elif text or logprobs:
                yield self._chunk(index, {"content": text}, logprobs=logprobs)
            if delta.reason is not None:
                left -= 1
                end = self._chunk(index, {}, finish=delta.reason)
                if left:
                    yield end
        usage, told = self._close(plan, running.made)
        for chunk in self._last(end, usage, told):
            yield chunk

    async def _ended(self, plan: Plan, made: Sequence[Made]) -> tuple[list[dict[str, Any]], dict[str, Any], Any]:
        """Return choices, usage and what is said of an artifact."""
        choices = [await self._choice(plan, i, one) for i, one in enumerate(made)]
        usage, told = self._close(plan, made)
        return choices, usage, told

    async def _choice(self, plan: Plan, index: int, made: Made) -> dict[str, Any]:
        text = made.text.strip() if plan.served else made.text
        finish: str = made.finish
        message = _message(text)
        if plan.tools and (calls := calls_in(text, plan.tools, plan.must)):
            message = {**_message(None), "tool_calls": calls}
            finish = "tool_calls" if finish == "stop" else finish
        logprobs = None
        if self._body.logprobs:
            logprobs = await chat_token_logprobs(
                self._context, plan, plan.requests[index], made, self._body.top_logprobs
            )  # fmt: skip
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}

    def _close(self, plan: Plan, made: Sequence[Made]) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Count and record what was answered; the first choice is what is kept."""
        prompt, completion = made[0].prompt_tokens, sum(one.completion_tokens for one in made)
        self._context.metrics.used(self._body.model, prompt, completion)
        return _usage(prompt, completion), keep(self._context, self._visit, plan, made[0], self._id)

    # ---- shapes

    async def _at_once(
        self, choices: Sequence[dict[str, Any]], usage: dict[str, Any], told: dict[str, Any] | None
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield a finished answer as a stream."""
        end: dict[str, Any] = {}
        for choice in choices:
            if end:
                yield end
            message = choice["message"]
            delta: dict[str, Any] = {"role": "assistant", "content": message["content"]}
            if "tool_calls" in message:
                delta["tool_calls"] = [{"index": i, **call} for i, call in enumerate(message["tool_calls"])]
            yield self._chunk(choice["index"], delta, logprobs=choice["logprobs"])
            end = self._chunk(choice["index"], {}, finish=choice["finish_reason"])
        for chunk in self._last(end, usage, told):
            yield chunk

    def _last(self, end: dict[str, Any], usage: dict[str, Any], told: dict[str, Any] | None) -> list[dict[str, Any]]:
        """Return the last chunks of a stream: the end of the choice that ends last, and usage where it is asked for.

        What only Rung says (what the answer cites among it) is known when all is written; the very last one has it.
        """
        options = self._body.stream_options
        if options is None or not options.include_usage:
            return [{**end, **extra(told)}]
        return [end, {**self._head("chat.completion.chunk"), "choices": [], "usage": usage, **extra(told)}]

    def _chunk(
        self, index: int, delta: dict[str, Any], *, logprobs: dict[str, Any] | None = None, finish: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _body_of(
        self, choices: Sequence[dict[str, Any]], usage: dict[str, Any], told: dict[str, Any] | None
    ) -> dict[str, Any]:
        return {**self._head("chat.completion"), "choices": list(choices), "usage": usage, **extra(told)}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._body.model}


# ---- shared with the other endpoints


async def answer_row(context: Context, visit: Visit, plan: Direct) -> tuple[Answer, str]:
    """Answer one row in the artifact's own way; return why it ended as well."""
    artifact, engine = scheduled(plan.served)
    if engine is not None:
        visit.at_end(engine.leave)
    answers = await context.answer(answers_of, artifact, [plan.row])
    return answers[0], ending(engine)


def said(plan: Direct | Plan, answer: Answer) -> dict[str, Any]:
    """Return what only Rung says of an answer: confidence, the artifact's fingerprint, and what it cites."""
    assert plan.served is not None
    return {"artifact": plan.served.fingerprint, **told_of(plan.served.artifact, answer)}


def keep(context: Context, visit: Visit, plan: Plan, made: Made, identity: str) -> dict[str, Any] | None:
    """Record what was generated; return what is said of an artifact's answer."""
    tokens = made.prompt_tokens, made.completion_tokens
    if plan.served is None or plan.rendered is None:
        record_plain(
            context.recorder, plan.base, plan.inputs, made.text, tokens, visit, identity=identity, finish=made.finish
        )
        return None
    answer = answer_of(plan.served.artifact, plan.rendered, made.text, *tokens, visit.seconds)
    record_answer(context, plan.served, plan.inputs, answer, visit, identity=identity, finish=made.finish)
    return said(plan, answer)


async def chat_token_logprobs(
    context: Context, plan: Plan, request: GenerateRequest, made: Made, top: int | None
) -> dict[str, Any] | None:
    """Return the log-probabilities of an answer's tokens, the one that ends it left out.

    With `top` they all come from a second pass over the finished text, by the engine that says how likely a text is.
    """
    engine = plan.base.engine
    if not isinstance(engine, LocalModel):
        return chat_logprobs([])  # an endpoint's engine does not tell which tokens it wrote
    tokens, logprobs, scores = list(made.tokens), list(made.logprobs), None
    if top:
        prompt = engine.tokens(request.prompt)
        future = plan.base.scheduler.read([(*prompt, *tokens)], top, request.adapter)
        scored = (await context.answer(future.result))[0].behind(len(prompt))
        scores, logprobs = scored, scored.logprobs.tolist()
    said_tokens = await context.render(spelled, engine.tokenizer, tokens, logprobs, scores)
    return chat_logprobs([token for token in said_tokens if token.start < len(made.text)])


def without_end(tokenizer: Tokenizer, delta: Delta) -> list[Token]:
    """Return the tokens of a piece, the one that ends an answer left out."""
    pairs = [pair for pair in zip(delta.tokens, delta.logprobs, strict=True) if pair[0] not in tokenizer.eos_ids]
    return spelled(tokenizer, [token for token, _ in pairs], [value for _, value in pairs])


def _message(text: str | None) -> dict[str, Any]:
    return {"role": "assistant", "content": text, "refusal": None}


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def extra(told: dict[str, Any] | None) -> dict[str, Any]:
    """Return what only Rung says of an answer as a field of its own, where there is anything."""
    return {} if told is None else {"rung": told}
