"""What `rung climb --plan` prints: the order of the first arms, what each takes, and what falls out of a budget."""

from __future__ import annotations

from typing import Any

from rung.artifact.artifact import Artifact
from rung.climbing.arms import Arm, ClimbState
from rung.climbing.budget import CLOSING_SECONDS, Budget, duration_text
from rung.climbing.check import validate_task
from rung.climbing.choice import Prospect, in_order, prospects, put_off
from rung.climbing.conclude import how_measured
from rung.climbing.confirm import TYPICAL
from rung.climbing.options import ClimbOptions, chosen_rungs, named_rungs
from rung.climbing.paces import Paces
from rung.climbing.store import RunStore
from rung.climbing.worth import Worth
from rung.engines.api_options import ApiOptions
from rung.engines.opening import expected_speedup, explain
from rung.evaluation.prices import expected_price
from rung.evaluation.report.words import money_text
from rung.evaluation.scoring import validate_references
from rung.machine import this_machine
from rung.models.reference import is_endpoint
from rung.progress import QUIET
from rung.rungs import build
from rung.rungs.base import Cost
from rung.rungs.models import other_models
from rung.task import Task


def plan_rows(task: Task, options: ClimbOptions) -> tuple[list[dict[str, Any]], list[str]]:
    """Plan the arms on top of zero-shot in the order in which they run: a record for each, and notes."""
    validate_task(task)
    data, machine = task.read(), this_machine()
    validate_references(task, data)
    models, rungs = other_models(task), build(chosen_rungs(task, options), task, options.seed)
    worth = Worth(task.output.kind)
    worth.learn_from_runs(options.out)
    store = RunStore(options.out / f".{task.name}.plan", Budget(QUIET))  # nothing is written there
    state = ClimbState(
        task, data, options, (*models, *rungs), (), machine, store, store.budget, worth,
        Paces(expected_speedup(task.model, options.engine)),
        frozenset(rung.name for rung in rungs if named_rungs(task, options)),
    )  # fmt: skip
    zero = Artifact.zero_shot(task.only(task.model), data.labels, engine=options.engine)
    state.add_base(zero, "prompting")
    base = state.arms[zero.name]
    rows: list[dict[str, Any]] = []
    spent = 0.0
    for each in in_order(state, prospects(state), [base]):
        row = _base_row(state, base) if isinstance(each, Arm) else _row(state, each)
        if not row["reason"]:
            spent += row["seconds"] or 0.0
        row["so_far"] = round(spent, 1)
        row["fits_budget"] = options.budget_seconds is None or spent <= options.budget_seconds - CLOSING_SECONDS
        rows.append(row)
    if len(rows) == 1:
        rows[0] |= {"rows": 0, "seconds": 0.0}
        spent = 0.0
    rows += [_left_row(name, left.reason) for name, left in state.left.items()]
    billed = [row for row in rows if row["applies"] and not row["reason"] and row["fits_budget"]]
    problems = (f"problem: {problem}" for problem in state.data.report.problems)
    return rows, [*_notes(state, spent, several=bool(models)), *_money_notes(state, billed), *problems]


def _base_row(state: ClimbState, base: Arm) -> dict[str, Any]:
    cost, n = base.cost, len(state.search)
    assert cost is not None
    pace = None if _asks(state, base, cost) else state.row_seconds(base)
    return {
        "name": base.name, "applies": True, "reason": "", "rows": n, "fit_tokens": 0,
        "tokens_per_row": round(cost.row_tokens), "row_seconds": pace,
        "seconds": None if pace is None else round(min(n, 3 * 8) * pace, 1), "memory_bytes": cost.memory_bytes,
        "gain": None, "price_per_1000": _price(state, base, cost, pace or 0.0, 0.0), **_bills(state, base, cost),
    }  # fmt: skip


def _row(state: ClimbState, line: Prospect) -> dict[str, Any]:
    left, asks = put_off(state, line), _asks(state, line.base, line.cost)
    return {
        "name": line.name, "applies": True, "reason": left.reason if left else "", "rows": len(state.search),
        "fit_tokens": line.cost.fit_tokens, "tokens_per_row": round(line.cost.row_tokens),
        "seconds": None if asks else round(line.seconds, 1), "row_seconds": None if asks else line.row_seconds,
        "memory_bytes": line.cost.memory_bytes, "gain": line.promise.gain,
        "price_per_1000": _price(state, line.base, line.cost, line.row_seconds, line.fit_seconds),
        **_bills(state, line.base, line.cost, fits=state.fits if line.rung.learns or line.base.learns else 1),
    }  # fmt: skip


def _price(state: ClimbState, arm: Arm, cost: Cost, row_seconds: float, fit_seconds: float) -> float | None:
    """The expected price of 1,000 predictions; an estimate in operations means that this machine answers."""
    price = expected_price(
        state.some(arm), state.task, state.data.train or state.data.validation, tokens=cost.row_tokens,
        seconds=row_seconds, fit_seconds=fit_seconds, local=cost.row_flops > 0,
    )  # fmt: skip
    return None if price is None else 1000 * price


def _asks(state: ClimbState, arm: Arm, cost: Cost) -> bool:
    """Whether an endpoint answers: how long it takes is not known before it is asked."""
    artifact = state.some(arm)
    return artifact.decoder.uses_llm and is_endpoint(artifact.model) and cost.row_flops == 0


def _bills(state: ClimbState, arm: Arm, cost: Cost, *, fits: int = 1) -> dict[str, float | None]:
    """What an endpoint would bill: `bill` for so many fits and all rows of the search, `test_bill` for all test rows.

    Both are None where its prices are not known. Where the same rows confirm, they are asked once.
    """
    if not _asks(state, arm, cost):
        return {"bill": 0.0, "test_bill": 0.0}
    price, options = _price(state, arm, cost, 0.0, 0.0), ApiOptions.from_environment()
    if price is None:
        return {"bill": None, "test_bill": None}
    made = options.price(fits * cost.fit_tokens, 0) if options.priced else 0.0
    tested = 0 if state.search is state.confirm else len(state.confirm)
    return {"bill": len(state.search) * price / 1000 + made, "test_bill": tested * price / 1000}


def _money_notes(state: ClimbState, rows: list[dict[str, Any]]) -> list[str]:
    """What an endpoint would bill for the rungs of a plan, and what that covers; nothing where none asks one.

    `rows` are those of the arms that would run, the incumbent's among them. It confirms, with one more.
    """
    if any(row["bill"] is None for row in rows):
        return ["the endpoint's bill is not known: set RUNG_API_PRICE_INPUT and RUNG_API_PRICE_OUTPUT"]
    searched = sum(row["bill"] for row in rows)
    own = sum(row["test_bill"] for row in rows if row["name"] == state.incumbent)
    tested = own + max((row["test_bill"] for row in rows if row["name"] != state.incumbent), default=0.0)
    if not searched + tested:
        return []
    parts = f"{money_text(searched)} to make the rungs and answer the {len(state.search):,} rows to search by"
    if tested:
        others = "" if len(rows) == 1 else " and the dearest rung"
        parts += f", {money_text(tested)} for {state.incumbent}{others} on the {len(state.confirm):,} test rows"
    more = "" if len(rows) == 1 else "; more rungs on the test rows, and rungs on top of the best ones, are not counted"
    return [f"the endpoint is expected to bill up to {money_text(searched + tested)}: {parts}{more}"]


def _left_row(name: str, reason: str) -> dict[str, Any]:
    nothing = dict.fromkeys((
        "fit_tokens", "tokens_per_row", "seconds", "row_seconds", "memory_bytes", "gain", "price_per_1000", "bill",
        "test_bill",
    ))  # fmt: skip
    return {"name": name, "applies": False, "reason": reason, "rows": 0, "fits_budget": True, **nothing}


def _notes(state: ClimbState, total: float, *, several: bool) -> list[str]:
    task, machine, n = state.task, state.machine, len(state.confirm)
    base = state.arms[state.incumbent]
    pace, asks = state.row_seconds(base), base.cost is not None and _asks(state, base, base.cost)
    scored = task.output.kind == "category" and not is_endpoint(task.model)
    opening = [rung.name for rung in state.rungs if rung.opens_ramp and rung.name not in state.left]
    whole = f"{duration_text(n * pace)} for {state.incumbent} on all of the {n}"
    return [
        how_measured(state, len(state.confirm)),
        (
            f"how long {state.incumbent} takes is unknown: it asks an endpoint; the rest takes about "
            f"{duration_text(total)}"
            if asks
            else f"about {duration_text(total)} in all, less where a race is decided early; the confirmation "
            f"takes about {duration_text(min(n, TYPICAL) * pace)} where the difference is large, and up to {whole}"
            if total
            else f"no rung applies, so nothing is raced: {whole} rows"
        ),
        f"{machine.cores} cores at {machine.flops / 1e9:.0f} GFLOP/s, {machine.memory_bytes / 2**30:.0f} GiB of memory",
        f"engine: {'torch scores the labels' if scored else explain(task.model, state.options.engine)}",
        *(["the models are raced with the plain prompt first, and the rungs start from the winner"] if several else []),
        *[f"{rung.name} {rung.remark}" for rung in state.rungs if rung.remark and rung.name not in state.left],
        "on top of the best ones, what still applies is tried where it is expected to gain",
        *[f"on top of {name}, the other rungs are tried as well" for name in opening],
    ]
