"""Capture: the response path offers interactions, and one thread redacts them and writes them to the store in batches.

The queue is bounded in number and in size. What does not fit is dropped and counted: a slow store must never delay an
answer. In `counts`, offered = left out + dropped + waiting + written.

Redaction replaces secrets and personal numbers by the name of their kind before anything is stored.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self, get_args

from rung.data.rows import place_of
from rung.errors import ConfigError, MachineError, needed_by
from rung.feedback.records import Interaction
from rung.feedback.store import FeedbackStore

CaptureMode = Literal["off", "sampled", "on"]
BATCH = 256  # interactions in one transaction
GATHER = 0.05  # seconds that a batch may wait for more interactions
OWN_SECONDS = 2.0  # for one text and one pattern of the user
RETRY = 1.0  # seconds between attempts while the store cannot be written

_API_KEY = r"""
    \b(?:sk|pk|rk|rung)[-_](?:[A-Za-z0-9]+[-_])*[A-Za-z0-9_-]{16,}  # OpenAI, Anthropic, Stripe, our own
  | \bgh[pousr]_[A-Za-z0-9]{36,} | \bgithub_pat_\w{22,} | \bglpat-[\w-]{20,}
  | \b(?:AKIA|ASIA)[A-Z0-9]{16}\b | \bAIza[\w-]{35} | \bhf_[A-Za-z0-9]{30,} | \bxox[abprs]-[\w-]{10,}
  | (?<![\w-])eyJ[\w-]{8,}+\.[\w-]{8,}+\.[\w-]*+  # a JSON web token; no start inside another run: linear
  | (?<=[Bb]earer\ )[\w.~+/-]{16,}=*
  | -----BEGIN[ A-Z]*PRIVATE\ KEY-----[\s\S]*?(?:-----END[ A-Z]*PRIVATE\ KEY-----|\Z)
"""
_EMAIL = r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,63}\b"
_IBAN = r"\b[A-Z]{2}\d{2}(?:[ ]?[A-Z0-9]{4}){2,7}(?:[ ]?[A-Z0-9]{1,3})?\b"
# As cards are printed, or all digits together; one in ten other runs of digits passes Luhn's sum.
_CARD = r"(?<![\d.])(?:[2-6]\d{12,18}|[2-6]\d{3}([ -])\d{4}\1\d{4}\1\d{1,7}|3\d{3}([ -])\d{6}\2\d{4,5})(?![\d.]\d|\d)"


def _is_iban(text: str) -> bool:
    """Verify an account number's check digits (ISO 13616: the rearranged number is 1 modulo 97)."""
    compact = text.replace(" ", "")
    return int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def _is_card(text: str) -> bool:
    """Verify a payment card's number by Luhn's sum."""
    digits = [int(c) for c in text if c.isdigit()][::-1]
    return sum(sum(divmod(2 * d, 10)) if i % 2 else d for i, d in enumerate(digits)) % 10 == 0


@dataclass(frozen=True, slots=True)
class Pattern:
    """Matches of `regex` that pass `check` are replaced by `[name]`."""

    name: str
    regex: re.Pattern[str]
    check: Callable[[str], bool] = field(default=lambda text: True)

    def apply(self, text: str) -> str:
        """Redact a text."""
        return self.regex.sub(lambda m: f"[{self.name}]" if self.check(m.group()) else m.group(), text)


@dataclass(frozen=True, slots=True)
class OwnPattern:
    """A pattern of the user, which may take very long on some text: after `OWN_SECONDS` the whole text is replaced."""

    name: str
    regex: Any

    def apply(self, text: str) -> str:
        """Redact a text; the interpreter's lock is free meanwhile."""
        try:
            return str(self.regex.sub(lambda _: f"[{self.name}]", text, timeout=OWN_SECONDS, concurrent=True))
        except TimeoutError:
            return f"[{self.name}: not matched within {OWN_SECONDS:g} s]"


BUILT_IN: Mapping[str, Pattern] = {
    "api-key": Pattern("api-key", re.compile(_API_KEY, re.VERBOSE)),
    "email": Pattern("email", re.compile(_EMAIL)),
    "iban": Pattern("iban", re.compile(_IBAN), _is_iban),
    "card": Pattern("card", re.compile(_CARD), _is_card),
}


class Redactor:
    """Applies patterns, in order, to the inputs and the response of an interaction."""

    def __init__(self, names: Sequence[str] = tuple(BUILT_IN), own: Mapping[str, str] | None = None) -> None:
        """Choose built-in patterns by name, and add `own` regular expressions by the name that replaces matches.

        Raises:
            ConfigError: `unknown-name` or `bad-option`.
        """
        if unknown := [name for name in names if name not in BUILT_IN]:
            hint = f"choose {', '.join(BUILT_IN)}"
            raise ConfigError("unknown-name", f"no pattern is named {unknown[0]!r}", hint=hint)
        self.patterns: list[Pattern | OwnPattern] = [BUILT_IN[name] for name in names]
        for name, expression in (own or {}).items():
            with needed_by("a pattern of your own", extra="serve"):
                import regex
            try:
                self.patterns.append(OwnPattern(name, regex.compile(expression)))
            except regex.error as error:
                problem = f"the pattern {name!r} is not a regular expression: {error}"
                raise ConfigError("bad-option", problem, hint="use the syntax of Python's `re`") from None

    def text(self, text: str) -> str:
        """Redact a text."""
        for pattern in self.patterns:
            text = pattern.apply(text)
        return text

    def value(self, value: Any) -> Any:
        """Redact the texts in a JSON value, keys included; keys that become alike are numbered."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            redacted: dict[str, Any] = {}
            for key, item in value.items():
                name = unique = self.text(str(key))
                while unique in redacted:
                    unique = f"{name} {len(redacted) + 1}"
                redacted[unique] = self.value(item)
            return redacted
        if isinstance(value, list | tuple):
            return [self.value(item) for item in value]
        return value

    def interaction(self, row: Interaction) -> Interaction:
        """Redact inputs and response; `split` and `input_id` stay those of the original inputs."""
        inputs = {column: self.value(value) for column, value in row.inputs.items()}  # columns come from the task
        return replace(row, inputs=inputs, actual=self.text(row.actual))


@dataclass(frozen=True, slots=True)
class CaptureCounts:
    """How many interactions were offered, and what became of them."""

    offered: int
    left_out: int  # by the mode: off, or not in the sample
    dropped: int  # the queue was full, the store refused the row, or it could not be written before capture closed
    waiting: int  # in the queue
    written: int  # in the store
    error: str  # of the last attempt to write; empty after a success


class Capture:
    """Writes offered interactions to a store. `offer` never waits and never raises; `close` writes what is queued."""

    def __init__(
        self, store: FeedbackStore, mode: CaptureMode = "on", rate: float = 1.0, redact: Redactor | None = None,
        *, max_waiting: int = 10_000, max_characters: int = 64_000_000,
    ) -> None:  # fmt: skip
        """Start the writer.

        `rate` is the share of interactions in a sample, in (0, 1]. The queue holds at most `max_waiting` interactions
        with `max_characters` of text. A wrong mode or rate is a ConfigError, `bad-option`.
        """
        if mode not in get_args(CaptureMode):
            raise ConfigError("bad-option", f"unknown capture mode {mode!r}", hint="choose off, sampled or on")
        if not 0 < rate <= 1 or (mode != "sampled" and rate != 1):
            raise ConfigError(
                "bad-option", f"a rate of {rate:g} with mode {mode}", hint="a rate above 0 and below 1 needs `sampled`"
            )
        self.store, self.mode, self.rate = store, mode, rate
        self.redact = redact or Redactor()
        self._max_waiting, self._max_characters = max_waiting, max_characters
        self._queue: deque[Interaction] = deque()
        self._characters = self._offered = self._left_out = self._refused = 0
        self._accepted = self._written = self._lost = 0
        self._error = ""
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="rung-capture", daemon=True)
        self._thread.start()

    def offer(self, interaction: Interaction) -> None:
        """Queue one interaction, or count why not."""
        with self._changed:
            self._offered += 1
            if not self.takes(interaction.shadows or interaction.id):
                self._left_out += 1
                return
            size = _size(interaction)
            full = len(self._queue) >= self._max_waiting or self._characters + size > self._max_characters
            if full or self._closing:
                self._refused += 1
                return
            self._queue.append(interaction)
            self._accepted += 1
            self._characters += size
            if len(self._queue) in (1, BATCH):  # otherwise the writer has nothing new to do
                self._changed.notify_all()

    def takes(self, identity: str) -> bool:
        """Whether the mode keeps an interaction; a shadow is kept with the interaction that it shadows."""
        return self.mode == "on" or (self.mode == "sampled" and place_of(identity) < self.rate)

    @property
    def counts(self) -> CaptureCounts:
        """A snapshot of the counts."""
        with self._changed:
            waiting = self._accepted - self._written - self._lost
            dropped = self._refused + self._lost
            return CaptureCounts(self._offered, self._left_out, dropped, waiting, self._written, self._error)

    def flush(self, timeout: float = 30.0) -> bool:
        """Wait until everything accepted so far is written or given up; return whether that happened in time."""
        with self._changed:
            target = self._accepted
            return self._changed.wait_for(lambda: self._written + self._lost >= target, timeout)

    def close(self, timeout: float = 30.0) -> CaptureCounts:
        """Accept nothing more, write the queue, stop the writer; what could not be written counts as dropped."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout)
        return self.counts

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.close()

    # ---- the writer's thread

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing)
                self._changed.wait_for(lambda: len(self._queue) >= BATCH or self._closing, GATHER)
                batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
                self._characters -= sum(map(_size, batch))
            if not batch:
                return
            self._write([self.redact.interaction(row) for row in batch])

    def _write(self, rows: list[Interaction]) -> None:
        """Write rows; retry while the store cannot be written, and give up only rows that it refuses."""
        while True:
            try:
                self.store.record(rows)
                return self._account(written=len(rows), error="")
            except MachineError as error:
                with self._changed:
                    self._error = str(error)
                    if self._changed.wait_for(lambda: self._closing, RETRY):
                        return self._account(lost=len(rows), error=str(error))
            except Exception as error:
                # A row that the store refuses must not stop the others or this thread: it is counted, with the reason.
                if len(rows) == 1:
                    return self._account(lost=1, error=f"{type(error).__name__}: {error}")
                for row in rows:
                    self._write([row])
                return None

    def _account(self, *, written: int = 0, lost: int = 0, error: str) -> None:
        with self._changed:
            self._written += written
            self._lost += lost
            self._error = error
            self._changed.notify_all()


def _size(row: Interaction) -> int:
    """About how many characters an interaction holds."""
    return len(row.actual) + sum(len(v) if isinstance(v, str) else len(str(v)) for v in row.inputs.values())
