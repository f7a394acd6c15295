"""An arm that gains by nothing but what it was rewarded for is shown, and never recommended."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from rung.artifact.yardsticks import ConstantAnswer
from rung.climbing import run
from rung.climbing.options import ClimbOptions
from rung.evaluation.decision import gains_only_on
from rung.rungs import Rung
from rung.rungs.costs import inference_cost
from rung.task import Task

EXPECTED = "the card is on its way"


@dataclass(frozen=True)
class Rewarded(Rung):
    """Give every row the same answer, as after learning from a reward."""

    answer: str
    rewarded_by: tuple[str, ...]
    family = "reinforcement"
    name = "rewarded"

    def estimate(self, artifact, data, machine):
        return inference_cost(artifact, data, machine)

    def fit(self, artifact, data, *, progress=None):
        record = {"rewarded_by": list(self.rewarded_by)}
        return artifact.step(self.name, record, decoder=ConstantAnswer(self.answer))


@pytest.mark.parametrize(
    ("answer", "rewarded_by", "recommended"),
    [
        ("!!!!", ("checks:marks",), False),  # the reward alone
        ("!!!! the card is on its way", ("checks:marks",), True),  # chrF, too
        ("!!!!", (), True),  # the metric is the task's own, and nothing was trained on it
    ],
)
def test_the_rule_of_the_decision(answer, rewarded_by, recommended, tiny_folder, tmp_path, monkeypatch):
    (tmp_path / "checks.py").write_text("def marks(prediction, references):\n    return prediction.count('!') / 100\n")
    monkeypatch.setenv("RUNG_TRUST", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    task = Task(
        name="help", instruction="Answer.", inputs=["q"], output={"kind": "text", "column": "a", "max_tokens": 4},
        data={"train": [{"q": f"question {i}", "a": EXPECTED} for i in range(40)]}, metric="checks:marks",
        model=str(tiny_folder),
    )  # fmt: skip
    rung = Rewarded(answer, rewarded_by)
    monkeypatch.setattr(run, "build", lambda chosen, *_: (rung,) if "lora" in chosen else ())
    result = run.climb(task, options=ClimbOptions(rungs=("lora",), out=tmp_path / "runs")).result
    arm = next(each for each in result.rungs if each.name == "rewarded")
    assert arm.score == pytest.approx(0.04)
    assert (result.recommended == "rewarded") is recommended
    if not recommended:
        assert "rewarded is not recommended: it gains by checks:marks, which it was rewarded for" in result.decision
        assert "not by quasi_exact_match or chrf" in result.decision


def test_a_gain_by_another_measure_is_enough():
    assert gains_only_on(0.2, {"chrf": 0.0, "rougeL": -0.1})
    assert not gains_only_on(0.2, {"chrf": 0.01, "rougeL": -0.1})
    assert not gains_only_on(0.0, {"chrf": -0.1})
    assert not gains_only_on(0.2, {})
