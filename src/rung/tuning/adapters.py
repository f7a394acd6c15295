"""PEFT adapters: put on a model, written to a folder, read back strictly."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rung.errors import ArtifactError, EngineError
from rung.models.cache import cache_dir, publish

BASE_FINGERPRINT = "rung_base_fingerprint"


@contextmanager
def _quiet_peft() -> Iterator[None]:
    """PEFT warns about things that Rung checks itself, such as a second adapter on the same model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def peft() -> Any:
    """Import PEFT, or say what to install."""
    try:
        with _quiet_peft():
            import peft as library
    except ImportError as missing:
        raise EngineError(
            "missing-extra", f"adapters need {missing.name}", hint="uv pip install 'rung[local]'"
        ) from missing
    return library


def add_adapter(model: Any, config: Any, name: str) -> Any:
    """Return `model` with a fresh adapter `name`, active and trainable; everything else is frozen."""
    library = peft()
    with _quiet_peft():
        if hasattr(model, "peft_config"):
            model.add_adapter(name, config)
        else:
            model = library.get_peft_model(model, config, adapter_name=name)
    model.base_model.enable_adapter_layers()
    model.set_adapter(name)
    return model


def drop_adapter(model: Any, name: str) -> Any:
    """Take an adapter away; return the model as it was before, the plain base model if that was the last one."""
    with _quiet_peft():
        model.delete_adapter(name)
    left = list(model.peft_config)
    if not left:
        return model.unload()
    model.set_adapter(left[0])  # PEFT goes on naming the deleted one as active, and fails at the next call
    return model


def keep_adapter(model: Any, name: str, fingerprint: str) -> Path:
    """Write adapter `name` to Rung's cache under the hash of its contents and return the folder."""
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch, selected_adapters=[name], safe_serialization=True)
        source = Path(scratch) / name
        config = json.loads((source / "adapter_config.json").read_text())
        config[BASE_FINGERPRINT] = fingerprint
        config["base_model_name_or_path"] = ""  # a local path means nothing elsewhere; the fingerprint tells
        text = json.dumps(config, indent=2, sort_keys=True)
        weights = source / "adapter_model.safetensors"
        digest = hashlib.sha256(text.encode() + weights.read_bytes()).hexdigest()
        folder = cache_dir() / "adapters" / digest[:32]

        def build(target: Path) -> None:
            shutil.copyfile(weights, target / weights.name)
            (target / "adapter_config.json").write_text(text)

        publish(folder, build)
    return folder


def attach(model: Any, folder: Path, name: str, *, fingerprint: str) -> Any:
    """Return `model` with the adapter in `folder` beside those it has.

    Raises:
        ArtifactError: the folder holds no safetensors adapter, it was trained on another base model, or tensors are
            missing or unexpected.
    """
    library = peft()
    weights, config_file = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    if not weights.is_file() or not config_file.is_file():
        raise ArtifactError(
            "not-an-adapter",
            f"{folder} holds no adapter_model.safetensors and adapter_config.json",
            hint="pickled adapters (.bin) are not read; save the adapter as safetensors",
        )
    values = json.loads(config_file.read_text())
    made_with = values.pop(BASE_FINGERPRINT, None)
    if made_with is not None and made_with != fingerprint:
        raise ArtifactError(
            "model-mismatch",
            f"the adapter in {folder} was trained on another base model ({made_with[:12]}, not {fingerprint[:12]})",
            hint="open it on the model that it was trained on",
        )
    config = library.PeftConfig.from_peft_type(**values)
    config.inference_mode = True
    model = add_adapter(model, config, name)
    from peft.utils import set_peft_model_state_dict
    from safetensors.torch import load_file

    tensors = load_file(weights)
    _check_tensors(model, name, tensors, folder)
    with _quiet_peft():
        set_peft_model_state_dict(model, tensors, adapter_name=name)
    return model


def _check_tensors(model: Any, name: str, tensors: dict[str, Any], folder: Path) -> None:
    from peft import get_peft_model_state_dict

    expected = {k: tuple(v.shape) for k, v in get_peft_model_state_dict(model, adapter_name=name).items()}
    found = {k: tuple(v.shape) for k, v in tensors.items()}
    if expected != found:
        wrong = sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k))
        model.delete_adapter(name)
        raise ArtifactError(
            "adapter-mismatch",
            f"the adapter in {folder} does not fit: {len(wrong)} tensors missing, unexpected or of another shape, "
            f"first {wrong[0]}",
            hint="open it on the model that it was trained on",
        )
