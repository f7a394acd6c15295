"""The search: is there anything to win, what is best, and is it really better than what is there.

1. Headroom. The incumbent answers a few rows. Where even the most errors that it may make on the adoption rows are too
   few for any prompt to be significantly better, the search ends there.
2. Rounds. Candidates differ from the leader in one gene first, then mix the genes of the best; each round is a race at
   a fixed price on the same rows (`rung.evaluation.racing`).
3. Adoption. The last leader meets the incumbent on rows that the search never saw, once. It is adopted only if it is
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
from rung.evaluation.metrics import Metric
from rung.evaluation.racing import halve, race_order
from rung.evaluation.scoring import cases
from rung.evaluation.statistics import PairedComparison, compare, wilson
from rung.progress import QUIET, Progress
from rung.prompt_search.budget import Meter
from rung.prompt_search.candidates import Candidate, Space, crossed, neighbours
from rung.prompt_search.judge import Judge, Tried
from rung.prompt_search.writer import Written

LEVEL = 0.05
FEWEST_FIXES = 6  # rows fixed and none broken: two-sided p = 2 / 2^6 = 0.03
HEADROOM_ROWS = 32
FEWEST_ROWS = 12  # that every candidate answers
FEWEST_ARMS = 4  # of a round, where the budget allows more than one


@dataclass(frozen=True, slots=True)
class Plan:
    """How to search: candidates per round, rounds, and the seed."""

    population: int = 16
    rounds: int = 3
    seed: int = 0


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        artifact: the winner's prompt on the incumbent's other parts, or the incumbent itself.
        adopted: whether it is another prompt than the incumbent's.
        reason: why it ended as it did, in a sentence.
        comparison: winner against incumbent on the adoption rows; None where it did not come to that.
        winner: name of the last leader.
        tried: every candidate.
        written: what a model proposed, refused proposals included.
        meter: what was spent.
    """

    artifact: Artifact
    adopted: bool
    reason: str
    winner: str
    tried: dict[str, Tried]
    meter: Meter
    search_rows: int
    adoption_rows: int
    comparison: PairedComparison | None = None
    written: Sequence[Written] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the record that is kept with the artifact, as JSON values."""
        c = self.comparison
        return {
            "adopted": self.adopted, "reason": self.reason, "winner": self.winner,
            "comparison": None if c is None else {
                "delta": c.delta, "low": c.low, "high": c.high, "p": c.p, "fixed": c.fixed, "broken": c.broken,
                "n": c.n,
            },
            "search_rows": self.search_rows, "adoption_rows": self.adoption_rows, "spent": self.meter.as_dict(),
            "candidates": [_record(one) for one in self.tried.values()],
            "refused": [{"text": one.text, "reason": one.refused} for one in self.written if one.refused],
        }  # fmt: skip


def _record(one: Tried) -> dict[str, Any]:
    rows = len(one.metric)
    return {
        "name": one.name, "round": one.round, **one.candidate.as_dict(), "calibrated": one.calibrated, "rows": rows,
        "score": sum(one.metric) / rows if rows else None,
        "racing_score": round(sum(one.scores) / rows, 6) if rows else None,
        **({"failed": one.failed} if one.failed else {}),
    }  # fmt: skip


def split(rows: Sequence[Example], share: float, seed: int) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Cut training rows into those of the search and those of the adoption, by the hash of their inputs.

    Args:
        rows: the training rows.
        share: of the rows for the adoption.
        seed: another number gives another cut.
    """
    ordered = race_order(rows)
    adoption = [row for row in ordered if place_of([seed, "adoption", row.id]) < share]
    held = {row.id for row in adoption}
    return tuple(row for row in ordered if row.id not in held), tuple(adoption)


def search(
    space: Space,
    rows: Sequence[Example],
    adoption: Sequence[Example],
    metric: Metric,
    meter: Meter,
    plan: Plan,
    *,
    calibrate: bool = True,
    written: Sequence[Written] = (),
    progress: Progress = QUIET,
) -> Found:
    """Search the space; see the module for the steps.

    Args:
        space: what may vary.
        rows: rows to search on.
        adoption: rows to decide by, none of them in `rows` or shown as demonstrations.
        metric: the task's metric.
        meter: the budget; the calls that the adoption needs are kept for it.
        plan: how to search.
        calibrate: calibrate the label probabilities of candidates.
        written: what a model proposed, for the record.
        progress: told of every batch.
    """
    judge = Judge(space, rows, metric, meter, calibrate=calibrate, progress=progress)
    trial = AdoptionTest(space, judge.tried, metric, meter, len(rows), tuple(adoption), plan.seed, written)
    left, first = meter.left(), min(HEADROOM_ROWS, len(rows))
    if left is not None and left < trial.kept_back + 2 * first:
        return trial.stay(
            f"the budget of {left} calls is too small for a search and {trial.kept_back} calls to decide"
        )  # fmt: skip
    judge.ask("incumbent", first)
    if reason := no_headroom(judge.tried["incumbent"].metric, len(adoption)):
        return trial.stay(reason)
    return trial.decide(_rounds(judge, plan, trial.kept_back))


@dataclass(frozen=True)
class AdoptionTest:
    """What every search ends with: the last leader meets the incumbent on rows that the search did not see.

    Attributes:
        space: holds the incumbent.
        tried: every candidate by name, `incumbent` among them.
        metric: the task's metric.
        meter: counts the calls.
        search_rows: how many rows the search had.
        adoption: the rows that decide.
        seed: of the test, where scores are not 0 or 1.
        written: what a model proposed.
    """

    space: Space
    tried: dict[str, Tried]
    metric: Metric
    meter: Meter
    search_rows: int
    adoption: tuple[Example, ...]
    seed: int
    written: Sequence[Written] = ()

    @property
    def kept_back(self) -> int:
        """Calls that the decision takes."""
        return 2 * len(self.adoption) * len(self.space.artifact.prompt_variants())

    def stay(self, reason: str, winner: str = "incumbent", comparison: PairedComparison | None = None) -> Found:
        """Return the incumbent."""
        return self._found(self.space.artifact, False, reason, winner, comparison)

    def decide(self, winner: str) -> Found:
        """Compare once, and return what is adopted."""
        if winner == "incumbent":
            tried = len(self.tried) - 1
            return self.stay(
                f"none of {tried} candidates was better on the rows of the search"
                if tried
                else "the budget leaves no calls for a candidate"
            )
        artifact = self.tried[winner].artifact
        c = compare(self._scores(self.space.artifact), self._scores(artifact), seed=self.seed)
        better = c.p < LEVEL and c.delta > 0
        reason = (
            f"{winner} is {'' if better else 'not '}significantly better than the incumbent on {c.n} rows that the "
            f"search did not see: {100 * c.delta:+.1f} pp, {c.fixed} fixed / {c.broken} broken, p = {c.p:.2g}"
        )
        return self._found(artifact, True, reason, winner, c) if better else self.stay(reason, winner, c)

    def _scores(self, artifact: Artifact) -> list[float]:
        answers = artifact.answer(self.adoption, full=False)
        written = sum(answer.completion_tokens for answer in answers)
        calls = len(self.adoption) * len(artifact.prompt_variants())
        self.meter.add(calls, sum(answer.prompt_tokens for answer in answers), written)
        return [score.value for score in self.metric.scores(cases(self.adoption, answers))]

    def _found(
        self, artifact: Artifact, adopted: bool, reason: str, winner: str, comparison: PairedComparison | None
    ) -> Found:
        return Found(
            artifact, adopted, reason, winner, self.tried, self.meter, self.search_rows, len(self.adoption),
            comparison, self.written,
        )  # fmt: skip


def no_headroom(scores: Sequence[float], adoption_rows: int) -> str:
    """Return why no candidate could be adopted, or an empty text where one could.

    Args:
        scores: the incumbent's metric on some rows.
        adoption_rows: rows that decide.
    """
    wrong = sum(score < 1 for score in scores)
    most = wilson(wrong, len(scores)).high * adoption_rows
    if most >= FEWEST_FIXES:
        return ""
    return (
        f"no headroom: the incumbent falls short on {wrong} of {len(scores)} rows, so on at most {most:.1f} of the "
        f"{adoption_rows} that decide, and a significant gain takes {FEWEST_FIXES}"
    )


def _rounds(judge: Judge, plan: Plan, kept_back: int) -> str:
    """Race round after round; return the last leader."""
    rng = random.Random(plan.seed)
    leader, ranked = "incumbent", [judge.space.start]
    rounds, left = plan.rounds, _left(judge.meter, kept_back)
    if left is not None:  # a small budget is spent on one good round rather than on several bad ones
        rounds = max(1, min(rounds, left // (FEWEST_ARMS * 2 * FEWEST_ROWS)))
    for round_ in range(1, rounds + 1):
        left = _left(judge.meter, kept_back)
        price = None if left is None else left // (rounds - round_ + 1)
        arms = plan.population if price is None else min(plan.population, price // (2 * FEWEST_ROWS))
        if arms < 1:
            break
        names = [judge.add(one, round_) for one in _proposals(judge, ranked, arms, round_, rng)]
        # The leader answered rows before, which cost nothing now; the race does not know and is a little cheaper.
        full = (len(names) + 1) * len(judge.rows)
        price = full if price is None else min(price, full)
        result = halve([leader, *names], judge.ask, len(judge.rows), price, min_rows=min(FEWEST_ROWS, len(judge.rows)))
        leader = result.winner
        seen = [judge.tried[name] for name in result.order]
        ranked = _best_first(judge.space, [one.candidate for one in seen], ranked)
    return leader


def _proposals(
    judge: Judge, ranked: Sequence[Candidate], count: int, round_: int, rng: random.Random
) -> list[Candidate]:
    if round_ > 1:
        return crossed(judge.space, ranked, count, rng)
    made = neighbours(judge.space, judge.space.start, count, rng)
    scoring = label_scoring(judge.space.artifact.decoder)
    if judge.calibrate and scoring is not None and not scoring.bias:
        made = [replace(judge.space.start, origin="calibrated"), *made][:count]
    return made


def _best_first(space: Space, now: Sequence[Candidate], before: Sequence[Candidate]) -> list[Candidate]:
    """Return this round's candidates, the best first, then those of earlier rounds that are not among them."""
    return [*now, *(one for one in before if all(space.differs(one, other) for other in now))]


def _left(meter: Meter, kept_back: int) -> int | None:
    """Return the calls left when `kept_back` are kept; None without a limit."""
    left = meter.left()
    return None if left is None else max(0, left - kept_back)
