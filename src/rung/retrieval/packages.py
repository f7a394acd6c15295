"""Read zipped documents of XML: Word, PowerPoint and EPUB, written as Markdown.

The reader keeps what a person sees: content controls, insertions, notes, headers and footers, text boxes and tables in
tables. Deleted and hidden text is left out.
"""

from __future__ import annotations

import posixpath
import re
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from rung.retrieval.formats import INVISIBLE, Contents, UnreadableError, html_contents, library, paged

OLE = b"\xd0\xcf\x11\xe0"  # old Office files, and encrypted new ones
MAX_UNPACKED = 500_000_000  # bytes of a file's parts together: a small file may unpack to anything
# Parts of a Word text without text of their own; their content is read as if they were not there.
TRANSPARENT = {
    "sdt", "sdtContent", "ins", "moveTo", "customXml", "smartTag", "hyperlink", "fldSimple", "dir", "bdo", "Choice",
    "AlternateContent", "oMathPara", "body", "hdr", "ftr", "footnote", "endnote", "txbxContent",
}  # fmt: skip
LEFT_OUT = {"del", "moveFrom", "delText", "instrText", "rPr", "pPr", "sdtPr", "sdtEndPr", "Fallback", "rt"}
PAGE_NUMBER = re.compile(r"\W*(?:\w+\W+)?\d+(?:\W+(?:\w+\W+)?\d+)?\W*")  # `3`, `Page 3`, `- 3 of 10 -`
UNREAD = {"chart", "chartEx", "diagramData", "aFChunk", "oleObject", "package"}
SEPARATORS = {"separator", "continuationSeparator", "continuationNotice"}


@dataclass(slots=True)
class Package:
    """The parts of a zipped document."""

    zipped: zipfile.ZipFile
    parser: Any

    def xml(self, name: str) -> Any:
        """Parse a part; None if there is none. Entities are never resolved."""
        try:
            data = self.zipped.read(name)
        except KeyError:
            return None
        return library("lxml.etree").fromstring(data, self.parser)

    def related(self, name: str) -> dict[str, tuple[str, str]]:
        """List the parts that a part refers to, by the id of the reference: the last word of the kind, and the name."""
        folder, base = posixpath.split(name)
        found = self.xml(f"{folder}/_rels/{base}.rels".lstrip("/"))
        return {
            each.get("Id"): (
                each.get("Type").rpartition("/")[2],
                posixpath.normpath(posixpath.join("/", folder, each.get("Target"))).lstrip("/"),
            )
            for each in (() if found is None else found)
            if each.get("TargetMode") != "External"
        }

    def main(self) -> str:
        """The name of the part that the document begins with."""
        return next(name for kind, name in self.related("").values() if kind == "officeDocument")

    def title(self) -> str:
        """The title among the document's properties."""
        core = next((name for kind, name in self.related("").values() if kind == "core-properties"), "")
        return "" if (found := self.xml(core)) is None else (_first(found, "title") or "").strip()


@contextmanager
def opened(path: Path, old: str) -> Iterator[Package]:
    """Open a package; whatever is wrong with it is an UnreadableError."""
    etree = library("lxml.etree")
    with path.open("rb") as file:
        if file.read(4) == OLE:
            raise UnreadableError(f"is encrypted, or an old {old}: save it as {path.suffix} without a password")
    try:
        with zipfile.ZipFile(path) as zipped:
            unpacked = sum(part.file_size for part in zipped.infolist())
            if unpacked > MAX_UNPACKED:
                raise UnreadableError(f"unpacks to {unpacked / 1e6:,.0f} MB")
            yield Package(zipped, etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=True))
    except (UnreadableError, OSError):
        raise
    except Exception as problem:  # a broken file may be broken in any way
        raise UnreadableError(f"is broken: {type(problem).__name__}: {problem}") from problem


def _name(element: Any) -> str:
    """The tag without its namespace; empty for comments."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _value(element: Any, name: str) -> str | None:
    """An attribute of any namespace."""
    return next((value for key, value in element.attrib.items() if key.rpartition("}")[2] == name), None)


def _all(element: Any, *names: str) -> Iterator[Any]:
    return (each for each in element.iter() if _name(each) in names)


def _first(element: Any, name: str) -> str | None:
    return next((each.text for each in _all(element, name)), None)


def _property(element: Any, holder: str, name: str) -> Any:
    """A setting of an element, as `<w:pPr><w:pStyle/></w:pPr>`; None if there is none."""
    settings = next((each for each in element if _name(each) == holder), None)
    return None if settings is None else next((each for each in settings if _name(each) == name), None)


def _shown(element: Any, wanted: set[str]) -> Iterator[Any]:
    """The nearest elements below with one of the names, in what is transparent and not left out."""
    for child in element:
        name = _name(child)
        if name in wanted:
            yield child
        elif name in TRANSPARENT:
            yield from _shown(child, wanted)


# ---- Word


@dataclass(slots=True)
class WordText:
    """Writes the blocks of a Word document as Markdown.

    Attributes:
        styles: the names of styles by their ids, in small letters.
        notes: the texts of footnotes and endnotes, by the kind and the id.
    """

    styles: dict[str, str]
    notes: dict[tuple[str, str], str] = field(default_factory=dict)

    def blocks(self, holder: Any) -> Iterator[str]:
        """Write paragraphs and tables; text boxes and notes follow the paragraph that they belong to."""
        for block in _shown(holder, {"p", "tbl"}):
            if _name(block) == "tbl":
                yield from self._table(block)
                continue
            beside: list[str] = []
            text = self._line(block, beside).strip()
            if text:
                yield self._styled(block, text)
            yield from beside

    def _styled(self, paragraph: Any, text: str) -> str:
        style = _property(paragraph, "pPr", "pStyle")
        name = "" if style is None else self.styles.get(_value(style, "val") or "", "")
        flat = text.replace("  \n", " ")
        if name == "title":
            return f"# {flat}"
        if heading := re.fullmatch(r"heading (\d)", name):
            return f"{'#' * min(6, int(heading[1]))} {flat}"
        listed = name.startswith("list") or _property(paragraph, "pPr", "numPr") is not None
        return f"- {text}" if listed else text

    def _line(self, element: Any, beside: list[str]) -> str:
        """Write what a paragraph shows; what stands beside it goes to the list."""
        parts = []
        for child in element:
            name = _name(child)
            if name in LEFT_OUT or (name == "r" and _hidden(child)):
                continue
            if name == "t":
                parts.append(child.text or "")
            elif name == "txbxContent":
                beside.extend(self.blocks(child))
            elif name in ("footnoteReference", "endnoteReference"):
                beside.append(self.notes.get((name.removesuffix("Reference"), _value(child, "id") or ""), ""))
            elif name in ("br", "cr"):
                parts.append("  \n" if _value(child, "type") in (None, "textWrapping") else " ")
            elif name in ("tab", "ptab"):
                parts.append("\t")
            elif name == "noBreakHyphen":
                parts.append("-")
            elif name == "sym":
                parts.append(" ")
            else:
                parts.append(self._line(child, beside))
        return "".join(parts)

    def _table(self, table: Any) -> Iterator[str]:
        rows = []
        for row in _shown(table, {"tr"}):
            if _property(row, "trPr", "del") is not None:
                continue
            cells = []
            for cell in _shown(row, {"tc"}):
                merged = _property(cell, "tcPr", "vMerge")
                goes_on = merged is not None and _value(merged, "val") != "restart"
                cells.append("" if goes_on else self._cell(cell))
            rows.append("| " + " | ".join(cells) + " |")
        if any(row.strip("| ") for row in rows):
            yield "\n".join(rows)

    def _cell(self, cell: Any) -> str:
        """Write all of a cell on one line, tables in it too."""
        text = " ".join(block.removeprefix("- ").lstrip("#") for block in self.blocks(cell))
        return " ".join(text.replace("|", " ").split())


def _hidden(run: Any) -> bool:
    vanish = _property(run, "rPr", "vanish")
    return vanish is not None and _value(vanish, "val") not in ("0", "false", "off")


def read_docx(path: Path, _encoding: str) -> Contents:
    """Read a Word file with its headers, footers and notes."""
    with opened(path, ".doc") as package:
        main = package.main()
        related = list(package.related(main).values())

        def parts(kind: str) -> Iterator[Any]:
            names = dict.fromkeys(name for each, name in related if each == kind)
            return (part for part in map(package.xml, names) if part is not None)

        named = {
            _value(style, "styleId") or "": (_value(label, "val") or "").lower()
            for sheet in parts("styles") for style in _all(sheet, "style") for label in style if _name(label) == "name"
        }  # fmt: skip
        word = WordText(named)
        for kind in ("footnote", "endnote"):
            for note in (note for part in parts(f"{kind}s") for note in _all(part, kind)):
                if _value(note, "type") not in SEPARATORS:
                    word.notes[kind, _value(note, "id") or ""] = "\n\n".join(filter(None, word.blocks(note)))
        body = package.xml(main)
        blocks = [*_margins(word, parts("header")), *word.blocks(body), *_margins(word, parts("footer"))]
        text = "\n\n".join(filter(None, blocks)).translate(INVISIBLE)
        return Contents(text, package.title(), markdown=True, problem=_unread(kind for kind, _ in related))


def _unread(kinds: Iterable[str]) -> str:
    count = sum(kind in UNREAD for kind in kinds)
    return f"{count} charts, diagrams or embedded documents are not read" if count else ""


def _margins(word: WordText, parts: Iterator[Any]) -> list[str]:
    """Write headers or footers, each text once, without lines that only number the pages."""
    blocks: dict[str, None] = {}
    for part in parts:
        instructions = [each.text or _value(each, "instr") or "" for each in _all(part, "instrText", "fldSimple")]
        numbered = any(re.match(r"\s*(NUM)?PAGES?\b", each) for each in instructions)
        blocks |= {block: None for block in word.blocks(part) if not (numbered and PAGE_NUMBER.fullmatch(block[:80]))}
    return list(blocks)


# ---- PowerPoint


def read_pptx(path: Path, _encoding: str) -> Contents:
    """Read the slides of a presentation in order; each is a page, its notes included."""
    with opened(path, ".ppt") as package:
        main = package.main()
        slides = package.related(main)
        ids = [key for each in _all(package.xml(main), "sldId") for name, key in each.attrib.items() if name != "id"]
        names = [slides[each][1] for each in ids if each in slides]
        texts = [_slide(package, name) for name in names]
        text, pages = paged(texts)
        bare = sum(not each for each in texts)
        unread = _unread(kind for name in names for kind, _ in package.related(name).values())
        problem = f"{bare} of {len(texts)} slides hold no text" if bare else unread
        return Contents(text.translate(INVISIBLE), package.title(), markdown=True, pages=pages, problem=problem)


def _slide(package: Package, name: str) -> str:
    notes = [part for kind, part in package.related(name).values() if kind == "notesSlide"]
    slide = package.xml(name)
    if slide is None or slide.get("show") == "0":
        return ""
    blocks = list(_shapes(slide, ""))
    for part in notes:
        blocks += [block for block in _shapes(package.xml(part), "body") if block]
    return "\n\n".join(blocks)


def _shapes(slide: Any, only: str) -> Iterator[str]:
    """Write the shapes and tables of a slide; `only` names the kind of placeholder to write."""
    for shape in _all(slide, "sp", "tbl"):
        if _name(shape) == "tbl":
            rows = ([_paragraphs(cell, " ").replace("|", "/") for cell in _all(row, "tc")] for row in _all(shape, "tr"))
            yield "\n".join("| " + " | ".join(row) + " |" for row in rows)
            continue
        kind = next((each.get("type", "body") for each in _all(shape, "ph")), "")
        hidden = any(each.get("hidden") == "1" for each in _all(shape, "cNvPr"))
        text = _paragraphs(shape, "  \n")
        if hidden or not text or kind in ("sldNum", "dt") or (only and kind != only):
            continue
        yield f"## {' '.join(text.split())}" if kind in ("title", "ctrTitle") else text


def _paragraphs(shape: Any, between: str) -> str:
    lines = (
        "".join(" " if _name(each) == "br" else each.text or "" for each in _all(paragraph, "t", "br"))
        for paragraph in _all(shape, "p")
    )
    return between.join(line.strip() for line in lines if line.strip())


# ---- EPUB


def read_epub(path: Path, _encoding: str) -> Contents:
    """Read the chapters of a book in the order of reading."""
    with opened(path, "file") as package:
        if "META-INF/encryption.xml" in package.zipped.namelist():
            encrypted = _all(package.xml("META-INF/encryption.xml"), "CipherReference")
            if any((each.get("URI") or "").endswith(("html", "htm")) for each in encrypted):
                raise UnreadableError("is encrypted: its chapters cannot be read")
        container = package.xml("META-INF/container.xml")
        root = next(_all(container, "rootfile")).get("full-path")
        book = package.xml(root)
        items = {each.get("id"): each for each in _all(book, "item")}
        chapters, missing = [], 0
        for each in _all(book, "itemref"):
            item = items.get(each.get("idref"))
            if item is None or "nav" in (item.get("properties") or "").split():
                continue
            name = posixpath.normpath(posixpath.join(posixpath.dirname(root), unquote(item.get("href"))))
            try:
                page = package.zipped.read(name).decode("utf-8-sig", "replace")
            except KeyError:
                missing += 1
                continue
            chapters.append(html_contents(re.sub(r"^\s*<\?xml[^>]*\?>", "", page)).text)
        text = "\n\n".join(filter(str.strip, chapters))
        problem = f"{missing} chapters are missing" if missing else ""
        return Contents(text, (_first(book, "title") or "").strip(), markdown=True, problem=problem)
