"""Merge a tuned model's change into the base weights, write it as a Hugging Face folder, and measure the difference.

Merging adds rounding: W + BA is rounded once, where the unmerged model adds the two products. How far the logits move
is measured on prompts of the task, with the folder loaded as any other program would.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rung.artifact.artifact import Artifact
from rung.engines.opening import open_torch
from rung.errors import ArtifactError
from rung.models.checkpoint import text_class
from rung.progress import QUIET, Progress
from rung.training.changes import OUTPUT, plain_parameters
from rung.yamlfile import read_bytes, sealed_lines, unreadable

if TYPE_CHECKING:
    import torch

SHARD = "5GB"
COPIED = ("*.json", "*.jinja", "*.txt", "*.model", "LICENSE*", "NOTICE*")  # everything next to the weights,
NOT_COPIED = ("config.json", "*.safetensors.index.json")  # except what the new weights change
PROMPTS = 16  # rows on which the difference is measured
TEXTS = (
    "How do I open an account?",
    "The delivery was two days late and the box was damaged.",
    "On 3 March 1876, Alexander Graham Bell was granted a patent for the telephone (No. 174,465).",
    "def mean(values):\n    return sum(values) / len(values)",
)


@dataclass(frozen=True, slots=True)
class Difference:
    """How far the merged model's logits are from the unmerged one's."""

    largest: float  # absolute difference of one logit, over all positions of the prompts and the whole vocabulary
    mean: float  # of all absolute differences
    agreement: float  # share of the positions at which the most likely next token is the same
    positions: int  # how many there were
    rows: str  # where the prompts came from

    def __str__(self) -> str:
        return (
            f"logits differ by at most {self.largest:.2g} (mean {self.mean:.2g}) from the unmerged model; the same "
            f"next token at {self.agreement:.2%} of {self.positions} positions ({self.rows})"
        )


def tuned_weights(artifact: Artifact) -> str:
    """The reference of the artifact's tuned weights; without any, an ArtifactError, `export-unsupported`."""
    if artifact.weights.reference is None:
        problem = f"{artifact.name} has the weights of {artifact.model} itself: there is nothing to merge or to write"
        hint = "choose an artifact with tuned weights, or use the base model as it is"
        raise ArtifactError("export-unsupported", problem, hint=hint)
    return artifact.weights.reference


def check_new(folder: Path) -> None:
    """Remove an empty folder; any other file or folder is an ArtifactError, `file-exists`."""
    if folder.exists():
        if not folder.is_dir() or any(folder.iterdir()):
            hint = "choose another folder, or remove it first"
            raise ArtifactError("file-exists", f"{folder} exists and is not empty", hint=hint)
        folder.rmdir()


# ---- writing


def write_model(artifact: Artifact, folder: Path) -> None:
    """Write the tuned model into an existing folder, as transformers writes it and any program loads it.

    The numbers have the type that the model ran with, so that nothing is rounded again. An output layer of its own
    (where the base model shares it with the input embeddings) is written as such: `tie_word_embeddings` is false.

    Raises:
        ArtifactError, TrainingError: `export-unsupported`.
    """
    engine = open_torch(artifact.model)
    merged = engine.merged(tuned_weights(artifact))
    state = {name: merged.get(name, p).detach() for name, p in plain_parameters(engine.model).items()}
    config = copy.deepcopy(engine.model.config)
    if OUTPUT in merged and OUTPUT not in state:
        state[OUTPUT] = merged[OUTPUT]
        config.tie_word_embeddings = False
    _save(config, state, engine.model.dtype, folder)
    copy_settings(engine.files.folder, folder)


def _save(config: Any, state: dict[str, torch.Tensor], dtype: Any, folder: Path) -> None:
    """Let a model of the same class without weights write them: PEFT may be inside the one that runs."""
    import torch

    with torch.device("meta"):
        empty = text_class(config.model_type).from_config(config, dtype=dtype, trust_remote_code=False)
    names = {name for name, _ in empty.named_parameters()}
    assert names == state.keys(), names ^ state.keys()
    empty.save_pretrained(folder, state_dict=state, max_shard_size=SHARD)


def copy_settings(source: Path, folder: Path) -> None:
    """Copy tokenizer, chat template, generation settings and licence texts of a model folder."""
    for file in {file for pattern in COPIED for file in source.glob(pattern)}:
        if not any(file.match(pattern) for pattern in NOT_COPIED):
            shutil.copyfile(file, folder / file.name)


# ---- measuring


def known_rows(folder: Path) -> tuple[list[dict[str, Any]], str]:
    """Rows that the climb answered with the artifact in `folder`, and where they are from; else none."""
    predictions = folder.resolve().parent / "predictions.jsonl"
    if not predictions.is_file():
        return [], ""
    rows = islice(sealed_lines(read_bytes(predictions, unreadable(predictions)), predictions), PROMPTS)
    return [row["inputs"] for row in rows], "rows of its climb"


def measure(
    artifact: Artifact, folder: Path, rows: Sequence[Mapping[str, Any]], source: str, *, progress: Progress = QUIET
) -> Difference:
    """Compare the model in `folder` with the unmerged one on the prompts of at most 16 rows.

    Without rows, those are the artifact's demonstrations, or else fixed texts.
    """
    import torch

    from rung.engines.apart import mend

    if not rows:
        rows, source = _own_rows(artifact)
    engine = open_torch(artifact.model)
    prompts = [engine.fitting(artifact.messages(row), 0) for row in rows[:PROMPTS]]
    other = text_class(engine.model.config.model_type).from_pretrained(
        folder, dtype=engine.model.dtype, attn_implementation=engine.model.config._attn_implementation,
        local_files_only=True, trust_remote_code=False,
    ).to(engine.model.device)  # fmt: skip
    mend(other)
    largest, total, count, same, positions = 0.0, 0.0, 0, 0, 0
    progress.start("comparing with the unmerged model", len(prompts))
    with engine.running(artifact.weights.reference) as model, torch.inference_mode():
        for prompt in prompts:
            ids = torch.tensor([prompt], device=model.device)
            ours, theirs = (m(input_ids=ids, use_cache=False).logits[0].float() for m in (model, other))
            apart = (ours - theirs).abs()
            largest, total = max(largest, apart.max().item()), total + apart.double().sum().item()
            count, positions = count + apart.numel(), positions + len(prompt)
            same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
            progress.advance()
    progress.finish()
    return Difference(largest, total / count, same / positions, positions, f"{len(prompts)} prompts: {source}")


def _own_rows(artifact: Artifact) -> tuple[list[Mapping[str, Any]], str]:
    if artifact.demonstrations is not None and artifact.demonstrations.pool:
        return [example.inputs for example in artifact.demonstrations.pool[:PROMPTS]], "its demonstrations"
    chat = artifact.signature.kind == "chat"
    values = [[{"role": "user", "content": text}] if chat else text for text in TEXTS]
    return [dict.fromkeys(artifact.signature.inputs, value) for value in values], "fixed texts"
