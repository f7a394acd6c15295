"""Read the text of a document: plain text, Markdown, HTML, PDF and mail; `packages.py` reads Office files and EPUB.

HTML becomes Markdown: `#` headings, `- ` items, tables of `|` and fenced code, the structure that chunking reads. Of a
PDF, only the text and the beginning of each page are kept. What a reader of the file does not see is left out.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from email import message_from_bytes, policy
from importlib import import_module
from itertools import accumulate
from pathlib import Path
from typing import Any

from rung.data.sources import AUTO, read_text, wide
from rung.errors import MachineError, needed_by

BINARY_BYTES = 8192  # a NUL in the first bytes marks a binary file
SKIPPED = {
    "title", "script", "style", "noscript", "template", "svg", "iframe", "object", "nav", "datalist",
}  # fmt: skip
HIDDEN = re.compile(r"(?:^|;)\s*(?:display\s*:\s*none|visibility\s*:\s*(?:hidden|collapse))\b", re.IGNORECASE)
BLOCKS = {
    "p", "div", "section", "article", "header", "footer", "main", "nav", "aside", "ul", "ol", "li", "dl", "dt", "dd",
    "pre", "blockquote", "figure", "figcaption", "form", "fieldset", "address", "hr", "table", "caption", "h1", "h2",
    "h3", "h4", "h5", "h6", "summary", "details", "legend", "body", "dialog",
}  # fmt: skip
APART = {"option", "optgroup", "select", "textarea", "button", "label", "td", "th"}  # on a line, with spaces around
CHARSET = re.compile(rb"<meta[^>]{0,200}charset\s*+=\s*+[\"']?+\s*+([A-Za-z0-9._:-]+)", re.IGNORECASE)
LIGATURES = {0xFB00: "ff", 0xFB01: "fi", 0xFB02: "fl", 0xFB03: "ffi", 0xFB04: "ffl", 0xFB05: "st", 0xFB06: "st"}
INVISIBLE = {0xAD: None, 0x2060: None, 0xFEFF: None}  # soft hyphens and marks that join
HYPHENATED = re.compile(r"(?<![^\W\d_])([^\W\d_]{2,}+)(?:[-\xad]| ?\u2010)[ \t]*\n[ \t]*([^\W\d_]+)")
# Metadata before a Markdown text, between two lines of `---`, as static sites have it.
FRONT_MATTER = re.compile(r"---[ \t]*\r?\n((?:(?>\w[\w .-]*:(?=\s).*|[ \t]+.*|- .*|#.*)?\r?\n)*?)---[ \t]*(?:\r?\n|$)")
MARKDOWN_TITLE = re.compile(r"\s*(?:#[ \t]++([^\n]+)|([^\s#>|`~-][^\n]*)\n=++[ \t]*$)", re.MULTILINE)


class UnreadableError(Exception):
    """A file that cannot be read, and why."""


@dataclass(frozen=True, slots=True)
class Contents:
    """The text of a file. `title` is empty where the file has none; `problem` names the part that cannot be read."""

    text: str
    title: str = ""
    markdown: bool = False
    pages: tuple[int, ...] = ()
    problem: str = ""


def refuse_binary(path: Path, encoding: str) -> None:
    """Refuse a file with a NUL in its first bytes, unless it is text in UTF-16 or UTF-32."""
    with path.open("rb") as file:
        head = file.read(BINARY_BYTES)
    wide_named = encoding.lower().replace("_", "-").startswith(("utf-16", "utf-32", "utf16", "utf32"))
    if b"\0" in head and not wide_named and not wide(head):
        raise UnreadableError("is binary, not text")


def plain_text(path: Path, encoding: str) -> str:
    """Read a text file; a binary one is unreadable."""
    refuse_binary(path, encoding)
    return read_text(path, encoding)


def paged(texts: list[str]) -> tuple[str, tuple[int, ...]]:
    """Join the texts of pages; return where each begins, too."""
    texts = [text.rstrip() + "\n\n" for text in texts]
    return "".join(texts), tuple(accumulate((len(text) for text in texts[:-1]), initial=0)) if texts else ()


def read_markdown(path: Path, encoding: str) -> Contents:
    """Read Markdown as it is; its title is that of the front matter, else a heading of the first level at its top."""
    text = plain_text(path, encoding)
    front = FRONT_MATTER.match(text)
    named = re.search(r"^title:[ \t]++(.+)$", front[1], re.MULTILINE) if front else None
    if named and (title := named[1].strip("\"' \r")):
        return Contents(text, title, markdown=True)
    heading = MARKDOWN_TITLE.match(text, front.end() if front else 0)
    return Contents(text, (heading[1] or heading[2]).strip(" #\r") if heading else "", markdown=True)


# ---- HTML


def read_html(path: Path, encoding: str) -> Contents:
    """Read HTML as Markdown."""
    declared = CHARSET.search(path.read_bytes()[:2048])
    named = declared[1].decode("ascii") if declared else encoding
    try:
        "".encode("utf-8" if named == AUTO else named)
    except LookupError:
        raise UnreadableError(f"declares the unknown encoding {named!r}") from None
    return html_contents(plain_text(path, named))


def html_contents(text: str) -> Contents:
    """Write the text of an HTML page as Markdown, without navigation, scripts and hidden parts."""
    etree, html = library("lxml.etree"), library("lxml.html")
    parser = html.HTMLParser(encoding="utf-8", no_network=True, huge_tree=True, remove_comments=True, remove_pis=True)
    try:
        root = html.document_fromstring(text.encode("utf-8", "replace"), parser=parser)
    except (etree.ParserError, etree.XMLSyntaxError) as problem:
        raise UnreadableError(f"is not HTML: {problem}") from None
    limit = next((entry.message for entry in parser.error_log if entry.type_name == "ERR_RESOURCE_LIMIT"), "")
    cut = f"is read only up to a limit: {limit.partition(', use')[0]}" if limit else ""
    title = " ".join((root.findtext(".//title") or "").split())
    return Contents(_markdown(etree, root).translate(INVISIBLE), title, markdown=True, problem=cut)


def _markdown(etree: Any, root: Any) -> str:
    """Write an HTML tree as Markdown, without recursion: pages may nest very deeply."""
    out: list[str] = []
    code: list[str] = []  # blocks of code, kept as they are; each has its place in `out` as a NUL with its number
    skip = table = preformatted = 0

    def write(text: str | None) -> None:
        if not text or skip:
            return
        if preformatted and not table:
            code[-1] += text.replace("\0", "")
        else:
            spaced = re.sub(r"[\s\0]+", " ", text)
            out.append(spaced.replace("|", "/") if table else spaced)

    for event, element in etree.iterwalk(root, events=("start", "end")):
        tag = element.tag
        if event == "start":
            skip += _left_out(element)
            if not skip:
                if preformatted and tag == "br" and not table:
                    code[-1] += "\n"
                elif not preformatted or table:
                    out.append(_opening(tag, bool(table)))
                if tag == "pre" and not preformatted and not table:
                    out.append(f"\0{len(code)}\0")
                    code.append("")
            table += tag == "table"
            preformatted += tag == "pre"
            write(element.text)
        else:
            table -= tag == "table"
            preformatted -= tag == "pre"
            if not skip and (not preformatted or table):
                out.append(_closing(tag, bool(table)))
            skip -= _left_out(element)
            write(element.tail)
    lines = ("\v".join(part.strip(" \t") for part in line.split("\v")) for line in "".join(out).split("\n"))
    text = re.sub(r"[ \t]{2,}", " ", "\n".join(lines))
    text = re.sub(r"\v?\n\v?", "\n", re.sub(r"\v{2,}", "\n\n", text))
    text = re.sub(r"\n{3,}", "\n\n", text).strip().replace("\v", "  \n")  # two spaces: a line break of Markdown
    return re.sub(r"\0(\d+)\0", lambda place: _fenced(code[int(place[1])]), text)


def _fenced(code: str) -> str:
    fence = "~~~" if "```" in code else "```"
    code = code.strip("\n").rstrip()
    return f"{fence}\n{code}\n{fence}" if code.strip() else ""


def _left_out(element: Any) -> bool:
    """Whether a browser does not show an element, or it is navigation."""
    if element.tag in SKIPPED:
        return True
    attributes = element.attrib
    return bool(
        ("hidden" in attributes and attributes["hidden"] != "until-found")
        or HIDDEN.search(attributes.get("style", ""))
        or attributes.get("role") == "navigation"
        or (element.tag == "dialog" and "open" not in attributes)
    )  # fmt: skip


def _opening(tag: str, in_table: bool) -> str:
    if in_table:  # a cell is one line
        spaced = tag in BLOCKS or tag in APART or tag == "br"
        return {"tr": "\n|", "td": " ", "th": " "}.get(tag, " " if spaced else "")
    if tag in ("h1", "h2", "h3", "h4", "h5", "h6"):
        return f"\n\n{'#' * int(tag[1])} "
    if tag == "li":
        return "\n- "
    return "\v" if tag == "br" else "\n\n" if tag in BLOCKS else " " if tag in APART else ""


def _closing(tag: str, in_table: bool) -> str:
    if in_table:
        return " |" if tag in ("td", "th") else " " if tag in APART or tag in BLOCKS else ""
    return "\n" if tag == "li" else "\n\n" if tag in BLOCKS else " " if tag in APART else ""


# ---- PDF


def read_pdf(path: Path, _encoding: str) -> Contents:
    """Read the text of a PDF page by page, with the values of its forms; a PDF names its own encoding."""
    pypdf = library("pypdf")
    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it warns of every oddity that it copes with
    try:
        reader = pypdf.PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise UnreadableError("is encrypted: save it without a password")
        pages = ["\n".join(filter(None, [page.extract_text().rstrip(), *_filled(page)])) for page in reader.pages]
    except (UnreadableError, OSError, MachineError):
        raise
    except pypdf.errors.DependencyError as problem:
        raise UnreadableError(f"is encrypted: {problem}") from None
    except Exception as problem:  # the library raises any error on a broken PDF
        raise UnreadableError(f"is broken: {type(problem).__name__}: {problem}") from problem
    texts = rejoined([page.replace("\0", "").translate(LIGATURES) for page in pages])
    bare = sum(not text.strip() for text in texts)
    scanned = f"{bare} of {len(texts)} pages hold no text (run OCR on scanned pages first)" if bare else ""
    text, starts = paged(texts)
    return Contents(text, pages=starts, problem=scanned)


def _filled(page: Any) -> Iterator[str]:
    """Yield the values of form fields and the notes that are written on a page."""
    for reference in page.get("/Annots") or ():
        note = reference.get_object()
        if int(note.get("/F", 0)) & 2:  # hidden
            continue
        if note.get("/Subtype") == "/FreeText" and note.get("/Contents"):
            yield str(note["/Contents"])
        if note.get("/Subtype") != "/Widget":
            continue
        names: list[str] = []
        value, kind, field = None, None, note
        while field is not None:
            value = field.get("/V") if value is None else value
            kind = field.get("/FT") if kind is None else kind
            if "/T" in field:
                names.insert(0, str(field.get("/TU") or field["/T"]))
            field = field["/Parent"].get_object() if "/Parent" in field else None
        state = note.get("/AS")
        if kind == "/Btn" and state is not None:  # a box or one of several buttons: the one that is chosen
            value = None if state == "/Off" else state
        if value is not None and value != "" and kind != "/Sig":
            values = value if isinstance(value, list) else [value]
            yield f"{names[-1] if names else 'field'}: {', '.join(str(each).lstrip('/') for each in values)}"


def rejoined(texts: list[str]) -> list[str]:
    """Join words that a line end divides, and drop soft hyphens.

    The hyphen of a compound stays: where the document has the word with a hyphen inside a line, and not without one.
    """
    whole = "\n".join(texts)
    words = set(re.findall(r"[^\W\d_]+(?:-[^\W\d_]+)*", whole.casefold()))

    def word(halves: re.Match[str]) -> str:
        if halves[2][0].isupper():  # `Baden-Württemberg`
            return f"{halves[1]}-{halves[2]}"
        first, second = halves[1].casefold(), halves[2].casefold()
        compound = f"{first}-{second}" in words and f"{first}{second}" not in words
        return f"{halves[1]}{'-' if compound else ''}{halves[2]}"

    return [HYPHENATED.sub(word, text).translate(INVISIBLE) for text in texts]


# ---- mail


def read_mail(path: Path, _encoding: str) -> Contents:
    """Read a mail: subject, people and date, then its text; attachments are not read."""
    mail: Any = message_from_bytes(path.read_bytes(), policy=policy.default)
    if not any(name in mail for name in ("from", "subject", "date", "to")):
        raise UnreadableError("is not a mail")
    heads = [f"{name}: {mail[name]}" for name in ("Subject", "From", "To", "Cc", "Date") if mail[name]]
    body = mail.get_body(("plain", "html"))
    text = Contents("")
    if body is not None:
        content = body.get_content()
        text = html_contents(content) if body.get_content_subtype() == "html" else Contents(content)
    attached = sum(1 for _ in mail.iter_attachments())
    problem = f"{attached} attachments are not read" if attached else text.problem
    joined = "\n\n".join(filter(None, ["\n".join(heads), text.text.strip()]))
    return replace(text, text=joined, title=str(mail["subject"] or ""), problem=problem)


def library(name: str) -> Any:
    """Import a library of the extra `rag`."""
    with needed_by("a document of this kind", extra="rag"):
        return import_module(name)
