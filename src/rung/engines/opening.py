"""Open engines and encoders by model reference; each is loaded once per process and shared."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Literal, get_args

from rung.engines.base import Engine
from rung.errors import ConfigError
from rung.models.reference import ModelFiles, is_endpoint, resolve
from rung.progress import QUIET, Progress

if TYPE_CHECKING:
    from rung.engines.api import ApiEngine
    from rung.engines.encoders import SentenceEncoder
    from rung.engines.openvino import OpenVinoEngine
    from rung.engines.openvino_export import Precision
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
            torch or openvino, whichever is better on this machine (see `rung.engines.engine_choice`).
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
            "unknown-engine", f"no engine is named {engine!r}", hint=f"choose one of {', '.join(get_args(EngineName))}"
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
    from rung.engines.composite import Composite

    return Composite(
        files,
        lambda: _remembering(_generator(files, engine, device, apart, progress), remember),
        lambda: _remembering(open_torch(model, device=device), remember),
    )


def _generator(files: ModelFiles, engine: str, device: str, apart: bool, progress: Progress) -> Engine:
    """Return the engine that generates; with `auto`, the one that was measured to be better here."""
    from rung.engines.engine_choice import choose

    if engine == "auto" and choose(files, progress=progress).engine == "torch":
        return open_torch(files.reference, device=device)
    precision: Precision = "fp32" if engine == "openvino-fp32" else "int8"
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


def open_openvino(model: str, precision: Precision = "int8", *, progress: Progress = QUIET) -> OpenVinoEngine:
    """Return the OpenVINO engine of `model` itself, which only generates."""
    from rung.engines.openvino_export import exported

    exported(resolve(model), "causal", precision, progress=progress)
    return _open_openvino(model, precision)


@lru_cache(maxsize=2)
def _open_openvino(model: str, precision: Precision) -> OpenVinoEngine:
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
        ConfigError: `encoder-backend`: OpenVINO cannot run this encoder exactly.
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
