"""Few-shot: solved rows before the question."""

from __future__ import annotations

from dataclasses import dataclass

from rung.artifact.artifact import Artifact
from rung.artifact.parts import Promptless
from rung.data.rows import Data
from rung.engines.opening import open_encoder
from rung.machine import Machine
from rung.models.reference import resolve
from rung.progress import QUIET, Progress
from rung.prompts.demonstrations import Demonstrations, Selection
from rung.rungs.base import YES, Cost, Verdict, never, no
from rung.rungs.costs import FORWARD, inference_cost, sizes

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
