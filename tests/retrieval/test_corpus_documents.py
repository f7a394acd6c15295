import os
import zipfile

import docx
import pytest
from pypdf import PdfReader, PdfWriter
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

from rung.data.spec import Corpus
from rung.errors import ConfigError, DataError
from rung.retrieval import documents as formats
from rung.retrieval.documents import list_sources, read_documents


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
        "# Prices\n\nAll in EUR.\n\n- one\n\n- two\n\n| Item | Cost/net |\n| Box | 5 |\n\nEnd\nhere"
    )
    assert found["docs/latin.htm"].text == "Größe"


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
    monkeypatch.setattr(formats, "MAX_UNPACKED", 5_000_000)
    found, problems = read(docs.parent)
    assert set(found) == {"docs/book.docx"}
    assert found["docs/book.docx"].title == "Handbook"
    assert found["docs/book.docx"].text == "# Leave\n\nThirty days.\n\n- sick leave\n\n| a | b |\n| 1 | 2 |"
    assert problems["docs/locked.docx"].what.startswith("is encrypted")
    assert problems["docs/torn.docx"].what.startswith("is broken: BadZipFile")
    assert problems["docs/bomb.docx"].what == "unpacks to 6 MB"


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
