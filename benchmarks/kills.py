"""kill -9 at random moments: what was acknowledged is there, and what is run again ends like an undisturbed run.

    python benchmarks/kills.py                          # 100 kills of each kind; minutes on two cores
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
import importlib
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
import traceback
import warnings
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _common import finish

MOST_IN_A_ROW = 10
SAID = Path("said.txt")  # in the folder of a command: what it printed
# What commands import, for all of them once; LanceDB starts a thread when it is imported, which no fork has.
IMPORTED = (
    "rung.cli.main", "rung.cli.climb", "rung.climbing.run", "rung.climbing.conclude", "rung.evaluation.report.html",
    "rung.rungs", "rung.training.loop", "rung.engines.torch_engine", "rung.feedback.registry", "rung.feedback.database",
    "torch", "transformers", "transformers.models.llama.modeling_llama", "peft", "sklearn.linear_model",
    "sklearn.feature_extraction.text", "scipy.stats", "sentence_transformers", "matplotlib.pyplot", "alembic.command",
    "pyarrow",
)  # fmt: skip
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


@dataclass(frozen=True)
class Command:
    """The words after `rung`, and what its environment has besides this process's."""

    words: list[str]
    environment: dict[str, str] = field(default_factory=dict)


class Moments:
    """Starts commands and kills them at random moments of the time that they take undisturbed."""

    def __init__(self, seed: int) -> None:
        self.random, self.kills = random.Random(seed), 0

    def disturb(self, command: Command, folder: Path, longest: float) -> bool:
        """Run the command in the folder; say whether it ended before its kill."""
        process, deadline = begun(command, folder), time.perf_counter() + self.random.uniform(0, longest)
        while time.perf_counter() < deadline:
            if (status := ended(process)) is not None:
                check(command, folder, status)
                return True
            time.sleep(0.001)
        os.killpg(process, signal.SIGKILL)  # with the processes that it started
        os.waitpid(process, 0)
        self.kills += 1
        return False


def begun(command: Command, folder: Path) -> int:
    """Start `rung` in a folder, as a fork of this process: what is imported is there, so that kills meet real work."""
    if (process := os.fork()) != 0:
        with suppress(OSError):
            os.setpgid(process, process)
        return process
    try:
        os.setpgid(0, 0)
        os.chdir(folder)
        os.environ.update(command.environment)
        with SAID.open("wb") as said, Path(os.devnull).open("rb") as nothing:
            for source, target in ((nothing, 0), (said, 1), (said, 2)):
                os.dup2(source.fileno(), target)
        sys.argv = ["rung", *command.words]
        from rung.cli.main import main

        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 70
    else:
        code = 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # without the parent's finalizers, which would remove its temporary folders


def ended(process: int) -> int | None:
    """The exit status of a process that has ended."""
    done, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def check(command: Command, folder: Path, status: int) -> None:
    """End the benchmark where a command has failed; one whose work the killed one before has done is right."""
    if status != 0:
        said = (folder / SAID).read_text("utf-8", errors="replace")
        if "already-served" in said:
            return
        raise SystemExit(f"rung {' '.join(command.words)} ended with {status}:\n{said}")


def whole(command: Command, folder: Path) -> str:
    """Run a command to its end; an error ends the benchmark."""
    process = begun(command, folder)
    check(command, folder, os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
    return (folder / SAID).read_text("utf-8")


def resumed(kills: int, moments: Moments, start: Callable[[Path], Command], read: Callable[[Path], Any]) -> int:
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


def rows(folder: Path, each: int = 40) -> None:
    """Write the rows of three easy labels."""
    text = [f"about {word} number {i},{word}\n" for i in range(each) for word in ("alpha", "beta", "gamma")]
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

    (report_file,) = folder.glob("runs/*/report.json")
    run = report_file.parent
    report = json.loads(report_file.read_text())
    scores = {each["name"]: (each["status"], each["score"]) for each in report["rungs"]}
    prints = {each.parent.name: fingerprint(each) for each in sorted(run.glob("rungs/*/artifact"))}
    return scores, report["recommended"], prints


def of_climb(kills: int, moments: Moments) -> int:
    """Heads and yardsticks: no language model runs."""

    def start(folder: Path) -> Command:
        rows(folder)
        (folder / "task.yaml").write_text(f"{TASK}model: embedded\n")
        return Command(["climb", "task.yaml", "--rungs", "majority,nearest-row,tfidf-head", "--resume", "--quiet"])

    return resumed(kills, moments, start, climbed)


def of_training(kills: int, moments: Moments) -> int:
    """LoRA on a tiny model; its checkpoints lie in a cache of the run's own."""
    with tempfile.TemporaryDirectory() as scratch:
        model = tiny_llama(Path(scratch) / "model")

        def start(folder: Path) -> Command:
            rows(folder, each=10)
            (folder / "task.yaml").write_text(f"{TASK}model: {model}\nrungs: {{lora: {{epochs: 8}}}}\n")
            words = ["climb", "task.yaml", "--rungs", "zero-shot,lora", "--engine", "torch", "--resume", "--quiet"]
            return Command(words, {"RUNG_CACHE": str(folder / "cache")})

        return resumed(kills, moments, start, climbed)


def static_encoder(folder: Path) -> Path:
    """Make a random table of token vectors, which embeds in no time, so that the kills meet reading and writing."""
    import numpy as np
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ("[UNK]", "part", "of", "document", "is", "about", ".", *map(str, range(1000)))
    tokens = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokens.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    table = np.random.default_rng(0).normal(size=(len(words), 32)).astype(np.float32)
    SentenceTransformer(modules=[StaticEmbedding(tokens, embedding_weights=table), Normalize()]).save(str(folder))
    return folder


def of_indexing(kills: int, moments: Moments) -> int:
    """The index of 20 short documents."""
    with tempfile.TemporaryDirectory() as scratch:
        return _of_indexing(kills, moments, static_encoder(Path(scratch) / "encoder"))


def _of_indexing(kills: int, moments: Moments, encoder: Path) -> int:
    def start(folder: Path) -> Command:
        rows(folder)
        (folder / "task.yaml").write_text(f"{TASK}model: embedded\ncorpus: {{files: documents/, encoder: {encoder}}}\n")
        (folder / "documents").mkdir()
        for number in range(20):
            text = "".join(f"Part {part} of document {number} is about {number * part}.\n" for part in range(40))
            (folder / "documents" / f"{number}.txt").write_text(text)
        return Command(["index", "build", "task.yaml", "--quiet"])

    def read(folder: Path) -> Any:
        told = json.loads(whole(Command(["index", "search", "task.yaml", "part 7 of document 3", "--json"]), folder))
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
        promote = ["promote", "--reason", "a kill", "--registry", "registry", "--store", "f.db"]
        began = time.perf_counter()
        whole(Command([*promote, str(saved[0])]), folder)
        longest = time.perf_counter() - began
        while moments.kills < kills:
            moments.disturb(Command([*promote, str(saved[moments.kills % 2])]), folder, longest)
            current = json.loads((folder / "registry" / "kills" / "current").read_text())
            served = folder / "registry" / "kills" / current["folder"]
            try:
                Artifact.load(served)
            except Exception as error:
                wrong += 1
                print(f"the registry names {served}: {error}", file=sys.stderr)
            if moments.kills % 25 == 0:
                print(f"{moments.kills} of {kills} kills", file=sys.stderr, flush=True)
        for artifact in saved:
            whole(Command([*promote, str(artifact)]), folder)
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
    warnings.simplefilter("ignore")
    for name in IMPORTED:
        importlib.import_module(name)
    ratios = {}
    for kind in options.kinds:
        moments, began = Moments(options.seed), time.perf_counter()
        wrong = KINDS[kind](options.kills, moments)
        print(f"{kind}: {moments.kills} kills, {wrong} wrong, {time.perf_counter() - began:.0f} s", flush=True)
        ratios[kind] = float(wrong == 0)
    finish("kills", ratios, dict.fromkeys(ratios, 1.0))


if __name__ == "__main__":
    main()
