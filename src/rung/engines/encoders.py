"""Sentence encoders: short texts to unit vectors, for features, neighbours and retrieval.

OpenVINO is the fast backend on processors and needs neither torch nor transformers; sentence-transformers runs every
model, and GPUs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from rung.engines.base import Floats
from rung.engines.openvino_export import GRAPH, ExportPrecision, exported, folder_of, missing_package
from rung.errors import ConfigError, EngineError, ModelError, needed_by
from rung.models.checkpoint import static_table
from rung.models.hub import first_line, is_static, read_json, read_settings
from rung.models.open_models import find as find_open
from rung.models.reference import ModelFiles
from rung.models.tokenizer import Tokenizer, without_unknown
from rung.progress import QUIET, Progress

Backend = Literal["openvino", "torch", "static"]
Role = Literal["query", "document"]
PROMPT_NAMES: dict[Role, tuple[str, ...]] = {  # in sentence-transformers' folders, the likeliest first
    "query": ("query", "search_query", "retrieval.query", "web_search_query"),
    "document": ("document", "passage", "search_document", "retrieval.passage"),
}
Pooling = Literal["mean", "cls", "max"]
BATCH_TOKENS = 512  # tokens that run together: their activations stay in the cache of a core; 1024 was a tenth slower
CHUNK = 4096  # texts tokenized and sorted together, which bounds memory
TORCH_CHUNK, TORCH_BATCH = 256, 64  # texts between two reports of progress, and texts that run together


class SentenceEncoder(ABC):
    """Embeds texts with the model in a folder."""

    backend: ClassVar[Backend]

    def __init__(self, files: ModelFiles) -> None:
        self.files = files
        self.tokenizer = Tokenizer.load(files.folder)

    @property
    def fingerprint(self) -> str:
        """Changes when vectors may; backends agree to rounding, so the backend is not part of it."""
        return self.files.fingerprint

    @cached_property
    def prompts(self) -> dict[str, str]:
        """What the encoder was trained to read before a `query` and a `document`: its folder's, or the catalogue's."""
        own = _json(self.files.folder / "config_sentence_transformers.json").get("prompts") or {}
        listed = find_open(self.files.reference)
        found = {role: own.get(name) for role, names in PROMPT_NAMES.items() for name in reversed(names) if name in own}
        return {role: text for role, text in (found or (listed.prompts if listed else {})).items() if text}

    def encode(self, text: str) -> tuple[int, ...]:
        """The token ids of `text`, without special tokens."""
        return self.tokenizer.encode_plain(text)

    @property
    @abstractmethod
    def limit(self) -> int:
        """The largest number of tokens that are read at once, special tokens not counted."""

    def windows(self, text: str, room: int = 0) -> list[str]:
        """The pieces in which a text is read, `room` tokens left free: itself, if it is not longer than `limit`."""
        limit = max(1, self.limit - room)
        # A token has at least one character.
        return [text] if len(text) <= limit else self.tokenizer.pieces(text, limit)

    def embed(self, texts: Sequence[str], *, role: Role | None = None, progress: Progress = QUIET) -> Floats:
        """One unit vector per text, shape [texts, dimension]; of a longer one the mean of those of its windows.

        With a `role`, every text is read behind the encoder's prompt for it, if it has one.
        """
        prompt = self.prompts.get(role, "") if role else ""
        room = len(self.encode(prompt)) if prompt else 0
        windows = [[prompt + window for window in self.windows(text, room)] for text in texts]
        vectors = self._embed([window for parts in windows for window in parts], progress)
        if len(vectors) == len(texts):
            return vectors
        sums = np.zeros((len(texts), vectors.shape[1]), np.float32)
        np.add.at(sums, np.repeat(np.arange(len(texts)), list(map(len, windows))), vectors)
        unit: Floats = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
        return unit

    @abstractmethod
    def _embed(self, texts: Sequence[str], progress: Progress) -> Floats:
        """One unit vector per text of at most `limit` tokens."""


def open_sentence_encoder(
    files: ModelFiles, *, device: str = "auto", backend: Backend | None = None, precision: ExportPrecision = "fp32",
    progress: Progress = QUIET,
) -> SentenceEncoder:  # fmt: skip
    """Load an encoder, exported once; by default `choose_backend` decides what runs it, and only torch uses a GPU.

    `int8` weights need OpenVINO. They are about twice as fast, and vectors differ a little.

    Raises:
        ConfigError: `openvino` was asked for, and cannot run this model exactly; or `int8`, which only it runs.
        EngineError: a library is missing, or the export failed.
    """
    chosen = backend or choose_backend(files, device=device)
    if precision != "fp32" and chosen != "openvino":
        problem = f"{files.name} runs in {precision} through OpenVINO alone, and here {chosen} runs it"
        raise ConfigError("engine-mismatch", problem, hint="use precision: fp32")
    if chosen != "openvino":
        return StaticEncoder(files) if chosen == "static" else TorchEncoder(files, device=device)
    recipe = read_recipe(files.folder)
    if recipe is None or device not in ("auto", "cpu"):
        problem = f"OpenVINO cannot run {files.name} exactly as sentence-transformers does on {device}"
        raise ConfigError("engine-mismatch", problem, hint="leave the backend to Rung, or choose torch")
    return OpenVinoEncoder(files, recipe, precision, progress=progress)


def choose_backend(files: ModelFiles, *, device: str = "auto") -> Backend:
    """OpenVINO on processors, where it is installed and runs the model exactly; else torch. Tables need neither."""
    if is_static(files.folder):
        return "static"
    on_processor = device == "cpu" or (device == "auto" and not _has_gpu())
    if not on_processor or find_spec("openvino") is None or read_recipe(files.folder) is None:
        return "torch"
    runs = folder_of(files, "encoder", "fp32").exists() or missing_package() is None
    return "openvino" if runs else "torch"


def is_exported(files: ModelFiles, precision: ExportPrecision = "fp32") -> bool:
    """Whether opening the encoder exports nothing."""
    return choose_backend(files) != "openvino" or folder_of(files, "encoder", precision).exists()


def _has_gpu() -> bool:
    """Look for NVIDIA's driver without importing torch, which takes seconds."""
    return Path("/dev/nvidiactl").exists()


# ---- what the files of a sentence-transformers folder ask for
#
# sentence-transformers composes modules (`modules.json`). One composition covers most encoders: a transformer, one
# pooling over its last hidden states, and perhaps a normalization to unit length. Rung reads that one, exactly; any
# setting that it does not understand leaves the model to sentence-transformers.

MODEL_TYPES = {"bert", "distilbert", "mpnet", "roberta", "xlm-roberta"}  # absolute positions, no task prefix
POOLINGS: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "max": "max"}
OLD_POOLINGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max"
}  # fmt: skip
DEFAULTS: dict[str, Any] = {  # newer folders write these settings out; Rung computes only their defaults
    "do_lower_case": False, "transformer_task": "feature-extraction", "module_output_name": "token_embeddings",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "processing_kwargs": {}, "unpad_inputs": None,
}  # fmt: skip
UNBOUNDED = 10**6  # tokenizers without a limit write 1e30


@dataclass(frozen=True, slots=True)
class Recipe:
    """Truncate to `limit` tokens (special ones included), run, pool over tokens, scale to unit length."""

    pooling: Pooling
    limit: int


def read_recipe(folder: Path) -> Recipe | None:
    """The recipe of a sentence-transformers folder, or None where its files ask for anything else."""
    settings = folder / "sentence_bert_config.json"
    if not (folder / "modules.json").exists() or not settings.exists() or not (folder / "tokenizer.json").exists():
        return None
    modules = read_json(folder / "modules.json")
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    paths = [str(module.get("path", "")) for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]) or paths[0] != "":
        return None
    if _json(folder / "config.json").get("model_type") not in MODEL_TYPES:
        return None
    if _json(folder / "config_sentence_transformers.json").get("default_prompt_name"):
        return None
    pooling = _pooling(_json(folder / paths[1] / "config.json"))
    limit = _limit(folder, read_settings(settings))
    return None if pooling is None or limit is None else Recipe(pooling, limit)


def _json(file: Path) -> dict[str, Any]:
    return read_settings(file) if file.exists() else {}


def _pooling(values: dict[str, Any]) -> Pooling | None:
    mode = values.get("pooling_mode")
    if mode is None:
        on = [key for key, value in values.items() if key.startswith("pooling_mode_") and value]
        return OLD_POOLINGS.get(on[0]) if len(on) == 1 else None
    if isinstance(mode, list) and len(mode) == 1:
        mode = mode[0]
    return POOLINGS.get(mode) if isinstance(mode, str) else None


def _limit(folder: Path, settings: dict[str, Any]) -> int | None:
    """The largest number of tokens of a text, as sentence-transformers determines it."""
    if any(key != "max_seq_length" and DEFAULTS.get(key, ...) != value for key, value in settings.items()):
        return None
    limit = settings.get("max_seq_length")
    if limit is None:
        files = {"tokenizer_config.json": "model_max_length", "config.json": "max_position_embeddings"}
        limits = [_json(folder / name).get(key) for name, key in files.items()]
        limit = min((value for value in limits if isinstance(value, int | float)), default=UNBOUNDED)
    return int(limit) if isinstance(limit, int) and 2 < limit < UNBOUNDED else None


# ---- tables of token vectors


class StaticEncoder(SentenceEncoder):
    """An encoder that is a table: the vector of a text is the mean of its tokens' (model2vec, StaticEmbedding).

    There is no forward pass, so a text takes microseconds, and only numpy is needed.
    """

    backend = "static"

    def __init__(self, files: ModelFiles) -> None:
        from tokenizers import Tokenizer as TokenizerBackend

        super().__init__(files)
        self._table = static_table(files.folder)
        self._batches = TokenizerBackend.from_file(str(files.folder / "tokenizer.json"))
        self._batches.no_padding()
        self._batches.no_truncation()

    @property
    def limit(self) -> int:
        """Any number of tokens."""
        return self.files.context

    def _embed(self, texts: Sequence[str], progress: Progress) -> Floats:
        progress.start("embedding", len(texts))
        vectors = np.zeros((len(texts), self._table.shape[1]), np.float32)
        for first in range(0, len(texts), TORCH_CHUNK):
            part = list(texts[first : first + TORCH_CHUNK])
            for row, encoding in enumerate(self._batches.encode_batch_fast(part, add_special_tokens=False), first):
                if encoding.ids:
                    vectors[row] = self._table[encoding.ids].mean(0)
            progress.advance(len(part))
        progress.finish()
        unit: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return unit


# ---- OpenVINO


class OpenVinoEncoder(SentenceEncoder):
    """An encoder with a `Recipe`, exported once.

    It reads the tokens that sentence-transformers would (the model's own tokenizer, special tokens and truncation
    included), runs texts of equal length together, so that little is padding, and pools in float32. Batches run side
    by side, one per stream: on two cores that is about a fifth faster than all cores on one batch.

    Raises:
        EngineError: OpenVINO or its exporter is missing, or the export failed.
    """

    backend = "openvino"

    def __init__(
        self, files: ModelFiles, recipe: Recipe, precision: ExportPrecision = "fp32", *, progress: Progress = QUIET
    ) -> None:
        from tokenizers import Tokenizer as TokenizerBackend

        folder = exported(files, "encoder", precision, progress=progress)
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
        own = TokenizerBackend.from_file(str(files.folder / "tokenizer.json"))
        self._batches = without_unknown(own, files.folder)
        self._batches.no_padding()
        self._batches.enable_truncation(recipe.limit)
        # The first inference has to be alone: OpenVINO's Python layer fills a table of number types at its first use,
        # and of two threads there at once one can hold that lock and the other the interpreter's, for ever.
        self._run(self._requests(1), self._batches.encode_batch_fast(["a"]))

    @property
    def limit(self) -> int:
        """The largest number of tokens of a text, special tokens not counted."""
        return self.recipe.limit - int(self._batches.num_special_tokens_to_add(is_pair=False))

    def _embed(self, texts: Sequence[str], progress: Progress) -> Floats:
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
        """The unit vectors of one batch of tokenized texts."""
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


# ---- sentence-transformers

TRIED = ("a", "opening hours", "why is the lamp in the hall of the old house by the river still broken today")


def rows_together(size: int, run: Callable[[int], Any], *, full: bool) -> int:
    """How many rows may share a pass: `size`, or 1 where padding changes what a row gives (Doge, recurrent layers).

    `run` gives scores or vectors of as many texts as TRIED has, given how many share a pass; `full` says whether they
    are computed in full precision.
    """
    together, alone = (np.asarray(run(each), np.float32).reshape(len(TRIED), -1) for each in (len(TRIED), 1))
    furthest = np.linalg.norm(together - alone, axis=1).max()
    largest = max(1.0, np.linalg.norm(alone, axis=1).max())
    return size if furthest < (1e-3 if full else 0.05) * largest else 1


def name_padding(tokenizer: Any) -> None:
    """Give a tokenizer without a padding token one, as its library pads even a row that is alone."""
    if getattr(tokenizer, "pad_token", "") is None:  # a table of token vectors pads nothing
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)


class TorchEncoder(SentenceEncoder):
    """A sentence-transformers model; its own folder defines pooling and normalization.

    Raises:
        EngineError: sentence-transformers is not installed.
    """

    backend = "torch"

    def __init__(self, files: ModelFiles, *, device: str = "auto") -> None:
        with needed_by("a sentence encoder", error=EngineError):
            import torch
            import transformers
            from sentence_transformers import SentenceTransformer

            from rung.engines.apart import mend
        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        super().__init__(files)
        try:
            self._model: Any = SentenceTransformer(
                str(files.folder), device=None if device == "auto" else device, local_files_only=True,
                trust_remote_code=False,
            )  # fmt: skip
        except Exception as error:  # every module of the library checks its own settings in its own way
            problem = f"{files.name}: sentence-transformers cannot load it: {first_line(error)}"
            raise ModelError("model-unsupported", problem, hint="choose another encoder") from error
        if isinstance(own := self._model.tokenizer, transformers.PreTrainedTokenizerFast):
            own._tokenizer = without_unknown(own._tokenizer, files.folder)
        mend(self._model)
        name_padding(self._model.tokenizer)
        full = next(self._model.parameters()).dtype == torch.float32
        self._together = rows_together(TORCH_BATCH, self._tried, full=full)

    def _tried(self, together: int) -> Any:
        options = {"batch_size": together, "normalize_embeddings": True, "show_progress_bar": False}
        return self._model.encode(list(TRIED), **options)

    @property
    def limit(self) -> int:
        """The largest number of tokens of a text, special tokens not counted."""
        return int(self._model.max_seq_length) - int(self._model.tokenizer.num_special_tokens_to_add(pair=False))

    def _embed(self, texts: Sequence[str], progress: Progress) -> Floats:
        progress.start("embedding", len(texts))
        options: dict[str, Any] = {
            "batch_size": self._together, "normalize_embeddings": True, "show_progress_bar": False
        }  # fmt: skip
        parts = [] if texts else [self._model.encode([""], **options)[:0]]  # no texts: an empty array of this dimension
        for first in range(0, len(texts), TORCH_CHUNK):
            chunk = list(texts[first : first + TORCH_CHUNK])
            parts.append(self._model.encode(chunk, **options))
            progress.advance(len(chunk))
        progress.finish()
        vectors: Floats = np.concatenate(parts).astype(np.float32)
        return vectors
