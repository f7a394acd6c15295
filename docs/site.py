"""Pages of the documentation that are made from the code: task file, commands, rungs, words, errors, examples.

mkdocs calls the two `on_` functions (`hooks` in mkdocs.yml). Nothing here is written to disk outside of the site.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from posixpath import join, normpath, relpath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer.main import get_command
from typer.testing import CliRunner

from rung.cli.main import app
from rung.evaluation.report.words import glossary
from rung.task import Task

ROOT = Path(__file__).parents[1]
CLONE = {  # files of the repository that are pages of the site
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "src/rung/evaluation/report/glossary.yaml": "reference/glossary.md",
    "src/rung/explanations.md": "reference/errors.md",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from the code."""
    pages = {
        "reference/task-file.md": task_file(),
        "reference/commands.md": commands(),
        "reference/rungs.md": rungs(),
        "reference/glossary.md": glossary_page(),
        "reference/errors.md": (ROOT / "src/rung/explanations.md").read_text("utf-8"),
        "contributing.md": (ROOT / "CONTRIBUTING.md").read_text("utf-8"),
        "changes.md": (ROOT / "CHANGELOG.md").read_text("utf-8"),
    }
    for readme in sorted(ROOT.glob("examples/*/README.md")):
        pages[f"examples/{readme.parent.name}.md"] = readme.read_text("utf-8")
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Let links between files of the repository lead to the pages of the site."""
    source = page.file.src_uri
    example = re.fullmatch(r"examples/([\w-]+)\.md", source)
    here = "examples/" + example[1] if example else "" if source in {"contributing.md", "changes.md"} else "docs"

    def link(match: re.Match[str]) -> str:
        label, target, heading = match[1], match[2], match[3] or ""
        at = normpath(join(here, target))
        name = CLONE.get(at) or re.sub(r"^examples/([\w-]+)/README\.md$", r"examples/\1.md", at).removeprefix("docs/")
        if files.get_file_from_path(name):
            return f"[{label}]({relpath(name, str(Path(source).parent))}{heading})"
        return f"`{at}`" if (ROOT / at).exists() else match[0]

    return re.sub(r"\[([^\]]*)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)]*)?\)", link, markdown)


def task_file() -> str:
    """Every key of a task file, from the models that check it."""
    schema = Task.model_json_schema(by_alias=True)
    text = [
        "# The task file, key by key\n",
        "This page is made from the models that check a task file. [Tasks](../tasks.md) explains the keys with",
        "examples. `rung schema` prints the same as a JSON Schema, for editors.\n",
        *_keys(schema),
    ]
    for name, section in _sections(schema, schema["$defs"]):
        text += [f"\n## `{name}`\n", section.get("description", ""), "", *_keys(section)]
    return "\n".join(text)


def _sections(part: dict[str, Any], parts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for key, value in part.get("properties", {}).items():
        for name in re.findall(r'"#/\$defs/(\w+)"', json.dumps(value)):
            yield f"{prefix}{key}", parts[name]
            yield from _sections(parts[name], parts, f"{prefix}{key}.")


def _keys(section: dict[str, Any]) -> Iterator[str]:
    yield "| key | type | default | what it is |"
    yield "|---|---|---|---|"
    required = section.get("required", [])
    for key, value in section["properties"].items():
        default = "required" if key in required else _value(value.get("default"))
        examples = "".join(f" Example: `{json.dumps(each, ensure_ascii=False)}`." for each in value.get("examples", ()))
        yield _row(f"`{key}`", _type(value), default, value.get("description", "") + examples)


def _type(value: dict[str, Any]) -> str:
    if "$ref" in value:
        return "section"
    if "enum" in value:
        return ", ".join(f"`{each}`" for each in value["enum"])
    if "anyOf" in value:
        return " or ".join(dict.fromkeys(_type(each) for each in value["anyOf"] if each.get("type") != "null"))
    names = {"string": "text", "boolean": "true or false", "object": "mapping", "integer": "whole number"}
    kind = str(value.get("type", "any"))
    if kind == "array":
        return f"list of {_type(value.get('items', {}))}"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return " ".join([names.get(kind, kind), *(f"{sign} {value[key]:g}" for key, sign in signs.items() if key in value)])


def _value(value: Any) -> str:
    return "" if value in (None, "", [], {}) else f"`{json.dumps(value, ensure_ascii=False)}`"


def _row(*cells: str) -> str:
    def plain(cell: str) -> str:
        parts = re.split(r"(`[^`]*`)", cell.replace("\n", " "))
        return "".join(part if part.startswith("`") else re.sub(r"([\[|])", r"\\\1", part) for part in parts)

    return "| " + " | ".join(map(plain, cells)) + " |"


def commands() -> str:
    """Every command with its arguments and options, from the command line itself."""
    text = ["# Commands\n", "This page is made from the command line: `rung COMMAND --help` prints the same.\n"]
    for name, command in _commands(get_command(app), "rung"):
        text += [f"\n## `{name}`\n", (command.help or "").replace("\f", ""), ""]
        rows = []
        for each in command.params:
            if getattr(each, "hidden", False) or each.name in {"install_completion", "show_completion"}:
                continue
            named = ", ".join(f"`{option}`" for option in (*each.opts, *each.secondary_opts))
            if each.param_type_name == "argument":
                named = f"`{each.human_readable_name}`"
            rows.append(_row(named, getattr(each, "help", None) or ""))
        if rows:
            text += ["| argument or option | what it does |", "|---|---|", *rows]
    return "\n".join(text)


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    for key, child in command.commands.items():
        if hasattr(child, "commands"):
            yield from _commands(child, f"{name} {key}")
        else:
            yield f"{name} {key}", child


def rungs() -> str:
    """Every rung with its settings and their defaults, from the registry."""
    text = [
        "# Rungs and their settings\n",
        "`rung rungs NAME` prints the same. A task file sets them under `rungs:`.\n",
    ]
    for each in json.loads(_printed("rungs", "--json")):
        when = "" if each["default"] else " Runs only when named."
        text += [f"\n## `{each['name']}`\n", f"{each['does']} Family: {each['family']}.{when}\n"]
        if each["settings"]:
            text += ["| setting | default |", "|---|---|"]
            text += [_row(f"`{key}`", _value(value) or "none") for key, value in each["settings"].items()]
    return "\n".join(text)


def glossary_page() -> str:
    """The words of reports and pages, from the file that they read."""
    lines = [f"**{word}**\n:   {text}\n" for word, text in glossary().items()]
    return "\n".join(["# What the words mean\n", "The report and the pages of `rung serve` show the same.\n", *lines])


def _printed(*words: str) -> str:
    """What a command prints."""
    ran = CliRunner().invoke(app, list(words))
    if ran.exit_code:
        raise RuntimeError(f"rung {' '.join(words)}: {ran.output}")
    return ran.stdout
