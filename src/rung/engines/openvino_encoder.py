"""Sentence encoders through OpenVINO: the fast path on processors, without torch or transformers.

Tokens are those of sentence-transformers (the model's own tokenizer, special tokens and truncation included); texts of
equal length run together, so that little is padding; pooling happens here, in float32. Batches run side by side, one
per stream: on two cores that is about a fifth faster than all cores on one batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt

from rung.engines.base import Floats
from rung.engines.local_encoder import LocalEncoder, Pooling, Recipe
from rung.engines.openvino_export import GRAPH, exported
from rung.errors import EngineError, needed_by
from rung.models.reference import ModelFiles
from rung.progress import QUIET, Progress

BATCH_TOKENS = 512  # tokens that run together: their activations stay in the cache of a core; 1024 was a tenth slower
CHUNK = 4096  # texts tokenized and sorted together, which bounds memory


class OpenVinoEncoder(LocalEncoder):
    """An encoder with a `Recipe`, exported once in fp32.

    Raises:
        EngineError: OpenVINO or what exports to it is missing, or the export failed.
    """

    backend = "openvino"

    def __init__(self, files: ModelFiles, recipe: Recipe, *, progress: Progress = QUIET) -> None:
        folder = exported(files, "encoder", "fp32", progress=progress)
        with needed_by("a sentence encoder", error=EngineError):
            import openvino
        super().__init__(files)
        self.recipe = recipe
        # f32: some processors would compute in bfloat16 otherwise, and vectors would differ between machines.
        settings = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "INFERENCE_PRECISION_HINT": "f32",
            # Kernels are made per shape of a batch and kept: by default so many of them that memory grew by a tenth
            # over 10,000 texts. Sixteen are as fast; none at all is slower and grows faster.
            "CPU_RUNTIME_CACHE_CAPACITY": "16",
        }
        self._model: Any = openvino.Core().compile_model(str(folder / GRAPH), "CPU", settings)
        self._streams = int(self._model.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._inputs = {port.get_any_name() for port in self._model.inputs}
        self._dimension = int(self._model.output(0).get_partial_shape()[2].get_length())
        self._padding = self.tokenizer.pad_id or 0
        self._batches = _tokenizer(files, recipe)
        # The first inference has to be alone: OpenVINO's Python layer fills a table of number types at its first use,
        # and of two threads there at once one can hold that lock and the other the interpreter's, for ever.
        self._run(self._requests(1), self._batches.encode_batch_fast(["a"]))

    @property
    def limit(self) -> int:
        """The most tokens of a text, special ones not counted; `embed` leaves out what is beyond."""
        return self.recipe.limit - int(self._batches.num_special_tokens_to_add(is_pair=False))

    def embed(self, texts: Sequence[str], *, progress: Progress = QUIET) -> Floats:
        """Return one unit vector per text, shape [texts, dimension]."""
        progress.start("embedding", len(texts))
        vectors = np.zeros((len(texts), self._dimension), np.float32)
        requests = self._requests(self._streams)  # of this call alone: callers may be threads too
        with ThreadPoolExecutor(self._streams) as workers:
            for first in range(0, len(texts), CHUNK):
                encodings = self._batches.encode_batch_fast(list(texts[first : first + CHUNK]))
                groups = list(batches([len(encoding.ids) for encoding in encodings]))
                parts = [[encodings[row] for row in rows] for rows in groups]
                for rows, part in zip(groups, workers.map(partial(self._run, requests), parts), strict=True):
                    vectors[[first + row for row in rows]] = part
                    progress.advance(len(rows))
        progress.finish()
        return vectors

    def _requests(self, number: int) -> SimpleQueue[Any]:
        requests: SimpleQueue[Any] = SimpleQueue()
        for _ in range(number):
            requests.put(self._model.create_infer_request())
        return requests

    def _run(self, requests: SimpleQueue[Any], encodings: Sequence[Any]) -> Floats:
        """Return the unit vectors of one batch of tokenized texts."""
        width = max(len(encoding.ids) for encoding in encodings)
        feed = {
            "input_ids": _padded([encoding.ids for encoding in encodings], width, self._padding),
            "attention_mask": _padded([encoding.attention_mask for encoding in encodings], width, 0),
            "token_type_ids": _padded([encoding.type_ids for encoding in encodings], width, 0),
        }
        request = requests.get()
        request.infer({name: array for name, array in feed.items() if name in self._inputs})
        hidden: Floats = request.get_output_tensor(0).data  # the request's own memory, so pooled before it goes back
        vectors = pool(hidden, feed["attention_mask"], self.recipe.pooling)
        requests.put(request)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield positions in batches of texts of similar length, longest first, at most `BATCH_TOKENS` with padding."""
    order = sorted(range(len(lengths)), key=lambda position: -lengths[position])
    while order:
        size = max(1, BATCH_TOKENS // max(1, lengths[order[0]]))
        yield order[:size]
        order = order[size:]


def pool(hidden: Floats, mask: npt.NDArray[np.int64], pooling: Pooling) -> Floats:
    """Reduce hidden states [texts, tokens, dimension] to one vector per text; masked tokens do not count."""
    if pooling == "cls":
        return hidden[:, 0].copy()
    if pooling == "max":
        return np.where(mask[..., None] > 0, hidden, -np.inf).max(1).astype(np.float32)
    # A product of matrices: [1, tokens] with the weights 1/n times [tokens, dimension], per text.
    weights = (mask / np.maximum(mask.sum(1, keepdims=True), 1)).astype(np.float32)
    mean: Floats = (weights[:, None] @ hidden)[:, 0]
    return mean


def _padded(rows: Sequence[Sequence[int]], width: int, value: int) -> npt.NDArray[np.int64]:
    array = np.full((len(rows), width), value, np.int64)
    for row, values in enumerate(rows):
        array[row, : len(values)] = values
    return array


def _tokenizer(files: ModelFiles, recipe: Recipe) -> Any:
    """Return the model's own tokenizer: special tokens added, cut as the recipe says, not padded."""
    from tokenizers import Tokenizer as Backend

    backend = Backend.from_file(str(files.folder / "tokenizer.json"))
    backend.no_padding()
    backend.enable_truncation(recipe.limit)
    return backend
