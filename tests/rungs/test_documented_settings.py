"""The pages name every setting of every rung, those of tables with their defaults, and none that there is not."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from rung.rungs import build
from rung.rungs import names as rung_names
from rung.rungs.base import settable
from rung.rungs.fine_tune import FineTune
from rung.task import Task

ROOT = Path(__file__).parents[2]
PAGES = [file.read_text("utf-8") for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]
CODE = re.compile(r"```yaml\n(.*?)```|`(rungs: \{[^`\n]+)`", re.DOTALL)


@cache
def in_tables() -> dict[str, dict[str, Any]]:
    """Settings in rows such as "| lora, qlora | `rank: 16` |", by rung; an empty first cell goes on with the row."""
    told: dict[str, dict[str, Any]] = defaultdict(dict)
    for page in PAGES:
        names: set[str] = set()
        for line in page.splitlines():
            cells = [cell.strip() for cell in line.split("|")[1:-1]]
            names = names if cells and not cells[0] else set("".join(cells[:1]).split(", "))
            if names <= set(rung_names()) and re.fullmatch(r"`\w+: [^`]*`", "".join(cells[1:2])):
                for name in names:
                    told[name] |= yaml.safe_load(f"{{{cells[1].strip('`')}}}")
    return dict(told)


@cache
def in_code() -> dict[str, set[str]]:
    """Settings in code such as `rungs: {lora: {rank: 8}}`, by rung; every block of YAML is one."""
    told: dict[str, set[str]] = defaultdict(set)
    for found in (yaml.safe_load(block or span) for page in PAGES for block, span in CODE.findall(page)):
        rungs = found.get("rungs", {}) if isinstance(found, dict) else {}
        for name, settings in rungs.items():
            told[name] |= set(settings)
    return dict(told)


@pytest.mark.parametrize("name", rung_names())
def test_every_setting_is_named_and_its_default_is_right(name: str, task: Task) -> None:
    (rung,) = build((name,), task, 0)
    defaults = {key: getattr(rung, key) for key in settable(rung)}
    tabled, named = in_tables().get(name, {}), in_code().get(name, set())
    shared = (
        {field.name for field in fields(FineTune)} if isinstance(rung, FineTune) else set()
    )  # in a table of its own
    assert set(defaults) <= {*tabled, *named, *shared}
    assert {*tabled, *named} <= set(defaults)
    assert tabled == {key: list(v) if isinstance(v := defaults[key], tuple) else v for key in tabled}
