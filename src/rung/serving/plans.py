"""From a request to what has to run: completions on a scheduler, or an artifact's own way of answering."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rung.artifact.parts import Generate
from rung.engines.base import Constraint, GenerateRequest, Messages, Prompt, Sampling
from rung.engines.local import LocalModel
from rung.errors import ConfigError
from rung.models.tokenizer import Tokenizer
from rung.models.turns import accepts_system, fold_system
from rung.prompts.overflow import Rendered
from rung.serving.artifacts import refuse_sampling, request_of, row_of, writes_plain_text
from rung.serving.schemas import ChatRequest, CompletionRequest, Sampled, Tool
from rung.serving.served import Base, ServedArtifact, scheduled
from rung.serving.tools import constraint, described, forced, template_knows_tools, turns
from rung.serving.trials import answering, outside

DEFAULT_TOKENS = 1024  # of an answer that is asked for without a limit, where the context has room for them


@dataclass(frozen=True)
class Plan:
    """Completions that make an answer.

    Attributes:
        base: runs them.
        requests: one per choice.
        inputs: what is recorded of the request.
        served, rendered: the artifact that answers, and the prompt as it rendered it; None for the bare base model.
        tools, must: what may be called, and of what one has to be.
    """

    base: Base
    requests: Sequence[GenerateRequest]
    inputs: Mapping[str, Any]
    served: ServedArtifact | None = None
    rendered: Rendered | None = None
    tools: Sequence[Tool] = ()
    must: Sequence[Tool] = ()

    @property
    def in_pieces(self) -> bool:
        """Whether text can be shown as it comes: what may turn out to be a call cannot."""
        return not self.tools


@dataclass(frozen=True)
class Direct:
    """A row that an artifact answers in its own way, `choices` times the same."""

    served: ServedArtifact
    row: Mapping[str, Any]
    choices: int = 1


def plan_chat(target: Base | ServedArtifact, body: ChatRequest) -> Plan | Direct:
    """Return what a chat completion has to run.

    Raises:
        RungError: the request asks for what the model or artifact cannot do.
    """
    if isinstance(target, ServedArtifact):
        if body.tools:
            raise _unsupported("tools", "an artifact answers its task and calls nothing")
        row = row_of(target.artifact, [{"role": _role(one.role), "content": one.text} for one in body.messages])
        return _plan_artifact(target, body, row, body.limit, _chat_constraint(body), logprobs=bool(body.logprobs))
    tools = [] if body.tool_choice == "none" else list(body.tools or ())
    must = forced(tools, body.tool_choice)
    held = constraint(must) if must else _chat_constraint(body)
    prompt = chat_prompt(target, body, tools)
    room = body.limit or _room(target, prompt)
    requests = _requests(prompt, body, room, held, logprobs=bool(body.logprobs))
    inputs = {"messages": [one.model_dump(exclude_none=True) for one in body.messages]}
    return Plan(target, requests, inputs, tools=tools, must=must)


def plan_text(target: Base | ServedArtifact, body: CompletionRequest) -> list[Plan | Direct]:
    """Return what a text completion has to run, one plan per prompt."""
    logprobs = body.logprobs is not None
    if isinstance(target, ServedArtifact):
        if body.echo or body.max_tokens == 0:
            raise _unsupported("echo", "an artifact's prompt is its own; echo belongs to base models")
        rows = [row_of(target.artifact, [{"role": "user", "content": text}]) for text in _only_texts(body)]
        return [_plan_artifact(target, body, row, body.max_tokens, None, logprobs=logprobs) for row in rows]
    tokenizer = tokenizer_of(target)
    plans: list[Plan | Direct] = []
    for given in body.prompts:
        prompt = text_prompt(tokenizer, given)
        room = 16 if body.max_tokens is None else body.max_tokens  # 16 is OpenAI's default
        text = given if isinstance(given, str) else tokenizer.decode(given, skip_special=False)
        requests = _requests(prompt, body, room, None, logprobs=logprobs)
        plans.append(Plan(target, requests, {"prompt": text}))
    return plans


def _plan_artifact(
    served: ServedArtifact,
    body: Sampled,
    row: dict[str, Any],
    limit: int | None,
    held: Constraint | None,
    *,
    logprobs: bool,
) -> Plan | Direct:
    sampled = {
        "n": body.n if body.n > 1 else None,
        "temperature": body.temperature or None,
        "stop": body.stops or None,
        "response_format": held,
        "logprobs": logprobs or None,
    }
    own = all(value is None for value in sampled.values())
    served = answering(served, row, limit) if own else outside(served)
    artifact = served.artifact
    if served.base is None or not writes_plain_text(artifact):
        refuse_sampling(artifact, sampled)
        return Direct(served, row)
    if held is not None and isinstance(artifact.decoder, Generate) and artifact.decoder.constraint is not None:
        raise _unsupported("response_format", "the artifact has its own schema")
    running, _ = scheduled(served)
    like, rendered = request_of(running, row)
    if rendered.refused:  # nothing is written, so nothing is sampled either
        return Direct(served, row, body.n)
    room = min(like.sampling.max_tokens, limit) if limit is not None else like.sampling.max_tokens
    requests = _requests(like.prompt, body, room, held or like.constraint, logprobs=logprobs)
    requests = [replace(one, adapter=like.adapter) for one in requests]
    return Plan(served.base, requests, row, served, rendered)


def _requests(
    prompt: Prompt, body: Sampled, room: int, held: Constraint | None, *, logprobs: bool
) -> list[GenerateRequest]:
    """Return one request per choice; a seed gives each choice its own."""
    temperature = body.temperature or 0.0
    return [
        GenerateRequest(
            prompt,
            Sampling(
                max_tokens=room,
                temperature=temperature,
                top_p=1.0 if body.top_p is None else body.top_p,
                seed=None if body.seed is None else (body.seed + choice) % 2**32,
                stop=body.stops,
            ),
            held,
            logprobs=logprobs,
        )
        for choice in range(body.n)
    ]


def _chat_constraint(body: ChatRequest) -> Constraint | None:
    form = body.response_format
    if form is None or form.type == "text":
        return None
    if form.json_schema is not None:
        return Constraint("json_schema", json.dumps(form.json_schema.schema_))
    return Constraint("json_schema", '{"type": "object"}')


# ---- prompts of base models


def chat_prompt(base: Base, body: ChatRequest, tools: Sequence[Tool]) -> Prompt:
    """Return a conversation as tokens, or as messages where the model is elsewhere."""
    engine = base.engine
    if not isinstance(engine, LocalModel):
        given: Any = tuple(turns(body.messages, tools, native=False))
        messages: Messages = given
        return messages
    tokenizer = engine.tokenizer
    native = template_knows_tools(tokenizer)
    given = tuple(turns(body.messages, tools, native=native))
    folded: Messages = given if accepts_system(tokenizer) else fold_system(given)
    return tokenizer.encode_chat(folded, tools=[described(tool) for tool in tools] if tools and native else None)


def text_prompt(tokenizer: Tokenizer, given: str | Sequence[int]) -> tuple[int, ...]:
    """Return a text to continue as tokens, with the beginning token where the model expects one.

    Raises:
        ConfigError: a token id is none of the model's, or there is nothing to begin with.
    """
    if isinstance(given, str):
        start = (tokenizer.bos_id,) if tokenizer.adds_bos and tokenizer.bos_id is not None else ()
        tokens = (*start, *tokenizer.encode_plain(given))
    else:
        tokens = tuple(given)
        if wrong := [token for token in tokens if token >= tokenizer.vocabulary_size]:
            raise ConfigError(
                "bad-token", f"{wrong[0]} is no token of this model", hint=f"it has {tokenizer.vocabulary_size} tokens"
            )
    if not tokens:
        raise ConfigError("empty-prompt", "the prompt holds no token", hint="send at least one character")
    return tokens


def tokenizer_of(base: Base) -> Tokenizer:
    """Return the tokenizer of a base model.

    Raises:
        ConfigError: the model is elsewhere.
    """
    if not isinstance(base.engine, LocalModel):
        raise _unsupported("prompt", "the model is behind an endpoint, and is asked through chat completions")
    return base.engine.tokenizer


def _room(base: Base, prompt: Prompt) -> int:
    """Return how many tokens an answer may have that is asked for without a limit."""
    context = base.engine.info.context
    if not isinstance(base.engine, LocalModel) or context <= 0:
        return DEFAULT_TOKENS
    return max(1, min(DEFAULT_TOKENS, context - len(prompt)))


def _only_texts(body: CompletionRequest) -> list[str]:
    texts = [text for text in body.prompts if isinstance(text, str)]
    if len(texts) < len(body.prompts):
        raise _unsupported("prompt", "an artifact reads text, and no token ids")
    return texts


def _role(role: str) -> str:
    return "system" if role == "developer" else role


def _unsupported(option: str, why: str) -> ConfigError:
    return ConfigError("option-unsupported", f"`{option}`: {why}", hint="leave it out, or name the base model")
