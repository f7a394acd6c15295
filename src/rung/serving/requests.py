"""From a request to what has to run: the row in a conversation, and how an artifact or model answers it.

Where the answer is plain generated text, the request to the engine is the one that `Artifact.predict` makes, and its
pieces can be streamed and sampled; citations are resolved when the text is complete. Everything else (label scores,
heads, choices, decoders with more than one completion) runs through `Artifact.answer` in a worker thread, and comes in
one piece.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rung.agents.calls import TemplateSupport, call_constraint, call_turn, template_support
from rung.agents.tools import Tool
from rung.agents.turns import MalformedError, read_turn
from rung.artifact.artifact import Artifact
from rung.artifact.decoder import Answer
from rung.artifact.predict_file import sources
from rung.data.cells import json_text
from rung.data.examples import not_blank, read_inputs
from rung.engines.base import Constraint, GenerateRequest, ModelInput, Sampling
from rung.engines.local import LocalModel
from rung.errors import ConfigError, DataError, EngineError
from rung.feedback.trials import arm_of
from rung.models.messages import (
    Messages,
    accepts_system,
    call_id,
    fold_system,
    tag_head,
    tagged_call,
    tagged_result,
    with_system,
)
from rung.models.thinking import answer_beginning
from rung.models.tokenizer import Tokenizer
from rung.prompts.overflow import Rendered
from rung.serving.conversations import closed, parameters_of
from rung.serving.schemas import ChatMessage, ChatRequest, CompletionRequest, SamplingRequest, ToolCall, ToolChoice
from rung.serving.served import ServedArtifact, ServedModel, example, scheduled
from rung.yamlfile import json_value

DEFAULT_TOKENS = 1024  # limit of an answer where the request has none and the context has room


@dataclass(frozen=True)
class TextRequest:
    """Completions that an engine writes."""

    base: ServedModel
    requests: Sequence[GenerateRequest]  # one per choice
    inputs: Mapping[str, Any]  # what is recorded of the request
    served: ServedArtifact | None = None  # the artifact that answers; None for the bare base model
    rendered: Rendered | None = None  # its prompt
    tools: Sequence[Tool] = ()  # functions that may be called
    must: Sequence[Tool] = ()  # those of which one must be called


@dataclass(frozen=True)
class RowRequest:
    """A row that an artifact answers through `Artifact.answer`; all `choices` are the same."""

    served: ServedArtifact
    row: Mapping[str, Any]
    choices: int = 1
    without_effect: Sequence[str] = ()  # options of the request that change nothing


PlannedRequest = TextRequest | RowRequest
CompletionTarget = ServedModel | ServedArtifact  # what answers completions


def chat_request(target: CompletionTarget, body: ChatRequest) -> PlannedRequest:
    """Convert a chat completion; raise RungError if the model or artifact cannot do what it asks for."""
    form, held = body.response_format, None
    if form is not None and form.type != "text":
        schema = '{"type": "object"}' if form.json_schema is None else json.dumps(form.json_schema.schema_)
        held = Constraint("json_schema", schema)
    if isinstance(target, ServedArtifact):
        row = row_of(target.artifact, [_message(turn) for turn in body.messages])
        planned = _artifact_request(target, body, _with_tools(target.artifact, row, body), body.limit, held,
                                    logprobs=bool(body.logprobs))  # fmt: skip
        return replace(planned, tools=offered(body)[0]) if isinstance(planned, TextRequest) else planned
    tools, must = offered(body)
    if (last := body.messages[-1]).role == "assistant" and not last.tool_calls and (held or must):
        hint = "end with a message of the role `user`"
        raise ConfigError("bad-request", "an answer that has begun cannot be held to a schema or a call", hint=hint)
    _check_length(target, [message.text for message in body.messages])
    prompt = _chat_prompt(target, body, tools)
    room, context = DEFAULT_TOKENS, target.engine.info.context
    if isinstance(target.engine, LocalModel) and context > 0:
        room = max(1, min(room, context - len(prompt)))
    held = call_constraint(must) if must else held
    requests = _requests(prompt, body, body.limit or room, held, logprobs=bool(body.logprobs), call_marks=bool(tools))
    inputs = {"messages": [message.model_dump(exclude_unset=True) for message in body.messages]}
    return TextRequest(target, requests, inputs, tools=tools, must=must)


def _message(turn: ChatMessage) -> dict[str, Any]:
    """A message as a row of a chat task has it."""
    calls = {"tool_calls": [call.model_dump() for call in turn.tool_calls]} if turn.tool_calls else {}
    result = {"tool_call_id": turn.tool_call_id} if turn.tool_call_id else {}
    return {"role": turn.prompt_role, "content": turn.text, **calls, **result}


def _with_tools(artifact: Artifact, row: dict[str, Any], body: ChatRequest) -> dict[str, Any]:
    """Add the functions of a request to the row of a chat artifact; others call none."""
    must = offered(body)[1]
    if body.tools and artifact.signature.kind != "chat":
        raise _unsupported("tools", "an artifact answers its task and calls no functions")
    if must:
        raise _unsupported("tool_choice", "the artifact decides itself whether it calls a function")
    tools = [] if body.tool_choice == "none" else [tool.model_dump(exclude_none=True) for tool in body.tools or ()]
    return {**row, "tools": tools} if tools else row


def completion_requests(target: CompletionTarget, body: CompletionRequest) -> list[PlannedRequest]:
    """Convert a text completion, one request per prompt."""
    logprobs = body.logprobs is not None
    if isinstance(target, ServedArtifact):
        if body.echo or body.max_tokens == 0:
            raise _unsupported("echo", "an artifact has its own prompt; echo belongs to base models")
        texts = [text for text in body.prompts if isinstance(text, str)]
        if len(texts) < len(body.prompts):
            raise _unsupported("prompt", "an artifact reads text, not token ids")
        rows = [row_of(target.artifact, [{"role": "user", "content": text}]) for text in texts]
        return [_artifact_request(target, body, row, body.max_tokens, None, logprobs=logprobs) for row in rows]
    if not isinstance(target.engine, LocalModel):
        raise _unsupported("prompt", "the model is behind an endpoint, and answers chat completions only")
    _check_length(target, body.prompts)
    tokenizer = target.engine.tokenizer
    room = 16 if body.max_tokens is None else body.max_tokens  # 16 is OpenAI's default
    converted: list[PlannedRequest] = []
    for prompt in body.prompts:
        tokens = _prompt_tokens(tokenizer, prompt)
        text = prompt if isinstance(prompt, str) else tokenizer.decode(prompt, skip_special=False)
        requests = _requests(tokens, body, room, None, logprobs=logprobs)
        converted.append(TextRequest(target, requests, {"prompt": text}))
    return converted


def _artifact_request(
    served: ServedArtifact, body: SamplingRequest, row: dict[str, Any], limit: int | None, held: Constraint | None, *,
    logprobs: bool,
) -> PlannedRequest:  # fmt: skip
    values = {"temperature": body.temperature, "stop": body.stops, "n": body.n > 1, "response_format": held}
    options = [name for name, value in {**values, "logprobs": logprobs}.items() if value]
    # A request with options asks for another answer than was measured, so it takes no part in a trial.
    served = replace(served, trial=None) if options else answering(served, row, limit)
    artifact = served.artifact
    if served.base is None or not artifact.decoder.streams or artifact.prompt.thinking != "off":
        # Many clients always send a temperature; nothing is sampled here, and the response says so.
        without_effect = tuple(name for name in options if name in ("temperature", "stop"))
        if others := options[len(without_effect) :]:
            how = "thinks first" if artifact.prompt.thinking != "off" else f"answers by {artifact.decoder.kind}"
            message = f"`{others[0]}` has no effect: the artifact {how}"
            raise ConfigError("bad-request", message, hint="leave it out")
        return RowRequest(served, row, without_effect=without_effect)
    if held is not None and artifact.decoder.answer_schema is not None:
        raise _unsupported("response_format", "the artifact has its own schema")
    artifact, _ = scheduled(served)
    _check_row_length(artifact, served.base, row)
    rendered = artifact.render([example(artifact, row)])[0]
    if rendered.refused:  # nothing is written, so nothing is sampled either
        return RowRequest(served, row, body.n)
    like = artifact.decoder.request(artifact, rendered.messages)
    room = min(like.sampling.max_tokens, limit) if limit is not None else like.sampling.max_tokens
    held, marks = held or like.constraint, like.sampling.call_marks
    requests = _requests(like.prompt, body, room, held, logprobs=logprobs, call_marks=marks)
    requests = [replace(request, adapter=like.adapter) for request in requests]
    return TextRequest(served.base, requests, row, served, rendered)


def _requests(
    prompt: ModelInput, body: SamplingRequest, room: int, held: Constraint | None, *, logprobs: bool,
    call_marks: bool = False,
) -> list[GenerateRequest]:  # fmt: skip
    """Make one request per choice; a seed gives each choice its own."""
    top_p = 1.0 if body.top_p is None else body.top_p
    sampling = Sampling(room, body.temperature or 0.0, top_p, stop=body.stops, call_marks=call_marks)
    seeds = [None if body.seed is None else (body.seed + choice) % 2**32 for choice in range(body.n)]
    return [GenerateRequest(prompt, replace(sampling, seed=seed), held, logprobs=logprobs) for seed in seeds]


def _chat_prompt(base: ServedModel, body: ChatRequest, tools: Sequence[Tool]) -> ModelInput:
    """Render a conversation as tokens, or as messages for an endpoint; an assistant's last turn is continued."""
    engine, last = base.engine, body.messages[-1]
    begun = last.text if last.role == "assistant" and not last.tool_calls else ""
    if not isinstance(engine, LocalModel):
        if begun:
            raise _unsupported("messages", "an endpoint may not continue the assistant's turn; end with the user's")
        messages: Any = tuple(turns(body.messages, tools, NO_SUPPORT))
        return messages  # type: ignore[no-any-return]
    tokenizer = engine.tokenizer
    support = template_support(tokenizer)
    messages = tuple(turns(body.messages, tools, support))
    folded: Messages = messages if accepts_system(tokenizer) else fold_system(messages)
    shown = [tool.as_template() for tool in tools] if tools and support.tools else None
    begin = answer_beginning(tokenizer)
    if begun:
        return (*tokenizer.encode_chat(folded[:-1], tools=shown, begin=begin), *tokenizer.encode_plain(begun))
    return tokenizer.encode_chat(folded, tools=shown, begin=begin)


def _prompt_tokens(tokenizer: Tokenizer, prompt: str | Sequence[int]) -> tuple[int, ...]:
    """Encode a text, begun as the model expects; raise ConfigError for unknown token ids, and without any tokens."""
    if isinstance(prompt, str):
        start = (tokenizer.bos_id,) if tokenizer.adds_bos and tokenizer.bos_id is not None else ()
        tokens = (*start, *tokenizer.encode_plain(prompt))
    else:
        tokens = tuple(prompt)
        if wrong := [token for token in tokens if token >= tokenizer.vocabulary_size]:
            hint = f"it has {tokenizer.vocabulary_size} tokens"
            raise ConfigError("bad-request", f"this model has no token {wrong[0]}", hint=hint)
    if not tokens:
        raise ConfigError("bad-request", "the prompt has no tokens", hint="send at least one character")
    return tokens


def _unsupported(option: str, why: str) -> ConfigError:
    return ConfigError("bad-request", f"`{option}`: {why}", hint="leave it out, or name the base model")


# ---- rows and answers of artifacts


def row_of(artifact: Artifact, messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Find the input columns in a conversation.

    A chat task reads the conversation itself. Other tasks read one user turn: the value of the one input column, or a
    JSON object with a value for each of several. Their prompt, demonstrations included, is the artifact's own.
    Raises DataError if the conversation has more than the artifact reads, or lacks a column.
    """
    columns = artifact.signature.inputs
    if artifact.signature.kind == "chat":
        if messages[-1]["role"] == "assistant":
            hint = "end with a turn of the role `user` or `tool`"
            raise DataError("bad-request", "the conversation ends with the assistant's turn", hint=hint)
        return {columns[0]: [dict(turn) for turn in messages]}
    if len(messages) != 1 or messages[0]["role"] != "user":
        raise DataError(
            "bad-request", "this artifact answers one user message; it has its own instruction and examples",
            hint="send one message of the role `user`, or name the base model for a conversation",
        )  # fmt: skip
    text = str(messages[0]["content"])
    if len(columns) == 1:
        return not_blank({columns[0]: text}, "the message")
    try:
        values = json_value(text)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise DataError(
            "bad-row", f"this artifact reads {', '.join(columns)}, and the message is not a JSON object with them",
            hint='send {"' + columns[0] + '": ..., ...}, or rows to /v1/tasks/NAME/predict',
        )  # fmt: skip
    return checked_row(artifact, values)


def checked_row(artifact: Artifact, values: Mapping[str, Any]) -> dict[str, Any]:
    """Check the columns of a row and the form of a conversation; raise DataError for what is wrong.

    Unknown columns are refused, because a misspelled column would be a missing one. `ticket` may hold `ticket.subject`.
    """
    columns = artifact.signature.inputs
    allowed = (*columns, "tools") if artifact.signature.kind == "chat" else columns
    for column in values:
        if column not in allowed and not any(name.startswith(f"{column}.") for name in columns):
            raise DataError("unknown-name", f"there is no column {column!r}", hint=f"it reads {', '.join(columns)}")
    return not_blank(read_inputs(values, columns, artifact.signature.kind, "the row"), "the row")


def _check_length(base: ServedModel | None, texts: Iterable[str | Sequence[int]]) -> None:
    """Refuse a text that cannot fit the context before it is encoded whole, and tokens before they are decoded."""
    if base is None or not isinstance(base.engine, LocalModel) or (context := base.engine.info.context) <= 0:
        return
    for text in texts:
        too_long = base.engine.tokenizer.exceeds(text, context) if isinstance(text, str) else len(text) > context
        if too_long:
            what = "characters" if isinstance(text, str) else "tokens"
            problem = f"a text of {len(text):,} {what} does not fit the context of {context:,} tokens"
            raise EngineError("context-overflow", problem, hint="shorten it, or choose a model with a longer context")


def _check_row_length(artifact: Artifact, base: ServedModel | None, row: Mapping[str, Any]) -> None:
    if artifact.overflow != "truncate_input":  # which cuts it
        _check_length(base, [value if isinstance(value, str) else json_text(value) for value in row.values()])


def answers_of(artifact: Artifact, rows: Sequence[Mapping[str, Any]], base: ServedModel | None = None) -> list[Answer]:
    """Answer rows as `Artifact.predict` does; where the `base` is given, refuse very long ones first."""
    for row in rows:
        _check_row_length(artifact, base, row)
    return artifact.answer([example(artifact, row) for row in rows])


def answer_fields(artifact: Artifact, answer: Answer) -> dict[str, Any]:
    """List what an answer has beside its text, for every endpoint alike."""
    fields: dict[str, Any] = {"confidence": answer.confidence}
    if artifact.decoder.abstains:
        fields["abstained"] = answer.abstained
    if answer.dropped_demonstrations:
        fields["dropped_demonstrations"] = answer.dropped_demonstrations
    if answer.truncated_characters:
        fields["truncated_characters"] = answer.truncated_characters
    return {**fields, **sources(answer)} if artifact.retriever is not None else fields


# ---- trials


def answering(served: ServedArtifact, row: Mapping[str, Any], limit: int | None = None) -> ServedArtifact:
    """Choose what answers a row: in an A/B trial, the challenger answers a share of the inputs.

    The same input always gets the same artifact. Where the client's token `limit` may cut an answer, the row takes no
    part in the trial.
    """
    trial, challenger = served.trial, served.challenger
    if trial is None or challenger is None:
        return served
    decoders = served.artifact.decoder, challenger.artifact.decoder
    if limit is not None and any(each.streams and limit < (each.max_new_tokens or 0) for each in decoders):
        return replace(served, trial=None)
    in_share = arm_of(example(served.artifact, row).id, share=trial.share, salt=trial.token) == "b"
    return challenger if in_share and trial.mode == "ab" else served


# ---- tools: from OpenAI's fields to Rung's tools and calls, and back

NO_SUPPORT = TemplateSupport(tools=False, results=False, plain=True)  # endpoints get everything as text


def offered(body: ChatRequest) -> tuple[list[Tool], list[Tool]]:
    """Find the tools that may be called, and those of which one must be; raise ConfigError for an unknown choice."""
    if body.tool_choice == "none":
        return [], []
    tools = [
        Tool(tool.function.name, tool.function.description or "", json.dumps(parameters_of(tool)))
        for tool in body.tools or ()
    ]
    forced = [replace(tool, parameters=json.dumps(closed(tool.schema))) for tool in tools]
    if not isinstance(body.tool_choice, ToolChoice):
        return tools, forced if body.tool_choice == "required" else []
    name = body.tool_choice.function.name
    if not (chosen := [tool for tool in forced if tool.name == name]):
        raise ConfigError(
            "unknown-name", f"`tool_choice` names {name!r}, which is not among `tools`",
            hint="name one of " + ", ".join(tool.name for tool in tools),
        )  # fmt: skip
    return tools, chosen[:1]


def turns(messages: Sequence[ChatMessage], tools: Sequence[Tool], support: TemplateSupport) -> list[dict[str, Any]]:
    """Build the messages that a template renders; what it does not show itself (see `support`) is written as text."""
    result: list[dict[str, Any]] = []
    made: dict[str, tuple[str, str]] = {}  # the client's id of a call: the id in the prompt, and the function's name
    count = 0
    for message in messages:
        role = message.prompt_role
        calls = [(call.function.name, _arguments(call)) for call in message.tool_calls or ()]
        if role == "tool" and not support.results:
            result.append({"role": "user", "content": tagged_result(message.text)})
        elif role == "tool":
            given = message.tool_call_id or ""
            identity, name = made.get(given, (given, ""))
            result.append({"role": role, "name": name, "content": message.text, "tool_call_id": identity})
        elif calls and support.results:
            result.append(call_turn(calls, message.text, first=count))
            for call in message.tool_calls or ():
                made[call.id] = call_id(count), call.function.name
                count += 1
        else:
            result.append({"role": role, "content": message.text + "".join(tagged_call(*call) for call in calls)})
    if tools and not support.tools:
        return list(with_system(tuple(result), tag_head([tool.as_template() for tool in tools])))  # type: ignore[arg-type]
    return result


def _arguments(call: ToolCall) -> Any:
    try:
        return json_value(call.function.arguments or "{}")
    except ValueError:
        return call.function.arguments  # the client's own text


def calls_in(text: str, tools: Sequence[Tool], must: Sequence[Tool]) -> list[dict[str, Any]]:
    """Read the calls in an answer, as OpenAI writes them; none where it is ordinary text.

    A name that is not among the `tools` makes no call. Where the model had to call one single tool, the text is its
    arguments.
    """
    if len(must) == 1:
        return [_call(must[0].name, text)] if _is_object(text) else []
    try:
        turn = read_turn(text, tools)
    except MalformedError:
        return []  # the client sees the text that the model wrote
    names = {tool.name for tool in tools}
    calls = () if isinstance(turn, str) else turn
    return [_call(one.tool, json.dumps(one.arguments, ensure_ascii=False)) for one in calls if one.tool in names]


def _is_object(text: str) -> bool:
    try:
        return isinstance(json_value(text), dict)
    except (ValueError, RecursionError):
        return False


def _call(name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}
