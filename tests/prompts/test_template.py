import pytest

from rung.data.spec import placeholders
from rung.errors import ConfigError
from rung.prompts.prompt import default_template, substitute


def test_values_are_inserted_as_they_are():
    # A value that looks like a template, or like Jinja, stays what it is.
    assert substitute("{a} and {b}", {"a": "{b}", "b": "{{ 7*7 }}"}) == "{b} and {{ 7*7 }}"


def test_double_braces_are_literal():
    assert substitute('{{"x": "{a}"}}', {"a": "1"}) == '{"x": "1"}'


def test_no_attribute_access():
    assert placeholders("{a.__class__}") == ("a.__class__",)
    with pytest.raises(KeyError):
        substitute("{a.__class__}", {"a": "1"})


@pytest.mark.parametrize("broken", ["{a", "a}", "{a}}"])
def test_single_brace_is_an_error(broken):
    with pytest.raises(ConfigError) as caught:
        placeholders(broken)
    assert caught.value.code == "bad-template"


def test_default_templates():
    assert default_template(["text"]) == "{text}"
    assert default_template(["title", "review_text"]) == "Title: {title}\nReview text: {review_text}"
