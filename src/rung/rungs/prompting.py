"""Rungs that change the prompt or how labels are read from the model, without training anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from rung.artifact.artifact import Artifact
from rung.artifact.labels import LabelScoring, ListScoring, label_scoring
from rung.artifact.text import Generate
from rung.data.rows import Data, labels_of, selection_rows
from rung.engines.base import Floats
from rung.engines.opening import open_engine
from rung.errors import TrainingError
from rung.evaluation.racing import halve, race_order
from rung.evaluation.scoring import metric_of
from rung.machine import Machine
from rung.models.checkpoint import ModelKind
from rung.models.reference import is_endpoint
from rung.progress import QUIET, Progress
from rung.prompt_search.candidates import SearchSpace
from rung.prompt_search.scorer import CandidateScorer, Meter, SearchLimits
from rung.prompt_search.writer import MAX_TOKENS, SHOWN, CopyGuard, Writer
from rung.prompts.calibration import Normalization, batch_bias, divisors
from rung.rungs.base import OK, Applicability, Cost, CountOrZero, Rung, rung, skip
from rung.rungs.costs import inference_cost, sizes
from rung.rungs.linear import FEWEST, best_threshold
from rung.task import Task
from rung.training.config import Count

QUARTER, FIRST_ROWS = 0.25, 16  # the first look of `calibrate`, and its fewest rows
SHARE = 0.5  # of all texts on all rows: what the race among the texts may take


@rung("system-prompt", family="prompting", order=100, default=True)
@dataclass(frozen=True)
class SystemPrompt(Rung):
    """Put a system prompt before the instruction: of several, the winner of a race on training rows.

    Attributes:
        system_prompts: those to choose from.
        rows: training rows that the race among several looks at.
    """

    needs = ("prompt",)

    system_prompts: tuple[str, ...] = ()
    rows: Count = 64

    @classmethod
    def lacks(cls, task: Task) -> str:
        """The system prompts."""
        return "" if task.system is not None else "`system` is not set"

    def suits(self, artifact: Artifact, data: Data) -> Applicability:
        """It applies where the task has a system prompt."""
        if not any(self.system_prompts):
            return skip("the task file has no `system:` prompt", final=True)
        if artifact.prompt.system:
            return skip("a system prompt is set already")
        if len(self.system_prompts) > 1 and not data.train:
            return skip("there are no training rows to choose among the system prompts by", final=True)
        return OK

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """All rows share the prompt's beginning, so a system prompt costs little; choosing among several costs more."""
        count = len(self.system_prompts)
        rows = int(SHARE * count * min(self.rows, len(data.train))) if count > 1 else 0
        return inference_cost(artifact, data, machine, fit_rows=rows)

    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Set the system prompt: of several, the best."""
        settings: dict[str, Any] = {"text": self.system_prompts[0]}
        if len(self.system_prompts) > 1:
            settings["text"], settings["raced"] = self._raced(artifact, data, progress)
        return artifact.step(self.name, settings, prompt=replace(artifact.prompt, system=settings["text"]))

    def _raced(self, artifact: Artifact, data: Data, progress: Progress) -> tuple[str, dict[str, float]]:
        """Race the system prompts; return the winner and the mean score of each on the rows that it answered."""
        space = SearchSpace(artifact, (artifact.prompt.instruction,), (artifact.prompt.template,), {}, vary_shots=False)
        scoring = label_scoring(artifact.decoder)
        rows, metric = race_order(data.train)[: self.rows], metric_of(artifact, data.folder)
        scorer = CandidateScorer(
            space, rows, metric, Meter(SearchLimits()), calibrate=scoring is not None and bool(scoring.bias),
            progress=progress,
        )  # fmt: skip
        start = replace(space.start, origin="system")
        names = {scorer.add(replace(start, system=text), 1): text for text in self.system_prompts}
        price = int(SHARE * len(names) * len(rows))
        result = halve(list(names), scorer.score, len(rows), price, min_rows=max(1, len(rows) // 4))
        scores = {text: sum(s := scorer.scored[name].metric) / len(s) for name, text in names.items()}
        return names[result.winner], scores


STEPS = "Compare the input with what each label means, rule out those that do not fit, and answer with the best."


@rung("label-descriptions", family="prompting", order=110, topics=("label descriptions",))
@dataclass(frozen=True)
class LabelDescriptions(Rung):
    """Show what each label means, and ask the model to compare.

    The descriptions are the task file's `output.descriptions`. Without them, a model writes them from training rows
    with the label and training rows without it.

    Attributes:
        writer: the model that describes; empty for the task's own.
        max_labels: the rung does not apply to more labels, as the prompt would be too long.
    """

    needs = ("prompt", "untuned")

    model_settings: ClassVar[Mapping[str, ModelKind]] = {"writer": "language model"}

    writer: str = ""
    max_labels: Count = 40
    seed: CountOrZero = 0

    def suits(self, artifact: Artifact, data: Data) -> Applicability:
        """It applies to prompts that choose among few labels."""
        labels = artifact.signature.labels
        if not labels:
            return skip("there are no labels", final=True)
        if artifact.decoder.unconstrained:
            return skip("the model writes freely instead of choosing a label")
        if (scoring := label_scoring(artifact.decoder)) is not None and scoring.bias:
            return skip("the labels are calibrated for the prompt as it is")
        if len(labels) > self.max_labels:
            reason = f"describing {len(labels)} labels makes the prompt too long; `max_labels` is {self.max_labels}"
            return skip(reason, final=True)
        kind = artifact.signature.kind
        without = set(labels) - {label for row in data.train for label in labels_of(row.outputs[0], kind)}
        if without and not artifact.prompt.descriptions:
            return skip(f"there is no training row of the label {min(without)!r} to describe it by", final=True)
        return OK

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """Descriptions are read once for all rows; a model writes one per label."""
        if artifact.prompt.descriptions:
            return inference_cost(artifact, data, machine)
        per_row = max(1.0, sizes(artifact, data).question)
        rows = round(len(artifact.signature.labels) * (2 * SHOWN + MAX_TOKENS / per_row))
        return inference_cost(artifact, data, machine, fit_rows=rows)

    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Add the descriptions to the prompt; raise TrainingError (`reply-unreadable`) if none can be used."""
        labels = artifact.signature.labels
        texts = artifact.decoder.label_texts or labels
        described, refused = artifact.prompt.descriptions, {}
        meter = Meter(SearchLimits())
        if not described:
            engine = open_engine(self.writer, progress=progress) if self.writer else artifact.open()
            guard = CopyGuard(data.train, (artifact.prompt.head(), *labels, *texts))
            writer = Writer(engine, guard, meter, seed=self.seed)
            proposals = writer.descriptions(artifact, data.train, labels, progress=progress)
            refused = {label: f"{p.refused}: {p.text}" for label, p in zip(labels, proposals, strict=True) if p.refused}
            described = tuple((text, p.text) for text, p in zip(texts, proposals, strict=True) if not p.refused)
        if not described:
            message = f"none of the {len(refused)} descriptions can be used; the first: {next(iter(refused.values()))}"
            hint = "give `output.descriptions` in the task file, or a stronger model as `writer`"
            raise TrainingError("reply-unreadable", message, hint=hint)
        instruction = f"{artifact.prompt.instruction.strip()}\n\n{STEPS}"
        prompt = replace(artifact.prompt, instruction=instruction, labels=texts, descriptions=described)
        settings = {"descriptions": dict(described), "refused": refused, "spent": meter.as_dict()}
        return artifact.step(self.name, settings, prompt=prompt)


@rung("written-label", family="prompting", order=120, topics=("single label", "generated label"))
@dataclass(frozen=True)
class WrittenLabel(Rung):
    """Let the model write the label, constrained to the label set, instead of scoring every label.

    Decoding is greedy, so it may miss the most likely label. Its cost does not grow with the number of labels.
    """

    needs = ("scored labels", "untuned", "one prompt")
    learns = False

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """A label's few tokens in place of the label tree."""
        return inference_cost(artifact, data, machine)

    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Constrain what the model writes to the labels, and list the labels in the prompt."""
        del data, progress
        decoder = label_scoring(artifact.decoder)
        assert decoder is not None
        # No vocabulary of bytes needs more tokens than a text has bytes.
        most = max(len(text.encode()) for text in decoder.texts) + 8
        prompt = replace(artifact.prompt, labels=decoder.texts)
        return artifact.step(self.name, {}, prompt=prompt, decoder=Generate(most, choices=decoder.texts))


@rung("calibrate", family="prompting", order=150, default=True, topics=("single label", "calibration"))
@dataclass(frozen=True)
class Calibrate(Rung):
    """Subtract the model's input-independent label bias (Zhou et al. 2024, https://arxiv.org/abs/2309.17249).

    Normalization (the sum or the mean over a label's tokens) and calibration are chosen on training rows: on a quarter
    of them first, and if the plain sum is best there, the others are not looked at.

    Attributes:
        unlabelled: training rows whose inputs (not labels) give the label bias.
        selection_rows: other training rows, at most half of all, on which the scoring is chosen.
    """

    needs = ("scored labels",)

    unlabelled: Count = 64
    selection_rows: Count = 64

    def suits(self, artifact: Artifact, data: Data) -> Applicability:
        """It applies to labels that are not calibrated yet."""
        scoring = label_scoring(artifact.decoder)
        if scoring is not None and scoring.bias:
            return skip("the labels are calibrated already")
        return OK if len(data.train) > 1 else skip("it needs two training rows or more", final=True)

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """Score all labels of the rows looked at."""
        chosen = min(self.selection_rows, len(data.train) // 2)
        rows = chosen + min(self.unlabelled, len(data.train) - chosen)
        return inference_cost(artifact, data, machine, fit_rows=rows)

    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Choose the best of four scorings; of equals, the simpler one."""
        *_, (_, fitted) = self.fit_in_parts(artifact, data, progress=progress)
        return fitted

    def fit_in_parts(
        self, artifact: Artifact, data: Data, *, after: float = 0.0, progress: Progress = QUIET
    ) -> Iterator[tuple[float, Artifact]]:
        """Choose on a quarter of the rows, then on all of them unless the plain sum is best."""
        decoder = label_scoring(artifact.decoder)
        assert decoder is not None
        engine = artifact.open()
        chosen, others = selection_rows(data, self.selection_rows)
        inputs = race_order(others)[: self.unlabelled]
        tokens = decoder.continuations(engine)
        prior = scores = np.empty((0, len(tokens)), np.float32)
        for share in [share for share in (QUARTER, 1.0) if share > after]:
            for_prior, for_choice = (rows[: max(FIRST_ROWS, ceil(share * len(rows)))] for rows in (inputs, chosen))
            more = [*for_prior[len(prior) :], *for_choice[len(scores) :]]
            prompts = [row.messages for row in artifact.render(more)]
            new = decoder.logprobs(artifact, engine, prompts, progress=progress)
            fresh = len(for_prior) - len(prior)
            prior, scores = np.concatenate([prior, new[:fresh]]), np.concatenate([scores, new[fresh:]])
            truth = np.array([decoder.labels.index(row.outputs[0]) for row in for_choice])
            best, accuracy = _best_scoring(decoder, tokens, prior, scores, truth)
            settings = {"accuracy_on_selection": accuracy, "rows": len(for_choice)}
            plain = best.normalization == "sum" and not any(best.bias)
            last = plain or (len(for_prior), len(for_choice)) == (len(inputs), len(chosen))
            yield 1.0 if last else QUARTER, artifact.step(self.name, settings, decoder=best)
            if last:
                return


def _best_scoring(
    decoder: LabelScoring, tokens: Sequence[Sequence[int]], prior: Floats, scores: Floats, truth: npt.NDArray[Any]
) -> tuple[LabelScoring, dict[str, float]]:
    """The first of the most accurate scorings, and the accuracy of each on rows with these label scores."""
    options: list[tuple[Normalization, bool]] = [("sum", False), ("mean", False), ("sum", True), ("mean", True)]
    best, accuracy = decoder, dict[str, float]()
    for normalization, calibrated in options:
        divisor = divisors(tokens, normalization)
        bias = batch_bias(prior, divisor) if calibrated else np.zeros(len(tokens), np.float32)
        right = float((np.argmax(scores / divisor - bias, axis=1) == truth).mean())
        if right > max(accuracy.values(), default=-1.0):
            best = replace(decoder, normalization=normalization, bias=tuple(bias.tolist()))
        accuracy[f"{normalization}{' calibrated' if calibrated else ''}"] = right
    return best, accuracy


@rung("label-thresholds", family="prompting", order=160, default=True, topics=("thresholds",))
@dataclass(frozen=True)
class LabelThresholds(Rung):
    """Score every label as the beginning of a list, and give the labels above their thresholds.

    Small models write the same list for every row, but their label probabilities still tell rows apart.

    Attributes:
        rows: training rows that thresholds are set on, at most.
    """

    needs = ("untuned",)

    rows: Count = 200

    def suits(self, artifact: Artifact, data: Data) -> Applicability:
        """It applies to lists of labels that a model writes."""
        if artifact.signature.kind != "multilabel":
            return skip("only where a row may have several labels", final=True)
        if not artifact.decoder.generates:
            return skip("the labels have thresholds already")
        if is_endpoint(artifact.model):
            return skip("an endpoint writes lists in one request, and scores labels in many", final=True)
        if len(data.train) < FEWEST:
            return skip(f"{len(data.train)} training rows are too few to set thresholds on", final=True)
        return OK

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """Score all labels of the rows looked at."""
        return inference_cost(artifact, data, machine, fit_rows=min(self.rows, len(data.train)))

    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Set a threshold per label; labels that too few rows have get one threshold together."""
        labels = artifact.signature.labels
        chosen = race_order(data.train)[: self.rows]
        given = [set(labels_of(e.outputs[0], "multilabel")) for e in chosen]
        truth = np.array([[label in row for label in labels] for row in given])
        scoring = ListScoring(labels, (0.0,) * len(labels))
        prompts = [row.messages for row in artifact.render(chosen)]
        values = scoring.values(artifact, artifact.open(), prompts, progress=progress)
        common = [k for k in range(len(labels)) if truth[:, k].sum() >= FEWEST]
        every = best_threshold(values.ravel(), truth.ravel())
        own = {k: best_threshold(values[:, k], truth[:, k]) for k in common}
        thresholds = tuple(own.get(k, every) for k in range(len(labels)))
        settings = {"rows": len(chosen), "labels_with_own_threshold": len(common)}
        return artifact.step(self.name, settings, decoder=ListScoring(labels, thresholds))
