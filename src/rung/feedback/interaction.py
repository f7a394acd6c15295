"""Interaction: one answered request, as it is captured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from rung.data.examples import text_of
from rung.data.rows import example_id, hash_of, place_of

if TYPE_CHECKING:
    from rung.artifact.artifact import Artifact
    from rung.artifact.parts import Answer
    from rung.task import Task

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
