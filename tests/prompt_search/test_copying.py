from rung.data.rows import Example
from rung.prompt_search.writer import CopyGuard

ROWS = (
    Example("1", {"text": "My card has not arrived after two weeks"}, ("card_arrival",), "train.csv:2"),
    Example("2", {"text": "Where is it?"}, ("card_arrival",), "train.csv:3"),
    Example("3", {"text": "Hello!"}, ("greeting",), "train.csv:4"),
)


def test_six_words_in_a_row_are_a_copy_whatever_case_and_punctuation():
    guard = CopyGuard(ROWS)
    assert guard.copied('For instance "my CARD has not, arrived after" is late') == "train.csv:2"
    assert guard.copied("The card has not arrived after two") == "train.csv:2"
    assert guard.copied("My card has not arrived, so find out why") == ""


def test_a_short_row_is_a_copy_as_a_whole_and_a_greeting_is_none():
    guard = CopyGuard(ROWS)
    assert guard.copied("If asked where is it, say so") == "train.csv:3"
    assert guard.copied("Say hello first") == ""


def test_what_the_task_says_itself_may_be_said():
    guard = CopyGuard(ROWS, ["Customers ask: where is it? Find out."])
    assert guard.copied("Customers ask where is it") == ""
