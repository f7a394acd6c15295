"""Startup times, everything in new processes: import, help, model start, first token of `rung run`, its end.

The peer of the model start is transformers reading the embedded model's GGUF file, as it comes in its package
(`AutoModelForCausalLM.from_pretrained(..., gguf_file=...)`). Both sides load model and tokenizer into memory; the
imports of libraries are not counted there, and both run once before, so that the files are in the page cache. Limits
in seconds become limit / measured.

Measured on two AVX2 cores on 2026-11-21: import 0.01 s, `--help` 0.28 s, model start 0.64 s against 31.9 s (50x). On
two quiet cores on 2026-12-01: first token 2.9 s, end 3.1 s; on one of them while the other was busy: 6.5 s, 6.7 s.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from _common import finish, run_python, seconds_of, seconds_to_first_byte
from rung.models import embedded
from rung.models.embedded import LANGUAGE_MODEL
from rung.models.reference import resolve

ROUNDS = 3
LIMITS = {"import": 0.3, "help": 0.5, "first_token": 5.0, "run": 6.0}
GOALS = {"import": 1.0, "help": 1.0, "model_start": 8.0, "first_token": 1.0, "run": 1.0}

IMPORT = "import time; t = time.perf_counter(); import rung; print(time.perf_counter() - t)"
LIBRARIES = """
import sys, time, jinja2, safetensors.torch, tokenizers, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM
"""
OURS = f"""{LIBRARIES}
import rung.engines.torch_engine
from rung.engines.opening import open_torch
t = time.perf_counter()
open_torch("embedded").encode("warm")
print(time.perf_counter() - t)
"""
PEER = f"""{LIBRARIES}
import gguf
transformers.logging.set_verbosity_error()
t = time.perf_counter()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], gguf_file=sys.argv[2])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], gguf_file=sys.argv[2], dtype=torch.float32)
tokenizer("warm")
print(time.perf_counter() - t)
"""
ARTIFACT = """
import sys
from pathlib import Path
from rung.artifact.artifact import Artifact
from rung.task import Task
folder = Path(sys.argv[1])
(folder / "rows.jsonl").write_text("".join('{"text": "question %d", "answer": "yes"}\\n' % i for i in range(20)))
(folder / "task.yaml").write_text(
    "name: answers\\ninstruction: Answer the question.\\ninputs: [text]\\n"
    "output: {column: answer, kind: text, max_tokens: 16}\\ndata: {train: rows.jsonl}\\n"
)
Artifact.zero_shot(Task.load(folder / "task.yaml")).save(folder / "artifact")
"""


def least(code: str, *arguments: str, rounds: int = ROUNDS) -> float:
    """Return the smallest number that `code` prints over some runs."""
    return min(float(run_python(code, *arguments).split()[-1]) for _ in range(rounds))


def model_start(scratch: Path) -> tuple[float, float]:
    """Return seconds of ours and of the peer; one run of the peer is enough, as it takes half a minute."""
    embedded.fetch(LANGUAGE_MODEL, scratch, scratch / "gguf")
    (name,) = LANGUAGE_MODEL.members
    return least(OURS), least(PEER, str(scratch / "gguf"), name, rounds=1)


def first_token(scratch: Path) -> tuple[float, float]:
    """Return seconds until `rung run` prints the first piece of an answer, and until its process has ended.

    Each run asks something new, as an answer that is remembered needs no model.
    """
    run_python(ARTIFACT, str(scratch))
    start = [sys.executable, "-m", "rung", "run", str(scratch / "artifact"), "--engine", "openvino"]
    new = (f"{time.time_ns()}: what is the capital of country {i}?" for i in range(2 * ROUNDS))
    first = min(seconds_to_first_byte([*start, next(new)]) for _ in range(ROUNDS))
    return first, min(seconds_of([*start, next(new)], 1) for _ in range(ROUNDS))


def main() -> None:
    """Measure, print a table and one JSON line."""
    resolve("embedded")
    spent = {"import": least(IMPORT), "help": seconds_of([sys.executable, "-m", "rung", "--help"])}
    with tempfile.TemporaryDirectory() as scratch:
        ours, peer = model_start(Path(scratch))
        spent["first_token"], spent["run"] = first_token(Path(scratch))
    ratios = {name: limit / spent[name] for name, limit in LIMITS.items()} | {"model_start": peer / ours}
    print(f"{'what':24} {'seconds':>8} {'against':>22} {'ratio':>7}")
    for name, limit in LIMITS.items():
        print(f"{name:24} {spent[name]:8.3f} {f'limit {limit} s':>22} {ratios[name]:7.1f}")
    print(f"{'model_start':24} {ours:8.3f} {f'transformers {peer:.1f} s':>22} {ratios['model_start']:7.1f}")
    finish("startup", ratios, GOALS)


if __name__ == "__main__":
    main()
