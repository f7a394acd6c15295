"""Python by execution: a program is right if it passes the row's tests, or prints what the expected program prints.

A model's programs run only where the task file says `allow_execution: true`: each in a process of its own, in an empty
folder, with an empty environment, limits on time, memory, file sizes and processes, and without a network. That keeps
accidents small; it is no wall against a program that means harm, which can still read what the user can read.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rung.errors import ConfigError, DataError, MachineError
from rung.evaluation.metrics.base import Case, Metric, Score, some

_FENCED = re.compile(r"```[a-zA-Z]*\s*\n(.*?)```", re.DOTALL)
_MEBIBYTE = 2**20
_MOST_OUTPUT = 1_000_000  # bytes of output, and of every file written
_ISOLATION = ("unshare", "--user", "--map-current-user", "--net", "--pid", "--fork", "--kill-child")

# Runs in the child before the program: it limits itself, so that no code runs between fork and exec in the parent.
_RUNNER = """
import resource, sys
seconds, memory, output, program = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
for limit, value in (("CPU", seconds), ("AS", memory), ("FSIZE", output), ("NOFILE", 64), ("CORE", 0), ("NPROC", 0)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + limit), (value, value))
sys.argv = ["program.py"]
with open(program, encoding="utf-8") as file:
    source = file.read()
exec(compile(source, "program.py", "exec"), {"__name__": "__main__"})
"""


@dataclass(frozen=True, slots=True)
class Ran:
    """How a program ended: its output, and if it failed, why."""

    output: str
    failure: str = ""


def run_program(source: str, *, seconds: float, memory_mb: int, network: bool = False) -> Ran:
    """Run a Python program in a sandbox and return its output.

    Raises:
        MachineError: without `network`, this machine cannot take the network away.
    """
    isolation = () if network else _isolation()
    with tempfile.TemporaryDirectory(prefix="rung-code-") as scratch:
        folder = Path(scratch)
        program, output, errors = folder / "program.py", folder / "output", folder / "errors"
        program.write_text(source, encoding="utf-8", errors="replace")
        limits = [str(max(1, round(seconds + 1))), str(memory_mb * _MEBIBYTE), str(_MOST_OUTPUT), str(program)]
        with output.open("wb") as out, errors.open("wb") as err:
            process = subprocess.Popen(
                [*isolation, sys.executable, "-I", "-B", "-c", _RUNNER, *limits], cwd=folder, stdin=subprocess.DEVNULL,
                stdout=out, stderr=err, env={"PATH": os.defpath, "HOME": scratch}, start_new_session=True,
            )  # fmt: skip
            failure = _wait(process, seconds)
        text = output.read_bytes().decode("utf-8", "replace")
        complaint = errors.read_bytes().decode("utf-8", "replace")
    if not failure and process.returncode != 0:
        lines = complaint.strip().splitlines()
        failure = lines[-1][:200] if lines else f"exit status {process.returncode}"
    return Ran(text, failure)


def _wait(process: subprocess.Popen[bytes], seconds: float) -> str:
    """Wait for the end, or make one; return why it was made."""
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:g} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # also what it may have started
        process.wait()
    return ""


@functools.cache
def _isolation() -> tuple[str, ...]:
    """Return the command that runs another one without a network, and kills all its processes with it."""
    tool = shutil.which(_ISOLATION[0])
    command = (tool or "", *_ISOLATION[1:])
    if tool and subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
        return command
    raise MachineError(
        "no-network-isolation", "programs cannot be run without a network here: `unshare --user --net` does not work",
        hint="allow user namespaces, or let the programs reach the network: `metric.network: true`",
    )  # fmt: skip


def code_in(text: str) -> str:
    """Return the program in an answer: what stands in its first fenced block, or all of it."""
    fenced = _FENCED.search(text)
    return fenced.group(1) if fenced else text


def code_metric(settings: Mapping[str, Any]) -> Metric:
    """Return execution accuracy of Python programs as a metric; see `CodeSettings`.

    Raises:
        ConfigError: the task file does not allow that a model's programs are run.
    """
    if not settings["allow_execution"]:
        raise ConfigError(
            "execution-not-allowed", "the metric code runs programs that a model has written",
            hint="if you want that on this machine, say so: `metric: {name: code, allow_execution: true}`",
        )  # fmt: skip
    limits = {name: settings[name] for name in ("seconds", "memory_mb", "network")}
    expected = functools.cache(lambda source: run_program(source, **limits))
    tests = settings["tests"]

    def score(case: Case) -> Score:
        if tests is not None:
            ran = run_program(f"{code_in(case.prediction)}\n\n{_tests(case.row, tests)}\n", **limits)
            return Score(float(not ran.failure), ran.failure)
        wanted = [expected(code_in(reference)) for reference in some(case.references)]
        for reference in wanted:
            if reference.failure:
                raise DataError(
                    "bad-code-reference", f"an expected program fails: {reference.failure}",
                    hint="correct the row, or name a column of tests: `metric.tests`",
                )  # fmt: skip
        ran = run_program(code_in(case.prediction), **limits)
        right = not ran.failure and any(ran.output.split() == reference.output.split() for reference in wanted)
        return Score(float(right), ran.failure or ("" if right else "another output"))

    def scores(cases: Any) -> list[Score]:
        with ThreadPoolExecutor(max_workers=max(1, min(4, os.cpu_count() or 1))) as pool:
            return list(pool.map(score, cases))

    return Metric("code", None, "the program passes the tests", ("text",), binary=True, rows=scores)


def _tests(row: Mapping[str, Any], column: str) -> str:
    if column not in row:
        raise ConfigError(
            "metric-column", f"the metric code reads the column {column!r}, which the row lacks",
            hint=f"`metric.tests` must name a column of the data; there are {', '.join(row)}",
        )  # fmt: skip
    value = row[column]
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)
