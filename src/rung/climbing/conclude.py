"""The end of a climb: the finalists on the test split, the recommendation, and the records of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import numpy as np

from rung._version import __version__
from rung.advice import advise
from rung.artifact.artifact import Artifact
from rung.artifact.confidence import Calibration, CalibrationMethod, of_decisions
from rung.artifact.decoder import Answer
from rung.climbing.arms import Arm, ClimbState, FitFailed, Left
from rung.climbing.confirm import narrow, weigh
from rung.climbing.next_steps import FEWEST, SHARES, Course, NextSteps, decisions, next_steps
from rung.data.rows import LABELLED, Example, labels_of
from rung.errors import ConfigError, DataError, suggest
from rung.evaluation import calibration
from rung.evaluation.decision import CHEAPER, Decision
from rung.evaluation.metrics.numbers import number_statistics
from rung.evaluation.prices import Prices, price_per_row
from rung.evaluation.rag_metrics import summary
from rung.evaluation.report.words import p_text
from rung.evaluation.result import THIN, ClimbResult, Comparison, Prediction, RungResult, Status
from rung.evaluation.scoring import REWARDED_BY, evaluate, notes, own_reward, related, row_values
from rung.evaluation.statistics import mean_interval
from rung.progress import QUIET, Progress

SHOWN = 3  # names in the sentence
COURSE_SECONDS = 10.0  # that a learning curve of the recommended arm may take
FEWEST_SCORED = 20  # rows below which its scores are noise
SHORT_FIT, SHORT_SHARE = 3.0, 0.1  # seconds, and share of the budget, that making the recommended arm may overrun it by


def can_be_fitted(artifact: Artifact) -> bool:
    """Whether the artifact gives every label a probability."""
    return artifact.signature.kind in LABELLED and artifact.decoder.gives_probs


def fit_confidence(
    artifact: Artifact, rows: Sequence[Example], method: CalibrationMethod = "temperature", *,
    abstain_below: float | None = None, out_of_scope: str | None = None, answers: Sequence[Answer] | None = None,
    progress: Progress = QUIET,
) -> Artifact:  # fmt: skip
    """Fit an artifact's confidences on rows that it was not trained on; its answers do not change.

    `answers` are its answers to them with all probabilities; without, they are made. Answers with less confidence than
    `abstain_below` are marked as abstained, which is right on rows of the label `out_of_scope`. Raises ConfigError
    without label probabilities, enough rows for the method, or that label.
    """
    if not can_be_fitted(artifact):
        raise ConfigError(
            "no-probabilities", f"{artifact.name} gives its labels no probabilities",
            hint="confidence needs a category task whose labels are scored, or a trained head (the rungs features, "
            "llm-features)",
        )  # fmt: skip
    decoder = artifact.decoder
    if out_of_scope is not None and out_of_scope not in artifact.signature.labels:
        hint = f"the labels are {', '.join(artifact.signature.labels)}"
        message = f"`out_of_scope` is {out_of_scope!r}, which is not among the labels"
        raise ConfigError("unknown-label", message, hint=hint)
    if not rows:
        raise ConfigError("too-few-rows", "the validation split has no rows", hint="give `data.validation`")
    if answers is None:
        plain = replace(artifact, decoder=decoder.with_confidence(None))
        answers = plain.answer(rows, full=True, progress=progress)
    fitted = replace(_fitted(artifact, answers, rows, method), abstain_below=abstain_below, out_of_scope=out_of_scope)
    return replace(artifact, decoder=decoder.with_confidence(fitted))


def _fitted(
    artifact: Artifact, answers: Sequence[Answer], rows: Sequence[Example], method: CalibrationMethod
) -> Calibration:
    """Fit the probability of the one label, or those of all label decisions where a row has several."""
    labels, kind = artifact.signature.labels, artifact.signature.kind
    probs = np.array([answer.probabilities for answer in answers])
    if kind == "category":
        for row in rows:
            if row.outputs[0] not in labels:
                problem = f"{row.source}: {artifact.name} cannot give the label {row.outputs[0]!r}"
                raise DataError("unknown-label", problem, hint=suggest(row.outputs[0], labels))
        return calibration.fit(method, probs, [labels.index(row.outputs[0]) for row in rows])
    given, truth = ([_listed(labels, text) for text in texts] for texts in (
        [answer.text for answer in answers], [row.outputs[0] for row in rows],
    ))  # fmt: skip
    return calibration.fit_each(method, probs, np.array(given), np.array(truth))


def _listed(labels: Sequence[str], text: str) -> list[bool]:
    """Whether a JSON list of labels names each label."""
    listed = labels_of(text, "multilabel")
    return [label in listed for label in labels]


def measure_confidence(
    artifact: Artifact, rows: Sequence[Example], *, fitted_on: int, seed: int = 0, progress: Progress = QUIET
) -> dict[str, Any]:
    """Measure the confidence of an artifact from `fit_confidence` on test rows; see `calibration.describe`."""
    decoder = artifact.decoder
    fitted = decoder.confidence
    assert fitted is not None
    plain = replace(artifact, decoder=decoder.with_confidence(None))
    answers = plain.answer(rows, full=True, progress=progress)
    given = [set(labels_of(answer.text, artifact.signature.kind)) for answer in answers]
    expected = [set(labels_of(row.outputs[0], artifact.signature.kind)) for row in rows]
    values = calibration.describe(
        fitted, [answer.confidence or 0.0 for answer in answers],
        [_confidence(artifact, fitted, answer) for answer in answers],
        [float(a == b) for a, b in zip(given, expected, strict=True)], fitted_on=fitted_on,
        out_of_scope=[fitted.out_of_scope in labels for labels in expected], seed=seed,
    )  # fmt: skip
    return {"artifact": artifact.name, **values}


def _confidence(artifact: Artifact, fitted: Calibration, answer: Answer) -> float:
    """The fitted artifact's confidence in the same answer; fitting never changes which labels are given."""
    assert answer.probabilities is not None
    if artifact.signature.kind == "category":
        return fitted.of(fitted.scaled(answer.probabilities)[int(np.argmax(answer.probabilities))])
    given = _listed(artifact.signature.labels, answer.text)
    return fitted.of(float(of_decisions(fitted.scaled_each(answer.probabilities), given)))


def conclude(state: ClimbState) -> ClimbResult:
    """Decide by what was measured, make what is recommended from all training rows, and collect the records."""
    blocked = _over_limits(state) | _own_rewards(state)
    found = weigh(state, blocked, last=True)
    best = found.recommended if found is not None else state.incumbent
    if found is not None and best != state.incumbent:
        with state.budget.stage():
            state.budget.check()
            narrow(state, best)
        found = weigh(state, blocked, last=True)
        assert found is not None
        best = found.recommended
    best, unmade = _refitted(state, best)
    for arm in () if state.data.folds else state.arms.values():
        if None not in arm.artifacts and 0 in arm.artifacts:  # it was not confirmed: what its race measured is kept
            arm.artifacts[None] = state.store.keep(arm.artifacts[0], arm.name)
    results = [_result(state, arm) for arm in state.arms.values()]
    comparisons = [
        Comparison.judged(state.incumbent, name, state.metric, v)
        for name, v in (found.verdicts if found is not None else {}).items()
        if v.n
    ]  # fmt: skip
    confidence, unsure = _fit_confidence(state, best)
    others = [(name, left) for name, left in state.left.items() if name not in state.arms]
    others.sort(key=lambda other: other[1].status == "skipped")  # a resumed climb knows first what was begun
    results += [_left(state, name, left) for name, left in others]
    state.store.note("confirmed", recommended=best, ended=state.budget.limited)
    state.store.drop_folds()
    remarks = [
        f"{name}: {count} of {len(rows)} rows: {note}"
        for name in state.arms
        if (rows := [row for row in state.store.predictions(name).values() if row.split == state.confirm.split])
        for note, count in notes(rows).items()
    ]
    remarks += [f"{name} {arm.rung.remark}" for name, arm in state.arms.items() if arm.rung and arm.rung.remark]
    answers = {name: tuple(state.store.predictions(name).values()) for name in state.arms}
    answers |= {name: _part_rows(state, name) for name in state.left if name not in state.arms}
    rungs = tuple(related(results, answers, best, state.scoring, seed=state.options.seed))
    advised = NextSteps()
    course: Course = ()
    with state.budget.stage():
        course = arm_course(state, best)
    with state.budget.stage():
        state.budget.check()
        advised = next_steps(
            state.some(state.arms["zero-shot"]), state.data, results, best, answers, state.number,
            course=course, seed=state.options.seed, progress=state.budget,
        )  # fmt: skip
    if comparisons:
        decisions(state.store.folder, [row.id for row in state.confirm.rows], best)
    paid = state.store.paid()
    return ClimbResult(
        task=state.task.name, metric=state.metric, model=", ".join(state.task.models),
        engine=state.options.engine, seed=state.options.seed, version=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"), seconds=round(state.budget.spent(), 1),
        budget_seconds=state.options.budget_seconds, recommended=best,
        decision=decision(state, found, best, blocked), rungs=rungs, comparisons=tuple(comparisons),
        data=state.data.report.as_dict(), confidence=confidence,
        notes=(*_rows_note(state, best), *unmade, *unsure, *remarks),
        advice=advise(state.task, state.data, state.machine).as_dict(), money=state.money(), endpoint_money=paid.money,
        endpoint_tokens=(paid.prompt_tokens, paid.completion_tokens), prices=Prices.of(state.task).as_dict(),
        rows=state.confirm.split, level=state.level, next_steps=advised.texts,
        step_rows=advised.about,
        unfinished=(*_unmeasured(state), *(name for name, left in state.left.items() if left.again)),
        curve=advised.curve, curve_of=advised.curve_of, doubled=advised.doubled, spending=state.store.spending(),
        kind=state.task.output.kind, suspects=advised.suspects,
    )  # fmt: skip


def arm_course(state: ClimbState, name: str) -> Course:
    """The scores of an arm that is made from a quarter, a half and all of its rows, where that takes few seconds.

    They are of rows that none of the three learnt from: the validation rows, or as many folds as there is time for.
    Labels have the curve of a head instead, which takes less.
    """
    arm, ruler = state.arms[name], state.search
    if state.task.output.kind == "category" or arm.rung is None or arm.base is None or state.whole:
        return ()
    if not (arm.rung.learns and arm.refits):
        return ()
    pace, fit = state.row_seconds(arm) + state.scoring_seconds, state.fit(arm)["fit_seconds"]
    points: dict[float, list[tuple[int, list[float]]]] = {share: [] for share in (*SHARES, 1.0)}
    left = min(COURSE_SECONDS, state.budget.left())
    for fold, group in groupby(zip(ruler.rows, ruler.folds, strict=True), key=lambda placed: placed[1]):
        rows = [row for row, _ in group]
        left -= sum(SHARES) * fit + (len(SHARES) + 1) * len(rows) * pace
        made_for = state.fold_of(arm, fold)
        data = arm.rung.rows_to_fit(state.data, made_for)
        if left < 0 or len(data.train) < FEWEST:
            break
        order = np.random.default_rng(state.options.seed).permutation(len(data.train))
        for share, measured in points.items():
            some = tuple(data.train[i] for i in order[: round(share * len(order))])
            made = state.made(arm, fold)
            if share < 1:
                base, part = state.made(arm.base, state.fold_below(arm, made_for)), replace(data, train=some)
                if not arm.rung.applies(base, part).applies:
                    return ()
                made = arm.rung.fit(base, part, progress=state.budget)
            answered = evaluate(made, rows, ruler.split, folder=state.task.folder, progress=state.budget)
            measured.append((len(some), row_values(state.scoring, answered)))
    course = []
    for measured in points.values():
        scores = [score for _, own in measured for score in own]
        if len(scores) < FEWEST_SCORED:
            return ()
        rows_used = round(sum(n for n, _ in measured) / len(measured))
        course.append((rows_used, sum(scores) / len(scores), *mean_interval(scores, seed=state.options.seed)))
    return tuple(course)


def _over_limits(state: ClimbState) -> dict[str, str]:
    """The arms that the task's constraints forbid to recommend, and why."""
    limits, blocked = state.task.constraints, {}
    for name, arm in state.arms.items():
        rows = list(state.store.predictions(name).values())
        seconds = state.row_seconds(arm)
        price = price_per_row(rows, state.some(arm), state.task, **state.whole_fit(arm))
        if limits.max_latency is not None and seconds > limits.max_latency:
            blocked[name] = f"{seconds:.2g} s a row, and `constraints.max_latency` is {limits.max_latency:g} s"
        elif limits.max_price is not None and price is not None and 1000 * price > limits.max_price:
            cost = f"1,000 predictions cost {1000 * price:.2g}"
            blocked[name] = f"{cost}, and `constraints.max_price` is {limits.max_price:g}"
    return blocked


def _own_rewards(state: ClimbState) -> dict[str, str]:
    """The arms that gain by nothing but what they were rewarded for, and why that is known."""
    blocked = {}
    for name, arm in state.arms.items():
        before: Arm | None = arm
        while before is not None and any(REWARDED_BY in each for each in state.some(before).settings.values()):
            before = before.base
        if before is None or before is arm:
            continue
        own, theirs = state.store.predictions(name), state.store.predictions(before.name)
        keys = [key for key in own if key in theirs]
        why = own_reward(state.some(arm), [own[k] for k in keys], [theirs[k] for k in keys], state.scoring)
        if why:
            blocked[name] = why
    return blocked


def _refitted(state: ClimbState, best: str) -> tuple[str, tuple[str, ...]]:
    """Make the recommended arm from all rows, if it is not; return what is recommended, and a note if it is not made.

    It takes as long as for one fold. Where that is short, it is done even if the budget is used up.
    """
    arm, limit = state.arms[best], state.budget.limits.seconds
    took = state.fit(arm)["fit_seconds"]
    short = limit is None or took <= max(SHORT_FIT, SHORT_SHARE * limit)
    try:
        with state.budget.lifted() if short else state.budget.stage():
            state.made(arm, None)
    except FitFailed as error:
        state.failed(error.arm, error.cause)
        return state.incumbent, ()
    if None in arm.artifacts:
        return best, ()
    text = (
        f"{best} is not made from all rows yet, which takes about {took:.0f} s: go on with `--resume` and more budget"
    )
    return best, (text,)


def _rows_note(state: ClimbState, best: str) -> tuple[str, ...]:
    """How it was measured, on the rows that the recommended arm and the incumbent both answered; () for nothing."""
    if len(_unmeasured(state)) == len(state.arms):
        return ()
    tested = min(len(state.scores(state.arms[name], state.confirm)) for name in (best, state.incumbent))
    return (how_measured(state, tested, made=None in state.arms[best].artifacts),)


def how_measured(state: ClimbState, tested: int, *, made: bool = True) -> str:
    """Which rows the arms are compared on, and how, where the metric has no scores of single rows.

    `tested` is the number of confirming rows that are answered; `made` says whether the recommended artifact is made.
    """
    compared = _compared(state, tested, made)
    if not state.whole:
        return compared
    return (
        f"{compared}; {state.metric} is one number for all rows, so no arm left the race early, and "
        "differences were tested by the jackknife; rows are fixed and broken by themselves"
    )


def _compared(state: ClimbState, tested: int, made: bool) -> str:
    part = "" if tested == len(state.confirm) else f"{tested} of "
    if state.search is state.confirm:
        some = f"{tested} of them were" if part else "every row was"
        more = "; the recommended artifact was then made from all rows" if made else ""
        return (
            f"{len(state.confirm)} labelled rows are few, so {some} answered by artifacts that were made without "
            f"{'them' if part else 'it'} ({len(state.data.folds)} folds){more}"
        )
    test = f"{part}{len(state.confirm)} test rows that nothing was trained or chosen on"
    if state.data.folds:
        return f"raced on {len(state.search)} rows out of fold, and confirmed on {test}"
    refitted = any(arm.refits and state.scores(arm, state.confirm) for arm in state.arms.values())
    more = "; what takes seconds to make learnt from the validation rows too before that" if refitted else ""
    return f"raced on {len(state.search)} validation rows, and confirmed on {test}{more}"


def _fit_confidence(state: ClimbState, best: str) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """Fit the recommended artifact's confidence if the task asks for it; return the report's part on it, and notes.

    With folds, the rows are answered by artifacts that were made without them.
    """
    wanted, arm = state.task.confidence, state.arms[best]
    if wanted is None or None not in arm.artifacts:
        return None, ()
    artifact = arm.artifacts[None]
    if not can_be_fitted(artifact):
        return None, (f"confidence was not fitted: {best} gives its labels no probabilities",)
    figures: dict[str, Any] | None = None
    unsure: tuple[str, ...] = (f"the confidence of {best} was not fitted or measured: the budget was used up",)
    with state.budget.stage():
        rows = state.search.rows
        given: list[Answer] = []
        for fold, group in groupby(zip(rows, state.search.folds, strict=True), key=lambda pair: pair[1]):
            asked = [row for row, _ in group]
            given += state.made(arm, fold).answer(asked, full=True, progress=state.budget)
        fitted = fit_confidence(
            artifact, rows, wanted.method, abstain_below=wanted.abstain_below, out_of_scope=wanted.out_of_scope,
            answers=given,
        )  # fmt: skip
        arm.artifacts[None] = state.store.keep(fitted)
        unsure = ()
        if not state.data.test:
            return None, (f"the confidence of {best} was fitted on all {len(rows)} rows out of fold",)
        figures = measure_confidence(
            fitted, state.data.test, fitted_on=len(rows), seed=state.options.seed, progress=state.budget
        )
    return figures, unsure


# ---- the sentence


def decision(state: ClimbState, found: Decision | None, best: str, blocked: Mapping[str, str]) -> str:
    """The recommendation in one or two sentences, with its numbers; what is not known is said."""
    incumbent = state.incumbent
    others = {} if found is None else {name: v for name, v in found.verdicts.items() if v.n}
    raced = [name for name, arm in state.arms.items() if name != incumbent and (arm.raced or name in others)]
    rest = _not_tried(state)
    if found is None or not raced:
        n = len(state.scores(state.arms[incumbent], state.confirm))
        seen = f"Only {incumbent} was measured, on {n} {_rows(state)}" if n else "Nothing was measured"
        if raced:
            seen = f"Nothing was compared with {incumbent}, so there is nothing to recommend"
        why = rest or ("the budget ended before; give more" if raced else "no rung applies to this task")
        return f"{seen}: {why}. {'' if rest else f'Use {incumbent}.'}".rstrip()
    if best != incumbent:
        sentence = _use(state, found, best)
    else:
        sentence = _stay(state, found, raced, blocked) or _open(state, found, raced, blocked)
    again = ""
    if state.number > 1:
        again = f"These rows decide climb number {state.number}, so p must be below {state.level:.3g}."
    return " ".join(filter(None, [sentence, again, _more(rest)]))


def _more(rest: str) -> str:
    return f"{rest[:1].upper()}{rest[1:]}." if rest else ""


def _rows(state: ClimbState) -> str:
    return "rows (out of fold)" if state.confirm.split == "folds" else "test rows"


def _not_tried(state: ClimbState) -> str:
    """What was not tried for lack of budget."""
    names = [name for name, left in state.left.items() if left.lacked_budget]
    names = [*_unmeasured(state), *names]
    shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if names[SHOWN:] else "")
    return f"not tried for lack of budget: {shown}" if names else ""


def _unmeasured(state: ClimbState) -> list[str]:
    """The arms that answered nothing before the budget was used up."""
    return [name for name in state.arms if not state.store.predictions(name)]


def _use(state: ClimbState, found: Decision, best: str) -> str:
    """Recommend an arm that passed the gate."""
    v, incumbent = found.verdicts[best], state.incumbent
    if v.outcome == "better":
        text = (
            f"Use {best}: {100 * v.delta:+.1f} points [{100 * v.low:+.1f}, {100 * v.high:+.1f}] over {incumbent} on "
            f"{v.n} {_rows(state)}, {v.fixed} fixed / {v.broken} broken, {p_text(v.p)}"
        )
        if v.p > THIN:
            text += f" (likely about {100 * v.shrunken:+.1f}: thin evidence exaggerates)"
    else:
        text = (
            f"Use {best}: as good as {incumbent} within {200 * state.margin:g} points ({100 * v.delta:+.1f} "
            f"[{100 * v.low:+.1f}, {100 * v.high:+.1f}] on {v.n} {_rows(state)})"
        )
    parts = [text, _cheaper(state, best)]
    if best != found.best or found.regret[best] >= 0.0005:
        parts.append(
            f"{100 * found.regret[best]:.1f} points below the best in expectation, "
            f"{100 * found.chance_worse[best]:.0f} % chance of more than {200 * state.margin:g}"
        )
    return "; ".join(filter(None, parts)) + "."


def _cheaper(state: ClimbState, best: str) -> str:
    """How many times cheaper or dearer than the incumbent an arm is, by its measured time."""
    own, base = state.cost(state.arms[best]), state.cost(state.arms[state.incumbent])
    if own <= 0 or base <= 0 or CHEAPER < own / base < 1 / CHEAPER:
        return ""
    times = max(own / base, base / own)
    figure = f"{times:.0f}" if times >= 3 else f"{times:.1f}"
    return f"{figure} times {'cheaper' if own < base else 'dearer'}"


def _stay(state: ClimbState, found: Decision, raced: Sequence[str], blocked: Mapping[str, str]) -> str:
    """Say that the incumbent is as good as all that was measured, or better; empty where that is not known."""
    for name in raced:
        v = found.verdicts.get(name)
        known = v is not None and (v.outcome in ("worse", "equivalent") or v.high <= 2 * state.margin)
        if not (known or state.arms[name].dropped or name in blocked):
            return ""
    if state.leader not in ("", state.incumbent) and state.leader not in blocked:
        return ""
    number = "the other one" if len(raced) == 1 else f"all {len(raced)} others"
    text = f"Stay with {state.incumbent}: it is as good as {number} measured, or better, on {_counted(state)}"
    return text + _blocked(blocked) + "."


def _counted(state: ClimbState) -> str:
    n = len(state.scores(state.arms[state.incumbent], state.confirm))
    m = len(state.scores(state.arms[state.incumbent], state.search))
    return f"{n} {_rows(state)}" if state.search is state.confirm else f"{m} {state.search.split} and {n} test rows"


def _open(state: ClimbState, found: Decision, raced: Sequence[str], blocked: Mapping[str, str]) -> str:
    """Say that it cannot be told yet, what is best so far, and how many more rows would tell."""
    name = found.best if found.best != state.incumbent else max(
        (each for each in raced if each in found.verdicts), key=lambda each: found.verdicts[each].delta, default=""
    )  # fmt: skip
    if not name:
        return f"Cannot tell yet: the answers of {', '.join(raced)} were not compared with {state.incumbent}."
    v = found.verdicts[name]
    figures = f"{100 * v.delta:+.1f} points [{100 * v.low:+.1f}, {100 * v.high:+.1f}] on {v.n} {_rows(state)}"
    if found.best == state.incumbent:
        text = f"Cannot tell yet: {state.incumbent} leads, and {name} is nearest to it with {figures}"
    else:
        text = (
            f"Cannot tell yet: the best so far is {name}, {figures}, "
            f"{100 * found.best_probability:.0f} % likely better than {state.incumbent}"
        )
    if v.rows_needed is not None:
        text += f"; about {v.rows_needed} more {'row' if v.rows_needed == 1 else 'rows'} would tell"
    return text + _blocked(blocked) + "."


def _blocked(blocked: Mapping[str, str]) -> str:
    return "".join(f"; {name} is not recommended: {why}" for name, why in blocked.items())


# ---- the records of the report


def _result(state: ClimbState, arm: Arm) -> RungResult:
    """The report's record of an arm: on the rows of the confirmation if it answered any, else on those of its race."""
    artifact = state.some(arm)
    confirm, search = state.scores(arm, state.confirm), state.scores(arm, state.search)
    ruler, scores = (state.confirm, confirm) if confirm else (state.search, search)
    known = state.store.predictions(arm.name)
    rows = [known[ruler.split, row.id] for row in ruler.rows[: len(scores)]]
    settings = {key: dict(value) for key, value in artifact.settings.items()}
    losses = tuple((int(s), float(v)) for s, v in settings.get(artifact.path[-1], {}).pop("losses", ()))
    folder = state.store.artifact_folder(arm.name)
    status: Status = "beaten" if arm.dropped else "confirmed" if confirm else "beaten" if search else "skipped"
    interval = mean_interval(scores, seed=state.options.seed) if scores else None
    fit, price = state.fit(arm), price_per_row(rows, artifact, state.task, **state.whole_fit(arm))
    return RungResult(
        name=arm.name, family=arm.family, metric=state.metric, status=status, split=ruler.split,
        reason=arm.dropped if scores else "no time was left to measure it", path=artifact.path,
        score=sum(scores) / len(scores) if scores else None,
        low=interval.low if interval else None, high=interval.high if interval else None, n=len(scores),
        validation_score=sum(search) / len(search) if search else None,
        seconds=sum(row.seconds for row in rows), fit_seconds=fit["fit_seconds"], fit_money=fit["fit_money"],
        prompt_tokens=sum(row.prompt_tokens for row in rows),
        completion_tokens=sum(row.completion_tokens for row in rows),
        cached_tokens=sum(row.cached_tokens for row in rows),
        overflow_rows=sum(row.dropped_demonstrations > 0 for row in rows),
        dropped_demonstrations=sum(row.dropped_demonstrations for row in rows),
        uses_llm=artifact.decoder.uses_llm,
        errors=number_statistics([row.prediction for row in rows], [row.expected[0] for row in rows])
        if rows and artifact.signature.kind == "number" else {},
        retrieval=summary(found) if (found := [row.retrieval for row in rows if row.retrieval is not None]) else None,
        trainable_parameters=artifact.decoder.trainable_parameters(artifact),
        artifact_bytes=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        price_per_1000=None if price is None else 1000 * price,
        cost=state.cost(arm), artifact=str(folder) if None in arm.artifacts else None, settings=settings,
        losses=losses, expected_fit_seconds=arm.expected_fit, expected_row_seconds=arm.expected_row,
    )  # fmt: skip


def _left(state: ClimbState, name: str, left: Left) -> RungResult:
    """The report's record of what was not measured, or only in part."""
    scores = [row.score for row in _part_rows(state, name)] if left.status == "stopped" else []
    interval = mean_interval(scores, seed=state.options.seed) if scores else None
    return RungResult(
        name=name, family=left.family, metric=state.metric, status=left.status, split=state.search.split,
        reason=left.reason, score=sum(scores) / len(scores) if scores else None,
        low=interval.low if interval else None, high=interval.high if interval else None, n=len(scores),
        expected_fit_seconds=left.seconds, expected_gain=left.gain,
    )  # fmt: skip


def _part_rows(state: ClimbState, name: str) -> tuple[Prediction, ...]:
    """What an arm answered whose training was stopped, at the last part of its training."""
    parts = sorted((state.store.folder / "rungs" / name / "parts").glob("*"), key=lambda folder: int(folder.name))
    return tuple(state.store.predictions(f"{name}/parts/{parts[-1].name}").values()) if parts else ()
