"""Preferences: pairs of answers, single answers with a verdict, and rated answers, read into one form.

| rows | a preference |
|---|---|
| `chosen`, `rejected`: texts or messages, with the prompt apart or in both | the pair |
| `first`, `second` and who of them is `preferred`, by one rater or several | the pair that nobody contradicts |
| an answer with a verdict, true or false | one answer, good or bad |
| an answer with a rating, `good_from` given | one answer: good from this rating on, else bad |
| several answers to an input with ratings | the best and the worst, if they differ (by `margin`) |
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite, isnan
from pathlib import Path
from statistics import median
from typing import Any

from rung.data.chat import Conversation, answer_turns, is_chat, read_conversation
from rung.data.examples import EMPTY_INPUT, answered, column, is_blank, is_true, outputs_of, read_inputs
from rung.data.rows import Example, Preference, Record, SplitReport, example_id, labels_of
from rung.data.source_keys import PreferenceSource
from rung.data.sources import opened
from rung.data.spec import TaskSpec
from rung.data.texts import canonical, distance, spelling
from rung.errors import ConfigError, DataError, suggest

# Usual names of columns, the most usual first.
CHOSEN, REJECTED = ("chosen", "preferred", "accepted"), ("rejected", "dispreferred", "refused")
FIRST, SECOND = ("first", "response1", "response_a"), ("second", "response2", "response_b")
PREFERRED = ("preference", "preferred", "winner")
VERDICTS = ("label", "thumbs_up", "liked", "accepted", "approved", "is_good", "desirable", "feedback")
RATINGS = ("rating", "score", "stars", "quality", "helpfulness", "overall_score")
ANSWERS = ("completion", "response", "answer", "output", "reply")
CONVERSATIONS = ("prompt", "messages", "conversations", "conversation")
TIE = ("0", "0.0", "tie", "draw", "equal", "both", "none", "")
DISAGREE = "people disagree about it"
SAMPLE = 200  # pairs whose edit distance is measured


def refuse_comparisons(file: Path, columns: Mapping[str, Sequence[str]]) -> None:
    """Refuse a table of two answers and who of them is better as the rows of a task: none of them is expected.

    Raises:
        DataError: `bad-row`: the table is one, by its columns and the texts in them.
    """
    names = {name.lower(): name for name in columns}
    for first, second in zip(FIRST, SECOND, strict=True):
        if first not in names or second not in names:
            continue
        votes = {*"12ab", "1.0", "2.0", "first", "second", first, second, *TIE}
        given = {name: {text.strip().lower() for text in texts} for name, texts in columns.items()}
        voted = [name for name, texts in given.items()
                 if texts <= votes and (name.lower() in PREFERRED or not texts <= {"0", "1"})]  # fmt: skip
        if voted:
            shown = voted[0] if len(voted) == 1 else f"[{', '.join(voted)}]"
            keys = f"files: {file.name}, first: {names[first]}, second: {names[second]}, preferred: {shown}"
            hint = f"name it in a task that has rows with answers: `data: {{train: ..., preferences: {{{keys}}}}}`"
            problem = f"{file} says which of two answers is better: it is preference data, without an expected answer"
            raise DataError("bad-row", problem, hint=f"{hint}; or choose an answer: --output {names[first]}")


def read_preferences(task: TaskSpec, labels: Sequence[str], report: SplitReport) -> list[tuple[Preference, str]]:
    """Read `data.preferences`, each with its group; what says nothing is dropped and counted in `report`.

    Raises:
        DataError: a column is missing, or a row is wrong.
        ConfigError: answers of the task's kind cannot be preferred.
    """
    source = task.data.preferences
    if source is None:
        return []
    if task.output.kind == "ranking" or task.output.columns is not None:
        what = "`kind: ranking`" if task.output.columns is None else "`output.columns`"
        raise ConfigError("bad-value", f"`data.preferences` does not go with {what}", hint="leave it out")
    judged: list[_Judged] = []
    for file in [*source.files] if isinstance(source.files, list) else [source.files]:
        judged += _FileReader(task, source, report).read(opened(file, task.folder, task.data.format)[0], str(file))
    kept = _rated(judged, source, report) if any(each.rating is not None for each in judged) else judged
    found = [(Preference(each.chosen, each.rejected), each.group) for each in _agreed(kept, report)]
    for preference, _ in found:
        for label in labels_of(preference.chosen.outputs[0], task.output.kind) if preference.chosen and labels else ():
            if label not in labels:
                problem = f"{preference.row.source}: the label {label!r} of the better answer is not among the rows'"
                raise DataError("unknown-label", problem, hint=suggest(label, labels))
    return found


@dataclass(frozen=True, slots=True)
class _Judged:
    """What a row says: the better and the worse answer, or one of them, or one with its rating; and the row's group."""

    chosen: Example | None
    rejected: Example | None
    group: str
    rating: float | None = None

    @property
    def row(self) -> Example:
        row = self.chosen or self.rejected
        assert row is not None
        return row


# ---- rows


class _FileReader:
    """Reads the rows of one file; its first row decides which columns they have."""

    def __init__(self, task: TaskSpec, source: PreferenceSource, report: SplitReport) -> None:
        self.task, self.source, self.report = task, source, report
        self.numbers: set[str] = set()  # by which the better of two answers is named

    def read(self, records: Iterable[Record], file: str) -> Iterator[_Judged]:
        """Yield what the rows say."""
        names: PreferenceSource | None = None
        place = file
        for record in records:
            self.report.read += 1
            place = record.source
            if names is None:
                names = _columns(self.source, record, self.task)
            found = self._judged(record, names)
            if isinstance(found, str):
                self.report.drop(found, record.source)
            else:
                yield found
        if names is None:
            raise DataError("too-few-rows", f"{file} has no rows", hint="write at least one preference")
        if "1" in self.numbers and "2" not in self.numbers and "0" in self.numbers:
            problem = f"{place}: the better answer is 0 or 1 in every row: 0 may be the first answer, or neither"
            raise DataError("bad-row", problem, hint="write first, second or tie; or 1, 2 and 0 for neither")

    def _judged(self, record: Record, names: PreferenceSource) -> _Judged | str:
        """What one row says; or why it says nothing."""
        group = self.task.data.split.group
        own = "" if group is None or group not in record.values else str(column(record, group)).strip()
        if names.first is not None and names.second is not None:
            voted = self._vote(record, names)
            if voted not in (names.first, names.second):
                return voted
            worse = names.second if voted == names.first else names.first
            return self._pair(record, voted, worse, own)
        if names.chosen is not None and names.rejected is not None:
            return self._pair(record, names.chosen, names.rejected, own)
        answer = with_answer(record, self.task, names.answer)
        if isinstance(answer, str):
            return answer
        if names.rating is not None:
            rating = _rating(record, names.rating)
            if rating is None:
                return "no rating"
            if names.good_from is None:
                return _Judged(answer, None, own, rating)
            good = rating >= names.good_from
        else:
            assert names.good is not None
            verdict = column(record, names.good)
            if verdict is None or str(verdict).strip() == "":
                return "no verdict"
            good = is_true(verdict, names.good, record)
        return _Judged(answer, None, own) if good else _Judged(None, answer, own)

    def _pair(self, record: Record, better: str, worse: str, group: str) -> _Judged | str:
        """A pair of answers that are in these columns."""
        chosen = with_answer(record, self.task, better)
        if isinstance(chosen, str):
            return chosen
        rejected = with_answer(record, self.task, worse, may_be_wrong=True)
        if isinstance(rejected, str):
            return rejected
        if chosen.id != rejected.id:
            return "its answers have different prompts"
        return _Judged(chosen, rejected, group)

    def _vote(self, record: Record, names: PreferenceSource) -> str:
        """The column of the better answer; or why there is none."""
        assert names.first is not None
        assert names.second is not None
        columns = [names.preferred] if isinstance(names.preferred, str) else names.preferred or []
        first, second = (
            ("1", "1.0", "a", "first", names.first.lower()),
            ("2", "2.0", "b", "second", names.second.lower()),
        )
        votes = set()
        for name in columns:
            given = column(record, name)
            text = "" if given is None else str(given).strip().lower()
            if text not in (*first, *second, *TIE):
                problem = f"{record.source}: {name!r} is {text[:80]!r}, which says of no answer that it is better"
                raise DataError("bad-row", problem, hint="write first, second or tie; or 1, 2 and 0 for neither")
            self.numbers.add(text.removesuffix(".0"))
            votes.add(names.first if text in first else names.second if text in second else "")
        votes.discard("")
        return votes.pop() if len(votes) == 1 else DISAGREE if votes else "neither answer is better"


def _columns(source: PreferenceSource, record: Record, task: TaskSpec) -> PreferenceSource:
    """Complete the columns by their usual names, as the first row has them."""
    by_name = {name.lower(): name for name in record.values}

    def named(names: Sequence[str]) -> str | None:
        return next((by_name[name] for name in names if name in by_name), None)

    given, found = source.model_fields_set - {"files"}, dict[str, Any]()
    if not given:
        pair, both = (named(CHOSEN), named(REJECTED)), (named(FIRST), named(SECOND), named(PREFERRED))
        if all(pair):
            found = dict(zip(("chosen", "rejected"), pair, strict=True))
        elif all(both):
            found = dict(zip(("first", "second", "preferred"), both, strict=True))
        elif verdict := named(VERDICTS):
            found = {"good": verdict}
        elif rating := named(RATINGS):
            found = {"rating": rating}
        else:
            there = ", ".join(map(repr, record.values))
            problem = f"{record.source} has no columns of preferences that are known by name; it has {there}"
            hint = "name them in `data.preferences`: chosen and rejected; first, second and preferred; good; or rating"
            raise DataError("missing-column", problem, hint=hint)
    if source.answer is None and {"good", "rating"} & {*found, *given}:
        own = task.output.column
        answer = own if own in record.values else named(ANSWERS)
        if answer is None and task.output.kind != "chat":
            hint = "name the column of the answers: `data.preferences.answer`"
            raise DataError("missing-column", f"{record.source} has no column {own!r} with an answer", hint=hint)
        found["answer"] = answer
    return source.model_copy(update=found)


def _rating(record: Record, name: str) -> float | None:
    value = column(record, name)
    try:
        if value is None or str(value).strip() == "" or isnan(rating := float(value)):
            return None  # some tables write NaN for what nobody rated
    except (TypeError, ValueError):
        rating = inf
    if not isfinite(rating):
        problem = f"{record.source}: {name!r} is {str(value)[:80]!r}, not a number"
        raise DataError("bad-row", problem, hint="write a number, or name another column of ratings")
    return rating


# ---- a row and one of its answers


def with_answer(record: Record, task: TaskSpec, name: str | None, *, may_be_wrong: bool = False) -> Example | str:
    """Make the example of a row and of the answer in one of its columns; or say why there is none.

    Args:
        record: the row.
        task: whose inputs it has.
        name: the column of the answer; None for the last turn of a conversation.
        may_be_wrong: whether the answer need not be one of the task's kind, such as a label or a record.
    """
    if task.output.kind == "chat":
        return _chat(record, task.inputs[0], name)
    assert name is not None
    cell = column(record, name)
    inputs = read_inputs(_single_turns(record, task), task.inputs, task.output.kind, record.source)
    if is_blank(inputs):
        return EMPTY_INPUT
    if isinstance(cell, list) and is_chat(cell):
        turns = answer_turns(cell, name, record.source)
        if len(turns) != 1 or turns[0]["role"] != "assistant":
            raise _is_conversation(record, name, task)
        cell = turns[0]["content"]
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return "empty answer"
    try:
        outputs = outputs_of(cell, task, record)
    except DataError:
        if not may_be_wrong or not isinstance(cell, str):
            raise
        outputs = (cell.strip(),)
    if len(outputs) > 1:
        problem = f"{record.source}: {name!r} holds {len(outputs)} answers, and a preference is about one"
        raise DataError("bad-row", problem, hint="write a row for each")
    return Example(example_id(inputs), inputs, outputs, record.source) if outputs else "empty answer"


def _single_turns(record: Record, task: TaskSpec) -> Mapping[str, Any]:
    """The row, with the text of a single user turn in place of a conversation in an input."""
    values = dict(record.values)
    for name in task.inputs:
        if isinstance(values.get(name), list) and is_chat(values[name]):
            turns = read_conversation(values[name], name, record.source, {}).turns
            if len(turns) != 1 or turns[0]["role"] != "user":
                raise _is_conversation(record, name, task)
            values[name] = turns[0]["content"]
    return values


def _is_conversation(record: Record, name: str, task: TaskSpec) -> DataError:
    problem = f"{record.source}: {name!r} is a conversation, which kind {task.output.kind} does not read"
    return DataError("bad-row", problem, hint="use `kind: chat`, with the column of the messages in `inputs`")


def _chat(record: Record, own: str, name: str | None) -> Example | str:
    """The prompt has a column of its own, or each answer is the end of a whole conversation."""
    prompt = next((each for each in (own, *CONVERSATIONS) if each in record.values and each != name), None)
    cell = None if name is None else column(record, name)
    if prompt is None or (prompt in (*CHOSEN, *FIRST) and name is not None):
        whole = name or own
        return answered(
            read_conversation(column(record, whole), whole, record.source, record.values), own, record.source
        )
    value = column(record, prompt)
    if isinstance(value, str) and not is_chat(value):
        value = [{"role": "user", "content": value}]
    before = read_conversation(value, prompt, record.source, record.values)
    if name is None:
        return answered(before, own, record.source)
    turns = answer_turns(cell, name, record.source)
    if not turns:
        return "empty answer"
    both = before.answered(turns)
    if turns[0]["role"] in ("system", "user") and len(both.turns) > len(turns):
        asked = [turn["content"] for turn in turns if turn["role"] == "user"]
        if len(before.turns) > 1 or before.turns[0]["content"] != asked[-1]:
            problem = f"{record.source}: the conversation in {name!r} does not begin with {prompt!r}"
            raise DataError("bad-row", problem, hint="write only the answer, or the whole conversation, into it")
        both = Conversation(turns, before.tools)  # it says more than the prompt, such as a system turn
    return answered(both, own, record.source)


# ---- what people agree about


def _rated(judged: Sequence[_Judged], source: PreferenceSource, report: SplitReport) -> list[_Judged]:
    """Pair the best and the worst rated answer to each input."""
    by_input: dict[str, list[_Judged]] = defaultdict(list)
    for each in judged:
        by_input[each.row.id].append(each)
    pairs = []
    for rated in by_input.values():
        ordered = sorted(rated, key=lambda each: each.rating or 0.0)
        worst, best = ordered[0], ordered[-1]
        gap = (best.rating or 0.0) - (worst.rating or 0.0)
        if len(rated) == 1:
            report.drop("its input has no other rated answer", best.row.source)
        elif gap <= 0 or gap < (source.margin or 0.0):
            for each in rated:
                report.drop("the ratings of its input differ too little", each.row.source)
        else:
            pairs.append(replace(best, rejected=worst.chosen, rating=None))
            for each in ordered[1:-1]:
                report.drop("rated between the best and the worst answer", each.row.source)
    return pairs


def _agreed(judged: Sequence[_Judged], report: SplitReport) -> list[_Judged]:
    """Drop pairs of equal answers, what is said twice, and what one row says and another one contradicts."""
    said: dict[tuple[str, str | None, str | None], _Judged] = {}
    for each in judged:
        better, worse = (None if one is None else canonical(one.outputs[0]) for one in (each.chosen, each.rejected))
        if better == worse and _calls(each.chosen) == _calls(each.rejected):
            report.drop("both answers are equal", each.row.source)
        elif (each.row.id, better, worse) in said:
            report.drop("repeated preference", each.row.source)
        else:
            said[each.row.id, better, worse] = each
    for key, better, worse in list(said):
        if (key, worse, better) in said:
            for each in (said.pop((key, better, worse)), said.pop((key, worse, better))):
                report.drop(DISAGREE, each.row.source)
    return list(said.values())


def _calls(row: Example | None) -> Any:
    return None if row is None or row.turn is None else row.turn.get("tool_calls")


# ---- the splits


def parted(
    read: Sequence[tuple[Preference, str]], task: TaskSpec, held: Mapping[str, Mapping[str, str]],
    folds: Sequence[Mapping[str, str]], report: SplitReport,
) -> tuple[list[Preference], list[Preference]]:  # fmt: skip
    """Keep apart what may be learned and what is about rows that are not trained on.

    Args:
        read: the preferences and their groups.
        task: says which splits are files, and what to do with inputs in two of them.
        held: the place of every input and group of the validation and the test rows, by split.
        folds: the same for each fold.
        report: gets what is dropped.

    Raises:
        DataError: `duplicate-across-splits`: it is about a row of a split that has a file of its own.
    """
    learned, unseen, crossing = list[Preference](), list[Preference](), list[str]()
    for preference, group in read:
        keys = [preference.row.id, *([f"group {spelling(group)}"] if group else [])]
        split = next((name for name, places in held.items() if any(key in places for key in keys)), None)
        if split is None:
            own = frozenset(index for index, places in enumerate(folds) if any(key in places for key in keys))
            learned.append(replace(preference, folds=own))
        elif getattr(task.data, split) is None:
            unseen.append(preference)
        else:
            place = next(held[split][key] for key in keys if key in held[split])
            crossing.append(f"the preference {preference.row.source} is about the row {place} ({split})")
            report.drop(f"about a row of {split}", preference.row.source)
    if crossing and task.data.duplicates == "error":
        more = f" (and {len(crossing) - 1:,} more like it)" if len(crossing) > 1 else ""
        hint = "remove one, or set `data.duplicates: drop` to drop such preferences"
        raise DataError("duplicate-across-splits", crossing[0] + more, hint=hint)
    return learned, unseen


# ---- what the pairs are like


def figures(preferences: Sequence[Preference]) -> Iterator[str]:
    """Say how the answers of the pairs differ; the edit distance is measured on at most `SAMPLE` pairs."""
    pairs = [each.pair for each in preferences if each.pair is not None]
    if not pairs:
        return
    texts = [(chosen.outputs[0], rejected.outputs[0]) for chosen, rejected in pairs]
    lengths = [median(map(len, side)) for side in zip(*texts, strict=True)]
    yield f"pairs: {lengths[0]:g} characters in the better answers and {lengths[1]:g} in the worse (medians)"
    longer = sum(len(worse) > len(better) for better, worse in texts)
    split = [(better.split(), worse.split()) for better, worse in texts]
    last = sum(len(a) == len(b) and a[:-1] == b[:-1] and len(a) > 1 for a, b in split)
    longer_share, almost = longer / len(pairs), last / len(pairs)
    yield f"pairs: the worse answer is longer in {longer_share:.0%}; {almost:.0%} differ in the last word only"
    some = sorted(range(len(pairs)), key=lambda index: pairs[index][0].id)[:SAMPLE]
    shares = sorted(distance(*split[index]) / max(map(len, split[index])) for index in some)
    low, middle, high = (shares[round(share * (len(shares) - 1))] for share in (0.25, 0.5, 0.75))
    of = f" of {len(some)} pairs" if len(some) < len(pairs) else ""
    yield f"pairs: {low:.0%} / {middle:.0%} / {high:.0%} of the words must be edited (quartiles{of})"
