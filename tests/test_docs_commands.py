"""What the pages show is run: commands print what the page says, and the Python does what the page says.

In the output of a console block, `...` stands for any text, such as a figure. `test_docs.py` reads all other commands
and task files of the pages without running them.
"""

from __future__ import annotations

import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

import rung
from rung.feedback.records import Interaction
from rung.models.cache import cache_dir
from rung.rungs import registered
from rung.rungs.base import REGISTERED
from rung.serving.served import Served

ROOT = Path(__file__).parents[1]
PAGES = {page.name: page.read_text("utf-8") for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))}
SLOW = "<!-- runs for minutes -->"  # before a block: it needs a model
BLOCK = re.compile(rf"({re.escape(SLOW)}\n\n?)?^```(console|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
TICKETS = {
    "printer": (
        "The printer on floor {} prints blank pages",
        "Paper jam in printer {}",
        "Toner of printer {} is empty",
    ),
    "network": ("No network in room {} since today", "The wifi on floor {} drops", "VPN asks for password {} times"),
    "account": ("My account {} is locked", "Reset the password of user {}", "User {} cannot log in any more"),
}
TASK = """name: tickets
instruction: Which queue does this support ticket belong to?
inputs: [text]
output: {column: queue, kind: category}
data: {train: tickets.csv, split: {method: holdout, validation: 0.2, test: 0.3}}
"""
FEW = TASK.replace("split:", "train_rows: 30, split:")  # what trains for seconds
ASKING = """name: support
instruction: Answer the customer's question.
inputs: [question]
output: {column: answer, kind: text}
data: {train: questions.csv}
corpus: {files: [manuals/, faq.csv], text_column: text, metadata: [product]}
"""
KETTLE = """# Kettle

Fill it up to the mark. It switches itself off when the water boils.

## Warranty

The warranty on the kettle is two years from the day of purchase.
"""
DOCUMENTS = {
    "task.yaml": ASKING,
    "manuals/kettle.md": KETTLE,
    "faq.csv": "product,text\nkettle,The warranty on a kettle does not cover chalk.\ntoaster,A toaster has no timer.\n",
    "questions.csv": "question,answer\n"
    "How long is the warranty on the kettle?,The warranty on the kettle is two years from the day of purchase.\n"
    "Does the kettle switch itself off?,It switches itself off when the water boils.\n"
    "Has a toaster a timer?,A toaster has no timer.\n",
}
FILES = {  # of a page, beside or instead of the tickets
    "answering.md": DOCUMENTS,
    "failures.md": {
        "cases.csv": "input,actual,expected\n"
        "The printer in room 7 is on fire,account,printer\n"
        "The wifi is slow,network,network\n"
        "My screen stays black,printer,\n"
    },
    "export.md": {"task.yaml": FEW + "rungs: {lora: {epochs: 1}}\n"},
    "retrieval.md": DOCUMENTS,
    "trust.md": {
        "my-task/task.yaml": TASK + "metric: mymetric:score\n",
        "my-task/mymetric.py": "def score(prediction, references):\n    return float(prediction in references)\n",
    },
    "tutorial.md": {"task.yaml": ""},  # `rung init` writes it
}


@pytest.fixture
def folder(page, tmp_path):
    """The files of a page: 150 tickets of three queues, new ones without a queue, and a task file."""
    rows = [(text.format(n), queue)
            for n in range(1, 21) for queue, texts in TICKETS.items() for text in texts[: 2 + n % 2]]  # fmt: skip
    with (tmp_path / "tickets.csv").open("w", newline="") as out:
        csv.writer(out).writerows([("id", "text", "queue"), *((f"T{n}", *row) for n, row in enumerate(rows, 1))])
    with (tmp_path / "new.csv").open("w", newline="") as out:
        csv.writer(out).writerows([("id", "text"), ("N1", "The printer is out of paper"), ("N2", "The wifi is slow")])
    for name, text in {"task.yaml": TASK, **FILES.get(page, {})}.items():
        if text:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)
    return tmp_path


def blocks(page: str, language: str, *, slow: bool) -> list[str]:
    """The blocks of a page in a language; those that are slow only if asked for."""
    found = BLOCK.findall(PAGES[page])
    return [block for mark, written, block in found if written == language and (slow or not mark)]


def pages(language: str, *, slow: bool) -> pytest.MarkDecorator:
    """Each page that has such blocks; or, with `slow`, such blocks that are slow."""
    quick = {page: len(blocks(page, language, slow=False)) for page in PAGES}
    names = [
        page for page, count in quick.items() if (len(blocks(page, language, slow=True)) > count if slow else count)
    ]
    return pytest.mark.parametrize("page", sorted(names))


def cache_with_models(folder: Path) -> Path:
    """A cache of its own, with the models of the shared one: no answer and no index of an earlier run is in it."""
    cache = folder / "cache"
    cache.mkdir()
    for each in cache_dir().iterdir():
        if each.is_dir() and each.name not in ("indexes", "training"):
            (cache / each.name).symlink_to(each)
    return cache


def check(page: str, folder: Path, *, slow: bool) -> None:
    """Run the commands of a page, one after the other, and compare what they print."""
    parts = [part for block in blocks(page, "console", slow=slow) for part in re.split(r"^\$ ", block, flags=re.M)[1:]]
    own = {"RUNG_CACHE": cache_with_models(folder), "XDG_CONFIG_HOME": folder / "config", "RUNG_TRUST": ""}
    environment = {**os.environ, "COLUMNS": "100", **{name: str(value) for name, value in own.items()}}
    for command, _, printed in (part.partition("\n") for part in parts):
        program, *words = shlex.split(command)
        assert program == "rung", command
        done = subprocess.run(
            [sys.executable, "-m", "rung", *words], cwd=folder, text=True, stdin=subprocess.DEVNULL,
            capture_output=True, check=False, env=environment,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
        wanted = ".*?".join(re.escape(" ".join(piece.split())) for piece in printed.split("..."))
        wanted = re.sub(r"(?:\\ )+", r"\\s*", wanted)
        plain = " ".join(done.stdout.split())
        assert re.fullmatch(rf"\s*{wanted}\s*", plain, re.DOTALL), f"{command} prints\n{done.stdout}\nnot\n{printed}"


@pages("console", slow=False)
def test_the_quick_commands_of_a_page(page, folder):
    check(page, folder, slow=False)


@pytest.mark.slow
@pages("console", slow=True)
def test_every_command_of_a_page(page, folder):
    check(page, folder, slow=True)


def given(page, folder, request):
    """What the Python of a page takes for granted."""
    values = {"rung": rung, "Path": Path}
    if page == "clusters.md":
        (folder / "task.yaml").write_text(TASK + "constraints: {rungs: [majority, tfidf-head]}\n")
        values |= {"zero": request.getfixturevalue("tiny_zero"), "data": request.getfixturevalue("data")}
    elif page == "failures.md":
        values["interaction"] = Interaction(
            id="r1", at=datetime.now(UTC), task="tickets", artifact="a" * 64, model="m" * 64, system="Which queue?",
            template="{text}", template_version="t" * 64, inputs={"text": "The wifi is slow"}, prompt_sha256="p" * 64,
            actual="network", confidence=0.9, prompt_tokens=9, completion_tokens=1, seconds=0.1, key=None,
            finish="stop", split="train",
        )  # fmt: skip
        values["served"] = SimpleNamespace(load=None)  # nothing is promoted
    elif page == "retrieval.md":
        values["task"] = rung.Task.load("task.yaml")
    elif page == "serving.md":
        shutil.copytree(request.getfixturevalue("letters_folder"), "runs/banking77/rungs/few-shot-knn/artifact")
    elif page in ("README.md", "tasks.md"):
        shutil.copytree(folder, folder / "examples/banking77")
        Path("examples/banking77/task.yaml").write_text(FEW)
        with Path("tickets.csv").open() as table:
            rows = [{"text": row["text"], "label": row["queue"]} for row in csv.DictReader(table)]
        values |= {"rows": rows[:100], "test_rows": rows[100:]}
    return values


def run_python(page, folder, request, *, slow):
    """Run the Python of a page, each block on its own; a climb gets seconds instead of minutes."""
    for block in blocks(page, "python", slow=slow):
        code = block.replace('budget="10m"', 'budget="20s"')
        before = {thread for thread in threading.enumerate() if thread.name.startswith("rung-")}
        values = given(page, folder, request)
        exec(compile(code, page, "exec", dont_inherit=True), values)
        if isinstance(served := values.get("served"), Served):
            served.close()  # as the server of its application does
        assert {thread for thread in threading.enumerate() if thread.name.startswith("rung-")} <= before


@pytest.fixture
def registry_as_it_was():
    registered()  # finds all rungs, once in a process
    kept = dict(REGISTERED)
    yield
    REGISTERED.clear()
    REGISTERED.update(kept)


@pages("python", slow=False)
def test_the_quick_python_of_a_page(page, folder, request, monkeypatch, registry_as_it_was):
    monkeypatch.chdir(folder)
    run_python(page, folder, request, slow=False)


@pytest.mark.slow
@pages("python", slow=True)
def test_all_python_of_a_page(page, folder, request, monkeypatch, registry_as_it_was):
    monkeypatch.chdir(folder)
    run_python(page, folder, request, slow=True)
