"""Find and read the documents of a corpus: text, Markdown, HTML, PDF and Word files, and the rows of tables.

HTML and Word become Markdown: `#` headings, `- ` items and tables of `|`, the structure that chunking reads. Of a PDF,
only the text and the beginning of each page are kept. A file that cannot be read is a problem in the listing; the
others are read all the same.
"""

from __future__ import annotations

import glob
import logging
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict

from rung.data.cells import text_of
from rung.data.rows import hash_of
from rung.data.sources import (
    AUTO,
    HUB,
    READERS,
    TEXT_KINDS,
    FileFormat,
    detect_encoding,
    kind_of,
    read_rows,
    read_text,
    wide,
)
from rung.data.spec import Corpus
from rung.errors import ConfigError, DataError, MachineError, needed_by
from rung.models.cache import known_sha256

STREAMED = set(READERS) - {".json", ".xlsx", ".xlsm"}  # read row by row, so that their size does not matter
BINARY_BYTES = 8192  # a NUL in the first bytes marks a binary file
OLE = b"\xd0\xcf\x11\xe0"  # old Office files, and encrypted new ones
MAX_UNPACKED = 500_000_000  # bytes of a Word file's parts together: a small file may unpack to anything
SKIPPED = {"head", "script", "style", "noscript", "template", "svg", "iframe", "object"}
BLOCKS = {
    "p", "div", "section", "article", "header", "footer", "main", "nav", "aside", "ul", "ol", "li", "dl", "dt", "dd",
    "pre", "blockquote", "figure", "figcaption", "form", "fieldset", "address", "hr", "table", "caption", "h1", "h2",
    "h3", "h4", "h5", "h6",
}  # fmt: skip
CHARSET = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?\s*([A-Za-z0-9._:-]+)", re.IGNORECASE)


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


class UnreadableError(Exception):
    """A file that cannot be read, and why; `read_documents` turns it into a problem."""


def list_sources(corpus: Corpus, base: Path) -> Listing:
    """Find the files of a corpus; relative paths resolve from `base`.

    Folders are searched with all their subfolders; names that begin with a dot are skipped. Links that lead out of the
    folder, and files of unknown kinds, are problems.

    Raises:
        ConfigError: a named file does not exist, or a glob finds none.
    """
    listing, seen = Listing(), set()
    for name in corpus.sources:
        if name.startswith(HUB):
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
        yield SourceDocument(source.id, source.id, title, text, markdown, pages, size=source.size)
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
        files = sorted(file for file in fixed.glob(str(path.relative_to(fixed))) if not file.is_dir())
        if not files:
            raise ConfigError("no-such-file", f"{path} finds no file", hint="`**/*.md` searches all subfolders")
        yield from ((file, fixed) for file in files)
    else:
        raise ConfigError("no-such-file", f"{path} does not exist", hint="paths are relative to the task file")


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
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
    """Yield the rows of a table as documents; rows before a broken one are kept."""
    if source.path is not None and source.path.suffix.lower() in TEXT_KINDS:
        refuse_binary(source.path)
    seen: set[str] = set()
    empty = 0
    try:
        for record in read_rows(source.path or source.id, FileFormat(corpus.encoding, corpus.separator)):
            number = record.source.rpartition(":")[2]
            document = _row_document(source, number, record.values, corpus)
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
    if empty:
        problems.append(Problem(source.id, f"{empty} rows without text are left out", left_out=not seen))


def _row_document(source: CorpusSource, number: str, values: dict[str, Any], corpus: Corpus) -> SourceDocument | None:
    for column in (corpus.text_column, corpus.title_column, corpus.id_column, *corpus.metadata):
        if column is not None and column not in values:
            raise DataError(
                "missing-column", f"row {number} has no column {column!r}; it has {', '.join(map(repr, values))}"
            )

    def value(column: str) -> str:
        return "" if values[column] is None else text_of(values[column])

    if corpus.text_column is not None:
        text = value(corpus.text_column)
    else:
        apart = {corpus.title_column, corpus.id_column, *corpus.metadata}
        text = "\n".join(f"{column}: {value(column)}" for column in values if column not in apart and value(column))
    if not text.strip():
        return None
    name = value(corpus.id_column) if corpus.id_column else number
    title = value(corpus.title_column) if corpus.title_column else ""
    metadata = tuple(value(column) for column in corpus.metadata)
    size = len(text.encode("utf-8", "replace"))
    return SourceDocument(f"{source.id}:{name}", source.id, title, text, metadata=metadata, size=size)


def refuse_binary(path: Path) -> None:
    """Refuse a file with a NUL in its first bytes that is not text in UTF-16 or UTF-32."""
    with path.open("rb") as file:
        head = file.read(BINARY_BYTES)
    if b"\0" in head and not wide(head):
        raise UnreadableError("is binary, not text")


def plain_text(path: Path, encoding: str) -> str:
    """Read a text file; a binary one is unreadable."""
    refuse_binary(path)
    return read_text(path, encoding)


# ---- formats


@dataclass(frozen=True, slots=True)
class Contents:
    """The text of a file. `title` is empty where the file has none; `problem` names the part that cannot be read."""

    text: str
    title: str = ""
    markdown: bool = False
    pages: tuple[int, ...] = ()
    problem: str = ""


def read_markdown(path: Path, encoding: str) -> Contents:
    """Read Markdown as it is; its first line, where that is a heading of the first level, is the title."""
    text = plain_text(path, encoding)
    first = text.lstrip().partition("\n")[0]
    return Contents(text, first[2:].strip(" #\r") if first.startswith("# ") else "", markdown=True)


def read_html(path: Path, encoding: str) -> Contents:
    """Read HTML as Markdown, without scripts, styles and other hidden parts."""
    etree, html = _library("lxml.etree"), _library("lxml.html")
    declared = CHARSET.search(path.read_bytes()[:2048])
    named = declared[1].decode("ascii") if declared else encoding
    try:
        "".encode("utf-8" if named == AUTO else named)
    except LookupError:
        raise UnreadableError(f"declares the unknown encoding {named!r}") from None
    text = plain_text(path, named)
    parser = html.HTMLParser(encoding="utf-8", no_network=True, huge_tree=True, remove_comments=True, remove_pis=True)
    try:
        root = html.document_fromstring(text.encode("utf-8", "replace"), parser=parser)
    except (etree.ParserError, etree.XMLSyntaxError) as problem:
        raise UnreadableError(f"is not HTML: {problem}") from None
    limit = next((entry.message for entry in parser.error_log if entry.type_name == "ERR_RESOURCE_LIMIT"), "")
    cut = f"is read only up to a limit: {limit.partition(', use')[0]}" if limit else ""
    title = " ".join((root.findtext(".//title") or "").split())
    return Contents(_markdown(etree, root), title, markdown=True, problem=cut)


def read_pdf(path: Path, _encoding: str) -> Contents:
    """Read the text of a PDF page by page; a PDF names its own encoding."""
    pypdf = _library("pypdf")
    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it warns of every oddity that it copes with
    try:
        reader = pypdf.PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise UnreadableError("is encrypted: save it without a password")
        pages = [page.extract_text() for page in reader.pages]
    except (UnreadableError, OSError, MachineError):
        raise
    except pypdf.errors.DependencyError as problem:
        raise UnreadableError(f"is encrypted: {problem}") from None
    except Exception as problem:  # the library raises any error on a broken PDF
        raise UnreadableError(f"is broken: {type(problem).__name__}: {problem}") from problem
    texts = [page.replace("\0", "").rstrip() + "\n\n" for page in pages]
    starts = tuple(accumulate((len(text) for text in texts[:-1]), initial=0)) if texts else ()
    bare = sum(not text.strip() for text in texts)
    scanned = f"{bare} of {len(texts)} pages hold no text (run OCR on scanned pages first)" if bare else ""
    return Contents("".join(texts), pages=starts, problem=scanned)


def read_docx(path: Path, _encoding: str) -> Contents:
    """Read a Word file as Markdown; its text is always UTF-8."""
    docx = _library("docx")
    with path.open("rb") as file:
        if file.read(4) == OLE:
            raise UnreadableError("is encrypted, or an old .doc: save it as .docx without a password")
    try:
        with zipfile.ZipFile(path) as parts:
            unpacked = sum(part.file_size for part in parts.infolist())
        if unpacked > MAX_UNPACKED:
            raise UnreadableError(f"unpacks to {unpacked / 1e6:,.0f} MB")
        document = docx.Document(str(path))
        blocks = [_docx_block(block) for block in document.iter_inner_content()]
    except (UnreadableError, OSError):
        raise
    except Exception as problem:  # the library raises any error on a broken file
        raise UnreadableError(f"is broken: {type(problem).__name__}: {problem}") from problem
    return Contents("\n\n".join(filter(None, blocks)), (document.core_properties.title or "").strip(), markdown=True)


def _docx_block(block: Any) -> str:
    """Write a paragraph or table of python-docx as Markdown."""
    if hasattr(block, "rows"):
        cells = ([" ".join(cell.text.split()).replace("|", "/") for cell in row.cells] for row in block.rows)
        return "\n".join("| " + " | ".join(row) + " |" for row in cells if row)
    text: str = block.text.strip()
    style = block.style.name or "" if block.style is not None else ""
    if text and style == "Title":
        return f"# {text}"
    if text and (heading := re.fullmatch(r"Heading (\d)", style)):
        return f"{'#' * min(6, int(heading[1]))} {text}"
    return f"- {text}" if text and style.startswith("List") else text


def _markdown(etree: Any, root: Any) -> str:
    """Write an HTML tree as Markdown, without recursion: pages may nest very deeply."""
    out: list[str] = []
    skip = table = preformatted = 0

    def write(text: str | None) -> None:
        if text and not skip:
            spaced = text if preformatted else re.sub(r"\s+", " ", text)
            out.append(spaced.replace("|", "/") if table else spaced)

    for event, element in etree.iterwalk(root, events=("start", "end")):
        tag = element.tag
        if event == "start":
            skip += tag in SKIPPED
            if not skip:
                out.append(_opening(tag, bool(table)))
            table += tag == "table"
            preformatted += tag == "pre"
            write(element.text)
        else:
            table -= tag == "table"
            preformatted -= tag == "pre"
            if not skip:
                out.append(_closing(tag, bool(table)))
            skip -= tag in SKIPPED
            write(element.tail)
    text = "\n".join(line.strip(" \t") for line in "".join(out).split("\n"))
    text = re.sub(r"(?m)^\|.*$", lambda row: re.sub(r"[ \t]+", " ", row[0]), text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _opening(tag: str, in_table: bool) -> str:
    if in_table:  # a cell is one line
        return {"tr": "\n|", "td": " ", "th": " "}.get(tag, " " if tag in BLOCKS or tag == "br" else "")
    if tag in ("h1", "h2", "h3", "h4", "h5", "h6"):
        return f"\n\n{'#' * int(tag[1])} "
    if tag == "li":
        return "\n- "
    return "\n" if tag == "br" else "\n\n" if tag in BLOCKS else ""


def _closing(tag: str, in_table: bool) -> str:
    if in_table:
        return " |" if tag in ("td", "th") else ""
    return "\n" if tag == "li" else "\n\n" if tag in BLOCKS else ""


def _library(name: str) -> Any:
    """Import a library of the extra `rag`."""
    with needed_by("a document of this kind", extra="rag"):
        return import_module(name)


TEXTS = (".txt", ".text", ".md", ".markdown")
_READERS: dict[str, Callable[[Path, str], Contents]] = {
    **dict.fromkeys((".txt", ".text"), lambda path, encoding: Contents(plain_text(path, encoding))),
    **dict.fromkeys((".md", ".markdown"), read_markdown),
    **dict.fromkeys((".html", ".htm", ".xhtml"), read_html),
    ".pdf": read_pdf,
    ".docx": read_docx,
}
