"""What was answered, handed to whoever keeps it: behind the response's path, and never waited for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from rung.data.rows import hash_of
from rung.feedback.records import DEFAULT_RULE, Interaction, interaction_of
from rung.serving.shadows import Shadow

if TYPE_CHECKING:
    from rung.artifact.parts import Answer
    from rung.serving.context import Context
    from rung.serving.served import Base, ServedArtifact
    from rung.serving.visit import Visit


class Recorder(Protocol):
    """Takes what was answered. `offer` must return at once: it is called by the event loop."""

    def offer(self, interaction: Interaction) -> None:
        """Take one interaction; a recorder that is full counts it as dropped."""

    def takes(self, identity: str) -> bool:
        """Tell whether an interaction with this id is kept, as far as its sample goes."""


def record_answer(
    context: Context,
    served: ServedArtifact,
    row: Mapping[str, Any],
    answer: Answer,
    visit: Visit,
    *,
    identity: str,
    finish: str,
) -> None:
    """Record what an artifact answered, under the id that the client is told; its shadow answers when that is done."""
    recorder, trial, key = context.recorder, served.trial, visit.key.id if visit.key else None
    if recorder is None:
        return
    recorder.offer(
        interaction_of(
            served.artifact,
            row,
            answer,
            id=identity,
            artifact_fingerprint=served.fingerprint,
            model_fingerprint=served.model_fingerprint,
            finish=finish,
            seconds=visit.seconds,
            key=key,
            trial="" if trial is None else trial.record.token,
        )
    )
    if trial is None or trial.record.mode != "shadow" or trial.challenger is None or not recorder.takes(identity):
        return
    assert context.shadows is not None  # there are where there is a recorder
    visit.at_end(partial(context.shadows.offer, Shadow(trial.challenger, row, identity, key)))


def record_plain(
    recorder: Recorder | None,
    base: Base,
    inputs: Mapping[str, Any],
    actual: str,
    tokens: Sequence[int],
    visit: Visit,
    *,
    identity: str,
    finish: str,
) -> None:
    """Record what a bare base model answered; `tokens` are those of prompt and answer."""
    if recorder is None:
        return
    recorder.offer(
        Interaction(
            id=identity,
            at=datetime.now(UTC),
            task="",
            artifact="",
            model=base.fingerprint,
            system="",
            template="",
            template_version="",
            inputs=inputs,
            prompt_sha256=hash_of(dict(inputs), digits=64),
            actual=actual,
            confidence=None,
            prompt_tokens=tokens[0],
            completion_tokens=tokens[1],
            seconds=visit.seconds,
            key=visit.key.id if visit.key else None,
            finish=finish,
            split=DEFAULT_RULE.side(inputs),
        )
    )
