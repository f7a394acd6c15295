"""Sentence encoders: short texts to unit vectors, for features, neighbours and retrieval."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Protocol

from rung.engines import openvino_export
from rung.engines.base import Floats
from rung.engines.local_encoder import read_recipe
from rung.errors import ConfigError
from rung.models.reference import ModelFiles
from rung.progress import QUIET, Progress

Backend = Literal["openvino", "torch"]


class SentenceEncoder(Protocol):
    """Embeds texts. Vectors of one model agree between backends to rounding, so both have one fingerprint."""

    files: ModelFiles

    @property
    def backend(self) -> str:
        """Say what runs the model: `openvino` or `torch`."""

    @property
    def fingerprint(self) -> str:
        """Changes when vectors may."""

    @property
    def parameters(self) -> int:
        """Number of weights, for cost estimates."""

    @property
    def limit(self) -> int:
        """The most tokens of a text, special ones not counted; `embed` leaves out what is beyond."""

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the token ids of `text`, no special tokens added."""

    def embed(self, texts: Sequence[str], *, progress: Progress = QUIET) -> Floats:
        """Return one unit vector per text, shape [texts, dimension]."""


def open_sentence_encoder(
    files: ModelFiles, *, device: str = "auto", backend: Backend | None = None, progress: Progress = QUIET
) -> SentenceEncoder:
    """Return the encoder of a model folder.

    Args:
        files: the model.
        device: `auto`, `cpu` or a torch device; a GPU is torch's.
        backend: what has to run it; by default `choose_backend` decides.
        progress: told when a model is exported, which happens once.

    Raises:
        ConfigError: `openvino` was asked for, and cannot run this model exactly.
        EngineError: a library is missing, or the export failed.
    """
    if (backend or choose_backend(files, device=device)) == "torch":
        from rung.engines.torch_encoder import TorchEncoder

        return TorchEncoder(files, device=device)
    recipe = read_recipe(files.folder)
    if recipe is None or device not in ("auto", "cpu"):
        raise ConfigError(
            "engine-mismatch",
            f"OpenVINO cannot run {files.name} exactly as sentence-transformers does on {device}",
            hint="leave the backend to Rung, or choose torch",
        )
    from rung.engines.openvino_encoder import OpenVinoEncoder

    return OpenVinoEncoder(files, recipe, progress=progress)


def choose_backend(files: ModelFiles, *, device: str = "auto") -> Backend:
    """Choose OpenVINO on processors, where it is installed and runs the model exactly; else torch."""
    on_processor = device == "cpu" or (device == "auto" and not _has_gpu())
    if not on_processor or find_spec("openvino") is None or read_recipe(files.folder) is None:
        return "torch"
    ready = openvino_export.folder_of(files, "encoder", "fp32").exists() or openvino_export.can_export()
    return "openvino" if ready else "torch"


def _has_gpu() -> bool:
    """Look for NVIDIA's driver without importing torch, which takes seconds."""
    return Path("/dev/nvidiactl").exists()
