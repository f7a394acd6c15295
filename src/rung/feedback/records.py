"""What the store holds beside interactions: feedback, corrections, promotions; and Case, all of one interaction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, get_args

from rung.feedback.interaction import Interaction, Side

Thumb = Literal["up", "down"]
Reason = Literal["bad feedback", "invalid output", "unfinished", "retrieval miss", "disagreement", "low confidence"]
REASONS: tuple[Reason, ...] = get_args(Reason)  # in the order in which they are worth a look
LOW_CONFIDENCE = 0.5
FINISHED = ("stop", "tool_calls")  # an answer that ended otherwise was cut
Mode = Literal["shadow", "ab"]
SPACE = " \t\n\r\f\v"  # around a response, it makes no difference


@dataclass(frozen=True, slots=True)
class Feedback:
    """What somebody, or a check, said of an answer.

    Attributes:
        interaction: id of the interaction.
        thumb: `up` or `down`, or None.
        score: in [0, 1], or None.
        comment: in words; may be empty.
        expected: what should have been answered; a suggestion, until a reviewer confirms it by a correction.
        source: `user`, `check` (the answer breaks the task's rules), `artifact:FINGERPRINT` (what another answers).
        key: id of the API key that it came with.
        at, number: given by the store.
    """

    interaction: str
    thumb: Thumb | None = None
    score: float | None = None
    comment: str = ""
    expected: str | None = None
    source: str = "user"
    key: str | None = None
    at: datetime | None = None
    number: int = 0


@dataclass(frozen=True, slots=True)
class Correction:
    """One entry of an interaction's history: an expected response, or the undoing of an earlier entry."""

    number: int
    interaction: str
    at: datetime
    reviewer: str
    expected: str | None
    comment: str
    undoes: int | None


@dataclass(frozen=True, slots=True)
class Case:
    """An interaction with what is known of it now.

    Attributes:
        interaction: what was asked and answered.
        expected: the reviewed expected response, or None where nobody reviewed it.
        reviewer: who gave it last.
        reasons: why the answer is suspicious; empty where nothing speaks against it.
        suggestion: the expected response that feedback or another artifact named last, unreviewed.
    """

    interaction: Interaction
    expected: str | None
    reviewer: str | None
    reasons: tuple[Reason, ...]
    suggestion: str | None

    @property
    def reviewed(self) -> bool:
        """Whether a reviewer said what was expected."""
        return self.expected is not None

    @property
    def failure(self) -> bool:
        """Whether it was reviewed and found wrong."""
        return self.expected is not None and self.expected.strip(SPACE) != self.interaction.actual.strip(SPACE)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was said of an answer that was sent, as far as a trial reads it.

    Attributes:
        interaction: id of the answer.
        at: when something was first said; the order of a trial's rows.
        expected: the correction that holds, else the response that a user expected last, or None.
        score: of the first thumb or score of a user, 1 for up and 0 for down; or None.
    """

    interaction: str
    at: datetime
    expected: str | None
    score: float | None


@dataclass(frozen=True, slots=True)
class Filter:
    """Which cases; every field that is not None narrows.

    Attributes:
        task, artifact, split: of the interaction.
        reason: one reason for suspicion.
        suspicious: whether there is any.
        reviewed: whether it has a correction that holds.
        failure: whether it was reviewed and found wrong.
        text: stands in the inputs, the actual or the expected response, whatever the case.
        low_confidence: what counts as low.
        trial: token of the trial that it is part of.
    """

    task: str | None = None
    artifact: str | None = None
    split: Side | None = None
    reason: Reason | None = None
    suspicious: bool | None = None
    reviewed: bool | None = None
    failure: bool | None = None
    text: str | None = None
    low_confidence: float = LOW_CONFIDENCE
    trial: str | None = None


EVERYTHING = Filter()
QUEUE = Filter(suspicious=True, reviewed=False)


@dataclass(frozen=True, slots=True)
class Promotion:
    """A switch of what is served.

    Attributes:
        token: names it.
        at: when.
        task: whose server switches.
        kind: `promote`, or `rollback`.
        artifact: fingerprint of what is served from then on.
        folder: where it lies, relative to the registry.
        below: token of the promotion that a rollback returns to; None for the first.
        reviewer: who decided.
        evidence: the numbers that spoke for it.
    """

    token: str
    at: datetime
    task: str
    kind: Literal["promote", "rollback"]
    artifact: str
    folder: str
    below: str | None
    reviewer: str
    evidence: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Challenge:
    """A trial of one artifact beside the one that is served.

    Attributes:
        token: names it, and draws who answers what.
        at: when it was started.
        task: whose requests.
        mode: `shadow`: the challenger answers behind every response; `ab`: it answers a share of the inputs.
        share: of the inputs that the challenger answers; 1 for a shadow.
        most: pairs after which it ends undecided.
        artifact: fingerprint of the challenger.
        folder: where that lies, relative to the registry.
        against: fingerprint of what was served when it was started; beside anything else it does not run.
        ended: when it was stopped, or None.
    """

    token: str
    at: datetime
    task: str
    mode: Mode
    share: float
    most: int
    artifact: str
    folder: str
    against: str
    ended: datetime | None = None

    def runs(self, now: Promotion | None) -> bool:
        """Tell whether it runs: it was not stopped, and what is served now is what it was started against."""
        return self.ended is None and now is not None and now.artifact == self.against
