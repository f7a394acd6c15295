"""Find and read the documents of a corpus; what cannot be read is told file by file and does not lose the rest."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rung.data.examples import text_of
from rung.data.rows import hash_of
from rung.data.sources import HUB, READERS, read_rows, read_text
from rung.errors import ConfigError, DataError
from rung.models.cache import known_sha256
from rung.retrieval.corpus import Corpus

STREAMED = set(READERS) - {".json"}  # read row by row, so that their size does not matter
BINARY_LOOK = 8192  # bytes in which a NUL tells that a file is no text


@dataclass(frozen=True, slots=True)
class SourceDocument:
    """A document as text.

    Attributes:
        id: the file relative to the task's folder; for a row of a table `file:line` or `file:id`.
        source: the file, or the Hub data set.
        title: of the document; never empty.
        text: what spans of passages point into.
        markdown: whether `#` headings, `|` tables and code fences in the text are structure.
        pages: where each page begins in the text; empty for formats without pages.
        metadata: values of the columns that `corpus.metadata` names.
        size: bytes of the source that it stands for, to foresee the time left.
    """

    id: str
    source: str
    title: str
    text: str
    markdown: bool = False
    pages: tuple[int, ...] = ()
    metadata: tuple[str, ...] = ()
    size: int = 0

    @property
    def hash(self) -> str:
        """Changes when a passage of it would."""
        return hash_of([self.title, self.text, self.markdown, self.pages, self.metadata], 32)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something about a source that the user should know: why it was left out, or what of it was."""

    source: str
    what: str
    left_out: bool = True


@dataclass(frozen=True, slots=True)
class Source:
    """A file of the corpus, or a Hub data set (`path` None). `sha256` is empty for a data set."""

    id: str
    path: Path | None
    sha256: str = ""
    size: int = 0


@dataclass(slots=True)
class Listing:
    """The sources of a corpus in order, each once, and the problems met so far."""

    sources: list[Source] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


class UnreadableError(Exception):
    """A file that cannot be read; the text says why. Caught by `read_documents`, which counts it."""


def list_sources(corpus: Corpus, base: Path) -> Listing:
    """Find the files of a corpus.

    Folders are read with all folders below; names that begin with a dot are not looked at. Links that lead out of the
    folder, and files of kinds that are not read, are problems.

    Args:
        corpus: which files.
        base: the folder from which relative paths resolve.

    Raises:
        ConfigError: a named file does not exist, or a glob finds none.
    """
    listing, seen = Listing(), set()
    for name in corpus.sources:
        if name.startswith(HUB):
            listing.sources.append(Source(name, None))
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


def read_documents(source: Source, corpus: Corpus, problems: list[Problem]) -> Iterator[SourceDocument]:
    """Yield the documents of a source: one of a file, one of every row of a table. Problems are added to the list."""
    from rung.retrieval.formats import reader_of

    try:
        if source.path is None or source.path.suffix.lower() in READERS:
            yield from _rows(source, corpus, problems)
            return
        read = reader_of(source.path)
        assert read is not None  # list_sources left out the others
        contents = read(source.path, corpus.encoding)
        if not contents.text.strip():
            raise UnreadableError(contents.problem or "holds no text")
        if contents.problem:
            problems.append(Problem(source.id, contents.problem, left_out=False))
        title = contents.title or source.path.stem.replace("_", " ").replace("-", " ").strip() or source.id
        yield SourceDocument(
            source.id, source.id, title, contents.text, contents.markdown, contents.pages, size=source.size
        )
    except UnreadableError as problem:
        problems.append(Problem(source.id, str(problem)))
    except DataError as problem:
        problems.append(Problem(source.id, str(problem)))
    except FileNotFoundError:
        problems.append(Problem(source.id, "was deleted while the index was built"))
    except OSError as problem:
        problems.append(Problem(source.id, f"cannot be read: {problem.strerror or problem}"))


def _expand(name: str, base: Path) -> Iterator[tuple[Path, Path | None]]:
    """Yield files with the folder that they must not lead out of; a file that was named itself may lie anywhere."""
    path = base / Path(name).expanduser()
    if path.is_dir():
        for file in _walk(path):
            yield file, path
    elif path.exists() or path.is_symlink():
        yield path, None
    elif glob.has_magic(name):
        fixed = next(parent for parent in path.parents if not glob.has_magic(str(parent)))
        found = sorted(file for file in fixed.glob(str(path.relative_to(fixed))) if not file.is_dir())
        if not found:
            raise ConfigError("no-such-file", f"{path} finds no file", hint="`**/*.md` looks in all folders below")
        yield from ((file, fixed) for file in found)
    else:
        raise ConfigError("no-such-file", f"{path} does not exist", hint="paths are relative to the task file")


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        yield from (Path(parent) / name for name in sorted([*files, *links]) if not name.startswith("."))


def _source(shown: str, path: Path, root: Path | None, max_megabytes: int) -> Source:
    """Return a file as a source.

    Raises:
        UnreadableError: it should not or cannot be read.
    """
    from rung.retrieval.formats import reader_of

    if not path.exists():
        raise UnreadableError("is a link to nothing")
    if path.is_dir():
        raise UnreadableError("is a link to a folder")
    if root is not None and path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
        raise UnreadableError("is a link out of the folder")
    if not path.is_file():
        raise UnreadableError("is no ordinary file")
    kind = path.suffix.lower()
    if kind not in READERS and reader_of(path) is None:
        raise UnreadableError(f"files of kind {kind or '(none)'} are not read")
    try:
        size = path.stat().st_size
        if size == 0:
            raise UnreadableError("is empty")
        if size > max_megabytes * 1_000_000 and kind not in STREAMED:
            raise UnreadableError(f"has {size / 1e6:,.0f} MB, more than `corpus.max_megabytes`: {max_megabytes}")
        return Source(shown, path, known_sha256(path), size)
    except OSError as problem:
        raise UnreadableError(f"cannot be read: {problem.strerror}") from problem


def _rows(source: Source, corpus: Corpus, problems: list[Problem]) -> Iterator[SourceDocument]:
    """Yield the rows of a table as documents; rows before a broken one are kept."""
    if source.path is not None:
        refuse_binary(source.path)
    seen: set[str] = set()
    empty = 0
    try:
        for record in read_rows(source.path or source.id, encoding=corpus.encoding):
            number = record.source.rpartition(":")[2]
            document = _row(source, number, record.values, corpus)
            if document is None:
                empty += 1
                continue
            if document.id in seen:
                raise DataError(
                    "duplicate-row-id", f"row {number} has the {corpus.id_column} of an earlier row: {document.id}",
                    hint="`corpus.id_column` has to name rows apart",
                )  # fmt: skip
            seen.add(document.id)
            yield document
    except DataError as problem:
        if not seen:
            raise
        problems.append(Problem(source.id, f"{problem}; the {len(seen)} rows before are kept", left_out=False))
    if empty:
        problems.append(Problem(source.id, f"{empty} rows without text are left out", left_out=not seen))


def _row(source: Source, number: str, values: dict[str, Any], corpus: Corpus) -> SourceDocument | None:
    named = [corpus.text_column, corpus.title_column, corpus.id_column, *corpus.metadata]
    for column in named:
        if column is not None and column not in values:
            raise DataError(
                "missing-column", f"row {number} has no column {column!r}; it has {', '.join(map(repr, values))}"
            )

    def value(column: str) -> str:
        return "" if values[column] is None else text_of(values[column])

    apart = {corpus.title_column, corpus.id_column, *corpus.metadata}
    if corpus.text_column is not None:
        text = value(corpus.text_column)
    else:
        text = "\n".join(f"{column}: {value(column)}" for column in values if column not in apart and value(column))
    if not text.strip():
        return None
    name = value(corpus.id_column) if corpus.id_column else number
    title = value(corpus.title_column) if corpus.title_column else ""
    metadata = tuple(value(column) for column in corpus.metadata)
    return SourceDocument(
        f"{source.id}:{name}", source.id, title, text, metadata=metadata, size=len(text.encode("utf-8", "replace"))
    )


def refuse_binary(path: Path) -> None:
    """Refuse a file that is no text.

    Raises:
        UnreadableError: a NUL stands in its beginning.
    """
    if path.suffix.lower() == ".parquet":
        return
    with path.open("rb") as file:
        if b"\0" in file.read(BINARY_LOOK):
            raise UnreadableError("is binary, not text")


def plain_text(path: Path, encoding: str) -> str:
    """Return the text of a text file.

    Raises:
        UnreadableError: it is binary.
        DataError: it is not in the encoding, or empty.
    """
    refuse_binary(path)
    return read_text(path, encoding)


def check_read(problems: Sequence[Problem], passages: int, corpus: Corpus) -> None:
    """Refuse a corpus of which nothing could be read.

    Raises:
        DataError: there is no passage; the first problems are the hint.
    """
    if passages:
        return
    first = "\n".join(f"{one.source}: {one.what}" for one in problems[:5])
    raise DataError("empty-corpus", f"no text was found in {', '.join(corpus.sources)}", hint=first)
