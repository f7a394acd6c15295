"""What an endpoint is asked with: its address and key, its limits and prices, and the budget that is never exceeded."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar, Literal, NamedTuple, get_args
from urllib.parse import urlsplit

from rung import user_code
from rung.errors import ConfigError, EngineError
from rung.machine import is_loopback
from rung.models.cache import TRUE

# How requests state a constraint: `json_schema` is the `response_format` that most servers know, `grammar` is
# llama.cpp's, `structured_outputs` vLLM's, `guided` that of vLLM before 0.10; `none` refuses constraints.
ConstraintStyle = Literal["json_schema", "grammar", "structured_outputs", "guided", "none"]
MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class ApiOptions:
    """How an endpoint is used. The environment sets each option: `RUNG_API_` and its name in capitals."""

    concurrency: int = 8  # largest number of requests in flight
    timeout: float = 120.0  # seconds after which a request without an answer is given up (and retried)
    attempts: int = 6  # how often a request is sent at most
    constraints: ConstraintStyle = "json_schema"
    price_input: float = 0.0  # of a million prompt tokens, in any currency
    price_output: float = 0.0  # of a million completion tokens, in the same currency
    price_cached: float | None = None  # of a million prompt tokens read from the server's cache; None: `price_input`
    budget: float | None = None  # the most that this process may spend at the endpoint, in that currency

    def __post_init__(self) -> None:
        if self.constraints not in get_args(ConstraintStyle):
            raise _bad_option("constraints", self.constraints, f"choose one of {', '.join(get_args(ConstraintStyle))}")
        for name, minimum in (("concurrency", 1), ("attempts", 1), ("timeout", 0.001)):
            if not getattr(self, name) >= minimum:
                raise _bad_option(name, getattr(self, name), f"it is at least {minimum}")
        for name in ("price_input", "price_output", "price_cached"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) < float("inf"):
                raise _bad_option(name, getattr(self, name), "a price is a number from 0")
        if self.budget is not None and not self.budget > 0:
            raise _bad_option("budget", self.budget, "a budget is a number above 0")
        if self.budget is not None and not self.priced:
            raise _bad_option("budget", self.budget, "a budget needs price_input and price_output to count against")

    @property
    def priced(self) -> bool:
        """Whether the prices of tokens are known."""
        return self.price_input + self.price_output > 0

    def price(self, prompt_tokens: float, completion_tokens: float, cached_tokens: float = 0) -> float:
        """The price of this many tokens; `cached_tokens` are those of the prompt that the server had in its cache."""
        cached = self.price_input if self.price_cached is None else self.price_cached
        read = (prompt_tokens - cached_tokens) * self.price_input + cached_tokens * cached
        return (read + completion_tokens * self.price_output) / MILLION

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> ApiOptions:
        """Read `RUNG_API_CONCURRENCY`, `RUNG_API_BUDGET` and so on; unset options have their defaults.

        Raises:
            ConfigError: a value is not a number, or out of range.
        """
        values: dict[str, object] = {}
        for option in fields(cls):
            name = f"RUNG_API_{option.name.upper()}"
            if text := environment.get(name, ""):
                kind = {"concurrency": int, "attempts": int, "constraints": str}.get(option.name, float)
                try:
                    values[option.name] = kind(text)
                except ValueError as error:
                    raise _bad_option(option.name, text, f"{name} has to be a number") from error
        return cls(**values)  # type: ignore[arg-type]


def _bad_option(name: str, value: object, hint: str) -> ConfigError:
    return ConfigError("bad-option", f"endpoint option {name} is {value!r}", hint=hint)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a model is served."""

    base_url: str  # the address before `/chat/completions`, without a slash at its end
    model: str  # the server's name of the model
    secret: str = field(repr=False)  # the key of the environment, empty where none is needed

    @property
    def named(self) -> bool:
        """Whether the user named this scheme, host and port; a file alone does not."""
        return user_code.allowed(user_code.endpoint_permit(self.base_url))

    @property
    def key(self) -> str:
        """The key that this endpoint gets; empty where the user has not named it."""
        return self.secret if self.named else ""

    @property
    def root(self) -> str:
        """The server's own address: some calls lie beside `/v1`."""
        return self.base_url.removesuffix("/v1")


def parse_endpoint(reference: str, environment: Mapping[str, str] = os.environ) -> Endpoint:
    """The endpoint of a reference `http(s)://HOST/v1#MODEL`, with its key from the environment.

    `RUNG_API_KEY` goes to every endpoint that the user has named, also on this machine, where a program of another user
    may listen. `OPENAI_API_KEY` goes only to encrypted ones: a key that was set for a vendor must not travel in clear
    text because a reference says so.

    Raises:
        ConfigError: the reference names no model or host, or holds a password or a query.
        EngineError: the endpoint is on another machine, and there is no key for it.
    """
    address, _, model = reference.partition("#")
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise _bad_endpoint(address, str(error)) from error
    if parts.username or parts.password:
        raise _bad_endpoint(f"{parts.scheme}://...@{host}", "it holds a user name or password", "set RUNG_API_KEY")
    if not host or port == 0:
        raise _bad_endpoint(address, "it has no host")
    if parts.query:
        raise _bad_endpoint(address.partition("?")[0], "it has a query, which would be lost")
    if not model:
        raise _bad_endpoint(reference, "it names no model", "write #MODEL at its end, the name that the server lists")
    vendor_key = environment.get("OPENAI_API_KEY", "") if parts.scheme == "https" else ""
    key = environment.get("RUNG_API_KEY") or vendor_key
    if not key and not is_loopback(host):
        hint = "set RUNG_API_KEY (or OPENAI_API_KEY, which goes to https only); a server without keys takes any text"
        raise EngineError("api-key-missing", f"no key is set for {address}", hint=hint)
    return Endpoint(address.rstrip("/"), model, key)


def check_reachable(address: str) -> None:
    """Refuse an address on another machine that the user did not name, or every one where the network is off.

    Raises:
        EngineError: `network-off`.
        MachineError: `not-trusted`.
    """
    permit = user_code.endpoint_permit(address)
    if permit.local:
        return
    if os.environ.get("RUNG_OFFLINE", "").strip().lower() in TRUE:
        problem = f"{address} is on another machine, and the network is switched off"
        raise EngineError("network-off", problem, hint="leave --offline out, or unset RUNG_OFFLINE")
    user_code.require(permit)


def _bad_endpoint(shown: str, why: str, hint: str = "write http(s)://HOST/v1#MODEL") -> ConfigError:
    return ConfigError("unknown-model", f"{shown} is not an endpoint: {why}", hint=hint)


class Usage(NamedTuple):
    """The tokens of one completion; the cached ones are among those of the prompt."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Spent:
    """What was used so far; `money` counts attempts whose outcome is unknown at their worst case."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    money: float = 0.0

    def __sub__(self, before: Spent) -> Spent:
        return Spent(*(getattr(self, one.name) - getattr(before, one.name) for one in fields(self)))

    @classmethod
    def total(cls, each: Sequence[Spent]) -> Spent:
        """The sum."""
        return cls(*(sum(getattr(spent, one.name) for spent in each) for one in fields(cls)))


class ApiBudget:
    """Counts tokens and money over all threads, and reserves the worst case of every attempt before it is sent.

    A request is admitted when the money spent, the reservations of the requests in flight, and its own worst case
    stay within the budget. While others are in flight it waits: most cost less than their reservation.
    """

    _all: ClassVar[list[ApiBudget]] = []
    _elsewhere: ClassVar[list[Spent]] = []

    def __init__(self, options: ApiOptions) -> None:
        self.options = options
        self._changed = threading.Condition()
        self._requests = self._prompt = self._completion = self._in_flight = 0
        self._money = self._reserved = 0.0
        self._all.append(self)

    @classmethod
    def process(cls) -> Spent:
        """What this process used at all endpoints so far, and the worker processes that it has heard of."""
        return Spent.total([*(budget.spent for budget in cls._all), *cls._elsewhere])

    @classmethod
    def add(cls, spent: Spent) -> None:
        """Count what a worker process used."""
        cls._elsewhere[:] = [Spent.total([*cls._elsewhere, spent])]

    @property
    def spent(self) -> Spent:
        """What was used so far."""
        with self._changed:
            return Spent(self._requests, self._prompt, self._completion, self._money)

    def reserve(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Reserve the worst case of one attempt, and return it for `settle`.

        Raises:
            EngineError: `budget-spent`: nothing is in flight any more, and it does not fit.
        """
        worst, limit = self.options.price(prompt_tokens, completion_tokens), self.options.budget
        with self._changed:
            while limit is not None and self._money + self._reserved + worst > limit:
                if self._in_flight == 0:
                    spent = f"{self._money:.6g} of the budget of {limit:.6g} is spent"
                    hint = "raise RUNG_API_BUDGET and run again: answers so far are cached"
                    raise EngineError("budget-spent", f"{spent}, and the next request may cost {worst:.6g}", hint=hint)
                self._changed.wait()
            self._in_flight += 1
            self._reserved += worst
        return worst

    def settle(self, worst: float, used: Usage | None, *, billed: bool = True) -> None:
        """Replace the reservation `worst` by the prompt and completion tokens that were used.

        Unknown numbers count at their worst case, unless the server refused the attempt, so that it is not `billed`.
        """
        with self._changed:
            self._in_flight -= 1
            self._reserved = max(0.0, self._reserved - worst) if self._in_flight else 0.0
            if billed:
                self._requests += 1
                self._money += worst if used is None else self.options.price(*used)
                self._prompt += used[0] if used else 0
                self._completion += used[1] if used else 0
            self._changed.notify_all()
