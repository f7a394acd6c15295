"""What corrections of wrong labels are worth: fine-tuning on them, DPO on them as pairs, or both.

    python benchmarks/corrections.py

The zero-shot prompt answers training rows of BANKING77. Each wrong answer is a correction: the expected label is the
better answer, the label given the worse one. `lora` learns the expected labels, `dpo` (with the likelihood of the
better answer) the pairs, and `dpo` on top of `lora` both. Test rows measure all, paired. There is no goal: on labels
fine-tuning is expected to win (J Med Internet Res 2025;27:e76048), and the result is printed as it comes out.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from _common import EXAMPLES, finish
from methods import of_labels
from rewards import Scores


def main() -> None:
    from rung.artifact.artifact import Artifact
    from rung.data.rows import Preference
    from rung.rungs import DPO, LoRA
    from rung.task import Task

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--labels", type=int, default=20, help="labels whose rows are kept")
    parser.add_argument("--rows", type=int, default=200, help="training rows that zero-shot answers")
    parser.add_argument("--test", type=int, default=300, help="test rows")
    chosen = parser.parse_args()
    task = Task.load(EXAMPLES / "banking77" / "task.yaml", {"model": chosen.model})
    data = of_labels(task.read(), chosen.labels)
    rows, scores = data.train[: chosen.rows], Scores(data.test[: chosen.test])
    zero = Artifact.zero_shot(task, data.labels, engine="torch")
    answers = zero.answer(rows, full=False)
    wrong = [(row, answer.text) for row, answer in zip(rows, answers, strict=True) if answer.text != row.outputs[0]]
    pairs = tuple(Preference(row, replace(row, outputs=(given,))) for row, given in wrong)
    print(f"{len(pairs)} of {len(rows)} rows corrected", flush=True)
    corrected = replace(data, train=tuple(row for row, _ in wrong), preferences=pairs, unseen_preferences=())
    found = {"zero-shot": scores.measure("zero-shot", zero)}
    tuned = LoRA().fit(zero, corrected)
    found["lora"] = scores.measure("lora", tuned)
    found["dpo"] = scores.measure("dpo with likelihood", DPO().fit(zero, corrected))
    found["both"] = scores.measure("dpo on top of lora", DPO().fit(tuned, corrected))
    shares = {name: sum(values) / len(values) for name, values in found.items()}
    finish("corrections", {name: shares[name] / max(shares["lora"], 1e-9) for name in ("dpo", "both")}, {})


if __name__ == "__main__":
    main()
