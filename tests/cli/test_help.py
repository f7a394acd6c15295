"""The help of the command: groups that hold every command, examples that are right, completion."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from rung.cli.help import EXAMPLES, GROUPS, OPTIONS
from rung.cli.main import app

RUN = CliRunner()


def test_every_command_is_in_one_group():
    names = [name for group in GROUPS.values() for name in group]
    assert sorted(names) == sorted(get_command(app).commands)
    lines = RUN.invoke(app, ["--help"]).stdout.splitlines()
    assert not any("..." in line for line in lines if line.startswith("  ") and not line.startswith("  -"))
    assert max(map(len, lines)) <= 80


def every(group, *words):
    """Each command and group below a group with its words, such as `index build`."""
    for name, command in group.commands.items():
        yield [*words, name], command
        yield from every(command, *words, name) if hasattr(command, "commands") else ()


def test_every_command_shows_the_help_of_its_arguments_and_an_example():
    for words, command in every(get_command(app)):
        text = RUN.invoke(app, [*words, "--help"]).stdout
        shown = " ".join(text.split())
        assert max(map(len, text.splitlines())) <= 80, words
        assert f"Example: {' '.join(EXAMPLES[' '.join(words)].split())}" in shown, words
        for name, child in getattr(command, "commands", {}).items():
            first = " ".join(child.help.split("\n\n")[0].split()).split(". ")[0].rstrip(".")
            assert f"{name} {first}" in shown, (words, name)  # whole, not cut
        arguments = [each for each in command.params if each.param_type_name == "argument"]
        assert text.lower().count("arguments:") == bool(arguments), words
        for each in arguments:
            assert each.help, (words, each.name)
            assert " ".join(each.help.split()) in shown, (words, each.name)


def test_examples_have_the_arguments_and_options_of_their_command():
    group = get_command(app)
    known = {" ".join(words): command for words, command in every(group)}
    assert known.keys() == EXAMPLES.keys()
    context = group.make_context("rung", ["-h"], resilient_parsing=True)
    for name, text in EXAMPLES.items():
        for line in text.splitlines():
            called, *words = shlex.split(line.partition(" > ")[0])[1:]
            command = known[called]
            if hasattr(command, "commands"):
                command = known[f"{called} {words.pop(0)}"]
            assert command is known[name] or hasattr(known[name], "commands")
            command.make_parser(context).parse_args(words)


@pytest.mark.parametrize(("name", "groups"), OPTIONS.items())
def test_groups_of_options_hold_every_option_but_those_of_all_commands(name, groups):
    grouped = [option for group in groups.values() for option in group]
    every_option = {each.name for each in get_command(app).commands[name].params if each.param_type_name == "option"}
    assert sorted(grouped) == sorted(every_option - {"quiet", "offline"})


def test_help_of_a_command_is_its_help():
    assert RUN.invoke(app, ["help", "climb"]).stdout == RUN.invoke(app, ["climb", "--help"]).stdout
    assert RUN.invoke(app, ["help"]).stdout == RUN.invoke(app, ["--help"]).stdout


def test_the_shell_completes_commands_and_options():
    asked = {"_RUNG_COMPLETE": "complete_bash", "COMP_WORDS": "rung pre", "COMP_CWORD": "1"}
    run = subprocess.run(
        [Path(sys.executable).with_name("rung")],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout.split() == ["predict"]


@pytest.mark.parametrize(
    ("words", "code", "message", "hint"),
    [
        (["clmib"], "unknown-name", "no such command 'clmib'. Did you mean 'climb'?", "rung --help"),
        (["index", "fetch"], "unknown-name", "no such command 'fetch'", "rung index --help"),
        (["climb"], "bad-option", "missing argument 'TASK'", "rung climb --help"),
        (["climb", "t.yaml", "--bugdet", "1m"], "bad-option", "no such option '--bugdet'", "rung climb --help"),
        (["serve", "--port", "x"], "bad-option", "invalid value for '--port'", "rung serve --help"),
        (["--nothing"], "bad-option", "no such option '--nothing'", "rung --help"),
    ],
)
def test_errors_of_usage_have_a_code_and_the_help_of_their_command(words, code, message, hint):
    error = RUN.invoke(app, words, prog_name="rung").exception
    assert (error.code, error.exit_code, error.hint) == (code, 2, hint)
    assert error.message.startswith(message)
    assert error.message.count("Did you mean") <= 1
