import os
import zipfile
from email.message import EmailMessage

import docx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from docx.oxml import parse_xml
from openpyxl import Workbook
from pypdf import PdfReader, PdfWriter
from pypdf.generic import (
    ArrayObject,
    DecodedStreamObject,
    DictionaryObject,
    NameObject,
    NumberObject,
    TextStringObject,
)

from rung.data.spec import Corpus
from rung.errors import ConfigError, DataError
from rung.retrieval import packages
from rung.retrieval.documents import list_sources, read_documents
from rung.retrieval.formats import rejoined


def read(folder, **settings):
    """Return the documents by id, and the problems by source."""
    corpus = Corpus(**{"files": "docs", **settings})
    listing = list_sources(corpus, folder)
    documents = [one for source in listing.sources for one in read_documents(source, corpus, listing.problems)]
    return {one.id: one for one in documents}, {one.source: one for one in listing.problems}


@pytest.fixture
def docs(tmp_path):
    (tmp_path / "docs").mkdir()
    return tmp_path / "docs"


def write_pdf(file, pages, password=None):
    writer = PdfWriter()
    font = DictionaryObject(
        {NameObject("/Type"): NameObject("/Font"), NameObject("/Subtype"): NameObject("/Type1"),
         NameObject("/BaseFont"): NameObject("/Helvetica")}
    )  # fmt: skip
    for text in pages:
        page = writer.add_blank_page(300, 300)
        stream = DecodedStreamObject()
        stream.set_data(f"BT /F1 12 Tf 20 200 Td ({text}) Tj ET".encode() if text else b"")
        page[NameObject("/Contents")] = writer._add_object(stream)
        page[NameObject("/Resources")] = DictionaryObject(
            {NameObject("/Font"): DictionaryObject({NameObject("/F1"): font})}
        )
    if password is not None:
        writer.encrypt(user_password=password, owner_password="owner", algorithm="RC4-128")
    writer.write(file)


def test_text_is_read_as_it_is(docs):
    (docs / "my-notes_2.txt").write_bytes("\ufeffFirst line\r\n# no heading\r\n".encode())
    (docs / "guide.md").write_text("# The guide\n\nWords.")
    found, problems = read(docs.parent)
    assert problems == {}
    assert [(one.id, one.title, one.text, one.markdown) for one in found.values()] == [
        ("docs/guide.md", "The guide", "# The guide\n\nWords.", True),
        ("docs/my-notes_2.txt", "my notes 2", "First line\r\n# no heading\r\n", False),
    ]


def test_html_becomes_markdown(docs):
    (docs / "a.html").write_text(
        "<html><head><title> Prices &amp; more </title><style>p {}</style></head><body><script>bad()</script>"
        "<h1>Prices</h1><p>All <b>in</b>\n EUR.</p><ul><li>one</li><li>two</li></ul>"
        "<table><tr><th>Item</th><th>Cost|net</th></tr><tr><td><p>Box</p></td><td>5</td></tr></table>"
        "<!-- hidden --><p>End<br>here</p></body></html>"
    )
    (docs / "latin.htm").write_bytes('<meta charset="iso-8859-1"><p>Größe</p>'.encode("latin-1"))
    found, problems = read(docs.parent)
    assert problems == {}
    assert found["docs/a.html"].title == "Prices & more"
    assert found["docs/a.html"].text == (
        "# Prices\n\nAll in EUR.\n\n- one\n\n- two\n\n| Item | Cost/net |\n| Box | 5 |\n\nEnd  \nhere"
    )
    assert found["docs/latin.htm"].text == "Größe"


@pytest.mark.parametrize(
    "start",
    ["<title>S</title>", "<!doctype html><html lang=en><meta charset=utf-8><title>S</title><link rel=icon href=x>", ""],
)
@pytest.mark.parametrize("tag", ["main", "article", "section", "header", "x-app", "div", "p"])
def test_a_page_may_leave_out_its_body_s_tag(docs, start, tag):
    """The parser takes elements that it does not know for a part of the head, as long as no older one comes."""
    (docs / "a.html").write_text(f"{start}<style>p {{}}</style><{tag}>Open daily.<p>Bring a coat.</p></{tag}>")
    found, problems = read(docs.parent)
    assert found["docs/a.html"].text == "Open daily.\n\nBring a coat."
    assert problems == {}


def test_deeply_nested_html_is_read_as_far_as_the_parser_goes_and_told(docs):
    (docs / "deep.html").write_text("<div>" * 1000 + "word" + "</div>" * 1000)
    (docs / "deeper.html").write_text("<p>before</p>" + "<div>" * 5000 + "word" + "</div>" * 5000)
    found, problems = read(docs.parent)
    assert found["docs/deep.html"].text == "word"
    assert found["docs/deeper.html"].text == "before"
    assert set(problems) == {"docs/deeper.html"}
    assert problems["docs/deeper.html"].what.startswith("is read only up to a limit: Excessive depth")
    assert not problems["docs/deeper.html"].left_out


def test_pdf_pages_and_their_problems(docs):
    write_pdf(docs / "three.pdf", ["Hello one", "", "Hello three"])
    write_pdf(docs / "locked.pdf", ["secret"], password="x")
    write_pdf(docs / "open.pdf", ["readable by all"], password="")
    write_pdf(docs / "scan.pdf", ["", ""])
    (docs / "broken.pdf").write_bytes(b"%PDF-1.7\n" + os.urandom(2000))
    found, problems = read(docs.parent)
    assert set(found) == {"docs/three.pdf", "docs/open.pdf"}
    three = found["docs/three.pdf"]
    assert [three.text[start:].split("\n")[0] for start in three.pages] == ["Hello one", "", "Hello three"]
    assert len(three.pages) == len(PdfReader(docs / "three.pdf").pages) == 3
    assert problems["docs/three.pdf"].what.startswith("1 of 3 pages hold no text")
    assert not problems["docs/three.pdf"].left_out
    assert problems["docs/locked.pdf"].what == "is encrypted: save it without a password"
    assert problems["docs/scan.pdf"].what.startswith("2 of 2 pages hold no text")
    assert problems["docs/broken.pdf"].what.startswith("is broken: ")
    assert problems["docs/scan.pdf"].left_out
    assert problems["docs/broken.pdf"].left_out


def test_word_files(docs, monkeypatch):
    document = docx.Document()
    document.core_properties.title = "Handbook"
    document.add_heading("Leave", level=1)
    document.add_paragraph("Thirty days.")
    document.add_paragraph("sick leave", style="List Bullet")
    table = document.add_table(rows=2, cols=2)
    for cell, text in zip(table._cells, ["a", "b", "1", "2"], strict=True):
        cell.text = text
    document.save(str(docs / "book.docx"))
    (docs / "locked.docx").write_bytes(b"\xd0\xcf\x11\xe0" + b"0" * 100)
    (docs / "torn.docx").write_bytes((docs / "book.docx").read_bytes()[:5000])
    with zipfile.ZipFile(docs / "bomb.docx", "w", zipfile.ZIP_DEFLATED) as parts:
        for part in range(6):
            parts.writestr(f"{part}.xml", bytes(1_000_000))
    monkeypatch.setattr(packages, "MAX_UNPACKED", 5_000_000)
    found, problems = read(docs.parent)
    assert set(found) == {"docs/book.docx"}
    assert found["docs/book.docx"].title == "Handbook"
    assert found["docs/book.docx"].text == "# Leave\n\nThirty days.\n\n- sick leave\n\n| a | b |\n| 1 | 2 |"
    assert problems["docs/locked.docx"].what.startswith("is encrypted")
    assert problems["docs/torn.docx"].what.startswith("is broken: BadZipFile")
    assert problems["docs/bomb.docx"].what == "unpacks to 6 MB"


WORD = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


def test_word_keeps_what_a_person_sees(docs):
    document = docx.Document()
    section = document.sections[0]
    section.header.paragraphs[0].text = "Contract 7741-B"
    paging = section.footer.paragraphs[0]
    paging.text = "Page 3 of 9"
    paging._p.append(parse_xml(f"<w:r {WORD}><w:instrText> PAGE </w:instrText></w:r>"))
    section.footer.add_paragraph("Valid until 2031")
    paragraph = document.add_paragraph("Notice is ")
    for part in (
        '<w:ins w:id="1"><w:r><w:t>ninety</w:t></w:r></w:ins>',
        '<w:del w:id="2"><w:r><w:delText>sixty</w:delText></w:r></w:del>',
        '<w:r><w:t xml:space="preserve"> days</w:t><w:noBreakHyphen/></w:r>',
        "<w:r><w:rPr><w:vanish/></w:rPr><w:t>secret</w:t></w:r>",
        '<w:sdt><w:sdtContent><w:r><w:t>net</w:t></w:r></w:sdtContent></w:sdt>'
        '<w:r><w:footnoteReference w:id="7"/></w:r>',
        "<w:r><w:pict><w:txbxContent><w:p><w:r><w:t>Call 4711.</w:t></w:r></w:p></w:txbxContent></w:pict></w:r>",
    ):  # fmt: skip
        for element in list(parse_xml(f"<w:p {WORD}>{part}</w:p>")):
            paragraph._p.append(element)
    control = f"<w:sdt {WORD}><w:sdtContent><w:p><w:r><w:t>Borealis of Kiel</w:t></w:r></w:p></w:sdtContent></w:sdt>"
    document.element.body.insert(1, parse_xml(control))
    table = document.add_table(rows=3, cols=2)
    table.cell(0, 0).merge(table.cell(0, 1)).text = "Prices"
    table.cell(1, 0).merge(table.cell(2, 0)).text = "Plus"
    table.cell(1, 1).add_table(rows=1, cols=2).cell(0, 1).text = "15 percent"
    document.save(str(docs / "plain.docx"))
    words = "<w:p><w:r><w:t>Not in leap years.</w:t></w:r></w:p>"
    note = f'<w:footnotes {WORD}><w:footnote w:id="7">{words}</w:footnote></w:footnotes>'
    link = '<Relationship Id="{0}" Type="http://x/{0}" Target="{0}.xml"/>'
    with zipfile.ZipFile(docs / "plain.docx") as old, zipfile.ZipFile(docs / "all.docx", "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "word/_rels/document.xml.rels":
                links = link.format("footnotes") + link.format("chart")
                data = data.replace(b"</Relationships>", links.encode() + b"</Relationships>")
            new.writestr(name, data)
        new.writestr("word/footnotes.xml", note)
    (docs / "plain.docx").unlink()
    found, problems = read(docs.parent)
    assert found["docs/all.docx"].text.split("\n\n") == [
        "Contract 7741-B", "Notice is ninety days-net", "Not in leap years.", "Call 4711.", "Borealis of Kiel",
        "| Prices |\n| Plus | 15 percent |\n|  |  |", "Valid until 2031",
    ]  # fmt: skip
    assert problems["docs/all.docx"].what == "1 charts, diagrams or embedded documents are not read"


def test_slides_books_and_mails(docs):
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    rels = "<Relationships>{}</Relationships>".format
    names = {
        "_rels/.rels": rels(f'<Relationship Id="r" Type="{office}/officeDocument" Target="ppt/presentation.xml"/>'),
        "ppt/presentation.xml": f'<p xmlns:r="{office}"><sldId id="9" r:id="b"/><sldId id="8" r:id="a"/></p>',
        "ppt/_rels/presentation.xml.rels": rels(
            f'<Relationship Id="a" Type="{office}/slide" Target="slides/1.xml"/>'
            f'<Relationship Id="b" Type="{office}/slide" Target="/ppt/slides/2.xml"/>'
        ),
        "ppt/slides/1.xml": "<s><tbl><tr><tc><p><t>a</t></p></tc><tc><p><t>5</t></p></tc></tr></tbl></s>",
        "ppt/slides/2.xml": '<s><sp><ph type="title"/><p><t>Costs</t></p></sp>'
        "<sp><p><t>One</t><br/><t>two</t></p></sp></s>",
    }
    with zipfile.ZipFile(docs / "talk.pptx", "w") as parts:
        for name, text in names.items():
            parts.writestr(name, text)
    with zipfile.ZipFile(docs / "novel.epub", "w") as parts:
        parts.writestr("META-INF/container.xml", '<c><rootfile full-path="OPS/book.opf"/></c>')
        parts.writestr(
            "OPS/book.opf",
            '<p><title>The Sea</title><item id="x" href="a%20b.xhtml"/><item id="y" href="z.xhtml"/>'
            '<itemref idref="y"/><itemref idref="x"/></p>',
        )
        parts.writestr("OPS/a b.xhtml", '<?xml version="1.0" encoding="utf-8"?><html><h1>One</h1><p>Größe</p></html>')
    mail = EmailMessage()
    mail["Subject"], mail["From"] = "Offer", "ann@example.org"
    mail.set_content("It costs 5 EUR.")
    mail.add_attachment(b"x", maintype="application", subtype="pdf", filename="offer.pdf")
    (docs / "offer.eml").write_bytes(bytes(mail))
    found, problems = read(docs.parent)
    talk = found["docs/talk.pptx"]
    assert [talk.text[start:].strip() for start in talk.pages] == ["## Costs\n\nOne two\n\n| a | 5 |", "| a | 5 |"]
    novel = found["docs/novel.epub"]
    assert (novel.title, novel.text) == ("The Sea", "# One\n\nGröße")
    offer = found["docs/offer.eml"]
    assert (offer.title, offer.text) == ("Offer", "Subject: Offer\nFrom: ann@example.org\n\nIt costs 5 EUR.")
    told = {source: problem.what for source, problem in problems.items()}
    assert told == {"docs/offer.eml": "1 attachments are not read", "docs/novel.epub": "1 chapters are missing"}


def test_html_keeps_code_and_leaves_out_what_is_hidden(docs):
    (docs / "a.html").write_text(
        '<nav>Home</nav><div role="navigation">Login</div><p hidden>no</p>'
        '<div style="color:red; DISPLAY: none">no</div>'
        "<dialog>no</dialog><details><summary>More</summary>Gift cards.</details><select><option>A<option>B</select>"
        "<pre><code># no heading\n\n\nx  = 1 | 2\n</code></pre>sub&shy;scrip&shy;tion"
    )
    found, _ = read(docs.parent)
    assert found["docs/a.html"].text == (
        "More\n\nGift cards.\n\nA B\n\n```\n# no heading\n\n\nx  = 1 | 2\n```\n\nsubscription"
    )


def test_markdown_titles(docs):
    (docs / "a.md").write_text('---\ntitle: "The kettle"\ntags: [a]\n---\n\nText')
    (docs / "b.md").write_text("\nThe pump\n========\n\nText")
    (docs / "c.md").write_text("---\n\nNo front matter. Really\n\n---\n")
    found, _ = read(docs.parent)
    assert [one.title for one in found.values()] == ["The kettle", "The pump", "c"]


def test_pdf_words_are_joined_and_forms_are_read(docs):
    lines = ["The autho-", "rization of a well-", "known office.", "A well-known form, Baden-", "Baden \\(\\256\\)"]
    write_pdf(docs / "a.pdf", [f"{') Tj 0 -14 Td ('.join(lines)}"])
    writer = PdfWriter(clone_from=str(docs / "a.pdf"))
    fields = [("Name", TextStringObject("Ann Lee"), "/Tx", 0), ("Old", TextStringObject("gone"), "/Tx", 2)]
    writer.pages[0][NameObject("/Annots")] = ArrayObject(
        DictionaryObject(
            {NameObject("/Subtype"): NameObject("/Widget"), NameObject("/T"): TextStringObject(name),
             NameObject("/V"): value, NameObject("/FT"): NameObject(kind), NameObject("/F"): NumberObject(flag)}
        )
        for name, value, kind, flag in fields
    )  # fmt: skip
    writer.write(docs / "a.pdf")
    found, _ = read(docs.parent)
    assert found["docs/a.pdf"].text.rstrip() == (
        "The authorization of a well-known office.\nA well-known form, Baden-Baden (fi)\nName: Ann Lee"
    )


def test_a_typographic_hyphen_may_stand_apart_from_its_word():
    assert rejoined(["demo \u2010\ncracy, a \u2010\nb, one -\ntwo"]) == ["democracy, a \u2010\nb, one -\ntwo"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_text_in_two_bytes_a_character_is_read(docs, encoding):
    (docs / "a.txt").write_bytes("Маяк 東京".encode(encoding))
    found, problems = read(docs.parent, encoding=encoding)
    assert (problems, found["docs/a.txt"].text) == ({}, "Маяк 東京")


def test_every_file_that_is_left_out_is_told(docs, tmp_path):
    (docs / "good.txt").write_text("good")
    (docs / "empty.txt").write_text("")
    (docs / "blank.md").write_text(" \n ")
    (docs / "binary.txt").write_bytes(b"abc\0def")
    (docs / "broken.txt").write_bytes(b"line one\nbad \x81 byte")
    (docs / "photo.jpg").write_bytes(b"x")
    (docs / "large.txt").write_bytes(b"x" * 1_000_001)
    (docs / ".hidden.txt").write_text("not looked at")
    (tmp_path / "outside.txt").write_text("secret")
    (docs / "link.txt").symlink_to(tmp_path / "outside.txt")
    (docs / "dead.txt").symlink_to(docs / "nowhere.txt")
    (docs / "inner.txt").symlink_to(docs / "good.txt")
    (docs / "folder").symlink_to(tmp_path)
    os.mkfifo(docs / "pipe.txt")
    found, problems = read(tmp_path, max_megabytes=1)
    assert set(found) == {"docs/good.txt", "docs/inner.txt"}
    told = {source.removeprefix("docs/"): problem.what for source, problem in problems.items()}
    assert told.pop("broken.txt").endswith("broken.txt:2: byte 13 (0x81) is not utf-8")
    assert told.pop("blank.md").endswith("blank.md is empty")
    assert told == {
        "empty.txt": "is empty",
        "binary.txt": "is binary, not text",
        "photo.jpg": "files of kind .jpg are not read",
        "large.txt": "has 1 MB, more than `corpus.max_megabytes`: 1",
        "link.txt": "is a link out of the folder",
        "dead.txt": "is a link to nothing",
        "folder": "is a link to a folder",
        "pipe.txt": "is not a regular file",
    }


@pytest.mark.parametrize("files", ["docs", "docs/**/*.md", "docs/**/*.jsonl", "."])
def test_runs_and_artifacts_are_no_documents(docs, files):
    """Their predictions hold the expected answers."""
    for name in ("runs/decisions.jsonl", "runs/q/climb.json", "made/artifact.json", "mine/climbing.jsonl"):
        for file in (docs / name, docs / name.rpartition("/")[0] / "sub" / "predictions.jsonl"):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text('{"text": "one"}\n')
    (docs / "a.md").write_text("a")
    (docs / "mine/b.md").write_text("b")
    found = {source.id for source in list_sources(Corpus(files=files), docs.parent).sources}
    named = {"docs/a.md", "docs/mine/b.md", "docs/mine/climbing.jsonl", "docs/mine/sub/predictions.jsonl"}
    assert found == {name for name in named if files in ("docs", ".") or name.endswith(files[-3:])}


def test_a_file_that_goes_while_the_index_is_built_is_told(docs):
    (docs / "a.txt").write_text("a")
    (docs / "b.txt").write_text("b")
    corpus = Corpus(files="docs")
    listing = list_sources(corpus, docs.parent)
    (docs / "a.txt").unlink()
    found = [one.text for source in listing.sources for one in read_documents(source, corpus, listing.problems)]
    assert found == ["b"]
    assert [(one.source, one.left_out) for one in listing.problems] == [("docs/a.txt", True)]


def test_rows_of_tables_are_documents(docs):
    (docs / "faq.csv").write_text("id,question,answer,product\n7,How?,Thus.,box\n8,Why?,,bag\n9,,,\n")
    found, problems = read(docs.parent)
    assert found["docs/faq.csv:2"].text == "id: 7\nquestion: How?\nanswer: Thus.\nproduct: box"
    named = {"text_column": "answer", "title_column": "question", "id_column": "id", "metadata": ["product"]}
    found, problems = read(docs.parent, **named)
    assert [(one.id, one.title, one.text, one.metadata) for one in found.values()] == [
        ("docs/faq.csv:7", "How?", "Thus.", ("box",))
    ]
    assert problems["docs/faq.csv"].what == "2 rows without text are left out"


def test_all_sheets_that_a_workbook_shows_are_read_and_cells_that_hold_no_text_are_told(docs):
    book = Workbook()
    first = book.active
    first.append(["product", "price", "total"])
    first.append(["Kettle", 5, "=B2*2"])  # written without the formula's value
    hidden = book.create_sheet("Drafts")
    hidden.append(["product"])
    hidden.append(["Toaster"])
    hidden.sheet_state = "hidden"
    book.create_sheet("Empty")
    more = book.create_sheet("Hours")
    more.append(["day", "open"])
    more.append(["Monday", "9 to 5"])
    titled = book.create_sheet("Notes")
    titled.append(["Our notes", None])
    titled.append(["a", "b"])
    book.save(docs / "shop.xlsx")
    found, problems = read(docs.parent)
    assert {name: one.text for name, one in found.items()} == {
        "docs/shop.xlsx:2": "product: Kettle\nprice: 5",
        "docs/shop.xlsx:Hours:2": "day: Monday\nopen: 9 to 5",
    }
    assert {one.source for one in found.values()} == {"docs/shop.xlsx"}
    corpus, told = Corpus(files="docs"), []
    (source,) = list_sources(corpus, docs.parent).sources
    list(read_documents(source, corpus, told))
    cell, sheet = (one.what for one in told)
    assert cell.startswith("1 cells are left out; the first, 'total' of row 2, holds in C2 a formula without its value")
    assert sheet.startswith("sheet 'Notes' is left out: ")
    assert not any(one.left_out for one in told)
    assert set(problems) == {"docs/shop.xlsx"}


def test_bytes_in_a_table_are_told_and_the_other_columns_are_read(docs):
    table = pa.table({"text": ["one", "two"], "image": [b"\x89PNG", None]})
    pq.write_table(table, docs / "rows.parquet")
    found, problems = read(docs.parent)
    assert [one.text for one in found.values()] == ["text: one", "text: two"]
    assert (
        problems["docs/rows.parquet"].what == "1 cells are left out; the first, 'image' of row 1, holds bytes, not text"
    )


def test_rows_before_a_broken_one_are_kept(docs):
    (docs / "rows.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n{"text": \n')
    (docs / "other.jsonl").write_text('{"body": "one"}\n')
    found, problems = read(docs.parent, text_column="text")
    assert set(found) == {"docs/rows.jsonl:1", "docs/rows.jsonl:2"}
    assert problems["docs/rows.jsonl"].what.endswith("the 2 rows before are kept")
    assert not problems["docs/rows.jsonl"].left_out
    assert problems["docs/other.jsonl"].what == "row 1 has no column 'text'; it has 'body'"


def test_rows_need_names_of_their_own(docs):
    (docs / "rows.csv").write_text("id,text\n1,a\n1,b\n")
    _, problems = read(docs.parent, text_column="text", id_column="id")
    assert "has the id of an earlier row" in problems["docs/rows.csv"].what


def test_globs_and_names(docs):
    (docs / "in").mkdir()
    for name in ("a.md", "in/b.md", "in/c.txt"):
        (docs / name).write_text(name)
    assert set(read(docs.parent, files="docs/**/*.md")[0]) == {"docs/a.md", "docs/in/b.md"}
    assert set(read(docs, files=["in/c.txt", "in", str(docs / "a.md")])[0]) == {"in/c.txt", "in/b.md", "a.md"}
    for wrong in ("nothing.txt", "*.pdf"):
        with pytest.raises(ConfigError, match=r"does not exist|finds no file"):
            read(docs, files=wrong)


@pytest.mark.parametrize(
    "settings",
    [{"files": []}, {"files": "a", "chunk_tokens": 10, "overlap_tokens": 6}, {"files": "a", "encoding": "utf-9"}],
)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(ValueError, match=r"names no file|more than half|no text encoding"):
        Corpus(**settings)


def test_a_corpus_without_text_is_an_error(docs, encoder):
    from rung.retrieval.build import build

    (docs / "photo.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match="no text was found in docs") as error:
        build(docs.parent / "index", Corpus(files="docs"), docs.parent)
    assert error.value.hint == "docs/photo.jpg: files of kind .jpg are not read"
