"""Redaction: secrets and personal numbers are replaced by the name of what they were, before anything is stored."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rung.errors import ConfigError
from rung.feedback.interaction import Interaction

_API_KEY = r"""
    \b(?:sk|pk|rk|rung)[-_](?:[A-Za-z0-9]+[-_])*[A-Za-z0-9_-]{16,}  # OpenAI, Anthropic, Stripe, our own
  | \bgh[pousr]_[A-Za-z0-9]{36,} | \bgithub_pat_\w{22,} | \bglpat-[\w-]{20,}
  | \b(?:AKIA|ASIA)[A-Z0-9]{16}\b | \bAIza[\w-]{35} | \bhf_[A-Za-z0-9]{30,} | \bxox[abprs]-[\w-]{10,}
  | \beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*  # a JSON web token
  | (?<=[Bb]earer\ )[\w.~+/-]{16,}=*
  | -----BEGIN[ A-Z]*PRIVATE\ KEY-----[\s\S]*?(?:-----END[ A-Z]*PRIVATE\ KEY-----|\Z)
"""
_EMAIL = r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,63}\b"
_IBAN = r"\b[A-Z]{2}\d{2}(?:[ ]?[A-Z0-9]{4}){2,7}(?:[ ]?[A-Z0-9]{1,3})?\b"
# As cards are printed, or all digits together; other runs of numbers pass Luhn's sum one time in ten.
_CARD = r"(?<![\d.])(?:[2-6]\d{12,18}|[2-6]\d{3}([ -])\d{4}\1\d{4}\1\d{1,7}|3\d{3}([ -])\d{6}\2\d{4,5})(?![\d.]\d|\d)"


def _is_iban(text: str) -> bool:
    """Check an account number by its check digits (ISO 13616: the rearranged number is 1 modulo 97)."""
    compact = text.replace(" ", "")
    return int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def _is_card(text: str) -> bool:
    """Check a payment card's number by Luhn's sum."""
    digits = [int(c) for c in text if c.isdigit()][::-1]
    return sum(sum(divmod(2 * d, 10)) if i % 2 else d for i, d in enumerate(digits)) % 10 == 0


@dataclass(frozen=True, slots=True)
class Pattern:
    """What is replaced by `[name]`: matches of `regex` that pass `check`."""

    name: str
    regex: re.Pattern[str]
    check: Callable[[str], bool] = field(default=lambda text: True)

    def apply(self, text: str) -> str:
        """Return the text without what the pattern finds."""
        return self.regex.sub(lambda m: f"[{self.name}]" if self.check(m.group()) else m.group(), text)


BUILT_IN: Mapping[str, Pattern] = {
    pattern.name: pattern
    for pattern in (
        Pattern("api-key", re.compile(_API_KEY, re.VERBOSE)),
        Pattern("email", re.compile(_EMAIL)),
        Pattern("iban", re.compile(_IBAN), _is_iban),
        Pattern("card", re.compile(_CARD), _is_card),
    )
}


class Redactor:
    """Applies patterns, in order, to all text of an interaction that somebody else wrote."""

    def __init__(self, names: Sequence[str] = tuple(BUILT_IN), own: Mapping[str, str] | None = None) -> None:
        """Choose what is redacted.

        Args:
            names: of the built-in patterns: api-key, email, iban, card.
            own: regular expressions of the user's, by the name that stands in place of their matches.

        Raises:
            ConfigError: `unknown-pattern` or `bad-pattern`.
        """
        for name in names:
            if name not in BUILT_IN:
                raise ConfigError(
                    "unknown-pattern", f"no pattern is named {name!r}", hint=f"choose {', '.join(BUILT_IN)}"
                )
        self.patterns = [BUILT_IN[name] for name in names] + [_own(name, text) for name, text in (own or {}).items()]

    def text(self, text: str) -> str:
        """Return a text, redacted."""
        for pattern in self.patterns:
            text = pattern.apply(text)
        return text

    def value(self, value: Any) -> Any:
        """Return a JSON value, its texts redacted; keys are the task's and stay."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {key: self.value(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(item) for item in value]
        return value

    def interaction(self, row: Interaction) -> Interaction:
        """Return an interaction, inputs and actual response redacted; its side of the split and its input_id stay."""
        return replace(row, inputs=self.value(row.inputs), actual=self.text(row.actual))


def _own(name: str, text: str) -> Pattern:
    try:
        return Pattern(name, re.compile(text))
    except re.error as error:
        raise ConfigError(
            "bad-pattern",
            f"the pattern {name!r} is no regular expression: {error}",
            hint="write it as Python's re does",
        ) from None
