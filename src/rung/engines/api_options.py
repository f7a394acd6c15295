"""What an endpoint is asked with: its address, its key, its limits and its prices."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from ipaddress import ip_address
from typing import Literal, get_args
from urllib.parse import urlsplit

from rung.errors import ConfigError, EngineError

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
    return ConfigError("bad-endpoint", f"{shown} is no endpoint: {why}", hint=hint)
