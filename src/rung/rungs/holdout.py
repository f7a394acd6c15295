"""Training rows held out, where training may stop early."""

from __future__ import annotations

from collections.abc import Sequence

from rung.data.rows import Example, place_of
from rung.errors import TrainingError


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
            "no-held-out-rows",
            f"{len(rows)} training rows are too few to hold {share:.0%} of them out",
            hint="train without `patience`, or with a larger `holdout`",
        )
    return kept, held_out
