"""Which engine generates on this machine: measured once per model and machine, remembered, and explained.

On CPU, torch (fp32) and OpenVINO (int8) decode the same few prompts. OpenVINO is chosen if it is faster and its text
can be trusted: on more prompts, the token that it writes first must be that of fp32 nearly always, with nearly the same
probability. First tokens are compared because their context is equal; later ones follow from earlier differences.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import numpy as np

from rung.engines.base import Engine, GenerateRequest, Generation, Message, Messages, Sampling
from rung.models.cache import cache_dir, publish
from rung.models.reference import ModelFiles, is_cached, is_endpoint, resolve
from rung.progress import QUIET, Progress

DECODED = 32  # tokens per prompt when speed is measured
AGREEMENT = 0.9  # least share of first tokens that must be those of fp32
DRIFT = 0.15  # largest mean difference of their log-probabilities, in nats
UNMEASURED = "not measured yet: the first text that is generated measures it, once per model and machine"

_HEAD = "You are an assistant at the help desk of a company. Answer in one short sentence, friendly and to the point."
_TOPICS = ("a lost parcel", "a broken lamp", "opening hours", "a late train", "an invoice", "a password", "a refund",
           "the weather")  # fmt: skip
_FORMS = ("What can I do about {}?", "Tell me about {}.", "Why should anyone care about {}?", "List facts on {}:")


@dataclass(frozen=True, slots=True)
class Choice:
    """The engine for generated text, and why.

    Attributes:
        engine: `torch` or `openvino`.
        reason: one sentence, with the figures.
        speedup: tokens per second of OpenVINO over torch; 0 where nothing was measured, as below.
        agreement: share of first tokens at which int8 and fp32 agree.
        drift: mean absolute difference of their log-probabilities, in nats, where they agree.
    """

    engine: Literal["torch", "openvino"]
    reason: str
    speedup: float = 0.0
    agreement: float = 0.0
    drift: float = 0.0


def choose(files: ModelFiles, *, progress: Progress = QUIET) -> Choice:
    """Return the engine that generates with this model on this machine, measuring at the first call.

    Processes that ask at once wait for the first. The measurement exports the model to OpenVINO and loads torch.
    """
    if (found := known(files)) is not None:
        return found

    def measure(folder: Path) -> None:
        (folder / "choice.json").write_text(json.dumps(asdict(_measured(files, progress))), encoding="utf-8")

    publish(_folder(files), measure)
    return _read(_folder(files))


def known(files: ModelFiles) -> Choice | None:
    """Return the choice if it needs no measuring: without openvino-genai, or remembered."""
    if importlib.util.find_spec("openvino_genai") is None:
        return Choice("torch", "openvino-genai is not installed")
    if importlib.util.find_spec("torch") is None:
        return Choice("openvino", "torch is not installed")
    return _read(_folder(files)) if _folder(files).exists() else None


def settled(model: str, engine: str, *, progress: Progress = QUIET) -> str:
    """Return the name of the engine that generates: `engine` itself, or what `auto` stands for here (see `choose`)."""
    if engine != "auto" or is_endpoint(model):
        return engine
    return choose(resolve(model, progress=progress), progress=progress).engine


def explain(model: str, engine: str) -> str:
    """Return what generates and why, in one line, without loading or measuring anything."""
    if is_endpoint(model):
        return "the endpoint generates"
    if engine != "auto":
        return f"{engine} generates, as asked for"
    found = known(resolve(model)) if is_cached(model) else None
    return UNMEASURED if found is None else f"{found.engine} generates: {found.reason}"


def judge(speedup: float, agreement: float, drift: float) -> Choice:
    """Decide from what was measured (see `Choice`)."""
    figures = f"int8 agrees with fp32 on {agreement:.0%} of first tokens, log-probabilities {drift:.3f} nats apart"
    if agreement < AGREEMENT or drift > DRIFT:
        reason = f"OpenVINO's {figures}, too far to be trusted (`--engine openvino-fp32` has full precision)"
        return Choice("torch", reason, speedup, agreement, drift)
    if speedup <= 1:
        return Choice("torch", f"OpenVINO runs at {speedup:.1f} times its speed", speedup, agreement, drift)
    return Choice("openvino", f"{speedup:.1f} times as fast as torch; {figures}", speedup, agreement, drift)


def _measured(files: ModelFiles, progress: Progress) -> Choice:
    from rung.engines.opening import open_openvino, open_torch

    torch = open_torch(files.reference)
    if torch.info.device == "cuda":
        return Choice("torch", "a CUDA device is at hand")
    fast = open_openvino(files.reference, "int8", progress=progress)
    progress.start("measuring torch and OpenVINO")
    speedup = _tokens_per_second(fast) / _tokens_per_second(torch)
    choice = judge(speedup, *_difference(_first_tokens(fast), _first_tokens(torch)))
    progress.finish(choice.reason)
    return choice


def _prompts() -> list[str]:
    return [form.format(topic) for form, topic in itertools.product(_FORMS, _TOPICS)]


def _requests(texts: Sequence[str], tokens: int) -> list[GenerateRequest]:
    head: Message = {"role": "system", "content": _HEAD}
    chats: list[Messages] = [(head, {"role": "user", "content": text}) for text in texts]
    return [GenerateRequest(chat, Sampling(tokens), logprobs=True) for chat in chats]


def _tokens_per_second(engine: Engine) -> float:
    engine.generate(_requests(["Hello."], 2))  # first calls allocate and compile
    start = time.perf_counter()
    made = engine.generate(_requests(_prompts()[:: len(_FORMS)], DECODED))
    return sum(one.completion_tokens for one in made) / (time.perf_counter() - start)


def _first_tokens(engine: Engine) -> list[Generation]:
    return engine.generate(_requests(_prompts(), 1))


def _difference(one: Sequence[Generation], other: Sequence[Generation]) -> tuple[float, float]:
    """Return the share of equal first tokens, and the mean difference of their log-probabilities."""
    same = [(a.logprobs[0], b.logprobs[0]) for a, b in zip(one, other, strict=True) if a.text == b.text]
    drift = float(np.mean([abs(a - b) for a, b in same])) if same else float("inf")
    return len(same) / len(one), drift


def _folder(files: ModelFiles) -> Path:
    return cache_dir() / "engine-choice" / f"{files.fingerprint}-{_machine()}"


def _read(folder: Path) -> Choice:
    return Choice(**json.loads((folder / "choice.json").read_text("utf-8")))


def _machine() -> str:
    """Return a short hash of what speeds and text depend on: processor, cores, GPUs, libraries, OpenVINO's settings."""
    from rung.engines.openvino import PROPERTIES

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    information = Path("/proc/cpuinfo")
    text = information.read_text("utf-8") if information.exists() else platform.processor()
    processor = next((line for line in text.splitlines() if line.startswith("model name")), text[:200])
    gpus = sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*"))
    facts = [processor, cores, gpus, _version("openvino-genai"), _version("torch"), PROPERTIES]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
