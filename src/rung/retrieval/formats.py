"""Documents of one file: plain text, Markdown, HTML, PDF and Word, as text with the structure that chunking reads.

HTML and Word become Markdown: `#` headings, `- ` items and tables of `|`. Of a PDF only the text and where each page
begins are kept.
"""

from __future__ import annotations

import logging
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from rung.errors import MachineError, needed_by
from rung.retrieval.documents import UnreadableError, plain_text

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
class Contents:
    """What a file holds. `problem` says what of it could not be read; `title` is empty where the file has none."""

    text: str
    title: str = ""
    markdown: bool = False
    pages: tuple[int, ...] = ()
    problem: str = ""


Reader = Callable[[Path, str], Contents]


def reader_of(path: Path) -> Reader | None:
    """Return what reads a file of this kind into one document, or None."""
    return _READERS.get(path.suffix.lower())


def read_plain(path: Path, encoding: str) -> Contents:
    """Read plain text as it is."""
    return Contents(plain_text(path, encoding))


def read_markdown(path: Path, encoding: str) -> Contents:
    """Read Markdown as it is; its first line, where that is a heading of the first level, is the title."""
    text = plain_text(path, encoding)
    first = text.lstrip().partition("\n")[0]
    return Contents(text, first[2:].strip(" #\r") if first.startswith("# ") else "", markdown=True)


def read_html(path: Path, encoding: str) -> Contents:
    """Read HTML as Markdown; scripts, styles and what else a reader does not see are left out."""
    etree, html = _library("lxml.etree"), _library("lxml.html")
    declared = CHARSET.search(path.read_bytes()[:2048])
    named = declared[1].decode("ascii") if declared else encoding
    try:
        "".encode(named)
    except LookupError:
        raise UnreadableError(f"declares the unknown encoding {named!r}") from None
    text = plain_text(path, named)
    parser = html.HTMLParser(encoding="utf-8", no_network=True, huge_tree=True, remove_comments=True, remove_pis=True)
    try:
        root = html.document_fromstring(text.encode("utf-8", "replace"), parser=parser)
    except (etree.ParserError, etree.XMLSyntaxError) as problem:
        raise UnreadableError(f"is no HTML: {problem}") from None
    limit = next((entry.message for entry in parser.error_log if entry.type_name == "ERR_RESOURCE_LIMIT"), "")
    said = f"is read to where a limit is reached: {limit.partition(', use')[0]}" if limit else ""
    title = " ".join((root.findtext(".//title") or "").split())
    return Contents(_markdown(etree, root), title, markdown=True, problem=said)


def read_pdf(path: Path, encoding: str) -> Contents:
    """Read the text of a PDF page by page. `encoding` has no meaning: PDF text says its own."""
    del encoding
    pypdf = _library("pypdf")
    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it warns of every oddity that it gets over
    pages = []
    try:
        reader = pypdf.PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise UnreadableError("is encrypted: save it without a password")
        pages = [page.extract_text() for page in reader.pages]
    except (UnreadableError, OSError, MachineError):
        raise
    except pypdf.errors.DependencyError as problem:
        raise UnreadableError(f"is encrypted: {problem}") from None
    except Exception as problem:  # a broken PDF may fail anywhere in the library, with any error
        raise UnreadableError(f"is broken: {type(problem).__name__}: {problem}") from problem
    texts = [page.replace("\0", "").rstrip() + "\n\n" for page in pages]
    starts = tuple(accumulate((len(text) for text in texts[:-1]), initial=0)) if texts else ()
    bare = sum(not text.strip() for text in texts)
    said = f"{bare} of {len(texts)} pages hold no text (scanned pages have to go through OCR first)" if bare else ""
    return Contents("".join(texts), pages=starts, problem=said)


def read_docx(path: Path, encoding: str) -> Contents:
    """Read a Word file as Markdown. `encoding` has no meaning: its text is always UTF-8."""
    del encoding
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
    except Exception as problem:  # a broken file may fail anywhere in the library, with any error
        raise UnreadableError(f"is broken: {type(problem).__name__}: {problem}") from problem
    return Contents("\n\n".join(filter(None, blocks)), (document.core_properties.title or "").strip(), markdown=True)


def _docx_block(block: Any) -> str:
    """Return a paragraph or table of python-docx as Markdown."""
    if hasattr(block, "rows"):
        return _table([[cell.text for cell in row.cells] for row in block.rows])
    text: str = block.text.strip()
    style = block.style.name or "" if block.style is not None else ""
    if text and style == "Title":
        return f"# {text}"
    if text and (heading := re.fullmatch(r"Heading (\d)", style)):
        return f"{'#' * min(6, int(heading[1]))} {text}"
    return f"- {text}" if text and style.startswith("List") else text


def _table(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(" ".join(cell.split()).replace("|", "/") for cell in row) + " |" for row in rows if row]
    return "\n".join(lines)


def _markdown(etree: Any, root: Any) -> str:
    """Return an HTML tree as Markdown, without recursion: pages may nest without end."""
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
    text = re.sub(r"[ \t]*\n[ \t]*", "\n", "".join(out))
    text = re.sub(r"(?m)^\|.*$", lambda row: re.sub(r"[ \t]+", " ", row[0]), text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _opening(tag: str, in_table: bool) -> str:
    if in_table:  # a cell is one line, whatever stands in it
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
    """Import a library of the extra `rag`.

    Raises:
        MachineError: it is not installed.
    """
    from importlib import import_module

    with needed_by("a document of this kind", extra="rag"):
        return import_module(name)


_READERS: dict[str, Reader] = {
    ".txt": read_plain,
    ".text": read_plain,
    ".md": read_markdown,
    ".markdown": read_markdown,
    ".html": read_html,
    ".htm": read_html,
    ".xhtml": read_html,
    ".pdf": read_pdf,
    ".docx": read_docx,
}
