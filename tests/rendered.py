"""Shortcuts to what artifacts send."""

from __future__ import annotations

from collections.abc import Sequence

from rung.artifact.artifact import Artifact
from rung.data.rows import Example
from rung.models.messages import Messages


def messages_of(artifact: Artifact, rows: Sequence[Example]) -> list[Messages]:
    """Return the messages sent for every row."""
    return [rendered.messages for rendered in artifact.render(rows)]
