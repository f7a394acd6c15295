"""Several labels a row by their likelihoods: a threshold for each label, set on training rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rung.artifact.artifact import Artifact
from rung.artifact.parts import Generate, ListScoring
from rung.data.rows import Data, labels_of
from rung.machine import Machine
from rung.models.reference import is_endpoint
from rung.progress import QUIET, Progress
from rung.rungs.base import YES, Cost, Verdict, never, no
from rung.rungs.costs import inference_cost
from rung.rungs.label_heads import FEWEST, best_threshold


@dataclass(frozen=True)
class LabelThresholds:
    """Score every label at the beginning of a list, and give it above its threshold.

    Small models write one and the same list for every row; what they find likely still tells rows apart.

    Attributes:
        rows: training rows that thresholds are set on, at most.
    """

    rows: int = 200
    name: str = "label-thresholds"
    family: str = "prompting"

    def applies(self, artifact: Artifact, data: Data) -> Verdict:
        """It applies to lists of labels that are written by a model that was not tuned on the rows."""
        if artifact.shape.kind != "multilabel":
            return never("only where a row may have several labels")
        if not isinstance(artifact.decoder, Generate):
            return no("the labels have thresholds already")
        if is_endpoint(artifact.model):
            return never("an endpoint writes lists in one request, and scores labels in many")
        if artifact.weights.adapter is not None:
            return no("thresholds would be set on rows that the weights were tuned on")
        if len(data.train) < FEWEST:
            return never(f"{len(data.train)} training rows are too few to set thresholds on")
        return YES

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """Score all labels of the rows looked at."""
        return inference_cost(artifact, data, machine, fit_rows=min(self.rows, len(data.train)))

    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Return the artifact that scores labels. One that too few rows have is given as the others are on average."""
        labels = artifact.shape.labels
        chosen = sorted(data.train, key=lambda e: e.id)[: self.rows]  # ids are hashes: their order is a shuffle
        given = [set(labels_of(e.outputs[0], "multilabel")) for e in chosen]
        truth = np.array([[label in row for label in labels] for row in given])
        scoring = ListScoring(labels, (0.0,) * len(labels))
        values = scoring.values(artifact, artifact.open(), artifact.render(chosen), progress=progress)
        common = [k for k in range(len(labels)) if truth[:, k].sum() >= FEWEST]
        every = best_threshold(values.ravel(), truth.ravel())
        thresholds = tuple(
            best_threshold(values[:, k], truth[:, k]) if k in common else every for k in range(len(labels))
        )
        settings = {"rows": len(chosen), "labels_with_own_threshold": len(common)}
        return artifact.step(self.name, settings, decoder=ListScoring(labels, thresholds))
