from itertools import pairwise

import pytest

from rung.retrieval.chunking import Chunker, sentence_spans, unwrapped


def words(text):
    return len(text.split())


def cut(text, tokens=20, overlap=0, title="", markdown=True):
    return Chunker(words, tokens, overlap).cut(text, title, markdown=markdown)


def pieces(text, **settings):
    return [text[chunk.start : chunk.end] for chunk in cut(text, **settings)]


LONG = " ".join(f"Sentence number {i} says something new." for i in range(40))


def test_every_word_stands_in_one_chunk_and_spans_are_exact():
    chunks = cut(LONG)
    assert " ".join(LONG[c.start : c.end] for c in chunks) == LONG
    assert all(words(c.embedded) <= 20 and LONG[c.start : c.end] == c.embedded for c in chunks)
    assert all(LONG[c.start : c.end].endswith("new.") for c in chunks)


def test_paragraphs_are_kept_together():
    text = "One two three four five six.\n\nSeven eight nine ten eleven.\n\nA b c d e f g h. I j k l m n o p."
    assert pieces(text, tokens=18) == [
        "One two three four five six.\n\nSeven eight nine ten eleven.",
        "A b c d e f g h. I j k l m n o p.",
    ]


def test_headings_are_prefixed_and_begin_chunks():
    text = (
        "# Guide\n\nintro words here\n\n## Returns\n\nA b c d e f g h i j k l.\n\n### Late\n\nM n o p q r s t u v.\n\n"
        "## Shipping\n\nW x y z."
    )
    chunks = cut(text, title="Shop", tokens=24)
    assert [(c.title, text[c.start : c.end]) for c in chunks] == [
        ("Shop", text[: text.index("\n\n### Late")]),
        ("Shop > Guide > Returns", text[text.index("### Late") : text.index("\n\n## Shipping")]),
        ("Shop > Guide", text[text.index("## Shipping") :]),
    ]
    assert all(c.embedded == f"{c.title}\n{text[c.start : c.end]}" for c in chunks)


def test_headings_mean_nothing_in_plain_text_and_in_code():
    text = "```\n# not a heading\nx = 1\n```\n\nwords after"
    assert [c.title for c in cut(text, title="T")] == ["T"]
    assert [c.title for c in cut("# a\n\nb", title="T", markdown=False)] == ["T"]


def test_a_table_is_kept_whole_and_a_larger_one_is_cut_between_rows():
    table = "| a | b |\n|---|---|\n| 1 | 2 |"
    text = f"Some words that stand before it in a paragraph.\n\n{table}\n\nAfter."
    assert any(table in piece for piece in pieces(text, tokens=20))
    rows = [f"| row{i} | {i} |" for i in range(20)]
    parts = pieces("\n".join(rows), tokens=20)
    assert [row for part in parts for row in part.split("\n")] == rows


def test_overlap_repeats_whole_sentences():
    chunks = pieces(LONG, overlap=6)
    for one, following in pairwise(chunks):
        assert following.split(". ")[0] + "." == one.split(". ")[-1]
    assert chunks[0].startswith("Sentence number 0 ")
    assert chunks[-1].endswith("39 says something new.")


def test_what_has_no_sentences_is_cut_at_spaces_and_what_has_no_spaces_anywhere():
    run = " ".join(f"w{i}" for i in range(100))
    assert " ".join(pieces(run)) == run
    blob = "x" * 5000
    parts = pieces(blob)
    assert "".join(parts) == blob
    assert max(map(len, parts)) <= 16 * 20


def test_sentences_end_in_other_scripts():
    text = "これは文です。" * 6
    chunks = Chunker(len, 30, 0).cut(text, "", markdown=False)
    assert "".join(text[c.start : c.end] for c in chunks) == text
    assert all(text[c.start : c.end].endswith("。") and c.end - c.start <= 30 for c in chunks)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        (
            "The pressure of a cold boiler is between 1.2 and\n1.6 bar; above it the valve opens.",
            ["The pressure of a cold boiler is between 1.2 and\n1.6 bar;", "above it the valve opens."],
        ),
        (
            "1. The first item is so long that the editor\n   breaks it\n2. Two\n- Three",
            ["1. The first item is so long that the editor\n   breaks it", "2. Two", "- Three"],
        ),
        ("Acme Ltd\n12 High Street\nLondon", ["Acme Ltd", "12 High Street", "London"]),
        (
            "name: a long value that fills the line to its end\ncolour: blue or green",
            ["name: a long value that fills the line to its end", "colour: blue or green"],
        ),
        (
            "The writer broke this line here himself  \nand went on",
            ["The writer broke this line here himself", "and went on"],
        ),
        ("Setext\n------\nText.\n\nName | Code\n--- | ---\nlid | 7", ["Text.", "Name | Code\n--- | ---\nlid | 7"]),
        ("---\ntitle: Kettle\n---\nText.\n\n```python\nx = 1\ny\n```", ["Text.", "x = 1", "y"]),
    ],
)
def test_sentences_go_on_where_lines_were_broken(text, sentences):
    assert [text[start:end] for start, end in sentence_spans(text)] == sentences


PASSAGE = """seconds: 2
tools: [shop.py]
```

Functions run in a process of their own. If a call takes longer than
`seconds`, the process ends.
"""


@pytest.mark.parametrize(
    ("text", "sentences"),
    [(PASSAGE, ["seconds: 2", "tools: [shop.py]", "Functions run in a process of their own.",
                "If a call takes longer than\n`seconds`, the process ends."]),
     ("A task file names the tools.\n```\nseconds: 2\ntools: [a.b",
      ["A task file names the tools.", "seconds: 2", "tools: [a.b"]),
     ("run with\nyour rights: the process protects from endless loops and crashes, not from all.",
      ["run with\nyour rights: the process protects from endless loops and crashes, not from all."]),
     ("eggs\nmilk\nbread", ["eggs", "milk", "bread"])],
)  # fmt: skip
def test_a_passage_may_begin_inside_code_or_a_line(text, sentences):
    assert [text[start:end] for start, end in sentence_spans(text)] == sentences


def test_a_sentence_is_written_on_one_line():
    assert (
        unwrapped("the autho-\n  rization is well-\nknown and well-known")
        == "the authorization is well-known and well-known"
    )
    assert unwrapped("東京\nです") == "東京です"
    assert unwrapped("| a |\n| b |") == "| a |\n| b |"


def test_headings_may_be_underlined():
    text = f"Guide\n=====\n\n{LONG[:200]}\n\nReturns\n-------\n\n{LONG[:200]}"
    assert {chunk.title for chunk in cut(text)} == {"", "Guide", "Guide > Returns"}
    assert cut(text)[-1].title == "Guide > Returns"


@pytest.mark.parametrize("text", ["", "  \n\n ", "\n"])
def test_nothing_gives_no_chunk(text):
    assert cut(text) == []


def test_long_titles_lose_their_beginning_not_the_text():
    title = " ".join(f"t{i}" for i in range(50))
    chunks = cut(f"## Inner\n\n{LONG}", title=title)
    assert all(words(c.embedded) <= 20 for c in chunks)
    assert chunks[-1].embedded.startswith("Inner\n")
    assert chunks[-1].title == f"{title} > Inner"
