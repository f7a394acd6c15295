"""Requests over the wire, through the `openai` client: every way they fail becomes one clear error or another try."""

from __future__ import annotations

import json
import os
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import Any, Literal, TypeVar, get_args
from urllib.parse import urlsplit

from rung.engines.base import ModelInput
from rung.errors import ConfigError, EngineError

# --------------------
# When to send again, and after how long.
#
# Exponential back-off with full jitter (Brooker 2015, "Exponential Backoff And Jitter", AWS Architecture Blog): of the
# strategies compared there it finishes soonest with the fewest calls when many clients were refused at once.


T = TypeVar("T")
FIRST = 0.5  # seconds: upper end of the first pause
LONGEST = 30.0  # seconds: upper end of any pause that we choose ourselves
PATIENCE = 300.0  # seconds: a server that asks for a longer pause is given up


class Attempt(Exception):  # noqa: N818 - not an error for users: it says how one attempt ended
    """One attempt failed in a way that another may not.

    Attributes:
        error: what to raise when there is no attempt left.
        after: seconds that the server asked to wait, or None.
        billed: whether the server may have done the work.
    """

    def __init__(self, error: EngineError, *, after: float | None = None, billed: bool = False) -> None:
        super().__init__(error.message)
        self.error, self.after, self.billed = error, after, billed


class Retry:
    """Sends again, with pauses. A pause that the server asks for holds for all threads.

    Args:
        attempts: how often at most.
        scale: multiplies all pauses that we choose ourselves.
    """

    def __init__(self, attempts: int, *, scale: float = 1.0) -> None:
        self.attempts, self.scale = attempts, scale
        self._not_before = 0.0
        self._lock = threading.Lock()

    def run(self, attempt: Callable[[], T], stopped: threading.Event) -> T:
        """Return what `attempt` returns, calling it again while it raises `Attempt`.

        Raises:
            EngineError: the last attempt failed, or the server asks for a pause that is too long.
        """
        for number in range(self.attempts):
            self._pause(self._not_before - time.monotonic(), stopped)
            try:
                return attempt()
            except Attempt as failed:
                if number + 1 == self.attempts or (failed.after or 0) > PATIENCE:
                    raise failed.error from failed.__cause__
                if failed.after is not None:
                    with self._lock:
                        self._not_before = max(self._not_before, time.monotonic() + failed.after)
                own = random.uniform(0, min(LONGEST, FIRST * 2**number)) * self.scale
                self._pause(max(own, self._not_before - time.monotonic()), stopped)
                if stopped.is_set():
                    raise failed.error from failed.__cause__
        raise AssertionError("attempts is at least 1")

    def _pause(self, seconds: float, stopped: threading.Event) -> None:
        if seconds > 0:
            stopped.wait(seconds)


def retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Return the seconds that a server asks to wait: `retry-after-ms`, or `Retry-After` in seconds or as a date."""
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


# --------------------
# Many requests at once, a bounded number in flight, results as they come.


POLL = 0.1  # seconds between questions whether the caller has cancelled


def completed(
    count: int,
    work: Callable[[int, threading.Event], T],
    *,
    concurrency: int,
    cancelled: Callable[[], bool] | None = None,
) -> Iterator[tuple[int, T]]:
    """Yield `(i, work(i, stopped))` for every `i` below `count`, in the order in which they end.

    After a failure, or once `cancelled` says so, no more are begun, those in flight are waited for and yielded, and
    then the first failure is raised. A consumer that goes away (an interrupt) sets `stopped` and waits for nobody: the
    threads are daemons.

    Args:
        count: how many.
        work: does one; `stopped` tells it that nobody waits any more.
        concurrency: how many at once.
        cancelled: asked ten times a second; then the indices that were not begun are never yielded.
    """
    ended: queue.SimpleQueue[tuple[int, T | None, BaseException | None]] = queue.SimpleQueue()
    indices, hand_out = iter(range(count)), threading.Lock()
    no_more, stopped = threading.Event(), threading.Event()

    def next_index() -> int | None:
        with hand_out:
            return None if no_more.is_set() else next(indices, None)

    def worker() -> None:
        while (index := next_index()) is not None:
            try:
                ended.put((index, work(index, stopped), None))
            except BaseException as failed:
                no_more.set()
                ended.put((index, None, failed))
        ended.put((-1, None, None))

    running = min(concurrency, count)
    for number in range(running):
        threading.Thread(target=worker, name=f"rung-api-{number}", daemon=True).start()
    failure: BaseException | None = None
    try:
        while running:
            if cancelled is not None and cancelled():
                no_more.set()
            try:
                index, result, failed = ended.get(timeout=POLL)
            except queue.Empty:
                continue
            if failed is not None:
                failure = failure or failed
            elif index < 0:
                running -= 1
            else:
                yield index, result  # type: ignore[misc]
    finally:
        no_more.set()
        stopped.set()
    if failure is not None:
        raise failure


# --------------------
# What an endpoint is asked with: its address, its key, its limits and its prices.


ConstraintStyle = Literal["json_schema", "grammar", "structured_outputs", "guided", "none"]
STYLES: tuple[ConstraintStyle, ...] = get_args(ConstraintStyle)
PREFIX = "RUNG_API_"


@dataclass(frozen=True, slots=True)
class ApiOptions:
    """How an endpoint is used. Each can be set in the environment: `RUNG_API_` and its name in capitals.

    Attributes:
        concurrency: most requests in flight at once.
        timeout: seconds until a request without an answer is given up (and tried again).
        attempts: how often a request is sent at most.
        constraints: how the server is told of a constraint. `json_schema` is the `response_format` that most servers
            know; `grammar` is llama.cpp's, `structured_outputs` vLLM's, `guided` that of vLLM before 0.10; `none`
            refuses constraints.
        price_input: price of a million prompt tokens, in any currency.
        price_output: price of a million completion tokens, in the same currency.
        budget: most that this process may spend at the endpoint, in that currency; None for no limit.
    """

    concurrency: int = 8
    timeout: float = 120.0
    attempts: int = 6
    constraints: ConstraintStyle = "json_schema"
    price_input: float = 0.0
    price_output: float = 0.0
    budget: float | None = None

    def __post_init__(self) -> None:
        if self.constraints not in STYLES:
            raise _bad_option("constraints", self.constraints, f"choose one of {', '.join(STYLES)}")
        for name, least in (("concurrency", 1), ("attempts", 1), ("timeout", 0.001)):
            if not getattr(self, name) >= least:
                raise _bad_option(name, getattr(self, name), f"it is at least {least}")
        for name in ("price_input", "price_output"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise _bad_option(name, getattr(self, name), "a price is a number from 0")
        if self.budget is not None and not self.budget > 0:
            raise _bad_option("budget", self.budget, "a budget is a number above 0")
        if self.budget is not None and self.price_input + self.price_output == 0:
            raise _bad_option(
                "budget", self.budget, "a budget needs price_input and price_output to be counted against"
            )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> ApiOptions:
        """Read `RUNG_API_CONCURRENCY`, `RUNG_API_BUDGET` and so on; what is not set has its default.

        Raises:
            ConfigError: a value is not a number, or not one that makes sense.
        """
        values: dict[str, object] = {}
        for option in fields(cls):
            name = PREFIX + option.name.upper()
            if not (text := environment.get(name, "")):
                continue
            kind = {"concurrency": int, "attempts": int, "constraints": str}.get(option.name, float)
            try:
                values[option.name] = kind(text)
            except ValueError as wrong:
                raise _bad_option(option.name, text, f"{name} has to be a number") from wrong
        return cls(**values)  # type: ignore[arg-type]


def _bad_option(name: str, value: object, hint: str) -> ConfigError:
    return ConfigError("bad-option", f"endpoint option {name} is {value!r}", hint=hint)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a model is served.

    Attributes:
        base_url: what stands before `/chat/completions`, without a slash at its end.
        model: the name that the server knows the model by.
        key: the secret, empty where none is needed. It is left out of `repr`.
    """

    base_url: str
    model: str
    key: str = field(repr=False)

    @property
    def root(self) -> str:
        """The server's own address: some calls stand beside `/v1`."""
        return self.base_url.removesuffix("/v1")


def parse_endpoint(reference: str, environment: Mapping[str, str] = os.environ) -> Endpoint:
    """Return the endpoint that a reference `http(s)://HOST/v1#MODEL` names, with its key from the environment.

    `RUNG_API_KEY` goes to any endpoint. `OPENAI_API_KEY` goes only to encrypted ones: a key that was set for a vendor
    must not travel in clear text because a model reference says so.

    Raises:
        ConfigError: the reference names no model or host, or holds a password or a query.
        EngineError: the endpoint is on another machine, and there is no key for it.
    """
    address, _, model = reference.partition("#")
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError as wrong:
        raise _bad_endpoint(address, str(wrong)) from wrong
    if parts.username or parts.password:
        raise _bad_endpoint(f"{parts.scheme}://...@{host}", "it holds a user name or password", "set RUNG_API_KEY")
    if not host or port == 0:
        raise _bad_endpoint(address, "it has no host")
    if parts.query:
        raise _bad_endpoint(address.partition("?")[0], "it has a query, which would be lost")
    if not model:
        raise _bad_endpoint(reference, "it names no model", "write #MODEL at its end, the name that the server lists")
    encrypted = parts.scheme == "https"
    key = environment.get("RUNG_API_KEY") or (environment.get("OPENAI_API_KEY", "") if encrypted else "")
    if not key and not _is_loopback(host):
        raise EngineError(
            "api-key-missing",
            f"no key is set for {address}",
            hint="set RUNG_API_KEY (or OPENAI_API_KEY, which goes to https only); any text will do where none is asked",
        )
    return Endpoint(address.rstrip("/"), model, key)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bad_endpoint(shown: str, why: str, hint: str = "write http(s)://HOST/v1#MODEL") -> ConfigError:
    return ConfigError("unknown-model", f"{shown} is no endpoint: {why}", hint=hint)


# --------------------
# Money: what every request may cost at most is set aside before it is sent, so that a budget is never exceeded.


MILLION = 1_000_000
TURN_TOKENS = 32  # most that a chat template writes around one message
TEMPLATE_TOKENS = 128  # most that it writes besides, such as a default system prompt


@dataclass(frozen=True, slots=True)
class Spent:
    """What was used so far; `money` counts attempts whose outcome is unknown at the most they can have cost."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    money: float


class ApiBudget:
    """Counts tokens and money over all threads.

    A request is admitted when all that was spent, all that is set aside for requests in flight, and its own worst case
    stay within the budget. While others are in flight it waits: they mostly cost less than was set aside for them.
    """

    def __init__(self, options: ApiOptions) -> None:
        self.options = options
        self._changed = threading.Condition()
        self._requests = self._prompt = self._completion = self._in_flight = 0
        self._money = self._reserved = 0.0

    @property
    def spent(self) -> Spent:
        """What was used so far."""
        with self._changed:
            return Spent(self._requests, self._prompt, self._completion, self._money)

    def price(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return what so many tokens cost."""
        paid = prompt_tokens * self.options.price_input + completion_tokens * self.options.price_output
        return paid / MILLION

    def reserve(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Set aside the worst case of one attempt, and return it for `settle`.

        Raises:
            EngineError: `budget-spent`: nothing is in flight any more, and it would not fit.
        """
        worst, limit = self.price(prompt_tokens, completion_tokens), self.options.budget
        with self._changed:
            while limit is not None and self._money + self._reserved + worst > limit:
                if self._in_flight == 0:
                    raise EngineError(
                        "budget-spent",
                        f"{self._money:.6g} of the budget of {limit:.6g} is spent, and the next request may cost "
                        f"{worst:.6g}",
                        hint="raise RUNG_API_BUDGET and run again: answers made so far are remembered",
                    )
                self._changed.wait()
            self._in_flight += 1
            self._reserved += worst
        return worst

    def settle(self, worst: float, used: tuple[int, int] | None, *, billed: bool = True) -> None:
        """Replace what was set aside by what was used.

        Args:
            worst: what `reserve` returned.
            used: prompt and completion tokens, or None where they are unknown.
            billed: without, the server refused the attempt and it costs nothing. An attempt that was billed with an
                unknown number of tokens counts at its worst.
        """
        with self._changed:
            self._in_flight -= 1
            self._reserved = max(0.0, self._reserved - worst) if self._in_flight else 0.0
            if billed:
                self._requests += 1
                self._money += worst if used is None else self.price(*used)
                self._prompt += used[0] if used else 0
                self._completion += used[1] if used else 0
            self._changed.notify_all()


def most_tokens(prompt: ModelInput) -> int:
    """Return a number of tokens that the prompt cannot exceed: vocabularies of bytes have no token below one byte."""
    if prompt and isinstance(prompt[0], int):
        return len(prompt)
    turns = [message["content"] for message in prompt]  # type: ignore[index]
    return sum(len(text.encode()) + TURN_TOKENS for text in turns) + TEMPLATE_TOKENS


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
        self.budget = ApiBudget(options)
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
            "endpoint-failed",
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
            "endpoint-unreachable",
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
            "endpoint-failed",
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
