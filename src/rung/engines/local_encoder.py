"""What sentence encoders on this machine share: the model's own facts and its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rung.models.hub import read_json
from rung.models.reference import ModelFiles
from rung.models.tokenizer import Tokenizer


class LocalEncoder:
    """The part of a sentence encoder that is the same whatever runs the folder."""

    def __init__(self, files: ModelFiles) -> None:
        self.files = files
        self.tokenizer = Tokenizer.load(files.folder)

    @property
    def fingerprint(self) -> str:
        """Changes when vectors may; backends agree to rounding, so which one runs is no part of it."""
        return self.files.fingerprint

    @property
    def parameters(self) -> int:
        """Number of weights, for cost estimates."""
        return self.files.parameters

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the token ids of `text`, no special tokens added."""
        return self.tokenizer.encode_plain(text)


# --------------------
# What the files of a sentence-transformers folder say about how texts become vectors, where it is simple enough.
#
# sentence-transformers composes modules (`modules.json`). One composition covers most encoders: a transformer, one
# pooling over its last hidden states, and perhaps a normalization to unit length. That one is read here, exactly; any
# setting that is not understood means that sentence-transformers itself has to run the model.


Pooling = Literal["mean", "cls", "max"]

MODEL_TYPES = {"bert", "distilbert", "mpnet", "roberta", "xlm-roberta"}  # absolute positions, no task of their own
POOLINGS: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "max": "max"}
OLD_POOLINGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
}
# Newer folders write these settings out; only their defaults are what is computed here.
DEFAULTS: dict[str, Any] = {
    "do_lower_case": False,
    "transformer_task": "feature-extraction",
    "module_output_name": "token_embeddings",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "processing_kwargs": {},
    "unpad_inputs": None,
}
UNBOUNDED = 10**6  # tokenizers without a limit write 1e30


@dataclass(frozen=True, slots=True)
class Recipe:
    """Truncate to `limit` tokens (special ones included), run, pool over tokens, scale to unit length."""

    pooling: Pooling
    limit: int


def read_recipe(folder: Path) -> Recipe | None:
    """Return the recipe of a sentence-transformers folder, or None where its files ask for anything else."""
    settings = folder / "sentence_bert_config.json"
    if not (folder / "modules.json").exists() or not settings.exists() or not (folder / "tokenizer.json").exists():
        return None
    paths = _paths(read_json(folder / "modules.json"))
    if paths is None or _json(folder / "config.json").get("model_type") not in MODEL_TYPES:
        return None
    if _json(folder / "config_sentence_transformers.json").get("default_prompt_name"):
        return None
    pooling = _pooling(_json(folder / paths[1] / "config.json"))
    limit = _limit(folder, read_json(settings))
    return None if pooling is None or limit is None else Recipe(pooling, limit)


def _json(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = read_json(file) if file.exists() else {}
    return content


def _paths(modules: Any) -> list[str] | None:
    """Return the folders of the transformer and the pooling, where there is nothing else but a normalization."""
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    paths = [str(module.get("path", "")) for module in modules]
    simple = kinds in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]) and paths[0] == ""
    return paths if simple else None


def _pooling(values: dict[str, Any]) -> Pooling | None:
    mode = values.get("pooling_mode")
    if mode is None:
        on = [key for key, value in values.items() if key.startswith("pooling_mode_") and value]
        return OLD_POOLINGS.get(on[0]) if len(on) == 1 else None
    if isinstance(mode, list) and len(mode) == 1:
        mode = mode[0]
    return POOLINGS.get(mode) if isinstance(mode, str) else None


def _limit(folder: Path, settings: dict[str, Any]) -> int | None:
    """Return the most tokens of a text, as sentence-transformers finds it."""
    if any(key != "max_seq_length" and DEFAULTS.get(key, ...) != value for key, value in settings.items()):
        return None
    limit = settings.get("max_seq_length")
    if limit is None:
        ends = (
            _json(folder / "tokenizer_config.json").get("model_max_length"),
            _json(folder / "config.json").get("max_position_embeddings"),
        )
        limit = min((end for end in ends if isinstance(end, int | float)), default=UNBOUNDED)
    return int(limit) if isinstance(limit, int) and 2 < limit < UNBOUNDED else None
