"""Texts of all languages: one form of Unicode, words of all scripts, numbers as people write them."""

from __future__ import annotations

import pytest
from rouge_score import tokenize

from rung.data.texts import canonical, number_text, numbers, read_number, spelling, whole_word, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Größe, Grüße", ["größe", "grüße"]),
        ("gro\u0308ße", ["größe"]),  # two codes for one character
        ("Привет, мир!", ["привет", "мир"]),
        ("مرحبا بالعالم", ["مرحبا", "بالعالم"]),
        ("मैं हिन्दी पढ़ता हूँ", [canonical(w) for w in ["मैं", "हिन्दी", "पढ़ता", "हूँ"]]),
        ("今天 GPT4 很好。", ["今", "天", "gpt4", "很", "好"]),
        ("ありがとう", list("ありがとう")),
        ("สวัสดี", ["ส", "วั", "ส", "ดี"]),  # a character with its marks
        ("ខ្មែរ", ["ខ្", "មែ", "រ"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("ΟΔΟΣ", ["οδος"]),
        ("ok\u200b \ufeffgo", ["ok", "go"]),
        ("it’s snake_case", ["it", "s", "snake", "case"]),
        ("wow 😀", ["wow", "😀"]),
        ("?!", ["?", "!"]),
        ("", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_english_words_are_those_of_rouge_score() -> None:
    for text in ("The 3 runners' run-up -- don't stop_now, U.S. $5.00!", "a b\tc\nd", "x2 (y3)"):
        assert words(text) == tokenize.tokenize(text, None)


def test_spellings_of_a_label() -> None:
    assert len({spelling(text) for text in ("Café au lait", "cafe\u0301  au lait", "CAFÉ\u00a0au lait\u200b")}) == 1
    assert spelling("ＡＢ１") == spelling("ab1")
    assert [spelling(text) for text in ("1.0", "-2.0", "v1.0", "x²")] == ["1", "-2", "v1.0", "x²"]
    assert spelling("Maße") != spelling("Masse")
    assert spelling("resume") != spelling("résumé")


def test_whole_words_of_every_script() -> None:
    assert whole_word("正面").search("答案是正面。")
    assert whole_word("card").search("a Card.")
    assert not whole_word("card").search("cards")
    assert not whole_word("कम").search("कमी है")  # a mark belongs to the word
    assert whole_word("c++").search("I write C++ here")


@pytest.mark.parametrize(
    ("text", "decimal", "value"),
    [
        ("1234", ".", 1234), ("1,234.5", ".", 1234.5), ("1.234,5", ",", 1234.5), ("1 234", ".", 1234),
        ("1\u202f234,5", ",", 1234.5), ("1'234'567.5", ".", 1234567.5), ("12,34,567", ".", 1234567),
        ("-.5", ".", -0.5), ("−5", ".", -5), ("+5", ".", 5), ("1e6", ".", 1e6), ("2.5e−3", ".", 0.0025),
        ("½", ".", 0.5), ("1½", ".", 1.5), ("3 1/2", ".", 3.5), ("-1/4", ".", -0.25), ("1⁄2", ".", 0.5),
        ("٣", ".", 3), ("٣٫٥", ".", 3.5), ("١٬٢٣٤", ",", 1234), ("５", ".", 5), ("३.५", ".", 3.5),
        ("1.234", ".", 1.234), ("1.234", ",", 1234), ("1,234", ".", 1234), ("1,234", ",", 1.234), ("3,5", ",", 3.5),
    ],
)  # fmt: skip
def test_numbers_as_people_write_them(text: str, decimal: str, value: float) -> None:
    assert read_number(text, decimal) == pytest.approx(value, rel=1e-15)  # type: ignore[arg-type]
    assert read_number(number_text(value)) == value


@pytest.mark.parametrize(
    ("text", "unit", "value"), [("12 %", "%", 12), ("-$1,234.50", "$", -1234.5), ("€5", "€", 5), ("7", "kg", 7)]
)
def test_a_unit_that_was_named(text: str, unit: str, value: float) -> None:
    assert read_number(text, unit=unit) == value


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not a number"), ("nan", "not a number"), ("inf", "not a number"), ("5 %", "not a number"),
        ("1/2/2024", "not a number"), ("12 apples", "not a number"), ("1 23", "not a number"),
        ("3,5", "with `,` it is"), ("1.234,5", "with `,` it is"), ("0,123", "with `,` it is"),
        ("1.2.3", "with the decimal mark"), ("1,23,45", "with the decimal mark"), ("1/0", "with the decimal mark"),
        ("1" * 400, "with the decimal mark"),
    ],
)  # fmt: skip
def test_no_number_is_guessed(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_number(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It costs $1,234.50.", ["1234.50"]), ("3,5 m and 1.234,5 km", ["3.5", "1234.5"]), ("5-3", ["5", "3"]),
        ("x = -5", ["-5"]), ("- 5 apples", ["5"]), ("1,2,3", ["1", "2", "3"]), ("половина: ½", ["0.5"]),
        ("答案是１２。", ["12"]), ("none", []), ("in 2019 300 people", ["2019", "300"]),
    ],
)  # fmt: skip
def test_numbers_in_a_text(text: str, expected: list[str]) -> None:
    assert numbers(text) == expected
