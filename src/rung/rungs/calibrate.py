"""Calibrated label scoring: normalization and batch calibration, chosen on validation rows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from rung.artifact.artifact import Artifact
from rung.artifact.parts import LabelScoring
from rung.data.rows import Data
from rung.machine import Machine
from rung.progress import QUIET, Progress
from rung.prompts.calibration import Normalization, batch_bias, divisors
from rung.rungs.base import YES, Cost, Verdict, never, no
from rung.rungs.costs import inference_cost


@dataclass(frozen=True)
class Calibrate:
    """Take the labels' own bias away (Zhou et al. 2024, https://arxiv.org/abs/2309.17249).

    Attributes:
        unlabelled: training rows whose inputs, not labels, give the labels' prior.
        selection_rows: validation rows on which sum or mean, calibrated or not, is chosen.
    """

    unlabelled: int = 64
    selection_rows: int = 64
    name: str = "calibrate"
    family: str = "prompting"

    def applies(self, artifact: Artifact, data: Data) -> Verdict:
        """It applies to scored labels that are not calibrated yet."""
        if not isinstance(artifact.decoder, LabelScoring):
            refused = no if artifact.shape.kind == "category" else never
            return refused("only the likelihoods of a label set can be calibrated")
        if artifact.decoder.bias:
            return no("the labels are calibrated already")
        if not data.train or not data.validation:
            return never("it needs training inputs and validation rows")
        return YES

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """Score all labels of the rows looked at."""
        rows = min(self.unlabelled, len(data.train)) + min(self.selection_rows, len(data.validation))
        return inference_cost(artifact, data, machine, fit_rows=rows)

    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Return the artifact with the best of four scorings; ties go to the plainer one."""
        decoder = artifact.decoder
        assert isinstance(decoder, LabelScoring)
        engine = artifact.open()
        # Ids are hashes, so their order is a shuffle that every run and every rung shares.
        inputs = sorted(data.train, key=lambda e: e.id)[: self.unlabelled]
        chosen_on = sorted(data.validation, key=lambda e: e.id)[: self.selection_rows]
        prior = decoder.logprobs(artifact, engine, artifact.render(inputs), progress=progress)
        scores = decoder.logprobs(artifact, engine, artifact.render(chosen_on), progress=progress)
        truth = np.array([decoder.labels.index(e.outputs[0]) for e in chosen_on])
        tokens = decoder.continuations(engine)
        best, settings, accuracy = decoder, {}, -1.0
        options: list[tuple[Normalization, bool]] = [("sum", False), ("mean", False), ("sum", True), ("mean", True)]
        for normalization, calibrated in options:
            divisor = divisors(tokens, normalization)
            bias = batch_bias(prior, divisor) if calibrated else np.zeros(len(tokens), np.float32)
            found = float((np.argmax(scores / divisor - bias, axis=1) == truth).mean())
            settings[f"{normalization}{' calibrated' if calibrated else ''}"] = found
            if found > accuracy:
                accuracy = found
                best = replace(decoder, normalization=normalization, bias=tuple(bias.tolist()))
        return artifact.step(self.name, {"accuracy_on_selection": settings, "rows": len(chosen_on)}, decoder=best)
