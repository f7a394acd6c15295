"""The commands that pages show are run, and print what the pages say; `...` stands for any text, such as a figure."""

from __future__ import annotations

import csv
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
SLOW = "<!-- runs for minutes -->"  # before a block: it needs a model
TICKETS = {
    "printer": (
        "The printer on floor {} prints blank pages",
        "Paper jam in printer {}",
        "Toner of printer {} is empty",
    ),
    "network": ("No network in room {} since today", "The wifi on floor {} drops", "VPN asks for password {} times"),
    "account": ("My account {} is locked", "Reset the password of user {}", "User {} cannot log in any more"),
}


@pytest.fixture
def folder(tmp_path):
    """An empty folder with the table of the tutorial: 150 tickets of three queues, and new ones without a queue."""
    rows = [(text.format(n), queue)
            for n in range(1, 21) for queue, texts in TICKETS.items() for text in texts[: 2 + n % 2]]  # fmt: skip
    with (tmp_path / "tickets.csv").open("w", newline="") as out:
        csv.writer(out).writerows([("id", "text", "queue"), *((f"T{n}", *row) for n, row in enumerate(rows, 1))])
    with (tmp_path / "new.csv").open("w", newline="") as out:
        csv.writer(out).writerows([("id", "text"), ("N1", "The printer is out of paper"), ("N2", "The wifi is slow")])
    return tmp_path


def shown(page: str, *, slow: bool) -> Iterator[tuple[str, str]]:
    """The commands of a page's console blocks, each with what the page says that it prints."""
    text = (DOCS / page).read_text("utf-8")
    for mark, block in re.findall(rf"({re.escape(SLOW)}\n\n?)?```console\n(.*?)```", text, re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, printed = part.partition("\n")
            if slow or not mark:
                yield command, printed


def check(page: str, folder: Path, *, slow: bool) -> int:
    """Run the commands of a page in one folder; return how many there were."""
    count = 0
    for command, printed in shown(page, slow=slow):
        program, *words = shlex.split(command)
        assert program == "rung", command
        done = subprocess.run(
            [sys.executable, "-m", "rung", *words], cwd=folder, text=True, stdin=subprocess.DEVNULL,
            capture_output=True, check=False, env={**os.environ, "COLUMNS": "100"},
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
        wanted = ".*?".join(re.escape(" ".join(piece.split())) for piece in printed.split("..."))
        wanted = re.sub(r"(?:\\ )+", r"\\s*", wanted)
        plain = " ".join(done.stdout.split())
        assert re.fullmatch(rf"\s*{wanted}\s*", plain, re.DOTALL), f"{command} prints\n{done.stdout}\nnot\n{printed}"
        count += 1
    return count


def test_the_quick_commands_of_the_tutorial(folder):
    assert check("tutorial.md", folder, slow=False) >= 3


@pytest.mark.slow
def test_every_command_of_the_tutorial(folder):
    assert check("tutorial.md", folder, slow=True) >= 6
