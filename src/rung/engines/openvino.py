"""The openvino engine: fast generation on CPU, without torch or transformers in the process."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rung.engines.base import EngineInfo, Floats, GenerateRequest, Generation, Scored, ScoreRequest, Session
from rung.engines.local import LocalModel
from rung.engines.openvino_adapters import adapter_bytes
from rung.engines.openvino_export import Precision, exported
from rung.engines.openvino_grammar import structured_output
from rung.engines.openvino_pipeline import Pipeline, Row
from rung.errors import EngineError, needed_by
from rung.machine import memory_bytes
from rung.models.reference import ModelFiles
from rung.progress import QUIET, Progress

LOADED = 4  # weights in memory at once: the base model, and the model with each of the adapters used last
CACHE_SHARE = 0.1  # of the machine's memory, at most, for the keys and values of each of them
CLOSED = "openvino-genai gives neither logits nor hidden states"
OPEN_BOTH = "open the model with `rung.engines.opening.open_engine`, which has torch beside it"
# OpenVINO's own default keeps keys and values in 8 bits once they are cached, but not while a prompt is read: the same
# request then gets another text when its beginning is cached. 16 bits are as fast and give the same text. Where the
# processor has AMX it would compute in bfloat16, in which a text depends on the rows that are written beside it.
PROPERTIES = {
    "int8": {"KV_CACHE_PRECISION": "f16", "INFERENCE_PRECISION_HINT": "f32"},
    "fp32": {"KV_CACHE_PRECISION": "f32", "INFERENCE_PRECISION_HINT": "f32"},
}


class OpenVinoEngine(LocalModel):
    """Generates through openvino-genai: continuous batching, prefix caching, LoRA adapters, constrained text.

    It does not score or embed: openvino-genai keeps its logits to itself. `rung.engines.composite` adds an engine that
    does.

    With `int8` the weights have 8 bits; `rung.engines.engine_choice` compares its text with fp32 before it is chosen by
    itself. With `fp32`, weights, activations and cache have 32 bits, and greedy text is that of the torch engine but
    for near ties.

    Args:
        files: the resolved model.
        precision: of the weights.
        progress: told of the export, which is made once per model and precision.

    Raises:
        EngineError: openvino-genai is not installed, or the model cannot be exported.
    """

    def __init__(self, files: ModelFiles, precision: Precision = "int8", *, progress: Progress = QUIET) -> None:
        library()
        super().__init__(files)
        self.precision = precision
        self.folder = exported(files, "causal", precision, progress=progress)
        self._pipelines: OrderedDict[str | None, Pipeline] = OrderedDict()
        self._loading = threading.Lock()
        self._info = EngineInfo(
            engine="openvino",
            model=files.name,
            device="cpu",
            dtype=precision,
            parameters=files.parameters,
            context=files.context,
            fingerprint=f"{files.fingerprint}/openvino/{precision}",
        )

    @property
    def info(self) -> EngineInfo:
        """Say what runs where."""
        return self._info

    # ---- the three calls

    def generate(
        self,
        requests: Sequence[GenerateRequest],
        *,
        progress: Progress = QUIET,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[Generation]:
        """Complete every request, all that use the same adapter side by side."""
        groups: dict[str | None, list[Row]] = defaultdict(list)
        for index, request in enumerate(requests):
            groups[request.adapter].append(self.row(index, request))
        results: dict[int, Generation] = {}
        progress.start("generating", len(requests))
        for adapter, rows in groups.items():
            pipeline = self.pipeline(adapter)
            start = time.perf_counter()  # loading a model is no part of answering a row
            for done in pipeline.run(rows, cancelled):
                progress.advance(len(done))
            seconds = (time.perf_counter() - start) / len(rows)
            for row in rows:
                results[row.index] = _generation(row, seconds, logprobs=requests[row.index].logprobs)
        progress.finish()
        return [results[i] for i in range(len(requests))]

    def stream(self, request: GenerateRequest) -> Iterator[str]:
        """Yield the text of one completion in pieces; joined they are the text that `generate` returns."""
        row = self.row(0, request)
        row.follow = True
        for _ in self.pipeline(request.adapter).run([row]):
            if piece := row.shown.more(row.text, row.stop, ended=row.reason is not None):
                yield piece

    def session(self) -> Session:
        """Return a session: completions join at every step, also those of different adapters."""
        from rung.engines.openvino_session import OpenVinoSession

        return OpenVinoSession(self.row, self.pipeline)

    def score(self, requests: Sequence[ScoreRequest], *, progress: Progress = QUIET) -> list[Scored]:
        """Refuse: openvino-genai does not give logits."""
        del requests, progress
        raise EngineError("scoring-unsupported", f"the openvino engine cannot score: {CLOSED}", hint=OPEN_BOTH)

    def embed(self, texts: Sequence[str], *, progress: Progress = QUIET) -> Floats:
        """Refuse: openvino-genai does not give hidden states."""
        del texts, progress
        raise EngineError("embedding-unsupported", f"the openvino engine cannot embed: {CLOSED}", hint=OPEN_BOTH)

    # ---- inside

    def row(self, index: int, request: GenerateRequest) -> Row:
        """Return a request as a row of a pipeline, checked against the context."""
        sampling = request.sampling
        genai = library()
        config = genai.GenerationConfig()
        config.max_new_tokens = sampling.max_tokens
        config.stop_token_ids = set(self.tokenizer.eos_ids)
        config.logprobs = int(request.logprobs)
        if sampling.temperature > 0:
            config.do_sample = True
            config.temperature = sampling.temperature
            config.top_p = sampling.top_p
            config.rng_seed = secrets.randbits(32) if sampling.seed is None else sampling.seed
        if request.constraint is not None:
            config.structured_output_config = structured_output(request.constraint)
        prompt = self.fitting(request.prompt, sampling.max_tokens)
        return Row(index, prompt, config, sampling.max_tokens, sampling.stop)

    def pipeline(self, adapter: str | None) -> Pipeline:
        """Return the pipeline that runs an adapter, or the base model.

        One pipeline per adapter: openvino-genai switches adapters only between calls, and its cache of prompt
        beginnings does not know which adapter computed them.
        """
        with self._loading:
            if adapter not in self._pipelines or self._pipelines[adapter].broken:
                self._pipelines[adapter] = Pipeline(self._load(adapter), self.tokenizer)
                while len(self._pipelines) > LOADED:
                    self._pipelines.popitem(last=False)
            self._pipelines.move_to_end(adapter)
            return self._pipelines[adapter]

    def _load(self, adapter: str | None) -> Any:
        genai = library()
        scheduler = genai.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        scheduler.dynamic_split_fuse = True
        scheduler.cache_size = max(1, int(memory_bytes() * CACHE_SHARE / 2**30))
        properties: dict[str, Any] = dict(PROPERTIES[self.precision])
        if adapter is not None:
            properties["adapters"] = self._adapters(adapter)
        return genai.ContinuousBatchingPipeline(self.folder, scheduler, "CPU", properties)

    def _adapters(self, adapter: str) -> Any:
        import numpy as np
        import openvino

        genai = library()
        data = adapter_bytes(Path(adapter), self.files, self.folder / "openvino_model.xml")
        tensor = openvino.Tensor(np.frombuffer(data, np.uint8).copy())
        return genai.AdapterConfig(genai.Adapter(tensor), 1.0, mode=genai.AdapterConfig.Mode.MODE_STATIC)


def library() -> Any:
    """Import openvino-genai, or say what to install."""
    with needed_by("the openvino engine", error=EngineError):
        import openvino_genai
    return openvino_genai


def _generation(row: Row, seconds: float, *, logprobs: bool) -> Generation:
    assert row.reason is not None
    return Generation(
        text=row.text,
        prompt_tokens=len(row.prompt),
        completion_tokens=len(row.tokens),
        finish_reason=row.reason,
        seconds=seconds,
        logprobs=tuple(row.logprobs) if logprobs else (),
    )
