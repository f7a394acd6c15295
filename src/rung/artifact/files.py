"""An artifact as a folder: JSON and safetensors only, with a manifest of hashes written last.

artifact.json         every setting; prompt, decoder, where the base model comes from and its fingerprint
demonstrations.json   the pool of solved rows, if there is one
arrays.safetensors    pool vectors, head weights, a table's vectors, if there are any
adapter/              PEFT adapter (adapter_model.safetensors, adapter_config.json), if there is one
encoder/              the fine-tuned sentence encoder of a head, if there is one
members/0, 1, ...     the artifacts that an ensemble averages, each a folder like this one
manifest.json         sha256 of each file above; a folder without it is not an artifact

An index of documents is not copied, since it may be large and changes with the documents. artifact.json holds its
location, its fingerprint when it was measured, and the fingerprint of its encoder; loading checks them.
"""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

from rung.errors import ArtifactError
from rung.models.cache import file_sha256
from rung.yamlfile import read_object, read_sealed

FORMAT = 1
MANIFEST = "manifest.json"
ALLOWED = {".json", ".safetensors"}
MAX_FILES = 10_000
MAX_SETTINGS = 64 * 2**20  # bytes of artifact.json and of the manifest


def fingerprint(folder: Path) -> str:
    """Hash the manifest of an artifact, which lists the hash of every file; a run folder stands for its artifact."""
    return file_sha256(artifact_folder(folder) / MANIFEST)


def artifact_folder(folder: Path) -> Path:
    """Find the artifact in a folder: the folder itself, or the recommended artifact of the run folder of a climb.

    Raises:
        ArtifactError: `wrong-folder`: it is a run folder of a climb that has not finished, or that measured nothing.
    """
    report = folder / "report.json"
    if (folder / MANIFEST).is_file() or not (report.is_file() or (folder / "climb.json").is_file()):
        return folder
    if not report.is_file():
        hint = "finish it with `rung climb TASK --resume`, or name an artifact below its folder `rungs`"
        raise ArtifactError("wrong-folder", f"the climb in {folder} recommends nothing yet", hint=hint)
    values = read_sealed(report, partial(damaged, report))
    name = str(values.get("recommended"))
    if any(rung.get("name") == name and rung.get("score") is None for rung in values.get("rungs", ())):
        raise nothing_recommended(folder, name)
    if name in (".", "..") or name != Path(name).name:
        raise damaged(report, "does not name the recommended artifact")
    return folder / "rungs" / name / "artifact"


def nothing_recommended(folder: Path, name: str) -> ArtifactError:
    """The error where a climb ended before it measured the artifact that it began with."""
    problem = f"the climb in {folder} recommends nothing: it did not measure {name}"
    hint = "go on with `rung climb TASK --resume` and more --budget, or name an artifact below its folder `rungs`"
    return ArtifactError("wrong-folder", problem, hint=hint)


def check_new(folder: Path) -> None:
    """Remove an empty folder; raise ArtifactError `file-exists` if it holds something."""
    if folder.exists() and any(folder.iterdir()):
        hint = "choose another folder, or remove it first"
        raise ArtifactError("file-exists", f"{folder} exists and is not empty", hint=hint)
    if folder.exists():
        folder.rmdir()


def write_manifest(folder: Path) -> None:
    """Write the hashes of all files, after the files themselves."""
    hashes = {str(file.relative_to(folder)): file_sha256(file) for file in sorted(folder.rglob("*")) if file.is_file()}
    with (folder / MANIFEST).open("w") as out:
        json.dump({"format": FORMAT, "sha256": hashes}, out, indent=2)
        out.flush()
        os.fsync(out.fileno())


def check_manifest(folder: Path) -> None:
    """Compare every file with its hash in the manifest.

    Raises:
        ArtifactError: the folder is not an artifact, or a file is missing, changed, not listed or not allowed.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        hint = "give the run folder of a finished climb, or the folder that `Artifact.save` wrote"
        raise ArtifactError("wrong-folder", f"{folder} is not an artifact: it has no {MANIFEST}", hint=hint)
    values = read_object(manifest, partial(damaged, manifest), MAX_SETTINGS)
    listed = values.get("sha256")
    if not isinstance(listed, dict) or not all(isinstance(value, str) for value in listed.values()):
        raise damaged(manifest, "lists no hashes")
    if values != {"format": FORMAT, "sha256": listed}:
        raise damaged(manifest, f"is not of format {FORMAT}")
    present = set()
    for number, file in enumerate(folder.rglob("*")):
        if number == MAX_FILES:
            raise damaged(folder, f"holds more than {MAX_FILES:,} files")
        if not file.is_dir():
            present.add(str(file.relative_to(folder)))
    present -= {MANIFEST}
    for name in sorted(present ^ set(listed)):
        state = "is missing" if name in listed else "is not listed in the manifest"
        raise ArtifactError("artifact-damaged", f"{folder}: {name} {state}", hint="copy the whole folder again")
    for name, expected in listed.items():
        if Path(name).suffix not in ALLOWED or not (folder / name).resolve().is_relative_to(folder):
            raise ArtifactError("artifact-damaged", f"{folder}: an artifact may not hold {name}")
        if not (folder / name).is_file() or file_sha256(folder / name) != expected:
            raise ArtifactError("artifact-damaged", f"{folder}: {name} was changed", hint="copy the whole folder again")


def artifact_settings(folder: Path) -> dict[str, Any]:
    """Read artifact.json, which others may have written.

    Raises:
        ArtifactError: `artifact-damaged`.
    """
    file = folder / "artifact.json"
    return read_object(file, partial(damaged, file), MAX_SETTINGS)


def damaged(file: Path, what: str) -> ArtifactError:
    """The error for a damaged file of an artifact."""
    return ArtifactError("artifact-damaged", f"{file} {what}", hint="copy the whole folder again")


def read_arrays(file: Path) -> dict[str, Any]:
    """Read the arrays of an artifact; none if there is no file."""
    if not file.exists():
        return {}
    from safetensors.numpy import load_file

    arrays: dict[str, Any] = load_file(file)
    return arrays
