"""What the feedback store holds (interactions, feedback, corrections, promotions) and the defaults of its commands."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
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
Thumb = Literal["up", "down"]
TrialMode = Literal["shadow", "ab"]
Reason = Literal["bad feedback", "invalid output", "unfinished", "retrieval miss", "disagreement", "low confidence"]
REASONS: tuple[Reason, ...] = get_args(Reason)  # the most suspicious first


@dataclass(frozen=True, slots=True)
class SplitRule:
    """Assigns an input to the training or the test side, as `rung.data.loading` splits a file.

    Attributes:
        seed: the task's `data.split.seed`.
        test: the task's `data.split.test`: the share of inputs that nothing is trained on.
        group: the task's `data.split.group`, where that column is among the inputs.
    """

    seed: int = 0
    test: float = 0.2
    group: str | None = None

    @classmethod
    def of(cls, task: Task) -> SplitRule:
        """The rule in a task's file."""
        split = task.data.split
        return cls(split.seed, split.test, split.group)

    def side(self, inputs: Mapping[str, Any]) -> Side:
        """The side of an input; inputs that differ only in case and spaces share a side."""
        group = str(inputs[self.group]) if self.group is not None and inputs.get(self.group) else None
        return "test" if place_of(f"{self.seed}/{group or example_id(inputs)}") < self.test else "train"


DEFAULT_RULE = SplitRule()


@dataclass(frozen=True, slots=True)
class Interaction:
    """One answered request.

    Attributes:
        id: of the response that the client received; at most 80 characters.
        at: when it was answered, in UTC.
        task: name of the task; empty for a request to the bare base model.
        artifact: fingerprint of the artifact that answered (in its folder's manifest).
        model: fingerprint of the base model.
        system: text of the system message; empty for none.
        template: the user turn with {column} for the inputs; empty where the only input holds the messages.
        template_version: fingerprint of the whole prompt.
        inputs: the task's input columns.
        prompt_sha256: of the exact messages that the model read.
        actual: the answer.
        confidence: probability of the answer, where there is one.
        prompt_tokens, completion_tokens: read and written.
        seconds: from the request's arrival to the last token.
        key: id of the API key, never the key.
        finish: `stop`, or why the answer was cut: `length`, `cancelled`, ...
        split: the side of the input, fixed at capture; `test` never enters training.
        input_id: hash of the original inputs; redaction does not change it. Empty: computed from `inputs`.
        trial: token of the trial that it belongs to, or empty.
        shadows: id of the interaction that a challenger answered again, unseen by the client; empty if it was sent.
        missed: retrieval found nothing relevant.
    """

    id: str
    at: datetime
    task: str
    artifact: str
    model: str
    system: str
    template: str
    template_version: str
    inputs: Mapping[str, Any]
    prompt_sha256: str
    actual: str
    confidence: float | None
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    key: str | None
    finish: str
    split: Side
    input_id: str = ""
    trial: str = ""
    shadows: str = ""
    missed: bool = False

    def __post_init__(self) -> None:
        if not self.input_id:
            object.__setattr__(self, "input_id", example_id(self.inputs))


def interaction_of(
    artifact: Artifact,
    inputs: Mapping[str, Any],
    answer: Answer,
    *,
    id: str,  # noqa: A002
    artifact_fingerprint: str,
    model_fingerprint: str,
    finish: str = "stop",
    seconds: float | None = None,
    key: str | None = None,
    trial: str = "",
    shadows: str = "",
) -> Interaction:
    """Build the interaction of an answer that an artifact just gave; the keywords are fields of `Interaction`.

    Columns other than the task's inputs are left out. `seconds` defaults to the answer's own time.
    """
    read = read_inputs(inputs, artifact.signature.inputs, artifact.signature.kind, "request")
    return Interaction(
        id=id,
        at=datetime.now(UTC),
        task=artifact.signature.task,
        artifact=artifact_fingerprint,
        model=model_fingerprint,
        system=artifact.prompt.head(),
        template=artifact.prompt.template if artifact.prompt.chat_column is None else "",
        template_version=artifact.prompt.fingerprint,
        inputs={column: inputs[column] for column in artifact.signature.inputs},
        prompt_sha256=hash_of(list(answer.messages), digits=64),
        actual=answer.text,
        confidence=answer.confidence,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        seconds=answer.seconds if seconds is None else seconds,
        key=key,
        finish=finish,
        split=DEFAULT_RULE.side(read),
        input_id=example_id(read),
        trial=trial,
        shadows=shadows,
        missed=artifact.retriever is not None
        and (answer.refused or not answer.passages or answer.text.strip() == artifact.retriever.refusal),
    )


@dataclass(frozen=True, slots=True)
class Feedback:
    """What a user, a check or another artifact says about an answer.

    Attributes:
        interaction: id of the interaction.
        thumb: `up` or `down`, or None.
        score: in [0, 1], or None.
        comment: in words; may be empty.
        expected: the response that was expected; only a suggestion until a reviewer confirms it with a correction.
        source: `user`, `check` (the answer breaks the task's rules), `artifact:FINGERPRINT` (that artifact's answer).
        key: id of the API key that it came with.
        at, number: set by the store.
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
    """One entry in an interaction's review history: an expected response, or the undoing of an earlier entry."""

    number: int
    interaction: str
    at: datetime
    reviewer: str
    expected: str | None
    comment: str
    undoes: int | None


@dataclass(frozen=True, slots=True)
class ReviewCase:
    """An interaction together with its review.

    Attributes:
        interaction: the request and its answer.
        expected: the reviewed expected response, or None before a review.
        reviewer: who gave it last.
        reasons: why the answer is suspicious; empty for an unsuspicious one.
        suggestion: the latest unreviewed expected response, from feedback or another artifact.
    """

    interaction: Interaction
    expected: str | None
    reviewer: str | None
    reasons: tuple[Reason, ...]
    suggestion: str | None

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
    """Selects cases; every field that is not None narrows the selection.

    Attributes:
        task, artifact, split, trial: of the interaction.
        reason: one reason for suspicion.
        suspicious: whether there is any reason.
        reviewed: whether a correction is in force.
        failure: whether a reviewer found the answer wrong.
        text: part of the inputs, the actual or the expected response; upper and lower case are the same.
        low_confidence: confidence below this counts as low.
        id: of one interaction.
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
    id: str | None = None


EVERYTHING = CaseFilter()
QUEUE = CaseFilter(suspicious=True, reviewed=False)


@dataclass(frozen=True, slots=True)
class JudgedAnswer:
    """What users and reviewers said about an answer in a trial.

    Attributes:
        interaction: id of the answer.
        at: when it was first judged; trials process answers in this order.
        expected: the correction in force, else the response that a user expected last, or None.
        score: the first thumb (1 for up, 0 for down) or score that a user gave, or None.
    """

    interaction: str
    at: datetime
    expected: str | None
    score: float | None


@dataclass(frozen=True, slots=True)
class Promotion:
    """A switch of the served artifact.

    Attributes:
        token: its identity.
        at: when.
        task: whose artifact is switched.
        kind: `promote`, or `rollback`.
        artifact: fingerprint of the artifact that is served from then on.
        folder: of that artifact, relative to the registry.
        below: token of the promotion that a rollback returns to; None for the first.
        reviewer: who decided.
        evidence: the numbers that justify it.
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
class ABTest:
    """The record of a trial: a challenger answers live requests next to the served artifact.

    Attributes:
        token: its identity, and the salt that assigns inputs to the two artifacts.
        at: when it was started.
        task: whose requests.
        mode: `shadow`: the challenger answers after every response; `ab`: it answers a share of the inputs.
        share: of the inputs that the challenger answers; 1 for a shadow.
        most: pairs after which the trial ends undecided.
        artifact: fingerprint of the challenger.
        folder: of the challenger, relative to the registry.
        against: fingerprint of the artifact that was served at the start; a promotion of another one ends the trial.
        ended: when it was stopped, or None.
    """

    token: str
    at: datetime
    task: str
    mode: TrialMode
    share: float
    most: int
    artifact: str
    folder: str
    against: str
    ended: datetime | None = None

    def runs(self, now: Promotion | None) -> bool:
        """Whether it was not stopped, and its opponent is what is served now."""
        return self.ended is None and now is not None and now.artifact == self.against


def command(words: str, *arguments: str | Path, registry: Path = REGISTRY, store: str = STORE) -> str:
    """A command line that works when it is pasted into a shell.

    Args:
        words: the command, such as `rung trial show`.
        arguments: quoted where needed.
        registry: the folder of promoted artifacts; written only if it is not the default.
        store: likewise; where its name hides a password, the user sets RUNG_STORE to the URL.
    """
    named = [*arguments]
    if registry != REGISTRY:
        named += ["--registry", registry]
    hidden = ":***@" in store
    if store not in (STORE, str(Path(STORE).absolute())) and not hidden:
        named += ["--store", store]
    line = f"{words} {shlex.join(map(str, named))}"
    return f'{line} --store "$RUNG_STORE"' if hidden else line
