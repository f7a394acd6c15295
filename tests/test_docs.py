"""The pages name only what there is: Python names, files, links, commands with their options, keys of task files.

`test_docs_commands.py` runs what the pages show.
"""

from __future__ import annotations

import pkgutil
import re
import shlex
from collections.abc import Iterator
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from rung.cli.main import app
from rung.task import Task

ROOT = Path(__file__).parents[1]
NAMES = ("README.md", "CONTRIBUTING.md", "AGENTS.md", "SECURITY.md", "src/rung/explanations.md")
FOLDERS = ("docs/*.md", "examples/*/README.md")
PAGES = [*(ROOT / name for name in NAMES), *(page for pages in FOLDERS for page in sorted(ROOT.glob(pages)))]
COMMAND = re.compile(
    r"^ *(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\S.* -m )?rung ([a-z][^`\n]*)$", re.MULTILINE
)  # a line of its own
MINIMAL = {"name": "x", "instruction": "x", "inputs": ["x"]}
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def headings(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(page: Path) -> Iterator[tuple[Any, list[str]]]:
    """Every `rung COMMAND ...` in the page's code: the command, and the words after it."""
    for line in re.findall(r"(?:^|[`\s])rung ([a-z][^`\n#]*)", page.read_text("utf-8"), re.MULTILINE):
        command, words = command_line(), line.split()
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        if not hasattr(command, "commands"):
            yield command, words


@cache
def command_line() -> Any:
    return get_command(app)


def parse(words: list[str]) -> None:
    """Read a command as `rung` would, without running it."""
    command, name = command_line(), ""
    while hasattr(command, "commands"):
        name = words.pop(0) if words else ""
        assert name in command.commands, f"there is no command {name!r}"
        command = command.commands[name]
    for each in command.params:
        each.callback = None  # it would look for the artifact
    command.make_context(name, words)


def task_sections(block: str) -> Iterator[dict[str, Any]]:
    """The sections that a block shows; where a key stands there several times, one variant for each of its values."""
    keys = [(key.value, yaml.safe_load(yaml.serialize(value))) for key, value in yaml.compose(block).value]
    yield from ({**dict(keys), key: value} for key, value in keys)


@every_page
def test_python_names_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    named = re.findall(r"(?<![\w.\"/-])rung(?:\.[A-Za-z_]\w*)+\b", text)
    imported = re.findall(r"^from (rung[\w.]*) import ([\w, ]+)", text, re.MULTILINE)
    named += [f"{module}.{name.strip()}" for module, names in imported for name in names.split(",")]
    for name in named:
        if name != "rung.service":  # systemd's unit
            assert pkgutil.resolve_name(name) is not None


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md"])
def test_what_a_newcomer_installs_is_enough_for_the_commands_of_the_page(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    assert "rung serve" in text
    assert ".[local,serve]" in text
    assert ".[local,serve]" in (ROOT / "Makefile").read_text()


@every_page
def test_files_and_links_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    for link in re.findall(r"\]\((?!http)([^)]+)\)", text):
        path, _, heading = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not heading or heading in headings(target), link
    folders = (ROOT, page.parent, ROOT / "benchmarks", ROOT / "src" / "rung", *(ROOT / "src" / "rung").iterdir())
    for path in re.findall(r"`((?:src|docs|examples|benchmarks|deploy|tests)/[\w./-]+|[a-z_/]+\.py)`", text):
        if path != "mymodule.py":
            assert any((folder / path).exists() for folder in folders), path


@every_page
def test_commands_have_the_options_that_are_shown(page: Path) -> None:
    for command, words in commands(page):
        options = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
        for word in words:
            if option := re.match(r"--[a-z][\w-]*|-[a-z]\b", word):
                assert option[0] in {*options, "--help"}, f"rung {command.name} has no {option[0]}"


def test_a_command_that_there_is_not_is_found() -> None:
    for wrong in ("climb", "climb task.yaml --speed 3", "climb task.yaml --seed x", "index task.yaml", "fly", "trial"):
        with pytest.raises(Exception, match=r"[Mm]issing|[Nn]o such|not a valid|no command"):
            parse(wrong.split())


@every_page
def test_commands_are_complete(page: Path) -> None:
    for line in COMMAND.findall(page.read_text("utf-8").replace("\\\n", " ")):
        try:
            parse(list(takewhile(lambda word: word not in (">", "|"), shlex.split(line, comments=True))))
        except Exception as error:
            error.add_note(f"rung {line}")
            raise


@every_page
def test_task_files_have_the_keys_that_are_shown(page: Path) -> None:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    keys = "|".join(Task.model_fields)
    for block in (text for language, text in blocks if language == "yaml" or re.match(rf"(?:{keys}): ", text)):
        for values in task_sections(block):
            kind = "category" if "confidence" in values else "text"
            output = {"column": "y", "kind": kind, **values.get("output", {})}
            output |= {"schema": {"type": "object"}} if output["kind"] == "json" else {}  # instead of a file
            data = {"train": "train.csv", **values.get("data", {})}
            Task.model_validate({**MINIMAL, **values, "output": output, "data": data})
