import re
from pathlib import Path

import pytest

import rung
from rung.errors import Explanation, explanations, parse

RAISED = re.compile(r'[Ee]rror\(\s*"([a-z][a-z0-9-]+)"')


def test_every_code_that_is_raised_is_explained_and_none_else():
    source = Path(rung.__file__).parent
    raised = {code for file in source.rglob("*.py") for code in RAISED.findall(file.read_text())}
    assert raised == set(explanations())


def test_explanations_are_sorted_and_complete():
    assert list(explanations()) == sorted(explanations())
    for code, entry in explanations().items():
        assert all(text.endswith(".") for text in (entry.meaning, entry.why, entry.fix)), code
        assert str(entry).startswith(entry.meaning)


ONE = "## one\n\nIt is\none.\n\n**Why:** Because.\n\n**Fix:** Make it two,\nor three.\n"
TWO = "## two\n\nTwo.\n\n**Why:** So.\n\n**Fix:** Go.\n\n```\nrung  check\n\n  more\n```\n"


def test_lines_of_a_paragraph_are_joined_and_those_of_an_example_kept():
    assert parse(f"# Title\n\nNot read.\n\n{ONE}\n{TWO}") == {
        "one": Explanation("It is one.", "Because.", "Make it two, or three."),
        "two": Explanation("Two.", "So.", "Go.", "rung  check\n\n  more"),
    }


def test_an_explanation_is_told_with_its_headings():
    assert str(parse(TWO)["two"]) == (
        "Two.\n\nWhy it is an error: So.\n\nWhat to do: Go.\n\nExample:\n  rung  check\n  \n    more"
    )


@pytest.mark.parametrize(
    "text",
    [
        ONE.replace("**Why:**", "Why:"),
        ONE.replace("\n\n**Fix:** Make it two,\nor three.", ""),
        ONE + "\nA fourth paragraph.\n",
        TWO.replace("more\n```", "more"),
    ],
)
def test_an_entry_of_another_form_is_an_error(text):
    with pytest.raises(ValueError, match=r"^the entry of \w+ is not"):
        parse(text)


def test_a_code_with_two_entries_is_an_error():
    with pytest.raises(ValueError, match="the code one has two entries"):
        parse(f"{ONE}\n{ONE}")
