"""Few-shot: solved rows before the question."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from pydantic import Field

from rung.artifact.artifact import Artifact
from rung.artifact.labels import LabelScoring, label_scoring, mean_logprobs
from rung.data.rows import Data, Example
from rung.data.spec import ENCODER
from rung.engines.base import Floats
from rung.errors import install_command
from rung.evaluation.racing import race_order
from rung.machine import Machine
from rung.progress import QUIET, Progress
from rung.prompts.calibration import batch_bias, divisors
from rung.prompts.demonstrations import COMPARED, Demonstrations, Selection
from rung.rungs.base import (
    OK,
    Applicability,
    Cost,
    CountOrZero,
    Fraction,
    Rung,
    encoder_library_missing,
    rung,
    skip,
)
from rung.rungs.costs import inference_cost, sizes
from rung.rungs.features import reading_cost, texts_of, vectors_of
from rung.training.config import Count

BY_WORDS = {"compared_by": "words"}  # the setting of an artifact whose rows no encoder compares


class ComparingRung(Rung):
    """A rung that may compare rows: with a sentence encoder or, where none is to be used or runs here, by their words.

    Only the encoder that a rung has by default gives way; one that was asked for is an error where it does not run.
    """

    encoder: str | None

    @property
    @abstractmethod
    def chosen_by(self) -> Selection:
        """How rows are chosen."""

    @property
    def encoders(self) -> tuple[str, ...]:
        """The one that measures similarity."""
        return (self.encoder,) if self.chosen_by in COMPARED and self.encoder and not self.remark else ()

    @property
    def remark(self) -> str:
        """That words are compared, though nobody asked for it."""
        if self.chosen_by not in COMPARED or self.encoder != ENCODER or not encoder_library_missing(ENCODER):
            return ""
        why = f"because nothing here runs a sentence encoder: {install_command('local')}"
        return f"compares rows by their words, {why}"

    def compared(self, artifact: Artifact, data: Data, progress: Progress) -> tuple[Floats | None, str, dict[str, str]]:
        """The vectors of the training rows, the encoder that made them, and what the settings say where none did."""
        if not self.encoders:
            return None, "", BY_WORDS if self.chosen_by in COMPARED else {}
        (encoder,), texts = self.encoders, texts_of(artifact, data.train)
        return vectors_of(artifact, encoder, texts, data.known, progress=progress), encoder, {}


# Fixed and random demonstrations differ from balanced ones only by chance: a climb tries them when asked to.
@rung("few-shot-mmr", family="in-context", order=340, topics=("nearest rows",), selection="mmr")
@rung("few-shot-knn", family="in-context", order=330, default=True, topics=("nearest rows",), selection="knn")
@rung("few-shot-balanced", family="in-context", order=320, default=True, selection="balanced")
@rung("few-shot-random", family="in-context", order=310, selection="random")
@rung("few-shot-fixed", family="in-context", order=300, selection="fixed")
@dataclass(frozen=True)
class FewShot(ComparingRung):
    """Show k training rows, chosen by `selection`, in the order least to most similar.

    Attributes:
        selection: how rows are chosen; see `rung.prompts.demonstrations.Demonstrations`.
        k: rows shown, at most.
        token_budget: tokens of all these rows, at most; the least similar are left out first.
        encoder: sentence encoder that measures similarity, for `knn` and `mmr`; None compares the rows' words, as the
            default one does where nothing runs it.
        diversity: weight of differing from the rows already chosen, for `mmr`.
        seed: seed of the random choices.
    """

    needs = ("demonstrations", "no demonstrations", "untuned")

    selection: Selection = "knn"
    k: Count = 5
    token_budget: Count = 1024
    encoder: str | None = ENCODER
    diversity: Fraction = 0.3
    seed: CountOrZero = 0

    @property
    def name(self) -> str:
        """`few-shot-` and the selection."""
        return f"few-shot-{self.selection}"

    def suits(self, artifact: Artifact, data: Data) -> Applicability:
        """It applies where there are more rows than are shown."""
        del artifact
        if len(data.train) <= self.k:
            return skip(f"{len(data.train)} training rows are too few to show {self.k}", final=True)
        if self.selection == "balanced" and not data.labels:
            return skip("only labels can be balanced", final=True)
        return OK

    @property
    def refits(self) -> bool:  # type: ignore[override]
        """Whether more rows to look up change no other row's prompt."""
        return self.selection in COMPARED

    @property
    def chosen_by(self) -> Selection:
        """The selection."""
        return self.selection

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """Prompts grow by k rows; a pool to search has to be embedded."""
        shown = Demonstrations(self.selection, self.k, (), token_budget=self.token_budget)
        cost = inference_cost(replace(artifact, demonstrations=shown), data, machine)
        for encoder in self.encoders:
            cost = cost.after(reading_cost(artifact, encoder, data, machine))
        return cost

    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Take the training rows as the pool of demonstrations; similarity is that of inputs, never of answers."""
        pool, (vectors, encoder, by) = data.train, self.compared(artifact, data, progress)
        shown = Demonstrations(
            self.selection, self.k, pool, vectors, encoder, self.token_budget, self.diversity, self.seed
        )
        settings = {"k": self.k, "token_budget": self.token_budget, "pool": len(pool), "encoder": encoder or None}
        return artifact.step(self.name, {**settings, **by}, demonstrations=shown)


@rung("demonstration-ensemble", family="in-context", order=350, topics=("single label",))
@dataclass(frozen=True)
class DemonstrationEnsemble(ComparingRung):
    """Average label scores over several sets of demonstrations, then calibrate them.

    The choice of one set of demonstrations is luck (Lu et al. 2022, https://arxiv.org/abs/2104.08786). The mean
    log-likelihood over disjoint sets depends less on luck, and shows more rows than one prompt holds. Calibration: Zhou
    et al. 2024, https://arxiv.org/abs/2309.17249.

    Attributes:
        sets: how many sets.
        k: rows in each.
        rows: `knn`: the nearest rows, dealt to the sets in turn; `balanced`: the same rows for all questions, with all
            labels equally often.
        unlabelled: training rows whose inputs (not labels) calibrate the average.
        encoder: sentence encoder, for `knn`; None compares the rows' words, as the default one does where nothing runs
            it.
    """

    needs = ("scored labels", "no demonstrations", "untuned")

    sets: Annotated[int, Field(ge=2)] = 3
    k: Count = 4
    rows: Selection = "knn"
    unlabelled: Count = 32
    encoder: str | None = ENCODER
    seed: CountOrZero = 0

    def suits(self, artifact: Artifact, data: Data) -> Applicability:
        """It applies where there are more rows than the sets show."""
        del artifact
        enough = len(data.train) > self.sets * self.k
        reason = f"{len(data.train)} training rows are too few for {self.sets} sets of {self.k}"
        return OK if enough else skip(reason, final=True)

    @property
    def chosen_by(self) -> Selection:
        """How the rows of all sets are chosen."""
        return self.rows

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """`sets` prompts a row, each longer by `k` rows."""
        s = sizes(artifact, data)
        extra = self.sets * self.k * (s.question + s.answer + 8) + (self.sets - 1) * (s.question + s.decoding)
        cost = inference_cost(
            artifact, data, machine, fit_rows=min(self.unlabelled, len(data.train)), extra_tokens=extra
        )
        for encoder in self.encoders:
            cost = cost.after(reading_cost(artifact, encoder, data, machine))
        return cost

    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Add the sets of demonstrations, and calibrate their average."""
        vectors, encoder, by = self.compared(artifact, data, progress)
        shown = Demonstrations(
            self.rows, self.k, data.train, vectors, encoder, seed=self.seed, sets=self.sets
        )  # fmt: skip
        plain = replace(artifact, demonstrations=shown).with_engine(artifact.open())
        inputs = race_order(data.train)[: self.unlabelled]
        decoder = self._calibrated(plain, inputs, progress)
        settings = {"sets": self.sets, "k": self.k, "rows": self.rows, "unlabelled": len(inputs), **by}
        return artifact.step(self.name, settings, demonstrations=shown, decoder=decoder)

    def _calibrated(self, artifact: Artifact, inputs: tuple[Example, ...], progress: Progress) -> LabelScoring:
        decoder, engine = label_scoring(artifact.decoder), artifact.open()
        assert decoder is not None
        members = [
            decoder.logprobs(artifact, engine, [row.messages for row in member.render(inputs)], progress=progress)
            for member in artifact.prompt_variants()
        ]
        divisor = divisors(decoder.continuations(engine), decoder.normalization)
        bias = batch_bias(mean_logprobs(members), divisor).astype(np.float32)
        return replace(decoder, bias=tuple(bias.tolist()))
