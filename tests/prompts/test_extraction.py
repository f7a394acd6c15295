import pytest

from rung.prompts.extraction import extracted, is_number, majority

LABELS = ("transfer", "transfer fee", "card arrival")


@pytest.mark.parametrize(
    ("text", "how", "expected"),
    [
        ("3 + 4 = 7.\nAnswer: 7", "number", "7"),
        ("Answer: $1,250.50 in all", "number", "1250.5"),
        ("Answer: 04.00", "number", "4"),
        ("Answer: -0.0", "number", "0"),
        ("So 3 of the 12 are left.", "number", "12"),
        ("Answer: −5", "number", "-5"),
        ("Answer: 3 apples, not 4", "number", "3"),
        ("I do not know", "number", ""),
        ("Answer: first\nNo, wait.\n**Answer:** `second`", "text", "second"),
        ("no marker", "text", ""),
        ("It is late.\nanswer: Transfer Fee.", "label", "transfer fee"),
        ("Not card arrival, but a transfer", "label", "transfer"),
        ("Answer: none of them. It may be card arrival", "label", "card arrival"),
        ("transferred", "label", ""),
    ],
)
def test_answers_are_found(text, how, expected):
    assert extracted(text, how, LABELS) == expected


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["a", "b", "b"], ("b", 2 / 3)),
        (["b", "a", "a", "b"], ("b", 0.5)),
        (["", "", "a"], ("a", 1 / 3)),
        (["", ""], ("", 0.0)),
    ],
)
def test_the_majority_wins_and_silence_never_does(answers, expected):
    assert majority(answers) == expected


def test_numbers():
    assert [is_number(text) for text in ("18", "-1,000.5", "18 apples", "")] == [True, True, False, False]
