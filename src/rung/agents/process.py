"""The worker process from outside: started when first needed, ended when a call takes too long."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from rung.agents.trace import Outcome

START_SECONDS = 120.0  # importing the tools' modules


class Result(NamedTuple):
    """What came of a call: `result`, `failed` or `timeout`, and the text that says it."""

    outcome: Outcome
    text: str


class Worker:
    """Runs the user's functions in one process; calls of several threads wait for each other."""

    def __init__(self, folder: Path, functions: Sequence[str]) -> None:
        self._folder, self._functions = folder, list(functions)
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self._lock = threading.Lock()

    def call(self, function: str, arguments: dict[str, Any], seconds: float) -> Result:
        """Call a function, for at most `seconds`; the process of one that takes longer is killed."""
        with self._lock:
            if self._process is None and (problem := self._start()):
                return problem
            reply = self._ask({"function": function, "arguments": arguments}, seconds)
        if isinstance(reply, Result):
            return reply
        return Result("result", reply["result"]) if "result" in reply else Result("failed", reply["error"])

    def close(self) -> None:
        """End the process and all that it started."""
        process, self._process, self._unread = self._process, None, b""
        if process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()

    def _start(self) -> Result | None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "rung.agents.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # so that it can be killed with all that it starts
        )
        reply = self._ask({"folder": str(self._folder), "functions": self._functions}, START_SECONDS)
        return reply if isinstance(reply, Result) else None

    def _ask(self, value: dict[str, Any], seconds: float) -> dict[str, Any] | Result:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(value).encode() + b"\n")
            process.stdin.flush()
            line = self._line(process, time.monotonic() + seconds)
        except BrokenPipeError:
            line = b""
        if line is None:
            self.close()
            return Result("timeout", f"it took longer than {seconds:g} seconds and was ended")
        if not line:
            code = process.wait()
            self.close()
            return Result("failed", f"its process ended with exit code {code}")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _line(self, process: subprocess.Popen[bytes], deadline: float) -> bytes | None:
        """Return the next line; empty at the end of the process, None at the deadline."""
        assert process.stdout is not None
        while b"\n" not in self._unread:
            if not select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
            piece = os.read(process.stdout.fileno(), 1 << 16)
            if not piece:
                return b""
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        return line
