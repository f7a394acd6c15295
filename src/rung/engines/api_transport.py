"""Requests to an endpoint, through the `openai` client: every failure becomes one clear error or another attempt.

The client's own retries are switched off for two reasons: the budget has to count every attempt by what it may have
cost, and a pause that the server asks for has to hold for all threads.
"""

from __future__ import annotations

import json
import queue
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from rung import user_code
from rung.engines.api_options import ApiBudget, ApiOptions, Endpoint, Usage
from rung.engines.base import Cancelled, ModelInput
from rung.errors import EngineError

T = TypeVar("T")

# ---- retries: exponential back-off with full jitter (Brooker 2015, "Exponential Backoff And Jitter", AWS Architecture
# Blog), which finishes soonest with the fewest calls when many clients were refused at once

FIRST_PAUSE = 0.5  # seconds: upper end of the first pause
MAX_PAUSE = 30.0  # seconds: upper end of any pause that we choose ourselves
PATIENCE = 300.0  # seconds: a server that asks for a longer pause is given up
NEVER = threading.Event()  # for callers that always wait for the outcome


class Attempt(Exception):  # noqa: N818 - not an error for users: it says how one attempt ended
    """One attempt failed in a way that another may not; `error` is raised when no attempt is left.

    The server asked to wait `after` seconds, and may have done the work if `billed`.
    """

    def __init__(self, error: EngineError, *, after: float | None = None, billed: bool = False) -> None:
        super().__init__(error.message)
        self.error, self.after, self.billed = error, after, billed


class Retry:
    """Sends up to `attempts` times. A pause that the server asks for holds for all threads; `scale` changes ours."""

    def __init__(self, attempts: int, *, scale: float = 1.0) -> None:
        self.attempts, self.scale = attempts, scale
        self._not_before = 0.0
        self._lock = threading.Lock()

    def run(self, attempt: Callable[[], T], stopped: threading.Event = NEVER) -> T:
        """Call `attempt`, and call it again while it raises `Attempt`.

        Raises:
            EngineError: the last attempt failed, or the server asks for a pause that is too long.
        """
        for number in range(self.attempts):
            stopped.wait(max(0.0, self._not_before - time.monotonic()))
            try:
                return attempt()
            except Attempt as failed:
                if number + 1 == self.attempts or (failed.after or 0) > PATIENCE:
                    raise failed.error from failed.__cause__
                if failed.after is not None:
                    with self._lock:
                        self._not_before = max(self._not_before, time.monotonic() + failed.after)
                pause = random.uniform(0, min(MAX_PAUSE, FIRST_PAUSE * 2**number)) * self.scale
                stopped.wait(max(pause, self._not_before - time.monotonic()))
                if stopped.is_set():
                    raise failed.error from failed.__cause__
        raise AssertionError("attempts is at least 1")


def retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """The seconds that a server asks to wait: `retry-after-ms`, or `Retry-After` in seconds or as a date."""
    try:
        if milliseconds := headers.get("retry-after-ms"):
            return max(0.0, float(milliseconds) / 1000)
        if text := headers.get("retry-after"):
            if text.strip().replace(".", "", 1).isdigit():
                return float(text)
            return max(0.0, (parsedate_to_datetime(text) - (now or datetime.now(UTC))).total_seconds())
    except (ValueError, TypeError):
        return None  # not a time: our own pauses apply
    return None


# ---- many requests at once

POLL_SECONDS = 0.1  # between questions whether the caller has cancelled


def completed(
    count: int, work: Callable[[int, threading.Event], T], *, concurrency: int, cancelled: Cancelled | None = None
) -> Iterator[tuple[int, T]]:
    """Yield `(i, work(i, stopped))` for every `i` below `count`, in the order in which they end.

    After a failure, or once `cancelled` says so, no more are started, those in flight are awaited and yielded, and
    then the first failure is raised. A consumer that goes away (an interrupt) sets `stopped` and waits for nobody: the
    threads are daemons, which a `ThreadPoolExecutor`'s are not.
    """
    results: queue.SimpleQueue[tuple[int, T | None, BaseException | None]] = queue.SimpleQueue()
    indices = iter(range(count))  # a range's iterator hands every index out once, also to several threads
    closing, stopped = threading.Event(), threading.Event()

    def worker() -> None:
        while not closing.is_set() and (index := next(indices, None)) is not None:
            try:
                results.put((index, work(index, stopped), None))
            except BaseException as failed:
                closing.set()
                results.put((index, None, failed))
        results.put((-1, None, None))

    running = min(concurrency, count)
    for number in range(running):
        threading.Thread(target=worker, name=f"rung-api-{number}", daemon=True).start()
    failure: BaseException | None = None
    try:
        while running:
            if cancelled is not None and cancelled():
                closing.set()
            try:
                index, result, failed = results.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
            if failed is not None:
                failure = failure or failed
            elif index < 0:
                running -= 1
            else:
                yield index, result  # type: ignore[misc]
    finally:
        closing.set()
        stopped.set()
    if failure is not None:
        raise failure


# ---- one endpoint

TURN_TOKENS = 32  # most that a chat template writes around one message
TEMPLATE_TOKENS = 128  # most that it writes besides, such as a default system prompt
UNKNOWN_CALL = (404, 405, 501)  # the server does not know this path
OVERFLOW = ("context_length_exceeded", "exceed_context_size_error")
PLAIN_HEADERS = {  # what a request has without any variable of the environment
    "host", "accept", "accept-encoding", "connection", "user-agent", "content-type", "content-length",
    "transfer-encoding",
}  # fmt: skip
MAX_QUOTED = 300  # characters of the server's message


def max_prompt_tokens(prompt: ModelInput) -> int:
    """A number of tokens that the prompt cannot exceed: vocabularies of bytes have no token below one byte."""
    if prompt and isinstance(prompt[0], int):
        return len(prompt)
    contents = [message["content"] for message in prompt]  # type: ignore[index]
    return sum(len(content.encode()) + TURN_TOKENS for content in contents) + TEMPLATE_TOKENS


class RefusedError(EngineError):
    """The server refuses a request as wrong or unknown: `endpoint-refused`."""


class NotOfferedError(RefusedError):
    """The server does not know the path that was called."""


class Transport:
    """One endpoint. Safe for many threads; `pause_scale` multiplies the pauses between attempts."""

    def __init__(self, endpoint: Endpoint, options: ApiOptions, *, pause_scale: float = 1.0) -> None:
        import openai

        self.endpoint, self.options = endpoint, options
        self._local = user_code.endpoint_permit(endpoint.base_url).local
        self.budget = ApiBudget(options)
        self.retry = Retry(options.attempts, scale=pause_scale)
        self._openai = openai
        # The key and the texts stay at this host: no redirect is followed, and no proxy stands before this machine.
        direct = dict.fromkeys(("http://", "https://", "all://")) if self._local else None
        hooks = {"request": [self._authorize]}
        http = openai.DefaultHttpxClient(follow_redirects=False, mounts=direct, event_hooks=hooks)
        weakref.finalize(self, http.close)
        self._client = openai.OpenAI(
            base_url=endpoint.base_url, api_key="none", timeout=options.timeout, max_retries=0,
            http_client=http,
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"Transport({self.endpoint!r})"

    def _authorize(self, request: Any) -> None:
        """Give a request the endpoint's key; what the client adds from variables of OpenAI goes where their key may."""
        key, encrypted = self.endpoint.key, self.endpoint.base_url.startswith("https://")
        if not (self.endpoint.named and encrypted):
            for name in list(request.headers):
                if name.lower() not in PLAIN_HEADERS and not name.lower().startswith("x-stainless-"):
                    del request.headers[name]
        if key:
            request.headers["Authorization"] = f"Bearer {key}"
        else:
            request.headers.pop("Authorization", None)

    def call(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Call what costs nothing: POST `body`, or GET without one. `path` is below the base URL, or a whole URL."""
        return self.retry.run(lambda: self._json(self._send(path, body)))

    def send(self, path: str, body: Mapping[str, Any]) -> None:
        """POST `body` to what costs nothing and answers with text or JSON."""
        self.retry.run(lambda: self._send(path, body))

    def complete(
        self, path: str, body: Mapping[str, Any], worst: tuple[int, int], stopped: threading.Event = NEVER
    ) -> dict[str, Any]:
        """The answer to a completion; every attempt counts against the budget, one without a completion is repeated.

        `worst` are the largest numbers of prompt and completion tokens that it can use.

        Raises:
            EngineError: refused, not reached, or the budget is spent.
        """

        def attempt() -> dict[str, Any]:
            reserved = self.budget.reserve(*worst)
            used: Usage | None = None
            billed = False
            try:
                answer = self._json(self._send(path, body))
                billed = True
                used = usage(answer)
                if not _is_complete(path, answer):
                    raise self._bad_reply("without a completion")
            except Attempt as failed:
                billed = failed.billed
                raise
            finally:
                self.budget.settle(reserved, used, billed=billed)
            return answer

        return self.retry.run(attempt, stopped)

    def stream(self, path: str, body: Mapping[str, Any], worst: tuple[int, int]) -> Iterator[dict[str, Any]]:
        """Yield the chunks of a completion as they come. Only its beginning is retried.

        Raises:
            EngineError: as `complete`; or the stream ended before the completion did.
        """
        body = {**body, "stream_options": {"include_usage": True}}
        events, reserved = self.retry.run(lambda: self._open_stream(path, body, worst))
        used: Usage | None = None
        finished = False
        iterator = iter(events)
        try:
            while True:
                try:
                    chunk = next(iterator, None)
                except Exception as broken:  # of the client, its HTTP library, or JSON: all mean that no more comes
                    raise self._cut(str(broken)) from None
                if chunk is None:
                    break
                if not isinstance(chunk, dict):
                    raise self._cut("a chunk is not a JSON object")
                used = usage(chunk) or used
                finished = finished or any(c.get("finish_reason") for c in chunk.get("choices") or ())
                yield chunk
            if not finished:
                raise self._cut("the connection closed")
        finally:
            events.close()
            self.budget.settle(reserved, used)

    # ---- one attempt

    def _send(self, path: str, body: Mapping[str, Any] | None) -> str:
        with self._translated():
            if body is None:
                return self._client.get(path, cast_to=str)
            return self._client.post(path, cast_to=str, body=dict(body))

    def _open_stream(self, path: str, body: Mapping[str, Any], worst: tuple[int, int]) -> tuple[Any, float]:
        reserved = self.budget.reserve(*worst)
        try:
            with self._translated():
                body, kind = {**body, "stream": True}, self._openai.Stream[object]
                events = self._client.post(path, cast_to=object, body=body, stream=True, stream_cls=kind)
        except BaseException as failed:
            self.budget.settle(reserved, None, billed=isinstance(failed, Attempt) and failed.billed)
            raise
        return events, reserved

    def _json(self, text: str) -> dict[str, Any]:
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as broken:
            raise self._bad_reply("with broken JSON") from broken
        if not isinstance(values, dict):
            raise self._bad_reply("with JSON that is not an object")
        return values

    # ---- what failures mean

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn the client's exceptions into errors for users, or into `Attempt` where another attempt may help."""
        try:
            yield
        except self._openai.APITimeoutError as error:
            hint = "raise RUNG_API_TIMEOUT, or send fewer requests at once with RUNG_API_CONCURRENCY"
            what = f"did not answer within {self.options.timeout:g} s"
            raise Attempt(self._error("endpoint-unreachable", what, hint), billed=True) from error
        except self._openai.APIStatusError as error:
            # The client's exception holds the request with its headers: it is not chained.
            raise self._refused(error.status_code, error.response.headers, error.body) from None
        except self._openai.APIConnectionError as error:
            cause = error.__cause__ or error
            broke = any(word in type(cause).__name__ for word in ("Protocol", "Read"))  # the server may have worked
            what = "closed the connection before its answer was complete" if broke else "cannot be reached"
            hint = "start the server, or correct the address in the model reference"
            what = f"{what}: {self._redacted(str(cause))}"
            raise Attempt(self._error("endpoint-unreachable", what, hint), billed=broke) from None

    def _error(self, code: str, what: str, hint: str) -> EngineError:
        return EngineError(code, f"{self.endpoint.base_url} {what}", hint=hint)

    def _bad_reply(self, how: str) -> Attempt:
        hint = "look into the server's log; the address has to end with the API's prefix, mostly /v1"
        return Attempt(self._error("endpoint-failed", f"answered {how}", hint), billed=True)

    def _cut(self, why: str) -> EngineError:
        what = f"broke off in the middle of an answer: {self._redacted(why)}"
        return self._error("endpoint-failed", what, "run again; the text so far is only part of the answer")

    def _refused(self, status: int, headers: Mapping[str, str], body: object) -> EngineError | Attempt:
        """What to raise where the server answered with an error."""
        message, code = self._message(body)
        if status == 429 and code != "insufficient_quota":
            hint = "wait, or send fewer at once with RUNG_API_CONCURRENCY"
            limited = self._error("endpoint-rate-limited", f"admits no more requests now: {message}", hint)
            return Attempt(limited, after=retry_after(headers))
        if status >= 500 and status not in UNKNOWN_CALL:
            hint = "look into the server's log; try fewer at once with RUNG_API_CONCURRENCY"
            failed = self._error("endpoint-failed", f"failed with status {status}: {message}", hint)
            return Attempt(failed, after=retry_after(headers))
        if status in (401, 403):
            if self.endpoint.secret and not self.endpoint.named:
                server = user_code.endpoint_permit(self.endpoint.base_url).what
                hint = f"to send the key there, name it: {user_code.HOSTS}={server}, or `rung trust` the task"
                what = f"refuses requests without a key (status {status}), and the key was held back: you did not name"
                return self._error("api-key-refused", f"{what} {server}", hint)
            hint = "set RUNG_API_KEY to a valid one"
            return self._error("api-key-refused", f"refuses the key (status {status})", hint)
        if code in OVERFLOW:
            hint = "show fewer demonstrations, shorten the input, or choose a model with a longer context"
            return self._error("context-overflow", f"refuses the request: {message}", hint)
        if status in UNKNOWN_CALL:
            problem = f"{self.endpoint.base_url} does not offer this (status {status}): {message}"
            hint = "check the name of the model; the address has to end with the API's prefix, mostly /v1"
            return NotOfferedError("endpoint-refused", problem, hint=hint)
        problem = f"{self.endpoint.base_url} refuses the request (status {status}): {message}"
        hint = "check the name of the model and what the server supports"
        return RefusedError("endpoint-refused", problem, hint=hint)

    def _message(self, body: object) -> tuple[str, str]:
        """The server's message, without the key, and its code."""
        values = body.get("error", body) if isinstance(body, dict) else body
        if not isinstance(values, dict):
            return self._redacted(str(values or "it gives no reason")), ""
        code = values.get("code") if isinstance(values.get("code"), str) else values.get("type")
        return self._redacted(str(values.get("message") or "it gives no reason")), str(code or "")

    def _redacted(self, text: str) -> str:
        """A short form of `text` without the key."""
        key = self.endpoint.secret
        return " ".join((text.replace(key, "***") if key else text).split())[:MAX_QUOTED]


def usage(answer: Mapping[str, Any]) -> Usage | None:
    """The tokens as the server counted them, or None where it did not.

    OpenAI and vLLM name the cached ones in `prompt_tokens_details`, DeepSeek in `prompt_cache_hit_tokens`.
    """
    counted = answer.get("usage")
    if not isinstance(counted, dict) or not isinstance(read := counted.get("prompt_tokens"), int):
        return None
    details = counted.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else counted.get("prompt_cache_hit_tokens")
    return Usage(read, int(counted.get("completion_tokens") or 0), min(read, max(0, int(cached or 0))))


def _is_complete(path: str, answer: Mapping[str, Any]) -> bool:
    """Whether an answer holds its completion; a filtered or reasoned-away message may have no content."""
    choices = answer.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    first = first if isinstance(first, dict) else {}
    if path == "/chat/completions":
        message = first.get("message")
        return isinstance(message, dict) and isinstance(message.get("content"), str | None)
    return path != "/completions" or isinstance(first.get("text"), str)
