"""What the store holds besides interactions: feedback, corrections, promotions, and everything known of a case."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from rung.data.examples import text_of
from rung.data.rows import example_id, hash_of, place_of

if TYPE_CHECKING:
    from rung.artifact.artifact import Artifact
    from rung.artifact.parts import Answer
    from rung.task import Task


# --------------------
# Interaction: one answered request, as it is captured.


Side = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class SplitRule:
    """On which side an input stands: the rule by which `rung.data.loading` cuts the test split from a file.

    Attributes:
        seed: the task's `data.split.seed`.
        test: the task's `data.split.test`: the share of inputs that nothing is ever trained on.
        group: the task's `data.split.group`, where that column is among the inputs.
    """

    seed: int = 0
    test: float = 0.2
    group: str | None = None

    @classmethod
    def of(cls, task: Task) -> SplitRule:
        """Return the rule of a task's file."""
        split = task.data.split
        return cls(split.seed, split.test, split.group)

    def side(self, inputs: Mapping[str, Any]) -> Side:
        """Return the side of an input; equal inputs (case and spaces aside) always stand on the same."""
        group = str(inputs[self.group]) if self.group is not None and inputs.get(self.group) else None
        return "test" if place_of(f"{self.seed}/{group or example_id(inputs)}") < self.test else "train"


DEFAULT_RULE = SplitRule()


@dataclass(frozen=True, slots=True)
class Interaction:
    """One answered request.

    Attributes:
        id: of the response, as the client was told it; at most 80 characters.
        at: when it was answered, in UTC.
        task: name of the task; empty for a request to the bare base model.
        artifact: fingerprint of the artifact that answered (that of its folder's manifest).
        model: fingerprint of the base model.
        system: text of the system message; empty for none.
        template: the user turn with {column} for the inputs; empty where the one input holds the messages.
        template_version: fingerprint of the whole prompt.
        inputs: the task's input columns.
        prompt_sha256: of the exact text that the model read.
        actual: what was answered.
        confidence: probability of the answer, where there is one.
        prompt_tokens, completion_tokens: what was read and written.
        seconds: from the request's arrival to the last token.
        key: id of the API key, never the key.
        finish: `stop`, or why the answer ended otherwise: `length`, `cancelled`, ...
        split: the side that the input stands on, fixed when it is captured; `test` never enters training.
        input_id: hash of the inputs as they came; redaction changes the inputs, and not this. Empty: computed.
        trial: token of the trial that it is part of, or empty.
        shadows: id of the interaction that this one answers again, unseen by the client; empty for one that was sent.
        missed: the documents were looked up, and held nothing relevant.
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
    prompt: str | None = None,
    finish: str = "stop",
    seconds: float | None = None,
    key: str | None = None,
    rule: SplitRule = DEFAULT_RULE,
    trial: str = "",
    shadows: str = "",
) -> Interaction:
    """Return the interaction of an artifact's answer, made just now.

    Args:
        artifact: what answered.
        inputs: the row; columns that are no inputs of the task are left out.
        answer: what it said.
        id: of the response.
        artifact_fingerprint: `rung.artifact.files.fingerprint` of its folder.
        model_fingerprint: of the base model.
        prompt: the exact text that the model read; None hashes the messages instead.
        finish: why the answer ended.
        seconds: since the request's arrival; None takes the answer's own time.
        key: id of the API key.
        rule: how inputs are split.
        trial: token of the trial that it is part of.
        shadows: id of the interaction that it shadows.
    """
    row, read = {column: inputs[column] for column in artifact.shape.inputs}, as_read(artifact, inputs)
    template = artifact.prompt.template if artifact.prompt.chat_column is None else ""
    return Interaction(
        id=id,
        at=datetime.now(UTC),
        task=artifact.shape.task,
        artifact=artifact_fingerprint,
        model=model_fingerprint,
        system=artifact.prompt.head(),
        template=template,
        template_version=artifact.prompt.fingerprint,
        inputs=row,
        prompt_sha256=hash_of(list(answer.messages) if prompt is None else prompt, digits=64),
        actual=answer.text,
        confidence=answer.confidence,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        seconds=answer.seconds if seconds is None else seconds,
        key=key,
        finish=finish,
        split=rule.side(read),
        input_id=example_id(read),
        trial=trial,
        shadows=shadows,
        missed=missed(artifact, answer),
    )


def missed(artifact: Artifact, answer: Answer) -> bool:
    """Tell whether the documents held nothing relevant: none was near enough or shown, or the model says so."""
    if artifact.retriever is None:
        return False
    return answer.refused or not answer.passages or answer.text.strip() == artifact.retriever.refusal


def as_read(artifact: Artifact, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row's inputs as `rung.data.examples` reads them, so that a request equals the row of a file."""
    row = {column: inputs[column] for column in artifact.shape.inputs}
    return row if artifact.shape.kind == "chat" else {column: text_of(value) for column, value in row.items()}


Thumb = Literal["up", "down"]
Reason = Literal["bad feedback", "invalid output", "unfinished", "retrieval miss", "disagreement", "low confidence"]
REASONS: tuple[Reason, ...] = get_args(Reason)  # in the order in which they are worth a look
LOW_CONFIDENCE = 0.5
FINISHED = ("stop", "tool_calls")  # an answer that ended otherwise was cut
TrialMode = Literal["shadow", "ab"]
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
class ReviewCase:
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
class JudgedAnswer:
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
class CaseFilter:
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


EVERYTHING = CaseFilter()
QUEUE = CaseFilter(suspicious=True, reviewed=False)


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
class ABTest:
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
    mode: TrialMode
    share: float
    most: int
    artifact: str
    folder: str
    against: str
    ended: datetime | None = None

    def runs(self, now: Promotion | None) -> bool:
        """Tell whether it runs: it was not stopped, and what is served now is what it was started against."""
        return self.ended is None and now is not None and now.artifact == self.against


# --------------------
# Where things are, and how long a trial lasts, unless something else is said; nothing is loaded to know it.


STORE = "failures.db"
REGISTRY = Path("registry")
SHARE = 0.1  # of the inputs that a challenger answers in an A/B trial
PAIRS = 10_000  # after which a trial ends undecided


# --------------------
# Commands as they are shown: such that they work when they are pasted.


def command(words: str, *arguments: str | Path, registry: Path = REGISTRY, store: str = STORE) -> str:
    """Return a command line for a shell.

    Args:
        words: the command, such as `rung trial show`.
        arguments: what follows, each of which is quoted where it has to be.
        registry: the folder of promoted artifacts, named where it is not the default.
        store: the store, likewise; where its name hides a password, RUNG_STORE has to hold the URL.
    """
    named = [*arguments]
    if registry != REGISTRY:
        named += ["--registry", registry]
    hidden = ":***@" in store
    if store not in (STORE, str(Path(STORE).absolute())) and not hidden:
        named += ["--store", store]
    line = f"{words} {shlex.join(map(str, named))}"
    return f'{line} --store "$RUNG_STORE"' if hidden else line
