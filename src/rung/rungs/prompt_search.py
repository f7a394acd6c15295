"""Prompt search: candidates raced on training rows, adopted only if better on training rows kept apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, ClassVar

from rung.artifact.artifact import Artifact
from rung.data.rows import Data, Example
from rung.data.spec import ENCODER
from rung.engines.api_options import ApiOptions
from rung.engines.base import Engine, GenerateRequest, Sampling
from rung.engines.opening import open_engine
from rung.errors import ConfigError, EngineError, needed_by
from rung.evaluation.metrics.base import Metric
from rung.evaluation.scoring import cases, metric_of
from rung.machine import Machine
from rung.models.checkpoint import ModelKind
from rung.models.messages import Message, Messages
from rung.progress import QUIET, Progress
from rung.prompt_search.candidates import SearchSpace, templates
from rung.prompt_search.scorer import CandidateScorer, Meter, ScoredCandidate, SearchLimits
from rung.prompt_search.search import (
    FEWEST_FIXES,
    HEADROOM_ROWS,
    AdoptionTest,
    SearchResult,
    no_headroom,
    search,
    split,
)
from rung.prompt_search.writer import CopyGuard, Proposal, Writer
from rung.prompts.demonstrations import Demonstrations, Selection
from rung.rungs.base import OK, Applicability, Cost, CountOrZero, PartialShare, Rung, rung, skip
from rung.rungs.costs import inference_cost
from rung.rungs.features import texts_of, vectors_of
from rung.task import Task
from rung.training.config import Count, NonNegative

FEWEST_SEARCHED = 16


@rung("prompt-search", family="prompt-learning", order=400)
@dataclass(frozen=True)
class PromptSearch(Rung):
    """Search instruction, template, label wording and demonstrations within a budget.

    Attributes:
        calls: prompts that a model answers or writes, at most; 0 for no limit, as with the other limits.
        tokens, seconds, money: further limits; money in the currency of RUNG_API_PRICE_INPUT and _OUTPUT.
        population: candidates per round.
        rounds: rounds.
        instructions: instructions that a model proposes; 0 keeps the instruction as it is.
        writer: the model that writes them; empty for the task's own.
        demonstrations: whether demonstrations are searched as well.
        encoder: sentence encoder for the nearest rows as demonstrations; empty leaves these out.
        adoption: share of the training rows that only decide about the adoption.
        search_rows: most rows to search on.
        adoption_rows: most rows to decide by.
        calibrate: calibrate label scores of candidates.
        system_prompts: the task's system prompts, which are searched as well.
    """

    needs = ("prompt", "untuned")

    model_settings: ClassVar[Mapping[str, ModelKind]] = {"writer": "language model"}

    calls: CountOrZero = 1500
    tokens: CountOrZero = 0
    seconds: NonNegative = 0.0
    money: NonNegative = 0.0
    population: Count = 16
    rounds: Count = 3
    instructions: CountOrZero = 6
    writer: str = ""
    demonstrations: bool = True
    encoder: str = ENCODER
    adoption: PartialShare = 0.5
    search_rows: Count = 200
    adoption_rows: Count = 300
    calibrate: bool = True
    seed: CountOrZero = 0
    system_prompts: tuple[str, ...] = ()

    def suits(self, artifact: Artifact, data: Data) -> Applicability:
        """It applies where there are rows to search on and rows to decide by."""
        del artifact
        return enough_rows(data, self.adoption, self.seed, FEWEST_SEARCHED)

    @property
    def encoders(self) -> tuple[str, ...]:
        """The one that finds the nearest rows, if any."""
        return (self.encoder,) if self.encoder else ()

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """All calls of the budget, with the demonstrations that most candidates show."""
        rows, deciding = split(data.train, self.adoption, self.seed)
        most = self.population * self.rounds * min(len(rows), self.search_rows) + 2 * len(deciding)
        return inference_cost(artifact, data, machine, fit_rows=min(self.calls or most, most))

    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Adopt the prompt found, or keep the artifact's own if none is significantly better."""
        result = self.search(artifact, data, progress=progress)
        new = result.artifact
        parts = {"prompt": new.prompt, "decoder": new.decoder, "demonstrations": new.demonstrations}
        return artifact.step(self.name, result.as_dict(), **parts)

    def search(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> SearchResult:
        """Search and decide; `fit` returns what this adopts."""
        prompt, meter, chat = artifact.prompt, self._meter(), artifact.prompt.chat_column is not None
        rows, deciding = split(data.train, self.adoption, self.seed)
        guard = CopyGuard(data.train, (prompt.head(), *artifact.signature.labels))
        proposals: list[Proposal] = []
        if self.instructions:
            engine = open_engine(self.writer, progress=progress) if self.writer else artifact.open()
            writer = Writer(engine, guard, meter, seed=self.seed)
            proposals = writer.instructions(artifact, rows, self.instructions, progress=progress)
        usable = tuple(proposal.text for proposal in proposals if not proposal.refused)
        output = "Label" if artifact.signature.kind == "category" else "Answer"
        wordings = (prompt.template,) if chat else templates(prompt.template, artifact.signature.inputs, output)
        space = SearchSpace(
            artifact, (prompt.instruction, *usable), wordings, self._pools(artifact, rows, data, progress),
            vary_shots=self.demonstrations and not chat, systems=self.system_prompts,
        )  # fmt: skip
        return search(
            space, rows[: self.search_rows], deciding[: self.adoption_rows], metric_of(artifact, data.folder), meter,
            population=self.population, rounds=self.rounds, seed=self.seed, calibrate=self.calibrate,
            proposals=proposals, progress=progress,
        )  # fmt: skip

    def _meter(self) -> Meter:
        options = ApiOptions.from_environment()
        if self.money and options.price_input + options.price_output == 0:
            raise ConfigError(
                "bad-setting", "prompt-search.money needs the prices of tokens",
                hint="set RUNG_API_PRICE_INPUT and RUNG_API_PRICE_OUTPUT, the prices of a million tokens",
            )  # fmt: skip
        limits = SearchLimits(self.calls or None, self.tokens or None, self.seconds or None, self.money or None)
        return Meter(limits, (options.price_input, options.price_output))

    def _pools(
        self, artifact: Artifact, rows: tuple[Example, ...], data: Data, progress: Progress
    ) -> dict[str, Demonstrations]:
        """The pools of demonstrations: rows that do not decide, and the artifact's own."""
        plain: Selection = "balanced" if artifact.signature.labels else "fixed"
        pools: dict[str, Demonstrations] = {plain: Demonstrations(plain, 4, rows)}
        if self.encoder:
            vectors = vectors_of(artifact, self.encoder, texts_of(artifact, rows), data.known, progress=progress)
            pools["knn"] = Demonstrations("knn", 4, rows, vectors, self.encoder)
        if (own := artifact.demonstrations) is not None:
            pools[own.selection] = own
        return pools


def enough_rows(data: Data, adoption: float, seed: int, fewest: int) -> Applicability:
    """Say whether there are enough training rows for a search: `fewest` to search on, and others to decide by."""
    rows, deciding = split(data.train, adoption, seed)
    if len(rows) < fewest or len(deciding) < FEWEST_FIXES:
        reason = f"{len(data.train)} training rows are too few to search on some and to decide by others"
        return skip(reason, final=True)
    return OK


COMPONENT = "instruction"
MAX_TOKENS = 2048  # of a reflection


@rung("gepa", family="prompt-learning", order=410)
@dataclass(frozen=True)
class Gepa(Rung):
    """Evolve the instruction by reflection: a strong model reads the errors and rewrites it.

    Agrawal et al. 2025, GEPA (https://arxiv.org/abs/2507.19457), with the authors' library. As in prompt search, the
    new instruction is adopted only if it is significantly better on training rows that GEPA never saw.

    Attributes:
        reflection: reference of the model that reflects; without one, the rung does not apply.
        calls: prompts that a model answers or writes, at most.
        minibatch: rows that one reflection looks at.
        selection_rows: rows that tell the candidates apart.
        adoption: share of the training rows that only decide about the adoption.
        adoption_rows: most rows to decide by.
        temperature: of the reflections.
    """

    needs = ("prompt", "untuned")

    model_settings: ClassVar[Mapping[str, ModelKind]] = {"reflection": "language model"}

    reflection: str = ""
    calls: Count = 1500
    minibatch: Count = 3
    selection_rows: Count = 50
    adoption: PartialShare = 0.5
    adoption_rows: Count = 300
    temperature: NonNegative = 1.0
    seed: CountOrZero = 0

    @classmethod
    def lacks(cls, task: Task) -> str:
        """A model that reflects."""
        named = task.rungs.get("gepa", {}).get("reflection")
        return "" if named else "`rungs: {gepa: {reflection: ...}}` names no model"

    def suits(self, artifact: Artifact, data: Data) -> Applicability:
        """It applies where a model reflects and there are enough rows."""
        del artifact
        if not self.reflection:
            return skip("no model reflects; name one with `rungs: {gepa: {reflection: MODEL}}`", final=True)
        return enough_rows(data, self.adoption, self.seed, 2 * FEWEST_SEARCHED)

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """All calls of the budget; reflections are counted as if they were rows."""
        return inference_cost(artifact, data, machine, fit_rows=self.calls)

    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Adopt the instruction found if it is significantly better; raise EngineError if the library is missing."""
        result = self.search(artifact, data, progress=progress)
        parts = {"prompt": result.artifact.prompt, "decoder": result.artifact.decoder}
        return artifact.step(self.name, result.as_dict(), **parts)

    def search(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> SearchResult:
        """Search and decide; `fit` returns what this adopts."""
        with needed_by("this rung", extra="gepa", error=EngineError):
            import gepa
        rows, deciding = split(data.train, self.adoption, self.seed)
        selection, feedback = rows[: self.selection_rows], rows[self.selection_rows :] or rows
        metric, meter = metric_of(artifact, data.folder), Meter(SearchLimits(calls=self.calls))
        space = SearchSpace(artifact, (artifact.prompt.instruction,), (artifact.prompt.template,), {}, vary_shots=False)
        scorer = CandidateScorer(space, selection, metric, meter, calibrate=False)
        test = AdoptionTest(space, scorer.scored, metric, meter, len(rows), deciding[: self.adoption_rows], self.seed)
        # Calls of one step of the library: a minibatch twice, a reflection, and the selection rows.
        step = 2 * self.minibatch + 1 + self.selection_rows
        if self.calls < test.reserved + len(selection) + step:
            return test.stay(f"the budget of {self.calls} calls is too small to search and to decide")
        scorer.score("incumbent", min(HEADROOM_ROWS, len(selection)))
        if reason := no_headroom(scorer.scored["incumbent"].metric, len(test.adoption)):
            return test.stay(reason)
        guard = CopyGuard(data.train, (artifact.prompt.head(), *artifact.signature.labels))
        adapter = _Adapter(artifact, metric, meter, guard, progress)
        progress.start("reflecting", self.calls - test.reserved - meter.calls)
        result = gepa.optimize(
            seed_candidate={COMPONENT: artifact.prompt.instruction}, trainset=list(feedback), valset=list(selection),
            adapter=adapter, reflection_minibatch_size=self.minibatch, seed=self.seed,
            logger=SimpleNamespace(log=lambda message: None),  # only results go to stdout
            reflection_lm=_Reflection(open_engine(self.reflection), meter, self.temperature, self.seed),
            stop_callbacks=lambda state: (meter.left() or 0) < test.reserved + step,
        )  # fmt: skip
        progress.finish()
        return replace(test, proposals=tuple(adapter.refused.values())).decide(_record(scorer, result))


def _with_instruction(artifact: Artifact, text: str) -> Artifact:
    changed = replace(artifact, prompt=replace(artifact.prompt, instruction=text))
    return changed.with_engine(artifact.open())


def _record(scorer: CandidateScorer, result: Any) -> str:
    """Record the library's candidates next to the incumbent; return the name of the best."""
    names = ["incumbent", *(f"candidate-{number}" for number in range(1, len(result.candidates)))]
    for number, (name, texts) in enumerate(zip(names, result.candidates, strict=True)):
        scores = list(result.val_subscores[number].values())
        if number == 0:
            scorer.scored[name].scores = scorer.scored[name].metric = scores
            continue
        candidate = replace(scorer.space.start, instruction=texts[COMPONENT], origin="reflection")
        artifact = _with_instruction(scorer.space.artifact, texts[COMPONENT])
        scorer.scored[name] = ScoredCandidate(name, candidate, artifact, number, False, scores, scores)
    return names[int(result.best_idx)]


@dataclass
class _Adapter:
    """Answer the library's questions: how an instruction scores on rows, and what the reflecting model gets to read."""

    artifact: Artifact
    metric: Metric
    meter: Meter
    guard: CopyGuard
    progress: Progress
    refused: dict[str, Proposal] = field(default_factory=dict)
    propose_new_texts: None = None

    def evaluate(self, batch: Sequence[Example], candidate: Mapping[str, str], capture_traces: bool = False) -> Any:
        """Answer rows with an instruction; one that repeats training rows scores 0 without being asked."""
        from gepa.core.adapter import EvaluationBatch

        text = candidate[COMPONENT]
        if row := self.guard.copied(text):
            self.refused[text] = Proposal(text, f"it repeats the training row {row}")
            answers, scores = [""] * len(batch), [0.0] * len(batch)
        else:
            answers, scores = self._answered(batch, text)
        traces = list(zip(batch, answers, scores, strict=True)) if capture_traces else None
        return EvaluationBatch(outputs=answers, scores=scores, trajectories=traces)

    def _answered(self, batch: Sequence[Example], text: str) -> tuple[list[str], list[float]]:
        answers = _with_instruction(self.artifact, text).answer(batch, full=False)
        calls = len(batch) * len(self.artifact.prompt_variants())
        self.meter.add(calls, sum(a.prompt_tokens for a in answers), sum(a.completion_tokens for a in answers))
        self.progress.advance(calls)
        scores = [score.value for score in self.metric.scores(cases(batch, answers))]
        return [answer.text for answer in answers], scores

    def make_reflective_dataset(
        self, candidate: Mapping[str, str], eval_batch: Any, components_to_update: Sequence[str]
    ) -> dict[str, list[dict[str, Any]]]:
        """The rows of a minibatch with the actual and the expected answers."""
        del candidate, components_to_update
        rows = [
            {"Inputs": dict(row.inputs), "Generated Outputs": answer, "Feedback": _feedback(row, answer, score)}
            for row, answer, score in eval_batch.trajectories
        ]
        return {COMPONENT: rows}


def _feedback(row: Example, answer: str, score: float) -> str:
    if score >= 1:
        return f"Right: {answer!r}."
    return f"Scored {score:.2f}. Expected: {row.outputs[0]!r}. Say what to do in general; do not quote the input."


@dataclass
class _Reflection:
    """The reflecting model as the library calls it."""

    engine: Engine
    meter: Meter
    temperature: float
    seed: int
    asked: int = 0

    def __call__(self, prompt: str | list[Message]) -> str:
        """The model's answer; every call has another seed."""
        messages: Messages = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else (*prompt,)
        sampling = Sampling(MAX_TOKENS, self.temperature, seed=self.seed + self.asked)
        self.asked += 1
        (reply,) = self.engine.generate([GenerateRequest(messages, sampling)])
        self.meter.add(1, reply.prompt_tokens, reply.completion_tokens)
        return reply.text
