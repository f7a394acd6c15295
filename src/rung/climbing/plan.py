"""What `rung climb --plan` prints: the order of the first arms, what each takes, and what falls out of a budget."""

from __future__ import annotations

from typing import Any

from rung.artifact.artifact import Artifact
from rung.climbing.arms import Arm, ClimbState, Paces
from rung.climbing.budget import CLOSING_SECONDS, Budget, duration_text
from rung.climbing.check import validate_task
from rung.climbing.choice import Prospect, in_order, prospects, put_off
from rung.climbing.conclude import how_measured
from rung.climbing.confirm import TYPICAL
from rung.climbing.options import ClimbOptions, chosen_rungs, named_rungs
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
    bills = [row["bill"] for row in rows if row["applies"] and not row["reason"] and row["fits_budget"]]
    problems = (f"problem: {problem}" for problem in state.data.report.problems)
    return rows, [*_notes(state, spent, several=bool(models)), *_money_notes(bills), *problems]


def _base_row(state: ClimbState, base: Arm) -> dict[str, Any]:
    cost, n = base.cost, len(state.search)
    assert cost is not None
    pace = None if _asks(state, base, cost) else state.row_seconds(base)
    return {
        "name": base.name, "applies": True, "reason": "", "rows": n, "fit_tokens": 0,
        "tokens_per_row": round(cost.row_tokens), "row_seconds": pace,
        "seconds": None if pace is None else round(min(n, 3 * 8) * pace, 1), "memory_bytes": cost.memory_bytes,
        "gain": None, "price_per_1000": _price(state, base, cost, pace or 0.0, 0.0), "bill": _bill(state, base, cost),
    }  # fmt: skip


def _row(state: ClimbState, line: Prospect) -> dict[str, Any]:
    left, asks = put_off(state, line), _asks(state, line.base, line.cost)
    return {
        "name": line.name, "applies": True, "reason": left.reason if left else "", "rows": len(state.search),
        "fit_tokens": line.cost.fit_tokens, "tokens_per_row": round(line.cost.row_tokens),
        "seconds": None if asks else round(line.seconds, 1), "row_seconds": None if asks else line.row_seconds,
        "memory_bytes": line.cost.memory_bytes, "gain": line.promise.gain,
        "price_per_1000": _price(state, line.base, line.cost, line.row_seconds, line.fit_seconds),
        "bill": _bill(state, line.base, line.cost),
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


def _bill(state: ClimbState, arm: Arm, cost: Cost) -> float | None:
    """What an endpoint would bill for the fit and the rows to search by; None where its prices are not known."""
    if not _asks(state, arm, cost):
        return 0.0
    price, options = _price(state, arm, cost, 0.0, 0.0), ApiOptions.from_environment()
    if price is None:
        return None
    return len(state.search) * price / 1000 + (options.price(cost.fit_tokens, 0) if options.priced else 0.0)


def _money_notes(bills: list[float | None]) -> list[str]:
    """What an endpoint would bill for the rungs of a plan; nothing where none asks one."""
    known = [bill for bill in bills if bill is not None]
    total = f"the endpoint is expected to bill up to {money_text(sum(known))} for the rows to search by"
    unknown = "the endpoint's bill is not known: set RUNG_API_PRICE_INPUT and RUNG_API_PRICE_OUTPUT"
    return [unknown] if len(known) < len(bills) else [total] if any(known) else []


def _left_row(name: str, reason: str) -> dict[str, Any]:
    nothing = dict.fromkeys(
        ("fit_tokens", "tokens_per_row", "seconds", "row_seconds", "memory_bytes", "gain", "price_per_1000", "bill")
    )
    return {"name": name, "applies": False, "reason": reason, "rows": 0, "fits_budget": True, **nothing}


def _notes(state: ClimbState, total: float, *, several: bool) -> list[str]:
    task, machine, n = state.task, state.machine, len(state.confirm)
    base = state.arms[state.incumbent]
    pace, asks = state.row_seconds(base), base.cost is not None and _asks(state, base, base.cost)
    scored = task.output.kind == "category" and not is_endpoint(task.model)
    opening = [rung.name for rung in state.rungs if rung.opens_ramp and rung.name not in state.left]
    whole = f"{duration_text(n * pace)} for {state.incumbent} on all of the {n}"
    return [
        how_measured(state),
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
        "on top of the best ones, what still applies is tried where it is expected to gain",
        *[f"on top of {name}, the other rungs are tried as well" for name in opening],
    ]
