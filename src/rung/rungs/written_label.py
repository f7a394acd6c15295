"""Written labels: the model writes the label, held to the label set, where its likelihood would be scored."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rung.artifact.artifact import Artifact
from rung.artifact.parts import Generate, LabelScoring
from rung.data.rows import Data
from rung.machine import Machine
from rung.progress import QUIET, Progress
from rung.rungs.base import YES, Cost, Verdict, never, no
from rung.rungs.costs import inference_cost


@dataclass(frozen=True)
class WrittenLabel:
    """Decode one of the labels token by token. Greedy, so it may miss the likeliest label; its cost does not grow
    with the number of labels.
    """  # noqa: D205

    name: str = "written-label"
    family: str = "prompting"

    def applies(self, artifact: Artifact, data: Data) -> Verdict:
        """It applies where labels are scored, with one prompt a row."""
        del data
        if not isinstance(artifact.decoder, LabelScoring):
            refused = no if artifact.shape.kind == "category" else never
            return refused("no label set is scored")
        if artifact.weights.adapter is not None:
            return no("the adapter was trained for scored labels")
        if len(artifact.members()) > 1:
            return no("label scores are averaged over several prompts")
        return YES

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """A label's few tokens in place of the label tree."""
        return inference_cost(artifact, data, machine)

    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Return the artifact that writes; labels are named in the prompt, as nothing else tells them."""
        del data, progress
        decoder = artifact.decoder
        assert isinstance(decoder, LabelScoring)
        # No vocabulary of bytes needs more tokens than a text has bytes.
        most = max(len(text.encode()) for text in decoder.texts) + 8
        prompt = replace(artifact.prompt, labels=decoder.texts)
        return artifact.step(self.name, {}, prompt=prompt, decoder=Generate(most, choices=decoder.texts))
