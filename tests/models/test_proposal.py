"""Which built-in model suits a machine, in `rung doctor` and in the task files of `rung init`."""

import json

import pytest
from typer.testing import CliRunner

from rung.cli.main import app
from rung.machine import Machine
from rung.models.embedded import proposed
from rung.task import Task

GIB = 2**30
SLOW, USUAL, FAST = 20e9, 150e9, 1000e9  # operations a second


@pytest.mark.parametrize(
    ("memory", "flops", "model"),
    [
        (2 * GIB, FAST, "embedded"),  # 2.0 GB of weights are more than 60 % of it
        (4 * GIB, FAST, "builtin:qwen2.5-coder-0.5b"),
        (16 * GIB, FAST, "builtin:qwen2.5-coder-1.5b"),
        (16 * GIB, USUAL / 2, "builtin:qwen2.5-coder-0.5b"),  # 1.5B would take 20.6 s a row
        (16 * GIB, USUAL, "builtin:qwen2.5-coder-0.5b"),  # and 10.3 s
        (16 * GIB, SLOW, "embedded"),
        (GIB // 8, SLOW / 100, "embedded"),  # nothing smaller is built in
    ],
)
def test_the_largest_model_that_suits_memory_and_patience(memory, flops, model):
    chosen, why = proposed(Machine(2, memory, flops))
    assert chosen.reference == model
    assert f"{4 * chosen.parameters / 1e9:.1f} GB" in why


def test_doctor_and_init_propose_it(tmp_path, monkeypatch):
    def run_cli(*arguments):
        return CliRunner().invoke(app, arguments, catch_exceptions=False)

    machine = Machine(2, 4 * GIB, FAST)
    monkeypatch.setattr("rung.machine.this_machine", lambda: machine)
    told = json.loads(run_cli("doctor", "--json").stdout)
    assert told["model"] == "builtin:qwen2.5-coder-0.5b"
    table, out = tmp_path / "rows.csv", tmp_path / "task.yaml"
    table.write_text("text,label\n" + "".join(f"message {i},{'ab'[i % 2]}\n" for i in range(20)))
    run_cli("init", str(table), "--yes", "--out", str(out))
    assert f"# Stronger: builtin:qwen2.5-coder-0.5b: {told['model_because']}\nmodel: embedded " in out.read_text()
    run_cli("init", str(table), "--yes", "--force", "--model", "http://localhost/v1#m", "--out", str(out))
    assert Task.load(out).model == "http://localhost/v1#m"
    assert "Stronger" not in out.read_text()
