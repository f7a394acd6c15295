"""Programs run only by choice, and inside their limits."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from rung.errors import ConfigError, DataError, MachineError
from rung.evaluation.metrics import execution as code_module
from rung.evaluation.metrics.base import Case, Metric
from rung.evaluation.metrics.execution import run_program
from rung.evaluation.metrics.registry import get_metric

ISOLATES = shutil.which("unshare") is not None and (
    subprocess.run([*code_module._ISOLATION, "true"], capture_output=True, check=False).returncode == 0
)
ALLOWED = {"allow_execution": True, "seconds": 2.0, "network": not ISOLATES}


def metric(**settings: object) -> Metric:
    return get_metric("code", None, {**ALLOWED, **settings})


@pytest.mark.parametrize("settings", [{}, {"allow_execution": False}])
def test_nothing_runs_unless_the_task_allows_it(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        get_metric("code", None, settings)
    assert caught.value.code == "execution-not-allowed"


def test_the_output_decides() -> None:
    cases = [
        Case("print(6 * 7)", ["print(42)"]),
        Case("Here you are:\n```python\nprint('42')\n```", ["print(42)"]),
        Case("print(41)", ["print(42)", "print(41)"]),
        Case("print(43)", ["print(42)"]),
        Case("print(", ["print(42)"]),
        Case("while True: pass", ["print(42)"]),
    ]
    scores = metric().scores(cases)
    assert [score.value for score in scores] == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    assert [score.note for score in scores[3:]] == [
        "another output", "SyntaxError: '(' was never closed", "stopped after 2 s",
    ]  # fmt: skip


def test_the_tests_of_a_row_decide() -> None:
    tests = ["assert double(2) == 4", "assert double('a') == 'aa'"]
    scores = metric(tests="test_list").scores(
        [
            Case("def double(x): return x + x", ["unused"], {"test_list": tests}),
            Case("def double(x): return 4", ["unused"], {"test_list": tests}),
            Case("def double(x): return x + x", ["unused"], {"test_list": "assert double(2) == 4"}),
        ]
    )
    assert [score.value for score in scores] == [1.0, 0.0, 1.0]
    assert scores[1].note == "AssertionError"
    with pytest.raises(ConfigError) as caught:
        metric(tests="absent")("x = 1", ["y"], {"text": "z"})
    assert caught.value.code == "missing-column"


def test_an_expected_program_that_fails_is_the_data_s_fault() -> None:
    with pytest.raises(DataError) as caught:
        metric()("print(1)", ["1 / 0"])
    assert caught.value.code == "bad-reference"
    assert "ZeroDivisionError" in caught.value.message


def test_a_program_sees_no_secrets_and_stays_within_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNG_API_KEY", "secret")
    programs = {
        "import os; print('RUNG_API_KEY' in os.environ, os.listdir())": "False ['program.py', 'output', 'errors']",
        "x = bytearray(10**9)": "MemoryError",
        "open('big', 'wb').write(b'x' * 10**7)": "File too large",
        "import sys; sys.exit(3)": "exit status 3",
        "print(input())": "EOFError",
    }
    for source, expected in programs.items():
        ran = run_program(source, seconds=5, memory_mb=512, network=not ISOLATES)
        if "listdir" in source:
            assert ran.output.startswith("False")
            assert ran.failure == ""
        else:
            assert expected in ran.failure


@pytest.mark.skipif(not ISOLATES, reason="this machine allows no user namespaces")
def test_there_is_no_network() -> None:
    source = "import socket\nsocket.create_connection(('127.0.0.1', 9), timeout=1)"
    assert "Network is unreachable" in run_program(source, seconds=5, memory_mb=512).failure


def test_without_isolation_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    code_module._isolation.cache_clear()
    try:
        with pytest.raises(MachineError) as caught:
            run_program("print(1)", seconds=5, memory_mb=512)
        assert caught.value.code == "execution-not-allowed"
        assert run_program("print(1)", seconds=5, memory_mb=512, network=True).output == "1\n"
    finally:
        code_module._isolation.cache_clear()


@pytest.mark.parametrize(
    "end",
    [
        "import sys\nsys.exit(0)", "import os\nos._exit(0)", "quit()", "raise SystemExit", "raise SystemExit(0)",
        "import sys\ndef add(a, b): sys.exit(0)", "def add(a, b): quit()",
        "import sys\nif __name__ != 'x': sys.exit()",
    ],
)  # fmt: skip
def test_a_program_that_exits_before_its_tests_has_passed_none(end: str) -> None:
    program = f"def add(a, b): return a - b\n{end}"
    (score,) = metric(tests="tests").scores([Case(program, [], row={"tests": "assert add(1, 2) == 3"})])
    assert (score.value, "before its tests" in score.note) == (0.0, True)


def test_a_script_with_a_main_of_its_own_is_tested_as_a_module() -> None:
    program = "import sys\ndef add(a, b): return a + b\nif __name__ == '__main__': sys.exit(add(1, 2))"
    (score,) = metric(tests="tests").scores([Case(program, [], row={"tests": "assert add(1, 2) == 3"})])
    assert score.value == 1.0


@pytest.mark.parametrize(
    "harm",
    [
        "import os\nfor name in os.listdir('.'): os.remove(name)",
        "import os\nfor name in os.listdir('.'):\n    os.remove(name)\n    os.symlink('/dev/zero', name)",
        "import os\nos.symlink('/dev/zero', 'output')\nos.symlink('/etc/hostname', 'errors')",
        "import os\nos.mkdir('d')\nos.chmod('d', 0)",
        "print('x' * 10**7)",
    ],
)
def test_what_a_program_does_to_its_folder_reaches_nobody(harm: str) -> None:
    result = run_program(f"print('before')\n{harm}", seconds=5, memory_mb=512, network=not ISOLATES)
    assert result.output.startswith("before")
    assert len(result.output) <= 1_000_000
