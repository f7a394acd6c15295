"""A tuned artifact's weights as other programs read them: a PEFT folder, a Hugging Face folder, OpenVINO, GGUF."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rung.artifact.artifact import Artifact
from rung.engines import openvino_export
from rung.engines.changes import BASE_FINGERPRINT
from rung.errors import ArtifactError, ConfigError
from rung.export import merge
from rung.export.card import Evidence, ExportFormat, hub_id, model_card
from rung.export.gguf import write_gguf
from rung.models.cache import publish
from rung.models.reference import ModelFiles, resolve
from rung.progress import QUIET, Progress

if TYPE_CHECKING:
    from rung.engines.openvino_export import ExportPrecision
    from rung.export.gguf import GgufPrecision

PRECISIONS: dict[ExportFormat, tuple[str, ...]] = {  # the first is the default
    "peft": (), "huggingface": (), "openvino": ("int8", "fp32"), "gguf": ("f16", "q8_0", "f32"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Exported:
    """A finished export; the difference is that of merging, where the change was merged."""

    form: ExportFormat
    folder: Path
    precision: str | None
    difference: merge.Difference | None


def export(
    artifact: Artifact,
    form: ExportFormat,
    folder: Path,
    *,
    precision: str | None = None,
    rows: Sequence[Mapping[str, Any]] = (),
    source: str = "",
    known: Evidence | None = None,
    progress: Progress = QUIET,
) -> Exported:
    """Write the tuned weights and a model card into a new folder, completely or not at all.

    Args:
        artifact: with tuned weights.
        form: `peft` writes the adapter alone; the others merge it into the base model.
        folder: a new folder.
        precision: of `openvino` (int8 or fp32) or `gguf` (f16, q8_0 or f32); by default the first of these.
        rows: rows whose prompts the difference by merging is measured on (see `rung.export.merge.merge`).
        source: where the rows came from, for people.
        known: what the artifact's climb measured, for the model card.
        progress: shows every step.

    Raises:
        ArtifactError: `file-exists` or `export-unsupported`.
        ConfigError: `bad-option`: this format has no such precision.
        EngineError: the model cannot be exported (`export-failed`, `export-unsupported`).
        TrainingError: `export-unsupported`: no weights of the base model have the same effect.
    """
    precision = _precision(form, precision)
    merge.tuned_weights(artifact)
    merge.check_new(folder)
    files = resolve(artifact.model)
    differences: list[merge.Difference] = []

    def write_merged(target: Path) -> None:
        merge.write_model(artifact, target)
        differences.append(merge.measure(artifact, target, rows, source, progress=progress))

    def build(target: Path) -> None:
        file = ""
        if form == "peft":
            _write_peft(artifact, files, target)
        elif form == "huggingface":
            write_merged(target)
        else:
            with tempfile.TemporaryDirectory(prefix=".merged-", dir=target.parent) as scratch:
                write_merged(Path(scratch))
                file = _convert(Path(scratch), form, str(precision), files, target, progress)
        difference = str(differences[0]) if differences else ""
        text = model_card(artifact, files, form, file=file, merged=difference, known=known)
        (target / "README.md").write_text(text, "utf-8")

    publish(folder, build)
    return Exported(form, folder, precision, differences[0] if differences else None)


def _precision(form: ExportFormat, precision: str | None) -> str | None:
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
    source = Path(merge.tuned_weights(artifact))
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


def _convert(
    model: Path, form: ExportFormat, precision: str, files: ModelFiles, target: Path, progress: Progress
) -> str:
    """Convert a merged model to OpenVINO or GGUF; returns the name of the file to load."""
    if form == "gguf":
        file = target / f"model-{precision}.gguf"
        kind = cast("GgufPrecision", precision)
        write_gguf(model, file, precision=kind, name=files.name, licence=files.licence, progress=progress)
        return file.name
    weights = cast("ExportPrecision", precision)
    openvino_export.export_folder(model, target, files.name, "causal", weights, progress=progress)
    merge.copy_settings(model, target)
    return openvino_export.GRAPH
