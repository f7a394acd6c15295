import json

import pytest
from typer.testing import CliRunner

from rung.cli.main import app
from rung.errors import ConfigError
from rung.rungs import default_names, names


def run(*arguments):
    done = CliRunner().invoke(app, list(arguments))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_rungs_lists_all_and_their_settings():
    found = json.loads(run("rungs", "--json").stdout)
    assert [entry["name"] for entry in found] == list(names())
    assert {entry["name"] for entry in found if entry["default"]} == set(default_names())
    lora = next(entry for entry in found if entry["name"] == "lora")
    assert (lora["settings"]["rank"], lora["settings"]["alpha"]) == (16, 32)
    assert "seed" not in lora["settings"]
    assert "rank: 16" in run("rungs", "lora").stdout
    with pytest.raises(ConfigError, match="no rung is named 'lara'"):
        run("rungs", "lara")


def test_tune_searches_and_prints_what_goes_into_the_task_file(small_task_file, tiny_folder, tmp_path):
    command = [
        "tune", str(small_task_file), "--rung", "lora", "--trials", "2", "--out", str(tmp_path), "--quiet",
        "--set", f"model={tiny_folder}", "--set", "data.train_per_label=2", "--set", "data.validation_rows=6",
        "--set", "data.test_rows=6",
    ]  # fmt: skip
    found = json.loads(run(*command, "--json").stdout)
    assert found["trials"][0]["settings"] == {
        "learning_rate": 1e-3, "epochs": 3, "batch_size": 8, "rank": 16, "alpha": 32,
    }  # fmt: skip
    assert len(found["trials"]) == 2
    assert found["trials"][1]["settings"]["alpha"] == 2 * found["trials"][1]["settings"]["rank"]
    shown = run(*command).stdout  # the search is over: it is shown again, and nothing is trained
    assert "for the task file:\nrungs:\n  lora: {" in shown
    assert found["artifact"] in shown
