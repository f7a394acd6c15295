"""Record score matrices for benchmarks/racing.py: every candidate prompt on every row, by the embedded model.

    python benchmarks/record_matrices.py --data ../shared/data --task banking77 --arms 24 --rows 200

The candidates are those that `prompt-search` proposes: one gene changed, then genes mixed. Each finished candidate is
a line of benchmarks/matrices/TASK.jsonl: the same command goes on where it was. `scores` are by the task's metric,
`racing` what prompt search races by (the gold label's probability where labels are scored).
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path

from _prompt_tasks import TASKS, task_folder
from rung.artifact.artifact import Artifact
from rung.data.rows import Example
from rung.engines.opening import open_encoder
from rung.evaluation.metrics.registry import get_metric
from rung.evaluation.racing import race_order
from rung.prompt_search.candidates import Candidate, SearchSpace, crossed, neighbours, templates
from rung.prompt_search.scorer import CandidateScorer, Meter, SearchLimits
from rung.prompts.demonstrations import Demonstrations
from rung.rungs import ChainOfThought
from rung.task import Task

FOLDER = Path(__file__).parent / "matrices"
POOL = 100
INSTRUCTIONS = {
    "banking77": (
        "Read the customer's message and name what it is about.",
        "You route the messages of a bank's customers. Choose the intent that fits best.",
    ),
    "sroie": (
        "Read the receipt and fill in the fields. Copy the text exactly as it stands there.",
        "Return a JSON object with the keys company, date, address and total, taken from the receipt.",
    ),
    "gsm8k": ("Work out the answer.", "Solve this problem of arithmetic carefully, one operation at a time."),
}


def recorded(name: str, source: Path, arms: int, rows: int, tokens: int) -> None:
    """Record the arms that are not there yet."""
    with tempfile.TemporaryDirectory() as folder:
        file = task_folder(name, source, Path(folder), seed=0, train=POOL, test=rows, model="embedded")
        task = Task.load(file)
        data = task.read()
    artifact = Artifact.zero_shot(task, data.labels)
    if name == "gsm8k":
        artifact = ChainOfThought(when="always", extract="number", max_tokens=tokens).fit(artifact, data)
    space = make_space(name, artifact, data.train)
    scorer = CandidateScorer(space, race_order(data.test), get_metric(artifact.signature.metric), Meter(SearchLimits()))
    out = FOLDER / f"{name}.jsonl"
    done = out.read_text("utf-8").splitlines() if out.exists() else []
    for i, candidate in enumerate(candidates(space, arms)):
        arm = scorer.add(candidate, 1)
        if i < len(done):
            known = json.loads(done[i])
            if known["candidate"] != json.loads(json.dumps(candidate.as_dict())) or len(known["scores"]) != rows:
                raise SystemExit(f"{out} was recorded with other --arms or --rows: move it away, or repeat them")
            continue
        scorer.score(arm, len(scorer.rows))
        tried = scorer.scored[arm]
        line = {
            "candidate": candidate.as_dict(),
            "scores": [round(score, 4) for score in tried.metric],
            "racing": [round(score, 4) for score in tried.scores],
        }
        with out.open("a", encoding="utf-8") as target:
            target.write(json.dumps(line, ensure_ascii=False) + "\n")
        print(f"{name} {i + 1}/{arms}: {sum(tried.metric) / len(tried.metric):.3f} {candidate.origin}", flush=True)


def make_space(name: str, artifact: Artifact, pool: tuple[Example, ...]) -> SearchSpace:
    """Return what prompt search would vary, with two instructions written by hand."""
    texts = [artifact.prompt.question(row.inputs) for row in pool]
    vectors = open_encoder("embedded-encoder").embed(texts)
    plain = "balanced" if artifact.signature.labels else "fixed"
    pools = {
        plain: Demonstrations(plain, 4, pool),
        "knn": Demonstrations("knn", 4, pool, vectors, "embedded-encoder"),
    }
    suffix = artifact.prompt.instruction.partition("\n\n")[2]
    written = [f"{text}\n\n{suffix}".strip() for text in INSTRUCTIONS[name]]
    output = "Label" if artifact.signature.labels else "Answer"
    return SearchSpace(
        artifact,
        (artifact.prompt.instruction, *written),
        templates(artifact.prompt.template, artifact.signature.inputs, output),
        pools,
    )


def candidates(space: SearchSpace, count: int) -> list[Candidate]:
    """Return half of them one gene from the start, and half mixed."""
    rng = random.Random(0)
    first = [space.start, *neighbours(space, space.start, count // 2 - 1, rng)]
    return [*first, *crossed(space, first, count - len(first), rng)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--task", choices=tuple(TASKS), required=True)
    parser.add_argument("--arms", type=int, default=24)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--max-tokens", type=int, default=160, help="of a chain of thought (gsm8k)")
    chosen = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    recorded(chosen.task, chosen.data, chosen.arms, chosen.rows, chosen.max_tokens)


if __name__ == "__main__":
    main()
