"""Learning from preferences: DPO and its variants, ORPO, SimPO, and KTO."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from rung.artifact.artifact import Artifact
from rung.artifact.costs import FORWARD, Sizes
from rung.artifact.text import generation
from rung.data.rows import Data, Preference, hash_of, place_of
from rung.machine import Machine
from rung.models.cache import cache_dir
from rung.models.reference import resolve
from rung.progress import Progress
from rung.rungs.base import Applicability, Cost, CountOrZero, Positive, rung, skip
from rung.rungs.costs import FROZEN_BASE, FULL, inference_cost, sizes
from rung.rungs.fine_tune import TrainingRun
from rung.rungs.lora import LoRA
from rung.training.config import Count, NonNegative, PairLossName, Share, Supervise
from rung.training.precision import matmul_dtype

if TYPE_CHECKING:
    from rung.engines.torch_engine import TorchEngine
    from rung.training.changes import Change
    from rung.training.examples import Completions, TrainingReport
    from rung.training.loop import Evaluate
    from rung.training.loss import Loss
    from rung.training.preferences import JudgedLoss

FEWEST = 20  # inputs below which none are held out
Rate = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, kw_only=True)
class FurtherTuning(LoRA):
    """A rung that starts from the artifact's own weights, whatever they are.

    An adapter that the artifact has is trained further, with its own rank and scale; without one a fresh low-rank
    update is. The artifact as it is before training is the reference.

    Attributes:
        full: train all parameters of the model instead of a low-rank update. It takes a learning rate of about a tenth.
    """

    needs: ClassVar[tuple[str, ...]] = ("training", "one prompt", "open weights")

    full: bool = False
    learning_rate: Rate = 5e-5
    lr_scheduler: Literal["cosine", "linear", "constant"] = "linear"
    warmup_ratio: Share = 0.1
    patience: Count | None = 1

    # All of an answer is trained on, and where training starts is the artifact's own affair.
    supervise: Supervise = field(default="auto", init=False, repr=False)
    continue_from: str | None = field(default=None, init=False, repr=False)
    label_smoothing: Share = field(default=0.0, init=False, repr=False)
    neftune_alpha: NonNegative = field(default=0.0, init=False, repr=False)

    def base_precision(self, artifact: Artifact) -> str:
        """That of the artifact."""
        return artifact.weights.base

    def resumed_adapter(self, artifact: Artifact) -> Path | None:
        """The artifact's own adapter."""
        return artifact.weights.adapter

    def reason_against(self, artifact: Artifact) -> str:
        """Refuse to train all parameters below an adapter, and places that something else decides."""
        tuned = artifact.weights.adapter is not None
        if self.full and tuned:
            return "all parameters cannot be trained below an adapter: merge it first, or leave `full` out"
        if (self.full or tuned) and self.named_places:
            why = "`full` trains all parameters" if self.full else "it goes on with the weights that are tuned already"
            return f"{why}: leave `{self.named_places[0]}` out"
        return super().reason_against(artifact)

    def reached_share(self, engine: TorchEngine) -> float | None:
        """Only a fresh update says so."""
        return None if self.full else super().reached_share(engine)

    def change(self, engine: TorchEngine, artifact: Artifact) -> Change:
        """Put on a change like the artifact's own, whose contents follow, or else a fresh update."""
        from rung.engines.changes import attach, family_of, settings_for
        from rung.training.changes import Patch, plain_parameters
        from rung.training.peft import PeftAdapter

        if (adapter := artifact.weights.adapter) is None:
            if self.full:
                return Patch(engine.model, plain_parameters(engine.model).__contains__, trained=True)
            return super().change(engine, artifact)
        settings = settings_for(adapter, engine.base_fingerprint)
        engine.make_room(family_of(adapter))
        if "tensors" in settings:
            return Patch(engine.model, set(settings["tensors"]).__contains__, trained=True)
        if settings.get("peft_type") == "LORA":
            return PeftAdapter.from_dict(engine.model, settings | {"lora_dropout": self.dropout})
        change: Change = attach(engine.model, adapter, fingerprint=engine.base_fingerprint)
        return change

    def operations(self, artifact: Artifact, s: Sizes, rows: int, tokens: float) -> float:
        """As of other fine-tuning, of all parameters where all are trained."""
        del artifact, rows
        return self.epochs * (FULL if self.full else FROZEN_BASE) * s.parameters * tokens

    def trained_size(self, artifact: Artifact) -> int:
        """The size of the model where all of it is trained."""
        return resolve(artifact.model).parameters if self.full else 0


@dataclass(frozen=True, kw_only=True)
class PreferenceTuning(FurtherTuning):
    """A rung that learns from judged answers; a subclass says with which loss.

    One input in ten is held out while there are at least twenty; after each epoch the loss of its answers decides
    whether to go on, and the weights of the best epoch are kept.

    Attributes:
        samples: how many answers to sample for every training row. Where the task's metric tells them apart, the best
            and the worst become a pair. 0 samples none.
        temperature: of these samples.
        beta: how far the answers may move from the reference: a larger value keeps them nearer.
    """

    with_preferences = True

    samples: CountOrZero = 0
    temperature: Positive = 1.0
    beta: Positive = 0.1

    reads: ClassVar[Literal["pairs", "answers"]] = "pairs"

    @abstractmethod
    def judged_loss(
        self, run: TrainingRun, rows: Sequence[Any], held_out: Sequence[Any], unseen: Sequence[Any]
    ) -> JudgedLoss:
        """The loss of such rows, which is also measured on `held_out` and `unseen`."""

    # ---- the rows

    def judged(self, data: Data) -> tuple[Preference, ...]:
        """The preferences that this loss learns from."""
        return tuple(each for each in data.preferences if each.pair is not None)

    def without_thoughts(self, data: Data) -> int:
        """How many of the judged answers have no thought before them."""
        answers = (answer for each in data.preferences for answer in (each.chosen, each.rejected) if answer is not None)
        return sum(not answer.has_thought for answer in answers)

    def suits(self, artifact: Artifact, data: Data) -> Applicability:
        """It needs preferences, or answers that can be sampled and scored."""
        if self.samples:
            if generation(artifact.decoder) is None:
                return skip("its answers are not written, so none can be sampled")
            if not data.train:
                return skip("there are no training rows to sample answers to", final=True)
        elif not self.judged(data):
            what = "pairs of a better and a worse answer" if self.reads == "pairs" else "judged answers"
            return skip(f"there are no {what}: set `data.preferences`, or the rung's `samples`", final=True)
        return super().suits(artifact, data)

    def divide(self, data: Data) -> tuple[Data, Sequence[Any]]:
        """Hold out the preferences about a share of the inputs, if there are enough."""
        judged = self.judged(data)
        few = len({each.row.id for each in judged}) < FEWEST
        if self.patience is None or few:
            return replace(data, preferences=judged), ()
        parts: tuple[list[Preference], list[Preference]] = ([], [])
        for each in judged:
            parts[place_of([each.row.id, self.seed]) < self.holdout].append(each)
        return replace(data, preferences=tuple(parts[0])), parts[1] if all(parts) else ()

    def training_rows(
        self, artifact: Artifact, engine: TorchEngine, data: Data, report: TrainingReport, progress: Progress
    ) -> Sequence[Completions]:
        """The preferences as tokens, with those of sampled answers."""
        judged = data.preferences
        if self.samples:
            judged += self._sampled(artifact, engine, data, progress)
        return self._tokens(artifact, engine, judged, report, progress)

    def _tokens(
        self, artifact: Artifact, engine: TorchEngine, judged: Sequence[Preference], report: TrainingReport,
        progress: Progress,
    ) -> Sequence[Completions]:  # fmt: skip
        from rung.training.examples import tokenize_answers
        from rung.training.preferences import Pair

        pairs = [each.pair for each in judged if each.pair is not None]
        rows = tokenize_answers(artifact, engine, pairs, truncation=self.truncation, report=report, progress=progress)
        return [Pair(row.prompt, row.completions, row.source) for row in rows]

    def _sampled(
        self, artifact: Artifact, engine: TorchEngine, data: Data, progress: Progress
    ) -> tuple[Preference, ...]:
        """Sample answers to the training rows: the best and the worst by the task's metric are a pair if they differ.

        Answers that were cut, and empty ones, are left out.
        """
        from rung.evaluation.metrics.base import Case
        from rung.evaluation.scoring import metric_of

        decoder = generation(artifact.decoder)
        assert decoder is not None
        requests = []
        for rendered in artifact.with_engine(engine).render(data.train, progress=progress):
            plain = decoder.request(artifact, rendered.messages)
            sampling = replace(plain.sampling, temperature=self.temperature, seed=self.seed)
            requests += [replace(plain, sampling=sampling)] * self.samples
        labels = dict(zip(decoder.choices, artifact.signature.labels, strict=True)) if decoder.choices else {}
        answers = [
            (data.train[i // self.samples], labels.get(each.text.strip(), each.text.strip()))
            for i, each in enumerate(engine.generate(requests, progress=progress))
            if each.finish_reason == "stop" and each.text.strip()
        ]
        cases = [Case(text, row.outputs, {**row.inputs, **row.extra}) for row, text in answers]
        scored: dict[str, list[tuple[float, str]]] = {}
        for (row, text), score in zip(answers, metric_of(artifact, data.folder).scores(cases), strict=True):
            scored.setdefault(row.id, []).append((score.value, text))
        pairs = []
        for row in data.train:
            (worst, rejected), (best, chosen) = (of(scored.get(row.id) or [(0.0, "")]) for of in (min, max))
            if best > worst:
                pairs.append(Preference(replace(row, outputs=(chosen,)), replace(row, outputs=(rejected,))))
        progress.start("pairs of sampled answers")
        progress.finish(f"{len(pairs):,} of {len(data.train):,} rows have answers of different scores")
        return tuple(pairs)

    # ---- the loss

    def objective(self, run: TrainingRun, progress: Progress) -> tuple[Sequence[Any], Loss, Evaluate | None]:
        """Compute the reference's log-probabilities of all answers once; the held-out ones decide when to stop."""
        from rung.training.preferences import reference_logprobs

        parts = [run.rows, *self.other_rows(run, progress)]
        rows, model = [row for part in parts for row in part], run.engine.model
        dtype = matmul_dtype(model.device.type, self.precision)
        weights = [run.engine.info.fingerprint, run.start, run.artifact.weights.base, dtype]
        key = hash_of([weights, [row.content for row in rows]], digits=32)
        progress.start("answers under the reference", len(rows))
        values = iter(reference_logprobs(model, run.change, rows, cache_dir() / "references" / f"{key}.json", dtype))
        train, held_out, unseen = ([replace(row, reference=next(values)) for row in part] for part in parts)
        loss = self.judged_loss(run, train, held_out, unseen)
        progress.finish(self._already(train))
        return train, loss, loss.value if held_out else None

    def other_rows(self, run: TrainingRun, progress: Progress) -> tuple[Sequence[Any], Sequence[Any]]:
        """The preferences that are held out, and those about validation and test rows, as tokens."""
        from rung.training.examples import TrainingReport

        unseen = self.judged(replace(run.data, preferences=run.data.unseen_preferences))
        tokens = (
            self._tokens(run.artifact, run.engine, judged, TrainingReport(), progress)
            for judged in (run.held_out, unseen)
        )
        held_out, others = ([row.after(run.change.prefix) for row in rows] for rows in tokens)
        return held_out, others

    def _already(self, rows: Sequence[Any]) -> str:
        """Say how much there is to learn from the rows."""
        right = 0
        for row in rows:
            better, worse = (value / len(each) for value, each in zip(row.reference, row.completions, strict=True))
            right += better > worse
        return f"{right:,} of {len(rows):,} pairs have the better answer as the likelier one already"

    # ---- the cost

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """Training on both answers of a pair, a pass over them for the reference, and the samples."""
        s, use = sizes(artifact, data), inference_cost(artifact, data, machine)
        judged = len(self.judged(data)) + (len(data.train) if self.samples else 0)
        written = self.samples * len(data.train)
        pair = s.head / self._largest_batch + use.row_tokens - s.decoding + 2 * s.answer
        cost = self._training_cost(artifact, machine, use, s, pair, judged)
        before = FORWARD * s.parameters * (judged * pair + written * (use.row_tokens - s.decoding + s.answer))
        return replace(
            cost, fit_flops=cost.fit_flops + before, fit_seconds=cost.fit_seconds + machine.inference_seconds(before)
        )


@rung("dpo", family="preference", order=950, topics=("answer pairs",))
@dataclass(frozen=True, kw_only=True)
class DPO(PreferenceTuning):
    """Raise the better answer's probability over the worse one's, measured from the artifact as it is.

    Direct preference optimization (Rafailov et al. 2023, https://arxiv.org/abs/2305.18290) and its variants. The
    better answer's own likelihood is added, as the probability of both falls without it where they differ by few
    tokens, which is what corrections are (Pal et al. 2024, https://arxiv.org/abs/2402.13228; Pang et al. 2024,
    https://arxiv.org/abs/2404.19733).

    Attributes:
        loss: `sigmoid` is the paper's; `ipo` does not overfit pairs that are beyond doubt (Azar et al. 2023,
            https://arxiv.org/abs/2310.12036); `hinge` is a margin (https://arxiv.org/abs/2305.10425); `cdpo` and
            `robust` expect a share `label_smoothing` of wrong pairs (https://arxiv.org/abs/2403.00409);
            `sigmoid_norm` measures answers by the mean of their tokens (https://arxiv.org/abs/2411.15124).
        label_smoothing: the share of pairs that are the wrong way round, for `cdpo` and `robust`.
        nll: weight of the better answer's negative log-likelihood, a mean over its tokens; 0 is plain DPO.
    """

    loss: PairLossName = "sigmoid"
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    nll: NonNegative = 1.0

    def judged_loss(
        self, run: TrainingRun, rows: Sequence[Any], held_out: Sequence[Any], unseen: Sequence[Any]
    ) -> JudgedLoss:
        """The chosen loss, with the likelihood."""
        from rung.training.preferences import PairLoss, dpo

        del rows
        objective = dpo(self.loss, self.beta, self.label_smoothing)
        return PairLoss(run.engine.model, held_out, unseen, objective=objective, nll=self.nll)


@rung("orpo", family="preference", order=960, topics=("answer pairs",))
@dataclass(frozen=True, kw_only=True)
class ORPO(PreferenceTuning):
    """Learn to write the better answer, and widen the odds between it and the worse one; no reference is kept to.

    Odds-ratio preference optimization (Hong et al. 2024, https://arxiv.org/abs/2403.07691). It is fine-tuning and
    preference training in one, so its learning rate is higher than that of `dpo`.

    Attributes:
        beta: weight of the odds ratio; small models take 0.5 to 1, those of 3 billion parameters or more 0.05 to 0.1.
    """

    with_preferences = False

    beta: Positive = 0.5
    learning_rate: Rate = 2e-4

    def judged_loss(
        self, run: TrainingRun, rows: Sequence[Any], held_out: Sequence[Any], unseen: Sequence[Any]
    ) -> JudgedLoss:
        """The odds ratio, with the likelihood."""
        from rung.training.preferences import PairLoss, orpo

        del rows
        return PairLoss(run.engine.model, held_out, unseen, objective=orpo(self.beta), nll=1.0)


@rung("simpo", family="preference", order=970, topics=("answer pairs",))
@dataclass(frozen=True, kw_only=True)
class SimPO(PreferenceTuning):
    """Raise the better answer's mean log-probability over the worse one's by a margin, without a reference.

    Simple preference optimization (Meng et al. 2024, https://arxiv.org/abs/2405.14734). Lengths do not matter, as
    means over tokens are compared. Only a small learning rate keeps answers near those of the artifact.

    Attributes:
        beta: how sharply the margin is enforced.
        gamma_beta_ratio: the margin.
    """

    with_preferences = False

    beta: Positive = 2.5
    gamma_beta_ratio: NonNegative = 0.5
    learning_rate: Rate = 1e-5

    def judged_loss(
        self, run: TrainingRun, rows: Sequence[Any], held_out: Sequence[Any], unseen: Sequence[Any]
    ) -> JudgedLoss:
        """The margin."""
        from rung.training.preferences import PairLoss, simpo

        del rows
        return PairLoss(run.engine.model, held_out, unseen, objective=simpo(self.beta, self.gamma_beta_ratio))


@rung("kto", family="preference", order=980, topics=("answer verdicts",))
@dataclass(frozen=True, kw_only=True)
class KTO(PreferenceTuning):
    """Raise answers that people liked and lower those that they did not; a thumb for one answer is enough.

    Kahneman-Tversky optimization (Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306). Both answers of a pair
    count as well. Where good and bad answers are out of balance, the rarer side gets more weight, as the paper advises.
    """

    batch_size: Count = 16

    reads: ClassVar[Literal["pairs", "answers"]] = "answers"

    def judged(self, data: Data) -> tuple[Preference, ...]:
        """All preferences."""
        return data.preferences

    def _tokens(
        self, artifact: Artifact, engine: TorchEngine, judged: Sequence[Preference], report: TrainingReport,
        progress: Progress,
    ) -> Sequence[Completions]:  # fmt: skip
        from rung.training.examples import tokenize_answers
        from rung.training.preferences import judged_answers

        rows: list[tuple[Completions, bool]] = []
        for good in (True, False):
            answers = [each.chosen if good else each.rejected for each in judged]
            made = tokenize_answers(
                artifact, engine, [[row] for row in answers if row is not None], truncation=self.truncation,
                report=report, progress=progress,
            )  # fmt: skip
            rows += [(row, good) for row in made]
        random.Random(self.seed).shuffle(rows)
        return judged_answers([row for row, _ in rows], [good for _, good in rows])

    def judged_loss(
        self, run: TrainingRun, rows: Sequence[Any], held_out: Sequence[Any], unseen: Sequence[Any]
    ) -> JudgedLoss:
        """The paper's loss, balanced."""
        from rung.training.preferences import AnswerVerdictLoss, balancing_weights

        good = sum(row.good for row in rows)
        weights = balancing_weights(good, len(rows) - good)
        return AnswerVerdictLoss(
            run.engine.model, held_out, unseen, beta=self.beta, good_weight=weights[0], bad_weight=weights[1]
        )

    def _already(self, rows: Sequence[Any]) -> str:
        good = sum(row.good for row in rows)
        return f"{good:,} good and {len(rows) - good:,} bad answers"
