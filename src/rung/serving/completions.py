"""POST /v1/completions: text that goes on, and the log-likelihood of given text (echo) for evaluation harnesses."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from rung.engines.local import LocalModel
from rung.serving.artifacts import Direct, Plan, plan_text
from rung.serving.chat import FAILURES, answer_row, extra, keep, said, without_end
from rung.serving.context import Context, context_of, new_id, record_answer
from rung.serving.front import Visit, visit_of
from rung.serving.limits import Refused
from rung.serving.schemas import CompletionRequest
from rung.serving.served import Encoder
from rung.serving.streams import Made, Running, Trimmed, event_stream, spelled, text_logprobs

router = APIRouter(prefix="/v1", tags=["OpenAI"])


@router.post("/completions", responses=FAILURES)
async def complete(body: CompletionRequest, request: Request) -> Response:
    """Continue texts with a base model, or answer them with an artifact."""
    context, visit = context_of(request), visit_of(request)
    target = context.find(body.model)
    if isinstance(target, Encoder):
        raise Refused(400, "no-completions", f"{body.model} embeds texts and writes none", param="model")
    wanted = len(body.prompts) * body.n
    if wanted > context.limits.choices:
        raise Refused(
            400, "too-many-choices", f"prompts times `n` is {wanted}; {context.limits.choices} are allowed",
            param="prompt",
        )  # fmt: skip
    visit.admit(wanted)
    plans = await context.render(plan_text, target, body)
    reply = _Reply(context, visit, body)
    if body.stream:
        return await event_stream(reply.events(plans))
    return JSONResponse(await reply.whole(plans))


class _Reply:
    """The answer to one request."""

    def __init__(self, context: Context, visit: Visit, body: CompletionRequest) -> None:
        self._context, self._visit, self._body = context, visit, body
        self._id = new_id("cmpl")
        self._created = int(time.time())

    async def whole(self, plans: Sequence[Plan | Direct]) -> dict[str, Any]:
        """Answer every prompt."""
        begun = [self._begin(plan) for plan in plans]  # all at once: the engine runs them side by side
        choices: list[dict[str, Any]] = []
        prompt_tokens = completion_tokens = 0
        for number, (plan, running) in enumerate(zip(plans, begun, strict=True)):
            if isinstance(plan, Direct):
                direct, one = await self._direct(plan, number, len(choices))
                choices += direct
                made = [one]
            else:
                made = await self._finish(plan, running)
                told = None
                if self._body.max_tokens != 0:
                    told = keep(self._context, self._visit, plan, made[0], self._name(number))
                for index, one in enumerate(made):
                    choice = await self._whole_choice(plan, index, one, len(choices))
                    choices.append({**choice, **extra(told)} if index == 0 else choice)
            prompt_tokens += made[0].prompt_tokens
            completion_tokens += sum(one.completion_tokens for one in made)
        self._context.metrics.used(self._body.model, prompt_tokens, completion_tokens)
        usage = _usage(prompt_tokens, completion_tokens)
        return {**self._head(), "choices": choices, "usage": usage}

    def _begin(self, plan: Plan | Direct) -> Running | None:
        if isinstance(plan, Direct) or self._body.max_tokens == 0:
            return None
        return Running(plan.base.scheduler, plan.requests, self._visit)

    async def _finish(self, plan: Plan, running: Running | None) -> list[Made]:
        if running is not None:
            return await running.finish()
        prompt = plan.requests[0].prompt
        return [Made(prompt_tokens=len(prompt), finish="length") for _ in plan.requests]

    async def _direct(self, plan: Direct, number: int, first: int) -> tuple[list[dict[str, Any]], Made]:
        """Return the choices of an artifact's own answer to a prompt, the first of which is number `first`."""
        answer, finish = await answer_row(self._context, self._visit, plan)
        record_answer(
            self._context, plan.served, plan.row, answer, self._visit, identity=self._name(number), finish=finish
        )
        text = answer.written or answer.text
        choices = [_choice(first + index, text, None, finish) for index in range(plan.choices)]
        choices[0] |= extra(said(plan, answer))
        return choices, Made(prompt_tokens=answer.prompt_tokens, completion_tokens=answer.completion_tokens)

    async def _whole_choice(self, plan: Plan, index: int, made: Made, number: int) -> dict[str, Any]:
        engine = plan.base.engine
        request, text = plan.requests[index], made.text.strip() if plan.served else made.text
        if not isinstance(engine, LocalModel):  # an endpoint's engine does not tell which tokens it wrote
            return _choice(number, text, None if self._body.logprobs is None else text_logprobs([]), made.finish)
        prompt = engine.tokens(request.prompt)
        echoed = engine.tokenizer.decode(prompt) if self._body.echo else ""
        logprobs = None
        if self._body.logprobs is not None:
            tokens, values = [*prompt, *made.tokens], [float("nan")] * len(prompt) + made.logprobs
            scores = None
            if self._body.echo or self._body.logprobs:
                top = max(1, self._body.logprobs)
                future = plan.base.scheduler.read([tuple(tokens)], top, request.adapter)
                scores = (await self._context.answer(future.result))[0]
                values = scores.logprobs.tolist()
            cut = 0 if self._body.echo else len(prompt)
            scores = scores.behind(cut) if scores is not None else None
            shown = await self._context.render(spelled, engine.tokenizer, tokens[cut:], values[cut:], scores)
            logprobs = text_logprobs(shown)
            if not self._body.logprobs:
                logprobs["top_logprobs"] = None
        return _choice(number, echoed + text, logprobs, made.finish)

    async def events(self, plans: Sequence[Plan | Direct]) -> AsyncIterator[dict[str, Any]]:
        """Yield the chunks of a stream, one prompt after another, all begun at once."""
        begun = [self._begin(plan) for plan in plans]
        prompt_tokens = completion_tokens = first = 0
        for number, (plan, running) in enumerate(zip(plans, begun, strict=True)):
            if isinstance(plan, Direct):
                choices, one = await self._direct(plan, number, first)
                for choice in choices:
                    yield {**self._head(), "choices": [choice]}
                made = [one]
                first += len(choices)
            else:
                assert running is not None
                async for choice in self._pieces(plan, running, number):
                    yield {**self._head(), "choices": [{**choice, "index": first + choice["index"]}]}
                made = running.made
                first += len(made)
            prompt_tokens += made[0].prompt_tokens
            completion_tokens += sum(one.completion_tokens for one in made)
        self._context.metrics.used(self._body.model, prompt_tokens, completion_tokens)
        options = self._body.stream_options
        if options is not None and options.include_usage:
            yield {**self._head(), "choices": [], "usage": _usage(prompt_tokens, completion_tokens)}

    async def _pieces(self, plan: Plan, running: Running, number: int) -> AsyncIterator[dict[str, Any]]:
        """Yield what comes of one prompt as choices; the last one has what only Rung says of the answer."""
        trimmed = [Trimmed() if plan.served else None for _ in plan.requests]
        left = len(plan.requests)
        async for index, delta in running:
            one = trimmed[index]
            text = delta.text if one is None else one.more(delta.text)
            logprobs = told = None
            if self._body.logprobs is not None and isinstance(plan.base.engine, LocalModel):
                logprobs = text_logprobs(without_end(plan.base.engine.tokenizer, delta))
                logprobs["top_logprobs"] = None
            if delta.reason is not None:
                left -= 1
                if not left:
                    told = keep(self._context, self._visit, plan, running.made[0], self._name(number))
            if text or logprobs or delta.reason is not None:
                yield {**_choice(index, text, logprobs, delta.reason), **extra(told)}

    def _name(self, number: int) -> str:
        """Return the id under which the answer to a prompt is recorded; that of the first is the response's own."""
        return self._id if number == 0 else f"{self._id}-{number}"

    def _head(self) -> dict[str, Any]:
        return {"id": self._id, "object": "text_completion", "created": self._created, "model": self._body.model}


def _choice(index: int, text: str, logprobs: dict[str, Any] | None, finish: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
