"""Label descriptions: the question taken apart into what each label means."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rung.artifact.artifact import Artifact
from rung.artifact.parts import LabelScoring
from rung.data.rows import Data, labels_of
from rung.engines.opening import open_engine
from rung.errors import TrainingError
from rung.machine import Machine
from rung.progress import QUIET, Progress
from rung.prompt_search.budget import Limits, Meter
from rung.prompt_search.writer import MAX_TOKENS, SHOWN, CopyGuard, Writer
from rung.rungs.base import YES, Cost, Verdict, never, no
from rung.rungs.costs import inference_cost, sizes
from rung.rungs.reasoning import label_texts

STEPS = "Compare the input with what each label means, rule out those that do not fit, and answer with the best."
EXPECTED = 24  # tokens of a description


@dataclass(frozen=True)
class LabelDescriptions:
    """Show what each label means, and ask to compare: by the task file's `output.descriptions`, or as a model writes
    it from training rows with the label and without.

    Attributes:
        writer: the model that describes; empty for the task's own.
        most_labels: with more labels the prompt would be too long to be read well.
    """  # noqa: D205

    writer: str = ""
    most_labels: int = 40
    seed: int = 0
    name: str = "label-descriptions"
    family: str = "prompting"

    def applies(self, artifact: Artifact, data: Data) -> Verdict:
        """It applies to untuned prompts that choose among few labels."""
        labels = artifact.shape.labels
        if not labels:
            return never("there are no labels")
        if artifact.decoder.kind in ("head", "reasoning"):
            return no("no label is chosen by a prompt")
        if artifact.weights.adapter is not None:
            return no("the adapter was trained with this very prompt")
        if isinstance(artifact.decoder, LabelScoring) and artifact.decoder.bias:
            return no("the labels are calibrated for the prompt as it is")
        if len(labels) > self.most_labels:
            return never(
                f"describing {len(labels)} labels makes the prompt too long; `most_labels` is {self.most_labels}"
            )
        without = set(labels) - {one for row in data.train for one in labels_of(row.outputs[0], artifact.shape.kind)}
        if without and not artifact.prompt.descriptions:
            return never(f"there is no training row of the label {min(without)!r} to describe it by")
        return YES

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """Descriptions are read once for all rows; a model writes one per label."""
        if artifact.prompt.descriptions:
            return inference_cost(artifact, data, machine)
        per_row = max(1.0, sizes(artifact, data).question)
        rows = round(len(artifact.shape.labels) * (2 * SHOWN + MAX_TOKENS / per_row))
        return inference_cost(artifact, data, machine, fit_rows=rows)

    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Return the artifact with descriptions.

        Raises:
            TrainingError: `nothing-written`: no description is fit to be used.
        """
        texts, labels = label_texts(artifact), artifact.shape.labels
        described, refused = artifact.prompt.descriptions, {}
        meter = Meter(Limits())
        if not described:
            engine = open_engine(self.writer, progress=progress) if self.writer else artifact.open()
            guard = CopyGuard(data.train, (artifact.prompt.head(), *labels, *texts))
            writer = Writer(engine, guard, meter, seed=self.seed)
            written = dict(
                zip(labels, writer.descriptions(artifact, data.train, labels, progress=progress), strict=True)
            )
            refused = {label: f"{one.refused}: {one.text}" for label, one in written.items() if one.refused}
            kept = [(text, written[label]) for text, label in zip(texts, labels, strict=True)]
            described = tuple((text, one.text) for text, one in kept if not one.refused)
        if not described:
            raise TrainingError(
                "nothing-written",
                f"none of the {len(refused)} descriptions can be used; the first: {next(iter(refused.values()))}",
                hint="give `output.descriptions` in the task file, or a stronger model as `writer`",
            )
        instruction = f"{artifact.prompt.instruction.strip()}\n\n{STEPS}"
        prompt = replace(artifact.prompt, instruction=instruction, labels=texts, descriptions=described)
        settings = {"descriptions": dict(described), "refused": refused, "spent": meter.as_dict()}
        return artifact.step(self.name, settings, prompt=prompt)
