"""What an endpoint offers beyond completions, probed once: tokens, context length, exact scores, constraints."""

from __future__ import annotations

import hashlib
import json
import math
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from rung.engines.api_options import ConstraintStyle
from rung.engines.api_transport import NEVER, RefusedError, Transport
from rung.engines.base import Constraint, FinishReason, ModelInput, Scored, ScoreRequest
from rung.engines.constraints import schema_problem
from rung.errors import ConfigError, EngineError
from rung.models.bounded import found
from rung.models.messages import tagged_call, thinking_of
from rung.models.thinking import THOUGHT_KEYS
from rung.yamlfile import json_value

T = TypeVar("T")
ServerKind = Literal["llama.cpp", "vllm", "other"]
ScoringWay = Literal["echo", "forced", "none"]  # log-probabilities of prompt tokens, or of tokens forced one by one
CHARACTERS_PER_TOKEN = 3.5  # a rule of thumb for English; what is counted with it is called an estimate
MAX_COUNTS = 4096  # token counts that are kept
MAX_FORCED = 64  # tokens of a label set that are forced one by one, a request each
FORCED_LABELS = 8  # label sets up to this size are scored that way; writing the label is one request instead
FORCE = 1e4  # added to the logit of the token that has to come
ECHO = {"max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the probe found."""

    kind: ServerKind
    context: int  # tokens that the model reads, 0 where the server does not say
    parameters: int  # weights of the model, 0 where the server does not say
    tokenizer: bool  # whether the server gives tokens
    scoring: ScoringWay
    end_token: int | None  # the token that ends an answer, where the server gives it
    identity: str  # changes when the server says that it serves another model


class EndpointServer:
    """The calls beside completions. Nothing is sent before the first question."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._root, self._model = transport.endpoint.root, transport.endpoint.model
        self._lock = threading.Lock()
        self._capabilities: Capabilities | None = None
        self._counts: dict[str, int] = {}

    @property
    def capabilities(self) -> Capabilities:
        """What the server can do, probed once.

        Raises:
            EngineError: it cannot be reached, or refuses the key.
        """
        with self._lock:
            if self._capabilities is None:
                self._capabilities = self._probe()
            return self._capabilities

    @property
    def known_kind(self) -> ServerKind:
        """The kind of server as far as it was probed; completions alone do not wait for a probe."""
        return "other" if self._capabilities is None else self._capabilities.kind

    # ---- tokens

    def encode(self, text: str) -> tuple[int, ...]:
        """The token ids of `text`, without special tokens.

        Raises:
            EngineError: `scoring-unsupported`: the server does not give tokens.
        """
        if not self.capabilities.tokenizer:
            raise self._unsupported("does not give tokens")
        return self._tokenize(text, special=False)

    def tokens(self, prompt: ModelInput) -> tuple[int, ...]:
        """The token ids that the server makes of a prompt, by the model's chat template.

        Raises:
            EngineError: `scoring-unsupported`: the server does not give tokens.
        """
        if prompt and isinstance(prompt[0], int):
            return prompt
        if not self.capabilities.tokenizer:
            raise self._unsupported("does not give tokens")
        if self.capabilities.kind == "llama.cpp":
            fields = {**chat_fields(prompt), **thinking_fields(prompt, self.capabilities.kind)}
            rendered = self._transport.call(f"{self._root}/apply-template", fields)
            return self._tokenize(str(rendered["prompt"]), special=True)
        thinking = thinking_fields(prompt, self.capabilities.kind)
        body = {"model": self._model, **chat_fields(prompt), **thinking, "add_generation_prompt": True}
        return tuple(self._transport.call(f"{self._root}/tokenize", body)["tokens"])

    def count(self, prompt: ModelInput) -> int:
        """How many tokens a prompt takes; an estimate where the server does not give tokens."""
        if not self.capabilities.tokenizer:
            return estimate(prompt)
        key = hashlib.sha256(json.dumps(prompt).encode()).hexdigest()
        if key not in self._counts:
            if len(self._counts) >= MAX_COUNTS:
                self._counts.clear()
            self._counts[key] = len(self.tokens(prompt))
        return self._counts[key]

    def _tokenize(self, text: str, *, special: bool) -> tuple[int, ...]:
        # llama.cpp reads `content`, `add_special` and `parse_special`; vLLM reads `prompt` and `add_special_tokens`.
        body = {
            "model": self._model, "content": text, "prompt": text, "add_special": special, "parse_special": special,
            "add_special_tokens": special,
        }  # fmt: skip
        return tuple(self._transport.call(f"{self._root}/tokenize", body)["tokens"])

    # ---- the probe

    def _probe(self) -> Capabilities:
        listed = _offered(lambda: self._transport.call("/models")) or {}
        entries = [entry for entry in listed.get("data") or () if isinstance(entry, dict)]
        entry = next((e for e in entries if e.get("id") == self._model), entries[0] if len(entries) == 1 else {})
        owner = entry.get("owned_by")
        kind: ServerKind = "llama.cpp" if owner == "llamacpp" else "vllm" if owner == "vllm" else "other"
        properties: dict[str, Any] = {}
        if kind == "llama.cpp":
            properties = _offered(lambda: self._transport.call(f"{self._root}/props")) or {}
        meta = entry.get("meta") or {}
        context = entry.get("max_model_len") or (properties.get("default_generation_settings") or {}).get("n_ctx") or 0
        sample = (_offered(lambda: self._tokenize("one two three", special=False)) or ()) if kind != "other" else ()
        identity = [kind, entry.get("root"), meta.get("n_params"), meta.get("size"), properties.get("model_path")]
        end_token = self._end_token(properties) if sample else None
        return Capabilities(
            kind, int(context), parameters=int(meta.get("n_params") or 0), tokenizer=bool(sample),
            scoring=self._scoring(kind, sample), end_token=end_token,
            identity=hashlib.sha256(json.dumps(identity).encode()).hexdigest(),
        )  # fmt: skip

    def _end_token(self, properties: Mapping[str, Any]) -> int | None:
        text = properties.get("eos_token")
        if not isinstance(text, str) or not text:
            return None
        body = {"content": text, "add_special": False, "parse_special": True}
        tokens = self._transport.call(f"{self._root}/tokenize", body)["tokens"]
        return tokens[0] if len(tokens) == 1 else None

    def _scoring(self, kind: ServerKind, sample: tuple[int, ...]) -> ScoringWay:
        if len(sample) < 2:
            return "none"
        if kind == "llama.cpp":  # it refuses `echo`, but gives the log-probability of a token that is forced
            return "forced" if self._gives_forced(sample) else "none"
        body = {"model": self._model, "prompt": [list(sample)], **ECHO}
        answer = _offered(lambda: self._transport.complete("/completions", body, (len(sample), 1))) or {}
        rows = _echoed(answer, 1)
        return "echo" if rows and len(rows[0]) >= len(sample) and rows[0][1] is not None else "none"

    def _gives_forced(self, sample: tuple[int, ...]) -> bool:
        try:
            probs = [math.exp(self._forced_logprob(self._model, sample, token)) for token in sample[:2]]
        except EngineError as refused:
            if refused.code not in ("endpoint-refused", "scoring-unsupported"):
                raise
            return False
        return sum(probs) <= 1.001  # if the server counted the bias in, each would have a probability near one

    # ---- exact log-likelihoods of continuations, never an approximation

    def score(self, model: str, request: ScoreRequest, stopped: threading.Event) -> Scored:
        """The log-likelihood of every continuation of one request.

        Raises:
            EngineError: `scoring-unsupported`.
        """
        if self.capabilities.scoring == "none":
            raise self._unsupported("gives no log-probabilities of given tokens")
        prompt = self.tokens(request.prompt)
        score = self._by_echo if self.capabilities.scoring == "echo" else self._by_force
        sums = score(model, prompt, request.continuations, stopped)
        return Scored(np.array(sums, np.float32), self._read(prompt, request.continuations), 0.0)

    def _read(self, prompt: tuple[int, ...], continuations: tuple[tuple[int, ...], ...]) -> int:
        """The tokens that scoring sends: the prompt again with every label, or with every token of the label trie."""
        if self.capabilities.scoring == "echo":
            return sum(len(prompt) + len(continuation) for continuation in continuations)
        return sum(len(prompt) + len(prefix) - 1 for prefix in _prefixes(continuations))

    def _by_echo(
        self, model: str, prompt: tuple[int, ...], continuations: tuple[tuple[int, ...], ...], stopped: threading.Event
    ) -> list[float]:
        """One request for all: the server reads every prompt with its continuation and echoes the log-probabilities."""
        whole = [[*prompt, *continuation] for continuation in continuations]
        body = {"model": model, "prompt": whole, **ECHO}
        answer = self._transport.complete("/completions", body, (sum(map(len, whole)), len(whole)), stopped)
        rows = _echoed(answer, len(whole))
        if len(rows) != len(continuations):
            raise self._unsupported("echoed no log-probabilities")
        sums = []
        for row, tokens in zip(rows, whole, strict=True):
            logprobs = row[len(prompt) : len(tokens)]
            if len(logprobs) != len(tokens) - len(prompt) or None in logprobs:
                raise self._unsupported("echoed fewer log-probabilities than there are tokens")
            sums.append(float(sum(logprobs)))  # type: ignore[arg-type]
        return sums

    def _by_force(
        self, model: str, prompt: tuple[int, ...], continuations: tuple[tuple[int, ...], ...], stopped: threading.Event
    ) -> list[float]:
        """One request per token of the label trie: its logit is biased so that it comes, its log-probability is not."""
        prefixes = _prefixes(continuations)
        if len(prefixes) > MAX_FORCED:
            why = f"gives one token a request, and the labels have {len(prefixes)} (at most {MAX_FORCED})"
            raise self._unsupported(why)
        sums: dict[tuple[int, ...], float] = {(): 0.0}
        for prefix in prefixes:
            *before, token = prefix
            sums[prefix] = sums[tuple(before)] + self._forced_logprob(model, (*prompt, *before), token, stopped)
        return [sums[row] for row in continuations]

    def _forced_logprob(
        self, model: str, prompt: tuple[int, ...], token: int, stopped: threading.Event = NEVER
    ) -> float:
        """The log-probability of `token` after `prompt`, from a server that reports it before the bias.

        Raises:
            EngineError: `scoring-unsupported`: the server did not take the token, or does not give it.
        """
        body = {
            "model": model, "prompt": list(prompt), "max_tokens": 1, "temperature": 0, "logprobs": 1,
            "logit_bias": [[token, FORCE]], "cache_prompt": True,
        }  # fmt: skip
        answer = self._transport.complete("/completions", body, (len(prompt), 1), stopped)
        content = (answer["choices"][0].get("logprobs") or {}).get("content") or ()
        if not content or content[0].get("id") != token or not isinstance(content[0].get("logprob"), int | float):
            raise self._unsupported("does not give the log-probability of a given token")
        return float(content[0]["logprob"])

    def _unsupported(self, why: str) -> EngineError:
        problem = f"labels cannot be scored at {self._transport.endpoint.base_url}: the server {why}"
        hint = "let the model write the label instead: a Generate decoder with `choices`"
        return EngineError("scoring-unsupported", problem, hint=hint)


def _prefixes(continuations: tuple[tuple[int, ...], ...]) -> list[tuple[int, ...]]:
    """The beginnings of all continuations, the shortest first: the nodes of their trie."""
    return sorted({row[:n] for row in continuations for n in range(1, len(row) + 1)}, key=lambda p: (len(p), p))


def scores_labels(scoring: str, labels: int, max_echoed: int) -> bool:
    """Whether a server that offers `scoring` should score this many labels, rather than let the model write one.

    Scoring by echo reads the prompt once per label, which is worth it for up to `max_echoed`.
    """
    return labels <= {"echo": max_echoed, "forced": FORCED_LABELS}.get(scoring, 0)


def _echoed(answer: Mapping[str, Any], prompts: int) -> list[list[float | None]]:
    """The log-probabilities of the tokens of every prompt, in order; empty where some are missing."""
    choices = sorted(answer.get("choices") or (), key=lambda choice: choice.get("index", 0))
    rows = [(choice.get("logprobs") or {}).get("token_logprobs") for choice in choices]
    return [list(row) for row in rows if row] if len(rows) == prompts else []


def _offered(call: Callable[[], T]) -> T | None:
    """What a call answers, or None where the server refuses it as unknown or wrong."""
    try:
        return call()
    except RefusedError:
        return None


def estimate(prompt: ModelInput) -> int:
    """About how many tokens a prompt has, from its characters."""
    if prompt and isinstance(prompt[0], int):
        return len(prompt)
    return sum(4 + estimate_text(message["content"]) for message in prompt)  # type: ignore[index, misc]


def estimate_text(text: str) -> int:
    """About how many tokens a text has."""
    return math.ceil(len(text) / CHARACTERS_PER_TOKEN)


# ---- constraints as servers understand them, and the check afterwards that they were kept
#
# Some servers ignore what they do not know. So every finished answer is checked, and one that does not fit is an error.
# With `response_format`, choices and regexes travel inside an object, `{"answer": ...}`: all servers accept that root.

WRAPPER_TOKENS = 16  # what `{"answer": "` and `"}` take at most
FIELD = "answer"


def chat_fields(prompt: Any) -> dict[str, Any]:
    """The fields of a request with chat messages: arguments of calls are JSON text there, and tools stand apart."""
    messages, tools = [], None
    for message in prompt:
        turn = dict(message)
        tools = turn.pop("tools", tools)
        turn.pop("thinking", None)
        if "tool_calls" in turn:
            functions = [dict(call["function"]) for call in turn["tool_calls"]]
            texts = [json.dumps(function["arguments"], ensure_ascii=False) for function in functions]
            turn["tool_calls"] = [
                {**call, "function": {**function, "arguments": text}}
                for call, function, text in zip(turn["tool_calls"], functions, texts, strict=True)
            ]
        messages.append(turn)
    return {"messages": messages, **({"tools": tools} if tools else {})}


def thinking_fields(prompt: Any, kind: ServerKind) -> dict[str, Any]:
    """The fields that say how much the model is to think.

    vLLM and llama.cpp pass variables to the model's own template, which ignores those that it does not know. Other
    vendors refuse unknown fields, so they get the standard one, and only where thoughts are wanted.
    """
    thinking = thinking_of(prompt)
    effort = {"reasoning_effort": "medium" if thinking == "on" else thinking} if thinking != "off" else {}
    if kind == "other":
        return effort
    on = thinking != "off"
    return {"chat_template_kwargs": {"enable_thinking": on, "thinking": on, **effort}}


def thought_of(message: Mapping[str, Any]) -> str:
    """What a model thought before its answer, as vLLM, DeepSeek and OpenRouter name it."""
    return str(next((message[key] for key in THOUGHT_KEYS if message.get(key)), ""))


def answer_of(message: Mapping[str, Any]) -> str:
    """The text of an answer, with its tool calls in tags."""
    functions = [
        call["function"] for call in message.get("tool_calls") or () if isinstance(call.get("function"), Mapping)
    ]
    calls = [tagged_call(function["name"], _arguments(function.get("arguments"))) for function in functions]
    return "\n".join(filter(None, (message.get("content") or "", *calls)))


def _arguments(given: Any) -> Any:
    try:
        return json_value(given or "{}")
    except (TypeError, ValueError):
        return given


def wraps(constraint: Constraint | None, style: ConstraintStyle) -> bool:
    """Whether the answer comes inside an object."""
    return constraint is not None and style == "json_schema" and constraint.kind != "json_schema"


def constraint_fields(constraint: Constraint | None, style: ConstraintStyle) -> dict[str, Any]:
    """The fields of a request's body that ask for a constraint.

    Raises:
        EngineError: `constraint-unsupported`: this server cannot be asked for it.
        ConfigError: the schema is not JSON, or the regex is not valid.
    """
    if constraint is None:
        return {}
    if style != "none" and constraint.kind == "json_schema":
        return _response_format(_schema(constraint))
    if constraint.kind == "regex":
        _check_pattern(constraint)
    if style == "json_schema":
        wanted = {"pattern": f"^({constraint.value})$"} if constraint.kind == "regex" else {"enum": [*constraint.value]}
        properties = {FIELD: {"type": "string", **wanted}}
        schema = {"type": "object", "properties": properties, "required": [FIELD], "additionalProperties": False}
        return _response_format(schema)
    name = "choice" if constraint.kind == "choices" else "regex"
    value = list(constraint.value) if constraint.kind == "choices" else constraint.value
    if style == "structured_outputs":
        return {"structured_outputs": {name: value}}
    if style == "guided":
        return {f"guided_{name}": value}
    if style == "grammar" and constraint.kind == "choices":
        # JSON's escapes of quotes, backslashes and line ends are also GBNF's.
        return {"grammar": "root ::= " + " | ".join(json.dumps(text, ensure_ascii=False) for text in constraint.value)}
    problem = f"a {constraint.kind} constraint cannot be asked for as `{style}`"
    hint = "choose another with RUNG_API_CONSTRAINTS: json_schema, structured_outputs or guided"
    raise EngineError("constraint-unsupported", problem, hint=hint)


def _schema(constraint: Constraint) -> Mapping[str, Any]:
    try:
        schema = json_value(str(constraint.value))
    except ValueError as broken:
        raise ConfigError("bad-constraint", f"the JSON Schema is not JSON: {broken}", hint="correct it") from broken
    if not isinstance(schema, dict):
        raise ConfigError("bad-constraint", "the JSON Schema is not an object", hint="begin with `type: object`")
    return schema


def _response_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    described = {"name": "answer", "strict": True, "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": described}}


def _check_pattern(constraint: Constraint) -> None:
    try:
        re.compile(str(constraint.value))
    except re.error as error:
        raise ConfigError("bad-constraint", f"the regex is not valid: {error}", hint="correct it") from error


def constrained_answer(
    text: str, constraint: Constraint | None, style: ConstraintStyle, finish: FinishReason, where: str
) -> str:
    """The answer itself, out of its object where it came in one.

    An answer that was cut at `max_tokens` cannot be checked and comes as it is; its finish reason says so.

    Raises:
        EngineError: `constraint-unsupported`: the server did not keep to the constraint.
        ConfigError: the JSON Schema is not valid.
    """
    if constraint is None or finish != "stop":
        return text
    problem: str | None = "it is not the JSON that was asked for"
    answer: object = text
    try:
        if constraint.kind == "json_schema":
            problem = schema_problem(json_value(text), str(constraint.value))
        else:
            answer = json_value(text)[FIELD] if wraps(constraint, style) else text
            if constraint.kind == "choices":
                matches = answer in constraint.value
            else:
                matches = isinstance(answer, str) and found(str(constraint.value), answer, whole=True)
            problem = None if matches else "it does not match"
    except (ValueError, KeyError, TypeError, IndexError):
        pass  # no JSON, or another object
    if problem is not None:
        what = f"{where} was asked for a {constraint.kind} constraint as `{style}` and answered {text[:80]!r}"
        hint = "set RUNG_API_CONSTRAINTS to what the server knows: json_schema, grammar, structured_outputs, guided"
        raise EngineError("constraint-unsupported", f"{what}: {problem}", hint=hint)
    return str(answer)
