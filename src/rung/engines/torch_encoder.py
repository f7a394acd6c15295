"""Sentence encoders through sentence-transformers: every model, and GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rung.engines.base import Floats
from rung.engines.local_encoder import LocalEncoder
from rung.errors import EngineError, needed_by
from rung.models.reference import ModelFiles
from rung.progress import QUIET, Progress

CHUNK = 256  # texts between two reports of progress
BATCH = 64


class TorchEncoder(LocalEncoder):
    """A sentence-transformers model; pooling and normalization are as its own folder says.

    Raises:
        EngineError: sentence-transformers is not installed.
    """

    backend = "torch"

    def __init__(self, files: ModelFiles, *, device: str = "auto") -> None:
        with needed_by("a sentence encoder", error=EngineError):
            import transformers
            from sentence_transformers import SentenceTransformer
        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        super().__init__(files)
        self._model: Any = SentenceTransformer(
            str(files.folder),
            device=None if device == "auto" else device,
            local_files_only=True,
            trust_remote_code=False,
        )

    @property
    def limit(self) -> int:
        """The most tokens of a text, special ones not counted; `embed` leaves out what is beyond."""
        return int(self._model.max_seq_length) - int(self._model.tokenizer.num_special_tokens_to_add(pair=False))

    def embed(self, texts: Sequence[str], *, progress: Progress = QUIET) -> Floats:
        """Return one unit vector per text, shape [texts, dimension]."""
        if not texts:
            return np.asarray(self._model.encode([""], show_progress_bar=False)[:0], np.float32)
        progress.start("embedding", len(texts))
        parts = []
        for first in range(0, len(texts), CHUNK):
            chunk = list(texts[first : first + CHUNK])
            parts.append(
                self._model.encode(chunk, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False)
            )
            progress.advance(len(chunk))
        progress.finish()
        vectors: Floats = np.concatenate(parts).astype(np.float32)
        return vectors
