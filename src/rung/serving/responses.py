"""POST /v1/responses: OpenAI's newer form of a chat, for texts and functions; nothing is stored between requests."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import Field, ValidationError, model_validator

from rung.serving.completions import FAILURES, ChatReply, begin_chat
from rung.serving.context import Context
from rung.serving.schemas import ChatRequest, Name, StrictModel, Tokens
from rung.serving.streams import event_stream

router = APIRouter(prefix="/v1", tags=["OpenAI"], responses=FAILURES)
AS_GIVEN = ("temperature", "top_p", "stream")  # fields that both forms of a chat have
WITHOUT_EFFECT = frozenset(
    {"include", "parallel_tool_calls", "reasoning", "stream_options"}
)  # nothing that they ask for


class ResponsesRequest(StrictModel):
    """POST /v1/responses."""

    model: Name
    input: str | Annotated[list[dict[str, Any]], Field(min_length=1, max_length=2048)]
    instructions: str | None = None
    max_output_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    stream: bool = False
    tools: Annotated[list[dict[str, Any]], Field(max_length=128, default_factory=list)]
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    text: Annotated[dict[str, Any], Field(default_factory=dict)]

    @model_validator(mode="before")
    @classmethod
    def _is_served(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for name in ("previous_response_id", "conversation"):
            if values.get(name) is not None:
                raise ValueError(f"`{name}`: responses are not stored; send the whole conversation as `input`")
        if values.get("truncation") not in (None, "disabled"):
            raise ValueError("`truncation`: a conversation that is too long is refused, never cut")
        given = {key: value for key, value in values.items() if key not in WITHOUT_EFFECT | {"truncation"}}
        return given if given.get("background") else {key: given[key] for key in given if key != "background"}

    def as_chat(self) -> dict[str, Any]:
        """Write it as a chat completion."""
        messages = [{"role": "system", "content": self.instructions}] if self.instructions else []
        if isinstance(self.input, str):
            messages.append({"role": "user", "content": self.input})
        else:
            messages += _messages(self.input)
        body: dict[str, Any] = {name: getattr(self, name) for name in AS_GIVEN}
        body |= {"model": self.model, "messages": messages, "max_completion_tokens": self.max_output_tokens}
        if self.tools:
            body["tools"] = [_nested(tool, "function") for tool in self.tools]
        chosen = self.tool_choice
        body["tool_choice"] = _nested(chosen, "function") if isinstance(chosen, dict) else chosen
        if not self.tools and chosen == "auto":
            body["tool_choice"] = None
        if (form := self.text.get("format")) is not None:
            body["response_format"] = _nested(form, "json_schema")
        return body


def _nested(flat: Any, kind: str) -> Any:
    """Move the fields of a function or schema below its kind, where chat completions have them."""
    if not isinstance(flat, dict) or flat.get("type") != kind:
        return flat
    return {"type": kind, kind: {key: value for key, value in flat.items() if key != "type"}}


def _messages(items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Write the items of a conversation as messages; calls one after another are one turn."""
    messages: list[dict[str, Any]] = []
    for number, item in enumerate(items):
        kind = item.get("type", "message")
        if kind == "message":
            messages.append({key: value for key, value in item.items() if key in ("role", "content")})
        elif kind == "function_call":
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant"})
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            messages[-1].setdefault("tool_calls", []).append({"id": item.get("call_id"), "function": function})
        elif kind == "function_call_output":
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")})
        elif kind != "reasoning":
            where = ("body", "input", number, "type")
            problem = f"items of the type {kind!r} are not served: send messages, function calls and their outputs"
            raise RequestValidationError([{"type": "value_error", "loc": where, "msg": problem}])
    return messages


@router.post("/responses")
async def respond(body: ResponsesRequest, context: Context) -> Response:
    """Answer a conversation with a base model, or a request with an artifact."""
    try:
        chat = ChatRequest.model_validate(body.as_chat())
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error
    return await (await begin_chat(context, chat, partial(ResponsesReply, asked=body))).send()


class ResponsesReply(ChatReply):
    """A response: a list of items, each a message or a call."""

    prefix = "resp"

    def __init__(self, *arguments: Any, asked: ResponsesRequest) -> None:
        super().__init__(*arguments)
        self._asked = asked

    async def send(self) -> Response:
        """Answer, whole or streamed."""
        if self._body.stream:
            return await event_stream(self._events())
        (choice,) = await self._whole()
        message = choice["message"]
        items = [_call(call) for call in message.get("tool_calls", ())] or [_message(message["content"])]
        return JSONResponse(self._response(items, choice["finish_reason"]))

    def _response(self, items: Sequence[Mapping[str, Any]], finish: str | None) -> dict[str, Any]:
        """Format the response; without a finish reason it is under way."""
        asked, cut, usage = self._asked, finish == "length", None
        if finish is not None:
            counts = self._usage()
            usage = {
                "input_tokens": counts["prompt_tokens"], "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": counts["completion_tokens"], "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": counts["total_tokens"],
            }  # fmt: skip
        return {
            "id": self._id, "object": "response", "created_at": self._created, "model": self._body.model,
            "status": "in_progress" if finish is None else "incomplete" if cut else "completed", "output": list(items),
            "usage": usage, "error": None, "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": asked.instructions, "metadata": {}, "parallel_tool_calls": True,
            "temperature": asked.temperature, "top_p": asked.top_p, "tools": asked.tools,
            "tool_choice": asked.tool_choice or "auto", "max_output_tokens": asked.max_output_tokens,
            "previous_response_id": None, "store": False, "text": asked.text or {"format": {"type": "text"}},
            "truncation": "disabled", **self._rung,
        }  # fmt: skip

    async def _events(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the events of a stream, numbered."""
        number = 0
        async for kind, fields in self._steps():
            yield {"type": f"response.{kind}", "sequence_number": number, **fields}
            number += 1

    async def _steps(self) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        message = _message("")
        place = {"item_id": message["id"], "output_index": 0, "content_index": 0}
        items: list[dict[str, Any]] = []
        text, finish = "", "stop"
        begun = False
        async for choice in self._streamed():
            if not begun:  # only now, so that an error at the beginning has its status
                begun = True
                for kind in ("created", "in_progress"):
                    yield kind, {"response": self._response([], None)}
            finish, delta = choice["finish_reason"] or finish, choice["delta"]
            for call in map(_call, delta.get("tool_calls", ())):
                at = {"output_index": len(items), "item_id": call["id"]}
                whole = {"arguments": call["arguments"], "name": call["name"]}
                added = {**call, "arguments": "", "status": "in_progress"}
                yield "output_item.added", {"output_index": at["output_index"], "item": added}
                yield "function_call_arguments.delta", {**at, "delta": call["arguments"]}
                yield "function_call_arguments.done", {**at, **whole}
                yield "output_item.done", {"output_index": at["output_index"], "item": call}
                items.append(call)
            if piece := delta.get("content"):
                if not text:
                    added = {**message, "content": [], "status": "in_progress"}
                    yield "output_item.added", {"output_index": 0, "item": added}
                    yield "content_part.added", {**place, "part": _part("")}
                text += piece
                yield "output_text.delta", {**place, "delta": piece, "logprobs": []}
        if text:
            message["content"] = [_part(text)]
            yield "output_text.done", {**place, "text": text, "logprobs": []}
            yield "content_part.done", {**place, "part": _part(text)}
            yield "output_item.done", {"output_index": 0, "item": message}
            items.append(message)
        response = self._response(items, finish)
        yield response["status"], {"response": response}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _message(text: str) -> dict[str, Any]:
    identity = f"msg_{secrets.token_hex(12)}"
    return {"id": identity, "type": "message", "role": "assistant", "status": "completed", "content": [_part(text)]}


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    """Write a call of a chat completion as an item."""
    return {
        "id": f"fc_{secrets.token_hex(12)}", "type": "function_call", "call_id": call["id"], "status": "completed",
        **call["function"],
    }  # fmt: skip
