"""A tuned artifact's weights as other programs read them: a PEFT folder, a Hugging Face folder, OpenVINO, GGUF."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rung.artifact.artifact import Artifact
from rung.engines import openvino_export
from rung.engines.changes import BASE_FINGERPRINT
from rung.errors import ArtifactError, ConfigError
from rung.export import merge
from rung.export.card import Evidence, Form, card, hub_id
from rung.export.gguf import write_gguf
from rung.models.cache import publish
from rung.models.reference import ModelFiles, resolve
from rung.progress import QUIET, Progress

if TYPE_CHECKING:
    from rung.engines.openvino_export import ExportPrecision
    from rung.export.gguf import GgufPrecision

PRECISIONS: dict[Form, tuple[str, ...]] = {  # the first is the default
    "peft": (),
    "huggingface": (),
    "openvino": ("int8", "fp32"),
    "gguf": ("f16", "q8_0", "f32"),
}


@dataclass(frozen=True, slots=True)
class Exported:
    """A finished export; the difference is that of merging, where the change was merged."""

    form: Form
    folder: Path
    precision: str | None
    difference: merge.Difference | None


def export(
    artifact: Artifact,
    form: Form,
    folder: Path,
    *,
    precision: str | None = None,
    rows: Sequence[Mapping[str, Any]] = (),
    source: str = "",
    known: Evidence | None = None,
    progress: Progress = QUIET,
) -> Exported:
    """Write the tuned weights and a model card into a new folder, at once or not at all.

    Args:
        artifact: with tuned weights.
        form: `peft` writes the adapter alone; the others merge it into the base model.
        folder: a new folder.
        precision: of `openvino` (int8 or fp32) or `gguf` (f16, q8_0 or f32); without, the first of these.
        rows: whose prompts the difference by merging is measured on (see `rung.export.merge.merge`).
        source: where the rows came from, for people.
        known: what its climb measured, for the card.
        progress: told of every step.

    Raises:
        ArtifactError: `file-exists` or `export-unsupported`.
        ConfigError: `bad-option`: this form has no such precision.
        EngineError: the model cannot be exported (`export-failed`, `export-unsupported`).
        TrainingError: `export-unsupported`: no weights of the base model have the same effect.
    """
    precision = _precision(form, precision)
    merge.tuned(artifact)
    merge.check_new(folder)
    files = resolve(artifact.model)
    found: list[merge.Difference] = []

    def merged(target: Path) -> None:
        merge.write_model(artifact, target)
        found.append(merge.measure(artifact, target, rows, source, progress=progress))

    def build(target: Path) -> None:
        name = ""
        if form == "peft":
            _write_peft(artifact, files, target)
        elif form == "huggingface":
            merged(target)
        else:
            name = _converted(form, str(precision), files, merged, target, progress)
        text = card(artifact, files, form, file=name, merged=str(found[0]) if found else "", known=known)
        (target / "README.md").write_text(text, "utf-8")

    publish(folder, build)
    return Exported(form, folder, precision, found[0] if found else None)


def _precision(form: Form, precision: str | None) -> str | None:
    choices = PRECISIONS[form]
    if precision is None:
        return choices[0] if choices else None
    if precision not in choices:
        raise ConfigError(
            "bad-option",
            f"--precision {precision} with --to {form}",
            hint=f"choose {', '.join(choices)}" if choices else "leave it out: the weights stay as they were trained",
        )
    return precision


def _write_peft(artifact: Artifact, files: ModelFiles, folder: Path) -> None:
    """Write PEFT's two files: with the base model's name where the Hub has it, without what only Rung reads."""
    source = Path(merge.tuned(artifact))
    if not (source / "adapter_config.json").is_file():
        raise ArtifactError(
            "export-unsupported",
            f"{artifact.weights.method} has no form that PEFT reads",
            hint="export the merged model: `--to huggingface`",
        )
    values = json.loads((source / "adapter_config.json").read_text("utf-8"))
    values.pop(BASE_FINGERPRINT, None)
    values["base_model_name_or_path"] = hub_id(files)
    (folder / "adapter_config.json").write_text(json.dumps(values, indent=2, sort_keys=True), "utf-8")
    shutil.copyfile(source / "adapter_model.safetensors", folder / "adapter_model.safetensors")


def _converted(
    form: Form, precision: str, files: ModelFiles, merged: Callable[[Path], None], target: Path, progress: Progress
) -> str:
    """Write the merged model, and from it what is asked for; return the name of the file to load."""
    with tempfile.TemporaryDirectory(prefix=".merged-", dir=target.parent) as scratch:
        merged(Path(scratch))
        if form == "gguf":
            name = f"model-{precision}.gguf"
            kind = cast("GgufPrecision", precision)
            write_gguf(
                Path(scratch), target / name, precision=kind, name=files.name, licence=files.licence, progress=progress
            )
            return name
        weights = cast("ExportPrecision", precision)
        openvino_export.export_folder(Path(scratch), target, files.name, "causal", weights, progress=progress)
        merge.copy_settings(Path(scratch), target)
        return openvino_export.GRAPH
