"""The Prompt part of an artifact: everything that turns a row and its demonstrations into chat messages."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from rung.engines.base import Message, Messages
from rung.prompts.grounding import Grounding, block
from rung.prompts.template import substitute
from rung.retrieval.passage import Passage

Turn = tuple[Mapping[str, Any], str]  # a demonstration: its inputs and its output


@dataclass(frozen=True, slots=True)
class Prompt:
    """How a row is asked.

    The system message holds `system`, the instruction and, when there are few of them, the labels; so it is the same
    for all rows and its computation is shared. Demonstrations follow as turns of user and assistant, then the row.

    Attributes:
        instruction: what to do.
        system: a persona or rules, before the instruction; empty for none.
        template: the user turn, `{column}` substitution only.
        labels: label texts to list in the prompt, with `descriptions` beside them where given.
        several: any number of the labels may be right; the answer is a JSON list of them.
        chat_column: the column that holds a conversation, for chat tasks; then `template` is not used.
        protocol: how to call tools, at the end of the system message; empty where the chat template says it, or none.
    """

    instruction: str
    template: str
    system: str = ""
    labels: tuple[str, ...] = ()
    descriptions: tuple[tuple[str, str], ...] = ()
    several: bool = False
    chat_column: str | None = None
    protocol: str = ""

    def messages(
        self, inputs: Mapping[str, Any], demonstrations: Sequence[Turn] = (), grounding: Grounding | None = None
    ) -> Messages:
        """Return the chat messages for one row. The one place where a row becomes a prompt.

        Passages stand before the last turn's text of the row, and of each demonstration that has any.
        """
        turns: list[Message] = []
        told = grounding.instruction if grounding else ""
        if head := "\n\n".join(part for part in (self.head(), told) if part):
            turns.append({"role": "system", "content": head})
        of_shown = grounding.demonstrations if grounding else ()
        for i, (shown, output) in enumerate(demonstrations):
            turns.extend(_behind(of_shown[i] if of_shown else (), self._question(shown)))
            turns.append({"role": "assistant", "content": output})
        turns.extend(_behind(grounding.passages if grounding else (), self._question(inputs)))
        return tuple(turns)

    def head(self) -> str:
        """Return the text of the system message."""
        parts = [part for part in (self.system.strip(), self.instruction.strip()) if part]
        if self.labels:
            described = dict(self.descriptions)
            ask = "Answer with a JSON list of all that apply of" if self.several else "Answer with one of"
            if described:
                lines = [
                    f"- {label}: {described[label]}" if label in described else f"- {label}" for label in self.labels
                ]
                parts.append(f"{ask}:\n" + "\n".join(lines))
            else:
                parts.append(f"{ask}: " + ", ".join(self.labels))
        if self.protocol:
            parts.append(self.protocol)
        return "\n\n".join(parts)

    def question(self, inputs: Mapping[str, Any]) -> str:
        """Return the text of the row alone: what is embedded to find similar rows."""
        return "\n".join(turn["content"] for turn in self._question(inputs))

    def _question(self, inputs: Mapping[str, Any]) -> list[Message]:
        if self.chat_column is not None:
            return list(inputs[self.chat_column])
        return [{"role": "user", "content": substitute(self.template, inputs)}]

    def query(self, inputs: Mapping[str, Any]) -> str:
        """Return what is looked up in the documents: the row's text; of a conversation, its last two questions."""
        if self.chat_column is None:
            return self.question(inputs)
        asked = [turn["content"] for turn in inputs[self.chat_column] if turn["role"] == "user"]
        return "\n".join(asked[-2:])

    @property
    def fingerprint(self) -> str:
        """Sha256 over every field; an artifact stores it and checks it at load."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild from `as_dict`, read back from JSON."""
        return cls(
            **{
                **values,
                "labels": tuple(values["labels"]),
                "descriptions": tuple((label, text) for label, text in values["descriptions"]),
            }
        )


def _behind(passages: Sequence[Passage], turns: list[Message]) -> list[Message]:
    """Put passages before the text of the last turn."""
    if not passages:
        return turns
    last = turns[-1]
    return [*turns[:-1], {"role": last["role"], "content": f"{block(passages)}\n\n{last['content']}"}]
