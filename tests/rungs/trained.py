"""What tests of training rungs share: a task whose answers are texts, and a training that is killed and goes on."""

from __future__ import annotations

import pytest

from rung.task import Task
from rung.training import loop

STEP = loop._Run._step


def help_task(model, better, worse):
    """40 rows whose answer is `better` of their number, and pairs with `worse` about these and 40 other inputs."""
    rows = [{"q": f"question number {i}", "a": better(i)} for i in range(40)]
    pairs = [
        {"q": f"{kind} {i}", "chosen": better(i), "rejected": worse(i)}
        for kind in ("question number", "another question")
        for i in range(40)
    ]
    return Task(
        name="help", instruction="Answer.", inputs=["q"], output={"kind": "text", "column": "a", "max_tokens": 8},
        data={"train": rows, "preferences": pairs, "split": {"method": "holdout"}}, model=str(model),
    )  # fmt: skip


def killed_and_resumed(fit, after):
    """Kill a training after so many steps, and train again, which has to go on from there. Gives what `fit` gives."""
    begun = []

    def dying(self, batch):
        if self.result.steps == after:
            raise KeyboardInterrupt
        return STEP(self, batch)

    def counted(self, batch):
        begun.append(self.result.steps)
        return STEP(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
        patch.setattr(loop, "CHECKPOINT_SHARE", 1e9)
        patch.setattr(loop._Run, "_step", dying)
        with pytest.raises(KeyboardInterrupt):
            fit()
        patch.setattr(loop._Run, "_step", counted)
        patch.setattr(loop.Checkpoints, "save", lambda *_: None)
        again = fit()
    assert begun[0] == after
    return again
