"""The decision guide: what rules expect of every technique, with reasons and sources, before anything is measured.

Nothing here is downloaded or run; a climb measures what the rules only expect, and the reports show both side by side.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rung.advice.facts import Facts, gather
from rung.advice.rules import AdviceStep, Effect, Expect, walk
from rung.data.rows import Data
from rung.machine import Machine, this_machine
from rung.rungs import Registration, registered
from rung.task import Task
from rung.yamlfile import read_sealed

__all__ = ["Advice", "Expectation", "advise"]


@dataclass(frozen=True, slots=True)
class Expectation:
    """What the rules expect of one rung: that it helps, that it does not, or neither; and every reason given."""

    rung: str
    family: str
    expect: Expect
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Advice:
    """The guide's path for one task, and what it expects of every rung."""

    task: str
    steps: tuple[AdviceStep, ...]
    expectations: tuple[Expectation, ...]

    @property
    def open_questions(self) -> tuple[str, ...]:
        """Keys of the task file that would answer what is unknown."""
        return tuple(dict.fromkeys(step.ask for step in self.steps if step.answer == "unknown" and step.ask))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = {**asdict(self), "open_questions": self.open_questions}
        for step, stored in zip(self.steps, values["steps"], strict=True):
            stored["source"] = step.source and step.source._asdict()
            for effect in stored["effects"]:
                del effect["when"]
        plain: dict[str, Any] = json.loads(json.dumps(values))  # tuples become lists, as in a file
        return plain


def advise(task: Task, data: Data | None = None, machine: Machine | None = None) -> Advice:
    """Walk the guide for a task; `data` are its rows if they were read already, `machine` is this one by default."""
    facts = gather(task, data or task.read(), machine or this_machine())
    steps = tuple(walk(facts))
    expectations = [Expectation("zero-shot", "prompting", "unknown", ("every rung is measured against it",))]
    expectations += [_expectation(entry, entry.rung_type.lacks(task), steps, facts) for entry in registered()]
    return Advice(task.name, steps, tuple(expectations))


def _expectation(entry: Registration, lacks: str, steps: tuple[AdviceStep, ...], facts: Facts) -> Expectation:
    """What the steps say of one rung, each by the rung's topics if it names one of these, else by its family."""
    name, family = entry.name, entry.rung_type.family
    if lacks:
        return Expectation(name, family, "not", (lacks,))
    effects: list[Effect] = []
    for step in steps:
        by_topic = [effect for effect in step.effects if set(entry.topics) & set(effect.rungs)]
        effects += by_topic or [effect for effect in step.effects if family in effect.rungs]
    if entry.rung_type.reads_corpus and not facts.corpus and not effects:
        return Expectation(name, family, "not", ("`corpus` names no documents",))
    excluding = [effect for effect in effects if effect.excludes]
    verdicts = {effect.expect for effect in effects}
    verdict: Expect = "not" if excluding else verdicts.pop() if len(verdicts) == 1 else "unknown"
    reasons = tuple(str(effect.reason) for effect in excluding or effects)
    return Expectation(name, family, verdict, reasons or ("no rule is about it",))


def latest_run(task: Task, runs: Path) -> tuple[Path, bool] | None:
    """The folder of the task's latest finished climb, and whether the task file is still the same."""
    finished = []
    for report in runs.glob("*/report.json"):
        identity = read_sealed(report.parent / "climb.json")
        if identity.get("task") == task.name:
            same = identity.get("task_fingerprint") == task.fingerprint()
            finished.append((report.stat().st_mtime, report.parent, same))
    return max(finished)[1:] if finished else None
