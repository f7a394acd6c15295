"""What a server can do beyond completions, found out once: tokens, context length, exact scores."""

from __future__ import annotations

import hashlib
import json
import math
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rung.engines.api_transport import ConstraintStyle, Transport
from rung.engines.base import Constraint, FinishReason, ModelInput
from rung.engines.constraints import schema_problem
from rung.errors import ConfigError, EngineError

ServerKind = Literal["llama.cpp", "vllm", "other"]
ScoringWay = Literal["echo", "forced", "none"]
CHARACTERS_PER_TOKEN = 3.5  # a rule of thumb for English; what is counted with it is called an estimate
REMEMBERED_COUNTS = 4096


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What was found.

    Attributes:
        kind: which server answers.
        context: tokens that the model reads, 0 where the server does not say.
        parameters: weights of the model, 0 where the server does not say.
        tokenizer: whether the server tells tokens.
        scoring: `echo`: log-probabilities of prompt tokens; `forced`: of tokens that are forced one by one; `none`.
        end_token: the token that ends an answer, where the server tells it.
        identity: changes when the server says that it serves another model.
    """

    kind: ServerKind
    context: int
    parameters: int
    tokenizer: bool
    scoring: ScoringWay
    end_token: int | None
    identity: str


class EndpointServer:
    """The calls beside completions. Nothing is asked before the first question."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._root, self._model = transport.endpoint.root, transport.endpoint.model
        self._lock = threading.Lock()
        self._found: Capabilities | None = None
        self._counts: dict[str, int] = {}

    @property
    def capabilities(self) -> Capabilities:
        """What the server can do, asked once.

        Raises:
            EngineError: it cannot be reached, or refuses the key.
        """
        with self._lock:
            if self._found is None:
                self._found = self._probe()
            return self._found

    # ---- tokens

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the token ids of `text`, no special tokens added.

        Raises:
            EngineError: `scoring-unsupported`: the server does not tell tokens.
        """
        if not self.capabilities.tokenizer:
            raise unsupported(self._transport, "does not tell tokens")
        return self._tokenize(text, special=False)

    def tokens(self, prompt: ModelInput) -> tuple[int, ...]:
        """Return the token ids that the server makes of a prompt, by the model's chat template.

        Raises:
            EngineError: `scoring-unsupported`: the server does not tell tokens.
        """
        if prompt and isinstance(prompt[0], int):
            return prompt
        if not self.capabilities.tokenizer:
            raise unsupported(self._transport, "does not tell tokens")
        if self.capabilities.kind == "llama.cpp":
            rendered = self._transport.post(f"{self._root}/apply-template", {"messages": prompt})
            return self._tokenize(str(rendered["prompt"]), special=True)
        body = {"model": self._model, "messages": prompt, "add_generation_prompt": True}
        return tuple(self._transport.post(f"{self._root}/tokenize", body)["tokens"])

    def count(self, prompt: ModelInput) -> int:
        """Return the number of tokens of a prompt, or an estimate where the server does not tell tokens."""
        if not self.capabilities.tokenizer:
            return estimate(prompt)
        key = hashlib.sha256(json.dumps(prompt).encode()).hexdigest()
        if key not in self._counts:
            if len(self._counts) >= REMEMBERED_COUNTS:
                self._counts.clear()
            self._counts[key] = len(self.tokens(prompt))
        return self._counts[key]

    def _tokenize(self, text: str, *, special: bool) -> tuple[int, ...]:
        return tuple(self._transport.post(f"{self._root}/tokenize", self._tokenize_body(text, special))["tokens"])

    def _tokenize_body(self, text: str, special: bool) -> dict[str, Any]:
        # llama.cpp reads `content`, `add_special` and `parse_special`; vLLM reads `prompt` and `add_special_tokens`.
        return {
            "model": self._model,
            "content": text,
            "prompt": text,
            "add_special": special,
            "parse_special": special,
            "add_special_tokens": special,
        }

    # ---- the probe

    def _probe(self) -> Capabilities:
        listed = _offered(lambda: self._transport.get("/models")) or {}
        entries = [entry for entry in listed.get("data") or () if isinstance(entry, dict)]
        entry = next((e for e in entries if e.get("id") == self._model), entries[0] if len(entries) == 1 else {})
        kind = _kind(entry)
        properties = (_offered(lambda: self._transport.get(f"{self._root}/props")) or {}) if kind == "llama.cpp" else {}
        meta = entry.get("meta") or {}
        context = entry.get("max_model_len") or (properties.get("default_generation_settings") or {}).get("n_ctx") or 0
        sample = self._sample_tokens() if kind != "other" else ()
        identity = [kind, entry.get("root"), meta.get("n_params"), meta.get("size"), properties.get("model_path")]
        return Capabilities(
            kind=kind,
            context=int(context),
            parameters=int(meta.get("n_params") or 0),
            tokenizer=bool(sample),
            scoring=self._scoring(kind, sample),
            end_token=self._end_token(properties) if sample else None,
            identity=hashlib.sha256(json.dumps(identity).encode()).hexdigest(),
        )

    def _sample_tokens(self) -> tuple[int, ...]:
        body = self._tokenize_body("one two three", special=False)
        answer = _offered(lambda: self._transport.post(f"{self._root}/tokenize", body)) or {}
        found = answer.get("tokens") or ()
        return tuple(token for token in found if isinstance(token, int))

    def _end_token(self, properties: Mapping[str, Any]) -> int | None:
        text = properties.get("eos_token")
        tokens = self._tokenize_special(text) if isinstance(text, str) and text else ()
        return tokens[0] if len(tokens) == 1 else None

    def _tokenize_special(self, text: str) -> tuple[int, ...]:
        body = {"content": text, "add_special": False, "parse_special": True}
        return tuple(self._transport.post(f"{self._root}/tokenize", body)["tokens"])

    def _scoring(self, kind: ServerKind, sample: tuple[int, ...]) -> ScoringWay:
        if len(sample) < 2:
            return "none"
        worst = (len(sample), 1)
        if kind == "llama.cpp":  # it refuses `echo`, but tells the log-probability of a token that is forced
            return "forced" if self._tells_forced(sample) else "none"
        body = {"model": self._model, "prompt": [list(sample)], **ECHO}
        answer = _offered(lambda: self._transport.complete("/completions", body, worst)) or {}
        given = echoed(answer, 1)
        return "echo" if given and len(given[0]) >= len(sample) and given[0][1] is not None else "none"

    def _tells_forced(self, sample: tuple[int, ...]) -> bool:
        try:
            probs = [math.exp(forced_logprob(self._transport, self._model, sample, token)) for token in sample[:2]]
        except EngineError as refused:
            if refused.code not in ("endpoint-refused", "scoring-unsupported"):
                raise
            return False
        return sum(probs) <= 1.001  # had the server counted the bias in, each would have a chance near one


ECHO = {"max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
FORCE = 1e4  # added to the logit of the token that has to come


def forced_logprob(
    transport: Transport, model: str, prompt: tuple[int, ...], token: int, stopped: threading.Event | None = None
) -> float:
    """Return the log-probability of `token` behind `prompt`, from a server that reports it before the bias.

    Raises:
        EngineError: `scoring-unsupported`: the server did not take the token, or does not tell.
    """
    body = {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": 1,
        "logit_bias": [[token, FORCE]],
        "cache_prompt": True,
    }
    answer = transport.complete("/completions", body, (len(prompt), 1), stopped or threading.Event())
    content = (answer["choices"][0].get("logprobs") or {}).get("content") or ()
    if not content or content[0].get("id") != token or not isinstance(content[0].get("logprob"), int | float):
        raise unsupported(transport, "does not tell the log-probability of a given token")
    return float(content[0]["logprob"])


def echoed(answer: Mapping[str, Any], prompts: int) -> list[list[float | None]]:
    """Return the log-probabilities of the tokens of every prompt, in order; nothing where some are missing."""
    choices = sorted(answer.get("choices") or (), key=lambda choice: choice.get("index", 0))
    rows = [(choice.get("logprobs") or {}).get("token_logprobs") for choice in choices]
    return [list(row) for row in rows if row] if len(rows) == prompts else []


def estimate(prompt: ModelInput) -> int:
    """Return about how many tokens a prompt has, from its characters."""
    if prompt and isinstance(prompt[0], int):
        return len(prompt)
    return sum(4 + estimate_text(message["content"]) for message in prompt)  # type: ignore[index, misc]


def estimate_text(text: str) -> int:
    """Return about how many tokens a text has."""
    return math.ceil(len(text) / CHARACTERS_PER_TOKEN)


def unsupported(transport: Transport, why: str) -> EngineError:
    """Return the error for scores that a server cannot give exactly."""
    return EngineError(
        "scoring-unsupported",
        f"labels cannot be scored at {transport.endpoint.base_url}: the server {why}",
        hint="let the model write the label instead: a Generate decoder with `choices`",
    )


def _kind(entry: Mapping[str, Any]) -> ServerKind:
    owner = entry.get("owned_by")
    return "llama.cpp" if owner == "llamacpp" else "vllm" if owner == "vllm" else "other"


def _offered(call: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
    """Return what a call answers, or None where the server refuses it as unknown or wrong."""
    try:
        return call()
    except EngineError as refused:
        if refused.code != "endpoint-refused":
            raise
        return None


# --------------------
# Constraints as servers understand them, and the proof afterwards that they were kept.
#
# Some servers ignore what they do not know. Every finished answer is therefore checked, and one that does not fit is an
# error, never an answer. With `response_format`, choices and regexes travel inside an object, `{"answer": ...}`: that
# is
# the only root that all servers accept.


WRAPPER_TOKENS = 16  # what `{"answer": "` and `"}` take at most
FIELD = "answer"


def wraps(constraint: Constraint | None, style: ConstraintStyle) -> bool:
    """Tell whether the answer comes inside an object."""
    return constraint is not None and style == "json_schema" and constraint.kind != "json_schema"


def constraint_fields(constraint: Constraint | None, style: ConstraintStyle) -> dict[str, Any]:
    """Return the fields of a request's body that ask for a constraint.

    Raises:
        EngineError: `constraint-unsupported`: there is no way to ask this server for it.
        ConfigError: the schema is not JSON, or the regex is not one.
    """
    if constraint is None:
        return {}
    if style != "none" and constraint.kind == "json_schema":
        return _response_format("answer", schema_of(constraint))
    if constraint.kind == "regex":
        _pattern(constraint)
    if style == "json_schema":
        return _response_format(FIELD, _wrapped(constraint))
    if style == "structured_outputs":
        return {"structured_outputs": {_vllm_name(constraint): _plain(constraint)}}
    if style == "guided":
        return {f"guided_{_vllm_name(constraint)}": _plain(constraint)}
    if style == "grammar" and constraint.kind == "choices":
        return {"grammar": "root ::= " + " | ".join(_quoted(choice) for choice in constraint.value)}
    hint = "choose another with RUNG_API_CONSTRAINTS: json_schema, structured_outputs or guided"
    raise EngineError(
        "constraint-unsupported", f"a {constraint.kind} constraint cannot be asked for as `{style}`", hint=hint
    )


def schema_of(constraint: Constraint) -> Mapping[str, Any]:
    """Return a JSON Schema from its text."""
    try:
        schema = json.loads(str(constraint.value))
    except ValueError as broken:
        raise ConfigError("bad-constraint", f"the JSON Schema is not JSON: {broken}", hint="correct it") from broken
    if not isinstance(schema, dict):
        raise ConfigError("bad-constraint", "the JSON Schema is not an object", hint="begin with `type: object`")
    return schema


def _response_format(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    described = {"name": name, "strict": True, "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": described}}


def _wrapped(constraint: Constraint) -> dict[str, Any]:
    inner: dict[str, Any] = {"type": "string", "enum": list(constraint.value)}
    if constraint.kind == "regex":
        inner = {"type": "string", "pattern": f"^({constraint.value})$"}
    return {"type": "object", "properties": {FIELD: inner}, "required": [FIELD], "additionalProperties": False}


def _vllm_name(constraint: Constraint) -> str:
    return "choice" if constraint.kind == "choices" else "regex"


def _plain(constraint: Constraint) -> object:
    return list(constraint.value) if constraint.kind == "choices" else constraint.value


def _quoted(text: str) -> str:
    """Return a GBNF literal; JSON's escapes of quotes, backslashes and line ends are also GBNF's."""
    return json.dumps(text, ensure_ascii=False)


def _pattern(constraint: Constraint) -> re.Pattern[str]:
    try:
        return re.compile(str(constraint.value))
    except re.error as wrong:
        raise ConfigError("bad-constraint", f"the regex is not valid: {wrong}", hint="correct it") from wrong


def constrained_answer(
    text: str, constraint: Constraint | None, style: ConstraintStyle, finish: FinishReason, where: str
) -> str:
    """Return the answer itself, out of its object where it came in one.

    An answer that was cut at `max_tokens` cannot be checked and comes as it is; its finish reason says so.

    Raises:
        EngineError: `constraint-unsupported`: the server did not keep to the constraint.
    """
    if constraint is None or finish != "stop":
        return text
    problem: str | None = "it is not the JSON that was asked for"
    answer: object = text
    try:
        if constraint.kind == "json_schema":
            problem = schema_problem(json.loads(text), str(constraint.value))
        else:
            answer = json.loads(text)[FIELD] if wraps(constraint, style) else text
            problem = None if _matches(answer, constraint) else "it does not match"
    except (ValueError, KeyError, TypeError, IndexError):
        pass  # no JSON, or another object
    if problem is not None:
        raise EngineError(
            "constraint-unsupported",
            f"{where} was asked for a {constraint.kind} constraint as `{style}` and answered {text[:80]!r}: {problem}",
            hint="set RUNG_API_CONSTRAINTS to what the server knows: json_schema, grammar, structured_outputs, guided",
        )
    return str(answer)


def _matches(answer: object, constraint: Constraint) -> bool:
    if constraint.kind == "choices":
        return answer in constraint.value
    return isinstance(answer, str) and _pattern(constraint).fullmatch(answer) is not None
