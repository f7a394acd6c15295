"""Other base models: with `model: [a, b]`, every model after the first is a rung."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rung.artifact.artifact import Artifact
from rung.data.rows import Data
from rung.errors import ConfigError, ModelError
from rung.machine import Machine
from rung.models.reference import is_endpoint, resolve
from rung.progress import QUIET, Progress
from rung.rungs.base import OK, Applicability, Cost, Rung, short_name, skip
from rung.rungs.costs import inference_cost
from rung.task import Task

PREFIX = "model-"


@dataclass(frozen=True)
class OtherModel(Rung):
    """Give the same prompt, demonstrations and documents to another model.

    Attributes:
        task: the task with this model alone.
    """

    family = "model"
    learns = False

    task: Task

    @property
    def name(self) -> str:
        """`model-` and the model's short name, safe for folders: `model-qwen2.5-0.5b-instruct`."""
        return PREFIX + short_name(self.task.model)

    def suits(self, artifact: Artifact, data: Data) -> Applicability:
        """It applies if nothing was fitted to the current model: no weights, no head, no calibration."""
        del data
        if any(step.startswith(PREFIX) for step in artifact.path):
            return skip("another model was chosen already")
        if artifact.weights.adapter is not None:
            return skip("the trained weights belong to their model")
        plain = Artifact.zero_shot(self.task.only(artifact.model), artifact.signature.labels, engine=artifact.engine)
        if artifact.decoder != plain.decoder:
            return skip("how the answer is read was fitted to the current model")
        if not is_endpoint(self.task.model):
            try:
                resolve(self.task.model)
            except ModelError as missing:
                return skip(str(missing), final=True)
        return OK

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """There is nothing to fit; the model's size gives the cost of predictions."""
        return inference_cost(replace(artifact, model=self.task.model), data, machine)

    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Change the model."""
        del data
        if not is_endpoint(self.task.model):
            resolve(self.task.model, progress=progress)
        plain = Artifact.zero_shot(self.task, artifact.signature.labels, engine=artifact.engine)
        return artifact.step(self.name, {"model": self.task.model}, model=self.task.model, decoder=plain.decoder)


def other_models(task: Task) -> tuple[OtherModel, ...]:
    """A rung for every model of the task after the first.

    Raises:
        ConfigError: two have the same short name, or endpoints and models of this machine are mixed.
    """
    if len({is_endpoint(model) for model in task.models}) > 1:
        raise ConfigError(
            "bad-value",
            "`model` names endpoints and models of this machine, whose costs cannot be compared",
            hint="climb with one kind at a time",
        )
    names = [short_name(model) for model in task.models]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(
            "bad-value", f"`model`: two models are called {twice[0]!r}", hint="copy one to a folder of another name"
        )
    return tuple(OtherModel(task.only(model)) for model in task.models[1:])
