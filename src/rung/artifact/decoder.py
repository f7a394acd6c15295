"""What every decoder does: answer examples, and say what an artifact with it sends for them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from rung.artifact import context
from rung.artifact.answer import Answer
from rung.artifact.context import Given
from rung.data.rows import Example
from rung.engines.base import Engine, Messages
from rung.progress import QUIET, Progress
from rung.prompts.overflow import Rendered

if TYPE_CHECKING:
    from rung.artifact.artifact import Artifact


class Decoder(ABC):
    """One way to come to an answer."""

    __slots__ = ()
    kind: ClassVar[str]

    @abstractmethod
    def answer(
        self, artifact: Artifact, examples: Sequence[Example], *, full: bool, passages: Given, progress: Progress
    ) -> list[Answer]:
        """Answer one or more examples; see `Artifact.answer`."""

    @abstractmethod
    def fit_to_context(
        self, artifact: Artifact, examples: Sequence[Example], *, passages: Given, progress: Progress
    ) -> list[Rendered]:
        """Return what is sent for every example; see `Artifact.fit_to_context`."""

    @abstractmethod
    def text(self, artifact: Artifact, messages: Messages) -> str:
        """Return the exact final text that messages become."""

    def spoken(self, output: str, labels: Sequence[str]) -> str:
        """Return an expected output as the model should write it, in a task with these labels."""
        del labels
        return output

    @property
    def asks_model(self) -> bool:
        """Whether answering takes the artifact's language model, or those of its members."""
        return True

    @property
    def free(self) -> bool:
        """Whether answers are whatever the model writes, held to nothing."""
        return False


class Prompted(Decoder):
    """A decoder that asks the artifact's model with the artifact's prompt."""

    __slots__ = ()

    @abstractmethod
    def room(self, engine: Engine) -> int:
        """Return how many tokens the answer may take behind the prompt."""

    @abstractmethod
    def answer_prompts(
        self, artifact: Artifact, engine: Engine, prompts: Sequence[Messages], *, full: bool, progress: Progress = QUIET
    ) -> list[Answer]:
        """Answer prompts, each by itself; with `full` the probability of every label is told, where there are any."""

    def answer(
        self, artifact: Artifact, examples: Sequence[Example], *, full: bool, passages: Given, progress: Progress
    ) -> list[Answer]:
        """Render the prompts, and ask all but those for which nothing relevant was found."""
        rendered = self.fit_to_context(artifact, examples, passages=passages, progress=progress)
        asked = [one.messages for one in rendered if not one.refused]
        full = full or artifact.abstains  # whether to abstain hangs on all labels' probabilities
        written = iter(self._asked(artifact, examples, asked, full=full, progress=progress) if asked else ())
        return [artifact.finished(artifact.refusal(one) if one.refused else next(written), one) for one in rendered]

    def _asked(
        self,
        artifact: Artifact,
        examples: Sequence[Example],
        prompts: Sequence[Messages],
        *,
        full: bool,
        progress: Progress,
    ) -> list[Answer]:
        """Return the answers to the prompts of examples."""
        del examples
        assert len(artifact.members()) == 1  # scores alone can be averaged; see DemonstrationEnsemble
        return self.answer_prompts(artifact, artifact.open(), prompts, full=full, progress=progress)

    def fit_to_context(
        self, artifact: Artifact, examples: Sequence[Example], *, passages: Given, progress: Progress
    ) -> list[Rendered]:
        """Return every example's prompt, with the demonstrations and passages that there is room for."""
        return context.fit(artifact, self.room, examples, passages, progress)

    def text(self, artifact: Artifact, messages: Messages) -> str:
        """Return what the model reads."""
        return artifact.open().text(messages)


class Promptless(Decoder):
    """A decoder that looks at the text of an example alone; no prompt is shown to a model."""

    __slots__ = ()

    def fit_to_context(
        self, artifact: Artifact, examples: Sequence[Example], *, passages: Given, progress: Progress
    ) -> list[Rendered]:
        """Return the text of every example, as a message."""
        del passages, progress
        return [Rendered(({"role": "user", "content": artifact.prompt.question(e.inputs)},)) for e in examples]

    def text(self, artifact: Artifact, messages: Messages) -> str:
        """Return the text that is encoded."""
        del artifact
        return "\n".join(message["content"] for message in messages)
