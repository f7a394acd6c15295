"""Fine-tuning a whole sentence encoder with a classification head.

The head is trained first, on the frozen vectors, and then both together from there: a random head would distort the
encoder's features before it has learned anything itself (Kumar et al. 2022, https://arxiv.org/abs/2202.10054). Next to
the head's cross-entropy, a contrastive loss draws the texts of a label together and the labels apart (Gunel et al.
2021, https://arxiv.org/abs/2011.01403), which is what helps with few rows (Tunstall et al. 2022,
https://arxiv.org/abs/2209.11055, contrast pairs alone). With a contrastive loss, the head is trained once more on the
final vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rung.artifact.artifact import Artifact
from rung.artifact.costs import FORWARD, SAMPLE
from rung.artifact.heads import Head
from rung.data.rows import Data, hash_of
from rung.errors import EngineError, needed_by
from rung.machine import Machine
from rung.models.cache import cache_dir
from rung.models.files import writing
from rung.models.reference import resolve
from rung.models.tokenizer import Tokenizer
from rung.progress import QUIET, Progress
from rung.rungs.base import Applicability, Cost, CountOrZero, Fraction, PartialShare, Positive, Rung, rung, skip
from rung.rungs.costs import ACTIVATION_BYTES, FULL, encoder_cost
from rung.rungs.features import head_applies, head_key, labelled_texts
from rung.rungs.fine_tune import hold_out
from rung.rungs.linear import row_weights, train_head
from rung.training.config import Count, NonNegative, Precision, Share, TrainConfig
from rung.training.precision import matmul_dtype

if TYPE_CHECKING:
    from rung.training.checkpoints import Checkpoints
    from rung.training.encoder import EncoderWithHead, LabelledText
    from rung.training.loop import TrainResult

TRAINED_BYTES = 16  # a parameter, its gradient and AdamW's two moments


@rung("fine-tuned-encoder", family="full", order=520, topics=("single label",))
@dataclass(frozen=True, kw_only=True)
class FineTunedEncoder(Rung):
    """Train every weight of a sentence encoder, and a linear head on its vectors.

    Attributes:
        encoder: reference of the sentence encoder.
        learning_rate: peak learning rate of the encoder; the head's is ten times as high.
        epochs: how often every row is seen.
        batch_size: rows per optimizer step.
        warmup_ratio: share of the steps in which the learning rate rises; it falls linearly after that.
        weight_decay: AdamW's, on matrices only.
        contrast: share of the contrastive loss in the whole, from 0 (cross-entropy alone) to 1.
        temperature: of the contrastive loss.
        label_names: train on the labels' own names and descriptions too, one more row for each.
        patience: epochs without better accuracy on held-out training rows after which training stops.
        holdout: share of the training rows held out for that; without `patience` all rows are trained on.
        precision: `auto` multiplies matrices in the type that is fastest on the hardware, `float32` in float32.
        seed: seed of dropout, order and the head's folds.
    """

    trains_weights = True
    refits = True  # the validation rows are worth the second training: with them BANKING77's five a label are nine

    encoder: str = "embedded-encoder"
    learning_rate: Positive = 1e-4
    epochs: Count = 4
    batch_size: Count = 32
    warmup_ratio: Share = 0.1
    weight_decay: NonNegative = 0.01
    contrast: Fraction = 0.5
    temperature: Positive = 0.1
    label_names: bool = True
    patience: Count | None = None
    holdout: PartialShare = 0.1
    precision: Precision = "auto"
    seed: CountOrZero = 0

    def suits(self, artifact: Artifact, data: Data) -> Applicability:
        """It applies to categories, once; where a row may have several labels, `features` does."""
        if artifact.signature.kind == "multilabel":
            return skip("it learns one label a row", final=True)
        return head_applies(artifact, data)

    def cache_key(self, artifact: Artifact) -> tuple[object, ...]:
        """The rows' text as the prompt shows it."""
        return head_key(artifact, names=self.label_names)

    @property
    def encoders(self) -> tuple[str, ...]:
        """The one that is trained."""
        return (self.encoder,)

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """Six operations per parameter and token while training, twice with contrast, and two when predicting."""
        files = resolve(self.encoder)
        tokenizer = Tokenizer.load(files.folder)
        sample = data.train[:SAMPLE]
        tokens = 2 + sum(len(tokenizer.encode_plain(artifact.prompt.question(e.inputs))) for e in sample) / len(sample)
        row = encoder_cost(self.encoder, tokens, machine, fit_rows=0).row_flops
        passes = self.epochs * (2 if self.contrast else 1)  # every text brings another one with it
        flops = (1 + passes * FULL / FORWARD) * row * len(data.train)
        return Cost(
            fit_tokens=round(passes * tokens * len(data.train)), fit_flops=flops,
            fit_seconds=machine.training_seconds(flops, float32=self.precision == "float32"),
            row_tokens=tokens, row_flops=row, row_seconds=machine.inference_seconds(row),
            memory_bytes=round(TRAINED_BYTES * files.parameters + ACTIVATION_BYTES),
        )  # fmt: skip

    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Train the encoder and a head that replaces the decoder; a killed run resumes from its last checkpoint.

        Raises:
            TrainingError: the loss is not a number, or there are too few rows to hold some out.
            EngineError: torch or transformers is not installed.
            ModelError: this encoder cannot be trained.
        """
        with needed_by("training an encoder", error=EngineError):
            from rung.training.encoder import EncoderWithHead, LabelledText, keep_encoder
        trained = EncoderWithHead(resolve(self.encoder, progress=progress))
        train, held_out = hold_out(data.train, self.holdout, self.seed, patience=self.patience)
        named = labelled_texts(artifact, train, data.labels, names=self.label_names)
        rows, held_out_rows = (
            [
                LabelledText(tokens, int(label), 1.0 if weights is None else float(weights[number]))
                for number, (parts, label) in enumerate(zip(map(trained.windows, texts), labels, strict=True))
                for tokens in trained.tokenize(parts)
            ]
            for (texts, labels), weights in (
                (named, row_weights(train, len(named[0]) - len(train))),
                (labelled_texts(artifact, held_out, data.labels, names=False), None),
            )
        )
        result, checkpoints = self._train(trained, rows, held_out_rows, len(data.labels), progress)
        head = self._fit_head(trained, rows, len(data.labels), progress) if self.contrast else trained.head()
        with writing("the tuned encoder", cache_dir()):
            decoder = Head(data.labels, self.encoder, head[0], head[1], tuned=keep_encoder(trained))
        checkpoints.clear()
        counted = {"rows": len(rows), "encoder_fingerprint": trained.files.fingerprint}
        return artifact.step(self.name, asdict(self) | counted | result.as_settings(), decoder=decoder)

    def _fit_head(
        self, trained: EncoderWithHead, rows: Sequence[LabelledText], labels: int, progress: Progress
    ) -> tuple[Any, Any]:
        vectors, truth = trained.embed([row.tokens for row in rows]), np.array([row.label for row in rows])
        masses = np.array([row.mass for row in rows])
        weights = None if (masses == 1).all() else masses
        weight, intercept, _ = train_head([vectors], truth, labels, seed=self.seed, weights=weights, progress=progress)
        return weight, intercept

    def _train(
        self, trained: EncoderWithHead, rows: Sequence[LabelledText], held_out: Sequence[LabelledText], labels: int,
        progress: Progress,
    ) -> tuple[TrainResult, Checkpoints]:  # fmt: skip
        import torch

        from rung.training.checkpoints import Checkpoints
        from rung.training.encoder import LabelLoss
        from rung.training.loop import train

        trained.set_head(*self._fit_head(trained, rows, labels, progress))

        def accuracy() -> float:
            with torch.no_grad():
                logits = trained.logits(torch.from_numpy(trained.embed([row.tokens for row in held_out])))
            return float((logits.argmax(1).cpu() == torch.tensor([row.label for row in held_out])).float().mean())

        hashes = [hash_of([[row.tokens, row.label, row.mass] for row in part], digits=64) for part in (rows, held_out)]
        checkpoints = Checkpoints.of({
            "rung": asdict(self), "encoder": trained.files.fingerprint, "rows": hashes[0], "held_out": hashes[1],
            "torch": torch.__version__, "matmul_dtype": matmul_dtype(trained.model.device.type, self.precision),
        })  # fmt: skip
        config = TrainConfig(
            epochs=self.epochs, batch_size=self.batch_size, learning_rate=self.learning_rate, lr_scheduler="linear",
            warmup_ratio=self.warmup_ratio, weight_decay=self.weight_decay, patience=self.patience,
            precision=self.precision, seed=self.seed,
        )  # fmt: skip
        result = train(
            trained.model, trained, rows, config,
            loss=LabelLoss(trained, rows, self.contrast, self.temperature), checkpoints=checkpoints, progress=progress,
            evaluate=accuracy if held_out else None,
        )  # fmt: skip
        return result, checkpoints
