"""What is left of documents in the formats that people keep them in: Rung's readers against markitdown.

    python benchmarks/document_formats.py DATA [--questions N]

DATA holds `chunking_eval`. Two of its corpora, a speech and articles, are written as they come in practice: Word with
content controls, insertions that nobody has accepted, text boxes, tables in tables and footnotes; HTML with soft
hyphens between navigation and hidden parts; PDF in two columns with words divided at line ends, as Chromium prints it;
a workbook with a paragraph in a row; slides with notes; EPUB; mails. Both readers' texts are indexed by Rung with the
same settings.

Measured are the share of the documents' runs of four words that the reader keeps, and the share of the answers' such
runs in the first 5 passages, over the questions with odd numbers. The original text is the upper bound.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import subprocess
import tempfile
import unicodedata
import zipfile
from collections.abc import Callable, Iterable, Sequence
from email.message import EmailMessage
from functools import partial
from html import escape
from pathlib import Path

import docx
import numpy as np
from docx.oxml import parse_xml
from openpyxl import Workbook

from _common import finish
from rung.data.spec import Corpus
from rung.retrieval.build import build
from rung.retrieval.documents import list_sources, read_documents
from rung.retrieval.index import SearchSettings

CORPORA = ("state_of_the_union", "wikitexts")
K, RUN = 5, 4
SECTION = 12  # blocks of a slide, chapter or mail
GOALS = {"kept": 1.0, "found": 1.0}
WORD = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
WORD += ' xmlns:v="urn:schemas-microsoft-com:vml"'

SLIDES = """
import json, sys
from pptx import Presentation
for file, slides in json.load(open(sys.argv[1])).items():
    deck = Presentation()
    for title, shown, noted in slides:
        slide = deck.slides.add_slide(deck.slide_layouts[1])
        slide.shapes.title.text = title
        slide.placeholders[1].text = shown
        slide.notes_slide.notes_text_frame.text = noted
    deck.save(file)
"""
MARKITDOWN = """
import sys
from pathlib import Path
from markitdown import MarkItDown
reader, refused = MarkItDown(), {}
for file in Path(sys.argv[1]).rglob("*.*"):
    target = Path(sys.argv[2]) / file.parent.name / f"{file.name}.md"
    target.parent.mkdir(exist_ok=True)
    try:
        target.write_text(reader.convert(file).text_content)
    except Exception as error:
        refused[file.suffix] = type(error).__name__
print(refused or "", file=sys.stderr)
"""

Block = tuple[bool, str]  # whether it is a heading, and its text
Writer = Callable[[Path, Sequence[Block]], None]


def blocks(text: str) -> list[Block]:
    """Split a corpus at blank lines, and articles at their lines; ` = Title = ` is a heading."""
    found = []
    for line in re.split(r"\n+", text):
        heading = re.fullmatch(r"\s*(?:#+|= (?:= )*)\s*(.+?)[\s=]*", line)
        if line.strip():
            found.append((bool(heading), (heading[1] if heading else line).strip()))
    return found


def sections(parts: Sequence[Block]) -> Iterable[tuple[str, list[Block]]]:
    """Cut into sections of at most so many blocks, each with the last heading as its title."""
    title = "The beginning"
    for first in range(0, len(parts), SECTION):
        section = list(parts[first : first + SECTION])
        title = next((text for heading, text in section if heading), title)
        yield title, section


# ---- formats


def word(file: Path, parts: Sequence[Block]) -> None:
    """Every paragraph stands in another part of Word's."""
    document, notes = docx.Document(), []
    document.sections[0].header.paragraphs[0].text = "For internal use only"
    for number, (heading, text) in enumerate(parts):
        if heading:
            document.add_heading(text, 2)
            continue
        run = f'<w:r><w:t xml:space="preserve">{escape(text)}</w:t></w:r>'
        paragraph = document.add_paragraph()
        kind = number % 6
        if kind == 0:
            control = f"<w:sdt {WORD}><w:sdtPr/><w:sdtContent><w:p>{run}</w:p></w:sdtContent></w:sdt>"
            paragraph._p.addprevious(parse_xml(control))
        elif kind == 1:
            paragraph._p.append(parse_xml(f'<w:ins {WORD} w:id="{number}" w:author="A">{run}</w:ins>'))
        elif kind == 2:
            box = f"<v:shape><v:textbox><w:txbxContent><w:p>{run}</w:p></w:txbxContent></v:textbox></v:shape>"
            paragraph._p.append(parse_xml(f"<w:r {WORD}><w:pict>{box}</w:pict></w:r>"))
        elif kind == 3:
            document.add_table(1, 1).cell(0, 0).add_table(1, 1).cell(0, 0).text = text
        elif kind == 4 and number % 18 == 4:
            paragraph.add_run("See the note.")
            paragraph._p.append(parse_xml(f'<w:r {WORD}><w:footnoteReference w:id="{number}"/></w:r>'))
            notes.append(f'<w:footnote w:id="{number}"><w:p>{run}</w:p></w:footnote>')
        else:
            paragraph.add_run(text)
    document.save(str(file))
    relation = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/footnotes"
    kind_of = "application/vnd.openxmlformats-officedocument.wordprocessingml.footnotes+xml"
    more = {
        "[Content_Types].xml": ("</Types>", f'<Override PartName="/word/footnotes.xml" ContentType="{kind_of}"/>'),
        "word/_rels/document.xml.rels": (
            "</Relationships>", f'<Relationship Id="rIdF" Type="{relation}" Target="footnotes.xml"/>',
        ),
    }  # fmt: skip
    with zipfile.ZipFile(file) as old:
        names = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(file, "w") as new:
        for name, data in names.items():
            end, added = more.get(name, ("", ""))
            new.writestr(name, data.replace(end.encode(), (added + end).encode()) if end else data)
        new.writestr("word/footnotes.xml", f"<w:footnotes {WORD}>{''.join(notes)}</w:footnotes>")


def markup(parts: Sequence[Block], soft: int = 0) -> str:
    """Write blocks as HTML, with a soft hyphen in words of at least `soft` letters; 0 for none."""
    lines = []
    for heading, text in parts:
        shown = re.sub(rf"\b(\w{{4}})(\w{{{soft - 4},}})", "\\1\u00ad\\2", text) if soft else text
        lines.append(f"<h2>{escape(shown)}</h2>" if heading else f"<p>{escape(shown)}</p>")
    return "\n".join(lines)


def html(file: Path, parts: Sequence[Block]) -> None:
    """A page of a site."""
    menu = "".join(f"<li><a href=/{n}>Offer {n}</a></li>" for n in range(20))
    hidden = "<div style='display:none'>Subscribe to our letter</div><script>var secret = 1</script>"
    file.write_text(
        f"<!doctype html><title>{file.stem}</title><nav><ul>{menu}</ul></nav>{hidden}<main>{markup(parts, soft=8)}"
        "</main><footer>Imprint</footer>",
        encoding="utf-8",
    )


def pdf(file: Path, parts: Sequence[Block]) -> None:
    """Two columns, justified, with long words divided at line ends."""
    from playwright.sync_api import sync_playwright

    style = "body {columns: 2; text-align: justify; font: 10pt serif} p {text-indent: 1em; margin: 0}"
    soft = markup(parts, soft=12)  # Chromium has no dictionary everywhere, but divides at soft hyphens
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_content(f"<!doctype html><html lang=en><style>{style}</style>{soft}")
        page.pdf(path=str(file), format="A4")
        browser.close()


def workbook(file: Path, parts: Sequence[Block]) -> None:
    """A paragraph in a row, below its heading."""
    book, title = Workbook(), ""
    sheet = book.active
    sheet.append(["section", "text"])
    for heading, text in parts:
        title = text if heading else title
        if not heading:
            sheet.append([title, text])
    book.save(file)


def epub(file: Path, parts: Sequence[Block]) -> None:
    """A book with a chapter for every section."""
    chapters = [markup(section) for _, section in sections(parts)]
    items = "".join(
        f'<item id="c{n}" href="c{n}.xhtml" media-type="application/xhtml+xml"/>' for n in range(len(chapters))
    )
    spine = "".join(f'<itemref idref="c{n}"/>' for n in range(len(chapters)))
    with zipfile.ZipFile(file, "w") as book:
        book.writestr("mimetype", "application/epub+zip")
        book.writestr(
            "META-INF/container.xml",
            '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container" version="1.0"><rootfiles><rootfile '
            'full-path="OPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>',
        )
        book.writestr(
            "OPS/book.opf",
            '<package xmlns="http://www.idpf.org/2007/opf" version="3.0"><metadata '
            f'xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>{file.stem}</dc:title></metadata>'
            f"<manifest>{items}</manifest><spine>{spine}</spine></package>",
        )
        for n, chapter in enumerate(chapters):
            page = f"<html xmlns='http://www.w3.org/1999/xhtml'><head><title>{n}</title></head><body>{chapter}</body></html>"
            book.writestr(f"OPS/c{n}.xhtml", page)


def mails(file: Path, parts: Sequence[Block]) -> None:
    """A mail for every section, as HTML in quoted-printable beside a plain text that says nothing."""
    for number, (title, section) in enumerate(sections(parts)):
        mail = EmailMessage()
        mail["Subject"], mail["From"], mail["To"] = title[:70], "ann@example.org", "bob@example.org"
        mail.set_content(markup(section), subtype="html", cte="quoted-printable")
        file.with_name(f"{file.stem}-{number}.eml").write_bytes(bytes(mail))


FORMATS: dict[str, Writer] = {"docx": word, "html": html, "pdf": pdf, "xlsx": workbook, "epub": epub, "eml": mails}
CHROMIUM = "/usr/bin/chromium"


def write_all(folder: Path, texts: dict[str, str], python: Path) -> None:
    """Write each corpus in every format, each format in a folder of its own."""
    for name, writer in FORMATS.items():
        (folder / name).mkdir(parents=True)
        for corpus, text in texts.items():
            writer(folder / name / f"{corpus}.{name}", blocks(text))
    (folder / "pptx").mkdir()
    decks = {}
    for corpus, text in texts.items():
        slides = [(title, [text for _, text in section]) for title, section in sections(blocks(text))]
        decks[str(folder / "pptx" / f"{corpus}.pptx")] = [
            (title, "\n".join(shown[::2]), "\n".join(shown[1::2])) for title, shown in slides
        ]
    given = folder.parent / "slides.json"
    given.write_text(json.dumps(decks))
    subprocess.run([python, "-c", SLIDES, given], check=True)


# ---- measures


def runs(text: str) -> set[tuple[str, ...]]:
    """The runs of four words, without case, accents and soft hyphens."""
    plain = unicodedata.normalize("NFKC", text).replace("\u00ad", "").casefold()
    words = re.findall(r"\w+", plain)
    return {tuple(words[place : place + RUN]) for place in range(len(words) - RUN + 1)}


def share(wanted: set[tuple[str, ...]], found: set[tuple[str, ...]]) -> float:
    return len(wanted & found) / len(wanted) if wanted else 1.0


def measured(
    folder: Path, texts: Sequence[str], asked: Sequence[tuple[str, set[tuple[str, ...]]]]
) -> tuple[float, ...]:
    """What a folder's reader keeps of the texts, and what the first passages hold of the answers."""
    if not any(folder.iterdir()):
        return 0.0, 0.0
    corpus = Corpus(files=f"{folder.name}/")
    read = "\n".join(
        document.text
        for source in list_sources(corpus, folder.parent).sources
        for document in read_documents(source, corpus, [])
    )
    wanted = set().union(*map(runs, texts))
    with tempfile.TemporaryDirectory() as index:
        built = build(Path(index) / "index", corpus, folder.parent)
        results = built.search([question for question, _ in asked], K, SearchSettings())
    found = [
        share(gold, set().union(*(runs(passage.text) for passage in passages)))
        for (_, gold), passages in zip(asked, results, strict=True)
    ]
    return share(wanted, runs(read)), float(np.mean(found))


def main() -> None:
    """Measure both readers on all formats, print a table and one JSON line."""
    options = argparse.ArgumentParser()
    options.add_argument("data", type=Path)
    options.add_argument("--questions", type=int, help="so many, to try the script")
    chosen = options.parse_args()
    source = chosen.data / "chunking_eval"
    texts = {name: (source / f"{name}.md").read_text("utf-8") for name in CORPORA}
    with (source / "questions_df.csv").open(encoding="utf-8", newline="") as rows:
        odd = [row for row in csv.DictReader(rows) if row["corpus_id"] in CORPORA][1::2][: chosen.questions]
    asked = [
        (row["question"], set().union(*(runs(one["content"]) for one in json.loads(row["references"])))) for row in odd
    ]
    asked = [(question, gold) for question, gold in asked if gold]
    originals = ["\n".join(text for _, text in blocks(text)) for text in texts.values()]
    score = partial(measured, texts=originals, asked=asked)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = folder / "environment" / "bin" / "python"
        subprocess.run(["uv", "venv", "-q", folder / "environment"], check=True)
        install = ["uv", "pip", "install", "-q", "--link-mode", "copy", "--python", python]
        subprocess.run([*install, "markitdown[docx,pdf,pptx,xlsx]"], check=True)
        write_all(folder / "files", texts, python)
        (folder / "read").mkdir()
        subprocess.run([python, "-W", "ignore", "-c", MARKITDOWN, folder / "files", folder / "read"], check=True)
        (folder / "md").mkdir()
        for corpus, text in texts.items():
            (folder / "md" / f"{corpus}.md").write_text(text, encoding="utf-8")
        print(f"{len(asked)} questions; kept, found in the first {K} passages (%)")
        print("original text    {:5.1f} {:5.1f}".format(*(100 * value for value in score(folder / "md"))))
        print(f"{'format':10} {'Rung':>11} {'markitdown':>15}")
        ratios: dict[str, list[float]] = {"kept": [], "found": []}
        for form in (*FORMATS, "pptx"):
            ours, theirs = score(folder / "files" / form), score(folder / "read" / form)
            shown = [100 * value for value in (*ours, *theirs)]
            print("{:10} {:5.1f} {:5.1f}     {:5.1f} {:5.1f}".format(form, *shown), flush=True)
            for key, own, other in zip(ratios, ours, theirs, strict=True):
                ratios[key].append(own / max(other, 1e-9))
    finish("document_formats", {key: min(values) for key, values in ratios.items()}, GOALS)


if __name__ == "__main__":
    main()
