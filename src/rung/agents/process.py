"""The user's functions run in a worker process, so that one that never ends can be ended.

`FunctionWorker` is the parent's side; `python -m rung.agents.process` is the process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rung.agents.tools import StepOutcome
from rung.errors import RungError
from rung.worker_pipes import WorkerEndedError, WorkerError, WorkerProcess, WorkerTimeoutError, serve

START_SECONDS = 120.0  # importing the tools' modules


class ToolResult(NamedTuple):
    """What came of a call: `result`, `failed` or `timeout`, and its text."""

    outcome: StepOutcome
    text: str


class FunctionWorker:
    """Runs the user's functions in one process; calls of several threads wait for each other."""

    def __init__(self, folder: Path, functions: Sequence[str]) -> None:
        self._folder, self._functions = folder, list(functions)
        self._worker: WorkerProcess | None = None
        self._lock = threading.Lock()

    def call(self, function: str, arguments: dict[str, Any], seconds: float) -> ToolResult:
        """Call a function, for at most `seconds`; the process of one that takes longer is killed."""
        with self._lock:
            try:
                if self._worker is None:
                    self._worker = WorkerProcess("rung.agents.process")
                    self._ask("load", str(self._folder), self._functions, seconds=START_SECONDS)
                outcome, text = self._ask("run", function, arguments, seconds=seconds)
            except WorkerTimeoutError as error:
                return ToolResult("timeout", str(error))
            except (WorkerError, RungError) as error:
                return ToolResult("failed", str(error))
        return ToolResult(outcome, text)

    def close(self) -> None:
        """End the process and every process that it started."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()

    def _ask(self, name: str, *arguments: Any, seconds: float) -> Any:
        assert self._worker is not None
        try:
            return self._worker.call(name, *arguments, seconds=seconds)
        except (WorkerTimeoutError, WorkerEndedError):
            self._worker = None
            raise
        except (WorkerError, RungError):  # of loading: there is nothing that a later call could run
            self.close()
            raise


def main() -> None:
    """Answer calls until stdin ends."""
    from rung.agents.tools import load_function

    functions: dict[str, Callable[..., Any]] = {}

    def load(folder: str, specs: Sequence[str]) -> None:
        functions.update({spec: load_function(spec, [Path(folder), Path.cwd()]) for spec in specs})

    serve({"load": load, "run": lambda spec, arguments: run(functions[spec], arguments)})


def run(function: Callable[..., Any], arguments: dict[str, Any]) -> tuple[StepOutcome, str]:
    """Call a function with arguments that are checked against its types."""
    from pydantic import ValidationError, validate_call
    from pydantic_core import to_json

    try:
        value = validate_call(function)(**arguments)
    except ValidationError as invalid:
        problems = (f"{'.'.join(map(str, e['loc'])) or 'arguments'}: {e['msg']}" for e in invalid.errors())
        return "failed", "; ".join(problems)
    except Exception as error:  # the model reads what the user's function raises
        return "failed", f"{type(error).__name__}: {error}"
    if isinstance(value, str):
        return "result", value
    try:
        return "result", to_json(value).decode()
    except ValueError as error:  # PydanticSerializationError is one
        return "failed", f"the result cannot be written as JSON: {error}"


if __name__ == "__main__":
    main()
