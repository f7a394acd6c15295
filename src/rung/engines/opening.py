"""Open engines and encoders by model reference; each is loaded once per process and shared.

Which engine generates is measured once per model and machine. One engine can consist of two: OpenVINO generates, torch
scores and embeds.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property, lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from rung.engines import openvino, openvino_grammar
from rung.engines.base import (
    Cancelled,
    Closes,
    Continuous,
    Delta,
    Engine,
    Floats,
    GenerateRequest,
    Generation,
    Reads,
    Sampling,
    Scored,
    ScoreRequest,
    Session,
    TokenScores,
)
from rung.engines.local import LocalModel
from rung.errors import ConfigError, EngineError, needed_by
from rung.machine import Machine, own_cores
from rung.models.cache import cache_dir, publish
from rung.models.checkpoint import is_encoder, verify
from rung.models.messages import Message, Messages
from rung.models.reference import ModelFiles, is_cached, is_endpoint, resolve
from rung.progress import QUIET, Progress

if TYPE_CHECKING:
    from rung.engines.api import ApiEngine
    from rung.engines.encoders import SentenceEncoder
    from rung.engines.openvino import OpenVinoEngine
    from rung.engines.openvino_export import ExportPrecision
    from rung.engines.torch_engine import TorchEngine


EngineName = Literal["auto", "torch", "openvino", "openvino-int4", "openvino-fp32", "api"]
PRECISIONS: Mapping[str, ExportPrecision] = {"openvino-int4": "int4", "openvino-fp32": "fp32"}  # others have int8


def open_engine(
    model: str, engine: str = "auto", *, device: str = "auto", quantization: str = "", remember: bool = True,
    apart: bool = False, progress: Progress = QUIET,
) -> Engine:  # fmt: skip
    """Open the engine that runs `model`, loading it at the first call.

    Args:
        model: a model reference.
        engine: `torch`; `openvino` (int8 weights), `openvino-int4` (compared with torch first, and the difference
            reported) or `openvino-fp32`, with torch to score and embed; `api`; or `auto`: torch or openvino, whichever
            is better on this machine (see `choose`).
        device: `cpu`, `cuda` or `auto`; on `cuda`, torch does everything.
        quantization: how torch holds the model: empty for the device's precision, `nf4` for 4 bits (QLoRA).
        remember: cache answers (see `rung.engines.response_cache`).
        apart: run OpenVINO in a separate process, where it has sessions only; for servers, which do not cache answers.
        progress: reports fetching, converting, exporting and measuring.

    Raises:
        ConfigError: no engine has this name, or it does not run this kind of model.
        ModelError: the model cannot be found, trusted or loaded.
        EngineError: the engine cannot run here.
    """
    if engine not in get_args(EngineName):
        choices = ", ".join(get_args(EngineName))
        raise ConfigError("unknown-name", f"no engine is named {engine!r}", hint=f"choose one of {choices}")
    remote = is_endpoint(model)
    if engine != "auto" and remote != (engine == "api"):
        hint = "`api` runs endpoints (http://HOST/v1#MODEL), the others run models on this machine; `auto` chooses"
        raise ConfigError("engine-mismatch", f"the engine {engine} does not run {model}", hint=hint)
    if remote:
        return _cached(open_api(model), remember)
    files = resolve(model, progress=progress)
    if quantization and engine not in ("auto", "torch"):
        problem = f"the engine {engine} does not run a model in {quantization}"
        raise ConfigError("engine-mismatch", problem, hint="use `--engine torch`")
    if quantization or engine == "torch" or device == "cuda":
        return _cached(open_torch(model, device=device, quantization=quantization), remember)
    return Composite(
        files,
        lambda told: _cached(_generator(files, engine, device, apart, told), remember),
        lambda: _cached(open_torch(model, device=device), remember),
        progress,
    )


def _generator(files: ModelFiles, engine: str, device: str, apart: bool, progress: Progress) -> Engine:
    """The engine that generates; with `auto`, the one that measured better here."""
    if engine == "auto" and choose(files, progress=progress).engine == "torch":
        return open_torch(files.reference, device=device)
    precision = PRECISIONS.get(engine, "int8")
    if precision == "int4":
        progress.say(f"openvino-int4 generates: {choose(files, 'int4', progress=progress).reason}")
    if apart:
        from rung.engines.openvino_export import exported
        from rung.engines.openvino_process import OpenVinoApart

        verify(files, "language model")
        exported(files, "causal", precision, progress=progress)
        return OpenVinoApart(files, precision)
    return open_openvino(files.reference, precision, progress=progress)


def _cached(engine: Engine, remember: bool) -> Engine:
    from rung.engines.response_cache import CachedEngine

    return CachedEngine(engine) if remember else engine


@lru_cache(maxsize=8)
def open_api(model: str) -> ApiEngine:
    """The api engine of an endpoint; it is shared, so that a budget holds for the whole process."""
    from rung.engines.api import ApiEngine

    return ApiEngine(model)


def open_torch(model: str, *, device: str = "auto", quantization: str = "") -> TorchEngine:
    """The torch engine of `model`, which also trains."""
    # One signature for the cache: it tells `f(x)` from `f(x, device="auto")`, and would load twice.
    return _open_torch(model, device, quantization)


@lru_cache(maxsize=2)
def _open_torch(model: str, device: str, quantization: str) -> TorchEngine:
    with needed_by("the torch engine", error=EngineError):
        from rung.engines.torch_engine import TorchEngine
    files = resolve(model)
    verify(files, "language model")
    return TorchEngine(files, device=device, quantization=quantization)


def forget_torch() -> None:
    """Load torch's models again at their next use, as what was loaded has been changed for good."""
    _open_torch.cache_clear()


def open_openvino(model: str, precision: ExportPrecision = "int8", *, progress: Progress = QUIET) -> OpenVinoEngine:
    """The OpenVINO engine of `model`, which only generates."""
    from rung.engines.openvino_export import exported

    files = resolve(model)
    verify(files, "language model")
    exported(files, "causal", precision, progress=progress)
    return _open_openvino(model, precision)


@lru_cache(maxsize=2)
def _open_openvino(model: str, precision: ExportPrecision) -> OpenVinoEngine:
    from rung.engines.openvino import OpenVinoEngine

    return OpenVinoEngine(resolve(model), precision)


def open_encoder(
    model: str, *, device: str = "auto", precision: ExportPrecision = "fp32", progress: Progress = QUIET
) -> SentenceEncoder:
    """The sentence encoder `model`, loaded (and exported, once per machine) at the first call."""
    encoder = _encoders.get((model, device, precision))
    if encoder is None:
        from rung.engines.encoders import open_sentence_encoder

        files = resolve(model, progress=progress)
        verify(files, "encoder")
        encoder = open_sentence_encoder(files, device=device, precision=precision, progress=progress)
        if len(_encoders) >= ENCODERS:
            del _encoders[next(iter(_encoders))]
        _encoders[model, device, precision] = encoder
    return encoder


def export_ahead(files: ModelFiles, precision: ExportPrecision | None = None, *, progress: Progress = QUIET) -> None:
    """Export a model (by default in int8) or a sentence encoder (in fp32) to OpenVINO, as its first use would.

    Raises:
        ConfigError: `engine-mismatch`: OpenVINO cannot run this encoder exactly.
        EngineError: what exports is not installed, or fails.
    """
    from rung.engines.encoders import open_sentence_encoder
    from rung.engines.openvino_export import exported

    verify(files, "encoder" if is_encoder(files) else "language model")
    if is_encoder(files):
        open_sentence_encoder(files, backend="openvino", precision=precision or "fp32", progress=progress)
    else:
        exported(files, "causal", precision or "int8", progress=progress)


ENCODERS = 8  # kept open: tuned ones are many during a search
_encoders: dict[tuple[str, str, str], SentenceEncoder] = {}  # not `lru_cache`: `progress` is not part of the key


# ---- which engine generates on this machine
#
# On CPU, torch (fp32) and OpenVINO (int8) decode the same few prompts. OpenVINO is chosen if it is faster and its text
# can be trusted: on more prompts, its first token must nearly always be as good as that of fp32, with nearly the same
# probability. Which of two equally likely tokens comes first depends on the processor, and tells nothing.
# First tokens are compared because their context is equal; later tokens follow from earlier differences. What runs in
# int4 was asked for; it is measured alike, so that its difference is known before it answers.


DECODED = 32  # tokens per prompt when speed is measured
LOADING_SECONDS = 10.0  # of both engines and their libraries
COMPARED_TOKENS = 4_700  # that the comparison takes the time of: what both read, and four times what both write
MIN_AGREEMENT = 0.9  # share of first tokens that must be as good as those of fp32
MAX_LOGPROB_DIFF = 0.15  # mean difference of their log-probabilities, in nats; and of one that is as good
MEASURED = ("auto", "openvino-int4")  # engines that are measured before they answer
UNMEASURED = "not measured yet: the first generated text measures it, once per model and machine"

_HEAD = "You are an assistant at the help desk of a company. Answer in one short sentence, friendly and to the point."
_TOPICS = ("a lost parcel", "a broken lamp", "opening hours", "a late train", "an invoice", "a password", "a refund",
           "the weather")  # fmt: skip
_FORMS = ("What can I do about {}?", "Tell me about {}.", "Why should anyone care about {}?", "List facts on {}:")


@dataclass(frozen=True, slots=True)
class Choice:
    """The engine for generated text, torch or OpenVINO in one precision, and why.

    The figures are 0 without a measurement.
    """

    engine: Literal["torch", "openvino"]
    reason: str  # one sentence, with the figures
    speedup: float = 0.0  # tokens per second of OpenVINO over torch
    agreement: float = 0.0  # share of first tokens that fp32 finds as good as its own
    logprob_diff: float = 0.0  # mean absolute difference of their log-probabilities, in nats


def choose(files: ModelFiles, precision: ExportPrecision = "int8", *, progress: Progress = QUIET) -> Choice:
    """The engine that generates with this model on this machine, measured at the first call.

    Processes that ask at once wait for the first. The measurement exports the model to OpenVINO and loads torch.
    """
    if (choice := known(files, precision)) is not None:
        return choice

    def measure(folder: Path) -> None:
        measured = asdict(_measured(files, precision, progress))
        (folder / "choice.json").write_text(json.dumps(measured), encoding="utf-8")

    publish(_folder(files, precision), measure, progress)
    return _read(_folder(files, precision))


def known(files: ModelFiles, precision: ExportPrecision = "int8") -> Choice | None:
    """The choice where it needs no measuring: already measured, or without openvino-genai or torch."""
    if importlib.util.find_spec("openvino_genai") is None:
        return Choice("torch", "openvino-genai is not installed")
    if importlib.util.find_spec("torch") is None:
        return Choice("openvino", "torch is not installed")
    return _read(_folder(files, precision)) if _folder(files, precision).exists() else None


def settled(model: str, engine: str, *, progress: Progress = QUIET) -> str:
    """The name of the engine that generates: `engine`, or what `auto` means here (see `choose`)."""
    if engine not in MEASURED or is_endpoint(model):
        return engine
    choice = choose(resolve(model, progress=progress), PRECISIONS.get(engine, "int8"), progress=progress)
    return choice.engine if engine == "auto" else engine


def expected_speedup(model: str, engine: str) -> float:
    """How many times faster than torch the engine of this name was measured to generate here; 1 where unknown.

    Where it was not measured with this model, the slowest measurement with another one counts.
    """
    if is_endpoint(model) or engine == "torch" or not is_cached(model):
        return 1.0
    files, precision = resolve(model), PRECISIONS.get(engine, "int8")
    choice = known(files, precision)
    if choice is None:
        own = _folder(files, precision)
        others = own.parent.glob(f"*{own.name.removeprefix(files.fingerprint)}/choice.json")
        choice = min(map(_read, sorted(other.parent for other in others)), key=lambda each: each.speedup, default=None)
    if choice is None or (engine == "auto" and choice.engine == "torch"):
        return 1.0
    return choice.speedup or 1.0


def choosing_seconds(model: str, machine: Machine) -> float:
    """The seconds that choosing an engine for `model` is expected to take here; 0 where it needs no measuring."""
    if is_endpoint(model) or known(files := resolve(model)) is not None:
        return 0.0
    from rung.engines.openvino_export import expected, folder_of, weights_bytes

    there = folder_of(files, "causal", "int8").exists()
    export = 0.0 if there else expected(weights_bytes(files.folder), "int8")[0]
    return LOADING_SECONDS + export + machine.inference_seconds(2 * files.parameters * COMPARED_TOKENS)


def explain(model: str, engine: str) -> str:
    """Which engine generates and why, in one line, without loading or measuring anything."""
    if is_endpoint(model):
        return "the endpoint generates"
    asked = f"{engine} generates, as asked for"
    if engine not in MEASURED:
        return asked
    choice = known(resolve(model), PRECISIONS.get(engine, "int8")) if is_cached(model) else None
    if engine != "auto":
        return f"{asked}: {UNMEASURED if choice is None else choice.reason}"
    return UNMEASURED if choice is None else f"{choice.engine} generates: {choice.reason}"


def judge(speedup: float, agreement: float, logprob_diff: float, precision: ExportPrecision = "int8") -> Choice:
    """Decide from the measured figures (see `Choice`)."""
    agree = f"{precision} agrees with fp32 on {agreement:.0%} of first tokens"
    figures = f"{agree}, log-probabilities {logprob_diff:.3f} nats apart"
    engine: Literal["torch", "openvino"] = "torch"
    if agreement < MIN_AGREEMENT or logprob_diff > MAX_LOGPROB_DIFF:
        reason = f"OpenVINO's {figures}, too far to be trusted (`--engine openvino-fp32` has full precision)"
    elif speedup <= 1:
        reason = f"OpenVINO runs at {speedup:.1f} times the speed of torch; {figures}"
    else:
        engine, reason = "openvino", f"{speedup:.1f} times as fast as torch; {figures}"
    return Choice(engine, reason, speedup, agreement, logprob_diff)


def _measured(files: ModelFiles, precision: ExportPrecision, progress: Progress) -> Choice:
    torch, asked = open_torch(files.reference), precision != "int8"
    if torch.info.device == "cuda" and not asked:
        return Choice("torch", "a CUDA device is available")
    try:
        fast = open_openvino(files.reference, precision, progress=progress)
    except EngineError as error:
        if error.code != "export-unsupported" or asked:  # memory, disk or network may be there at the next attempt
            raise
        return Choice("torch", str(error.message))
    progress.start("measuring torch and OpenVINO")
    speedup = _tokens_per_second(fast, progress) / _tokens_per_second(torch, progress)
    choice = judge(speedup, *_difference(fast, torch, progress), precision)
    progress.finish(choice.reason)
    return choice


_PROMPTS = [form.format(topic) for form, topic in itertools.product(_FORMS, _TOPICS)]


def _requests(texts: Sequence[str], tokens: int) -> list[GenerateRequest]:
    head: Message = {"role": "system", "content": _HEAD}
    chats: list[Messages] = [(head, {"role": "user", "content": text}) for text in texts]
    return [GenerateRequest(chat, Sampling(tokens), logprobs=True) for chat in chats]


def _tokens_per_second(engine: Engine, progress: Progress) -> float:
    engine.generate(_requests(["Hello."], 2), progress=progress)  # first calls allocate and compile
    start = time.perf_counter()
    generations = engine.generate(_requests(_PROMPTS[:: len(_FORMS)], DECODED), progress=progress)
    return sum(generation.completion_tokens for generation in generations) / (time.perf_counter() - start)


def _difference(fast: Engine, reference: TorchEngine, progress: Progress) -> tuple[float, float]:
    """The share of first tokens that the reference finds good, and the mean difference of their log-probabilities.

    Good is what is as likely as the reference's own, within `MAX_LOGPROB_DIFF`.
    """
    own, others = (engine.generate(_requests(_PROMPTS, 1), progress=progress) for engine in (reference, fast))
    good, diffs = 0, []
    for request, mine, other in zip(_requests(_PROMPTS, 1), own, others, strict=True):
        value = mine.logprobs[0]
        if other.text != mine.text:
            token = tuple(reference.tokenizer.encode_plain(other.text))
            if len(token) != 1:  # an end token, or a part of a character
                continue
            value = float(reference.score([ScoreRequest(request.prompt, (token,))], progress=progress)[0].logprobs[0])
        good += mine.logprobs[0] - value <= MAX_LOGPROB_DIFF
        diffs.append(abs(value - other.logprobs[0]))
    return good / len(own), float(np.mean(diffs)) if diffs else float("inf")


def _folder(files: ModelFiles, precision: ExportPrecision) -> Path:
    name = f"{files.fingerprint}-{machine_id()}"
    return cache_dir() / "engine-choice" / (name if precision == "int8" else f"{name}-{precision}")


def _read(folder: Path) -> Choice:
    return Choice(**json.loads((folder / "choice.json").read_text("utf-8")))


def machine_id() -> str:
    """A short hash of what a choice depends on: limits, processor, cores, GPUs, libraries, OpenVINO's settings."""
    information = Path("/proc/cpuinfo")
    text = information.read_text("utf-8") if information.exists() else platform.processor()
    processor = next((line for line in text.splitlines() if line.startswith("model name")), text[:200])
    gpus = sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*"))
    figures = [field.name for field in fields(Choice)]
    libraries = [*map(_version, ("openvino-genai", "optimum-intel", "torch")), openvino.PROPERTIES]
    facts = [figures, MIN_AGREEMENT, MAX_LOGPROB_DIFF, processor, len(own_cores()), gpus, *libraries]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# ---- one engine out of two


class Composite(LocalModel):
    """Divides the work by rules that look at the request only, so that a request always runs on the same engine.

    OpenVINO generates. Torch scores and embeds (openvino-genai gives neither logits nor hidden states), and generates
    where the adapter is not plain LoRA, or where a JSON Schema uses what OpenVINO's grammars do not support. Both use
    the same folder, tokenizer and chat template. Each engine is loaded when the first request needs it: generating
    through OpenVINO imports no torch.

    `generator` loads the engine that generates, `scorer` the torch engine. Loading the first may export and measure
    for a minute. It reports that to the progress of the call that needs it, or else to `progress`.
    """

    def __init__(
        self, files: ModelFiles, generator: Callable[[Progress], Engine], scorer: Callable[[], Engine],
        progress: Progress = QUIET,
    ) -> None:  # fmt: skip
        super().__init__(files)
        self._load_generator, self._load_scorer, self._progress = generator, scorer, progress
        # Of the model, without loading it; each of the two engines caches answers under its own fingerprint.
        fingerprint = f"{files.fingerprint}/composite"
        self.info = self.describe("openvino and torch", "cpu", "as each engine says", fingerprint)

    @cached_property
    def _generator(self) -> Engine:
        return self._load_generator(self._progress)

    @cached_property
    def _scorer(self) -> Engine:
        return self._load_scorer()

    def engine_of(self, request: GenerateRequest) -> Engine:
        """The engine that runs a request."""
        adapter, constraint = request.adapter, request.constraint
        if adapter is not None and openvino.unsupported(Path(adapter)) is not None:
            return self._scorer
        if constraint is not None and openvino_grammar.unsupported(constraint) is not None:
            return self._scorer
        return self._generator

    def generate(
        self, requests: Sequence[GenerateRequest], *, progress: Progress = QUIET, cancelled: Cancelled | None = None
    ) -> list[Generation]:
        """Complete every request, each on its engine."""
        opened_with = self._progress
        self._progress = opened_with if progress is QUIET else progress
        try:
            engines = [self.engine_of(request) for request in requests]
        finally:
            self._progress = opened_with
        results: dict[int, Generation] = {}
        for engine in dict.fromkeys(engines):
            members = [i for i, other in enumerate(engines) if other is engine]
            done = engine.generate([requests[i] for i in members], progress=progress, cancelled=cancelled)
            results.update(zip(members, done, strict=True))
        return [results[i] for i in range(len(requests))]

    def stream(self, request: GenerateRequest) -> Iterator[str]:
        """Yield the text of one completion in pieces as it is made."""
        return self.engine_of(request).stream(request)

    def close(self) -> None:
        """Close the engine that generates, if it was loaded and holds a process."""
        if isinstance(generator := self.__dict__.get("_generator"), Closes):
            generator.close()

    def session(self) -> Session:
        """A session over both engines, which must not cache answers (`open_engine(remember=False)`)."""
        return _CompositeSession(self)

    def read(self, texts: Sequence[tuple[int, ...]], *, top: int = 1, adapter: str | None = None) -> list[TokenScores]:
        """Score every token of every text on torch."""
        if not isinstance(self._scorer, Reads):
            raise _caches(self._scorer)
        return self._scorer.read(texts, top=top, adapter=adapter)

    def score(self, requests: Sequence[ScoreRequest], *, progress: Progress = QUIET) -> list[Scored]:
        """Score on torch."""
        return self._scorer.score(requests, progress=progress)

    def embed(self, texts: Sequence[str], *, progress: Progress = QUIET) -> Floats:
        """Embed on torch."""
        return self._scorer.embed(texts, progress=progress)


class _CompositeSession:
    """Passes every completion to a session of its engine, which begins when it is first needed."""

    def __init__(self, composite: Composite) -> None:
        self._composite = composite
        self._sessions: dict[Engine, Session] = {}

    @property
    def active(self) -> int:
        return sum(session.active for session in self._sessions.values())

    def add(self, key: int, request: GenerateRequest) -> None:
        engine = self._composite.engine_of(request)
        if engine not in self._sessions:
            if not isinstance(engine, Continuous):
                raise _caches(engine)
            self._sessions[engine] = engine.session()
        self._sessions[engine].add(key, request)

    def cancel(self, key: int) -> None:
        for session in self._sessions.values():
            session.cancel(key)

    def step(self) -> list[Delta]:
        return [delta for session in self._sessions.values() if session.active for delta in session.step()]


def _caches(engine: Engine) -> TypeError:
    return TypeError(f"{type(engine).__name__} cannot: open the model with remember=False")
