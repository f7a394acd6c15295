"""Bounds of open connections: a request's head must come in time, and nobody can hold all places.

A connection is idle until the head of a request is complete, and again between two requests. When the server or an
address holds too many connections, the one that has been idle longest is closed. So connections that send nothing
never keep others out.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from rung.machine import files_allowed
from rung.serving.limits import RequestLimits

SPARE_FILES = 256  # descriptors that are not for clients: models, store, sockets to processes


@dataclass(slots=True)
class OpenConnections:
    """The connections of one server."""

    limits: RequestLimits
    count: int = 0
    by_address: Counter[str] = field(default_factory=Counter)
    idle: dict[BoundedConnection, None] = field(default_factory=dict)  # the longest idle first

    def most(self) -> int:
        """How many may be open: as many as the limits say, if the process may open so many files."""
        return max(1, files_allowed(self.limits.connections + SPARE_FILES) - SPARE_FILES)


class BoundedConnection(H11Protocol):
    """One connection of a client."""

    def __init__(self, everything: OpenConnections, most: int, **options: Any) -> None:
        super().__init__(**options)
        self._all, self._most = everything, most
        self._head: asyncio.TimerHandle | None = None  # closes the connection

    @property
    def address(self) -> str:
        """The client's address."""
        return self.client[0] if self.client else ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection; make room for it where there are too many."""
        super().connection_made(transport)
        self._all.count += 1
        self._all.by_address[self.address] += 1
        if self._all.by_address[self.address] > self._all.limits.per_address:
            same = next((each for each in self._all.idle if each.address == self.address), self)
            same.give_up()
        elif self._all.count > self._most and self._all.idle:
            next(iter(self._all.idle)).give_up()
        self._settle()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count it no more."""
        self._all.count -= 1
        self._all.by_address -= Counter([self.address])
        self._not_idle()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read a part of a request."""
        super().data_received(data)
        self._settle()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._settle()

    def give_up(self) -> None:
        """Close a connection that has no request under way."""
        self._not_idle()
        self.transport.close()

    def _settle(self) -> None:
        """Start the clock where the connection has become idle, and stop it where it no longer is."""
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._not_idle()
            return
        self._all.idle.setdefault(self)
        if self._head is None and self.timeout_keep_alive_task is None:  # uvicorn closes what stays silent after one
            self._head = self.loop.call_later(self._all.limits.head_seconds, self.give_up)

    def _not_idle(self) -> None:
        self._all.idle.pop(self, None)
        if self._head is not None:
            self._head.cancel()
            self._head = None
