"""Reinforcement learning on the task's own metric, or on rewards that the user names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from rung.artifact.artifact import Artifact
from rung.artifact.best_of import best_of
from rung.artifact.costs import FORWARD
from rung.artifact.parts import Signature
from rung.artifact.text import generation
from rung.data.rows import LABELLED, Data, Example
from rung.engines.base import Sampling
from rung.evaluation.metrics.base import Case, Metric
from rung.evaluation.metrics.judge import RUBRIC
from rung.evaluation.metrics.registry import get_metric
from rung.evaluation.scoring import REWARDED_BY, exact_metric, metric_of, unseen_metrics
from rung.machine import Machine
from rung.models.checkpoint import ModelKind
from rung.progress import Progress
from rung.rungs.base import Applicability, Cost, Positive, rung, skip
from rung.rungs.costs import inference_cost, sizes
from rung.rungs.fine_tune import LIVE, TrainingRun
from rung.rungs.preference import FurtherTuning, Rate
from rung.training.config import AdvantageName, Count, NonNegative

if TYPE_CHECKING:
    from rung.engines.torch_engine import TorchEngine
    from rung.training.examples import TrainingReport
    from rung.training.loop import Evaluate
    from rung.training.loss import Loss
    from rung.training.rewards import Question, Reward

METRIC, EXACT = "metric", "exact"  # rewards that are the task's own metric, and the one of equal answers
Weight = Annotated[float, Field(gt=0)]


def _by(metric: Metric) -> Reward:
    """A metric as a reward."""

    def reward(rows: Sequence[Example], texts: Sequence[str]) -> list[float]:
        cases = [Case(text, row.outputs, {**row.inputs, **row.extra}) for row, text in zip(rows, texts, strict=True)]
        return [score.value for score in metric.scores(cases)]

    return reward


@rung("rl", family="reinforcement", order=990)
@dataclass(frozen=True, kw_only=True)
class RL(FurtherTuning):
    """Sample answers, score them by the task's metric, and make the better ones of each row likelier.

    REINFORCE with the mean of the other answers as the baseline (Ahmadian et al. 2024,
    https://arxiv.org/abs/2402.14740), or the advantages of GRPO (https://arxiv.org/abs/2402.03300), Dr. GRPO
    (https://arxiv.org/abs/2503.20783) or DAPO (https://arxiv.org/abs/2503.14476). Every batch of answers is used for
    one step. It refines an artifact that answers some rows rightly: put it on a fine-tuned one. Low-rank updates learn
    it as well as full ones, with little rank (Schulman et al. 2025, "LoRA Without Regret").

    Rows of a tenth are held out: after each epoch the metric on them decides whether to go on.

    Attributes:
        advantage: `rloo`, `grpo`, `dr_grpo` or `dapo`.
        group_size: answers to each row.
        batch_size: rows of a step.
        temperature: of the samples.
        rewards: weights of the rewards, by name; an answer gets their weighted mean. `metric`: the task's own. `exact`:
            whether it is the expected answer. `valid`: whether it has the form that the task asks for. `length`: 1 down
            to 0 the longer it is than the expected one. `reward-model`: that of the artifact. `judge`: whether
            `judge_model` prefers it to the expected answer. Any other is a metric's name, or a function of the user,
            as `module:function`.
        judge_model: the model of the reward `judge`.
        beta: weight of the divergence from the artifact as it was; it is measured also at 0.
        max_tokens: longest sampled answer; by default that of the artifact. One that is cut has no reward.
        rollout_model: a vLLM server that samples the answers, as `http://HOST/v1#MODEL`, with the same base model and
            this machine's files; by default, torch samples them. Not run on hardware.
    """

    needs = ("training", "one prompt", "open weights", "training rows")
    trains_together = False  # answers that are sampled differ between processes

    model_settings: ClassVar[Mapping[str, ModelKind]] = {"judge_model": "language model"}

    advantage: AdvantageName = "rloo"
    group_size: Annotated[int, Field(ge=2)] = 8
    batch_size: Count = 16
    temperature: Positive = 1.0
    rewards: Mapping[str, Weight] = field(default_factory=lambda: {METRIC: 1.0})
    judge_model: str | None = None
    beta: NonNegative = 0.0
    max_tokens: Count | None = None
    rollout_model: str | None = None
    learning_rate: Rate = 1e-4

    def suits(self, artifact: Artifact, data: Data) -> Applicability:
        """It needs answers that the model writes, and a metric that says more than the label."""
        if artifact.signature.kind in LABELLED:
            reason = (
                "the expected labels are known: cross-entropy on them, as `lora` has, is this objective without noise"
            )
            return skip(reason, final=True)
        if generation(artifact.decoder) is None:
            return skip("its answers are not written directly, so none can be sampled")
        if artifact.weights.virtual_tokens:
            return skip("it does not train soft prompts")
        decoder = best_of(artifact.decoder)
        if "reward-model" in self.rewards and (decoder is None or decoder.reward is None):
            return skip("its reward needs a reward model: put it on top of `reward-model`")
        if ("judge" in self.rewards) != (self.judge_model is not None):
            return skip("the reward `judge` and the setting `judge_model` go together", final=True)
        if not self.rewards:
            return skip("`rewards` names none", final=True)
        if self.rollout_model is not None and (self.full or self.temperature != 1):
            return skip("`rollout_model` samples with a LoRA adapter, at `temperature: 1.0`", final=True)
        return super().suits(artifact, data)

    def training_rows(
        self, artifact: Artifact, engine: TorchEngine, data: Data, report: TrainingReport, progress: Progress
    ) -> Sequence[Question]:
        """The prompts, with what answers to them are compared with."""
        from rung.training.rewards import Question

        longest, rows = self._longest(artifact), []
        for row, rendered in zip(data.train, artifact.render(data.train, progress=progress), strict=True):
            report.rows += 1
            expected = engine.encode(artifact.decoder.target_text(row.outputs[0], artifact.signature.labels))
            prompt = engine.fitting(rendered.messages, longest)
            rows.append(Question(prompt, (expected,), row.source, example=row, room=self.group_size * longest))
        return rows

    def _longest(self, artifact: Artifact) -> int:
        return self.max_tokens or artifact.decoder.max_new_tokens or 0

    def objective(self, run: TrainingRun, progress: Progress) -> tuple[Sequence[Any], Loss, Evaluate | None]:
        """The rewards; other metrics are measured besides, and the task's own decides when to stop."""
        del progress
        from rung.engines.api import ApiEngine
        from rung.training.rewards import RewardLoss, ServedRollouts

        served = None
        if self.rollout_model is not None:
            served = ServedRollouts(ApiEngine(self.rollout_model), run.change, run.engine.base_fingerprint)
        shape, folder = run.artifact.signature, run.data.folder
        unseen = {metric.name: _by(metric) for metric in unseen_metrics(shape, self._metrics(shape))}
        loss = RewardLoss(
            run.engine, run.change, LIVE, {name: self._reward(name, run, folder) for name in self.rewards},
            self.rewards, unseen, self.advantage, self.group_size,
            Sampling(self._longest(run.artifact), self.temperature), self.beta, self.seed, served,
        )  # fmt: skip
        return run.rows, loss, self.metric_of(run) if run.held_out else None

    def _metrics(self, shape: Signature) -> list[str]:
        """The names of the rewards, with those of metrics in place of `metric` and `exact`."""
        return [{METRIC: shape.metric, EXACT: exact_metric(shape)}.get(name, name) for name in self.rewards]

    def _reward(self, name: str, run: TrainingRun, folder: Path | None) -> Reward:
        """The reward of this name."""
        artifact, writer, decoder = run.artifact, generation(run.artifact.decoder), best_of(run.artifact.decoder)
        if name == METRIC:
            return _by(metric_of(artifact, folder))
        if name == "judge":
            return _by(get_metric(name, settings={"model": self.judge_model, "rubric": RUBRIC}))
        if name == "valid":
            assert writer is not None
            return lambda rows, texts: [float(writer.is_valid(text)) for text in texts]
        if name == "length":
            return lambda rows, texts: [
                min(1.0, max(map(len, row.outputs)) / max(1, len(text))) for row, text in zip(rows, texts, strict=True)
            ]
        if name != "reward-model":
            return _by(get_metric(exact_metric(artifact.signature) if name == EXACT else name, folder))
        assert decoder is not None

        def rated(rows: Sequence[Example], texts: Sequence[str]) -> list[float]:
            prompts = [each.messages for each in artifact.render(rows)]
            return [1 / (1 + math.exp(-value)) for (value,) in decoder.rated(artifact, prompts, [[t] for t in texts])]

        return rated

    def facts(self, artifact: Artifact) -> dict[str, Any]:
        """By what it was rewarded: the decision has to know."""
        return {REWARDED_BY: self._metrics(artifact.signature)}

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """Sampling every answer once an epoch, scoring it under the reference, and training on it."""
        s, use = sizes(artifact, data), inference_cost(artifact, data, machine)
        answers = self.group_size * s.answer
        row = s.head / self.batch_size + use.row_tokens - s.decoding + answers
        cost = self._training_cost(artifact, machine, use, s, row, len(data.train))
        sampled = self.epochs * len(data.train) * FORWARD * s.parameters * (2 * row)
        return replace(
            cost, fit_flops=cost.fit_flops + sampled, fit_seconds=cost.fit_seconds + machine.inference_seconds(sampled)
        )
