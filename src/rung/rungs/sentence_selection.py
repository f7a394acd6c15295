"""Sentence selection: answer with the sentences of the documents that are most similar to the question.

Yu et al. 2014, "Deep learning for answer sentence selection" (https://arxiv.org/abs/1412.1632), with the vectors of a
sentence encoder as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from rung.artifact.artifact import Artifact
from rung.artifact.parts import Answer, Promptless
from rung.artifact.sentences import SentenceSelection as Selecting
from rung.artifact.sentences import cost_of, ranked
from rung.data.rows import Data
from rung.errors import ConfigError
from rung.evaluation.scoring import cases
from rung.machine import Machine
from rung.models.reference import resolve
from rung.progress import QUIET, Progress
from rung.rungs.base import YES, Cost, Verdict, never, no
from rung.rungs.costs import forward_cost, sizes
from rung.rungs.retrieval import TYPICAL_TOKENS, refusal_of, retriever_on
from rung.task import Task

SHARES = (1.0, 0.9, 0.8, 0.7)  # tried on training rows
DEFAULT_SHARE = 0.9  # where there are none
MOST_ROWS = 128  # that the choice looks at


@dataclass(frozen=True)
class SentenceSelection:
    """Answer with sentences of the task's corpus, word for word; no language model is asked.

    How similar a sentence has to be, next to the best, is chosen on training rows by the task's metric; below which
    relevance nothing is quoted, on validation rows.

    Attributes:
        task: the task, whose `corpus` is searched.
        k: passages whose sentences are compared.
        token_budget: most tokens that they may have.
        most: sentences quoted at most.
        refuse_at_most: largest share of the answerable validation questions that may be refused for want of relevant
            passages; 0 never refuses.
    """

    task: Task | None = None
    k: int = 5
    token_budget: int = 1280
    most: int = 5
    refuse_at_most: float = 0.05
    name: str = "sentence-selection"
    family: str = "retrieval"

    def applies(self, artifact: Artifact, data: Data) -> Verdict:
        """It applies where there are documents and answers are free text."""
        del data
        if self.task is None or self.task.corpus is None:
            return never("the task file has no `corpus`")
        if artifact.shape.kind != "text":
            return never(f"sentences of documents are no answers of kind {artifact.shape.kind}")
        if isinstance(artifact.decoder, Promptless):
            return no("no language model answers already")
        if not artifact.decoder.free:
            return no("answers are held to a form")
        if artifact.retriever is not None:
            return no("documents are looked up already")
        if artifact.weights.adapter is not None or artifact.demonstrations is not None:
            return no("it would not ask the model that was made so far")
        return YES

    def taken(self, artifact: Artifact) -> tuple[object, ...]:
        """Return what the question is made of: the template."""
        return (artifact.prompt.template,)

    def estimate(self, artifact: Artifact, data: Data, machine: Machine) -> Cost:
        """One pass of the encoder over the question and the sentences of the passages. The index is built before."""
        assert self.task is not None
        assert self.task.corpus is not None
        parameters = resolve(self.task.corpus.encoder).parameters
        tokens = sizes(artifact, data).question + min(self.k * TYPICAL_TOKENS, self.token_budget)
        return forward_cost(parameters, tokens, machine, fit_rows=min(MOST_ROWS, len(data.train)))

    def fit(self, artifact: Artifact, data: Data, *, progress: Progress = QUIET) -> Artifact:
        """Return the artifact with a retriever, and a decoder that quotes what it finds.

        Raises:
            ConfigError: the task has no corpus.
        """
        from rung.retrieval.build import build_index

        if self.task is None:
            raise ConfigError(
                "no-corpus", f"the rung {self.name} was made without a task", hint="SentenceSelection(task)"
            )
        index = build_index(self.task, progress=progress)
        cost = cost_of(index.manifest.encoder)
        retriever = replace(
            retriever_on(index, artifact, data, self.k, self.token_budget), order="best_first", demonstration_passages=0
        )
        settings: dict[str, Any] = {"k": self.k, "token_budget": self.token_budget, "most": self.most}
        if self.refuse_at_most > 0:
            threshold = refusal_of(replace(artifact, retriever=retriever), data, cost, self.refuse_at_most).threshold
            retriever = replace(retriever, threshold=threshold)
            settings["threshold"] = threshold
        decoder = Selecting(index.manifest.encoder, DEFAULT_SHARE, self.most)
        plain = replace(artifact, retriever=retriever, decoder=decoder)
        scores, tokens = _tried(plain, data, progress)
        if scores:
            decoder = replace(decoder, share=max(scores, key=lambda share: scores[share]))
        settings |= {"share": decoder.share, "score_by_share": {str(share): scores[share] for share in scores}}
        return artifact.step(self.name, settings, decoder=decoder, retriever=replace(retriever, passage_tokens=tokens))


def _tried(artifact: Artifact, data: Data, progress: Progress) -> tuple[dict[float, float], float]:
    """Return the mean score of every share on training rows, and the mean tokens of a passage."""
    assert isinstance(artifact.decoder, Selecting)
    assert artifact.retriever is not None
    rows = sorted(data.train, key=lambda row: row.id)[:MOST_ROWS]  # ids are hashes, so their order is a shuffle
    looked_up = rows or data.validation[:MOST_ROWS]
    queries = [artifact.prompt.query(row.inputs) for row in looked_up]
    cost = cost_of(artifact.decoder.encoder)
    found = [one.passages for one in artifact.retriever.find(looked_up, queries, cost)]
    lengths = [cost(passage) for passages in found for passage in passages]
    tokens = sum(lengths) / max(1, len(lengths))
    if not rows:
        return {}, tokens
    metric, scores = artifact.shape.scorer(data.folder), dict[float, float]()
    sentences = ranked(artifact.decoder.encoder, queries, found, progress=progress)
    for share in SHARES:
        decoder = replace(artifact.decoder, share=share)
        texts = [" ".join(one.passage.text for one in decoder.chosen(candidates)) for candidates in sentences]
        answers = [Answer(text, None, None, 0, 0, 0.0) for text in texts]
        scores[share] = sum(one.value for one in metric.scores(cases(rows, answers))) / len(rows)
    return scores, tokens
