"""The openvino engine in a separate process, for servers: `python -m rung.engines.openvino_process`.

openvino-genai holds the interpreter's lock (GIL) while it computes a step: a fifth of a second with 32 completions, a
second while it reads prompts. In the server's own process nothing else would run meanwhile: no request would be
accepted, so the next steps would run half empty, and health probes would wait. A separate process also fails alone.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rung.engines.base import Constraint, Delta, EngineInfo, GenerateRequest, Sampling, Session
from rung.engines.local import LocalModel
from rung.engines.openvino_export import ExportPrecision
from rung.errors import EngineError
from rung.models.reference import ModelFiles
from rung.worker_pipes import WorkerEndedError, WorkerError, WorkerProcess, error_from_dict, error_to_dict, serve

CLOSE_SECONDS = 10.0  # for the process to end by itself


class OpenVinoApart(LocalModel):
    """Sessions of an `OpenVinoEngine` that runs an exported model in a worker process; one session at a time.

    Raises:
        EngineError: openvino-genai is not installed, or its process ended.
    """

    def __init__(self, files: ModelFiles, precision: ExportPrecision = "int8") -> None:
        super().__init__(files)
        self._precision = precision
        self._worker: WorkerProcess | None = None
        self._lock = threading.Lock()
        self._info = self._start()

    @property
    def info(self) -> EngineInfo:
        """Say what runs where."""
        return self._info

    def session(self) -> Session:
        """A new, empty session; a process that ended is started again first."""
        if self._worker is None:
            self._start()
        else:
            self.call("session")
        return _RemoteSession(self)

    def _refuse(self, *arguments: Any, **options: Any) -> Any:
        """Refuse every call outside of a session: it would end the session that serves."""
        del arguments, options
        raise TypeError("an engine in a separate process has sessions only: open the model without `apart`")

    generate = stream = score = embed = _refuse

    def close(self) -> None:
        """End the process."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close(CLOSE_SECONDS)

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the worker.

        Raises:
            RungError: what the function raised.
            EngineError: `generation-failed`: the process ended, or OpenVINO failed.
        """
        with self._lock:
            if self._worker is None:
                raise self._failed("ended")
            try:
                return self._worker.call(name, *arguments)
            except WorkerEndedError as ended:
                self._worker = None
                raise self._failed(f"ended with exit code {ended.code}") from None
            except WorkerError as failed:
                raise self._failed(f"failed: {failed}") from None

    def _start(self) -> EngineInfo:
        self._worker = WorkerProcess("rung.engines.openvino_process")
        try:
            files = {**asdict(self.files), "folder": str(self.files.folder)}
            return EngineInfo(**self.call("open", files, self._precision))
        except EngineError:
            self.close()
            raise

    def _failed(self, how: str) -> EngineError:
        hint = "ask again: Rung restarts the process; if this repeats, see the server's log and the free memory"
        return EngineError("generation-failed", f"the process that runs {self.files.name} {how}", hint=hint)


class _RemoteSession:
    """The completions that run in the worker."""

    def __init__(self, engine: OpenVinoApart) -> None:
        self._engine = engine
        self._open: set[int] = set()

    @property
    def active(self) -> int:
        return len(self._open)

    def add(self, key: int, request: GenerateRequest) -> None:
        self._engine.call("add", key, asdict(request))
        self._open.add(key)

    def cancel(self, key: int) -> None:
        self._engine.call("cancel", key)
        self._open.discard(key)

    def step(self) -> list[Delta]:
        deltas = [_delta(values) for values in self._engine.call("step")]
        self._open -= {delta.key for delta in deltas if delta.reason is not None or delta.error is not None}
        return deltas


def _request(values: dict[str, Any]) -> GenerateRequest:
    """The request that was sent as `asdict(request)`."""
    sampling, constraint = values["sampling"], values["constraint"]
    if constraint is not None:
        choices = constraint["value"]
        constraint = Constraint(constraint["kind"], choices if isinstance(choices, str) else tuple(choices))
    return GenerateRequest(
        tuple(values["prompt"]), Sampling(**{**sampling, "stop": tuple(sampling["stop"])}), constraint,
        values["adapter"], values["logprobs"],
    )  # fmt: skip


def _values(delta: Delta) -> list[Any]:
    error = None if delta.error is None else error_to_dict(delta.error)
    return [
        delta.key, delta.text, delta.tokens, delta.logprobs, delta.prompt_tokens, delta.completion_tokens,
        delta.reason, error,
    ]  # fmt: skip


def _delta(values: Sequence[Any]) -> Delta:
    key, text, tokens, logprobs, prompt_tokens, completion_tokens, reason, error = values
    failure = None if error is None else error_from_dict(error)
    return Delta(key, text, tuple(tokens), tuple(logprobs), prompt_tokens, completion_tokens, reason, failure)


class _SessionServer:
    """The worker's side: one engine, and the session that its parent uses."""

    def open(self, files: dict[str, Any], precision: ExportPrecision) -> dict[str, Any]:
        from rung.engines.openvino import OpenVinoEngine

        self._engine = OpenVinoEngine(ModelFiles(**{**files, "folder": Path(files["folder"])}), precision)
        self.session()
        return asdict(self._engine.info)

    def session(self) -> None:
        self._session = self._engine.session()

    def add(self, key: int, request: dict[str, Any]) -> None:
        self._session.add(key, _request(request))

    def cancel(self, key: int) -> None:
        self._session.cancel(key)

    def step(self) -> list[list[Any]]:
        return [_values(delta) for delta in self._session.step()]


def main() -> None:
    """Answer calls until stdin ends."""
    # A terminal and systemd signal every process of the server; the parent decides when this one ends.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    server = _SessionServer()
    serve({name: getattr(server, name) for name in ("open", "session", "add", "cancel", "step")})


if __name__ == "__main__":
    main()
