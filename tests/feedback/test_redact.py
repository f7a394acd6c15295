"""Redaction: what is a secret and what only looks like one."""

import pytest

from rung.errors import ConfigError
from rung.feedback import capture
from rung.feedback.capture import Redactor


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("mail me at ann.o+x@mail.example.co.uk, please", "mail me at [email], please"),
        ("a@b is no address, nor is @ann", "a@b is no address, nor is @ann"),
        ("DE89 3704 0044 0532 0130 00 and GB82WEST12345698765432", "[iban] and [iban]"),
        ("DE89 3704 0044 0532 0130 01 has a wrong check digit", "DE89 3704 0044 0532 0130 01 has a wrong check digit"),
        ("card 4111 1111 1111 1111, 5500-0000-0000-0004 or 378282246310005", "card [card], [card] or [card]"),
        ("4111 1111 1111 1112 and the sum 4111111111111112", "4111 1111 1111 1112 and the sum 4111111111111112"),
        ("34 34 34 34 34 34 34 34 are numbers", "34 34 34 34 34 34 34 34 are numbers"),
        ("key sk-proj-abcdefghij0123456789ABCDEF!", "key [api-key]!"),
        ("AKIAIOSFODNN7EXAMPLE and ghp_" + "a1" * 18, "[api-key] and [api-key]"),
        ("Authorization: Bearer abcdefghijklmnop.qrst", "Authorization: Bearer [api-key]"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc_-9", "[api-key]"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\nbye", "[api-key]\nbye"),
        ("a task-oriented risk-assessment of sk-ipping", "a task-oriented risk-assessment of sk-ipping"),
    ],
)
def test_what_is_stored(text, stored):
    assert Redactor().text(text) == stored


def test_own_patterns_and_a_choice_of_the_built_in_ones():
    redact = Redactor(["email"], {"customer": r"\bC-\d{6}\b"})
    assert redact.text("C-123456 a@b.example 4111 1111 1111 1111") == "[customer] [email] 4111 1111 1111 1111"
    for names, own, code in ((["e-mail"], {}, "unknown-name"), ([], {"x": "("}, "bad-option")):
        with pytest.raises(ConfigError) as raised:
            Redactor(names, own)
        assert raised.value.code == code


def test_an_interaction_keeps_its_place_in_the_split(make):
    row = make(1, inputs={"turns": [{"role": "user", "content": "I am a@b.example"}], "n": 5}, actual="Hi a@b.example")
    hidden = Redactor().interaction(row)
    assert hidden.inputs == {"turns": [{"role": "user", "content": "I am [email]"}], "n": 5}
    assert hidden.actual == "Hi [email]"
    assert (hidden.split, hidden.input_id, hidden.prompt_sha256) == (row.split, row.input_id, row.prompt_sha256)


@pytest.mark.parametrize(
    "piece", ["eyJaaaaaaaa-", "-eyJaaaaaaaa", "eyJaaaaaaaa.", "sk-a-", "-----BEGIN PRIVATE KEY-----", "a.b+c@", "4111 "]
)
def test_a_long_text_takes_time_in_proportion(piece):
    # with a quadratic pattern, a text of this length takes many minutes
    Redactor().text(piece * (1_000_000 // len(piece)))


def test_keys_inside_values_are_redacted_and_none_gets_lost(make):
    inputs = {"text": {"a@b.example": 1, "c@d.example": [{"e@f.example": "g@h.example"}]}}
    stored = Redactor().interaction(make(1, inputs=inputs)).inputs
    assert stored == {"text": {"[email]": 1, "[email] 2": [{"[email]": "[email]"}]}}


def test_an_own_pattern_that_takes_too_long_keeps_nothing_of_the_text(monkeypatch):
    monkeypatch.setattr(capture, "OWN_SECONDS", 0.05)
    redact = Redactor([], {"slow": "(?:a|aa)+$"})
    assert redact.text("aaa") == "[slow]"
    assert redact.text("a" * 60 + "!") == "[slow: not matched within 0.05 s]"
