"""The command that each command ends with: it is one of Rung's, and what it names is there."""

from __future__ import annotations

import json
import re
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import typer
from typer.core import click
from typer.testing import CliRunner

from rung.cli.main import app
from rung.errors import RungError
from rung.feedback.records import Feedback, Interaction
from rung.feedback.store import FeedbackStore

# How a line begins that says what to type next; `rung climb` names several.
FOLLOWING = re.compile(r"^(?:Next|mistakes|try it|serve it|go on): +(.*)$", re.MULTILINE)
THEIRS = {"rows.csv", "data.csv", "new.csv"}  # files that a person has, by names of their own
LABELS = ("card", "loan")


def paths_of(line: str) -> dict[str, Path]:
    """Parse a command line as the shell and `rung` do, and run nothing; return the paths in it, by parameter."""
    program, *words = shlex.split(line)
    assert program == "rung", line
    command, context = typer.main.get_command(app), None
    while hasattr(command, "get_command"):
        context, (name, *words) = typer.Context(command, parent=context), words
        command = command.get_command(context, name)
        assert command is not None, line
    paths = {each.name for each in command.params if isinstance(each.type, click.Path)}
    parsed = command.make_context(command.name, words, parent=context)
    given = {name for name in paths if parsed.get_parameter_source(name).name == "COMMANDLINE"}
    return {name: Path(parsed.params[name]) for name in given}


def check(line: str) -> None:
    """Raise where a command line cannot be pasted: `rung` does not parse it, a path is missing, or one is there."""
    for name, path in paths_of(line).items():
        if str(path) not in THEIRS:
            assert path.exists() == (name != "out"), f"{line}: {path}"


@pytest.fixture
def folder(tmp_path, monkeypatch, tiny_folder):
    """A folder with a space in its name, in it a table and what production captured."""
    folder = tmp_path / "my work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("RUNG_STORE", "failures.db")
    rows = [f"{words} {number},{label}" for number in range(60)
            for words, label in zip(("lost my card", "late with my loan"), LABELS, strict=True)]  # fmt: skip
    (folder / "our rows").mkdir()
    for place, split in enumerate(("train", "validation", "test")):
        part = rows[40 * place : 40 * (place + 1)]
        (folder / "our rows" / f"{split}.csv").write_text("\n".join(["text,topic", *part]))
    (folder / "our handbook").mkdir()
    (folder / "our handbook" / "leave.md").write_text("Leave is 30 days a year. A card is replaced within a week.")
    (folder / "cases.csv").write_text(
        "prompt template,input,actual response,expected response\n{text},a lost card,loan,card\n"
    )
    at = datetime(2026, 1, 1, tzinfo=UTC)
    with FeedbackStore("failures.db") as store:
        store.record([
            Interaction(f"r{i}", at, "topics", "a", "m", "Which topic?", "{text}", "v", {"text": f"card {i}"}, "p",
                        "loan", 0.9, 1, 1, 0.1, None, "stop", "train") for i in range(3)
        ])  # fmt: skip
        store.add_feedback(Feedback("r0", thumb="down", comment="no"))
    return folder


RUN, TASK = "runs/train", "our task.yaml"
COMMANDS = [  # in the order in which a person may come to them; the one that ends with a command, by what follows
    (["init", "our rows", "--yes", "--out", TASK, "--model", "MODEL"], "check"),
    (["check", TASK, "--set", "data.train_rows=30"], "climb"),
    (["advise", TASK, "--set", "instruction=Which topic is it?"], "climb"),
    (["climb", TASK, "--plan"], "climb"),
    (["climb", TASK, "--rungs", "tfidf-head", "--quiet"], "report run serve"),
    (["report", RUN, "--rows", "wrong"], "report"),
    (["show", RUN], "run"),
    (["eval", RUN, TASK, "--quiet"], "predict"),
    (["confidence", RUN, TASK, "--quiet"], "confidence"),
    (["predict", RUN, "our rows/test.csv", "--out", "answers.csv"], "serve"),
    (["fit", TASK, "majority", "--out", "made of rows", "--quiet"], "eval"),
    (["cluster", "our rows/test.csv", "--column", "text", "--k", "2", "--model", "none", "--quiet"], "cluster"),
    (["init", "our handbook", "--yes", "--out", "ask us.yaml", "--model", "MODEL"], "check"),
    (["check", "ask us.yaml"], "run"),
    (["trust", "ask us.yaml", "--yes"], "check"),
    (["index", "build", "ask us.yaml", "--quiet"], "index"),
    (["index", "show", "ask us.yaml", "--set", "instruction=Answer briefly."], "index"),
    (["index", "update", "ask us.yaml", "--quiet"], "index"),
    (["index", "search", "ask us.yaml", "How long is the leave?"], "run"),
    (["failures", "list"], "failures"),
    (["failures", "stats"], "failures"),
    (["failures", "show", "r0"], "failures"),
    (["failures", "correct", "r0", "card"], "failures"),
    (["failures", "export", "--to", "chat", "--out", "reviewed cases.jsonl"], "init"),
    (["failures", "undo", "r0"], "failures"),
    (["failures", "import", "cases.csv", TASK, "--store", "other store.db"], "improve"),
    (["promote", RUN, "--reason", "first", "--registry", "our registry"], "serve"),
    (["trial", "start", "train", "made of rows", "--registry", "our registry"], "trial"),
    (["trial", "stop", "train", "--registry", "our registry"], "trial"),
    (["failures", "purge", "--older-than", "1d"], "failures"),
    (["doctor"], "demo"),
    (["models", "show", "embedded"], "init"),
    (["models", "pull", "embedded"], "init"),
    (["models", "search", "--task", "summarization"], "models"),
]


def test_what_follows_a_command_can_be_pasted(folder, tiny_folder, monkeypatch):
    for words, expected in COMMANDS:
        words = [str(tiny_folder) if word == "MODEL" else word for word in words]
        monkeypatch.setattr(sys, "argv", ["rung", *words])  # `rung climb` repeats its own
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, f"{words}: {done.output} {done.exception!r}"
        lines = FOLLOWING.findall(done.output)
        assert [shlex.split(line)[1] for line in lines] == expected.split(), f"{words}: {done.output}"
        for line in lines:
            check(line)
            if "--set" in words:
                assert shlex.split(line)[-2:] == words[-2:], f"{words}: {line}"


@pytest.mark.parametrize("line", [
    "rung check nowhere.yaml", "rung init rows.csv --out cases.csv", "git status", "rung nothing",
    "rung check our rows.csv", "rung check --nonsense", "rung run nowhere text", "rung failures",
])  # fmt: skip
def test_what_cannot_be_pasted_is_found(folder, line):
    with pytest.raises((AssertionError, ValueError, click.UsageError, RungError)):
        check(line)


def test_json_has_no_next_command(folder, tiny_folder):
    CliRunner().invoke(app, ["init", "our rows", "--yes", "--out", TASK, "--model", str(tiny_folder)])
    for words in (
        ["check", TASK],
        ["failures", "list"],
        ["failures", "stats"],
        ["doctor"],
        ["models", "show", "embedded"],
    ):
        json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
