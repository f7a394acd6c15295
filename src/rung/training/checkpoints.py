"""The state of a training run on disk, so that a killed run resumes bit for bit.

Each run has a folder, named by the hash of all that its result depends on, with a folder for each checkpoint:

    step-00000120/state.safetensors    weights, optimizer, random generator, best weights so far
    step-00000120/state.json           position, losses, evaluations
    step-00000120/manifest.json        sha256 of both, written last

The folder is removed once the run's result is written. A full disk leaves the earlier checkpoint as it was.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rung.errors import ConfigError
from rung.models.cache import file_sha256, publish, training_dir
from rung.models.files import writing
from rung.training.changes import write_tensors
from rung.yamlfile import read_object

MANIFEST = "manifest.json"


@dataclass(slots=True)
class RunState:
    """What a run has to remember: named tensors, and JSON values."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoints of one run, in its folder; the `keep` newest ones stay."""

    folder: Path
    keep: int = 2

    @classmethod
    def of(cls, identity: Mapping[str, Any]) -> Checkpoints:
        """The checkpoints of the run with this identity (a JSON value); see `rung.models.cache.training_dir`."""
        text = json.dumps(identity, sort_keys=True)
        return cls(training_dir() / hashlib.sha256(text.encode()).hexdigest()[:32])

    def save(self, step: int, state: RunState) -> Path:
        """Write the state after `step` steps, then remove the oldest checkpoints.

        Raises:
            MachineError: `write-failed`: the disk is full or not writable; earlier checkpoints are untouched.
        """

        def build(folder: Path) -> None:
            write_tensors(state.tensors, folder / "state.safetensors")
            (folder / "state.json").write_text(json.dumps(state.values), "utf-8")
            hashes = {file.name: file_sha256(file) for file in sorted(folder.iterdir())}
            (folder / MANIFEST).write_text(json.dumps(hashes), "utf-8")

        target = self.folder / f"step-{step:08d}"
        with writing(f"the checkpoint of step {step}", self.folder):
            if target.exists():
                shutil.rmtree(target)
            publish(target, build)
        for old in self._all()[: -self.keep]:
            shutil.rmtree(old)
        return target

    def last(self) -> tuple[int, RunState] | None:
        """The newest intact checkpoint as (steps done, state); damaged ones are removed."""
        from safetensors.torch import load_file

        for folder in reversed(self._all()):
            if _intact(folder):
                values = json.loads((folder / "state.json").read_text("utf-8"))
                state = RunState(load_file(folder / "state.safetensors"), values)
                return int(folder.name.removeprefix("step-")), state
            shutil.rmtree(folder)
        return None

    def clear(self) -> None:
        """Remove the run's folder."""
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))


def _intact(folder: Path) -> bool:
    if not (folder / MANIFEST).is_file():
        return False
    try:
        hashes = read_object(folder / MANIFEST)
    except ConfigError:
        return False
    return all((folder / name).is_file() and file_sha256(folder / name) == digest for name, digest in hashes.items())
