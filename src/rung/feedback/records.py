"""What the feedback store holds (interactions, feedback, corrections, promotions) and the defaults of its commands."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from rung.data.examples import read_inputs
from rung.data.rows import example_id, hash_of, place_of

if TYPE_CHECKING:
    from rung.artifact.artifact import Artifact
    from rung.artifact.decoder import Answer
    from rung.task import Task

STORE = "failures.db"
REGISTRY = Path("registry")
SHARE = 0.1  # of the inputs that a challenger answers in an A/B trial
PAIRS = 10_000  # after which a trial ends undecided
LOW_CONFIDENCE = 0.5
FINISHED = ("stop", "tool_calls")  # an answer with another finish reason was cut short
SPACE = " \t\n\r\f\v"  # ignored around a response when it is compared

Side = Literal["train", "test"]
Thumb = Literal["up", "down", "none"]  # `none` takes the earlier feedback back
TrialMode = Literal["shadow", "ab"]
Reason = Literal["bad feedback", "invalid output", "unfinished", "retrieval miss", "disagreement", "low confidence"]
REASONS: tuple[Reason, ...] = get_args(Reason)  # the most suspicious first


@dataclass(frozen=True, slots=True)
class SplitRule:
    """Assigns an input to the training or the test side by its hash, which also cuts the test rows off a file.

    The few rows of a file that the hash alone would not have put into the test are known by their id.
    """

    seed: int = 0
    test: float = 0.2  # share of the inputs that nothing is trained on
    group: str | None = None  # a column; used where it is among the inputs

    @classmethod
    def of(cls, task: Task) -> SplitRule:
        """The rule under `data.split` of a task's file."""
        split = task.data.split
        return cls(split.seed, split.test, split.group)

    def side(self, inputs: Mapping[str, Any]) -> Side:
        """The side of an input; inputs that differ only in case and spaces share a side."""
        group = str(inputs[self.group]) if self.group is not None and inputs.get(self.group) else None
        return "test" if place_of(f"{self.seed}/{group or example_id(inputs)}") < self.test else "train"


DEFAULT_RULE = SplitRule()


@dataclass(frozen=True, slots=True)
class Interaction:
    """One answered request."""

    id: str  # of the response that the client received; at most 80 characters
    at: datetime  # when it was answered, in UTC
    task: str  # empty for a request to the bare base model
    artifact: str  # fingerprint of the artifact that answered
    model: str  # fingerprint of the base model
    system: str  # the system message, or empty
    template: str  # the user turn with {column} for the inputs; empty where the only input holds the messages
    template_version: str  # fingerprint of the whole prompt
    inputs: Mapping[str, Any]  # the task's input columns
    prompt_sha256: str  # of the exact messages that the model read
    actual: str  # the answer
    confidence: float | None  # probability of the answer
    prompt_tokens: int
    completion_tokens: int
    seconds: float  # from the request's arrival to the last token
    key: str | None  # id of the API key, never the key
    finish: str  # `stop`, or why the answer was cut: `length`, `cancelled`, ...
    split: Side  # fixed at capture; `test` never enters training
    input_id: str = ""  # hash of the original inputs, which redaction does not change; empty: computed from `inputs`
    trial: str = ""  # token of the trial that it belongs to, or empty
    shadows: str = ""  # id of the interaction that a challenger answered again, unseen by the client; empty if sent
    missed: bool = False  # retrieval found nothing relevant

    def __post_init__(self) -> None:
        if not self.input_id:
            object.__setattr__(self, "input_id", example_id(self.inputs))


def interaction_of(
    artifact: Artifact, inputs: Mapping[str, Any], answer: Answer, *, id: str,  # noqa: A002
    artifact_fingerprint: str, model_fingerprint: str, finish: str = "stop", seconds: float | None = None,
    key: str | None = None, trial: str = "", shadows: str = "",
) -> Interaction:  # fmt: skip
    """Build the interaction of an answer that an artifact just gave; the keywords are fields of `Interaction`.

    Columns other than the task's inputs are left out. `seconds` defaults to the answer's own time.
    """
    task, prompt, retriever = artifact.signature, artifact.prompt, artifact.retriever
    read = read_inputs(inputs, task.inputs, task.kind, "request")
    missed = retriever is not None and (
        answer.refused or not answer.passages or answer.text.strip() == retriever.refusal
    )
    return Interaction(
        id=id, at=datetime.now(UTC), task=task.task, artifact=artifact_fingerprint, model=model_fingerprint,
        system=prompt.head(), template=prompt.template if prompt.chat_column is None else "",
        template_version=prompt.fingerprint, inputs={column: inputs[column] for column in task.inputs},
        prompt_sha256=hash_of(list(answer.messages), digits=64), actual=answer.text, confidence=answer.confidence,
        prompt_tokens=answer.prompt_tokens, completion_tokens=answer.completion_tokens,
        seconds=answer.seconds if seconds is None else seconds, key=key, finish=finish,
        split=DEFAULT_RULE.side(read), input_id=example_id(read), trial=trial, shadows=shadows, missed=missed,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Feedback:
    """What a user, a check or another artifact says about an answer; the store sets `at` and `number`."""

    interaction: str  # its id
    thumb: Thumb | None = None
    score: float | None = None  # in [0, 1]
    comment: str = ""
    expected: str | None = None  # only a suggestion until a reviewer confirms it with a correction
    source: str = "user"  # or `check`: the answer breaks the task's rules; or `artifact:FINGERPRINT`: that one's answer
    key: str | None = None  # id of the API key that it came with
    at: datetime | None = None
    number: int = 0


@dataclass(frozen=True, slots=True)
class Correction:
    """One entry in an interaction's review history: an expected response, or the undoing of an earlier entry."""

    number: int
    interaction: str
    at: datetime
    reviewer: str
    expected: str | None
    comment: str
    undoes: int | None


@dataclass(frozen=True, slots=True)
class Opinions:
    """What each reviewer expects for one input: the last correction of each that holds, of all its interactions."""

    words: Mapping[str, str]  # the expected response by reviewer, the latest last
    interactions: frozenset[str]  # ids of the interactions that were corrected

    @property
    def expected(self) -> str:
        """The last word."""
        return list(self.words.values())[-1]

    @property
    def contested(self) -> bool:
        """Whether reviewers expect different responses, and the last word is not that of most."""
        counts = Counter(word.strip(SPACE) for word in self.words.values())
        last = counts.pop(self.expected.strip(SPACE))
        return last <= max(counts.values(), default=0)


@dataclass(frozen=True, slots=True)
class ReviewCase:
    """An interaction together with its review."""

    interaction: Interaction
    expected: str | None  # the reviewed expected response, or None before a review
    reviewer: str | None  # who gave it last
    reasons: tuple[Reason, ...]  # why the answer is suspicious
    suggestion: str | None  # the latest unreviewed expected response, from feedback or another artifact

    @property
    def reviewed(self) -> bool:
        """Whether a reviewer gave the expected response."""
        return self.expected is not None

    @property
    def failure(self) -> bool:
        """Whether a reviewer found the answer wrong."""
        return self.expected is not None and self.expected.strip(SPACE) != self.interaction.actual.strip(SPACE)

    def as_dict(self) -> dict[str, Any]:
        """JSON values, for the command line, the API and `jsonl` files."""
        row = self.interaction
        values = {name: getattr(row, name) for name in type(row).__slots__}
        return {
            **values, "at": row.at.isoformat(), "inputs": dict(row.inputs), "expected": self.expected,
            "reviewer": self.reviewer, "reviewed": self.reviewed, "failure": self.failure,
            "reasons": list(self.reasons), "suggestion": self.suggestion,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class CaseFilter:
    """Selects cases; every field that is not None narrows the selection."""

    task: str | None = None
    artifact: str | None = None
    split: Side | None = None
    reason: Reason | None = None
    suspicious: bool | None = None  # whether there is any reason
    reviewed: bool | None = None  # whether a correction is in force
    failure: bool | None = None  # whether a reviewer found the answer wrong
    text: str | None = None  # part of the inputs, the actual or the expected response, in upper or lower case
    low_confidence: float = LOW_CONFIDENCE  # confidence below this counts as low
    trial: str | None = None
    id: str | None = None
    contested: bool = False  # whether reviewers contradict each other about its input


@dataclass(frozen=True, slots=True)
class DayCount:
    """The answers of one day, in UTC: all, those with a sign that they are wrong, those that a reviewer corrected."""

    day: date
    answers: int
    suspicious: int
    wrong: int


EVERYTHING = CaseFilter()
QUEUE = CaseFilter(suspicious=True, reviewed=False)


@dataclass(frozen=True, slots=True)
class JudgedAnswer:
    """What users and reviewers said about an answer in a trial."""

    interaction: str  # its id
    at: datetime  # when it was first judged; trials process answers in this order
    expected: str | None  # the correction in force, else the response that a user expected last
    score: float | None  # the first thumb (1 for up, 0 for down) or score that a user gave


@dataclass(frozen=True, slots=True)
class Promotion:
    """A switch of the served artifact."""

    token: str  # its identity
    at: datetime
    task: str
    kind: Literal["promote", "rollback"]
    artifact: str  # fingerprint of the artifact that is served from then on
    folder: str  # of that artifact, relative to the task's folder in the registry
    below: str | None  # token of the promotion that a rollback returns to; None for the first
    reviewer: str  # who decided
    evidence: Mapping[str, Any]  # the numbers that justify it


@dataclass(frozen=True, slots=True)
class ABTest:
    """The record of a trial: a challenger answers live requests next to the served artifact."""

    token: str  # its identity, and the salt that assigns inputs to the two artifacts
    at: datetime  # when it was started
    task: str
    mode: TrialMode  # `shadow`: the challenger answers after every response; `ab`: it answers a share of the inputs
    share: float  # of the inputs that the challenger answers; 1 for a shadow
    most: int  # pairs after which the trial ends undecided
    artifact: str  # fingerprint of the challenger
    folder: str  # of the challenger, relative to the task's folder in the registry
    against: str  # fingerprint of the artifact that was served at the start; the promotion of another ends the trial
    ended: datetime | None = None  # when it was stopped

    def runs(self, now: Promotion | None) -> bool:
        """Whether it was not stopped, and its opponent is what is served now."""
        return self.ended is None and now is not None and now.artifact == self.against


def command(words: str, *arguments: str | Path, registry: Path = REGISTRY, store: str = STORE) -> str:
    """A command line that works when it is pasted into a shell; a default registry or store is left out.

    Where the store's name hides a password, the user sets RUNG_STORE to the URL.
    """
    options = [] if registry == REGISTRY else ["--registry", registry]
    hidden = ":***@" in store
    if store not in (STORE, str(Path(STORE).absolute())) and not hidden:
        options += ["--store", store]
    line = f"{words} {shlex.join(map(str, [*arguments, *options]))}"
    return f'{line} --store "$RUNG_STORE"' if hidden else line
