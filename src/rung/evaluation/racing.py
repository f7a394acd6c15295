"""A race with a fixed price: successive halving over a paired score matrix.

Where arms are many and cheap to make, such as prompts, most of them lie close together, and no test can tell them
apart on the rows there are. Then the question is not which arm is proven worse (`rung.evaluation.elimination`), but
where a fixed number of evaluations is spent best. Sequential halving (Karnin, Koren & Somekh, Almost optimal
exploration in multi-armed bandits, ICML 2013) spends the same on every round and keeps the better half after each. All
arms answer the same rows in the same order, so that the rows' difficulty cancels, and rows answered in one round count
in the next.

Halving promises no error rate, and its winner is not proven better than anything. Whoever adopts it has to test it
against the incumbent on rows that the race never saw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rung.data.rows import Example

Ask = Callable[[str, int], Sequence[float]]


@dataclass(frozen=True, slots=True)
class Round:
    """One round: `arms` survivors answer rows up to `until` (exclusive, counted from the first)."""

    arms: int
    until: int


@dataclass(frozen=True, slots=True)
class Halving:
    """A finished race: the winner, the order of the arms (the winner first), and each arm's scores on rows seen."""

    winner: str
    order: tuple[str, ...]
    scores: Mapping[str, tuple[float, ...]]

    @property
    def evaluations(self) -> int:
        """How many scores were asked for."""
        return sum(map(len, self.scores.values()))


def race_order(rows: Sequence[Example]) -> tuple[Example, ...]:
    """Return the rows in the order in which every race looks at them: by id, which is a hash of the input."""
    return tuple(sorted(rows, key=lambda example: example.id))


def halving_plan(arms: int, rows: int, evaluations: int, least: int = 1) -> tuple[Round, ...]:
    """Return the rounds of a race, as even in price as whole rows allow.

    A round that runs out of rows leaves what it does not need to the others. The last round always has two arms.

    Args:
        arms: how many start.
        rows: how many rows there are.
        evaluations: most that may be spent, all rounds together; `least` rows per arm are always answered.
        least: rows of the first round, at least.

    Raises:
        ValueError: there are no arms or no rows, or `least` is below 1.
    """
    if arms < 1 or rows < 1 or least < 1:
        raise ValueError(f"need arms >= 1, rows >= 1 and least >= 1, got {arms}, {rows} and {least}")
    sizes = [arms]
    while sizes[-1] > 2:
        sizes.append((sizes[-1] + 1) // 2)
    low, high = 0.0, float(arms * rows)  # the price of one round
    for _ in range(60):
        price = (low + high) / 2
        low, high = (price, high) if _spent(_rounds(sizes, rows, price, least)) <= evaluations else (low, price)
    return _rounds(sizes, rows, low, least)


def _rounds(sizes: Sequence[int], rows: int, price: float, least: int) -> tuple[Round, ...]:
    made, until = [], 0
    for size in sizes:
        until = min(rows, max(least, until + int(price / size)))
        made.append(Round(size, until))
    return tuple(made)


def _spent(rounds: Sequence[Round]) -> int:
    before = (0, *(one.until for one in rounds))
    return sum(one.arms * (one.until - start) for one, start in zip(rounds, before, strict=False))


def halve(names: Sequence[str], ask: Ask, rows: int, evaluations: int, *, least: int = 1) -> Halving:
    """Race `names` over `rows` rows at the price of `evaluations`; of equals, the arm named first stays.

    Args:
        names: the arms; what is to be kept when nothing is better stands first.
        ask: returns an arm's scores on the first so many rows; rows that it was asked for before shall cost nothing.
        rows: how many rows there are.
        evaluations: most scores to ask for.
        least: rows of the first round, at least.

    Raises:
        ValueError: there are no arms, two have the same name, or there are no rows.
    """
    if len(set(names)) < len(names):
        raise ValueError("two arms have the same name")
    alive = list(names)
    beaten: list[str] = []
    scores: dict[str, tuple[float, ...]] = {}
    for one in halving_plan(len(names), rows, evaluations, least):
        out = _ranked(alive, scores)[one.arms :] if scores else []
        beaten = [*out, *beaten]
        alive = [name for name in alive if name not in out]
        for name in alive:
            scores[name] = tuple(ask(name, one.until))
    order = (*_ranked(alive, scores), *beaten)
    return Halving(order[0], order, scores)


def _ranked(names: Sequence[str], scores: Mapping[str, Sequence[float]]) -> list[str]:
    """Return arms that saw the same rows by their mean, the best first; equals keep their order."""
    return sorted(names, key=lambda name: -sum(scores[name]))
