"""What to do after a climb, computed from what the climb has anyway; most useful first.

* More rows: the learning curve of a head on an encoder, or of the recommended arm where it is made in seconds; and what
  twice the rows would bring.
* Expected answers that are likely wrong, by confident learning (Northcutt, Jiang & Chuang, Confident learning:
  estimating uncertainty in dataset labels, JAIR 70, 2021; the library cleanlab), and the score if they are.
* An ensemble of the stored label probabilities (Caruana et al., Ensemble selection from libraries of models, ICML
  2004), where it gains more than the margin: no model is called again.
* Rows that no arm answers right.
* Fresh test rows, where the same ones have decided several climbs: each asks for more evidence than the one before
  (`rung.evaluation.decision.level_of`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rung.artifact.artifact import Artifact
from rung.data.rows import Data, Example, hash_of
from rung.data.spec import ENCODER
from rung.engines.base import Floats
from rung.engines.opening import open_encoder
from rung.errors import ConfigError, EngineError, needed_by
from rung.evaluation.decision import LEVEL
from rung.evaluation.metrics.labels import accuracy
from rung.evaluation.racing import chance_better
from rung.evaluation.report.explorer import ARMS, plain
from rung.evaluation.result import Prediction, RungResult, SuspectLabel
from rung.evaluation.statistics import Array, sign_test, wilson
from rung.models.files import writing
from rung.progress import QUIET, Progress
from rung.rungs.base import REGISTERED
from rung.rungs.features import texts_of, vectors_of
from rung.rungs.linear import design, logistic, one_thread
from rung.yamlfile import sealed, sealed_lines

Numbers = npt.NDArray[np.int64]

FOLDS = 5
SHARES = (0.25, 0.5)  # of the training rows, on the learning curve
STEEPEST = 0.75  # share of the last doubling's gain that the next one can bring
FEWEST = 40  # rows below which a curve is noise
MOST = 5000  # rows that the head is fitted on for this
SHOWN = 4  # rows that are named
CHARACTERS = 300  # of the text of a row whose label may be wrong
ROUNDS = 12  # additions to an ensemble
LIKELY = 0.9  # chance of an ensemble to be better, from which it is offered
LEDGER = "decisions.jsonl"  # in the folder of the runs
HEAD = "a head on an encoder"
Curve = list[tuple[int, float]]  # training rows and accuracy
Course = tuple[tuple[int, float, float, float], ...]  # training rows, score, its 95 % interval


class Step(NamedTuple):
    """A sentence that says what to do, and what it may gain, a share.

    `about` is the kind of rows, of `rung report --rows`, that it is about, if it is about rows.
    """

    gain: float
    text: str
    about: str = ""


def next_steps(
    zero: Artifact, data: Data, rungs: Sequence[RungResult], best: str, answers: Mapping[str, Sequence[Prediction]],
    number: int = 1, *, course: Course = (), margin: float = 0.01, seed: int = 0, progress: Progress = QUIET,
) -> NextSteps:  # fmt: skip
    """Say what to do next, most useful first, and measure the learning curve of a head where there is one.

    `zero` shows the rows as all arms read them. `answers` has what each arm answered, `best` is the recommended one,
    and `course` its own learning curve, if it was measured. The rows decide for the `number`-th time.
    """
    seen = Answers.of(answers, best)
    rows = {row.id: row for row in (*data.train, *data.validation, *data.test)}
    encoder = _encoder(rungs, zero.model)
    steps: list[Step] = []
    suspects: dict[str, str] = {}
    curve: Curve = []
    if zero.signature.kind == "category" and find_spec("cleanlab") is None:
        steps.append(
            Step(0.0, "install rung[local]: without scikit-learn and cleanlab, nothing is said of labels and rows")
        )
    elif zero.signature.kind == "category":
        measured = [rows[each] for each in seen.order if each in rows]
        steps += _ensemble(seen, data.labels, margin, seed)
        if probs := seen.probs():
            table = np.array([probs[row.id] for row in measured], dtype=np.float64)
            suspects |= suspect_labels(data.labels, measured, table)
        if encoder is not None:
            train = [row for row in data.train if row.id not in suspects][:MOST]
            known = (*data.train, *data.validation)
            vectors = vectors_of(zero, encoder, texts_of(zero, train), known, progress=progress)
            truth = np.array([data.labels.index(row.outputs[0]) for row in train], dtype=np.int64)
            held_out = out_of_fold(vectors, truth, len(data.labels), seed)
            curve = learning_curve(vectors, truth, held_out, seed) if len(truth) >= FEWEST else []
            if not data.folds:  # with folds, the rows were answered out of fold already
                suspects |= suspect_labels(data.labels, train, held_out)
        steps += _suspects(seen, suspects, rows)
    steps += _hard(seen, suspects)
    curve_of = HEAD if curve else best
    if curve:
        intervals = (wilson(round(share * len(truth)), len(truth)) for _, share in curve)
        course = tuple((n, share, *interval) for (n, share), interval in zip(curve, intervals, strict=True))
    steps += _more_rows(course, curve_of)
    if number > 1:
        steps.append(
            Step(0.0, f"fresh test rows: these have now decided {number} climbs, and each one asks for more evidence")
        )
    ordered = sorted(steps, key=lambda step: -step.gain)
    texts, about = tuple(step.text for step in ordered), tuple(step.about for step in ordered)
    kept = tuple(_kept(seen, rows[each], likely) for each, likely in suspects.items())
    if not course:
        return NextSteps(texts, about, kept)
    last = course[-1]
    doubled = (2 * last[0], last[1] + gain_of_doubling([each[1] for each in course]))
    return NextSteps(texts, about, kept, course, doubled, curve_of)


@dataclass(frozen=True)
class NextSteps:
    """What to do next, with the labels that may be wrong and the learning curve as `ClimbResult` keeps them."""

    texts: tuple[str, ...] = ()
    about: tuple[str, ...] = ()  # by text
    suspects: tuple[SuspectLabel, ...] = ()
    curve: Course = ()
    doubled: tuple[int, float] | None = None
    curve_of: str = ""


@dataclass(frozen=True)
class Answers:
    """What the arms answered on the rows that the recommended one was measured on.

    Attributes:
        best: the recommended arm.
        order: ids of the rows that it answered.
        arms: by arm, its answers to these rows by id.
    """

    best: str
    order: tuple[str, ...]
    arms: dict[str, dict[str, Prediction]]

    @classmethod
    def of(cls, answers: Mapping[str, Sequence[Prediction]], best: str) -> Answers:
        """Take the rows of the confirmation: the test rows, or else those that most answers are about."""
        counts = Counter(each.split for each in answers.get(best, ()))
        split = "test" if counts["test"] else next((name for name, _ in counts.most_common(1)), "test")
        arms = {name: {each.id: each for each in rows if each.split == split} for name, rows in answers.items()}
        return cls(best, tuple(arms.get(best, {})), {name: own for name, own in arms.items() if own})

    def complete(self) -> dict[str, list[Prediction]]:
        """The answers of the arms that have label probabilities for all rows, the recommended arm's included."""
        every = {
            name: [own[each] for each in self.order] for name, own in self.arms.items() if set(self.order) <= set(own)
        }
        return {name: own for name, own in every.items() if own and all(each.probs is not None for each in own)}

    def probs(self) -> dict[str, tuple[float, ...]]:
        """By row, the label probabilities of the best arm that has them for all rows."""
        arms = self.complete()
        if not arms:
            return {}
        chosen = self.best if self.best in arms else max(arms, key=lambda name: sum(each.score for each in arms[name]))
        return {each.id: each.probs for each in arms[chosen] if each.probs is not None}


def _encoder(rungs: Sequence[RungResult], model: str) -> str | None:
    """The sentence encoder that an arm of this climb used; None if none did."""
    steps = ((name, step) for rung in rungs if rung.score is not None for name, step in rung.settings.items())
    # Where weights are trained, `encoder` is something else: p-tuning's small network.
    found = [step.get("encoder") for name, step in steps if not _trains(name)]
    return next((each for each in found if each and each != model), None)


def _trains(name: str) -> bool:
    return name in REGISTERED and REGISTERED[name].rung_type.trains_weights


# ---- the cheap head


@one_thread()
def out_of_fold(vectors: Floats, truth: Numbers, labels: int, seed: int) -> Array:
    """Compute label probabilities of every row by a head that was fitted without it, shape [rows, labels]."""
    rows, fold = design([vectors]).rows, _folds(truth, seed)
    probs = np.full((len(truth), labels), 1e-6)
    for held in range(FOLDS):
        train, test = np.flatnonzero(fold != held), np.flatnonzero(fold == held)
        if len(test) and len(np.unique(truth[train])) > 1:
            model = logistic(1.0).fit(rows[train], truth[train])
            probs[np.ix_(test, model.classes_)] = model.predict_proba(rows[test])
    return np.asarray(probs / probs.sum(1, keepdims=True), dtype=np.float64)


@one_thread()
def learning_curve(vectors: Floats, truth: Numbers, held_out: Array, seed: int) -> Curve:
    """Measure the accuracy of a head on other rows, when it is fitted on a quarter, a half and all of the rows.

    `held_out` is what `out_of_fold` gives. The curve is empty where a quarter has fewer than two rows a label.
    """
    rows, fold = design([vectors]).rows, _folds(truth, seed)
    order = np.random.default_rng(seed).permutation(len(truth))
    points = []
    for share in SHARES:
        right = fitted = 0
        for held in range(FOLDS):
            train, test = order[fold[order] != held], np.flatnonzero(fold == held)
            train = train[: round(share * len(train))]
            kinds = len(np.unique(truth[train]))
            if kinds < 2 or len(train) < 2 * kinds:
                return []
            right += int((logistic(1.0).fit(rows[train], truth[train]).predict(rows[test]) == truth[test]).sum())
            fitted += len(train)
        points.append((round(fitted / FOLDS), right / len(truth)))
    whole = round(len(truth) * (1 - 1 / FOLDS))
    return [*points, (whole, float((held_out.argmax(1) == truth).mean()))]


def gain_of_doubling(scores: Sequence[float]) -> float:
    """Extrapolate scores at n/4, n/2 and n rows to 2n: each doubling gains the same share of the gain before it.

    That is a power law with an asymptote. The share is at most 0.75, that of errors that fall with n^-0.4, so that
    noise in the first points cannot make the curve steeper.
    """
    before, last = scores[-2] - scores[-3], scores[-1] - scores[-2]
    if last <= 0:
        return 0.0
    return min(1 - scores[-1], last * min(STEEPEST, last / before if before > 0 else 1.0))


def _folds(truth: Numbers, seed: int) -> Numbers:
    """Cut folds that keep the labels' shares."""
    generator = np.random.default_rng([seed, 1])
    fold = np.empty(len(truth), dtype=np.int64)
    for label in np.unique(truth):
        members = generator.permutation(np.flatnonzero(truth == label))
        fold[members] = (np.arange(len(members)) + generator.integers(FOLDS)) % FOLDS
    return fold


def _more_rows(course: Course, what: str) -> list[Step]:
    if not course:
        return []
    gain = gain_of_doubling([score for _, score, *_ in course])
    points = ", ".join(f"{100 * score:.1f} % from {n}" for n, score, *_ in course)
    if gain < 0.005:
        return [Step(0.0, f"more training rows: twice as many would hardly help {what} ({points} rows)")]
    text = f"more training rows: twice as many would bring {what} about {100 * gain:+.0f} points ({points} rows)"
    return [Step(gain, text)]


# ---- requests that differ from the test rows


def two_sample(vectors: Floats, others: Floats, seed: int) -> tuple[float, float]:
    """Test whether two sets of texts differ: the accuracy of a head that tells them apart, and its p-value.

    Both sets count the same, and each text is judged by a head that was fitted without it. If the sets are alike, the
    accuracy is that of a coin.
    Lopez-Paz & Oquab, Revisiting classifier two-sample tests, ICLR 2017.
    """
    generator = np.random.default_rng([seed, 2])
    n = min(len(vectors), len(others), MOST // 2)
    both = np.concatenate([generator.permutation(vectors)[:n], generator.permutation(others)[:n]])
    truth = np.repeat(np.arange(2), n)
    right = int((out_of_fold(both, truth, 2, seed).argmax(1) == truth).sum())
    return right / (2 * n), sign_test(right, 2 * n - right)


def shift(texts: Sequence[str], test: Sequence[str], *, seed: int = 0) -> str:
    """Say whether requests differ from the test rows; empty where there are too few to tell."""
    if min(len(set(texts)), len(set(test))) < FEWEST or find_spec("sklearn") is None:
        return ""
    opened = open_encoder(ENCODER)
    apart, p = two_sample(opened.embed(sorted(set(texts))), opened.embed(sorted(set(test))), seed)
    if p >= LEVEL:
        return f"the requests cannot be told from the test rows (a head is right in {100 * apart:.0f} %, p = {p:.2g})"
    return (
        f"the requests differ from the test rows: a head tells them apart in {100 * apart:.0f} % of the cases, where a "
        f"coin has 50 (p = {p:.2g}); a score on the test rows is not the score on requests, so review requests of the "
        "test side"
    )


# ---- expected answers that are likely wrong


def suspect_labels(labels: Sequence[str], rows: Sequence[Example], probs: Array) -> dict[str, str]:
    """Find rows whose label is likely wrong, with the likely label, the most suspect first.

    `probs` are label probabilities by something that was made without the row, shape [rows, labels].
    """
    with needed_by("finding label errors", error=EngineError):
        from cleanlab.filter import find_label_issues
    given = np.array([labels.index(row.outputs[0]) for row in rows], dtype=np.int64)
    if len(given) < FEWEST or len(np.unique(given)) < 2:
        return {}
    smooth = np.maximum(probs, 1e-6)
    found = find_label_issues(
        given, smooth / smooth.sum(1, keepdims=True), return_indices_ranked_by="self_confidence", n_jobs=1
    )  # fmt: skip
    likely = probs.argmax(1)
    return {rows[i].id: labels[int(likely[i])] for i in found.tolist() if likely[i] != given[i]}


def _right(row: Prediction) -> float:
    return accuracy(row.prediction, row.expected)


def _suspects(seen: Answers, suspects: Mapping[str, str], rows: Mapping[str, Example]) -> list[Step]:
    if not suspects:
        return []
    shown = [f"{rows[each].source} ({rows[each].outputs[0]}, likely {other})" for each, other in suspects.items()]
    more = f" and {len(shown) - SHOWN} more (`rung report RUN --rows suspect` lists all)" if shown[SHOWN:] else ""
    text = f"labels that may be wrong: {', '.join(shown[:SHOWN])}{more}"
    own = seen.arms.get(seen.best, {})
    measured = [each for each in seen.order if each in suspects]
    gain = sum((own[each].prediction == suspects[each]) - _right(own[each]) for each in measured) / max(1, len(own))
    if measured:
        score = sum(map(_right, own.values())) / len(own)
        are, all_are = ("is", "it is") if len(measured) == 1 else ("are", "they are all")
        text += (
            f"; {len(measured)} of them {are} among the {len(own)} rows that {seen.best} was measured on, and if "
            f"{all_are} wrong its accuracy is {100 * (score + gain):.1f} % instead of {100 * score:.1f} %"
        )
    return [Step(max(gain, 0.0), text, "suspect")]


def _kept(seen: Answers, row: Example, likely: str) -> SuspectLabel:
    measured = seen.arms.get(seen.best, {}).get(row.id)
    split = "train" if measured is None else measured.split
    return SuspectLabel(split, row.id, row.source, row.outputs[0], likely, plain(row.inputs)[:CHARACTERS])


# ---- an ensemble of what survived


def ensemble(probs: Array, truth: Numbers) -> Numbers:
    """Choose arms for an average of probabilities, greedily and with repetition; count how often each is chosen.

    `probs` has the shape [arms, rows, labels].
    """
    counts, total = np.zeros(len(probs), dtype=np.int64), np.zeros(probs.shape[1:])
    best: tuple[tuple[float, float], Numbers] | None = None
    for size in range(1, ROUNDS + 1):
        scored = [_fit_of((total + own) / size, truth) for own in probs]
        arm = max(range(len(probs)), key=lambda number: scored[number])
        counts[arm] += 1
        total = total + probs[arm]
        if best is None or scored[arm] > best[0]:
            best = (scored[arm], counts.copy())
    assert best is not None
    return best[1]


def _fit_of(probs: Array, truth: Numbers) -> tuple[float, float]:
    own = probs[np.arange(len(truth)), truth]
    return float((probs.argmax(1) == truth).mean()), float(np.log(np.maximum(own, 1e-6)).mean())


def _ensemble(seen: Answers, labels: Sequence[str], margin: float, seed: int) -> list[Step]:
    arms = seen.complete()
    if len(arms) < 2 or seen.best not in seen.arms or len(seen.order) < FEWEST:
        return []
    names = list(arms)
    truth = np.array([labels.index(each.expected[0]) for each in arms[names[0]]], dtype=np.int64)
    probs = np.array([[each.probs for each in arms[name]] for name in names], dtype=np.float64)
    fold = _folds(truth, seed)
    right = np.zeros(len(truth))
    for held in range(FOLDS):
        chosen, asked = fold != held, fold == held
        weights = ensemble(probs[:, chosen], truth[chosen])
        right[asked] = np.tensordot(weights, probs[:, asked], 1).argmax(1) == truth[asked]
    difference = right - np.array([_right(seen.arms[seen.best][each]) for each in seen.order])
    gain = float(difference.mean())
    if gain <= margin or chance_better(difference) < LIKELY:
        return []
    counts = ensemble(probs, truth)
    mix = ", ".join(f"{name} {n / counts.sum():.0%}" for name, n in zip(names, counts, strict=True) if n)
    text = (
        f"an ensemble: the average of the label probabilities of {mix} is {100 * gain:+.1f} points better than "
        f"{seen.best}, cross-validated on {len(truth)} rows, at the cost of all its members"
    )
    return [Step(gain, text)]


# ---- rows


def _hard(seen: Answers, suspects: Mapping[str, str]) -> list[Step]:
    scores: dict[str, list[Prediction]] = defaultdict(list)
    for own in seen.arms.values():
        for each in own.values():
            scores[each.id].append(each)
    asked = {key: own for key, own in scores.items() if len(own) >= ARMS}
    hard = [own[0].source for key, own in asked.items() if key not in suspects and not any(one.score for one in own)]
    if not hard:
        return []
    more = f" and {len(hard) - SHOWN} more" if hard[SHOWN:] else ""
    text = (
        f"rows that no arm answers right: {len(hard)} of {len(asked)}: {', '.join(hard[:SHOWN])}{more}; check what is "
        "expected there, or add training rows like them"
    )
    return [Step(0.0, text, "hard")]


# ---- how often the rows have decided


def decisions(run: Path, rows: Sequence[str], best: str = "") -> int:
    """Count the climbs that these rows have decided so far, this one included; with `best`, enter it.

    The ledger is beside the climb's folder. A climb that is resumed keeps its number.
    """
    ledger, key = run.parent / LEDGER, hash_of(sorted(rows))
    entries: list[dict[str, Any]] = []
    torn = ""
    if ledger.exists():
        text = ledger.read_text("utf-8")
        torn = "\n" if text and not text.endswith("\n") else ""
        for line in text.splitlines():
            try:
                entries += sealed_lines(line.encode(), ledger)
            except ConfigError:  # cut short by a kill, or damaged: that climb enters itself again when it is resumed
                continue
    runs = [each["run"] for each in entries if each.get("rows") == key]
    if run.name in runs:
        return runs.index(run.name) + 1
    if best:
        with writing(ledger.name, ledger.parent), ledger.open("a", encoding="utf-8") as file:
            file.write(f"{torn}{sealed({'rows': key, 'run': run.name, 'recommended': best})}\n")
    return len(runs) + 1
