"""init, check, schema and explain, as a user calls them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

from rung.errors import ConfigError, DataError, install_command
from rung.task import Task

CSV = "id,text,label\n" + "".join(f"{i},message number {i},{'spam' if i % 3 else 'ham'}\n" for i in range(120))


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUNG_CACHE", str(tmp_path / "cache"))


def run(*arguments: str, text: str | None = None) -> Any:
    """Run a command, with `text` on its standard input."""
    # Typer still imports names that click announces to move; other warnings stay errors.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*will be removed in Click 9", DeprecationWarning)
        from typer.testing import CliRunner

        from rung.cli.main import app
    return CliRunner().invoke(app, arguments, input=text)


def test_init_writes_a_task_that_check_accepts(tmp_path: Path) -> None:
    Path("mails.csv").write_text(CSV)
    assert run("init", "mails.csv").exit_code == 0
    text = Path("task.yaml").read_text()
    assert text.splitlines()[0] == "# yaml-language-server: $schema=task.schema.json"
    task = Task.load("task.yaml")
    assert (task.name, task.inputs, task.output.column, task.output.kind) == ("mails", ["text"], "label", "category")
    assert task.data.train == "mails.csv"
    result = run("check", "task.yaml")
    assert result.exit_code == 0
    assert "rows a label" in result.stdout
    assert result.stdout.splitlines()[-2:] == ["fine.", "Next: rung climb task.yaml --plan"]


@pytest.mark.parametrize("there", [True, False])
def test_documents_without_rows_can_be_asked_where_retrieval_is_installed(there: bool, monkeypatch: Any) -> None:
    Path("docs").mkdir()
    Path("docs/guide.md").write_text("Cards arrive within a week.")
    assert run("init", "docs", "--yes").exit_code == 0
    monkeypatch.setattr("rung.cli.tasks.find_spec", lambda name: there or None)
    lines = run("check", "task.yaml").stdout.splitlines()
    assert lines[0] == "1 document"
    assert lines[-2:] == (
        ["Its documents can be asked.", "Next: rung run task.yaml 'your question'"] if there else
        ["To ask its documents, install what retrieval needs.", f"Next: {install_command('rag')}"]
    )  # fmt: skip


def test_init_replaces_nothing_unasked() -> None:
    Path("mails.csv").write_text(CSV)
    Path("task.yaml").write_text("mine")
    result = run("init", "mails.csv")
    assert isinstance(result.exception, ConfigError)
    assert result.exception.code == "file-exists"
    assert Path("task.yaml").read_text() == "mine"
    assert run("init", "mails.csv", "--force").exit_code == 0
    assert Task.load("task.yaml").name == "mails"


@pytest.mark.parametrize(
    ("row", "inputs", "column", "kind"),
    [
        ({"text": "a long text {i}", "label": 1}, ["text"], "label", "category"),
        ({"source": ["One {i}.", "Two."], "target": ["A summary of {i}."]}, ["source"], "target", "text"),
        ({"note": "Paid {i} on Monday", "fields": {"total": 1}}, ["note"], "fields", "json"),
        ({"note": "Paid {i} on Monday", "fields": '{"total": 1}'}, ["note"], "fields", "json"),
        ({"messages": [{"role": "user", "content": "Hi {i}"}]}, ["messages"], None, "chat"),
        ({"Frage": "Was ist „{i}“? 😀", "Antwort": "Nummer {i}, natürlich"}, ["Frage"], "Antwort", "text"),
    ],
)
def test_guesses(row: dict[str, object], inputs: list[str], column: str | None, kind: str) -> None:
    text = json.dumps(row)
    lines = [text.replace("{i}", str(i)).replace('"label": 1', f'"label": {i % 2}') for i in range(40)]
    Path("daten.jsonl").write_text("\n".join(lines))
    assert run("init", "daten.jsonl").exit_code == 0
    task = Task.load("task.yaml")
    assert (task.inputs, task.output.column, task.output.kind) == (inputs, column, kind)


def test_a_named_output_column_decides() -> None:
    Path("mails.csv").write_text(CSV)
    assert run("init", "mails.csv", "--output", "text", "--out", "sub/other.yaml").exit_code == 0
    task = Task.load("sub/other.yaml")
    assert (task.output.column, task.output.kind) == ("text", "text")
    assert (task.folder / str(task.data.train)).samefile("mails.csv")
    error = run("init", "mails.csv", "--output", "lable", "--force").exception
    assert isinstance(error, DataError)
    assert (error.code, error.hint) == ("missing-column", "did you mean 'label'?")
    Path("one.csv").write_text("text\nx y\n")
    assert isinstance(error := run("init", "one.csv", "--force").exception, DataError)
    assert error.code == "missing-column"


def test_check_as_json() -> None:
    Path("mails.csv").write_text(CSV)
    run("init", "mails.csv")
    result = run("check", "task.yaml", "--json", "--set", "data.train_per_label=3")
    report = json.loads(result.stdout)
    assert (report["task"], report["splits"]["train"]["kept"]) == ("mails", 6)
    assert report["labels"]["train"] == {"spam": 3, "ham": 3}
    assert report["unit"] in ("characters", "tokens")


def test_a_climb_is_of_the_task_with_its_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mails.csv").write_text(CSV)
    run("init", "mails.csv")
    climbed = []

    def stopped(task: Task, **_: Any) -> None:
        climbed.append((task.name, task.data.train_per_label))
        raise KeyboardInterrupt

    monkeypatch.setattr("rung.climbing.run.climb", stopped)
    result = run("climb", "task.yaml", "--set", "name=other", "--set", "data.train_per_label=3")
    assert result.exit_code == 130
    assert climbed == [("other", 3)]


def test_check_refuses_a_set_without_a_value() -> None:
    Path("mails.csv").write_text(CSV)
    run("init", "mails.csv")
    error = run("check", "task.yaml", "--set", "data").exception
    assert isinstance(error, ConfigError)
    assert error.code == "bad-option"


def test_schema_is_what_init_writes() -> None:
    Path("mails.csv").write_text(CSV)
    run("init", "mails.csv")
    printed = run("schema").stdout
    assert json.loads(printed) == json.loads(Path("task.schema.json").read_text())
    keys = set(yaml.safe_load(Path("task.yaml").read_text()))
    assert keys <= set(json.loads(printed)["properties"])


def test_explain() -> None:
    listed = run("explain").stdout
    assert "label-spelling " in listed
    told = run("explain", "label-spelling").stdout
    assert "Why it is an error:" in told
    assert "What to do:" in told
    error = run("explain", "label-speling").exception
    assert isinstance(error, ConfigError)
    assert error.hint == "did you mean 'label-spelling'?"
