"""Find and read the documents of a corpus: files of text in many formats, and the rows of tables.

A file that cannot be read is a problem in the listing; the others are read all the same.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict

from rung.data.cells import CellError, text_of
from rung.data.rows import hash_of
from rung.data.sources import (
    AUTO,
    READERS,
    TEXT_KINDS,
    FileFormat,
    detect_encoding,
    is_hub,
    kind_of,
    read_rows,
    sheets_of,
)
from rung.data.spec import Corpus, DataSource
from rung.errors import ConfigError, DataError
from rung.models.cache import known_sha256
from rung.retrieval.formats import (
    Contents,
    UnreadableError,
    plain_text,
    read_html,
    read_mail,
    read_markdown,
    read_pdf,
    refuse_binary,
)
from rung.retrieval.packages import read_docx, read_epub, read_pptx

STREAMED = set(READERS) - {".json", ".xlsx", ".xlsm"}  # read row by row, so that their size does not matter

TEXTS = (".txt", ".text", ".md", ".markdown")
_READERS: dict[str, Callable[[Path, str], Contents]] = {
    **dict.fromkeys((".txt", ".text"), lambda path, encoding: Contents(plain_text(path, encoding))),
    **dict.fromkeys((".md", ".markdown"), read_markdown),
    **dict.fromkeys((".html", ".htm", ".xhtml"), read_html),
    ".pdf": read_pdf,
    **dict.fromkeys((".docx", ".docm"), read_docx),
    **dict.fromkeys((".pptx", ".pptm"), read_pptx),
    ".epub": read_epub,
    ".eml": read_mail,
}


@dataclass(frozen=True, slots=True)
class SourceDocument:
    """A document as text."""

    id: str  # the file relative to the task's folder; for a row of a table `file:line` or `file:id`
    source: str  # the file, or the Hub data set
    title: str  # of the document; never empty
    text: str  # what spans of passages point into
    markdown: bool = False  # whether `#` headings, `|` tables and code fences in the text are structure
    pages: tuple[int, ...] = ()  # where each page begins in the text; empty for formats without pages
    metadata: tuple[str, ...] = ()  # values of the columns that `corpus.metadata` names
    size: int = 0  # bytes of its source, for the time left

    @property
    def hash(self) -> str:
        """Changes when a passage of the document changes."""
        return hash_of([self.title, self.text, self.markdown, self.pages, self.metadata], 32)


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a source, or a part of it, was left out."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")  # the manifest of an index holds problems
    source: str
    what: str
    left_out: bool = True


@dataclass(frozen=True, slots=True)
class CorpusSource:
    """A file of the corpus, or a Hub data set (`path` None). `sha256` is empty for a data set."""

    id: str
    path: Path | None
    sha256: str = ""
    size: int = 0


@dataclass(slots=True)
class Listing:
    """The sources of a corpus in order, without repetition, and the problems so far."""

    sources: list[CorpusSource] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def list_sources(corpus: Corpus, base: Path) -> Listing:
    """Find the files of a corpus; relative paths resolve from `base`.

    Folders are searched with all their subfolders. Names that begin with a dot, runs and artifacts are skipped. Links
    that lead out of the folder, and files of unknown kinds, are problems.

    Raises:
        ConfigError: a named file does not exist, or a glob finds none.
    """
    listing, seen = Listing(), set()
    for name in corpus.sources:
        if is_hub(name):
            listing.sources.append(CorpusSource(name, None))
            continue
        for path, root in _expand(name, base):
            shown = Path(os.path.relpath(path, base)).as_posix()
            if shown in seen:
                continue
            seen.add(shown)
            try:
                listing.sources.append(_source(shown, path, root, corpus.max_megabytes))
            except UnreadableError as problem:
                listing.problems.append(Problem(shown, str(problem)))
    return listing


def refuse_measured_rows(corpus: Corpus, data: DataSource, base: Path) -> None:
    """Refuse a corpus that holds rows which are measured: their answers would be looked up.

    Raises:
        ConfigError: `rows-in-corpus`; or a named file does not exist, or a glob finds none.
    """
    rows = data.given()
    if {"validation", "test"} <= rows.keys():
        del rows["train"]  # nothing is cut from it
    if data.preferences is not None:
        preferred = data.preferences.files
        rows["preferences"] = [*preferred] if isinstance(preferred, list) else [preferred]
    files = {
        (name if is_hub(name) else (base / name).resolve()): f"{name}, the rows of `data.{key}`"
        for key, names in rows.items()
        for name in names
        if isinstance(name, str)
    }
    for name in corpus.sources:
        for path in [name] if is_hub(name) else [file.resolve() for file, _ in _expand(name, base)]:
            if path in files:
                raise ConfigError(
                    "rows-in-corpus", f"the documents hold {files[path]}: a search would find the expected answers",
                    hint="name the documents alone, such as `corpus: {files: documents/**/*.md}`",
                )  # fmt: skip


def read_documents(source: CorpusSource, corpus: Corpus, problems: list[Problem]) -> Iterator[SourceDocument]:
    """Yield the document of a file, or one for every row of a table, and add problems to the list."""
    try:
        if source.path is None or kind_of(source.path) in READERS:
            yield from _rows(source, corpus, problems)
            return
        contents = _READERS[source.path.suffix.lower()](source.path, corpus.encoding)
        if not contents.text.strip():
            raise UnreadableError(contents.problem or "holds no text")
        told = (contents.problem, _recognized(source.path, corpus))
        problems.extend(Problem(source.id, problem, left_out=False) for problem in told if problem)
        title = contents.title or source.path.stem.replace("_", " ").replace("-", " ").strip() or source.id
        text, markdown, pages = contents.text, contents.markdown, contents.pages
        lacking = ("",) * len(corpus.metadata)  # a file has no columns
        yield SourceDocument(source.id, source.id, title, text, markdown, pages, lacking, size=source.size)
    except (UnreadableError, DataError) as error:
        problems.append(Problem(source.id, str(error)))
    except FileNotFoundError:
        problems.append(Problem(source.id, "was deleted while the index was built"))
    except OSError as error:
        problems.append(Problem(source.id, f"cannot be read: {error.strerror or error}"))


def _recognized(path: Path, corpus: Corpus) -> str:
    """Say that a file was taken for cp1252, the only encoding that is not certain; empty for others."""
    text = path.suffix.lower() in TEXTS or kind_of(path) in TEXT_KINDS
    taken = text and corpus.encoding == AUTO and detect_encoding(path) == "cp1252"
    return "is not UTF-8 and was read as cp1252; if that is wrong, name `corpus.encoding`" if taken else ""


def _expand(name: str, base: Path) -> Iterator[tuple[Path, Path | None]]:
    """Yield files, each with the folder that its links must stay in; a file that is named itself may lie anywhere."""
    path = base / Path(name).expanduser()
    if path.is_dir():
        for file in _walk(path):
            yield file, path
    elif path.exists() or path.is_symlink():
        yield path, None
    elif glob.has_magic(name):
        fixed = next(parent for parent in path.parents if not glob.has_magic(str(parent)))
        found = [file for file in fixed.glob(str(path.relative_to(fixed))) if not file.is_dir()]
        inner = {parent for file in found for parent in file.parents if fixed in parent.parents}
        made = {parent for parent in inner if _is_made(parent)}
        files = sorted(file for file in found if made.isdisjoint(file.parents))
        if not files:
            raise ConfigError("no-such-file", f"{path} finds no file", hint="`**/*.md` searches all subfolders")
        yield from ((file, fixed) for file in files)
    else:
        raise ConfigError("no-such-file", f"{path} does not exist", hint="paths are relative to the task file")


def _is_made(folder: Path) -> bool:
    """Whether Rung wrote a folder, whose files hold expected answers: it has runs, is a run, or an artifact."""
    return any((folder / name).is_file() for name in ("decisions.jsonl", "climb.json", "artifact.json"))


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not _is_made(Path(parent) / name))
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        yield from (Path(parent) / name for name in sorted([*files, *links]) if not name.startswith("."))


def _source(shown: str, path: Path, root: Path | None, max_megabytes: int) -> CorpusSource:
    """Make a file a source, or refuse it as unreadable."""
    if not path.exists():
        raise UnreadableError("is a link to nothing")
    if path.is_dir():
        raise UnreadableError("is a link to a folder")
    if root is not None and path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
        raise UnreadableError("is a link out of the folder")
    if not path.is_file():
        raise UnreadableError("is not a regular file")
    kind = kind_of(path) if kind_of(path) in READERS else path.suffix.lower()
    if kind not in READERS and kind not in _READERS:
        raise UnreadableError(f"files of kind {kind or '(none)'} are not read")
    try:
        size = path.stat().st_size
        if size == 0:
            raise UnreadableError("is empty")
        if size > max_megabytes * 1_000_000 and kind not in STREAMED:
            raise UnreadableError(f"has {size / 1e6:,.0f} MB, more than `corpus.max_megabytes`: {max_megabytes}")
        return CorpusSource(shown, path, known_sha256(path), size)
    except OSError as problem:
        raise UnreadableError(f"cannot be read: {problem.strerror}") from problem


def _rows(source: CorpusSource, corpus: Corpus, problems: list[Problem]) -> Iterator[SourceDocument]:
    """Yield the rows of a table as documents, those of a workbook from all its sheets."""
    if source.path is not None and source.path.suffix.lower() in TEXT_KINDS:
        refuse_binary(source.path, corpus.encoding)
    first, *more = [None] if source.path is None else sheets_of(source.path)
    yield from _sheet_rows(source, first, source.id, corpus, problems)
    for sheet in more:
        try:
            yield from _sheet_rows(source, sheet, f"{source.id}:{sheet}", corpus, problems)
        except DataError as error:
            problems.append(Problem(source.id, f"sheet {sheet!r} is left out: {error}", left_out=False))


def _sheet_rows(
    source: CorpusSource, sheet: str | None, name: str, corpus: Corpus, problems: list[Problem]
) -> Iterator[SourceDocument]:
    """Yield the rows of a table as documents, named after it; rows before a broken one are kept."""
    seen: set[str] = set()
    unreadable: list[str] = []
    empty = 0
    try:
        form = FileFormat(corpus.encoding, corpus.separator, sheet=sheet)
        for record in read_rows(source.path or source.id, form):
            number = record.source.rpartition(":")[2]
            document = _row_document(source, f"{name}:{number}", record.values, corpus, unreadable)
            if document is None:
                empty += 1
                continue
            if document.id in seen:
                raise DataError(
                    "duplicate-name", f"row {number} has the {corpus.id_column} of an earlier row: {document.id}",
                    hint="every row needs its own value in `corpus.id_column`",
                )  # fmt: skip
            seen.add(document.id)
            yield document
    except DataError as error:
        if not seen:
            raise
        problems.append(Problem(source.id, f"{error}; the {len(seen)} rows before are kept", left_out=False))
    if source.path is not None and (problem := _recognized(source.path, corpus)):
        problems.append(Problem(source.id, problem, left_out=False))
    if unreadable:
        problem = f"{len(unreadable)} cells are left out; the first, {unreadable[0]}"
        problems.append(Problem(source.id, problem, left_out=False))
    if empty:
        problems.append(Problem(source.id, f"{empty} rows without text are left out", left_out=not seen))


def _row_document(
    source: CorpusSource, name: str, values: dict[str, Any], corpus: Corpus, unreadable: list[str]
) -> SourceDocument | None:  # fmt: skip
    """Make a row a document, None where it has no text; cells that hold no text are added to the list.

    Its name is that of the table and its number, which the column `corpus.id_column` replaces.
    """
    table, _, number = name.rpartition(":")
    for column in (corpus.text_column, corpus.title_column, corpus.id_column, *corpus.metadata):
        if column is not None and column not in values:
            raise DataError(
                "missing-column", f"row {number} has no column {column!r}; it has {', '.join(map(repr, values))}"
            )

    def value(column: str) -> str:
        try:
            return "" if values[column] is None else text_of(values[column])
        except CellError as error:
            unreadable.append(f"{column!r} of row {number}, {error}")
            return ""

    if corpus.text_column is not None:
        text = value(corpus.text_column)
    else:
        apart = {corpus.title_column, corpus.id_column, *corpus.metadata}
        shown = {column: value(column) for column in values if column not in apart}
        text = "\n".join(f"{column}: {cell}" for column, cell in shown.items() if cell)
    if not text.strip():
        return None
    name = f"{table}:{value(corpus.id_column)}" if corpus.id_column else name
    title = value(corpus.title_column) if corpus.title_column else ""
    metadata = tuple(value(column) for column in corpus.metadata)
    size = len(text.encode("utf-8", "replace"))
    return SourceDocument(name, source.id, title, text, metadata=metadata, size=size)
