"""Runs the application on a socket, and ends it gracefully."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import uvicorn

if TYPE_CHECKING:
    from fastapi import FastAPI

CONNECTIONS = 2048  # open at once; those beyond are answered 503 before anything is read
BACKLOG = 1024
SWITCH_SECONDS = 0.0005  # after which a thread that waits for the interpreter gets it


class Server(uvicorn.Server):
    """Uvicorn's server, which tells the application when it is told to end."""

    def __init__(self, app: FastAPI, *, drain_seconds: float) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                server_header=False,
                limit_concurrency=CONNECTIONS,
                backlog=BACKLOG,
                timeout_graceful_shutdown=max(1, round(drain_seconds)),
                timeout_keep_alive=15,
                h11_max_incomplete_event_size=64 * 1024,
                ws="none",
                proxy_headers=False,
            )
        )
        self._app = app

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until told to end."""
        # The thread of the engine hands out pieces between two steps, and every step waits for it: by default it gets
        # the interpreter's lock back from the event loop after 5 ms, which was 3 % of the tokens of 32 clients.
        interval = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_SECONDS)
        try:
            await super().serve(sockets)
        finally:
            sys.setswitchinterval(interval)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Take nothing new, and finish what is under way."""
        self._app.state.rung.ready = False
        super().handle_exit(sig, frame)


@contextmanager
def exiting_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the program as if it were done, with exit code 0; also while models are loaded.

    Uvicorn finishes what is under way and then raises the signal again: by default that would kill the process before
    what was captured is written and the engines' processes are ended.
    """

    def end(number: int, frame: Any) -> NoReturn:
        del number, frame
        raise SystemExit(0)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio switches Nagle's algorithm off only for sockets that say they are TCP; with it, every piece of a stream
    # waits 40 ms for an acknowledgement.
    opened = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    opened.bind((host.strip("[]"), port))
    return opened
