"""The rules of the code's structure: no import cycles, decoders behind their interface, names once, files of a size.

The layers are checked by import-linter (`make check`, contracts in pyproject.toml).
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import grimp

import rung.artifact.artifact  # noqa: F401  # defines all kinds of decoders
from rung.artifact.decoder import Decoder

ROOT = Path(__file__).parents[1] / "src" / "rung"
FILES = {file: file.read_text("utf-8") for file in sorted(ROOT.rglob("*.py"))}
MAX_FILES, MAX_LINES, MAX_FILE_LINES = 300, 69_000, 600


def kinds(decoder: type[Decoder]) -> set[str]:
    return {decoder.__name__}.union(*map(kinds, decoder.__subclasses__()))


def test_no_file_imports_itself_by_way_of_others() -> None:
    graph = grimp.build_graph("rung", cache_dir=None)  # lazy and type-only imports included
    TopologicalSorter({one: graph.find_modules_directly_imported_by(one) for one in graph.modules}).prepare()


def test_no_module_outside_artifact_asks_which_decoder_it_has() -> None:
    names = "|".join(kinds(Decoder) | {"Decoder"})
    asks = re.compile(rf"isinstance\([^()]*\b({names})\b|decoder\.kind\s*([!=]=|(not )?in\b)")
    found = [str(file) for file, text in FILES.items() if "artifact" not in file.parts and asks.search(text)]
    assert found == []


def test_a_class_name_occurs_once() -> None:
    names = Counter(n.name for text in FILES.values() for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ClassDef))
    assert [name for name, count in names.items() if count > 1] == []


def test_the_package_keeps_its_size() -> None:
    lines = {file: text.count("\n") for file, text in FILES.items()}
    assert [str(file) for file, count in lines.items() if count > MAX_FILE_LINES] == []
    assert (len(lines) <= MAX_FILES, sum(lines.values()) <= MAX_LINES) == (True, True)
