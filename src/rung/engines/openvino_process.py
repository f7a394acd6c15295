"""The openvino engine in a process of its own, for servers.

openvino-genai holds the interpreter's lock while it computes a step, a fifth of a second with 32 completions and a
second while prompts are read. In a server's own process nothing else moves meanwhile: requests are not taken in, so the
next steps run half empty, and a health probe waits. A process beside it also fails alone.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from rung.engines.base import Delta, EngineInfo, Floats, GenerateRequest, Generation, Scored, ScoreRequest, Session
from rung.engines.local import LocalModel
from rung.engines.openvino_export import Precision
from rung.errors import EngineError, RungError
from rung.models.reference import ModelFiles
from rung.progress import QUIET, Progress


class OpenVinoApart(LocalModel):
    """Sessions of an `OpenVinoEngine` that runs elsewhere; one at a time.

    Args:
        files: the resolved model, exported already.
        precision: of the weights.

    Raises:
        EngineError: openvino-genai is not installed, or its process ended.
    """

    def __init__(self, files: ModelFiles, precision: Precision = "int8") -> None:
        super().__init__(files)
        self._precision = precision
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._info = self._start()

    @property
    def info(self) -> EngineInfo:
        """Say what runs where."""
        return self._info

    def session(self) -> Session:
        """Return a new, empty session; a process that ended is started again first."""
        if self._process is None:
            self._start()
        else:
            self.call("session")
        return _Session(self)

    def generate(
        self,
        requests: Sequence[GenerateRequest],
        *,
        progress: Progress = QUIET,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[Generation]:
        """Refuse, as every call outside of a session: one would end the session that serves."""
        del requests, progress, cancelled
        raise _only_sessions()

    def stream(self, request: GenerateRequest) -> Iterator[str]:
        """Refuse."""
        del request
        raise _only_sessions()

    def score(self, requests: Sequence[ScoreRequest], *, progress: Progress = QUIET) -> list[Scored]:
        """Refuse."""
        del requests, progress
        raise _only_sessions()

    def embed(self, texts: Sequence[str], *, progress: Progress = QUIET) -> Floats:
        """Refuse."""
        del texts, progress
        raise _only_sessions()

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()
        try:
            process.wait(10)  # it ends by itself, with its input
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a method of the session over there.

        Raises:
            RungError: what the method raised.
            EngineError: `generation-failed`: the process is gone.
        """
        with self._lock:
            return self._ask((name, *arguments))

    def _start(self) -> EngineInfo:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "rung.engines.openvino_worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            info: EngineInfo = self._ask((self.files, self._precision))
        except RungError:
            self.close()
            raise
        return info

    def _ask(self, value: Any) -> Any:
        process = self._process
        if process is None:
            raise _ended(self.files.name, None)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            pickle.dump(value, process.stdin, pickle.HIGHEST_PROTOCOL)
            process.stdin.flush()
            result, error = pickle.load(process.stdout)  # noqa: S301  from our own process
        except (BrokenPipeError, EOFError):
            self.close()
            raise _ended(self.files.name, process.returncode) from None
        if error is not None:
            raise error
        return result


class _Session:
    """What is under way over there."""

    def __init__(self, engine: OpenVinoApart) -> None:
        self._engine = engine
        self._open: set[int] = set()

    @property
    def active(self) -> int:
        """How many completions have not ended."""
        return len(self._open)

    def add(self, key: int, request: GenerateRequest) -> None:
        """Take a completion in."""
        self._engine.call("add", key, request)
        self._open.add(key)

    def cancel(self, key: int) -> None:
        """Drop a completion."""
        self._engine.call("cancel", key)
        self._open.discard(key)

    def step(self) -> list[Delta]:
        """Go on with all completions by about one token."""
        deltas: list[Delta] = self._engine.call("step")
        self._open -= {delta.key for delta in deltas if delta.reason is not None or delta.error is not None}
        return deltas


def _only_sessions() -> TypeError:
    return TypeError("an engine in a process of its own has sessions alone: open the model without `apart`")


def _ended(model: str, code: int | None) -> EngineError:
    how = "" if code is None else f" with exit code {code}"
    return EngineError(
        "generation-failed", f"the process that runs {model} ended{how}",
        hint="ask again: it is started anew; where this repeats, see the server's log and the memory that is left",
    )  # fmt: skip
