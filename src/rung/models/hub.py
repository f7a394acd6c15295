"""Models of the Hugging Face Hub: from its local cache where they are there, else downloaded; data files only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rung.errors import ModelError, needed_by
from rung.models.cache import offline
from rung.progress import QUIET, Progress

ALLOWED = ["*.json", "*.safetensors", "*.txt", "*.jinja", "tokenizer.model", "README.md", "LICENSE*"]
IGNORED = ["onnx/*", "openvino/*", "original/*", "runs/*", "checkpoint-*/*"]


def ensure(name: str, revision: str | None = None, *, progress: Progress = QUIET) -> Path:
    """Return the snapshot folder of a Hub model, downloading it where the local cache lacks it.

    A model that is in the cache is used as it is, and no connection is attempted.

    Raises:
        ModelError: huggingface-hub is missing, the model is not found, or it is not in the cache and we are offline.
    """
    with needed_by("a Hub model", error=ModelError):
        from httpx import HTTPError
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    if (found := cached(name, revision)) is not None:
        return found
    if offline():
        raise ModelError(
            "model-not-cached",
            f"{name} is not in the local Hub cache, and the network is switched off",
            hint=f"unset RUNG_OFFLINE and HF_HUB_OFFLINE, and run `rung models pull {name}` once",
        )
    progress.start(f"downloading {name} from the Hub")
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=ALLOWED, ignore_patterns=IGNORED))
    except (HfHubHTTPError, LocalEntryNotFoundError, HTTPError, OSError) as failed:
        why = (str(failed).strip() or type(failed).__name__).splitlines()[0]
        raise ModelError(
            "download-failed",
            f"{name} could not be fetched from the Hub: {why}",
            hint="check the name and the network; gated models need a token in HF_TOKEN",
        ) from failed
    progress.finish()
    return folder


def check_online(what: str) -> None:
    """Make sure that the Hub may be asked.

    Raises:
        ModelError: the network is switched off.
    """
    if offline():
        raise ModelError(
            "network-off", f"{what} cannot be fetched: the network is switched off",
            hint="unset RUNG_OFFLINE and HF_HUB_OFFLINE",
        )  # fmt: skip


def facts(name: str) -> dict[str, Any]:
    """Return what the Hub says of a model: parameters, licence, languages, access; None for what it does not say.

    Raises:
        ModelError: huggingface-hub is missing, or the Hub does not know the model or does not answer.
    """
    with needed_by("a Hub model", error=ModelError):
        from httpx import HTTPError
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    try:
        found = HfApi().model_info(name, expand=["safetensors", "cardData", "gated"], timeout=20)
    except (HfHubHTTPError, OfflineModeIsEnabled, HTTPError, OSError) as failed:
        why = (str(failed).strip() or type(failed).__name__).splitlines()[0]
        raise ModelError(
            "download-failed", f"{name}: the Hub does not tell: {why}", hint="check the name and the network"
        ) from failed
    card = found.card_data
    languages = None if card is None else card.get("language")
    licence = None if card is None else card.get("license")
    if licence == "other":
        licence = card.get("license_name") if card is not None else None
    return {
        "parameters": None if found.safetensors is None else found.safetensors.total,
        "licence": licence,
        "languages": [languages] if isinstance(languages, str) else languages,
        "access": None if found.gated is None else "gated" if found.gated else "open",
    }


def cached(name: str, revision: str | None = None) -> Path | None:
    """Return the snapshot folder of a Hub model if the local cache has all of it.

    Raises:
        ModelError: huggingface-hub is missing, or the name cannot be one of the Hub.
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
    """Tell whether a cached snapshot has its configuration and all weights; other tools fetch single files."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = set(json.loads(index.read_text("utf-8")).get("weight_map", {}).values())
        return (folder / "config.json").exists() and all((folder / name).exists() for name in names)
    return (folder / "config.json").exists() and (folder / "model.safetensors").exists()
