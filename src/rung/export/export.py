"""A tuned artifact's weights as other programs read them: a PEFT folder, a Hugging Face folder, OpenVINO, GGUF."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from rung.artifact.artifact import Artifact
from rung.artifact.parts import BASE
from rung.engines import openvino_export
from rung.engines.changes import BASE_FINGERPRINT
from rung.errors import ArtifactError, ConfigError
from rung.export.card import Evidence, ExportFormat, hub_id, model_card
from rung.export.gguf import write_gguf
from rung.export.merge import Difference, check_new, copy_settings, measure, tuned_weights, write_model
from rung.models.cache import publish
from rung.models.reference import ModelFiles, resolve
from rung.progress import QUIET, Progress
from rung.yamlfile import read_object

if TYPE_CHECKING:
    from rung.engines.openvino_export import ExportPrecision
    from rung.export.gguf import GgufPrecision

PRECISIONS: dict[ExportFormat, tuple[str, ...]] = {  # the first is the default
    "peft": (), "huggingface": (), "openvino": ("int8", "int4", "fp32"), "gguf": ("f16", "q8_0", "f32"),
}  # fmt: skip


class Exported(NamedTuple):
    """A finished export; the difference is that of merging, where the change was merged."""

    precision: str | None
    difference: Difference | None


def merge(
    artifact: Artifact, folder: Path, *, rows: Sequence[Mapping[str, Any]] = (), source: str = "",
    known: Evidence | None = None, progress: Progress = QUIET,
) -> Difference:  # fmt: skip
    """Write FOLDER/model, a Hugging Face folder, and FOLDER/artifact, which uses it and needs no adapter.

    For the other arguments and the errors see `export`.
    """
    tuned_weights(artifact)
    decoder = artifact.decoder.merged()
    check_new(folder)
    model = folder.absolute() / "model"
    done = export(artifact, "huggingface", model, rows=rows, source=source, known=known, progress=progress)
    assert done.difference is not None
    settings = {"base": artifact.model, **asdict(done.difference)}
    artifact.step("merge", settings, model=str(model), weights=BASE, decoder=decoder).save(model.parent / "artifact")
    return done.difference


def export(
    artifact: Artifact, form: ExportFormat, folder: Path, *, precision: str | None = None,
    rows: Sequence[Mapping[str, Any]] = (), source: str = "", known: Evidence | None = None,
    identity: str = "", progress: Progress = QUIET,
) -> Exported:  # fmt: skip
    """Write the tuned weights and a model card into a new folder, completely or not at all.

    Args:
        artifact: with tuned weights.
        form: `peft` writes the adapter alone; the others merge it into the base model.
        folder: a new folder.
        precision: of `openvino` (int8, int4 or fp32) or `gguf` (f16, q8_0 or f32); by default the first of these.
        rows: those on whose prompts the difference by merging is measured (see `rung.export.merge.measure`).
        source: where the rows came from, for people.
        known: what the artifact's climb measured, for the model card.
        identity: the fingerprint of the artifact's folder, for the model card; by default it is computed.
        progress: shows every step.

    Raises:
        ArtifactError: `file-exists` or `export-unsupported`.
        ConfigError: `bad-option`: this format has no such precision.
        EngineError: the model cannot be exported (`export-failed`, `export-unsupported`).
        TrainingError: `export-unsupported`: no weights of the base model have the same effect.
    """
    precision = _precision(form, precision)
    tuned_weights(artifact)
    check_new(folder)
    files = resolve(artifact.model)
    difference: Difference | None = None

    def write_merged(target: Path) -> None:
        nonlocal difference
        write_model(artifact, target)
        difference = measure(artifact, target, rows, source, progress=progress)

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
        text = model_card(
            artifact, files, form, identity=identity or artifact.fingerprint(), file=file,
            merged=str(difference or ""), known=known,
        )  # fmt: skip
        (target / "README.md").write_text(text, "utf-8")

    publish(folder, build)
    return Exported(precision, difference)


def _precision(form: ExportFormat, precision: str | None) -> str | None:
    choices = PRECISIONS[form]
    if precision is None:
        return choices[0] if choices else None
    if precision not in choices:
        hint = f"choose {', '.join(choices)}" if choices else "leave it out: the weights stay as they were trained"
        raise ConfigError("bad-option", f"--precision {precision} with --to {form}", hint=hint)
    return precision


def _write_peft(artifact: Artifact, files: ModelFiles, folder: Path) -> None:
    """Write PEFT's two files: with the base model's name where the Hub has it, without what only Rung reads."""
    source = Path(tuned_weights(artifact))
    if not (source / "adapter_config.json").is_file():
        hint = "export the merged model: `--to huggingface`"
        raise ArtifactError("export-unsupported", f"{artifact.weights.method} has no form that PEFT reads", hint=hint)
    values = read_object(source / "adapter_config.json")
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
    copy_settings(model, target)
    return openvino_export.GRAPH
