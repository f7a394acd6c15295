"""What a decoder is: the part of an artifact that turns rows into answers.

A decoder says itself what it needs, what it costs and how it is saved. A new kind of decoder is one subclass: of
`Prompted` if the language model reads the artifact's prompt, else of `Promptless`. Its `kind` registers it.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self, cast

import numpy as np
import numpy.typing as npt

from rung.agents.calls import spoken
from rung.agents.tools import AgentStep
from rung.artifact.confidence import Calibration, of_decisions
from rung.artifact.costs import FORWARD, SAMPLE, Sizes, measure_sizes, prompt_tokens, tokenizer_of
from rung.artifact.parts import Signature
from rung.artifact.rendering import Given, PromptParts, refused_row, render_prompts, too_long_row
from rung.artifact.thoughts import Thinking, think
from rung.data.rows import Example
from rung.engines.base import Engine, Floats, GenerateRequest
from rung.errors import ArtifactError, EngineError, ModelError
from rung.models.messages import Messages
from rung.models.reference import resolve
from rung.models.thinking import split_thought
from rung.progress import QUIET, Progress, card
from rung.prompts.overflow import Rendered
from rung.retrieval import passage
from rung.retrieval.passage import Citation, Passage
from rung.retrieval.support import attached

Prompts = Sequence[Messages]  # one conversation per row
# What a decoder may refuse: a changed prompt, demonstrations, reasoning steps, a trained language model, another
# server, or a server that gives no label scores.
Change = Literal["prompt", "demonstrations", "reasoning", "training", "servers", "servers-without-scores"]


@dataclass(frozen=True, slots=True)
class Answer:
    """An artifact's answer to one row.

    Attributes:
        text: the answer; with citations, without their marks.
        confidence: probability of the answer among the labels; None for generated text, or if only the best label was
            computed.
        probabilities: one per label of the task, in its order, if they were asked for.
        prompt_tokens, completion_tokens, cached_tokens, seconds: the cost; cached tokens are among those of the prompt.
        messages: what was sent; for a head, the text that was encoded.
        dropped_demonstrations, dropped_passages: left out to make the prompt fit.
        shortened_passages: cut to make the prompt fit.
        truncated_characters: cut from the end of the longest input to make the prompt fit.
        abstained: the confidence is below the artifact's threshold; `text` is what it would have answered.
        written: the answer as the model wrote it, citation marks included.
        citations: the passages that the marks name; without marks, the sentences that say the same.
        passages: the passages shown, [1] first.
        refused: no relevant passage was found, so the model was not asked.
        steps: the steps of an agent.
        stopped: the limit that stopped an agent: `steps`, `tokens` or `context`.
        reasoning: what the model thought before the answer.
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
    truncated_characters: int = 0
    written: str = ""
    citations: tuple[Citation, ...] = ()
    passages: tuple[Passage, ...] = ()
    refused: bool = False
    steps: tuple[AgentStep, ...] = ()
    stopped: str = ""
    cached_tokens: int = 0
    reasoning: str = ""

    def __repr__(self) -> str:
        sure = "" if self.confidence is None else f", confidence={self.confidence:.3f}"
        return f"Answer({self.text!r}{sure}{', abstained=True' if self.abstained else ''})"

    def _repr_html_(self) -> str:
        sure = None if self.confidence is None else f"{100 * self.confidence:.1f} %"
        sources = [f"[{number}] {passage.text}" for number, passage in enumerate(self.passages, start=1)]
        return card(self.text, {"confidence": sure, "abstained": self.abstained or None, "sources": "\n".join(sources)})


def with_confidence(answer: Answer, probs: Floats, best: int, fitted: Calibration | None) -> Answer:
    """Add the probability of label `best` to an answer, calibrated if `fitted` is given."""
    values = tuple(probs.tolist())
    if fitted is None:
        return replace(answer, confidence=values[best], probabilities=values)
    values = fitted.scaled(values)
    confidence = fitted.of(values[best])
    return replace(answer, confidence=confidence, probabilities=values, abstained=fitted.abstains(confidence))


def with_list_confidence(answer: Answer, probs: Floats, given: npt.NDArray[np.bool_], fitted: Calibration) -> Answer:
    """Add the calibrated confidence that all label decisions are right to an answer with several labels.

    `probs` are the probabilities that each label is right, `given` whether the answer has it, both of shape [labels].
    """
    values = fitted.scaled_each(probs)
    confidence = fitted.of(float(of_decisions(values, given)))
    return replace(answer, confidence=confidence, probabilities=values, abstained=fitted.abstains(confidence))


class Composition(PromptParts, Protocol):
    """The parts of an artifact that its decoder reads."""

    @property
    def signature(self) -> Signature:
        """The task's names, columns and labels."""

    @property
    def decoder(self) -> Decoder:
        """The decoder itself."""

    @property
    def name(self) -> str:
        """The rungs that made it."""

    def prompt_variants(self) -> Sequence[Composition]:
        """One artifact per prompt that every row is asked with."""


# ---- saving and loading


@dataclass(frozen=True, slots=True)
class ArtifactWriter:
    """Where a decoder saves what is not JSON.

    Attributes:
        folder: where the decoder may write files: JSON and safetensors only.
        arrays: arrays by a name that no other part uses.
        save_member: saves a member artifact of the decoder into a subfolder of this name.
    """

    folder: Path
    save_member: Callable[[Composition, str], None]
    arrays: dict[str, npt.NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ArtifactReader:
    """Where a decoder reads what it saved with an `ArtifactWriter`."""

    folder: Path
    arrays: Mapping[str, npt.NDArray[Any]]
    load_member: Callable[[str], Composition]
    progress: Progress = QUIET  # of the download of a model that is not here yet

    def check_model(self, reference: str, fingerprint: str) -> None:
        """Raise ArtifactError `model-mismatch` unless a model is the one that the artifact was made with."""
        current = resolve(reference, progress=self.progress).fingerprint
        if current != fingerprint:
            versions = f"of fingerprint {fingerprint[:12]}, but here it is {current[:12]}"
            hint = "restore that version of the base model, or climb again on this one"
            raise ArtifactError("model-mismatch", f"{self.folder} was made with {reference} {versions}", hint=hint)


_KINDS: dict[str, type[Decoder]] = {}


def decoder_of_kind(kind: str) -> type[Decoder]:
    """Look up a decoder class by its kind; raise ArtifactError `artifact-damaged` for an unknown one."""
    if kind not in _KINDS:
        raise ArtifactError(
            "artifact-damaged", f"no decoder is named {kind!r}; there are {', '.join(sorted(_KINDS))}",
            hint="install the package that the decoder comes from, or the version of Rung that made the artifact",
        )  # fmt: skip
    return _KINDS[kind]


# ---- decoders


class Decoder(ABC):
    """One way to produce answers. Subclasses are frozen dataclasses whose fields are their settings.

    Class attributes:
        kind: names the decoder in saved artifacts and reports.
        refusals: for each change that makes no sense with this decoder, the reason.
        fixed: whether the task itself asks for this decoder, so that no rung replaces it.
        reads_prompt: whether the artifact's prompt reaches a language model.
        generates: whether a language model writes text, rather than scoring it.
    """

    __slots__ = ()
    kind: ClassVar[str]
    refusals: ClassVar[Mapping[Change, str]] = {}
    fixed: ClassVar[bool] = False
    reads_prompt: ClassVar[bool] = True
    generates: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "kind" in vars(cls):
            _KINDS[cls.kind] = cls

    # ---- answering

    @abstractmethod
    def answer(
        self, artifact: Composition, examples: Sequence[Example], *, full: bool, passages: Given, progress: Progress
    ) -> list[Answer]:
        """Answer one or more examples.

        Args:
            artifact: the artifact that this decoder belongs to.
            examples: the rows.
            full: compute the probability of every label; without, only the answer is certain.
            passages: the passages to show with each row, instead of what a search finds.
            progress: reports every batch.
        """

    @abstractmethod
    def render(
        self, artifact: Composition, examples: Sequence[Example], *, passages: Given = None, progress: Progress = QUIET
    ) -> list[Rendered]:
        """Render what is sent for every example, and report what was left out to make it fit."""

    @abstractmethod
    def text(self, artifact: Composition, messages: Messages) -> str:
        """Give the exact final text that messages become."""

    def target_text(self, output: str, labels: Sequence[str]) -> str:
        """Convert an expected output to the text that the model should write, in a task with these labels."""
        del labels
        return output

    def request(self, artifact: Composition, prompt: Messages) -> GenerateRequest:
        """Build the single completion request whose text is the answer; only decoders that stream have one."""
        raise NotImplementedError(f"the decoder {self.kind} does not stream")

    def warm_up(self, artifact: Composition, example: Example) -> None:
        """Load everything that answering needs, before the first client waits for it."""
        self.answer(artifact, [example], full=True, passages=None, progress=QUIET)

    # ---- what it is

    @property
    def uses_llm(self) -> bool:
        """Whether answering runs the artifact's language model, or those of its members."""
        return True

    @property
    def unconstrained(self) -> bool:
        """Whether the model may write anything."""
        return False

    @property
    def streams(self) -> bool:
        """Whether the answer is a single completion, unchanged except for `strip`, so that it can be streamed."""
        return False

    @property
    def gives_probs(self) -> bool:
        """Whether `answer(full=True)` gives the probability of every label."""
        return False

    @property
    def confidence(self) -> Calibration | None:
        """How probabilities become confidences, if that was fitted."""
        return None

    @property
    def abstains(self) -> bool:
        """Whether answers may be marked as abstained."""
        return self.confidence is not None and self.confidence.abstain_below is not None

    @property
    def out_of_scope(self) -> str | None:
        """The label of rows that are right to abstain on."""
        return None if self.confidence is None else self.confidence.out_of_scope

    @property
    def members(self) -> tuple[Composition, ...]:
        """The artifacts that this decoder combines."""
        return ()

    @property
    def scored_texts(self) -> tuple[str, ...]:
        """The texts that the language model scores after the prompt, one per label."""
        return ()

    @property
    def label_texts(self) -> tuple[str, ...]:
        """The texts that the language model reads or writes for the task's labels, in their order."""
        return ()

    @property
    def answer_schema(self) -> str | None:
        """The JSON Schema (JSON text) that answers follow."""
        return None

    @property
    def max_new_tokens(self) -> int | None:
        """The most tokens that the model writes for one answer; None if it writes none."""
        return None

    def refuses(self, change: Change) -> str:
        """Explain why a change makes no sense with this decoder; empty if it does."""
        return self.refusals.get(change, "")

    def merged(self) -> Self:
        """Give the decoder of the artifact whose tuned weights are merged into its base model.

        Raises:
            ArtifactError: `export-unsupported`: it answers with weights that belong to the base model as it is.
        """
        return self

    def without_confidence(self) -> Self:
        """Drop the fitted confidence, which is valid only for the artifact that it was fitted with."""
        return self if self.confidence is None else self.with_confidence(None)

    def with_confidence(self, confidence: Calibration | None) -> Self:
        """Add a fitted confidence; only decoders that give probabilities have one."""
        assert self.gives_probs
        return cast("Self", replace(cast("Any", self), confidence=confidence))

    # ---- cost

    def sizes(self, artifact: Composition, rows: Sequence[Example]) -> Sizes:
        """Measure the tokens of a sample of rows."""
        labels = artifact.signature.labels
        return measure_sizes(artifact, rows, lambda output: self.target_text(output, labels), self.scored_texts)

    def row_tokens(self, artifact: Composition, sizes: Sizes) -> float:
        """Estimate the tokens run for one prediction, without the prefix that all prompts share."""
        prompts = 1 if artifact.demonstrations is None else artifact.demonstrations.sets
        return prompts * (prompt_tokens(artifact, sizes) + self.decoding_tokens(sizes))

    def decoding_tokens(self, sizes: Sizes) -> float:
        """Estimate the tokens run after one prompt."""
        return sizes.decoding

    def written_tokens(self, sizes: Sizes) -> float:
        """Estimate the tokens of one prediction that are written one after the other: none where labels are scored."""
        return 0.0 if sizes.tree else self.decoding_tokens(sizes)

    @abstractmethod
    def row_flops(self, artifact: Composition, rows: Sequence[Example]) -> float:
        """Estimate the operations of one prediction, from a sample of rows."""

    def trainable_parameters(self, artifact: Composition) -> int:
        """Count the parameters that training set."""
        return artifact.weights.trainable_parameters

    # ---- saving

    def as_dict(self, writer: ArtifactWriter) -> dict[str, Any]:
        """Give the settings as JSON values; arrays and files go to `writer`."""
        del writer
        assert is_dataclass(self)
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], reader: ArtifactReader) -> Self:
        """Rebuild the decoder from `as_dict`; raise ArtifactError if a setting is missing or unknown."""
        settings = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        if isinstance(fitted := settings.get("confidence"), Mapping):
            settings["confidence"] = Calibration.from_dict(fitted)
        try:
            return cls(**settings)
        except TypeError as error:
            known = {setting.name for setting in fields(cast("Any", cls))}
            unknown = ", ".join(sorted(settings.keys() - known)) or str(error)
            raise ArtifactError(
                "artifact-damaged", f"{reader.folder}: the settings of the decoder {cls.kind} do not fit: {unknown}",
                hint="use the version of Rung that made the artifact",
            ) from error  # fmt: skip


class Prompted(Decoder):
    """A decoder that asks the artifact's language model with the artifact's prompt."""

    __slots__ = ()

    def room(self, engine: Engine) -> int:
        """Count the tokens that the answer may take after the prompt; a decoder that writes no text overrides this."""
        del engine
        assert self.max_new_tokens is not None
        return self.max_new_tokens

    @abstractmethod
    def answer_prompts(
        self, artifact: Composition, engine: Engine, prompts: Prompts, *, full: bool, progress: Progress = QUIET
    ) -> list[Answer]:
        """Answer each prompt by itself; with `full`, compute the probability of every label, if there are labels."""

    def answer(
        self, artifact: Composition, examples: Sequence[Example], *, full: bool, passages: Given, progress: Progress
    ) -> list[Answer]:
        """Render the prompts, and ask the model all of them except refused rows, which have no relevant passage."""
        start = time.perf_counter()
        rendered = self.render(artifact, examples, passages=passages, progress=progress)
        looked_up = (time.perf_counter() - start) / len(examples)  # demonstrations and passages, for each row
        asked = [row.messages for row in rendered if not row.refused]
        full = full or self.abstains  # abstaining needs the probabilities of all labels
        try:
            thoughts = think(artifact, asked, self.room, progress)
            prompts = [each.prompt for each in thoughts]
            given = self._ask(artifact, examples, prompts, full=full, progress=progress) if asked else []
            answers = iter(map(_after, given, thoughts, asked))
        except EngineError as error:
            if error.code != "context-overflow":
                raise
            room = self.room(artifact.open()) + artifact.weights.virtual_tokens
            raise too_long_row(examples, rendered, artifact.open(), room, error) from error
        except ModelError as error:
            if error.code != "chat-template-refused":
                raise
            raise refused_row(examples, [row.messages for row in rendered], artifact.open().text) or error from None
        finished = (finish(artifact, refusal(artifact, row) if row.refused else next(answers), row) for row in rendered)
        return [replace(answer, seconds=answer.seconds + looked_up) for answer in finished]

    def _ask(
        self, artifact: Composition, examples: Sequence[Example], prompts: Prompts, *, full: bool, progress: Progress
    ) -> list[Answer]:
        del examples
        assert len(artifact.prompt_variants()) == 1  # only scores can be averaged over several prompts
        return self.answer_prompts(artifact, artifact.open(), prompts, full=full, progress=progress)

    def render(
        self, artifact: Composition, examples: Sequence[Example], *, passages: Given = None, progress: Progress = QUIET
    ) -> list[Rendered]:
        """Render every example's prompt, with as many demonstrations and passages as fit."""

        def target(row: Example, context: Sequence[Passage]) -> str:
            return completion(artifact, row, row.outputs[0], context)

        return render_prompts(artifact, self.room, target, examples, passages, progress)

    def text(self, artifact: Composition, messages: Messages) -> str:
        """Give the text that the model reads."""
        return artifact.open().text(messages)

    def row_flops(self, artifact: Composition, rows: Sequence[Example]) -> float:
        """Estimate two operations per parameter and token."""
        sizes = self.sizes(artifact, rows)
        return FORWARD * sizes.parameters * self.row_tokens(artifact, sizes)


class Promptless(Decoder):
    """A decoder that reads only the text of an example; no language model reads a prompt."""

    __slots__ = ()
    reads_prompt = False
    refusals: ClassVar[Mapping[Change, str]] = {
        "prompt": "its answers do not depend on the prompt",
        "demonstrations": "its answers do not depend on the prompt",
        "reasoning": "it does not write text",
        "training": "it reads frozen features, which training would change",
        "servers": "no language model answers, and such servers run language models",
    }

    @property
    def uses_llm(self) -> bool:
        """Whether answering runs the artifact's language model: only if a subclass says so."""
        return False

    @property
    def encoders(self) -> tuple[str, ...]:
        """References of the sentence encoders that it runs."""
        own: str | None = getattr(self, "encoder", None)
        return (own,) if own else ()

    def render(
        self, artifact: Composition, examples: Sequence[Example], *, passages: Given = None, progress: Progress = QUIET
    ) -> list[Rendered]:
        """Give the text of every example, as a message."""
        del passages, progress
        return [Rendered(({"role": "user", "content": artifact.prompt.question(e.inputs)},)) for e in examples]

    def text(self, artifact: Composition, messages: Messages) -> str:
        """Give the text that is encoded."""
        del artifact
        return "\n".join(message["content"] for message in messages)

    def encoder_flops(self, artifact: Composition, rows: Sequence[Example], encoder: str, passages: float = 0) -> float:
        """Estimate the operations to encode one row and this many passage tokens; `encoder` empty: the base model."""
        if not encoder:
            sizes = self.sizes(artifact, rows)
            return FORWARD * sizes.parameters * (sizes.question + passages)
        files = resolve(encoder)
        sample, tokenizer = rows[:SAMPLE], tokenizer_of(files)
        tokens = sum(len(tokenizer.encode_plain(artifact.prompt.question(row.inputs))) for row in sample)
        return FORWARD * files.parameters * (tokens / max(1, len(sample)) + passages)


# ---- what decoders share


def cites(artifact: Composition) -> bool:
    """Say whether answers cite passages: free text over documents does."""
    free = artifact.decoder.unconstrained and artifact.signature.kind in ("text", "chat")
    return artifact.retriever is not None and free


def completion(artifact: Composition, row: Example, output: str, passages: Sequence[Passage]) -> str:
    """Write what the model should answer to a row's prompt, citations included."""
    text = artifact.decoder.target_text(output, artifact.signature.labels)
    return passage.cited(text, row, passages) if cites(artifact) else text


def refusal(artifact: Composition, rendered: Rendered) -> Answer:
    """Answer a row for which no relevant passage was found."""
    assert artifact.retriever is not None
    return Answer(artifact.retriever.refusal, None, None, 0, 0, 0.0, rendered.messages)


def _after(answer: Answer, thinking: Thinking, asked: Messages) -> Answer:
    """An answer with the thought before it, and what that cost."""
    if (thought := thinking.thought) is None:
        return answer
    return replace(
        answer,
        messages=asked,
        reasoning=thought.text.strip(),
        prompt_tokens=answer.prompt_tokens + thought.prompt_tokens,
        completion_tokens=answer.completion_tokens + thought.completion_tokens,
        seconds=answer.seconds + thought.seconds,
    )


def finish(artifact: Composition, answer: Answer, rendered: Rendered) -> Answer:
    """Add the passages shown, the citations, and what was left out of the prompt, to an answer.

    A thought that the model wrote before its answer, though nothing asked it to, is no part of the answer. If the model
    cites nothing, each of its sentences that a sentence of the passages supports gets that citation.
    """
    thought, text = split_thought(answer.text)
    written = text
    if artifact.signature.kind == "chat" and rendered.messages:
        text = spoken(text, rendered.messages[0].get("tools", ()))
    citations: tuple[Citation, ...] = ()
    if cites(artifact):
        text, citations = passage.resolve(text, rendered.passages)
        citations = citations or (() if rendered.refused else attached(text, rendered.passages))
    return replace(
        answer,
        text=text,
        written=written,
        reasoning=answer.reasoning or thought,
        citations=citations,
        passages=rendered.passages,
        refused=rendered.refused,
        dropped_demonstrations=rendered.dropped_demonstrations,
        dropped_passages=rendered.dropped_passages,
        shortened_passages=rendered.shortened_passages,
        truncated_characters=rendered.truncated_characters,
    )
