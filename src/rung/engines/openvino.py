"""The openvino engine: fast generation on CPU, without torch or transformers in the process.

Continuous batching, prefix caching, LoRA adapters, constrained text.
"""

from __future__ import annotations

import itertools
import math
import re
import secrets
import threading
import time
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rung.engines.base import (
    Cancelled,
    Delta,
    Floats,
    GenerateRequest,
    Generation,
    RunningRow,
    Scored,
    ScoreRequest,
    Session,
)
from rung.engines.changes import read_settings, settings_for
from rung.engines.local import LocalModel
from rung.engines.openvino_export import ExportPrecision, exported
from rung.engines.openvino_grammar import structured_output
from rung.errors import EngineError, needed_by
from rung.machine import memory_bytes
from rung.models.reference import ModelFiles
from rung.models.tokenizer import Tokenizer
from rung.progress import QUIET, Progress

# ---- one openvino-genai pipeline, stepped by whoever waits for it: continuous batching across calls and threads
#
# `ContinuousBatchingPipeline.generate` refuses a second call while one runs, cannot be cancelled, and looks for cached
# prefixes only when a request is added: in a batch with a common prefix, every row computes it. Rung adds requests
# while others run, and the first of a batch goes ahead, so that the others find their common prefix in the cache.

IN_FLIGHT = 64  # rows of one call that run side by side; more are not faster on CPU, and hold memory


@dataclass(slots=True, kw_only=True)
class PipelineRow(RunningRow):
    """One unfinished completion."""

    prompt: tuple[int, ...]
    config: Any  # an openvino-genai GenerationConfig
    max_tokens: int
    stop: tuple[str, ...] = ()
    ends: frozenset[int] = frozenset()
    call_marks: bool = False
    follow: bool = False  # update `text` after every token; otherwise only at the end
    handle: Any = None  # openvino-genai's, while it runs


class Pipeline:
    """Weights, cache and scheduler of one model (with one adapter, or none). Safe to share between threads."""

    def __init__(self, pipeline: Any, tokenizer: Tokenizer) -> None:
        self._pipeline = pipeline
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._ids = itertools.count()
        self.broken = False

    def run(self, rows: Sequence[PipelineRow], cancelled: Cancelled | None = None) -> Iterator[list[PipelineRow]]:
        """Complete `rows`; yield after every step those that ended in it.

        A cancelled run marks unfinished rows as `cancelled`. Leaving the iteration early drops what still runs.

        Raises:
            EngineError: the cache cannot hold even one of the rows, or OpenVINO failed.
        """
        # Neighbours in this order share the longest prefixes, which the cache then holds.
        lane = _Lane(self, deque(sorted(rows, key=lambda row: row.prompt)))
        try:
            while lane.waiting or lane.running:
                lane.admit()
                for _, error in self.step(lane.running):
                    raise error
                if cancelled is not None and cancelled():
                    for row in (*lane.running, *lane.waiting):
                        row.reason = row.reason or "cancelled"
                    lane.waiting.clear()
                ended = [row for row in lane.running if row.reason is not None]
                lane.running = [row for row in lane.running if row.reason is None]
                yield ended
        finally:
            self.drop([row for row in rows if row.handle is not None])

    def begin(self, row: PipelineRow) -> None:
        """Start a row."""
        import openvino

        ids = openvino.Tensor(np.array([row.prompt], np.int64))
        with self._lock:
            row.handle = self._pipeline.add_request(next(self._ids), ids, row.config)

    def step(self, active: Sequence[PipelineRow]) -> list[tuple[PipelineRow, EngineError]]:
        """Compute the next token of every started row, other callers' rows included, and collect those of `active`.

        Gives the rows of `active` that cannot go on, and why.

        Raises:
            EngineError: OpenVINO failed.
        """
        failed = []
        with self._lock:
            try:
                if self._pipeline.has_non_finished_requests():
                    self._pipeline.step()
            except RuntimeError as error:
                self.broken = True  # the failed request stays inside, and fails every later step
                raise EngineError("generation-failed", f"OpenVINO: {error}", hint="use `--engine torch`") from error
            for row in active:
                try:
                    self._collect(row)
                except EngineError as error:
                    failed.append((row, error))
        return failed

    def _collect(self, row: PipelineRow) -> None:
        while row.reason is None and row.handle.can_read():
            for output in row.handle.read().values():
                for token, logprob in zip(output.generated_ids, output.generated_log_probs, strict=True):
                    if row.reason is None:
                        self._append(row, token, logprob)
        if row.reason is None and row.handle.get_status().name == "IGNORED":
            what = f"a prompt of {len(row.prompt)} tokens and its answer"
            hint = "show fewer demonstrations, or shorten the input"
            raise EngineError("out-of-memory", f"the cache of the openvino engine cannot hold {what}", hint=hint)

    def _append(self, row: PipelineRow, token: int, logprob: float) -> None:
        """Add a token to a row and see whether that ends it; the rules are those of the torch engine."""
        row.tokens.append(token)
        row.logprobs.append(logprob)
        if token in row.ends:
            row.text, row.reason = self._tokenizer.decode(row.tokens[:-1], call_marks=row.call_marks), "stop"
            return
        full = len(row.tokens) == row.max_tokens
        if row.stop or row.follow or full:
            row.text = self._tokenizer.decode(row.tokens, call_marks=row.call_marks)
            row.end_at(row.stop)
        if full and row.reason is None:
            row.reason = "length"

    def drop(self, rows: Sequence[PipelineRow]) -> None:
        """Cancel rows that still run, and free their memory: only a step does, which the last caller would not take."""
        with self._lock:
            running = [row.handle for row in rows if row.handle.get_status().name == "RUNNING"]
            for row in rows:
                row.handle = None
            for handle in running:
                handle.cancel()
            if running and not self.broken and self._pipeline.has_non_finished_requests():
                try:
                    self._pipeline.step()
                except RuntimeError:
                    self.broken = True  # the next step says so


@dataclass(slots=True)
class _Lane:
    """Rows that wait for a pipeline, and those that run on it."""

    pipeline: Pipeline
    waiting: deque[PipelineRow] = field(default_factory=deque)
    running: list[PipelineRow] = field(default_factory=list)

    def admit(self) -> None:
        """Start rows: one alone until it has its first token (see above), then as many as may run side by side."""
        ahead = not any(row.tokens for row in self.running)
        room = (0 if self.running else 1) if ahead else IN_FLIGHT - len(self.running)
        for _ in range(min(room, len(self.waiting))):
            row = self.waiting.popleft()
            self.pipeline.begin(row)
            self.running.append(row)


class _OpenVinoSession:
    """A `Session` over one pipeline per adapter, each stepped in turn."""

    def __init__(self, engine: OpenVinoEngine) -> None:
        self._engine = engine
        self._lanes: dict[str | None, _Lane] = {}

    @property
    def active(self) -> int:
        return sum(len(lane.waiting) + len(lane.running) for lane in self._lanes.values())

    def add(self, key: int, request: GenerateRequest) -> None:
        row = self._engine.row(key, request)
        row.follow = True
        if request.adapter not in self._lanes:
            self._lanes[request.adapter] = _Lane(self._engine.pipeline(request.adapter))
        self._lanes[request.adapter].waiting.append(row)

    def cancel(self, key: int) -> None:
        for lane in self._lanes.values():
            lane.waiting = deque(row for row in lane.waiting if row.index != key)
            lane.pipeline.drop([row for row in lane.running if row.index == key])
            lane.running = [row for row in lane.running if row.index != key]
        self._release()

    def step(self) -> list[Delta]:
        deltas = [delta for lane in self._lanes.values() for delta in self._advance(lane)]
        self._release()
        return deltas

    def _advance(self, lane: _Lane) -> list[Delta]:
        lane.admit()
        try:
            failed = {row.index: error for row, error in lane.pipeline.step(lane.running)}
        except EngineError as error:  # the pipeline is lost with its rows; the next request gets a new one
            lost = [Delta(row.index, error=error) for row in (*lane.running, *lane.waiting)]
            lane.running.clear()
            lane.waiting.clear()
            return lost
        deltas = []
        for row in lane.running:
            if row.index in failed:
                deltas.append(Delta(row.index, error=failed[row.index]))
            elif len(row.tokens) > row.reported:
                deltas.append(row.delta(row.stop))
        ended = [row for row in lane.running if row.reason is not None or row.index in failed]
        lane.pipeline.drop(ended)
        lane.running = [row for row in lane.running if row.handle is not None]
        return deltas

    def _release(self) -> None:
        """Release idle pipelines: the engine may need their memory for another adapter."""
        self._lanes = {adapter: lane for adapter, lane in self._lanes.items() if lane.running or lane.waiting}


# ---- PEFT LoRA adapters: read, checked, and passed on with their scale folded in
#
# openvino-genai adds `B @ A` of every layer whose name it finds in the graph, and only warns of the others on stderr;
# it does not read adapter_config.json. So Rung refuses what openvino-genai would get wrong, and folds the scale
# (lora_alpha / r, with rsLoRA / sqrt(r), both also by pattern) into B.

TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<part>[AB])\.weight")
PLAIN = (
    "use_dora",
    "modules_to_save",
    "fan_in_fan_out",
    "lora_bias",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
)


def unsupported(folder: Path) -> str | None:
    """Why OpenVINO cannot run the adapter in `folder`, or None where it can."""
    if not (folder / "adapter_config.json").is_file() and any(folder.glob("*.safetensors")):
        return "it is not a LoRA adapter"
    config = read_settings(folder)
    if config.get("peft_type") != "LORA":
        return f"its type is {config.get('peft_type')}, not LORA"
    extras = [name for name in PLAIN if config.get(name)]
    if config.get("bias", "none") != "none":
        extras.append("bias")
    return f"it uses {', '.join(extras)}" if extras else None


def adapter_bytes(folder: Path, files: ModelFiles, graph: Path) -> bytes:
    """The adapter in `folder` as a safetensors file in memory, scaled, in fp32.

    `graph` is openvino_model.xml of the base model's export: its nodes are named after the model's layers.

    Raises:
        ArtifactError: no adapter is there (`wrong-folder`), or it was trained on another model (`model-mismatch`).
        EngineError: OpenVINO cannot run it (`adapter-unsupported`).
    """
    from safetensors.numpy import save

    config = settings_for(folder, files.fingerprint)
    if why := unsupported(folder):
        raise _refused(folder, why)
    nodes = graph.read_text("utf-8")
    scaled = {}
    for name, tensor in _tensors(folder).items():
        parts = TENSOR.fullmatch(name)
        if parts is None:
            raise _refused(folder, f"it holds the tensor {name}")
        layer = parts["module"].replace("model.language_model.", "model.", 1)  # of a wrapper, the decoder is exported
        if f"__module.{layer}/" not in nodes:
            raise _refused(folder, f"the graph has no layer {parts['module']}")
        scale = _scale(config, parts["module"], tensor.shape[1]) if parts["part"] == "B" else 1.0
        scaled[name.replace(parts["module"], layer)] = np.ascontiguousarray(tensor * np.float32(scale))
    return bytes(save(scaled))


def _scale(config: dict[str, Any], module: str, rank: int) -> float:
    """What PEFT multiplies the product of one layer's matrices with."""
    patterns = (config.get("alpha_pattern") or {}).items()
    alphas = (alpha for pattern, alpha in patterns if re.match(rf"(.*\.)?({pattern})$", module))
    alpha = next(alphas, config["lora_alpha"])
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _tensors(folder: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Read the tensors as fp32; numpy has no bfloat16, which is the upper half of an fp32."""
    from safetensors import SafetensorError, deserialize

    tensors = {}
    try:
        for name, tensor in deserialize((folder / "adapter_model.safetensors").read_bytes()):  # type: ignore[no-untyped-call]
            data, kind = tensor["data"], tensor["dtype"]
            if kind == "BF16":
                values = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
            else:
                values = np.frombuffer(data, {"F32": np.float32, "F16": np.float16}[kind]).astype(np.float32)
            tensors[name] = values.reshape(tensor["shape"])
    except (SafetensorError, KeyError) as unread:
        raise _refused(folder, f"its tensors cannot be read ({unread})") from unread
    return tensors


def _refused(folder: Path, why: str) -> EngineError:
    problem = f"the openvino engine cannot run the adapter in {folder}: {why}"
    return EngineError("adapter-unsupported", problem, hint="use `--engine torch`")


# ---- the engine

LOADED = 4  # weights in memory at once: the base model, and the model with each of the adapters used last
CACHE_SHARE = 0.1  # of the machine's memory, at most, for the keys and values of each of them
CLOSED = "openvino-genai gives neither logits nor hidden states"
OPEN_BOTH = "open the model with `rung.engines.opening.open_engine`, which adds torch"
# OpenVINO's own default keeps keys and values in 8 bits once they are cached, but not while a prompt is read: the same
# request then gets another text when its prefix is cached. 16 bits are as fast and give the same text. On processors
# with AMX it would compute in bfloat16, in which a text depends on the other rows of its batch.
PROPERTIES = {
    "int8": {"KV_CACHE_PRECISION": "f16", "INFERENCE_PRECISION_HINT": "f32"},
    "fp32": {"KV_CACHE_PRECISION": "f32", "INFERENCE_PRECISION_HINT": "f32"},
}


class OpenVinoEngine(LocalModel):
    """Generates through openvino-genai.

    It does not score or embed, since openvino-genai gives no logits; `rung.engines.opening` adds an engine that does.

    With `int8` or `int4` the weights have so many bits; `auto` chooses int8 only after comparing its text with fp32.
    With `fp32`, weights, activations and cache have 32 bits, and greedy text is that of the torch engine except near
    ties.

    Raises:
        EngineError: openvino-genai is not installed, or the model cannot be exported.
    """

    def __init__(self, files: ModelFiles, precision: ExportPrecision = "int8") -> None:
        library()
        super().__init__(files)
        self.precision = precision
        self.folder = exported(files, "causal", precision)
        self._pipelines: OrderedDict[str | None, Pipeline] = OrderedDict()
        self._loading = threading.Lock()
        self.info = self.describe("openvino", "cpu", precision, f"{files.fingerprint}/openvino/{precision}")

    def generate(
        self, requests: Sequence[GenerateRequest], *, progress: Progress = QUIET, cancelled: Cancelled | None = None
    ) -> list[Generation]:
        """Complete every request; those with the same adapter run side by side."""
        groups: dict[str | None, list[PipelineRow]] = defaultdict(list)
        for index, request in enumerate(requests):
            groups[request.adapter].append(self.row(index, request))
        results: dict[int, Generation] = {}
        progress.start("generating", len(requests))
        for adapter, rows in groups.items():
            pipeline = self.pipeline(adapter)
            start = time.perf_counter()  # after loading: that is not part of answering a row
            for done in pipeline.run(rows, cancelled):
                progress.advance(len(done))
            seconds = (time.perf_counter() - start) / len(rows)
            for row in rows:
                assert row.reason is not None
                logprobs = tuple(row.logprobs) if requests[row.index].logprobs else ()
                generation = Generation(row.text, len(row.prompt), len(row.tokens), row.reason, seconds, logprobs)
                results[row.index] = generation
        progress.finish()
        return [results[i] for i in range(len(requests))]

    def session(self) -> Session:
        """A session: completions join at every step, also those of different adapters."""
        return _OpenVinoSession(self)

    def score(self, requests: Sequence[ScoreRequest], *, progress: Progress = QUIET) -> list[Scored]:
        """Refuse: openvino-genai does not give logits."""
        del requests, progress
        raise EngineError("scoring-unsupported", f"the openvino engine cannot score: {CLOSED}", hint=OPEN_BOTH)

    def embed(self, texts: Sequence[str], *, progress: Progress = QUIET) -> Floats:
        """Refuse: openvino-genai does not give hidden states."""
        del texts, progress
        raise EngineError("embedding-unsupported", f"the openvino engine cannot embed: {CLOSED}", hint=OPEN_BOTH)

    def row(self, index: int, request: GenerateRequest) -> PipelineRow:
        """A request as a row of a pipeline, checked against the context."""
        sampling = request.sampling
        genai = library()
        config = genai.GenerationConfig()
        config.max_new_tokens = sampling.max_tokens
        ends = self.tokenizer.ends(sampling.stop)
        config.stop_token_ids = set(ends)
        config.logprobs = int(request.logprobs)
        if sampling.temperature > 0:
            config.do_sample = True
            config.temperature = sampling.temperature
            config.top_p = sampling.top_p
            config.rng_seed = secrets.randbits(32) if sampling.seed is None else sampling.seed
        if request.constraint is not None:
            config.structured_output_config = structured_output(request.constraint)
        prompt = self.fitting(request.prompt, sampling.max_tokens)
        return PipelineRow(
            index, len(prompt), prompt=prompt, config=config, max_tokens=sampling.max_tokens, stop=sampling.stop,
            ends=ends, call_marks=sampling.call_marks,
        )  # fmt: skip

    def pipeline(self, adapter: str | None) -> Pipeline:
        """The pipeline that runs an adapter, or the base model.

        One pipeline per adapter: openvino-genai switches adapters only between calls, and its prefix cache does not
        know which adapter computed an entry.
        """
        with self._loading:
            if adapter not in self._pipelines or self._pipelines[adapter].broken:
                self._pipelines[adapter] = Pipeline(self._load(adapter), self.tokenizer)
                while len(self._pipelines) > LOADED:
                    self._pipelines.popitem(last=False)
            self._pipelines.move_to_end(adapter)
            return self._pipelines[adapter]

    def _load(self, adapter: str | None) -> Any:
        import openvino

        genai = library()
        scheduler = genai.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        scheduler.dynamic_split_fuse = True
        scheduler.cache_size = max(1, int(memory_bytes() * CACHE_SHARE / 2**30))
        properties: dict[str, Any] = dict(PROPERTIES["fp32" if self.precision == "fp32" else "int8"])
        if adapter is not None:
            data = adapter_bytes(Path(adapter), self.files, self.folder / "openvino_model.xml")
            weights = genai.Adapter(openvino.Tensor(np.frombuffer(data, np.uint8).copy()))
            properties["adapters"] = genai.AdapterConfig(weights, 1.0, mode=genai.AdapterConfig.Mode.MODE_STATIC)
        return genai.ContinuousBatchingPipeline(self.folder, scheduler, "CPU", properties)


def library() -> Any:
    """Import openvino-genai, or say what to install."""
    with needed_by("the openvino engine", error=EngineError):
        import openvino_genai
    return openvino_genai
