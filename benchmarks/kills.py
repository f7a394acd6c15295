"""kill -9 at random moments: what was acknowledged is there, and what is run again ends like an undisturbed run.

    python benchmarks/kills.py                          # 100 kills of each kind; an hour on two quiet cores
    python benchmarks/kills.py --kills 20 --kinds climb training

kind        what is killed, and what must hold
capture     a process that captures and corrects: the store is whole and has every acknowledged correction
climb       `rung climb` of heads and yardsticks: resumed, it has the scores and artifacts of an undisturbed climb
training    `rung climb` of zero-shot and LoRA on a tiny random model: the same, weights included
indexing    `rung index build`: built on, it finds the same passages; no lock is left
promotion   `rung promote` of two artifacts in turn: the registry names a whole artifact, the next promotion works

A command that is resumed after each kill is killed at most ten times in a row, and then ends undisturbed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from _common import finish

RUNG = [sys.executable, "-W", "ignore", "-m", "rung"]
MOST_IN_A_ROW = 10
TASK = """name: kills
instruction: Which thing is this about?
inputs: [text]
output: {column: label, kind: category}
data: {train: train.csv}
"""
WRITER = """
import sys
from datetime import UTC, datetime
from rung.feedback.capture import Capture
from rung.feedback.records import Interaction
from rung.feedback.store import FeedbackStore
store = FeedbackStore(sys.argv[1])
capture = Capture(store)
for n in range(int(sys.argv[2]), 10**9):
    row = Interaction(f"r{n}", datetime.now(UTC), "t", "a", "m", "", "{text}", "v", {"text": f"{n} " * 50}, "p",
                      f"answer {n} " * 50, None, 1, 1, 0.1, None, "stop", "train")
    capture.offer(row)
    if n % 20 == 0:
        capture.flush()
        store.correct(row.id, f"expected {n}", "Ann")
        print(n, flush=True)
"""


class Moments:
    """Starts commands and kills them at random moments of the time that they take undisturbed."""

    def __init__(self, seed: int) -> None:
        self.random, self.kills = random.Random(seed), 0

    def disturb(self, command: list[str], folder: Path, longest: float) -> bool:
        """Run the command in the folder; say whether it ended before its kill."""
        with subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        ) as process:
            try:
                _, said = process.communicate(timeout=self.random.uniform(0, longest))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                self.kills += 1
                return False
        if process.returncode != 0:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{said.decode()}")
        return True


def whole(command: list[str], folder: Path) -> str:
    """Run a command to its end; an error ends the benchmark."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout


def resumed(kills: int, moments: Moments, start: Callable[[Path], list[str]], read: Callable[[Path], Any]) -> int:
    """Kill a command again and again until it ends, in fresh folders; return how many ends were not as undisturbed."""
    with tempfile.TemporaryDirectory() as scratch:
        calm, wrong = Path(scratch) / "calm", 0
        calm.mkdir()
        command, began = start(calm), time.perf_counter()
        whole(command, calm)
        longest, expected = time.perf_counter() - began, read(calm)
        while moments.kills < kills:
            folder = Path(scratch) / "disturbed"
            folder.mkdir()
            command = start(folder)
            for _ in range(min(MOST_IN_A_ROW, kills - moments.kills)):
                began = time.perf_counter()
                if moments.disturb(command, folder, longest):
                    longest = min(longest, 2 * (time.perf_counter() - began))  # the machine may be less busy by now
                    break
                print(f"{moments.kills} of {kills} kills", file=sys.stderr, flush=True)
            else:
                whole(command, folder)
            if (got := read(folder)) != expected:
                wrong += 1
                print(f"not as undisturbed:\n{expected}\n{got}", file=sys.stderr)
            shutil.rmtree(folder)
        return wrong


def rows(folder: Path) -> None:
    """Write the rows of three easy labels."""
    text = [f"about {word} number {i},{word}\n" for i in range(40) for word in ("alpha", "beta", "gamma")]
    (folder / "train.csv").write_text("text,label\n" + "".join(text))


def tiny_llama(folder: Path) -> Path:
    """Make a random Llama of 40,000 parameters."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer, tokens.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokens.train_from_iterator(["about alpha beta gamma number"] * 4, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokens, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        chat_template="{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}assistant: ",
    ).save_pretrained(folder)  # fmt: skip
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        **shape, vocab_size=320, max_position_embeddings=512, bos_token_id=1, eos_token_id=2, tie_word_embeddings=True
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def climbed(folder: Path) -> Any:
    """What a climb decided: scores, recommendation, and the fingerprint of each artifact."""
    from rung.artifact.files import fingerprint

    (run,) = (folder / "runs").iterdir()
    report = json.loads((run / "report.json").read_text())
    scores = {each["name"]: (each["status"], each["score"]) for each in report["rungs"]}
    prints = {each.parent.name: fingerprint(each) for each in sorted(run.glob("rungs/*/artifact"))}
    return scores, report["recommended"], prints


def of_climb(kills: int, moments: Moments) -> int:
    """Heads and yardsticks: no language model runs."""

    def start(folder: Path) -> list[str]:
        rows(folder)
        (folder / "task.yaml").write_text(f"{TASK}model: embedded\n")
        return [*RUNG, "climb", "task.yaml", "--rungs", "majority,nearest-row,tfidf-head", "--resume", "--quiet"]

    return resumed(kills, moments, start, climbed)


def of_training(kills: int, moments: Moments) -> int:
    """LoRA on a tiny model; its checkpoints lie in a cache of the run's own."""
    with tempfile.TemporaryDirectory() as scratch:
        model = tiny_llama(Path(scratch) / "model")

        def start(folder: Path) -> list[str]:
            rows(folder)
            (folder / "task.yaml").write_text(f"{TASK}model: {model}\nrungs: {{lora: {{epochs: 20}}}}\n")
            command = [*RUNG, "climb", "task.yaml", "--rungs", "zero-shot,lora", "--engine", "torch"]
            return ["env", f"RUNG_CACHE={folder / 'cache'}", *command, "--resume", "--quiet"]

        return resumed(kills, moments, start, climbed)


def of_indexing(kills: int, moments: Moments) -> int:
    """The index of 20 short documents."""

    def start(folder: Path) -> list[str]:
        rows(folder)
        (folder / "task.yaml").write_text(f"{TASK}model: embedded\ncorpus: {{files: documents/}}\n")
        (folder / "documents").mkdir()
        for number in range(20):
            text = "".join(f"Part {part} of document {number} is about {number * part}.\n" for part in range(40))
            (folder / "documents" / f"{number}.txt").write_text(text)
        return [*RUNG, "index", "build", "task.yaml", "--quiet"]

    def read(folder: Path) -> Any:
        told = json.loads(whole([*RUNG, "index", "search", "task.yaml", "part 7 of document 3", "--json"], folder))
        return told, [each.name for each in folder.rglob("*.lock")]

    return resumed(kills, moments, start, read)


def of_promotion(kills: int, moments: Moments) -> int:
    """Two artifacts in turn, in one registry."""
    from rung import Artifact, Task
    from rung.rungs import get

    with tempfile.TemporaryDirectory() as scratch:
        folder, wrong = Path(scratch), 0
        rows(folder)
        (folder / "task.yaml").write_text(f"{TASK}model: embedded\n")
        task = Task.load(folder / "task.yaml")
        data = task.read()
        base = Artifact.zero_shot(task, data.labels)
        saved = [get(name, task).fit(base, data).save(folder / name) for name in ("majority", "tfidf-head")]
        promote = [*RUNG, "promote", "--reason", "a kill", "--registry", "registry", "--store", "f.db"]
        began = time.perf_counter()
        whole([*promote, str(saved[0])], folder)
        longest = time.perf_counter() - began
        while moments.kills < kills:
            moments.disturb([*promote, str(saved[moments.kills % 2])], folder, longest)
            current = json.loads((folder / "registry" / "kills" / "current").read_text())
            served = folder / "registry" / "kills" / current["folder"]
            try:
                Artifact.load(served)
            except Exception as error:
                wrong += 1
                print(f"the registry names {served}: {error}", file=sys.stderr)
            if moments.kills % 25 == 0:
                print(f"{moments.kills} of {kills} kills", file=sys.stderr, flush=True)
        for artifact in saved:  # one of them is served already, which is an error with a code of its own
            done = subprocess.run([*promote, str(artifact)], cwd=folder, capture_output=True, text=True, check=False)
            wrong += done.returncode != 0 and "already-served" not in done.stderr
        left = [each for each in (folder / "registry").rglob("*") if each.suffix in (".part", ".lock")]
        return wrong + len(left)


def of_capture(kills: int, moments: Moments) -> int:
    """Each killed writer is followed by the next one on the same store."""
    with tempfile.TemporaryDirectory() as scratch:
        file, wrong, first, acknowledged = Path(scratch) / "f.db", 0, 0, set()
        while moments.kills < kills:
            with subprocess.Popen(
                [sys.executable, "-c", WRITER, str(file), str(first)], stdout=subprocess.PIPE, text=True
            ) as writer:
                assert writer.stdout is not None
                lines = [writer.stdout.readline()]
                time.sleep(moments.random.uniform(0, 0.3))
                writer.kill()
                lines += writer.stdout.read().splitlines()
            moments.kills += 1
            acknowledged |= {int(line) for line in lines if line.strip()}
            first = max(acknowledged, default=0) + 100_000
            with closing(sqlite3.connect(file)) as store:
                whole_store = store.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
                stored = {int(text.split()[1]) for (text,) in store.execute("SELECT expected FROM corrections")}
                kept = {int(name[1:]) for (name,) in store.execute("SELECT id FROM interactions")}
            wrong += not whole_store or bool(acknowledged - stored) or bool(acknowledged - kept)
            if moments.kills % 25 == 0:
                print(
                    f"{moments.kills} of {kills} kills, {len(acknowledged)} acknowledged", file=sys.stderr, flush=True
                )
        return wrong


KINDS = {
    "capture": of_capture, "climb": of_climb, "training": of_training, "indexing": of_indexing,
    "promotion": of_promotion,
}  # fmt: skip


def main() -> None:
    """Kill, and print what was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    ratios = {}
    for kind in options.kinds:
        moments, began = Moments(options.seed), time.perf_counter()
        wrong = KINDS[kind](options.kills, moments)
        print(f"{kind}: {moments.kills} kills, {wrong} wrong, {time.perf_counter() - began:.0f} s", flush=True)
        ratios[kind] = float(wrong == 0)
    finish("kills", ratios, dict.fromkeys(ratios, 1.0))


if __name__ == "__main__":
    main()
