"""Few-shot: solved rows before the question."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from rung.artifact.artifact import Artifact
from rung.artifact.costs import FORWARD
from rung.artifact.decoder import Promptless
from rung.artifact.labels import LabelScoring, mean_logprobs
from rung.data.rows import Data, Example
from rung.engines.opening import open_encoder
from rung.errors import ConfigError
from rung.evaluation.racing import race_order
from rung.machine import Machine
from rung.models.reference import resolve
from rung.progress import QUIET, Progress
from rung.prompts.calibration import batch_bias, divisors
from rung.prompts.demonstrations import Demonstrations, Selection
from rung.rungs.base import YES, Cost, Verdict, never, no
from rung.rungs.costs import inference_cost, sizes

ENCODER = "embedded-encoder"


@dataclass(frozen=True)
class FewShot:
    """Show k training rows, chosen by `selection`, in the order least to most similar.

    Attributes:
        selection: how rows are chosen; see `rung.prompts.demonstrations.Demonstrations`.
        k: rows shown, at most.
        token_budget: tokens they may take, at most; the least similar give way first.
        encoder: sentence encoder that tells similarity, for `knn` and `mmr`.
        seed: seed of the random choices.
    """

    selection: Selection = "knn"
    k: int = 5
    token_budget: int = 1024
    encoder: str = ENCODER
    diversity: float = 0.3
    seed: int = 0
    family: str = "in-context"

    @property
    def name(self) -> str:
        """`few-shot-` and the selection."""
        return f"few-shot-{self.selection}"

    def applies(self, artifact: Artifact, data: Data) -> Verdict:
        """It applies where a prompt answers and no demonstrations are set."""
        if artifact.decoder.kind == "nearest":
            return never("the table is searched as it is, without a prompt")
        if isinstance(artifact.decoder, Promptless):
            return no("a head on frozen features does not read the prompt")
        if artifact.decoder.kind == "agent":
            return never("rows show no calls of tools to learn from")
        if artifact.decoder.kind == "list-scoring":
            return no("the labels' thresholds hold for the prompt without demonstrations")
        if artifact.demonstrations is not None:
            return no("demonstrations are set already")
        if artifact.weights.adapter is not None:
            return no("the adapter was trained without demonstrations")
        if len(data.train) <= self.k:
            return never(f"{len(data.train)} training rows are too few to show {self.k}")
        if self.selection == "balanced" and not data.labels:
            return never("only labels can be balanced")
        return YES

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """Prompts grow by k rows; a pool to search has to be embedded."""
        s = sizes(artifact, data)
        extra = min(self.k * (s.question + s.answer + 8), self.token_budget)
        cost = inference_cost(artifact, data, machine, extra_tokens=extra)
        if self.selection not in ("knn", "mmr"):
            return cost
        tokens = s.question * len(data.train)
        flops = FORWARD * resolve(self.encoder).parameters * tokens
        return Cost(
            fit_tokens=round(tokens), fit_flops=flops, fit_seconds=machine.inference_seconds(flops),
            row_tokens=cost.row_tokens, row_flops=cost.row_flops, row_seconds=cost.row_seconds,
            memory_bytes=cost.memory_bytes,
        )  # fmt: skip

    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Return the artifact with the training rows as its pool; queries embed the input, never the answer."""
        pool, vectors, encoder = data.train, None, ""
        if self.selection in ("knn", "mmr"):
            texts = [artifact.prompt.question(example.inputs) for example in pool]
            encoder = self.encoder
            vectors = open_encoder(encoder, progress=progress).embed(texts, progress=progress)
        shown = Demonstrations(
            self.selection, self.k, pool, vectors, encoder, self.token_budget, self.diversity, self.seed
        )
        settings = {"k": self.k, "token_budget": self.token_budget, "pool": len(pool), "encoder": encoder or None}
        return artifact.step(self.name, settings, demonstrations=shown)


# --------------------
# Demonstration ensemble: label scores averaged over several sets of demonstrations, then calibrated.
#
# One set of demonstrations is luck (Lu et al. 2022, https://arxiv.org/abs/2104.08786); the mean log-likelihood
# over disjoint sets is less so, and shows more rows than one prompt holds. Calibration: Zhou et al. 2024,
# https://arxiv.org/abs/2309.17249.


@dataclass(frozen=True)
class DemonstrationEnsemble:
    """Ask every row with several sets of demonstrations, and average.

    Attributes:
        sets: how many sets.
        k: rows in each.
        rows: `knn`: the nearest rows, dealt to the sets in turn; `balanced`: the same rows for all questions, labels
            as even as can be.
        unlabelled: training rows whose inputs, not labels, calibrate the average.
        encoder: sentence encoder, for `knn`.
    """

    sets: int = 3
    k: int = 4
    rows: Selection = "knn"
    unlabelled: int = 32
    encoder: str = ENCODER
    seed: int = 0
    name: str = "demonstration-ensemble"
    family: str = "in-context"

    def __post_init__(self) -> None:
        if self.sets < 2 or self.k < 1:
            raise ConfigError(
                "bad-setting", f"demonstration-ensemble: {self.sets} sets of {self.k} rows are no ensemble",
                hint="take 2 sets or more of 1 row or more",
            )  # fmt: skip

    def applies(self, artifact: Artifact, data: Data) -> Verdict:
        """It applies to scored labels without demonstrations."""
        if not isinstance(artifact.decoder, LabelScoring):
            refused = no if artifact.signature.kind == "category" else never
            return refused("only scored labels can be averaged")
        if artifact.demonstrations is not None:
            return no("demonstrations are set already")
        if artifact.weights.adapter is not None:
            return no("the adapter was trained without demonstrations")
        if len(data.train) <= self.sets * self.k:
            return never(f"{len(data.train)} training rows are too few for {self.sets} sets of {self.k}")
        return YES

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """`sets` prompts a row, each longer by `k` rows."""
        s = sizes(artifact, data)
        extra = self.sets * self.k * (s.question + s.answer + 8) + (self.sets - 1) * (s.question + s.decoding)
        cost = inference_cost(
            artifact, data, machine, fit_rows=min(self.unlabelled, len(data.train)), extra_tokens=extra
        )
        if self.rows not in ("knn", "mmr"):
            return cost
        flops = FORWARD * resolve(self.encoder).parameters * s.question * len(data.train)
        return replace(
            cost, fit_tokens=cost.fit_tokens + round(s.question * len(data.train)), fit_flops=cost.fit_flops + flops,
            fit_seconds=cost.fit_seconds + machine.inference_seconds(flops),
        )  # fmt: skip

    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Return the artifact with its sets, calibrated on their average."""
        vectors, encoder = None, ""
        if self.rows in ("knn", "mmr"):
            texts = [artifact.prompt.question(example.inputs) for example in data.train]
            encoder = self.encoder
            vectors = open_encoder(encoder, progress=progress).embed(texts, progress=progress)
        shown = Demonstrations(
            self.rows, self.k, data.train, vectors, encoder, seed=self.seed, sets=self.sets
        )  # fmt: skip
        plain = replace(artifact, demonstrations=shown).with_engine(artifact.open())
        inputs = race_order(data.train)[: self.unlabelled]
        decoder = self._calibrated(plain, inputs, progress)
        settings = {"sets": self.sets, "k": self.k, "rows": self.rows, "unlabelled": len(inputs)}
        return artifact.step(self.name, settings, demonstrations=shown, decoder=decoder)

    def _calibrated(self, artifact: Artifact, inputs: tuple[Example, ...], progress: Progress) -> LabelScoring:
        decoder, engine = artifact.decoder, artifact.open()
        assert isinstance(decoder, LabelScoring)
        members = [
            decoder.logprobs(artifact, engine, [row.messages for row in member.render(inputs)], progress=progress)
            for member in artifact.prompt_variants()
        ]
        divisor = divisors(decoder.continuations(engine), decoder.normalization)
        bias = batch_bias(mean_logprobs(members), divisor).astype(np.float32)
        return replace(decoder, bias=tuple(bias.tolist()))
