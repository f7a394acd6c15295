"""Plain text to adapt a model to a domain: the documents of `data.text`, and what of it the rows to measure on hold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rung.data.examples import column, text_of
from rung.data.report import SplitReport
from rung.data.rows import Document, Example, normal
from rung.data.sources import HUB, read_rows, read_text
from rung.errors import DataError

if TYPE_CHECKING:
    from rung.task import Task

PLAIN = (".txt", ".md")
WINDOW = 13  # words in a row that tell a copy (Brown et al. 2020, https://arxiv.org/abs/2005.14165, appendix C)
FEWEST = 5  # words of a shorter row that tell one; fewer are said by chance


def read_documents(task: Task, report: SplitReport) -> tuple[Document, ...]:
    """Read the files of `data.text`: a .txt or .md file is one document, of a table each row is one.

    Empty and repeated documents are dropped and counted in `report`.

    Raises:
        DataError: a file cannot be read, a table lacks the column, or nothing is left.
    """
    names = [task.data.text] if isinstance(task.data.text, str) else task.data.text or []
    kept: dict[str, Document] = {}
    for name in names:
        for document in _documents(name, task):
            report.read += 1
            if not document.text.strip():
                report.drop("empty document", document.source)
            elif document.text in kept:
                report.drop("repeated document", document.source)
            else:
                kept[document.text] = document
    report.kept = len(kept)
    if names and not kept:
        raise DataError("empty-file", f"{', '.join(names)} holds no text", hint="leave out `data.text`, or add text")
    return tuple(kept.values())


def _documents(name: str, task: Task) -> Iterator[Document]:
    path: str | Path = name if name.startswith(HUB) else task.folder / Path(name).expanduser()
    if isinstance(path, Path) and path.suffix.lower() in PLAIN:
        if not path.is_file():
            raise DataError("no-such-file", f"{path} does not exist", hint="paths are relative to the task file")
        yield Document(read_text(path, task.data.encoding), path.name)
        return
    for record in read_rows(path, encoding=task.data.encoding):
        yield Document(text_of(column(record, task.data.text_column)), record.source)


def found_in(documents: Sequence[Document], rows: Sequence[Example]) -> list[tuple[Example, Document]]:
    """Return the rows that stand in the documents, each with the first document that holds it.

    A row does if 13 words in a row of one of its inputs or answers do, or all the words of a shorter one. Case and
    spaces do not matter; what has fewer than 5 words is not looked for.
    """
    wanted: dict[tuple[str, str], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, row in enumerate(rows):
        for text in (*_texts(row.inputs), *row.outputs):
            words = normal(text).split()
            for first in range(max(1, len(words) - WINDOW + 1) if len(words) >= FEWEST else 0):
                some = words[first : first + WINDOW]
                wanted[some[0], some[1]][" ".join(some)].append(number)
    found: dict[int, Document] = {}
    for document in documents:
        words = normal(document.text).split()
        for first, pair in enumerate(pairwise(words)):
            if pair in wanted:
                here = " ".join(words[first : first + WINDOW])
                for some, numbers in wanted[pair].items():
                    if here == some or here.startswith(some + " "):
                        for number in numbers:
                            found.setdefault(number, document)
    return [(rows[number], found[number]) for number in sorted(found)]


def _texts(value: Any) -> Iterable[str]:
    """Return every text inside the inputs of a row."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [text for inner in value for text in _texts(inner)] if isinstance(value, list) else []
