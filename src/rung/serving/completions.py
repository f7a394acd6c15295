"""POST /v1/chat/completions and POST /v1/completions: one reply for both, whole or streamed.

Text completions also give the log-likelihood of a given text (`echo`), which evaluation harnesses ask for.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from rung.artifact.decoder import Answer, finish
from rung.engines.base import Delta
from rung.engines.local import LocalModel
from rung.errors import ConfigError
from rung.models.thinking import split_thought
from rung.serving.context import Context, RequestContext
from rung.serving.conversations import condensed, last_message, left_out
from rung.serving.limits import Refused
from rung.serving.requests import (
    PlannedRequest,
    RowRequest,
    TextRequest,
    answer_fields,
    calls_in,
    chat_request,
    completion_requests,
)
from rung.serving.scheduler import Completion
from rung.serving.schemas import ChatMessage, ChatRequest, CompletionRequest, ErrorResponse
from rung.serving.served import Servable, ServedArtifact, ServedEncoder, scheduled
from rung.serving.shadows import new_id
from rung.serving.streams import (
    CompletionStream,
    SpelledToken,
    TrimmedText,
    chat_logprobs,
    event_stream,
    spelled,
    spelled_piece,
    text_logprobs,
)

FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 401, 403, 404, 408, 413, 429, 500, 503)
}
router = APIRouter(prefix="/v1", tags=["OpenAI"], responses=FAILURES)


@router.post("/chat/completions")
async def chat(body: ChatRequest, context: Context) -> Response:
    """Answer a conversation with a base model, or a request with an artifact."""
    return await (await begin_chat(context, body, ChatReply)).send()


async def begin_chat(context: RequestContext, body: ChatRequest, kind: Callable[..., ChatReply]) -> ChatReply:
    """Plan a chat completion and begin it; `kind` makes the reply."""
    target = await context.server.need(body.model)
    if isinstance(target, ServedEncoder):
        raise Refused(400, "no-chat", f"{body.model} embeds texts and writes none", param="model")
    if body.n > (most := context.server.limits.choices):
        raise Refused(400, "too-many-choices", f"`n` may be {most} here", param="n")
    context.admit(body.n)
    body, notes = await _one_message(context, target, body)
    request = await context.server.render(chat_request, target, body)
    return kind(context, body, [request], notes)


async def _one_message(
    context: RequestContext, target: Servable, body: ChatRequest
) -> tuple[ChatRequest, dict[str, Any]]:
    """Reduce a conversation to the message that a task's artifact reads, and say what was left out."""
    policy, messages = context.server.conversation, body.messages
    if not isinstance(target, ServedArtifact) or target.artifact.signature.kind == "chat" or len(messages) == 1:
        return body, {}
    if policy == "refuse":
        return body, {}  # `row_of` refuses it
    text = last_message(messages)
    notes: dict[str, Any] = {"left_out": left_out(messages)}
    if policy == "condense" and any(message.role in ("user", "assistant") for message in messages[:-1]):
        _, engine = scheduled(target)
        if engine is None:
            hint = "send one message, or serve it with --conversation last"
            problem = f"{body.model} has no language model that could condense a conversation"
            raise ConfigError("bad-request", problem, hint=hint)
        context.exits.callback(engine.leave)
        written = await context.server.answer(condensed, engine, messages)
        text = written.text.strip() or text
        notes |= {"read": text, "condensing_tokens": written.prompt_tokens + written.completion_tokens}
    message = ChatMessage(role="user", content=text)
    return body.model_copy(update={"messages": [message]}), notes


@router.post("/completions")
async def complete(body: CompletionRequest, context: Context) -> Response:
    """Continue texts with a base model, or answer them with an artifact."""
    target = await context.server.need(body.model)
    if isinstance(target, ServedEncoder):
        raise Refused(400, "no-completions", f"{body.model} embeds texts and writes none", param="model")
    wanted, most = len(body.prompts) * body.n, context.server.limits.choices
    if wanted > most:
        message = f"prompts times `n` is {wanted}; {most} are allowed"
        raise Refused(400, "too-many-choices", message, param="prompt")
    context.admit(wanted)
    requests = await context.server.render(completion_requests, target, body)
    return await TextReply(context, body, requests).send()


def usage_of(prompt: int, completion: int) -> dict[str, int]:
    """Format the token counts of a response."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _after_thought(completion: Completion) -> Completion:
    thought, text = split_thought(completion.text)
    return replace(completion, text=text, reasoning=completion.reasoning or thought)


class Reply(ABC):
    """The response to one request; subclasses format its choices."""

    object: ClassVar[str]
    chunk_object: ClassVar[str]
    prefix: ClassVar[str]  # of its id
    rung_in_choice: ClassVar[bool]  # whether a choice holds what only Rung says of an answer, or the response

    def __init__(
        self, context: RequestContext, body: ChatRequest | CompletionRequest, requests: Sequence[PlannedRequest],
        notes: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        self._context, self._body = context, body
        self._notes = notes  # what was left out of the conversation
        self._id, self._created = new_id(self.prefix), int(time.time())
        self._prompt_tokens = self._completion_tokens = 0
        self._rung: dict[str, Any] = {}
        self._begun: list[tuple[PlannedRequest, CompletionStream | None]] = []
        for request in requests:  # all prompts begin at once: the engine runs them side by side
            stream = None
            if isinstance(request, TextRequest) and body.max_tokens != 0:
                stream = CompletionStream(request.base.scheduler, request.requests, context)
            self._begun.append((request, stream))

    async def send(self) -> Response:
        """Answer, whole or streamed."""
        if self._body.stream:
            return await event_stream(self._chunks())
        body = {**self._head(self.object), "choices": await self._whole(), "usage": self._usage()}
        return JSONResponse(body | self._rung)

    async def _whole(self) -> list[dict[str, Any]]:
        """Answer all prompts to the end."""
        choices: list[dict[str, Any]] = []
        for number, (request, stream) in enumerate(self._begun):
            choices += await self._choices(request, stream, number, len(choices))
        return choices

    async def _chunks(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the chunks of a stream; the very last one has what only Rung says of the whole response."""
        head, last = self._head(self.chunk_object), None
        async for choice in self._streamed():
            if last is not None:
                yield {**head, "choices": [last]}
            last = choice if choice["finish_reason"] else None
            if last is None:
                yield {**head, "choices": [choice]}
        usage, options = self._usage(), self._body.stream_options
        with_usage = options is not None and options.include_usage
        if last is not None:
            yield {**head, "choices": [last], **({} if with_usage else self._rung)}
        if with_usage:
            yield {**head, "choices": [], "usage": usage, **self._rung}

    async def _streamed(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the choices of all chunks, one prompt after another."""
        first = 0
        for number, (request, stream) in enumerate(self._begun):
            if isinstance(request, RowRequest) or stream is None or request.tools:  # only its end shows a tool call
                choices = await self._choices(request, stream, number, first)
                for choice in choices:
                    for part in self._parts(choice):
                        yield part
                first += len(choices)
                continue
            trimmed = [TrimmedText() if request.served else None for _ in stream.completions]
            begun: set[int] = set()
            async for index, delta in stream:
                if not begun and number == 0:
                    self._context.server.metrics.first_token.labels(self._body.model).observe(self._context.seconds)
                trim = trimmed[index]
                piece = replace(delta, text=trim.more(delta.text)) if trim else delta
                parts = list(self._piece_parts(request, piece, begun=index in begun))
                begun.add(index)
                if not stream.unfinished:
                    self._add_rung(parts[-1], self._finish(request, stream.completions, number))
                for part in parts:
                    yield {"index": first + index, **part}
            first += len(stream.completions)

    async def _choices(
        self, request: PlannedRequest, stream: CompletionStream | None, number: int, first: int
    ) -> list[dict[str, Any]]:
        """Answer prompt `number` to the end; its choices count from `first`."""
        if isinstance(request, RowRequest):
            ((answer, finish),) = await self._context.answer_rows(request.served, [request.row])
            self._context.record(request.served, request.row, answer, identity=self._name(number), finish=finish)
            counts = answer.prompt_tokens, answer.completion_tokens
            completions = [Completion(answer.written or answer.text, [], [], *counts, finish, answer.reasoning)]
            self._count(completions)
            completions *= request.choices
            rung = self._answer_fields(request.served, answer)
            if request.without_effect:
                rung["rung"]["without_effect"] = list(request.without_effect)
        elif stream is None:
            completions = [Completion(prompt_tokens=len(each.prompt), finish="length") for each in request.requests]
            self._count(completions)
            rung = {}
        else:
            completions = await stream.finish()
            rung = self._finish(request, completions, number)
            if request.served:
                completions = [_after_thought(each) for each in completions]
        choices = []
        for index, completion in enumerate(completions, start=first):
            choice = {"index": index, "logprobs": None, "finish_reason": completion.finish}
            choices.append(choice | await self._formatted(request, completion))
        self._add_rung(choices[0], rung)
        return choices

    def _finish(self, request: TextRequest, completions: Sequence[Completion], number: int) -> dict[str, Any]:
        """Count finished completions and record the first; return what only Rung says of it."""
        self._count(completions)
        recorded, served = completions[0], request.served
        if served is None or request.rendered is None:
            self._context.record_plain(request.base, request.inputs, recorded, identity=self._name(number))
            return {}
        counts = recorded.prompt_tokens, recorded.completion_tokens, self._context.seconds
        answer = Answer(recorded.text.strip(), None, None, *counts, request.rendered.messages)
        answer = finish(served.artifact, answer, request.rendered)
        self._context.record(served, request.inputs, answer, identity=self._name(number), finish=recorded.finish)
        return self._answer_fields(served, answer)

    def _answer_fields(self, served: ServedArtifact, answer: Answer) -> dict[str, Any]:
        return {"rung": {"artifact": served.fingerprint, **answer_fields(served.artifact, answer), **self._notes}}

    def _add_rung(self, choice: dict[str, Any], rung: dict[str, Any]) -> None:
        (choice if self.rung_in_choice else self._rung).update(rung)

    def _count(self, completions: Sequence[Completion]) -> None:
        self._prompt_tokens += completions[0].prompt_tokens
        self._completion_tokens += sum(completion.completion_tokens for completion in completions)

    def _usage(self) -> dict[str, int]:
        self._context.server.metrics.used(self._body.model, self._prompt_tokens, self._completion_tokens)
        return usage_of(self._prompt_tokens, self._completion_tokens)

    def _name(self, number: int) -> str:
        """Name the record of a prompt's answer; that of the first has the response's own id."""
        return self._id if number == 0 else f"{self._id}-{number}"

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._body.model}

    async def _tokens(
        self, request: TextRequest, completion: Completion, top: int | None, *, echo: bool = False
    ) -> list[SpelledToken]:
        """Spell the tokens of a completion, after those of its prompt with `echo`.

        With `top`, all log-probabilities come from a second pass over the finished text.
        """
        engine = request.base.engine
        if not isinstance(engine, LocalModel):
            return []  # an endpoint does not say which tokens it wrote
        tokens, logprobs, scores = completion.tokens, completion.logprobs, None
        if top is not None:
            prompt = engine.tokens(request.requests[0].prompt)
            future = request.base.scheduler.read([(*prompt, *tokens)], top, request.requests[0].adapter)
            scores = (await self._context.server.answer(future.result))[0].after(0 if echo else len(prompt))
            tokens, logprobs = [*prompt, *tokens] if echo else tokens, scores.logprobs.tolist()
        return await self._context.server.render(spelled, engine.tokenizer, tokens, logprobs, scores)

    @abstractmethod
    async def _formatted(self, request: PlannedRequest, completion: Completion) -> dict[str, Any]:
        """Format a finished completion as fields of a choice."""

    @abstractmethod
    def _parts(self, choice: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Split a finished choice into the choices of a stream's chunks."""

    @abstractmethod
    def _piece_parts(self, request: TextRequest, piece: Delta, *, begun: bool) -> Iterator[dict[str, Any]]:
        """Format a piece as choices of a stream's chunks."""


class ChatReply(Reply):
    """A chat completion."""

    object, chunk_object, prefix, rung_in_choice = "chat.completion", "chat.completion.chunk", "chatcmpl", False
    _body: ChatRequest

    async def _formatted(self, request: PlannedRequest, completion: Completion) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": completion.text, "refusal": None}
        if completion.reasoning:
            message["reasoning_content"] = completion.reasoning
        choice: dict[str, Any] = {"message": message}
        if isinstance(request, RowRequest):
            return choice
        text = message["content"] = completion.text.strip() if request.served else completion.text
        if request.tools and (calls := calls_in(text, request.tools, request.must)):
            message |= {"content": None, "tool_calls": calls}
            if completion.finish == "stop":
                choice["finish_reason"] = "tool_calls"
        if self._body.logprobs:
            tokens = await self._tokens(request, completion, self._body.top_logprobs or None)
            choice["logprobs"] = chat_logprobs([token for token in tokens if token.start < len(completion.text)])
        return choice

    def _parts(self, choice: dict[str, Any]) -> Iterator[dict[str, Any]]:
        message = choice.pop("message")
        if "reasoning_content" in message:
            thought = {"role": "assistant", "content": None, "reasoning_content": message["reasoning_content"]}
            yield {**choice, "delta": thought, "logprobs": None, "finish_reason": None}
        delta: dict[str, Any] = {"role": "assistant", "content": message["content"]}
        if "tool_calls" in message:
            delta["tool_calls"] = [{"index": i, **call} for i, call in enumerate(message["tool_calls"])]
        yield {**choice, "delta": delta, "finish_reason": None}
        yield {**choice, "delta": {}, "logprobs": None}

    def _piece_parts(self, request: TextRequest, piece: Delta, *, begun: bool) -> Iterator[dict[str, Any]]:
        logprobs, engine = None, request.base.engine
        if self._body.logprobs and piece.tokens and isinstance(engine, LocalModel):
            logprobs = chat_logprobs(spelled_piece(engine.tokenizer, piece))
        if piece.text or logprobs or not begun:
            delta = {"content": piece.text} if begun else {"role": "assistant", "content": piece.text}
            yield {"delta": delta, "logprobs": logprobs, "finish_reason": None}
        if piece.reason is not None:
            yield {"delta": {}, "logprobs": None, "finish_reason": piece.reason}


class TextReply(Reply):
    """A text completion."""

    object, chunk_object, prefix, rung_in_choice = "text_completion", "text_completion", "cmpl", True
    _body: CompletionRequest

    async def _formatted(self, request: PlannedRequest, completion: Completion) -> dict[str, Any]:
        body, choice = self._body, {"text": completion.text}
        if isinstance(request, RowRequest):
            return choice
        text, engine = completion.text.strip() if request.served else completion.text, request.base.engine
        if body.echo and isinstance(engine, LocalModel):
            text = engine.tokenizer.decode(engine.tokens(request.requests[0].prompt)) + text
        logprobs = None
        if body.logprobs is not None:
            top = max(1, body.logprobs) if body.echo or body.logprobs else None
            tokens = await self._tokens(request, completion, top, echo=body.echo)
            logprobs = text_logprobs(tokens, top=body.logprobs > 0)
        return {"text": text, "logprobs": logprobs}

    def _parts(self, choice: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield choice

    def _piece_parts(self, request: TextRequest, piece: Delta, *, begun: bool) -> Iterator[dict[str, Any]]:  # noqa: ARG002
        logprobs, engine = None, request.base.engine
        if self._body.logprobs is not None and isinstance(engine, LocalModel):
            logprobs = text_logprobs(spelled_piece(engine.tokenizer, piece), top=False)
        if piece.text or logprobs or piece.reason is not None:
            yield {"text": piece.text, "logprobs": logprobs, "finish_reason": piece.reason}
