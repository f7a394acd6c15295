"""The api engine: a model at any OpenAI-compatible endpoint (llama.cpp, vLLM, a vendor)."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rung.engines.api_options import ApiOptions, Spent, Usage, check_reachable, parse_endpoint
from rung.engines.api_server import (
    WRAPPER_TOKENS,
    EndpointServer,
    answer_of,
    chat_fields,
    constrained_answer,
    constraint_fields,
    estimate,
    estimate_text,
    thinking_fields,
    thought_of,
    wraps,
)
from rung.engines.api_transport import NotOfferedError, RefusedError, Transport, completed, max_prompt_tokens, usage
from rung.engines.base import (
    CANCELLED,
    Cancelled,
    EngineInfo,
    FinishReason,
    Floats,
    GenerateRequest,
    Generation,
    ModelInput,
    Scored,
    ScoreRequest,
    whole_characters,
)
from rung.engines.changes import adapter_fingerprint
from rung.errors import ConfigError, EngineError
from rung.models.messages import thinking_of
from rung.models.thinking import THOUGHT_TOKENS, AfterThought, split_thought
from rung.progress import QUIET, Progress

EMBEDDED_AT_ONCE = 32  # texts a request


class ApiEngine:
    """One model at one endpoint, `http(s)://HOST/v1#MODEL`. Opening it sends nothing; the first question does.

    The options come from the environment by default.

    Raises:
        ConfigError: the reference is not an endpoint, or an option is out of range.
        EngineError: there is no key for an endpoint on another machine, or the network is off.
        MachineError: `not-trusted`: a file names an endpoint on another machine, and the user has not allowed it.
    """

    def __init__(self, reference: str, options: ApiOptions | None = None, *, pause_scale: float = 1.0) -> None:
        self.reference = reference
        self.options = options or ApiOptions.from_environment()
        self.endpoint = parse_endpoint(reference)
        check_reachable(self.endpoint.base_url)
        self._transport = Transport(self.endpoint, self.options, pause_scale=pause_scale)
        self._server = EndpointServer(self._transport)
        self._adapters: dict[str, str] = {}
        self._loading = threading.Lock()

    @property
    def info(self) -> EngineInfo:
        """Which model runs where. `details`: `server`, `scoring` (echo, forced, none), `tokens` (exact, estimated).

        Raises:
            EngineError: the server cannot be reached, or refuses the key.
        """
        capabilities = self._server.capabilities
        identity = f"{self.reference}\n{capabilities.identity}\n{self.options.constraints}"
        return EngineInfo(
            engine="api", model=self.endpoint.model, device="remote", dtype="unknown",
            parameters=capabilities.parameters, context=capabilities.context,
            fingerprint=f"{hashlib.sha256(identity.encode()).hexdigest()}/api",
            details={
                "endpoint": self.endpoint.base_url, "server": capabilities.kind, "scoring": capabilities.scoring,
                "tokens": "exact" if capabilities.tokenizer else "estimated",
            },
        )  # fmt: skip

    @property
    def spent(self) -> Spent:
        """Requests, tokens and money used so far."""
        return self._transport.budget.spent

    # ---- tokens

    @property
    def end_token(self) -> int | None:
        """The token that ends an answer, where the server gives it."""
        return self._server.capabilities.end_token

    def encode(self, text: str) -> tuple[int, ...]:
        """The token ids of `text`; `scoring-unsupported` where the server does not give tokens."""
        return self._server.encode(text)

    def count(self, prompt: ModelInput) -> int:
        """How many tokens a prompt takes; an estimate where `info.details["tokens"]` says so."""
        return self._server.count(prompt)

    def text(self, prompt: ModelInput) -> str:
        """The messages as readable text: the server's own template makes the exact one."""
        if prompt and isinstance(prompt[0], int):
            return f"token ids: {' '.join(map(str, prompt))}"
        return "\n\n".join(f"[{message['role']}]\n{message['content']}" for message in prompt)  # type: ignore[index]

    # ---- generate

    def generate(
        self, requests: Sequence[GenerateRequest], *, progress: Progress = QUIET, cancelled: Cancelled | None = None
    ) -> list[Generation]:
        """Complete every request; see `each` for the errors."""
        generations = dict(self.each(requests, progress=progress, cancelled=cancelled))
        return [generations.get(i, CANCELLED) for i in range(len(requests))]

    def each(
        self, requests: Sequence[GenerateRequest], *, progress: Progress = QUIET, cancelled: Cancelled | None = None
    ) -> Iterator[tuple[int, Generation]]:
        """Yield every completion with the index of its request as soon as it ends.

        When one fails, those in flight are still yielded before the error is raised: paid answers are not lost.

        Raises:
            EngineError: `budget-spent`, `constraint-unsupported`, `endpoint-...`, `context-overflow`.
            ConfigError: a constraint is not valid.
        """
        bodies = [self._body(request) for request in requests]  # what cannot be asked is an error before any is sent
        progress.start("generating", len(requests))
        before = time.perf_counter()
        for index, generation in completed(
            len(requests), lambda i, stopped: self._complete(requests[i], bodies[i], stopped),
            concurrency=self.options.concurrency, cancelled=cancelled,
        ):  # fmt: skip
            progress.advance()
            before, seconds = (now := time.perf_counter()), now - before
            yield index, replace(generation, seconds=seconds)
        spent = self.spent
        progress.finish(f"{spent.money:.4g} spent" if spent.money else "")

    def _body(self, request: GenerateRequest) -> dict[str, Any]:
        sampling, style = request.sampling, self.options.constraints
        tokens = bool(request.prompt) and isinstance(request.prompt[0], int)
        body: dict[str, Any] = {
            "model": self.endpoint.model if request.adapter is None else self.load_adapter(request.adapter),
            **({"prompt": list(request.prompt)} if tokens else self._chat_fields(request.prompt)),
            "max_tokens": sampling.max_tokens
            + (WRAPPER_TOKENS if wraps(request.constraint, style) else 0)
            + (0 if tokens else THOUGHT_TOKENS.get(thinking_of(request.prompt), 0)),  # type: ignore[arg-type]
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            **constraint_fields(request.constraint, style),
        }
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if request.logprobs:
            body |= {"logprobs": 1, "return_token_ids": True} if tokens else {"logprobs": True}
        return body

    def _chat_fields(self, prompt: Any) -> dict[str, Any]:
        return {**chat_fields(prompt), **thinking_fields(prompt, self._server.known_kind)}

    def _complete(self, request: GenerateRequest, body: dict[str, Any], stopped: threading.Event) -> Generation:
        worst = (max_prompt_tokens(request.prompt), int(body["max_tokens"]))
        answer = self._transport.complete(_path(body), body, worst, stopped)
        choice = answer["choices"][0]
        thought, text = "", choice.get("text", "")
        if "messages" in body:
            thought, text = split_thought(answer_of(choice["message"]))
            thought = thought_of(choice["message"]) or thought
        finish: FinishReason = "length" if choice.get("finish_reason") == "length" else "stop"
        used = usage(answer) or Usage(estimate(request.prompt), estimate_text(text))
        text = constrained_answer(text, request.constraint, self.options.constraints, finish, self.endpoint.base_url)
        logprobs = self._logprobs(choice) if request.logprobs else ()
        tokens = tuple(choice.get("token_ids") or ()) if request.logprobs else ()
        counts = used.prompt_tokens, used.completion_tokens
        return Generation(text, *counts, finish, 0.0, logprobs, used.cached_tokens, thought, tokens)

    def _logprobs(self, choice: dict[str, Any]) -> tuple[float, ...]:
        logprobs = choice.get("logprobs") or {}
        values = logprobs.get("token_logprobs") or [token.get("logprob") for token in logprobs.get("content") or ()]
        if not values or None in values:
            problem = f"{self.endpoint.base_url} was asked for log-probabilities and gave none"
            hint = "ask for text alone, or choose a server that gives them (llama.cpp, vLLM)"
            raise EngineError("scoring-unsupported", problem, hint=hint)
        return tuple(map(float, values))

    def stream(self, request: GenerateRequest) -> Iterator[str]:
        """Yield the text of one completion in pieces, in one piece where it comes inside an object or may be a call.

        Raises:
            EngineError: `endpoint-failed`: the server broke off.
        """
        calls = bool(request.prompt) and isinstance(request.prompt[0], dict) and "tools" in request.prompt[0]
        if calls or wraps(request.constraint, self.options.constraints):
            yield self.generate([request])[0].text
            return
        body = self._body(request)
        worst = (max_prompt_tokens(request.prompt), int(body["max_tokens"]))
        held = ""  # half a character: its other half may follow, or the text was cut there
        shown = AfterThought()
        for chunk in self._transport.stream(_path(body), body, worst):
            for choice in chunk.get("choices") or ():
                piece = choice.get("text") if "prompt" in body else (choice.get("delta") or {}).get("content")
                text = held + (piece or "")
                whole = whole_characters(text)
                held = text[len(whole) :]
                if piece := whole if "prompt" in body else shown.more(whole):
                    yield piece
        if rest := shown.end():
            yield rest

    # ---- score and embed

    def score(self, requests: Sequence[ScoreRequest], *, progress: Progress = QUIET) -> list[Scored]:
        """Score every continuation exactly; `best` needs no search here.

        Raises:
            EngineError: `scoring-unsupported`: the server gives no exact log-probabilities.
        """
        progress.start("scoring", len(requests))
        models = [self.endpoint.model if r.adapter is None else self.load_adapter(r.adapter) for r in requests]
        results: dict[int, Scored] = {}
        before = time.perf_counter()
        work = lambda i, stopped: self._server.score(models[i], requests[i], stopped)  # noqa: E731
        for index, scored in completed(len(requests), work, concurrency=self.options.concurrency):
            before, seconds = (now := time.perf_counter()), now - before
            results[index] = replace(scored, seconds=seconds)
            progress.advance()
        progress.finish()
        return [results[i] for i in range(len(requests))]

    def embed(self, texts: Sequence[str], *, progress: Progress = QUIET) -> Floats:
        """One unit vector per text by the `/embeddings` call, shape [texts, dimension].

        Raises:
            EngineError: `embedding-unsupported`: the server offers no embeddings for this model.
        """
        parts = [list(texts[i : i + EMBEDDED_AT_ONCE]) for i in range(0, len(texts), EMBEDDED_AT_ONCE)]
        progress.start("embedding", len(texts))
        rows: dict[int, list[list[float]]] = {}
        work = lambda i, stopped: self._embed(parts[i], stopped)  # noqa: E731
        for index, vectors in completed(len(parts), work, concurrency=self.options.concurrency):
            rows[index] = vectors
            progress.advance(len(vectors))
        progress.finish()
        states = np.array([vector for i in range(len(parts)) for vector in rows[i]], np.float32)
        unit: Floats = states / np.maximum(np.linalg.norm(states, axis=-1, keepdims=True), 1e-12)
        return unit

    def _embed(self, texts: list[str], stopped: threading.Event) -> list[list[float]]:
        body = {"model": self.endpoint.model, "input": texts, "encoding_format": "float"}
        worst = (sum(len(text.encode()) + 2 for text in texts), 0)
        try:
            answer = self._transport.complete("/embeddings", body, worst, stopped)
        except RefusedError as refused:
            raise self._no_embeddings(refused.message) from refused
        rows = sorted(answer.get("data") or (), key=lambda row: row.get("index", 0))
        if len(rows) != len(texts):
            raise self._no_embeddings(f"it gave {len(rows)} vectors for {len(texts)} texts")
        return [row["embedding"] for row in rows]

    def _no_embeddings(self, why: str) -> EngineError:
        problem = f"{self.endpoint.base_url} gives no embeddings of {self.endpoint.model}: {why}"
        hint = "use a sentence encoder on this machine, such as `embedded-encoder`"
        return EngineError("embedding-unsupported", problem, hint=hint)

    # ---- adapters

    def load_adapter(self, folder: str) -> str:
        """Have the server load a LoRA adapter, once, and return its name there.

        The server has to find the folder under the same path. vLLM offers this when it was started
        with `VLLM_ALLOW_RUNTIME_LORA_UPDATING=True` and `--enable-lora`.

        Raises:
            EngineError: `adapter-unsupported`: the server cannot load adapters, or not this one.
            ConfigError: there is no adapter in the folder.
        """
        path = Path(folder).absolute()
        if not (path / "adapter_config.json").is_file():
            raise ConfigError("wrong-folder", f"{path} has no adapter_config.json", hint="name an adapter's folder")
        with self._loading:
            if folder not in self._adapters:
                name = f"rung-{adapter_fingerprint(folder)[:12]}"
                self._load(name, path)
                self._adapters[folder] = name
            return self._adapters[folder]

    def unload_adapter(self, folder: str) -> None:
        """Have the server forget an adapter that was loaded from this folder, if it was."""
        with self._loading:
            if (name := self._adapters.pop(folder, None)) is not None:
                self._transport.send("/unload_lora_adapter", {"lora_name": name})

    def _load(self, name: str, path: Path) -> None:
        try:
            self._transport.send("/load_lora_adapter", {"lora_name": name, "lora_path": str(path)})
        except RefusedError as refused:
            if "already" in refused.message:
                return  # the name holds the adapter's hash: what is loaded under it is this adapter
            what = "does not load adapters" if isinstance(refused, NotOfferedError) else "refuses the adapter"
            problem = f"{self.endpoint.base_url} {what}: {refused.message}"
            hint = "serve it with vLLM (--enable-lora, VLLM_ALLOW_RUNTIME_LORA_UPDATING=True), or run it on torch"
            raise EngineError("adapter-unsupported", problem, hint=hint) from refused


def _path(body: dict[str, Any]) -> str:
    return "/completions" if "prompt" in body else "/chat/completions"
