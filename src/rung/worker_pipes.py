"""Worker processes: a parent calls functions of a child process, one JSON object a line each way.

A request is `{"call": NAME, "arguments": [...]}`. The reply is `{"result": ...}`, `{"error": ...}` (a `RungError`), or
`{"failed": TEXT}` (any other exception). No pickle is read on either side.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from rung import errors
from rung.errors import Location, RungError
from rung.machine import end_group

READER_SECONDS = 5.0  # on Windows, what the process has started may still hold its pipe


class WorkerError(Exception):
    """A call failed for a reason that Rung does not know; the text says which."""


class WorkerEndedError(WorkerError):
    """The process ended before it replied."""

    def __init__(self, code: int) -> None:
        super().__init__(f"its process ended with exit code {code}")
        self.code = code


class WorkerTimeoutError(WorkerError):
    """The call took too long, and its process was killed."""


class WorkerProcess:
    """`python -m MODULE`, which calls `serve`, as a child process. One thread at a time may call it.

    `environment` is added to that of this process.
    """

    def __init__(self, module: str, environment: Mapping[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=None if environment is None else {**os.environ, **environment},
            start_new_session=True,  # so that it can be killed with every process that it starts
        )  # fmt: skip
        # A thread reads, since Windows cannot wait for a pipe until a deadline.
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        arguments = (self.process.stdout, self._lines)
        self._reader = threading.Thread(target=_queue_lines, args=arguments, name=f"replies of {module}", daemon=True)
        self._reader.start()

    def call(self, name: str, *arguments: Any, seconds: float | None = None) -> Any:
        """Call a function of the worker and return its result.

        Raises:
            RungError: the function raised it.
            WorkerTimeoutError: it took longer than `seconds`; the process is killed.
            WorkerEndedError: the process ended.
            WorkerError: the function raised another exception.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"call": name, "arguments": arguments}).encode() + b"\n")
            self.process.stdin.flush()
            line = self._lines.get(timeout=seconds)
        except BrokenPipeError:
            line = b""
        except queue.Empty:
            self.close()
            raise WorkerTimeoutError(f"it took longer than {seconds:g} seconds and was ended") from None
        if not line:
            code = self.process.wait()
            self.close()
            raise WorkerEndedError(code)
        reply = json.loads(line)
        if "error" in reply:
            raise error_from_dict(reply["error"])
        if "failed" in reply:
            raise WorkerError(reply["failed"])
        return reply["result"]

    def close(self, grace: float = 0.0) -> None:
        """End the process and every process that it started, after `grace` seconds in which it may end by itself."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        if grace:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(grace)
        end_group(self.process)
        self.process.wait()
        self._reader.join(READER_SECONDS)


def _queue_lines(replies: IO[bytes], lines: queue.SimpleQueue[bytes]) -> None:
    """Queue the lines of a process, and an empty one at its end."""
    with replies:
        for line in replies:
            lines.put(line if line.endswith(b"\n") else b"")
    lines.put(b"")


def serve(functions: Mapping[str, Callable[..., Any]]) -> None:
    """Answer the parent's calls until stdin ends, which it does when the parent ends.

    Results must be plain JSON values. What the functions print goes to stderr.
    """
    calls = os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    # Libraries and users' functions get an empty stdin, so that they cannot read calls, and stderr as their stdout.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # also what C libraries print
    sys.stdout = sys.stderr
    sys.stdin = Path(os.devnull).open(encoding="utf-8")  # noqa: SIM115
    for line in calls:
        request = json.loads(line)
        try:
            reply = {"result": functions[request["call"]](*request["arguments"])}
        except RungError as error:
            reply = {"error": error_to_dict(error)}
        except Exception as error:
            if not isinstance(error, MemoryError | RecursionError):  # hostile templates and patterns end so
                traceback.print_exc()
            reply = {"failed": f"{type(error).__name__}: {error}"}
        try:
            replies.write(json.dumps(reply).encode() + b"\n")
            replies.flush()
        except BrokenPipeError:  # the parent has closed it, or has ended
            return


def error_to_dict(error: RungError) -> dict[str, Any]:
    """An error as JSON values."""
    where = asdict(error.where) if error.where else None
    texts = {"code": error.code, "message": error.message, "hint": error.hint}
    return {"class": type(error).__name__, **texts, "where": where}


def error_from_dict(record: Mapping[str, Any]) -> RungError:
    """The error that `error_to_dict` wrote."""
    kind: type[RungError] = getattr(errors, record["class"])
    where = Location(**record["where"]) if record["where"] else None
    return kind(record["code"], record["message"], hint=record["hint"], where=where)
