"""What all rungs that train weights share: when they apply, what they cost, and the run itself."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, cast

from pydantic import Field

from rung.artifact.artifact import Artifact
from rung.artifact.costs import Sizes
from rung.artifact.files import artifact_folder
from rung.artifact.parts import Weights
from rung.data.rows import Data, Example, hash_of, place_of
from rung.engines.opening import open_torch
from rung.errors import ConfigError, TrainingError
from rung.machine import Machine
from rung.models.cache import cache_dir
from rung.models.files import writing
from rung.models.reference import resolve
from rung.progress import QUIET, Progress
from rung.rungs.base import OK, Applicability, Cost, Rung, skip
from rung.rungs.costs import ACTIVATION_BYTES, FROZEN_BASE, base_bytes, inference_cost, sizes
from rung.training.config import Supervise, TrainConfig, Truncation
from rung.training.distributed import current, in_parts
from rung.training.optimizers import STATE_BYTES, missing_library
from rung.training.precision import matmul_dtype

if TYPE_CHECKING:
    from rung.engines.torch_engine import TorchEngine
    from rung.training.changes import Change
    from rung.training.examples import Completions, TokenizedExample, TrainingReport
    from rung.training.loop import Evaluate, TrainResult
    from rung.training.loss import Loss
    from rung.training.memory import Fit

BYTES_PER_TOKEN = 600_000  # activations that the embedded model keeps for the backward pass, measured
RATES = (1 / 3, 1.0, 3.0)  # of the default: the rates that `learning_rate: auto` tries
TRIAL_SHARE, TRIAL_STEPS = 0.1, 8  # the share of the steps that each is tried for, and the fewest steps
LARGEST_BATCH, FEWEST_STEPS = 64, 16  # of `batch_size: auto`: larger batches, or fewer steps an epoch, learn worse
TRAINED_BYTES = 8  # a trained parameter's new value and its gradient; 4 more for the best value, and the optimizer's
PARTS = (0.25, 0.5, 1.0)  # of the steps: where a climb looks whether it is worth going on
LIVE = "training"  # the engine's name for the weights that are being trained


def hold_out(
    rows: Sequence[Example], share: float, seed: int, *, patience: int | None
) -> tuple[list[Example], list[Example]]:
    """Split training rows into those to train on and those for early stopping, by their hash; without patience none.

    Validation rows are not used for this: the race compares rungs on them.

    Raises:
        TrainingError: there are too few rows to hold any out.
    """
    if patience is None:
        return list(rows), []
    parts: tuple[list[Example], list[Example]] = ([], [])
    for row in rows:
        parts[place_of([row.id, seed]) < share].append(row)
    if not all(parts):
        raise TrainingError(
            "too-few-rows", f"{len(rows)} training rows are too few to hold {share:.0%} of them out",
            hint="train without `patience`, or with a larger `holdout`",
        )  # fmt: skip
    return parts


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """What the loss and the evaluation of one training run are made from.

    Attributes:
        engine: the base model, with the change on it.
        artifact: the artifact that is trained.
        change: what is trained, as it starts, switched off.
        start: identifies the weights that it starts as.
        rows: the rows to train on, as tokens.
        held_out: what is held out for early stopping.
        data: all rows of the task.
        config: the settings, without `auto`.
        free: bytes of memory that were free.
    """

    engine: TorchEngine
    artifact: Artifact
    change: Change
    start: str
    rows: Sequence[Any]
    held_out: Sequence[Any]
    data: Data
    config: TrainConfig
    free: int


@dataclass(frozen=True, kw_only=True)
class FineTune(TrainConfig, Rung):
    """A rung that trains weights; a subclass says which, and brings the defaults that its method needs.

    Attributes:
        holdout: share of the training rows that are held out to measure `patience` on; without `patience` none are.
        supervise: which turns of a conversation are trained on: `last`, `all` of the assistant's, or `auto`, which
            means all.
        truncation: what happens to rows longer than the context: `error`, `truncate_input` or `drop`.
        continue_from: folder of an artifact or adapter of the same method to start from.
    """

    needs: ClassVar[tuple[str, ...]] = ("training", "one prompt", "open weights", "training rows")
    trains_weights = True
    trains_together: ClassVar[bool] = True

    training_flops: ClassVar[int] = FROZEN_BASE  # per parameter and token
    quantization: ClassVar[str] = ""  # of the base model, in training and from then on

    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.1
    supervise: Supervise = "auto"
    truncation: Truncation = "error"
    continue_from: str | None = None

    @abstractmethod
    def change(self, engine: TorchEngine, artifact: Artifact) -> Change:
        """Put what is trained on the engine's model, initialized and switched off."""

    def base_precision(self, artifact: Artifact) -> str:
        """The quantization of the base model, in training and from then on."""
        del artifact
        return self.quantization

    def divide(self, data: Data) -> tuple[Data, Sequence[Any]]:
        """The data to train on, and what is held out of them for early stopping."""
        train, held_out = hold_out(data.train, self.holdout, self.seed, patience=self.patience)
        return replace(data, train=tuple(train)), held_out

    def without_thoughts(self, data: Data) -> int:
        """How many of the answers that are learned have no thought before them."""
        return sum(not row.has_thought for row in data.train)

    def objective(self, run: TrainingRun, progress: Progress) -> tuple[Sequence[Any], Loss | None, Evaluate | None]:
        """The rows as the loss reads them, the loss (None: of supervised tokens), and the measure of held-out rows."""
        from rung.training.activation_cache import cached_loss

        frozen, loss = self.frozen_layers(run.engine.model), None
        if frozen != 0:
            loss = cached_loss(run.engine.model, frozen, run.rows, run.config, free=run.free, progress=progress)
        return run.rows, loss, self.metric_of(run) if run.held_out else None

    def frozen_layers(self, model: Any) -> int | None:
        """How many of the model's layers are frozen, counted from the first; None: all, and the final norm."""
        del model
        return 0

    def training_rows(
        self, artifact: Artifact, engine: TorchEngine, data: Data, report: TrainingReport, progress: Progress
    ) -> Sequence[TokenizedExample | Completions]:
        """The examples to train on, counted in `report`: by default `data.train`, without the rows held out."""
        from rung.training.examples import tokenize

        return tokenize(
            artifact, engine, data.train, supervise=self.supervise, truncation=self.truncation,
            virtual_tokens=self.prefix_tokens, report=report, progress=progress,
        )  # fmt: skip

    def resumed_adapter(self, artifact: Artifact) -> Path | None:
        """The folder of the artifact's own trained weights that training continues from, if the method can."""
        del artifact
        return None

    def operations(self, artifact: Artifact, s: Sizes, rows: int, tokens: float) -> float:
        """The operations of training on `rows` rows of `tokens` tokens in all, epochs counted."""
        del artifact, rows
        return self.epochs * self.training_flops * s.parameters * tokens

    def trained_size(self, artifact: Artifact) -> int:
        """How many parameters are trained, where their memory matters."""
        del artifact
        return 0

    def trained_embeddings(self, artifact: Artifact) -> int:
        """How many of these are input embeddings, whose moments no optimizer keeps in 8 bits."""
        del artifact
        return 0

    def facts(self, artifact: Artifact) -> dict[str, Any]:
        """What the artifact records besides the settings and the course of the training."""
        del artifact
        return {}

    def parts_of(self, artifact: Artifact, weights: Weights) -> dict[str, Any]:
        """The parts of the artifact that what was trained replaces: its weights."""
        del artifact
        return {"weights": weights}

    def reason_against(self, artifact: Artifact) -> str:
        """Why this method in particular does not apply; empty if it does."""
        del artifact
        return ""

    def reached_share(self, engine: TorchEngine) -> float | None:
        """The share of the weights of the model's layers that the method updates, where that says anything."""
        del engine
        return None

    @property
    def prefix_tokens(self) -> int:
        """How many virtual tokens precede every prompt."""
        return 0

    # ---- a rung

    def suits(self, artifact: Artifact, data: Data) -> Applicability:
        """It applies to weights that are not tuned yet, or that the method can continue from."""
        del data
        if artifact.weights.adapter is not None and self.resumed_adapter(artifact) is None:
            return skip("its weights are tuned already")
        reason = missing_library(self.optimizer) or self.reason_against(artifact)
        return skip(reason) if reason else OK

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """Four operations per parameter and token while training (six where all is trained), two when predicting."""
        s = sizes(artifact, data)
        use = inference_cost(artifact, data, machine, extra_tokens=self.prefix_tokens)
        shared = s.head + self.prefix_tokens  # once a batch
        per_row = use.row_tokens - self.prefix_tokens - s.decoding + s.answer + shared / self._largest_batch
        return self._training_cost(artifact, machine, use, s, per_row, len(data.train))

    @property
    def _largest_batch(self) -> int:
        return LARGEST_BATCH if self.batch_size == "auto" else self.batch_size

    def _training_cost(
        self, artifact: Artifact, machine: Machine, use: Cost, s: Sizes, per_row: float, rows: int
    ) -> Cost:
        """Add to the cost of predicting, `use`, that of training on rows of `per_row` tokens."""
        tokens = per_row * rows
        trials = 1 + len(RATES) * TRIAL_SHARE if self.learning_rate == "auto" else 1
        flops, tokens = trials * self.operations(artifact, s, rows, tokens), trials * tokens
        copies = TRAINED_BYTES + STATE_BYTES[self.optimizer] + (0 if self.patience is None else 4)
        weights = base_bytes(resolve(artifact.model), self.base_precision(artifact)) + copies * self.trained_size(
            artifact
        )
        weights += (STATE_BYTES["adamw"] - STATE_BYTES[self.optimizer]) * self.trained_embeddings(artifact)
        return replace(
            use, fit_tokens=round(tokens * self.epochs), fit_flops=flops,
            fit_seconds=machine.training_seconds(flops, float32=self.precision == "float32"),
            memory_bytes=round(weights + ACTIVATION_BYTES + self._largest_batch * per_row * BYTES_PER_TOKEN),
        )  # fmt: skip

    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Train, and resume from the last checkpoint if an earlier run of the same training was killed.

        Raises:
            TrainingError: there is nothing to train on, memory ran out, the loss is not a number, or a checkpoint or
                the result could not be written.
        """
        _, trained = next(self._parts(artifact, data, (1.0,), progress))
        return trained

    def fit_in_parts(
        self, artifact: Artifact, data: Data, *, after: float = 0.0, progress: Progress = QUIET
    ) -> Iterator[tuple[float, Artifact]]:
        """Train as `fit` does, and also give the artifacts after a quarter and a half of the steps."""
        return self._parts(artifact, data, [share for share in PARTS if share > after], progress)

    def _parts(
        self, artifact: Artifact, data: Data, shares: Sequence[float], progress: Progress
    ) -> Iterator[tuple[float, Artifact]]:
        """Train up to each share of the steps and give the artifact as trained so far, with the share really taken."""
        import torch

        from rung.evaluation.report.words import TRAINING_DATA
        from rung.training.examples import TrainingReport, as_learned, show
        from rung.training.loop import plan_batches

        engine = self._open(artifact, progress)
        engine.use(None)
        train, held_out = self.divide(data)
        report = TrainingReport()
        artifact = as_learned(artifact, self.without_thoughts(train), report)
        rows = self.training_rows(artifact, engine, train, report, progress)
        report.measure(rows, engine.tokenizer)
        report.reached_share = self.reached_share(engine)
        show(report, progress)
        if not rows:
            reasons = ", ".join(report.dropped) or "there were none"
            raise TrainingError(
                "too-few-rows", f"none of {report.rows} training rows is left: {reasons}",
                hint="set the rung's `truncation` to truncate_input, or choose a model with a longer context",
            )  # fmt: skip
        extra: dict[str, Any] = {TRAINING_DATA: report.as_dict(), **self.facts(artifact)}
        if dropped := report.dropped_demonstrations:
            extra["dropped_demonstrations"] = dropped
        run, taken, steps = self, 0, 0
        for share in shares:
            try:
                if not steps:
                    run = self._resolve_auto(engine, artifact, rows, progress)
                    steps = len(plan_batches(rows, run))
                stop_after = None if share == 1 else math.ceil(share * steps)
                if stop_after is not None and not taken < stop_after < steps:
                    continue  # too few steps for this part
                if not in_parts(engine.model):
                    engine = open_torch(artifact.model, quantization=self.base_precision(artifact))
                engine.use(None)
                weights, settings, result = run._train(engine, artifact, rows, held_out, data, stop_after, progress)
            except (MemoryError, torch.OutOfMemoryError) as full:
                raise TrainingError(
                    "out-of-memory", f"{self.name} ran out of memory: {full}",
                    hint="lower `micro_batch_size`, or shorten the rows",
                ) from full  # fmt: skip
            ended = stop_after is None or result.steps < stop_after  # patience ended it early
            taken = result.steps
            done = {} if ended else {"share_of_steps": round(taken / steps, 3)}
            parts = self.parts_of(artifact, weights)
            yield 1.0 if ended else taken / steps, artifact.step(self.name, settings | extra | done, **parts)
            if ended:
                return

    def divides_base(self, artifact: Artifact) -> bool:
        """Whether several processes may each hold a part of the base model where it does not fit in one."""
        del artifact
        return False

    def _open(self, artifact: Artifact, progress: Progress) -> TorchEngine:
        """The engine of the base model."""
        precision = self.base_precision(artifact)
        if not current().alone and not precision and self.divides_base(artifact):
            from rung.training.sharded import open_in_parts

            if (engine := open_in_parts(artifact.model, progress)) is not None:
                self.check_in_parts({})
                return engine
        return open_torch(artifact.model, quantization=precision)

    def check_in_parts(self, unfit: Mapping[str, bool]) -> None:
        """Refuse settings with which processes that each hold a part of the model would not do the same.

        Raises:
            ConfigError: `not-distributed`.
        """
        unfit = {
            "patience": bool(self.patience), "batch_size": self.batch_size == "auto",
            "learning_rate": self.learning_rate == "auto", **unfit,
        }  # fmt: skip
        if wrong := [name for name, value in unfit.items() if value]:
            raise ConfigError(
                "not-distributed", f"{self.name} in several processes, each with a part of the weights, has no "
                f"{' or '.join(f'`{name}: {getattr(self, name)}`' for name in wrong)}",
                hint="leave it out, or train in one process",
            )  # fmt: skip

    def _train(
        self, engine: TorchEngine, artifact: Artifact, rows: Sequence[Any], held_out: Sequence[Any], data: Data,
        stop_after: int | None, progress: Progress,
    ) -> tuple[Weights, dict[str, Any], TrainResult]:  # fmt: skip
        """Train up to `stop_after` steps and write the weights; returns them with the settings and the run's course."""
        import torch

        from rung.engines.changes import adapter_digest
        from rung.evaluation.report.words import told_apart_line
        from rung.training.changes import enabled, keep
        from rung.training.checkpoints import Checkpoints
        from rung.training.loop import train
        from rung.training.loss import StepLoss

        start = self._start(artifact)
        started = "" if start is None else adapter_digest(start)
        checkpoints = Checkpoints.of({  # all that the result depends on; virtual tokens' ids differ between processes
            "rung": self.name, "settings": asdict(self), "engine": engine.info.fingerprint,
            "rows": hash_of([row.content for row in rows], digits=64),
            "held_out": hash_of([row.id for row in held_out], digits=64),
            "start": started, "torch": torch.__version__,
            "matmul_dtype": matmul_dtype(engine.model.device.type, self.precision), "metric": artifact.signature.metric,
        })  # fmt: skip
        outcome: dict[str, Any] = {}
        with self._on_model(engine, artifact) as change:
            rows = [row.after(change.prefix) for row in rows]
            with self._with_micro_batch(engine, change, rows) as (config, fit):
                run = TrainingRun(engine, artifact, change, started, rows, held_out, data, config, fit.free)
                rows, loss, evaluate = self.objective(run, progress)
                result = train(
                    engine.model, change, rows, config, loss=loss, checkpoints=checkpoints, stop_after=stop_after,
                    evaluate=evaluate, progress=progress,
                )  # fmt: skip
                if isinstance(loss, StepLoss):
                    with enabled(change), torch.no_grad():
                        outcome = loss.outcome(result.measures)
                if told := outcome.get("answers_told_apart"):
                    progress.start("answers told apart")
                    progress.finish(told_apart_line(told))
                for warning in outcome.get("rewards", {}).get("warnings", ()):
                    progress.start("rewards")
                    progress.finish(warning)
            trainable = sum(p.numel() for p in change.parameters().values())
            with writing(f"what {self.name} has learned", cache_dir()):
                folder = keep(change, engine.base_fingerprint)
            if current().first and (stop_after is None or result.steps < stop_after):
                checkpoints.clear()
        weights = Weights(self.name, folder, trainable, self.base_precision(artifact))
        return weights, asdict(self) | result.as_settings() | outcome, result

    def metric_of(self, run: TrainingRun) -> Evaluate:
        """Measure the task's own metric on held-out rows with the weights as trained so far."""
        from rung.evaluation.scoring import cases, metric_of

        metric = metric_of(run.artifact, run.data.folder)
        weights = Weights(self.name, Path(LIVE), base=self.base_precision(run.artifact))
        live = replace(run.artifact, weights=weights).with_engine(run.engine)

        def value() -> float:
            scores = metric.scores(cases(run.held_out, live.answer(run.held_out, full=False)))
            return sum(score.value for score in scores) / len(scores)

        return value

    def _resolve_auto(self, engine: TorchEngine, artifact: Artifact, rows: Sequence[Any], progress: Progress) -> Self:
        """Replace `auto` by numbers."""
        run = self
        if run.batch_size == "auto":
            largest = max(1, min(LARGEST_BATCH, len(rows) // FEWEST_STEPS))
            with run._on_model(engine, artifact) as change:
                fit = run._fit_memory(engine, change, [row.after(change.prefix) for row in rows], largest)
            run = replace(run, batch_size=2 ** int(math.log2(current().from_first(lambda: fit.rows))))
        if run.learning_rate == "auto":
            best = run._best_rate(engine, artifact, rows, progress)
            run = replace(run, learning_rate=current().from_first(lambda: best))
        return run

    def _best_rate(self, engine: TorchEngine, artifact: Artifact, rows: Sequence[Any], progress: Progress) -> float:
        """The learning rate after whose first steps held-out training rows have the lowest loss."""
        import torch

        from rung.training.changes import enabled
        from rung.training.loop import train
        from rung.training.loss import AnswerLoss

        default = cast("float", type(self).__dataclass_fields__["learning_rate"].default)
        held_out, kept = rows[::10], [row for i, row in enumerate(rows) if i % 10]
        if not held_out or not kept:
            return default
        losses: dict[float, float] = {}
        for rate in (default * factor for factor in RATES):
            trial = replace(self, learning_rate=rate)
            with trial._on_model(engine, artifact) as change:
                train_part, test_part = ([row.after(change.prefix) for row in part] for part in (kept, held_out))
                try:
                    with trial._with_micro_batch(engine, change, train_part) as (config, _):
                        share = TRIAL_SHARE * config.epochs * len(kept) / int(config.batch_size)
                        steps = max(TRIAL_STEPS, round(share))
                        train(engine.model, change, train_part, config, stop_after=steps, progress=progress)
                except TrainingError:  # this rate diverges: that is the result of its trial
                    losses[rate] = math.inf
                    continue
                with enabled(change), torch.no_grad():
                    parts = (test_part[i : i + 8] for i in range(0, len(held_out), 8))
                    losses[rate] = sum(float(AnswerLoss(engine.model)(part)) for part in parts)
        return min(losses, key=lambda rate: losses[rate])

    @contextmanager
    def _on_model(self, engine: TorchEngine, artifact: Artifact) -> Iterator[Change]:
        """Put the change on the engine's model while the block runs."""
        import torch

        from rung.training.changes import start_from
        from rung.training.precision import no_float16

        torch.manual_seed(self.seed)
        with no_float16(engine.use(None)):
            change = self.change(engine, artifact)
            try:
                if (start := self._start(artifact)) is not None:
                    start_from(change, start, fingerprint=engine.base_fingerprint)
                with engine.lend(change, LIVE):
                    yield change
            finally:
                change.remove()

    def _start(self, artifact: Artifact) -> Path | None:
        return weights_folder(Path(self.continue_from)) if self.continue_from else self.resumed_adapter(artifact)

    def _fit_memory(self, engine: TorchEngine, change: Change, rows: Sequence[Any], batch_size: int) -> Fit:
        """How many rows fit at once next to everything else that training keeps in memory."""
        from rung.training.memory import fit_memory, free_beside

        free = free_beside(engine.model, change.parameters().values(), self.optimizer)
        return fit_memory(engine.model, rows, batch_size, free=free)

    @contextmanager
    def _with_micro_batch(self, engine: TorchEngine, change: Change, rows: Sequence[Any]) -> Iterator[tuple[Self, Fit]]:
        """Train in forward passes that fit in memory while the block runs; yields settings that say how large."""
        own = self._fit_memory(engine, change, rows, int(self.batch_size))
        size, again = (
            current().from_first(lambda: own.micro_batch_size),
            current().from_first(lambda: own.checkpointing),
        )
        fit = replace(own, micro_batch_size=int(size), checkpointing=bool(again))
        if fit.checkpointing:
            engine.model.gradient_checkpointing_enable({"use_reentrant": False})
        try:
            yield replace(self, micro_batch_size=self.micro_batch_size or fit.micro_batch_size), fit
        finally:
            if fit.checkpointing:
                engine.model.gradient_checkpointing_disable()
                engine.model.disable_input_require_grads()  # transformers leaves this hook on


def weights_folder(folder: Path) -> Path:
    """The folder of the weights in an artifact's folder or a run folder, or the folder itself."""
    folder = artifact_folder(folder)
    return folder / "adapter" if (folder / "artifact.json").is_file() else folder
