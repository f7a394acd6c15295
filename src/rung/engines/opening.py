"""Open engines and encoders by model reference; each is loaded once per process and shared."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from rung.engines import openvino, openvino_grammar
from rung.engines.base import (
    Closes,
    Continuous,
    Delta,
    Engine,
    EngineInfo,
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
from rung.errors import ConfigError
from rung.models.cache import cache_dir, publish
from rung.models.messages import Message, Messages
from rung.models.reference import ModelFiles, is_cached, is_endpoint, resolve
from rung.progress import QUIET, Progress

if TYPE_CHECKING:
    from rung.engines.api import ApiEngine
    from rung.engines.encoders import SentenceEncoder
    from rung.engines.openvino import OpenVinoEngine
    from rung.engines.openvino_export import ExportPrecision
    from rung.engines.torch_engine import TorchEngine


EngineName = Literal["auto", "torch", "openvino", "openvino-fp32", "api"]


def open_engine(
    model: str,
    engine: str = "auto",
    *,
    device: str = "auto",
    quantization: str = "",
    remember: bool = True,
    apart: bool = False,
    progress: Progress = QUIET,
) -> Engine:
    """Return the engine that runs `model`, loading it at the first call.

    Args:
        model: a model reference.
        engine: `torch`, or `openvino` (int8 weights) or `openvino-fp32`, where torch scores and embeds, or `auto`:
            torch or openvino, whichever is better on this machine (see `rung.engines.opening`).
        device: `cpu`, `cuda` or `auto`; on `cuda`, torch does everything.
        quantization: how torch holds the model: empty for the device's precision, `nf4` for 4 bits (QLoRA).
        remember: keep answers, and answer from those kept (see `rung.engines.response_cache`).
        apart: run OpenVINO in a process of its own, where it has sessions alone; for servers, which do not remember.
        progress: told of fetching, converting, exporting and measuring.

    Raises:
        ConfigError: no engine has this name, or it does not run this kind of model.
        ModelError: the model cannot be found, trusted or loaded.
        EngineError: the engine cannot run here.
    """
    if engine not in get_args(EngineName):
        raise ConfigError(
            "unknown-name", f"no engine is named {engine!r}", hint=f"choose one of {', '.join(get_args(EngineName))}"
        )
    remote = is_endpoint(model)
    if engine != "auto" and remote != (engine == "api"):
        raise ConfigError(
            "engine-mismatch",
            f"the engine {engine} does not run {model}",
            hint="`api` runs endpoints (http://HOST/v1#MODEL), the others models on this machine; `auto` chooses",
        )
    if remote:
        return _remembering(open_api(model), remember)
    files = resolve(model, progress=progress)
    if quantization and engine not in ("auto", "torch"):
        raise ConfigError(
            "engine-mismatch",
            f"the engine {engine} does not run a model in {quantization}",
            hint="use `--engine torch`",
        )
    if quantization or engine == "torch" or device == "cuda":
        return _remembering(open_torch(model, device=device, quantization=quantization), remember)

    return Composite(
        files,
        lambda: _remembering(_generator(files, engine, device, apart, progress), remember),
        lambda: _remembering(open_torch(model, device=device), remember),
    )


def _generator(files: ModelFiles, engine: str, device: str, apart: bool, progress: Progress) -> Engine:
    """Return the engine that generates; with `auto`, the one that was measured to be better here."""
    if engine == "auto" and choose(files, progress=progress).engine == "torch":
        return open_torch(files.reference, device=device)
    precision: ExportPrecision = "fp32" if engine == "openvino-fp32" else "int8"
    if apart:
        from rung.engines.openvino_export import exported
        from rung.engines.openvino_process import OpenVinoApart

        exported(files, "causal", precision, progress=progress)
        return OpenVinoApart(files, precision)
    return open_openvino(files.reference, precision, progress=progress)


def _remembering(engine: Engine, remember: bool) -> Engine:
    from rung.engines.response_cache import CachedEngine

    return CachedEngine(engine) if remember else engine


@lru_cache(maxsize=8)
def open_api(model: str) -> ApiEngine:
    """Return the api engine of an endpoint; it is shared, so that a budget holds for the whole process."""
    from rung.engines.api import ApiEngine

    return ApiEngine(model)


def open_torch(model: str, *, device: str = "auto", quantization: str = "") -> TorchEngine:
    """Return the torch engine of `model` itself, which also trains."""
    # Behind one signature: a cache tells `f(x)` from `f(x, device="auto")`, and would load twice.
    return _open_torch(model, device, quantization)


@lru_cache(maxsize=2)
def _open_torch(model: str, device: str, quantization: str) -> TorchEngine:
    from rung.engines.torch_engine import TorchEngine

    return TorchEngine(resolve(model), device=device, quantization=quantization)


def open_openvino(model: str, precision: ExportPrecision = "int8", *, progress: Progress = QUIET) -> OpenVinoEngine:
    """Return the OpenVINO engine of `model` itself, which only generates."""
    from rung.engines.openvino_export import exported

    exported(resolve(model), "causal", precision, progress=progress)
    return _open_openvino(model, precision)


@lru_cache(maxsize=2)
def _open_openvino(model: str, precision: ExportPrecision) -> OpenVinoEngine:
    from rung.engines.openvino import OpenVinoEngine

    return OpenVinoEngine(resolve(model), precision)


def open_encoder(model: str, *, device: str = "auto", progress: Progress = QUIET) -> SentenceEncoder:
    """Return the sentence encoder `model`, loading it (and exporting it, once per machine) at the first call."""
    encoder = _encoders.get((model, device))
    if encoder is None:
        from rung.engines.encoders import open_sentence_encoder

        files = resolve(model, progress=progress)
        encoder = open_sentence_encoder(files, device=device, progress=progress)
        if len(_encoders) >= ENCODERS:
            del _encoders[next(iter(_encoders))]
        _encoders[model, device] = encoder
    return encoder


def export_ahead(files: ModelFiles, *, progress: Progress = QUIET) -> None:
    """Export a model or a sentence encoder to OpenVINO, as its first use would.

    Raises:
        ConfigError: `engine-mismatch`: OpenVINO cannot run this encoder exactly.
        EngineError: what exports is not installed, or fails.
    """
    from rung.engines.encoders import open_sentence_encoder
    from rung.engines.openvino_export import exported

    if (files.folder / "modules.json").exists():  # of sentence-transformers
        open_sentence_encoder(files, backend="openvino", progress=progress)
    else:
        exported(files, "causal", "int8", progress=progress)


ENCODERS = 8  # kept open: tuned ones are many during a search
_encoders: dict[tuple[str, str], SentenceEncoder] = {}  # a cache by hand, as `progress` is no part of the key


# --------------------
# Which engine generates on this machine: measured once per model and machine, remembered, and explained.
#
# On CPU, torch (fp32) and OpenVINO (int8) decode the same few prompts. OpenVINO is chosen if it is faster and its text
# can be trusted: on more prompts, the token that it writes first must be that of fp32 nearly always, with nearly the
# same
# probability. First tokens are compared because their context is equal; later ones follow from earlier differences.


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


# --------------------
# One engine out of two: OpenVINO generates, torch scores, embeds, and generates what OpenVINO cannot.


class Composite(LocalModel):
    """Divides the work by rules that look at the request alone, so that a request always runs on the same engine.

    OpenVINO generates. Torch scores and embeds (openvino-genai keeps logits and hidden states to itself), and generates
    where the adapter is not plain LoRA, or where a JSON Schema asks for what OpenVINO's grammars leave out. Both read
    the same folder, tokenizer and chat template. Each engine is loaded when the first request needs it: answering
    through OpenVINO imports no torch.

    Args:
        files: the resolved model.
        generator: loads the engine that generates.
        scorer: loads the torch engine.
    """

    def __init__(self, files: ModelFiles, generator: Callable[[], Engine], scorer: Callable[[], Engine]) -> None:
        super().__init__(files)
        self._load_generator, self._load_scorer = generator, scorer

    @cached_property
    def _generator(self) -> Engine:
        return self._load_generator()

    @cached_property
    def _scorer(self) -> Engine:
        return self._load_scorer()

    @property
    def info(self) -> EngineInfo:
        """Describe the model, loading nothing; each of the two engines remembers answers under its own fingerprint."""
        files = self.files
        return EngineInfo(
            engine="openvino and torch",
            model=files.name,
            device="cpu",
            dtype="as each engine says",
            parameters=files.parameters,
            context=files.context,
            fingerprint=f"{files.fingerprint}/composite",
        )

    def engine_of(self, request: GenerateRequest) -> Engine:
        """Return the engine that a request runs on."""
        adapter, constraint = request.adapter, request.constraint
        if adapter is not None and openvino.unsupported(Path(adapter)) is not None:
            return self._scorer
        if constraint is not None and openvino_grammar.unsupported(constraint) is not None:
            return self._scorer
        return self._generator

    def generate(
        self,
        requests: Sequence[GenerateRequest],
        *,
        progress: Progress = QUIET,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[Generation]:
        """Complete every request, each on its engine."""
        engines = [self.engine_of(request) for request in requests]
        results: dict[int, Generation] = {}
        for engine in dict.fromkeys(engines):
            members = [i for i, own in enumerate(engines) if own is engine]
            made = engine.generate([requests[i] for i in members], progress=progress, cancelled=cancelled)
            results.update(zip(members, made, strict=True))
        return [results[i] for i in range(len(requests))]

    def stream(self, request: GenerateRequest) -> Iterator[str]:
        """Yield the text of one completion in pieces as it is made."""
        return self.engine_of(request).stream(request)

    def close(self) -> None:
        """Close the engine that generates, where it was loaded and holds a process."""
        if isinstance(generator := self.__dict__.get("_generator"), Closes):
            generator.close()

    def session(self) -> Session:
        """Return a session over both engines; they must not remember answers (`open_engine(remember=False)`)."""
        return _Both(self)

    def read(self, texts: Sequence[tuple[int, ...]], *, top: int = 1, adapter: str | None = None) -> list[TokenScores]:
        """Score every token of every text on torch."""
        if not isinstance(self._scorer, Reads):
            raise _remembers(self._scorer)
        return self._scorer.read(texts, top=top, adapter=adapter)

    def score(self, requests: Sequence[ScoreRequest], *, progress: Progress = QUIET) -> list[Scored]:
        """Score on torch."""
        return self._scorer.score(requests, progress=progress)

    def embed(self, texts: Sequence[str], *, progress: Progress = QUIET) -> Floats:
        """Embed on torch."""
        return self._scorer.embed(texts, progress=progress)


class _Both:
    """A session that hands every completion to its engine's own; each begins when it is first needed."""

    def __init__(self, composite: Composite) -> None:
        self._composite = composite
        self._sessions: dict[Engine, Session] = {}

    @property
    def active(self) -> int:
        """How many completions have not ended."""
        return sum(session.active for session in self._sessions.values())

    def add(self, key: int, request: GenerateRequest) -> None:
        """Take a completion in, on the engine that runs it."""
        engine = self._composite.engine_of(request)
        if engine not in self._sessions:
            if not isinstance(engine, Continuous):
                raise _remembers(engine)
            self._sessions[engine] = engine.session()
        self._sessions[engine].add(key, request)

    def cancel(self, key: int) -> None:
        """Drop a completion."""
        for session in self._sessions.values():
            session.cancel(key)

    def step(self) -> list[Delta]:
        """Go on with all completions."""
        return [delta for session in self._sessions.values() if session.active for delta in session.step()]


def _remembers(engine: Engine) -> TypeError:
    return TypeError(f"{type(engine).__name__} cannot: open the model with remember=False")
