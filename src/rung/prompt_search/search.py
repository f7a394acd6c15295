"""The search: is there room for improvement, which prompt is best, and is it really better than the present one.

1. Headroom. The incumbent answers a few rows. The search ends there if even the most errors that the incumbent may make
   on the adoption rows are too few for any prompt to be significantly better.
2. Rounds. Candidates first differ from the leader in one gene, then mix the genes of the best. Each round is a race
   with a fixed price on the same rows (`rung.evaluation.racing`).
3. Adoption. The last leader meets the incumbent once, on rows that the search never saw. It is adopted only if it is
   significantly better by the task's metric. Half of published runs of prompt optimizers end below where they began.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rung.artifact.artifact import Artifact
from rung.artifact.labels import label_scoring
from rung.data.rows import Example, place_of
from rung.evaluation.metrics.base import Metric
from rung.evaluation.racing import halve, race_order
from rung.evaluation.scoring import cases
from rung.evaluation.statistics import PairedComparison, compare, wilson
from rung.progress import QUIET, Progress
from rung.prompt_search.candidates import Candidate, SearchSpace, crossed, neighbours
from rung.prompt_search.scorer import CandidateScorer, Meter, ScoredCandidate
from rung.prompt_search.writer import Proposal

LEVEL = 0.05
FEWEST_FIXES = 6  # rows fixed and none broken: two-sided p = 2 / 2^6 = 0.03
HEADROOM_ROWS = 32
FEWEST_ROWS = 12  # that every candidate answers
FEWEST_ARMS = 4  # of a round, where the budget allows more than one


@dataclass(frozen=True)
class SearchResult:
    """The result of a search.

    Attributes:
        artifact: the winner's prompt with the incumbent's other parts, or the incumbent itself.
        adopted: whether the prompt is another one than the incumbent's.
        reason: why the search ended like this, in a sentence.
        winner: name of the last leader.
        scored: every candidate.
        meter: what was spent.
        comparison: winner against incumbent on the adoption rows; None if the search ended before.
        proposals: what a model proposed, refused proposals included.
    """

    artifact: Artifact
    adopted: bool
    reason: str
    winner: str
    scored: dict[str, ScoredCandidate]
    meter: Meter
    search_rows: int
    adoption_rows: int
    comparison: PairedComparison | None = None
    proposals: Sequence[Proposal] = ()

    def as_dict(self) -> dict[str, Any]:
        """The record that is kept with the artifact, as JSON values."""
        c = self.comparison
        names = ("delta", "low", "high", "p", "fixed", "broken", "n")
        return {
            "adopted": self.adopted, "reason": self.reason, "winner": self.winner,
            "comparison": None if c is None else {name: getattr(c, name) for name in names},
            "search_rows": self.search_rows, "adoption_rows": self.adoption_rows, "spent": self.meter.as_dict(),
            "candidates": [_record(entry) for entry in self.scored.values()],
            "refused": [{"text": text.text, "reason": text.refused} for text in self.proposals if text.refused],
        }  # fmt: skip


def _record(entry: ScoredCandidate) -> dict[str, Any]:
    rows = len(entry.metric)
    return {
        "name": entry.name, "round": entry.round, **entry.candidate.as_dict(), "calibrated": entry.calibrated,
        "rows": rows,
        "score": sum(entry.metric) / rows if rows else None,
        "racing_score": round(sum(entry.scores) / rows, 6) if rows else None,
        **({"failed": entry.failed} if entry.failed else {}),
    }  # fmt: skip


def split(rows: Sequence[Example], share: float, seed: int) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Split training rows by the hash of their inputs into rows to search on, and a `share` to decide by."""
    parts: tuple[list[Example], list[Example]] = ([], [])
    for row in race_order(rows):
        parts[place_of([seed, "adoption", row.id]) < share].append(row)
    return tuple(parts[0]), tuple(parts[1])


def search(
    space: SearchSpace,
    rows: Sequence[Example],
    adoption: Sequence[Example],
    metric: Metric,
    meter: Meter,
    *,
    population: int = 16,
    rounds: int = 3,
    seed: int = 0,
    calibrate: bool = True,
    proposals: Sequence[Proposal] = (),
    progress: Progress = QUIET,
) -> SearchResult:
    """Search the space; the module describes the steps.

    Args:
        space: what may vary.
        rows: rows to search on.
        adoption: rows to decide by, none of them in `rows` or shown as demonstrations.
        metric: the task's metric.
        meter: the budget; the calls that the adoption needs are reserved.
        population: candidates per round.
        rounds: rounds, at most.
        seed: of everything random.
        calibrate: calibrate the label probabilities of candidates.
        proposals: what a model proposed, for the record.
        progress: reports every batch.
    """
    scorer = CandidateScorer(space, rows, metric, meter, calibrate=calibrate, progress=progress)
    test = AdoptionTest(space, scorer.scored, metric, meter, len(rows), tuple(adoption), seed, proposals)
    left, first = meter.left(), min(HEADROOM_ROWS, len(rows))
    if left is not None and left < test.reserved + 2 * first:
        return test.stay(f"the budget of {left} calls is too small for a search and {test.reserved} calls to decide")
    scorer.score("incumbent", first)
    if reason := no_headroom(scorer.scored["incumbent"].metric, len(adoption)):
        return test.stay(reason)
    return test.decide(_rounds(scorer, population, rounds, seed, test.reserved))


@dataclass(frozen=True)
class AdoptionTest:
    """The end of every search: the last leader meets the incumbent on rows that the search did not see.

    Attributes:
        space: holds the incumbent.
        scored: every candidate by name, `incumbent` among them.
        metric: the task's metric.
        meter: counts the calls.
        search_rows: how many rows the search had.
        adoption: the rows that decide.
        seed: of the test, where scores are not 0 or 1.
        proposals: what a model proposed.
    """

    space: SearchSpace
    scored: dict[str, ScoredCandidate]
    metric: Metric
    meter: Meter
    search_rows: int
    adoption: tuple[Example, ...]
    seed: int
    proposals: Sequence[Proposal] = ()

    @property
    def reserved(self) -> int:
        """Calls that the decision takes."""
        return 2 * len(self.adoption) * len(self.space.artifact.prompt_variants())

    def stay(self, reason: str, winner: str = "incumbent", comparison: PairedComparison | None = None) -> SearchResult:
        """Keep the incumbent."""
        return self._result(self.space.artifact, False, reason, winner, comparison)

    def decide(self, winner: str) -> SearchResult:
        """Compare winner and incumbent once, and adopt the winner if it is significantly better."""
        if winner == "incumbent":
            tried = len(self.scored) - 1
            return self.stay(
                f"none of {tried} candidates was better on the rows of the search"
                if tried
                else "the budget leaves no calls for a candidate"
            )
        artifact = self.scored[winner].artifact
        c = compare(self._scores(self.space.artifact), self._scores(artifact), seed=self.seed)
        better = c.p < LEVEL and c.delta > 0
        reason = (
            f"{winner} is {'' if better else 'not '}significantly better than the incumbent on {c.n} rows that the "
            f"search did not see: {100 * c.delta:+.1f} pp, {c.fixed} fixed / {c.broken} broken, p = {c.p:.2g}"
        )
        return self._result(artifact, True, reason, winner, c) if better else self.stay(reason, winner, c)

    def _scores(self, artifact: Artifact) -> list[float]:
        answers = artifact.answer(self.adoption, full=False)
        calls = len(self.adoption) * len(artifact.prompt_variants())
        self.meter.add(calls, sum(a.prompt_tokens for a in answers), sum(a.completion_tokens for a in answers))
        return [score.value for score in self.metric.scores(cases(self.adoption, answers))]

    def _result(
        self, artifact: Artifact, adopted: bool, reason: str, winner: str, comparison: PairedComparison | None
    ) -> SearchResult:
        return SearchResult(
            artifact, adopted, reason, winner, self.scored, self.meter, self.search_rows, len(self.adoption),
            comparison, self.proposals,
        )  # fmt: skip


def no_headroom(scores: Sequence[float], adoption_rows: int) -> str:
    """Say why no candidate could be adopted; empty if one could.

    Args:
        scores: the incumbent's metric on some rows.
        adoption_rows: number of rows that decide.
    """
    wrong = sum(score < 1 for score in scores)
    most = wilson(wrong, len(scores)).high * adoption_rows
    if most >= FEWEST_FIXES:
        return ""
    return (
        f"no headroom: the incumbent falls short on {wrong} of {len(scores)} rows, so on at most {most:.1f} of the "
        f"{adoption_rows} that decide, and a significant gain takes {FEWEST_FIXES}"
    )


def _rounds(scorer: CandidateScorer, population: int, rounds: int, seed: int, reserved: int) -> str:
    """Race round after round; return the last leader."""
    rng = random.Random(seed)
    leader, ranked = "incumbent", [scorer.space.start]
    left = _left(scorer.meter, reserved)
    if left is not None:  # a small budget is spent on one good round rather than on several bad ones
        rounds = max(1, min(rounds, left // (FEWEST_ARMS * 2 * FEWEST_ROWS)))
    for round_ in range(1, rounds + 1):
        left = _left(scorer.meter, reserved)
        price = None if left is None else left // (rounds - round_ + 1)
        arms = population if price is None else min(population, price // (2 * FEWEST_ROWS))
        if arms < 1:
            break
        names = [scorer.add(candidate, round_) for candidate in _proposals(scorer, ranked, arms, round_, rng)]
        # The leader's earlier answers cost nothing now; the race does not know that and is a little cheaper.
        full = (len(names) + 1) * len(scorer.rows)
        price = full if price is None else min(price, full)
        rows = len(scorer.rows)
        result = halve([leader, *names], scorer.score, rows, price, min_rows=min(FEWEST_ROWS, rows))
        leader = result.winner
        seen = [scorer.scored[name].candidate for name in result.order]  # the best first, then those of earlier rounds
        differs = scorer.space.differs
        ranked = [*seen, *(old for old in ranked if all(differs(old, new) for new in seen))]
    return leader


def _proposals(
    scorer: CandidateScorer, ranked: Sequence[Candidate], count: int, round_: int, rng: random.Random
) -> list[Candidate]:
    if round_ > 1:
        return crossed(scorer.space, ranked, count, rng)
    candidates = neighbours(scorer.space, scorer.space.start, count, rng)
    scoring = label_scoring(scorer.space.artifact.decoder)
    if scorer.calibrate and scoring is not None and not scoring.bias:
        candidates = [replace(scorer.space.start, origin="calibrated"), *candidates][:count]
    return candidates


def _left(meter: Meter, reserved: int) -> int | None:
    """How many calls are left besides the reserved ones; None without a limit."""
    left = meter.left()
    return None if left is None else max(0, left - reserved)
