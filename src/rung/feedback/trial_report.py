"""What there is to say of a trial, the same for `rung trial show` and for the page: figures, verdict, what next."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from rung.artifact.artifact import Artifact
from rung.evaluation.metrics import Metric
from rung.evaluation.report.words import p_text
from rung.feedback.commands import command
from rung.feedback.records import Challenge
from rung.feedback.registry import Registry
from rung.feedback.store import Store
from rung.feedback.trials import Standing, no_trial, standing

VERDICTS = {
    "open": "undecided so far",
    "none": "the rows ran out, and neither was shown to be better",
    "a": "what is served is better",
    "b": "the challenger is better",
}
Step = Literal["promote", "stop", "review"]


@dataclass(frozen=True, slots=True)
class TrialReport:
    """A trial, how it stands, and what to do next.

    Attributes:
        running: whether it was neither stopped nor overtaken by a promotion.
        beside: whether what it was started against is still served.
        served, challenger: names of the two artifacts: their rungs.
        standing: the figures.
        registry: of the task.
        store: the place of the store, as it may be shown.
    """

    trial: Challenge
    running: bool
    beside: bool
    served: str
    challenger: str
    standing: Standing
    registry: Registry
    store: str

    @property
    def folder(self) -> Path:
        """Where the challenger lies."""
        return self.registry.path(self.trial)

    @property
    def verdict(self) -> str:
        """What the figures say."""
        decision = self.standing.decision
        return f"{VERDICTS[decision.state]}{'; the trial may be stopped' if decision.stop else ''}"

    @property
    def delta(self) -> str:
        """`+4.0 pp`: the challenger's mean score less that of what is served."""
        return f"{100 * self.standing.decision.delta:+.1f} pp"

    @property
    def interval(self) -> str:
        """`[+0.6, +7.5]`."""
        low, high = self.standing.interval
        return f"[{100 * low:+.1f}, {100 * high:+.1f}]"

    @property
    def p(self) -> str:
        """`p = 0.020`."""
        return p_text(self.standing.decision.p)

    @property
    def evidence(self) -> str:
        """What the trial says for its challenger, in one line."""
        return f"trial {self.trial.token[:8]}: {self.delta} {self.interval}, {self.p}"

    @property
    def step(self) -> Step | None:
        """What comes next; None where there is nothing to do."""
        decision = self.standing.decision
        if decision.state == "b":
            return "promote" if self.beside else None
        if not self.running:
            return None
        return "stop" if decision.stop else "review"

    @property
    def next(self) -> str:
        """The command of the next step, or an empty text."""
        task, root = self.trial.task, self.registry.root
        if self.step == "promote":
            why = ("--reason", self.evidence)
            return command("rung promote", self.folder, *why, registry=root, store=self.store)
        if self.step == "stop":
            return command("rung trial stop", task, registry=root)
        if self.step == "review":
            which = ["--reason", "disagreement"] if self.trial.mode == "shadow" else ["--all"]
            return command("rung failures list", "--task", task, *which, store=self.store)
        return ""


def trial_report(store: Store, registry: Registry) -> TrialReport:
    """Return what there is to say of the trial that was started last.

    Raises:
        ConfigError: `no-trial`.
        ArtifactError: the registry or one of the artifacts is damaged.
        DataError: an expected response is none of the task's.
    """
    trial, now = registry.trial(), registry.current()
    if trial is None:
        raise no_trial(registry, "no trial was started")
    challenger, metric = _read(registry.path(trial).absolute())
    served, _ = _read(registry.path_of(trial.against).absolute())
    beside = now is not None and now.artifact == trial.against
    found = standing(store, trial, metric)
    return TrialReport(trial, trial.runs(now), beside, served, challenger, found, registry, store.name)


@lru_cache(64)
def _read(folder: Path) -> tuple[str, Metric]:
    """Return the name of an artifact and its task's metric; a folder of the registry never holds another one."""
    artifact = Artifact.load(folder)
    return artifact.name, artifact.shape.scorer()
