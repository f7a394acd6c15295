"""One run of a DSPy optimizer in its own environment; it prints one JSON line. See benchmarks/prompt_search.py.

{"calls": calls of the optimizer, "answers": one record of output fields per test row, "prompt": the last one,
"failed": why the optimizer failed; then the answers are those of the initial program}
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
from pathlib import Path
from typing import Any

os.environ.setdefault("DSPY_CACHEDIR", tempfile.mkdtemp())

import dspy
from dspy.teleprompt import BootstrapFewShotWithRandomSearch
from dspy.utils.callback import BaseCallback

THREADS = 2


class Calls(BaseCallback):  # type: ignore[misc]
    """Counts requests to the model."""

    def __init__(self) -> None:
        self.count, self._lock = 0, threading.Lock()

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Count one."""
        del call_id, instance, inputs
        with self._lock:
            self.count += 1


def same(expected: dspy.Example, found: Any, trace: Any = None) -> float:
    """Score the share of output fields that are right, ignoring whitespace and case: as lenient as possible."""
    del trace
    names = expected.labels().keys()
    right = [_plain(getattr(found, name, "")) == _plain(expected[name]) for name in names]
    return sum(right) / len(right)


def _plain(value: Any) -> str:
    return " ".join(str(value).lower().replace("_", " ").split())


def examples(file: Path, inputs: list[str], outputs: list[str]) -> list[dspy.Example]:
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    made = []
    for row in rows:
        source = json.loads(row["fields"]) if "fields" in row else row
        values = {name: row[name] for name in inputs} | {name: source[name] for name in outputs}
        made.append(dspy.Example(**values).with_inputs(*inputs))
    return made


def optimized(student: Any, train: list[Any], held: list[Any], chosen: argparse.Namespace) -> Any:
    many = 10**6  # a program that fails on a row scores 0 there, and goes on
    if chosen.optimizer == "random-search":
        search = BootstrapFewShotWithRandomSearch(
            same, max_bootstrapped_demos=4, max_labeled_demos=8, num_candidate_programs=chosen.candidates,
            num_threads=THREADS, max_errors=many,
        )  # fmt: skip
        return search.compile(student, trainset=train, valset=held)
    search = dspy.MIPROv2(metric=same, auto="light", num_threads=THREADS, max_errors=many, seed=chosen.seed)
    return search.compile(student, trainset=train, valset=held, seed=chosen.seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("folder", "url", "model", "optimizer", "inputs", "outputs", "instruction"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--candidates", type=int, default=16)
    chosen = parser.parse_args()
    inputs, outputs = chosen.inputs.split(","), chosen.outputs.split(",")
    calls = Calls()
    model = dspy.LM(
        f"openai/{chosen.model}", api_base=chosen.url, api_key="none", cache=False, max_tokens=chosen.max_tokens,
        temperature=0.0, num_retries=1,
    )  # fmt: skip
    dspy.configure(lm=model, callbacks=[calls])
    train = examples(Path(chosen.folder) / "train.jsonl", inputs, outputs)
    test = examples(Path(chosen.folder) / "test.jsonl", inputs, outputs)
    student = dspy.Predict(dspy.Signature(f"{', '.join(inputs)} -> {', '.join(outputs)}", chosen.instruction))
    half = len(train) // 2
    failed = ""
    try:
        program = optimized(student, train[:half], train[half:], chosen)
    except Exception as error:  # such as a proposal that cannot be parsed: what is left is the program as it began
        program, failed = student, f"{type(error).__name__}: {str(error)[:300]}"
    spent = calls.count
    answers: list[dict[str, str]] = []
    for example in test:
        try:
            found = program(**example.inputs())
            answers.append({name: str(getattr(found, name, "")) for name in outputs})
        except Exception:  # a row that the peer cannot answer is answered with nothing
            answers.append(dict.fromkeys(outputs, ""))
    prompt = model.history[-1].get("messages") if model.history else None
    print(json.dumps({"calls": spent, "answers": answers, "prompt": prompt, "failed": failed}))


if __name__ == "__main__":
    main()
