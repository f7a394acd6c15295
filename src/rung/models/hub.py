"""Models of the Hugging Face Hub: data files only, from the local cache first."""

from __future__ import annotations

import re
from pathlib import Path

from rung.errors import ModelError
from rung.models.cache import offline
from rung.models.safety import check_folder, weights
from rung.progress import QUIET, Progress

WANTED = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "README.md", "LICENSE*"]
# Other copies of the same weights, in other formats or precisions.
UNWANTED = ["onnx/*", "openvino/*", "original/*", "consolidated*", "*.fp16.safetensors", "*.bf16.safetensors"]
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")


def is_hub_id(reference: str) -> bool:
    """Tell whether a reference reads like `org/name` or `org/name@revision`."""
    return HUB_ID.fullmatch(reference) is not None


def ensure(reference: str, *, progress: Progress = QUIET) -> Path:
    """Return the checked snapshot folder of a Hub id, downloading it where the Hub's local cache lacks it.

    A branch that is in the cache is used as it is there; delete it from the cache, or name a revision, to get another.

    Raises:
        ModelError: not cached and offline, no such repository or no access to it, or an unsafe folder.
    """
    name, _, revision = reference.partition("@")
    folder = _download(name, revision or None, local=True)
    if folder is None or not weights(folder):
        if offline():
            raise ModelError(
                "model-not-cached",
                f"{reference} is not in the Hub's local cache, and the network is switched off",
                hint=f"run `rung models pull {reference}` once with the network on (unset RUNG_OFFLINE and HF_HUB_OFFLINE)",
            )
        progress.start(f"downloading {reference} from the Hugging Face Hub")
        folder = _download(name, revision or None, local=False)
        assert folder is not None
        progress.finish()
    check_folder(folder)
    return folder


def _download(name: str, revision: str | None, *, local: bool) -> Path | None:
    """Return the snapshot folder; None where only the local cache is asked and it has none."""
    try:
        import httpx
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as missing:
        raise ModelError(
            "missing-extra", f"models of the Hub need {missing.name}", hint="uv pip install 'rung[local]'"
        ) from missing
    try:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=WANTED, ignore_patterns=UNWANTED, local_files_only=local
            )
        )
    except LocalEntryNotFoundError as absent:
        if local:
            return None
        reason: Exception = absent
    except (HfHubHTTPError, HFValidationError, httpx.HTTPError, OSError) as failed:
        reason = failed
    said = str(reason).strip().splitlines()
    raise ModelError(
        "download-failed",
        f"{name}{f'@{revision}' if revision else ''}: {said[0] if said else type(reason).__name__}",
        hint="check the name, the network, and for gated models that you are logged in (`hf auth login`)",
    ) from reason
