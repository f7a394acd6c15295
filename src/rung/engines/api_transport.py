"""Requests over the wire, through the `openai` client: every way they fail becomes one clear error or another try."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rung.engines.api_budget import Budget
from rung.engines.api_options import ApiOptions, Endpoint
from rung.engines.api_retry import Attempt, Retry, retry_after
from rung.errors import EngineError

NEVER = threading.Event()  # for callers that always wait for the outcome
UNKNOWN_CALL = (404, 405, 501)  # the server does not know this path
OVERFLOW = ("context_length_exceeded", "exceed_context_size_error")
SHOWN = 300  # characters of what the server said


class NotOfferedError(EngineError):
    """The server does not know the path that was called."""


class Transport:
    """One endpoint. Safe for many threads.

    Args:
        endpoint: where, and with which key.
        options: limits and prices.
        pause_scale: multiplies the pauses between attempts.
    """

    def __init__(self, endpoint: Endpoint, options: ApiOptions, *, pause_scale: float = 1.0) -> None:
        import openai

        self.endpoint, self.options = endpoint, options
        self.budget = Budget(options)
        self.retry = Retry(options.attempts, scale=pause_scale)
        self._openai = openai
        self._client = openai.OpenAI(
            base_url=endpoint.base_url, api_key=endpoint.key or "none", timeout=options.timeout, max_retries=0
        )

    def __repr__(self) -> str:
        return f"Transport({self.endpoint!r})"

    # ---- calls that cost nothing

    def get(self, path: str) -> dict[str, Any]:
        """Return the JSON object at `path`: below the base URL, or a whole URL."""
        return self.retry.run(lambda: self._json(self._send("GET", path, {})), NEVER)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the JSON object that the server answers to `body`."""
        return self.retry.run(lambda: self._json(self._send("POST", path, body)), NEVER)

    def post_text(self, path: str, body: Mapping[str, Any]) -> str:
        """Return what the server answers to `body`, which need not be JSON."""
        return self.retry.run(lambda: self._send("POST", path, body), NEVER)

    # ---- calls that cost tokens

    def complete(
        self, path: str, body: Mapping[str, Any], worst: tuple[int, int], stopped: threading.Event = NEVER
    ) -> dict[str, Any]:
        """Return the answer to a completion; every attempt is counted against the budget.

        Args:
            path: below the base URL.
            body: the request; an answer without `choices` is sent for again.
            worst: most prompt and completion tokens that it can use.
            stopped: set when nobody waits for the answer any more.

        Raises:
            EngineError: refused, not reached, or the budget is spent.
        """

        def attempt() -> dict[str, Any]:
            reserved = self.budget.reserve(*worst)
            used, billed = None, False
            try:
                try:
                    answer = self._json(self._send("POST", path, body))
                    billed = True
                    used = usage(answer)
                    if path in ANSWERS and not ANSWERS[path](answer):
                        raise self._bad_reply("without a completion")
                except Attempt as failed:
                    billed = failed.billed
                    raise
            finally:
                self.budget.settle(reserved, used, billed=billed)
            return answer

        return self.retry.run(attempt, stopped)

    def stream(self, path: str, body: Mapping[str, Any], worst: tuple[int, int]) -> Iterator[dict[str, Any]]:
        """Yield the chunks of a completion as they come. Only its beginning is tried again.

        Raises:
            EngineError: as `complete`; or the stream ended before the completion did.
        """
        return _Stream(self, path, body, worst).chunks()

    # ---- one attempt

    def _send(self, method: str, path: str, body: Mapping[str, Any]) -> str:
        with self.faults():
            if method == "GET":
                return self._client.get(path, cast_to=str)
            return self._client.post(path, cast_to=str, body=dict(body))

    def open_stream(self, path: str, body: Mapping[str, Any]) -> Any:
        """Open a stream of server-sent events; closing it is the caller's."""
        with self.faults():
            return self._client.post(
                path, cast_to=object, body={**body, "stream": True}, stream=True, stream_cls=self._openai.Stream[object]
            )

    def faults(self) -> _Faults:
        """Return a context in which the client's exceptions become ours."""
        return _Faults(self, self._openai)

    def _json(self, text: str) -> dict[str, Any]:
        try:
            values = json.loads(text)
        except ValueError as broken:
            raise self._bad_reply("with broken JSON") from broken
        if not isinstance(values, dict):
            raise self._bad_reply("with JSON that is no object")
        return values

    # ---- what failures mean

    def _bad_reply(self, how: str) -> Attempt:
        error = EngineError(
            "endpoint-bad-reply",
            f"{self.endpoint.base_url} answered {how}",
            hint="look into the server's log; the address has to end with the API's prefix, mostly /v1",
        )
        return Attempt(error, billed=True)

    def unreachable(self, why: BaseException) -> Attempt:
        """The connection could not be made, or broke."""
        cause = why.__cause__ or why
        broke = any(word in type(cause).__name__ for word in ("Protocol", "Read"))  # it was made: work may be done
        what = "closed the connection before its answer was whole" if broke else "cannot be reached"
        error = EngineError(
            "endpoint-unreachable",
            f"{self.endpoint.base_url} {what}: {self.redacted(str(cause))}",
            hint="start the server, or correct the address in the model reference",
        )
        return Attempt(error, billed=broke)

    def late(self) -> Attempt:
        """No answer came in time."""
        error = EngineError(
            "endpoint-timeout",
            f"{self.endpoint.base_url} did not answer within {self.options.timeout:g} s",
            hint="raise RUNG_API_TIMEOUT, or send fewer requests at once with RUNG_API_CONCURRENCY",
        )
        return Attempt(error, billed=True)

    def refused(self, status: int, headers: Mapping[str, str], body: object) -> EngineError | Attempt:
        """The server answered with an error: return what to raise."""
        said, code = self._said(body)
        where = self.endpoint.base_url
        if status == 429 and code != "insufficient_quota":
            return Attempt(
                EngineError(
                    "endpoint-rate-limited",
                    f"{where} admits no more requests now: {said}",
                    hint="wait, or send fewer at once with RUNG_API_CONCURRENCY",
                ),
                after=retry_after(headers),
            )
        if status >= 500 and status not in UNKNOWN_CALL:
            return Attempt(
                EngineError(
                    "endpoint-failed",
                    f"{where} failed with status {status}: {said}",
                    hint="look into the server's log; try fewer at once with RUNG_API_CONCURRENCY",
                ),
                after=retry_after(headers),
            )
        if status in (401, 403):
            return EngineError(
                "api-key-refused", f"{where} refuses the key (status {status})", hint="set RUNG_API_KEY to a valid one"
            )
        if code in OVERFLOW:
            return EngineError(
                "context-overflow",
                f"{where}: {said}",
                hint="show fewer demonstrations, shorten the input, or choose a model with a longer context",
            )
        if status in UNKNOWN_CALL:
            return NotOfferedError(
                "endpoint-refused",
                f"{where} does not offer this (status {status}): {said}",
                hint="check the name of the model; the address has to end with the API's prefix, mostly /v1",
            )
        return EngineError(
            "endpoint-refused",
            f"{where} refuses the request (status {status}): {said}",
            hint="check the name of the model and what the server supports",
        )

    def _said(self, body: object) -> tuple[str, str]:
        """Return the server's message, without the key, and its code."""
        values = body.get("error", body) if isinstance(body, dict) else body
        if not isinstance(values, dict):
            return self.redacted(str(values or "it does not say why")), ""
        code = values.get("code") if isinstance(values.get("code"), str) else values.get("type")
        return self.redacted(str(values.get("message") or "it does not say why")), str(code or "")

    def redacted(self, text: str) -> str:
        """Return a short form of `text` without the key."""
        key = self.endpoint.key
        return " ".join((text.replace(key, "***") if key else text).split())[:SHOWN]


class _Faults:
    """Turns the exceptions of the client into errors for users, or into `Attempt` where another try may help."""

    def __init__(self, transport: Transport, openai: Any) -> None:
        self._transport, self._openai = transport, openai

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, self._openai.APITimeoutError):
            raise self._transport.late() from error
        if isinstance(error, self._openai.APIStatusError):
            # The client's exception holds the request with its headers: it is not chained.
            raise self._transport.refused(error.status_code, error.response.headers, error.body) from None
        if isinstance(error, self._openai.APIConnectionError):
            raise self._transport.unreachable(error) from None


class _Stream:
    """One streamed completion, accounted for when it ends, however it ends."""

    def __init__(self, transport: Transport, path: str, body: Mapping[str, Any], worst: tuple[int, int]) -> None:
        self._transport, self._path, self._worst = transport, path, worst
        self._body = {**body, "stream_options": {"include_usage": True}}

    def chunks(self) -> Iterator[dict[str, Any]]:
        budget = self._transport.budget
        events, reserved = self._transport.retry.run(self._open, NEVER)
        used: tuple[int, int] | None = None
        finished = False
        try:
            for chunk in self._read(events):
                used = usage(chunk) or used
                finished = finished or any(c.get("finish_reason") for c in chunk.get("choices") or ())
                yield chunk
            if not finished:
                raise self._cut("the connection closed")
        finally:
            events.close()
            budget.settle(reserved, used)

    def _open(self) -> tuple[Any, float]:
        transport = self._transport
        reserved = transport.budget.reserve(*self._worst)
        billed = False
        try:
            return transport.open_stream(self._path, self._body), reserved
        except BaseException as failed:
            billed = isinstance(failed, Attempt) and failed.billed
            transport.budget.settle(reserved, None, billed=billed)
            raise

    def _read(self, events: Any) -> Iterator[dict[str, Any]]:
        iterator = iter(events)
        while True:
            try:
                chunk = next(iterator, None)
            except Exception as broken:  # of the client, of its HTTP library, or of JSON: all mean that no more comes
                raise self._cut(str(broken)) from None
            if chunk is None:
                return
            if not isinstance(chunk, dict):
                raise self._cut("a chunk is no JSON object")
            yield chunk

    def _cut(self, why: str) -> EngineError:
        where, said = self._transport.endpoint.base_url, self._transport.redacted(why)
        return EngineError(
            "stream-cut",
            f"{where} broke off in the middle of an answer: {said}",
            hint="run again; what came so far is only part of the answer",
        )


def usage(answer: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return prompt and completion tokens as the server counted them, or None where it did not."""
    counted = answer.get("usage")
    if not isinstance(counted, dict) or not isinstance(counted.get("prompt_tokens"), int):
        return None
    return counted["prompt_tokens"], int(counted.get("completion_tokens") or 0)


def _first(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = answer.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else {}


def _has_text(answer: Mapping[str, Any]) -> bool:
    return isinstance(_first(answer).get("text"), str)


def _has_message(answer: Mapping[str, Any]) -> bool:
    message = _first(answer).get("message")
    return isinstance(message, dict) and isinstance(message.get("content"), str | None)


# What an answer has to hold; a filtered or reasoned-away message may have no content.
ANSWERS: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    "/completions": _has_text,
    "/chat/completions": _has_message,
}
