"""What every decoder does: answer examples, and say what an artifact with it sends for them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from rung.agents.trace import Step
from rung.artifact.confidence import Calibration, of_decisions
from rung.data.rows import Example
from rung.engines.base import Engine, Floats
from rung.engines.opening import open_encoder
from rung.errors import EngineError
from rung.models.messages import Messages
from rung.progress import QUIET, Progress
from rung.prompts.overflow import Rendered, fitted
from rung.prompts.prompt import Grounding
from rung.retrieval.passage import Citation, Passage
from rung.retrieval.retriever import Retrieved

if TYPE_CHECKING:
    from rung.artifact.artifact import Artifact


# --------------------
# Answer: what an artifact says to one row.


@dataclass(frozen=True, slots=True)
class Answer:
    """What an artifact says to one row.

    `confidence` is the probability of the answer among the labels (None for generated text, or where only the best
    label was looked for); `probabilities` has one entry per label of the task, in its order. `messages` is what was
    sent; for a head it is the text that was encoded. `dropped_demonstrations` and `dropped_passages` were left out,
    and `shortened_passages` cut, so that the prompt fits.
    `abstained` says that the confidence is below the artifact's threshold: `text` is what it would have answered.

    Where documents are looked up: `written` is the answer as the model wrote it, `text` is it without its citation
    marks (what is scored), `citations` are what the marks name, `passages` what was shown, [1] first. `refused`
    answers say that nothing relevant was found; the model was not asked.

    Of an agent, `steps` are what it did, and `stopped` is the limit that it ran into: `steps`, `tokens` or `context`.
    """

    text: str
    confidence: float | None
    probabilities: tuple[float, ...] | None
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    messages: Messages = ()
    dropped_demonstrations: int = 0
    abstained: bool = False
    dropped_passages: int = 0
    shortened_passages: int = 0
    written: str = ""
    citations: tuple[Citation, ...] = ()
    passages: tuple[Passage, ...] = ()
    refused: bool = False
    steps: tuple[Step, ...] = ()
    stopped: str = ""


def sure(answer: Answer, probs: Floats, best: int, fitted: Calibration | None) -> Answer:
    """Return the answer with its confidence: the probability of label `best`, calibrated where that was fitted."""
    values = tuple(probs.tolist())
    if fitted is None:
        return replace(answer, confidence=values[best], probabilities=values)
    values = fitted.scaled(values)
    confidence = fitted.of(values[best])
    return replace(answer, confidence=confidence, probabilities=values, abstained=fitted.abstains(confidence))


def sure_of_list(answer: Answer, probs: Floats, given: npt.NDArray[np.bool_], fitted: Calibration) -> Answer:
    """Return the answer to a row of several labels with its calibrated confidence, that of all decisions together.

    Args:
        answer: the list of the labels given.
        probs: that each label is right, shape [labels].
        given: whether it is given, shape [labels].
        fitted: the calibration.
    """
    values = fitted.scaled_each(probs)
    confidence = fitted.of(float(of_decisions(values, given)))
    return replace(answer, confidence=confidence, probabilities=values, abstained=fitted.abstains(confidence))


# --------------------
# What a model reads of a row: the prompt with the demonstrations and passages that there is room for.


Given = Sequence[Sequence[Passage]] | None  # passages to show of each row, in place of what a search finds
Room = Callable[[Engine], int]  # how many tokens of an engine's context the answer may take


def fit(
    artifact: Artifact,
    room: Room,
    examples: Sequence[Example],
    passages: Given,
    progress: Progress,
) -> list[Rendered]:
    """Return the exact messages of every example, and what the overflow policy left out of them.

    Args:
        artifact: whose prompt, demonstrations and retriever these are.
        room: says how many tokens the answer may take.
        examples: the rows.
        passages: what to show of the documents for each row, in this order, instead of what a search finds.
        progress: told of encoding.
    """
    if artifact.demonstrations is None and artifact.retriever is None:
        return [Rendered(artifact.prompt.messages(example.inputs)) for example in examples]
    engine = artifact.open()
    limit = prompt_limit(artifact, engine, room)
    shown = _shown(artifact, examples, engine, progress)
    refused, groundings = _grounded(artifact, examples, shown, passages)
    rendered = []
    for example, chosen, grounding, refuse in zip(examples, shown, groundings, refused, strict=True):
        of_shown = grounding.demonstrations if grounding else ((),) * len(chosen)
        turns = [(c.inputs, artifact.target(c, c.outputs[0], p)) for c, p in zip(chosen, of_shown, strict=True)]
        one = fitted(artifact.overflow, artifact.prompt, example.inputs, turns, engine.count, limit, grounding)
        rendered.append(replace(one, refused=refuse))
    return rendered


def prompt_limit(artifact: Artifact, engine: Engine, room: Room) -> int:
    """Return how many tokens a prompt may have; only an overflow policy has to know.

    Raises:
        EngineError: `context-unknown`: the engine does not say how many tokens it reads.
    """
    if artifact.overflow == "error":
        return 0
    if engine.info.context <= 0:
        raise EngineError(
            "context-unknown",
            f"overflow: {artifact.overflow} has to know how many tokens {artifact.model} reads, and it does not say",
            hint="use `overflow: error`, and show fewer demonstrations or passages",
        )
    return engine.info.context - room(engine) - artifact.weights.virtual_tokens


def _shown(
    artifact: Artifact, examples: Sequence[Example], engine: Engine, progress: Progress
) -> Sequence[tuple[Example, ...]]:
    """Return the demonstrations of every row, in the order in which they are shown."""
    shown, prompt = artifact.demonstrations, artifact.prompt
    if shown is None:
        return [()] * len(examples)
    costs: dict[str, int] = {}

    def cost(example: Example) -> int:
        if example.id not in costs:
            question, answer = prompt.question(example.inputs), artifact.spoken(example.outputs[0])
            turns: Messages = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
            costs[example.id] = engine.count(turns)
        return costs[example.id]

    vectors: Floats | None = None
    if shown.needs_vectors:
        texts = [prompt.question(example.inputs) for example in examples]
        vectors = open_encoder(shown.encoder, progress=progress).embed(texts, progress=progress)
    return [
        shown.choose(example.id, None if vectors is None else vectors[row], cost)
        for row, example in enumerate(examples)
    ]


def _grounded(
    artifact: Artifact,
    examples: Sequence[Example],
    shown: Sequence[tuple[Example, ...]],
    given: Given,
) -> tuple[list[bool], list[Grounding | None]]:
    """Return for every row whether it is refused, and the passages shown with it and its demonstrations."""
    retriever = artifact.retriever
    if retriever is None:
        return [False] * len(examples), [None] * len(examples)
    pool = {e.id: e for chosen in shown for e in chosen} if retriever.demonstration_passages else {}
    rows = [*(examples if given is None else ()), *pool.values()]
    queries = [artifact.prompt.query(row.inputs) for row in rows]
    found = retriever.find(rows, queries, artifact.passage_cost())
    of_pool = {row.id: one.passages for row, one in zip(pool.values(), found[len(rows) - len(pool) :], strict=True)}
    refused: list[bool] = []
    groundings: list[Grounding | None] = []
    for i, chosen in enumerate(shown):
        one = found[i] if given is None else Retrieved(tuple(given[i]))
        ranks = tuple(-float(rank) for rank in range(len(one.passages)))  # best first
        best = retriever.order == "best_first" or given is not None
        of_shown = tuple(of_pool.get(e.id, ())[: retriever.demonstration_passages] for e in chosen)
        own = one.passages if given is not None else retriever.arranged(one.passages)
        grounding = Grounding(retriever.instruction, own, ranks if best else ranks[::-1], of_shown)
        groundings.append(grounding)
        refused.append(retriever.refuses(one))
    return refused, groundings


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
        return fit(artifact, self.room, examples, passages, progress)

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
