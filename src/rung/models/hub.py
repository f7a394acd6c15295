"""Models of the Hugging Face Hub, cached or downloaded; and the check that a model folder holds only data."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rung import yamlfile
from rung.errors import ModelError, needed_by
from rung.models.cache import offline
from rung.progress import QUIET, Progress

ALLOWED = ["*.json", "*.safetensors", "*.txt", "*.jinja", "tokenizer.model", "README.md", "LICENSE*"]
IGNORED = ["onnx/*", "openvino/*", "original/*", "runs/*", "checkpoint-*/*", "consolidated*"]  # the same weights again


def ensure(name: str, revision: str | None = None, *, progress: Progress = QUIET) -> Path:
    """The snapshot folder of a Hub model, downloaded where the local cache lacks it.

    A cached model is used without a connection.

    Raises:
        ModelError: huggingface-hub is missing, the model is not found, or it is not in the cache and we are offline.
    """
    with needed_by("a Hub model", error=ModelError):
        from httpx import HTTPError
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    if (snapshot := cached(name, revision)) is not None:
        return snapshot
    if offline():
        problem = f"{name} is not in the local Hub cache, and the network is switched off"
        hint = f"unset RUNG_OFFLINE and HF_HUB_OFFLINE, and run `rung models pull {name}` once"
        raise ModelError("model-not-cached", problem, hint=hint)
    progress.start(f"downloading {name} from the Hub")
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=ALLOWED, ignore_patterns=IGNORED))
    except (HfHubHTTPError, LocalEntryNotFoundError, HTTPError, OSError) as failed:
        hint = "check the name and the network; gated models need a token in HF_TOKEN"
        problem = f"{name} could not be downloaded from the Hub: {first_line(failed)}"
        raise ModelError("download-failed", problem, hint=hint) from failed
    progress.finish()
    return folder


def first_line(error: BaseException) -> str:
    """The first line of an error's text, else its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def facts(name: str) -> dict[str, Any]:
    """The Hub's facts on a model: parameters, licence, languages, access; None for unknown ones.

    Raises:
        ModelError: huggingface-hub is missing, or the Hub does not know the model or does not answer.
    """
    with needed_by("a Hub model", error=ModelError):
        from httpx import HTTPError
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    try:
        info = HfApi().model_info(name, expand=["safetensors", "cardData", "gated"], timeout=20)
    except (HfHubHTTPError, OfflineModeIsEnabled, HTTPError, OSError) as failed:
        problem = f"{name}: the Hub gives no facts: {first_line(failed)}"
        raise ModelError("download-failed", problem, hint="check the name and the network") from failed
    card = info.card_data or {}
    languages, licence = card.get("language"), card.get("license")
    if licence == "other":
        licence = card.get("license_name")
    return {
        "parameters": None if info.safetensors is None else info.safetensors.total,
        "licence": licence,
        "languages": [languages] if isinstance(languages, str) else languages,
        "access": None if info.gated is None else "gated" if info.gated else "open",
    }


def cached(name: str, revision: str | None = None) -> Path | None:
    """The snapshot folder of a Hub model if the local cache has all of it.

    Raises:
        ModelError: huggingface-hub is missing, or the name is not a valid Hub id.
    """
    with needed_by("a Hub model", error=ModelError):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as wrong:
        raise ModelError("unknown-model", str(wrong), hint="a Hub id is org/name or org/name@revision") from wrong
    return folder if _complete(folder) else None


def _complete(folder: Path) -> bool:
    """Whether a cached snapshot has its configuration and all weights; other tools download single files."""
    needed = [folder / "config.json", *(loaded_weights(folder) or [folder / "model.safetensors"])]
    return all(file.exists() for file in needed)


# ---- the check that a model folder holds only data: nothing that runs code when loaded, nothing outside the folder

PICKLES = {
    ".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".cloudpickle", ".npy", ".npz",
}  # fmt: skip
CODE = {".py", ".pyc", ".pyd", ".pyw", ".pyz", ".whl", ".egg", ".so", ".dll", ".dylib"}
VERSION = re.compile(r"\.v?\d+")
PACKED = {".gz", ".bz2", ".xz", ".zst", ".zip"}
# What else a model folder may hold: weights and vocabularies that are data, and what only people read, such as LICENSE.
# Files of other formats (Keras, Flax, ONNX, archives) may hold code or name further files.
DATA = {".safetensors", ".gguf", ".json", ".jsonl", ".txt", ".jinja", ".model", ".tiktoken", ".vocab", ".xml"}
PAPERS = {
    "", ".md", ".rst", ".pdf", ".html", ".csv", ".tsv", ".yaml", ".yml", ".cff", ".bib", ".png", ".jpg", ".jpeg",
    ".gif", ".svg", ".webp", ".log",
}  # fmt: skip
# Vocabularies map arbitrary text to numbers, so the keywords below mean nothing in them.
TEMPLATE_NAME = re.compile(r"[A-Za-z0-9_-]+")
VOCABULARIES = {"tokenizer.json", "vocab.json", "added_tokens.json"}
MAX_ENTRIES = 10_000
COUNTED = re.compile(r"(?:layers?|experts)$")  # keys of config.json
MOST_COUNTED = 16_384  # as many experts as Doge names, which makes no modules of them
# Names that libraries import or take as file names.
MODULE_CLASS = re.compile(r"(?!.{200})sentence_transformers(\.\w+)*\.(models|modules)(\.\w+)*\.[A-Z]\w*")
MODULE_FOLDER = re.compile(r"|\w[\w.-]*(/\w[\w.-]*)*/?")
ACTIVATION = re.compile(r"torch\.nn(\.\w+)*\.[A-Z]\w*|[\w-]+")


def check_folder(folder: Path) -> None:
    """Refuse a model folder that holds more than data, or lacks readable weights.

    Hidden folders (`.git`, `.cache`) are skipped, and no module may be in one.

    Raises:
        ModelError: code, `auto_map`, a foreign class, pickled weights, a pipe or a device, a path out of the folder, no
            safetensors, or a missing shard. The message names the file.
    """
    allowed = [folder.resolve()]  # where links may lead
    if folder.parent.name == "snapshots":  # of the Hub's cache: the blobs are beside it
        allowed.append((folder.parent.parent / "blobs").resolve())
    for number, entry in enumerate(_entries(folder)):
        if number == MAX_ENTRIES:
            raise _refused(folder, f"holds more than {MAX_ENTRIES:,} files")
        if entry.is_symlink() and not any(entry.resolve().is_relative_to(root) for root in allowed):
            raise _refused(entry, f"is a link to {entry.resolve()}, outside the model's folder")
        if not entry.is_file():
            raise _refused(entry, "is no regular file")
        suffixes = [suffix.lower() for suffix in entry.suffixes]
        while len(suffixes) > 1 and (suffixes[-1] in PACKED or VERSION.fullmatch(suffixes[-1])):  # x.pkl.gz, x.so.1
            suffixes.pop()
        suffix = suffixes[-1] if suffixes else ""
        if suffix in CODE:
            raise _refused(entry, "is code; a model folder may hold data only")
        # OpenVINO's weights end in .bin too: they are raw numbers beside their .xml graph.
        openvino = entry.suffix == ".bin" and entry.name.startswith("openvino_") and entry.with_suffix(".xml").exists()
        if suffix in PICKLES and not openvino:
            raise _refused(entry, "can hold pickled objects, which run code when they are loaded")
        if suffix not in DATA | PAPERS and not openvino:
            raise _refused(entry, "is of a format that Rung does not know as data")
        if suffix == ".json" and entry.name not in VOCABULARIES:
            _check_json(folder, entry)
    if (folder / "adapter_config.json").exists() and (folder / "config.json").exists():
        hint = "merge the adapter first, or remove adapter_config.json if the weights are whole"
        problem = f"{folder} holds an adapter beside a model, and would run the adapter's base model"
        raise ModelError("model-unsupported", problem, hint=hint)
    if not weights(folder):
        hint = "convert them with `save_pretrained(folder, safe_serialization=True)`, or choose another repository; of"
        hint += " one with GGUF files, fetch a file (`hf download ORG/NAME FILE.gguf --local-dir .`) and name it"
        if files := sorted(entry for entry in _entries(folder) if entry.suffix.lower() == ".gguf"):
            hint = f"name a GGUF file itself, such as {files[0]}"
        raise ModelError("model-damaged", f"{folder} holds no weights in safetensors format", hint=hint)


def is_static(folder: Path) -> bool:
    """Whether a folder of sentence-transformers holds a table of token vectors, and at most scales their mean."""
    if not (folder / "modules.json").is_file():
        return False
    modules = read_json(folder / "modules.json")
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules if isinstance(module, dict)]
    return kinds in (["StaticEmbedding"], ["StaticEmbedding", "Normalize"])


def weights(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, sorted by path."""
    return sorted(entry for entry in _entries(folder) if entry.suffix == ".safetensors")


def loaded_weights(folder: Path) -> list[Path]:
    """The safetensors files that transformers loads, sorted: model.safetensors, else those of the index.

    A folder may hold the weights a second time, under other names (Mistral's `consolidated.safetensors`).
    """
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists() or not index.exists():
        return sorted(folder.glob("model.safetensors"))
    shards = read_settings(index).get("weight_map")
    return [folder / name for name in sorted(set(map(str, shards.values())))] if isinstance(shards, dict) else []


def head_weights(folder: Path) -> list[Path]:
    """The safetensors files of the modules that sentence-transformers runs after a model, each in its own folder."""
    modules = read_json(folder / "modules.json") if (folder / "modules.json").exists() else []
    paths = [module.get("path") for module in modules if isinstance(module, dict)] if isinstance(modules, list) else []
    return [file for path in paths if path for file in sorted((folder / str(path)).rglob("*.safetensors"))]


def text_settings(folder: Path) -> dict[str, Any]:
    """What config.json says of the language model: all of it, or the part `text_config`; empty without the file."""
    values = read_settings(folder / "config.json") if (folder / "config.json").exists() else {}
    text = values.get("text_config")
    return text if isinstance(text, dict) else values


def read_json(file: Path) -> Any:
    """The content of a JSON file of a model.

    Raises:
        ModelError: it is not JSON.
    """
    return yamlfile.read_json(file, partial(_damaged, file))


def read_settings(file: Path) -> dict[str, Any]:
    """The object in a JSON file of a model, such as config.json.

    Raises:
        ModelError: it is not one.
    """
    return yamlfile.read_object(file, partial(_damaged, file))


def _damaged(file: Path, what: str) -> ModelError:
    return ModelError("model-damaged", f"{file} {what}", hint="download the model again")


def _entries(folder: Path) -> Iterator[Path]:
    """Yield files, and links to folders, below `folder`."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent) / name for name in files)
        yield from (Path(parent) / name for name in folders if (Path(parent) / name).is_symlink())


def _check_json(folder: Path, file: Path) -> None:
    content = read_json(file)
    if _mentions(content, "auto_map"):
        raise _refused(file, "asks for custom code (`auto_map`), which Rung never runs")
    if isinstance(content, dict):
        _check_template_names(file, content.get("chat_template"))
    if file.name == "modules.json":  # sentence-transformers imports the classes that this file names
        if not isinstance(content, list) or not all(isinstance(module, dict) for module in content):
            raise _damaged(file, "is not a list of modules")
        for module in content:
            named, path = (str(module.get(key, "")) for key in ("type", "path"))
            if MODULE_CLASS.fullmatch(named) is None:
                raise _refused(file, f"names the class {named!r}, which is not a module of sentence-transformers")
            if MODULE_FOLDER.fullmatch(path) is None:
                raise _refused(file, f"names the folder {path!r}, which is not a visible one inside the model's folder")
    if not isinstance(content, dict):
        if file.name == "config.json":
            raise _damaged(file, "is not a JSON object")
        return
    if file.name == "config.json":
        _check_counts(file, content)
    if file.name == "router_config.json":
        types = content.get("types")
        for kind in types.values() if isinstance(types, dict) else [types]:
            if MODULE_CLASS.fullmatch(str(kind)) is None:
                raise _refused(file, f"names the class {kind!r}, which is not a module of sentence-transformers")
    if ACTIVATION.fullmatch(str(content.get("activation_function") or "none")) is None:
        raise _refused(file, f"names the function {content['activation_function']!r}, which is not one of torch.nn")
    if file.name.endswith(".index.json"):
        shards = content.get("weight_map", {})
        if not isinstance(shards, dict):
            raise _damaged(file, "has no map of weights")
        for name in sorted({str(value) for value in shards.values()}):
            _check_shard(folder, file, name)


def _check_counts(file: Path, content: Any) -> None:
    """Refuse counts that no model has: transformers makes as many modules, even to look at names and shapes alone."""
    for key, value in content.items() if isinstance(content, dict) else ():
        if isinstance(value, int) and COUNTED.search(key) and value > MOST_COUNTED:
            raise _damaged(file, f"has {key} {value:,}, and at most {MOST_COUNTED:,} can be")
        _check_counts(file, value)


def _check_template_names(file: Path, templates: Any) -> None:
    """Refuse names that are no file names: transformers writes a template that has a name to the file NAME.jinja."""
    if isinstance(templates, dict):
        templates = [{"name": name} for name in templates]
    for template in templates if isinstance(templates, list) else ():
        name = template.get("name") if isinstance(template, dict) else template
        if not isinstance(name, str) or not TEMPLATE_NAME.fullmatch(name):
            raise _refused(file, f"names a chat template {name!r}, which is not of letters, digits, '_' and '-' alone")


def _check_shard(folder: Path, index: Path, name: str) -> None:
    if name != Path(name).name:
        raise _refused(index, f"names {name!r}, which is not a file beside it")
    if not name.endswith(".safetensors"):
        raise _refused(index, f"names {name!r}, which is not in safetensors format")
    if not (index.parent / name).exists():
        hint = "the download or copy was interrupted: download the model again"
        raise ModelError("model-damaged", f"{index} names {name}, which is not in {folder}", hint=hint)


def _mentions(content: Any, key: str) -> bool:
    if isinstance(content, dict):
        return key in content or any(_mentions(value, key) for value in content.values())
    return isinstance(content, list) and any(_mentions(value, key) for value in content)


def _refused(file: Path, why: str) -> ModelError:
    hint = "remove it, or use a repository with safetensors weights: `rung models pull ORG/NAME` fetches data alone"
    return ModelError("model-unsafe", f"{file} {why}", hint=hint)
