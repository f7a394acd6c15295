"""How many artifacts a climb may ever compare: the error rate of its races is shared among so many.

The number is fixed before any row is answered, for a count that hung on the scores would void the bound of
`rung.evaluation.elimination`. So it is an upper bound: the first stage's arms are those that apply; of a later stage,
whose incumbent is not known yet, they are all rungs that can ever apply to the task, less those in its path.
"""

from __future__ import annotations

from collections.abc import Sequence

from rung.artifact.artifact import Artifact
from rung.data.rows import Data
from rung.rungs.base import Rung, Verdict, taken_from

STAGES = 3  # of the ramp, one rung higher each


def most_arms(bases: Sequence[Artifact], models: Sequence[Rung], rungs: Sequence[Rung], data: Data) -> int:
    """Return the largest number of artifacts that the races of a climb can have among them.

    Args:
        bases: what the first stage starts from.
        models: rungs raced alone before the others, which then start from the winner.
        rungs: all rungs, `models` among them.
        data: the task's rows.
    """
    verdicts = {rung.name: [_verdict(rung, base, data) for base in bases] for rung in rungs}
    possible = sum(not all(verdict.final for verdict in verdicts[rung.name]) for rung in rungs)
    first = models or rungs
    arms = len(bases) + sum(_made(rung, bases, verdicts[rung.name]) for rung in first)
    starts = 1 if models else len(bases)
    higher = sum(max(0, possible - step) for step in range(0 if models else 1, STAGES))
    documents = any(not verdict.final for verdict in verdicts.get("retrieval", ()))
    return arms + higher + (starts * max(0, possible - 1) if documents else 0)


def _verdict(rung: Rung, base: Artifact, data: Data) -> Verdict:
    return Verdict(False) if rung.name in base.path else rung.applies(base, data)


def _made(rung: Rung, bases: Sequence[Artifact], verdicts: Sequence[Verdict]) -> int:
    """Return how many artifacts the rung makes of the bases; of those from which it takes the same, one."""
    taken = [taken_from(rung, base) for base, verdict in zip(bases, verdicts, strict=True) if verdict.applies]
    return taken.count(None) + sum(one not in taken[:i] for i, one in enumerate(taken) if one is not None)
