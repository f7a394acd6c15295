"""BestOf has the model write several answers, and gives the one that a reward model, a check or a vote prefers."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from rung.artifact.costs import FORWARD, Sizes, prompt_tokens
from rung.artifact.decoder import Answer, ArtifactReader, ArtifactWriter, Change, Composition, Decoder, Prompts
from rung.artifact.text import Generate
from rung.data.rows import Example
from rung.data.texts import canonical
from rung.engines.base import Engine, Generation, Sampling
from rung.engines.opening import open_torch
from rung.errors import ArtifactError
from rung.models.messages import Messages
from rung.progress import QUIET, Progress
from rung.prompts.extraction import majority

Choice = Literal["votes", "check", "reward"]
# The one place where an artifact names a module above it: metrics say what an answer comes to when it is run.
SCORING = "rung.evaluation.scoring"


@dataclass(frozen=True, slots=True)
class BestOf(Generate):
    """Sample several answers and give the best of them; one alone is written greedily, as by `Generate`.

    Attributes:
        samples: answers to each row.
        temperature: of the samples.
        seed: of the first sample; each next one adds 1.
        choose: `votes`: the most common answer, as in self-consistency (Wang et al. 2023,
            https://arxiv.org/abs/2203.11171). `check`: the same among those that the task's metric can run or read,
            and answers that come to the same result count as equal. `reward`: the one that the reward model rates
            highest. Answers that were cut come last.
        reward: the folder of the reward model, if there is one.
        folder: of the task file, in which the metric of `check` finds its files.
    """

    kind: ClassVar[str] = "best-of"
    samples: int = 1
    temperature: float = 1.0
    seed: int = 0
    choose: Choice = "votes"
    reward: Path | None = None
    folder: str = ""

    @property
    def streams(self) -> bool:
        """Whether the answer is the first completion."""
        return self.samples == 1 and super(BestOf, self).streams

    def refuses(self, change: Change) -> str:
        """Refuse what the reward model was not trained with, and servers that give one answer."""
        if change in ("prompt", "demonstrations", "reasoning") and self.reward is not None:
            return "its reward model was trained with this very prompt"
        if change in ("reasoning", "servers", "servers-without-scores") and self.samples > 1:
            return "the best of several answers is given, and this would write a single one"
        return super(BestOf, self).refuses(change)

    def merged(self) -> Self:
        """Drop a reward model that chooses no answer; its update is of the base model as it was."""
        if self.reward is not None and self.samples > 1 and self.choose == "reward":
            problem = "its reward model chooses the answers, and belongs to the base model without the tuned weights"
            hint = "merge the artifact below `best-of-n`, or choose by `votes`"
            raise ArtifactError("export-unsupported", problem, hint=hint)
        return replace(self, reward=None)

    # ---- answering

    def answer_prompts(
        self, artifact: Composition, engine: Engine, prompts: Prompts, *, full: bool, progress: Progress = QUIET
    ) -> list[Answer]:
        """Complete every prompt `samples` times and choose; an answer's tokens are those of all samples."""
        if self.samples == 1:
            return super(BestOf, self).answer_prompts(artifact, engine, prompts, full=full, progress=progress)
        samplings = [Sampling(self.max_tokens, self.temperature, seed=self.seed + i) for i in range(self.samples)]
        requests = [replace(self.request(artifact, p), sampling=each) for p in prompts for each in samplings]
        done = engine.generate(requests, progress=progress)
        groups = [done[i : i + self.samples] for i in range(0, len(done), self.samples)]
        labels = dict(zip(self.choices, artifact.signature.labels, strict=True)) if self.choices else {}
        answers = []
        for prompt, group, (best, share) in zip(prompts, groups, self._chosen(artifact, prompts, groups), strict=True):
            text = group[best].text.strip()
            answers.append(Answer(
                labels.get(text, text), share, None, sum(g.prompt_tokens for g in group),
                sum(g.completion_tokens for g in group), sum(g.seconds for g in group), prompt,
                cached_tokens=sum(g.cached_tokens for g in group),
            ))  # fmt: skip
        return answers

    def _chosen(
        self, artifact: Composition, prompts: Prompts, groups: Sequence[Sequence[Generation]]
    ) -> list[tuple[int, float | None]]:
        """The number of the best answer to every prompt, and its share of the votes where there was a vote."""
        whole = [[each.finish_reason == "stop" for each in group] for group in groups]
        if self.choose == "reward":
            texts = [[each.text.strip() for each in group] for group in groups]
            rated = self.rated(artifact, prompts, texts)
            return [
                (max(range(self.samples), key=lambda i: (ended[i], values[i])), None)
                for ended, values in zip(whole, rated, strict=True)
            ]
        flat = [each.text.strip() for group in groups for each in group]
        meanings = [canonical(text) for text in flat]
        if self.choose == "check":
            meanings = import_module(SCORING).readings_of(artifact.signature, Path(self.folder), flat)
        chosen: list[tuple[int, float | None]] = []
        for number, ended in enumerate(whole):
            votes = meanings[number * self.samples : (number + 1) * self.samples]
            best, share = majority([vote if ok else "" for vote, ok in zip(votes, ended, strict=True)])
            chosen.append((votes.index(best) if best else 0, share))
        return chosen

    def rated(
        self, artifact: Composition, prompts: Sequence[Messages], texts: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """What the reward model says of several answers to every prompt: larger is better."""
        assert self.reward is not None
        engine = open_torch(artifact.model, quantization=artifact.weights.base)
        end = () if engine.end_token is None else (engine.end_token,)
        rows = [
            (*engine.tokens(prompt), *engine.encode(text), *end)
            for prompt, group in zip(prompts, texts, strict=True)
            for text in group
        ]
        values = iter(engine.rate(rows, self.reward))
        return [[next(values) for _ in group] for group in texts]

    # ---- cost

    def decoding_tokens(self, sizes: Sizes) -> float:
        """Count the tokens of all samples."""
        return self.samples * sizes.answer

    def row_flops(self, artifact: Composition, rows: Sequence[Example]) -> float:
        """Estimate the samples, and the reward model's reading of each with its prompt."""
        writing = super(BestOf, self).row_flops(artifact, rows)
        if self.choose != "reward" or self.samples == 1:
            return writing
        sizes = self.sizes(artifact, rows)
        read = self.samples * (sizes.head + prompt_tokens(artifact, sizes) + sizes.answer)
        return writing + FORWARD * sizes.parameters * read

    # ---- saving

    def as_dict(self, writer: ArtifactWriter) -> dict[str, Any]:
        """Save the reward model as a folder."""
        if self.reward is not None:
            shutil.copytree(self.reward, writer.folder / "reward")
        return {**super(BestOf, self).as_dict(writer), "reward": self.reward is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], reader: ArtifactReader) -> Self:
        """Find the reward model again."""
        folder = reader.folder / "reward" if values["reward"] else None
        return super(BestOf, cls).from_dict({**values, "reward": folder}, reader)


def best_of(decoder: Decoder) -> BestOf | None:
    """Give the decoder if it can choose among several answers; else None."""
    return decoder if isinstance(decoder, BestOf) else None
