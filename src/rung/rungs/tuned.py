"""What all rungs that train weights share: when they apply, what they cost, and the run itself."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast

from rung.artifact.artifact import Artifact
from rung.artifact.parts import Promptless, Weights
from rung.data.rows import Data, Example, hash_of, place_of
from rung.engines.opening import open_torch
from rung.errors import TrainingError
from rung.machine import Machine
from rung.models.cache import cache_dir
from rung.models.reference import is_endpoint, resolve
from rung.progress import QUIET, Progress
from rung.rungs.base import YES, Cost, Verdict, never, no
from rung.rungs.costs import ACTIVATION_BYTES, FROZEN_BASE, Sizes, base_bytes, inference_cost, sizes
from rung.training.examples import Overlong, Supervise
from rung.training.optimizers import STATE_BYTES, OptimizerName, lacks
from rung.training.precision import Precision, products

if TYPE_CHECKING:
    from rung.engines.torch_engine import TorchEngine
    from rung.training.changes import Change
    from rung.training.checkpoints import Checkpoints
    from rung.training.examples import TokenizedExample, TrainingReport
    from rung.training.loop import Course, Evaluate, Schedule
    from rung.training.memory import Fit


# --------------------
# Training rows held out, where training may stop early.


def hold_out(
    rows: Sequence[Example], share: float, seed: int, *, patience: int | None
) -> tuple[list[Example], list[Example]]:
    """Return the rows to train on and those held out, chosen by their hash; without patience none are.

    The validation rows stay out of it: the race compares rungs on them.

    Raises:
        TrainingError: there are too few rows to hold any out.
    """
    if patience is None:
        return list(rows), []
    place = {row.id: place_of([row.id, seed]) for row in rows}
    held_out = [row for row in rows if place[row.id] < share]
    kept = [row for row in rows if place[row.id] >= share]
    if not held_out or not kept:
        raise TrainingError(
            "too-few-rows",
            f"{len(rows)} training rows are too few to hold {share:.0%} of them out",
            hint="train without `patience`, or with a larger `holdout`",
        )
    return kept, held_out


BYTES_PER_TOKEN = 600_000  # activations kept for the backward pass by the embedded model, measured
Auto = Literal["auto"]
RATES = (1 / 3, 1.0, 3.0)  # of the default, that `learning_rate: auto` tries,
TRIAL_SHARE = 0.1  # each for this share of the steps,
TRIAL_STEPS = 8  # and at least so many
LARGEST_BATCH, FEWEST_STEPS = 64, 16  # of `batch_size: auto`: more rows a step, or fewer steps an epoch, learn worse
TRAINED_BYTES = 8  # a trained parameter's new value and its gradient; 4 more for the best value, and the optimizer's
LIVE = "training"  # how the engine knows the weights that are being trained


@dataclass(frozen=True, kw_only=True)
class Tuned(ABC):
    """A rung that trains weights; a subclass says which, and brings the defaults that its method needs.

    Attributes:
        learning_rate: peak learning rate; `auto` tries a third of the default, the default and three times it, each for
            a tenth of the steps, and takes the one with the lowest loss on held-out training rows.
        epochs: times that every row is seen.
        batch_size: rows per optimizer step; `auto` takes the largest power of two that fits in memory at once, up to 64
            and so that an epoch has 16 steps.
        micro_batch: rows per forward pass; without, as many as fit in memory and are read faster together.
        decay: how the rate falls after warm-up.
        warmup: share of the steps in which the rate rises.
        max_norm: gradients are clipped to this norm.
        weight_decay: of AdamW, on matrices.
        optimizer: `adamw`, or `adamw-8bit`, whose moments take a quarter of the memory (needs bitsandbytes).
        precision: `auto` multiplies matrices in the type that the hardware is fastest at, TF32 on CUDA and bfloat16 on
            processors with AMX, with sums in float32; `float32` keeps to that.
        label_smoothing: share of the target's probability that goes to all tokens alike.
        neftune_alpha: size of the noise on the input embeddings (NEFTune); 0 for none.
        patience: epochs without a better metric on held-out training rows after which training stops.
        holdout: share of the training rows held out for that; without `patience` all rows are trained on.
        supervise: which turns of a conversation are learnt: `last`, `all` of the assistant's, or `auto`, which is all.
        overlong: what becomes of rows longer than the context: `error`, `truncate_input` or `drop`.
        continue_from: folder of an artifact or adapter of the same method to start from.
        seed: seed of initialization, order and noise.
    """

    name: ClassVar[str]
    family: ClassVar[str] = "parameter-efficient"
    training_flops: ClassVar[int] = FROZEN_BASE  # per parameter and token
    quantization: ClassVar[str] = ""  # of the base model, in training and ever after

    learning_rate: float | Auto
    epochs: int = 3
    batch_size: int | Auto = 8
    micro_batch: int | None = None
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = 0.06
    max_norm: float = 1.0
    weight_decay: float = 0.0
    optimizer: OptimizerName = "adamw"
    precision: Precision = "auto"
    label_smoothing: float = 0.0
    neftune_alpha: float = 0.0
    patience: int | None = None
    holdout: float = 0.1
    supervise: Supervise = "auto"
    overlong: Overlong = "error"
    continue_from: str | None = None
    seed: int = 0

    @abstractmethod
    def change(self, engine: TorchEngine, artifact: Artifact, rows: Sequence[TokenizedExample]) -> Change:
        """Put on the engine's model what is to be trained, initialized, switched off."""

    def frozen_layers(self, model: Any) -> int | None:
        """Return how many of the model's layers stay as they are, counted from the first; None: all, and the norm."""
        del model
        return 0

    def training_rows(
        self,
        artifact: Artifact,
        engine: TorchEngine,
        rows: Sequence[Example],
        data: Data,
        report: TrainingReport,
        progress: Progress,
    ) -> list[TokenizedExample]:
        """Return what is trained on, counted in `report`: by default the training rows that are not held out."""
        del data
        from rung.training.examples import tokenize

        return tokenize(
            artifact, engine, rows, supervise=self.supervise, overlong=self.overlong, virtual=self.prefix_tokens,
            report=report, progress=progress,
        )  # fmt: skip

    def goes_on_from(self, artifact: Artifact) -> Path | None:
        """Return the folder of the artifact's own tuned weights that training goes on from, if this method can."""
        del artifact
        return None

    def operations(self, artifact: Artifact, s: Sizes, rows: int, tokens: float) -> float:
        """Return the operations of training on `rows` rows of `tokens` tokens in all, epochs counted."""
        del artifact, rows
        return self.epochs * self.training_flops * s.parameters * tokens

    def trained_size(self, artifact: Artifact, s: Sizes) -> int:
        """Return how many parameters are trained, where they take memory worth mention."""
        del artifact, s
        return 0

    def trained_embeddings(self, artifact: Artifact) -> int:
        """Return how many of these are input embeddings, whose moments no optimizer keeps in 8 bits."""
        del artifact
        return 0

    def reason_against(self, artifact: Artifact, data: Data) -> str:
        """Return why this method in particular does not apply, or nothing."""
        del artifact, data
        return ""

    @property
    def prefix_tokens(self) -> int:
        """How many virtual tokens will stand before every prompt."""
        return 0

    # ---- a rung

    def applies(self, artifact: Artifact, data: Data) -> Verdict:
        """It applies to open weights that answer and are not tuned yet, or from which the method goes on."""
        if artifact.decoder.kind == "nearest":
            return never("the rows are ranked by the sentence encoder, not by the model")
        if isinstance(artifact.decoder, Promptless):
            return no("the head reads frozen features, which training would change")
        if artifact.decoder.kind == "agent":
            return never("rows show no calls of tools to learn from")
        if artifact.decoder.kind == "list-scoring":
            return no("the labels' thresholds hold for the untuned model")
        if artifact.decoder.kind == "reasoning":
            return no("training rows give answers without the steps that it writes")
        if len(artifact.members()) > 1:
            return no("every row is asked with several prompts, and training learns from one")
        if is_endpoint(artifact.model):
            return never("an endpoint's weights cannot be trained from here")
        if artifact.weights.adapter is not None and self.goes_on_from(artifact) is None:
            return no("its weights are tuned already")
        if not data.train:
            return never("there are no training rows")
        if reason := lacks(self.optimizer) or self.reason_against(artifact, data):
            return no(reason)
        return YES

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
        """Return the cost of predicting with the cost of training on rows of so many tokens."""
        tokens = per_row * rows
        flops = self.operations(artifact, s, rows, tokens)
        if self.learning_rate == "auto":
            flops *= 1 + len(RATES) * TRIAL_SHARE
            tokens *= 1 + len(RATES) * TRIAL_SHARE
        copies = TRAINED_BYTES + STATE_BYTES[self.optimizer] + (0 if self.patience is None else 4)
        weights = base_bytes(resolve(artifact.model), self.quantization) + copies * self.trained_size(artifact, s)
        weights += (STATE_BYTES["adamw"] - STATE_BYTES[self.optimizer]) * self.trained_embeddings(artifact)
        return Cost(
            fit_tokens=round(tokens * self.epochs),
            fit_flops=flops,
            fit_seconds=machine.training_seconds(flops, float32=self.precision == "float32"),
            row_tokens=use.row_tokens,
            row_flops=use.row_flops,
            row_seconds=use.row_seconds,
            memory_bytes=round(weights + ACTIVATION_BYTES + self._largest_batch * per_row * BYTES_PER_TOKEN),
        )

    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Return the artifact with the trained weights.

        A run that was killed goes on from its last checkpoint.

        Raises:
            TrainingError: there is nothing to learn, memory ran out, the loss is not a number, or a checkpoint or the
                result could not be written.
        """
        import torch

        from rung.evaluation.report.words import TRAINING_DATA
        from rung.training.changes import keep
        from rung.training.checkpoints import writing
        from rung.training.examples import TrainingReport, tell

        engine = open_torch(artifact.model, quantization=self.quantization)
        engine.use(None)
        train, held_out = hold_out(data.train, self.holdout, self.seed, patience=self.patience)
        report = TrainingReport()
        rows = self.training_rows(artifact, engine, train, data, report, progress)
        report.measure(rows, engine.tokenizer)
        tell(report, progress)
        if not rows:
            raise TrainingError(
                "too-few-rows",
                f"none of {report.rows} training rows is left: {', '.join(report.dropped) or 'there were none'}",
                hint="set the rung's `overlong` to truncate_input, or choose a model with a longer context",
            )
        try:
            run = self._settled(engine, artifact, rows, progress)
            with run._on_model(engine, artifact, rows) as change:
                course, checkpoints = run._train(engine, change, artifact, rows, held_out, data, progress)
                trainable = sum(p.numel() for p in change.parameters().values())
                with writing(f"what {self.name} has learnt", cache_dir()):
                    folder = keep(change, engine.base_fingerprint)
                checkpoints.clear()
        except (MemoryError, torch.OutOfMemoryError) as full:
            raise TrainingError(
                "out-of-memory", f"{self.name} ran out of memory: {full}",
                hint="lower `micro_batch`, or shorten the rows",
            ) from full  # fmt: skip
        settings = run._settings(course, rows) | {TRAINING_DATA: report.as_dict()}
        return artifact.step(self.name, settings, weights=Weights(self.name, folder, trainable, self.quantization))

    def _settled(
        self, engine: TorchEngine, artifact: Artifact, rows: Sequence[TokenizedExample], progress: Progress
    ) -> Self:
        """Return the rung with figures in place of `auto`."""
        run = self
        if run.batch_size == "auto":
            most = max(1, min(LARGEST_BATCH, len(rows) // FEWEST_STEPS))
            with run._on_model(engine, artifact, rows) as change:
                fit, _ = run._fit_and_free(engine, change, [row.behind(change.prefix) for row in rows], most)
            run = replace(run, batch_size=2 ** int(math.log2(fit.rows)))
        if run.learning_rate == "auto":
            run = replace(run, learning_rate=run._best_rate(engine, artifact, rows, progress))
        return run

    def _best_rate(
        self, engine: TorchEngine, artifact: Artifact, rows: Sequence[TokenizedExample], progress: Progress
    ) -> float:
        """Return the rate after whose first steps held-out training rows are likeliest."""
        import torch

        from rung.training.changes import enabled
        from rung.training.loop import train
        from rung.training.loss import AnswerLoss

        default = cast("float", type(self).__dataclass_fields__["learning_rate"].default)
        held_out = [row for i, row in enumerate(rows) if i % 10 == 0]
        kept = [row for i, row in enumerate(rows) if i % 10]
        if not held_out or not kept:
            return default
        losses: dict[float, float] = {}
        for factor in RATES:
            trial = replace(self, learning_rate=default * factor)
            with trial._on_model(engine, artifact, rows) as change:
                prefixed = [[row.behind(change.prefix) for row in part] for part in (kept, held_out)]
                try:
                    with trial._fitted(engine, change, prefixed[0]) as (schedule, _):
                        steps = max(TRIAL_STEPS, round(TRIAL_SHARE * schedule.epochs * len(kept) / schedule.batch_size))
                        train(engine.model, change, prefixed[0], schedule, stop_after=steps, progress=progress)
                except TrainingError:  # this rate diverges: that is the finding
                    losses[default * factor] = math.inf
                    continue
                with enabled(change), torch.no_grad():
                    parts = (prefixed[1][i : i + 8] for i in range(0, len(held_out), 8))
                    losses[default * factor] = sum(float(AnswerLoss(engine.model)(part)) for part in parts)
        return min(losses, key=lambda rate: losses[rate])

    @contextmanager
    def _on_model(self, engine: TorchEngine, artifact: Artifact, rows: Sequence[TokenizedExample]) -> Iterator[Change]:
        import torch

        from rung.training.changes import start_from
        from rung.training.precision import no_float16

        torch.manual_seed(self.seed)
        with no_float16(engine.use(None)):
            change = self.change(engine, artifact, rows)
            try:
                if (start := self._start(artifact)) is not None:
                    start_from(change, start, fingerprint=engine.base_fingerprint)
                with engine.lend(change, LIVE):
                    yield change
            finally:
                change.remove()

    def _start(self, artifact: Artifact) -> Path | None:
        return weights_folder(Path(self.continue_from)) if self.continue_from else self.goes_on_from(artifact)

    def _train(
        self,
        engine: TorchEngine,
        change: Change,
        artifact: Artifact,
        rows: Sequence[TokenizedExample],
        held_out: Sequence[Example],
        data: Data,
        progress: Progress,
    ) -> tuple[Course, Checkpoints]:
        from rung.training.activation_cache import loss_above
        from rung.training.checkpoints import Checkpoints
        from rung.training.loop import train

        identity = self._identity(engine, artifact, rows, held_out)
        checkpoints = Checkpoints.of(identity)  # before the prefix: virtual ids differ between processes
        rows = [row.behind(change.prefix) for row in rows]
        with self._fitted(engine, change, rows) as (schedule, free):
            began = time.perf_counter()
            frozen, loss = self.frozen_layers(engine.model), None
            if frozen != 0:
                loss = loss_above(engine.model, frozen, rows, schedule, free=free, progress=progress)
            prepared = time.perf_counter() - began
            course = train(
                engine.model, change, rows, schedule,
                loss=loss, checkpoints=checkpoints, progress=progress,
                evaluate=self._evaluation(engine, artifact, held_out, data) if held_out else None,
            )  # fmt: skip
        course.seconds += prepared
        return course, checkpoints

    @contextmanager
    def _fitted(
        self, engine: TorchEngine, change: Change, rows: Sequence[TokenizedExample]
    ) -> Iterator[tuple[Schedule, int]]:
        """Train in passes that fit in memory for the time of the block; yield the schedule, and the bytes free."""
        fit, free = self._fit_and_free(engine, change, rows, int(self.batch_size))
        if fit.checkpointing:
            engine.model.gradient_checkpointing_enable({"use_reentrant": False})
        try:
            yield self.schedule(self.micro_batch or fit.micro_batch), free
        finally:
            if fit.checkpointing:
                engine.model.gradient_checkpointing_disable()

    def _fit_and_free(
        self, engine: TorchEngine, change: Change, rows: Sequence[TokenizedExample], most: int
    ) -> tuple[Fit, int]:
        """Return how many rows fit, of `most` a step, beside what training takes; and the bytes free beside that."""
        from rung.training.memory import fitting, free_beside

        free = free_beside(engine.model, change.parameters().values(), self.optimizer)
        return fitting(engine.model, rows, most, free=free), free

    def schedule(self, micro_batch: int | Auto) -> Schedule:
        """Return the loop's settings, once nothing is `auto`."""
        from rung.training.loop import Schedule

        return Schedule(
            epochs=self.epochs, batch_size=int(self.batch_size), micro_batch=int(micro_batch),
            learning_rate=float(self.learning_rate),
            decay=self.decay, warmup=self.warmup, max_norm=self.max_norm, weight_decay=self.weight_decay,
            optimizer=self.optimizer, precision=self.precision, smoothing=self.label_smoothing,
            noise=self.neftune_alpha, patience=self.patience, seed=self.seed,
        )  # fmt: skip

    def _evaluation(self, engine: TorchEngine, artifact: Artifact, held_out: Sequence[Example], data: Data) -> Evaluate:
        """Return the task's own metric on held-out rows, by the weights as they stand."""
        from rung.evaluation.scoring import cases, metric_of

        metric = metric_of(artifact, data.folder)
        live = replace(artifact, weights=Weights(self.name, Path(LIVE), base=self.quantization)).on(engine)

        def value() -> float:
            answers = live.answer(held_out, full=False)
            scores = metric.scores(cases(held_out, answers))
            return sum(score.value for score in scores) / len(scores)

        return value

    def _identity(
        self,
        engine: TorchEngine,
        artifact: Artifact,
        rows: Sequence[TokenizedExample],
        held_out: Sequence[Example],
    ) -> dict[str, Any]:
        """Return all that decides the course of the run, so that only the same run goes on from its checkpoints."""
        import torch

        from rung.engines.changes import adapter_digest

        learnt = hash_of([[row.tokens, row.spans] for row in rows], digits=64)
        start = self._start(artifact)
        return {
            "rung": self.name, "settings": asdict(self), "engine": engine.info.fingerprint, "rows": learnt,
            "held_out": hash_of([row.id for row in held_out], digits=64),
            "start": "" if start is None else adapter_digest(start), "torch": torch.__version__,
            "products": products(engine.model.device.type, self.precision), "metric": artifact.shape.metric,
        }  # fmt: skip

    def _settings(self, course: Course, rows: Sequence[TokenizedExample]) -> dict[str, Any]:
        settings = asdict(self) | course.as_settings()
        if dropped := sum(row.dropped_demonstrations for row in rows):
            settings["dropped_demonstrations"] = dropped
        return settings


def weights_folder(folder: Path) -> Path:
    """Return the folder of weights in an artifact's folder, or the folder itself."""
    return folder / "adapter" if (folder / "artifact.json").is_file() else folder
