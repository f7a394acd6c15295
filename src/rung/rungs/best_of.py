"""A reward model from pairs of answers, and the best of several sampled answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import Field

from rung.artifact.artifact import Artifact
from rung.artifact.best_of import BestOf, Choice, best_of
from rung.artifact.costs import FORWARD
from rung.artifact.parts import Weights
from rung.artifact.text import generation
from rung.data.rows import Data
from rung.errors import ConfigError
from rung.evaluation.metrics.registry import get_metric
from rung.machine import Machine
from rung.models.reference import is_endpoint
from rung.progress import QUIET, Progress
from rung.rungs.base import OK, Applicability, Cost, CountOrZero, Positive, Rung, rung, skip
from rung.rungs.costs import inference_cost, sizes
from rung.rungs.fine_tune import TrainingRun
from rung.rungs.preference import PreferenceTuning, Rate
from rung.training.config import NonNegative

if TYPE_CHECKING:
    from rung.engines.torch_engine import TorchEngine
    from rung.training.changes import Change
    from rung.training.loop import Evaluate
    from rung.training.loss import Loss
    from rung.training.preferences import JudgedLoss


@rung("reward-model", family="preference", order=985, topics=("answer pairs",))
@dataclass(frozen=True, kw_only=True)
class RewardModel(PreferenceTuning):
    """Learn from pairs to rate answers; the artifact's own answers stay as they are.

    A low-rank update and a vector rate an answer by the state after its last token (Bradley & Terry 1952; Stiennon et
    al. 2020, https://arxiv.org/abs/2009.01325). `best-of-n` then chooses by these rates, and `rl` can be rewarded by
    them.

    Attributes:
        margin: by how much the better answer is to be rated higher.
        center: weight of a term that keeps rates around 0.
    """

    with_preferences = False

    margin: NonNegative = 0.0
    center: NonNegative = 0.01
    learning_rate: Rate = 1e-4
    full: bool = field(default=False, init=False, repr=False)
    beta: Positive = field(default=0.1, init=False, repr=False)

    def suits(self, artifact: Artifact, data: Data) -> Applicability:
        """It needs pairs, and answers that are written."""
        if generation(artifact.decoder) is None:
            return skip("its answers are not written, so there is nothing to choose among")
        if best_of(artifact.decoder) is not None:
            return skip("it has a choice of answers already")
        return super().suits(artifact, data)

    def change(self, engine: TorchEngine, artifact: Artifact) -> Change:
        """Add the vector to the change that would be trained otherwise."""
        from rung.training.reward_model import RewardHead

        return RewardHead(engine.model, super().change(engine, artifact))

    def parts_of(self, artifact: Artifact, weights: Weights) -> dict[str, Any]:
        """The reward model goes into the decoder."""
        writer = generation(artifact.decoder)
        assert writer is not None
        return {"decoder": _best_of(writer, reward=weights.adapter)}

    def objective(self, run: TrainingRun, progress: Progress) -> tuple[Sequence[Any], Loss, Evaluate | None]:
        """There is no reference: only the pairs that are held out or unseen become tokens."""
        parts = self.other_rows(run, progress)
        loss = self.judged_loss(run, run.rows, *parts)
        return run.rows, loss, loss.value if parts[0] else None

    def judged_loss(
        self, run: TrainingRun, rows: Sequence[Any], held_out: Sequence[Any], unseen: Sequence[Any]
    ) -> JudgedLoss:
        """The likelihood of the pairs."""
        from rung.training.reward_model import BradleyTerryLoss, RewardHead

        del rows
        head = cast("RewardHead", run.change).head
        return BradleyTerryLoss(run.engine.model, held_out, unseen, head=head, margin=self.margin, center=self.center)


def _best_of(writer: Any, **parts: Any) -> BestOf:
    """The decoder of written answers, with a choice among them."""
    own = {"max_tokens": writer.max_tokens, "json_schema": writer.json_schema, "choices": writer.choices}
    return BestOf(**own, regex=writer.regex, **parts)


@rung("best-of-n", family="preference", order=987, topics=("best of several",))
@dataclass(frozen=True)
class BestOfN(Rung):
    """Sample several answers to a row, and give the best one.

    Nothing is trained. Every answer costs as much as one of the artifact's own, so it is the yardstick for training
    that is to reach the same with one answer (Nakano et al. 2021, https://arxiv.org/abs/2112.09332).

    Attributes:
        samples: answers to each row.
        temperature: of the samples.
        choose: `reward`: by the reward model of the artifact. `check`: the most common result among the answers that
            the task's metric can run or read (SQL, programs, records, numbers). `votes`: the most common answer.
            `auto`: the first of these that is possible.
        seed: of the first sample.
    """

    learns = False
    needs = ("one prompt",)

    samples: Annotated[int, Field(ge=2)] = 8
    temperature: Positive = 0.7
    choose: Choice | Literal["auto"] = "auto"
    seed: CountOrZero = 0

    def suits(self, artifact: Artifact, data: Data) -> Applicability:
        """It needs answers that are written."""
        del data
        if generation(artifact.decoder) is None:
            return skip("its answers are not written directly, so none can be sampled")
        decoder = best_of(artifact.decoder)
        if decoder is not None and decoder.samples > 1:
            return skip("the best of several answers is given already")
        if self.choose == "reward" and (decoder is None or decoder.reward is None):
            return skip("there is no reward model: put it on top of `reward-model`")
        return OK

    def _choice(self, artifact: Artifact, data: Data) -> Choice:
        """How the answer is chosen.

        Raises:
            ConfigError: `check`, and the task's metric cannot run or read answers by themselves.
        """
        shape, decoder = artifact.signature, best_of(artifact.decoder)
        readable = get_metric(shape.metric, data.folder, shape.metric_settings).reading is not None
        if self.choose == "check" and not readable:
            problem = f"best-of-n.choose: the metric {shape.metric} cannot check an answer without the expected one"
            raise ConfigError("bad-setting", problem, hint="leave `choose` out, or use `votes`")
        if self.choose != "auto":
            return self.choose
        return "reward" if decoder is not None and decoder.reward is not None else "check" if readable else "votes"

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """All samples count; the prompt is read once, and by a reward model once for each."""
        s, more = sizes(artifact, data), float(self.samples - 1)
        extra = more * s.answer
        decoder = best_of(artifact.decoder)
        if is_endpoint(artifact.model):  # which bills the prompt of every sample
            extra += more * (s.head + s.question)
        if self.choose in ("auto", "reward") and decoder is not None and decoder.reward is not None:
            extra += self.samples * (s.head + s.question + s.answer)
        cost = inference_cost(artifact, data, machine, extra_tokens=extra)
        return replace(cost, row_flops=FORWARD * s.parameters * cost.row_tokens)

    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Sample several answers in place of one; nothing is trained."""
        del progress
        writer, choose = generation(artifact.decoder), self._choice(artifact, data)
        assert writer is not None
        had = best_of(writer)
        settings = {"samples": self.samples, "temperature": self.temperature, "choose": choose, "seed": self.seed}
        folder = str(Path(data.folder or Path.cwd()).resolve()) if choose == "check" else ""
        decoder = _best_of(writer, reward=None if had is None else had.reward, folder=folder, **settings)
        return artifact.step(self.name, settings, decoder=decoder)
