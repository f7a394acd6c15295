"""An artifact as a folder: JSON and safetensors only, with a manifest of hashes written last.

artifact.json         every setting; prompt, decoder, where the base model comes from and its fingerprint
demonstrations.json   the pool of solved rows, where there is one
arrays.safetensors    pool vectors, head weights, a table's vectors, where there are any
adapter/              PEFT adapter (adapter_model.safetensors, adapter_config.json), where there is one
encoder/              the fine-tuned sentence encoder of a head, where there is one
members/0, 1, ...     the artifacts that a mixture averages, each a folder like this one
manifest.json         sha256 of each file above; a folder without it is not an artifact

An index of documents stays where it is: it may be large, and changes with the documents. artifact.json holds its place,
its fingerprint when it was measured, and that of its encoder, which is checked.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np

from rung.agents.agent import Agent, agent_from_values, agent_values
from rung.artifact.artifact import Artifact, Shape
from rung.artifact.confidence import Calibration
from rung.artifact.lookup import Nearest
from rung.artifact.parts import Decoder, Generate, Head, LabelScoring, ListScoring, Mixture, Reasoning, Weights
from rung.artifact.sentences import SentenceSelection
from rung.engines.opening import settled
from rung.errors import ArtifactError
from rung.models.cache import file_sha256, publish
from rung.models.reference import is_endpoint, resolve
from rung.prompts.demonstrations import Demonstrations, pool_as_json, pool_from_json
from rung.prompts.overflow import POLICIES, Overflow
from rung.prompts.prompt import Prompt
from rung.retrieval.retriever import LOCATION, Retriever, check_index
from rung.retrieval.store import location_of

FORMAT = 1
MANIFEST = "manifest.json"
ALLOWED = {".json", ".safetensors"}


def save(artifact: Artifact, folder: Path) -> Path:
    """Write `artifact` to `folder` at once or not at all.

    Raises:
        ArtifactError: the folder exists and holds something.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ArtifactError(
            "file-exists", f"{folder} exists and is not empty", hint="choose another folder, or remove it first"
        )
    if folder.exists():
        folder.rmdir()
    final = folder.resolve()
    publish(folder, lambda target: _write(artifact, target, final, final.parent))
    return folder


def _write(artifact: Artifact, folder: Path, final: Path, home: Path) -> None:
    """Write the artifact's files into `folder`, which will stand at `final` in what may be moved together, `home`."""
    from safetensors.numpy import save_file

    arrays: dict[str, Any] = {}
    values: dict[str, Any] = {
        "format": FORMAT,
        "shape": asdict(artifact.shape),
        "model": artifact.model,
        "model_beside": _beside(artifact.model, final, home),
        "model_fingerprint": None if is_endpoint(artifact.model) else resolve(artifact.model).fingerprint,
        "engine": _engine(artifact),
        "overflow": artifact.overflow,
        "path": artifact.path,
        "settings": dict(artifact.settings),
        "prompt": artifact.prompt.as_dict(),
        "prompt_fingerprint": artifact.prompt.fingerprint,
        "decoder": _decoder_values(artifact.decoder, arrays, folder, final, home),
        "weights": {
            "method": artifact.weights.method,
            "adapter": artifact.weights.adapter is not None,
            "trainable_parameters": artifact.weights.trainable_parameters,
            "base": artifact.weights.base,
        },
    }
    if artifact.retriever is not None:
        values["retriever"] = {**asdict(artifact.retriever), "folder": str(artifact.retriever.folder)}
    if (shown := artifact.demonstrations) is not None:
        names = ("selection", "k", "encoder", "token_budget", "diversity", "seed", "order", "sets")
        values["demonstrations"] = {name: getattr(shown, name) for name in names}
        (folder / "demonstrations.json").write_text(json.dumps(pool_as_json(shown.pool), ensure_ascii=False, indent=1))
        if shown.embeddings is not None:
            arrays["demonstrations"] = shown.embeddings
    if arrays:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / "arrays.safetensors")
    if artifact.weights.adapter is not None:
        shutil.copytree(artifact.weights.adapter, folder / "adapter")
    (folder / "artifact.json").write_text(json.dumps(values, ensure_ascii=False, indent=2))
    _write_manifest(folder)


def _beside(reference: str, final: Path, home: Path) -> str | None:
    """Return the way from the artifact to a model folder that stands beside it, so that both may be moved together."""
    model = Path(reference).expanduser().resolve()
    return os.path.relpath(model, final) if model.is_dir() and model.parent == home else None


def _engine(artifact: Artifact) -> str:
    """Return the engine to record: what `auto` stands for here, where text is generated; scores are always torch's."""
    if artifact.weights.base:
        return "torch"
    return (
        settled(artifact.model, artifact.engine)
        if isinstance(artifact.decoder, Generate | Reasoning | Agent)
        else artifact.engine
    )


def _decoder_values(decoder: Decoder, arrays: dict[str, Any], folder: Path, final: Path, home: Path) -> dict[str, Any]:
    """Return the decoder's settings; its arrays go into `arrays`, what is folders into `folder`."""
    if isinstance(decoder, Head):
        arrays["head.weight"], arrays["head.intercept"] = decoder.weight, decoder.intercept
        if decoder.tuned is not None:
            shutil.copytree(decoder.tuned, folder / "encoder")
        return {
            "kind": decoder.kind,
            "labels": decoder.labels,
            "encoder": decoder.encoder,
            "tuned": decoder.tuned is not None,
            "thresholds": decoder.thresholds,
            "confidence": _fitted(decoder),
        }
    if isinstance(decoder, Mixture):
        for number, member in enumerate(decoder.members):
            place = Path("members") / str(number)
            (folder / place).mkdir(parents=True)
            _write(member, folder / place, final / place, home)
        return {
            "kind": decoder.kind,
            "weights": decoder.weights,
            "temperatures": decoder.temperatures,
            "confidence": _fitted(decoder),
        }
    if isinstance(decoder, Nearest):
        arrays["nearest"] = decoder.vectors
        return {
            "kind": decoder.kind, "k": decoder.k, "encoder": decoder.encoder,
            "encoder_fingerprint": resolve(decoder.encoder).fingerprint,
            "rows": [dict(row) for row in decoder.rows], "outputs": decoder.outputs,
        }  # fmt: skip
    if isinstance(decoder, SentenceSelection):
        return {"kind": decoder.kind, **asdict(decoder), "encoder_fingerprint": resolve(decoder.encoder).fingerprint}
    if isinstance(decoder, Agent):
        return agent_values(decoder)
    assert is_dataclass(decoder)  # as every kind is
    return {"kind": decoder.kind, **asdict(decoder)}


def _write_manifest(folder: Path) -> None:
    hashes = {str(file.relative_to(folder)): file_sha256(file) for file in sorted(folder.rglob("*")) if file.is_file()}
    with (folder / MANIFEST).open("w") as out:
        json.dump({"format": FORMAT, "sha256": hashes}, out, indent=2)
        out.flush()
        os.fsync(out.fileno())


def fingerprint(folder: Path) -> str:
    """Return a hash of everything in a saved artifact: that of its manifest, which lists the hash of every file."""
    return file_sha256(folder / MANIFEST)


def fingerprint_unsaved(artifact: Artifact) -> str:
    """Return the fingerprint that `artifact` would have as a folder."""
    with TemporaryDirectory() as folder:
        return fingerprint(save(artifact, Path(folder) / "artifact"))


def load(folder: Path) -> Artifact:
    """Read the artifact in `folder`.

    Raises:
        ArtifactError: the folder is no artifact, a file is missing, changed or not listed, the prompt does not match
            its fingerprint, or the base model is not the one it was made with.
    """
    folder = folder.resolve()
    _check_manifest(folder)
    values = json.loads((folder / "artifact.json").read_text())
    arrays = _arrays(folder / "arrays.safetensors")
    prompt = Prompt.from_dict(values["prompt"])
    if prompt.fingerprint != values["prompt_fingerprint"]:
        raise ArtifactError(
            "artifact-mismatch",
            f"{folder}: this version of Rung renders the prompt of the artifact differently",
            hint="run the climb again, or use the version of Rung that made the artifact",
        )
    beside = values.get("model_beside")
    model = values["model"] if beside is None else str((folder / beside).resolve())
    if values["model_fingerprint"] is not None:
        _check_model(folder, model, values["model_fingerprint"])
    shape = values["shape"]
    weights = values["weights"]
    return Artifact(
        shape=Shape(**{**shape, "inputs": tuple(shape["inputs"]), "labels": tuple(shape["labels"])}),
        model=model,
        engine=values["engine"],
        overflow=_overflow(folder, values),
        path=tuple(values["path"]),
        settings=values["settings"],
        prompt=prompt,
        decoder=_decoder(values["decoder"], arrays, folder),
        demonstrations=_demonstrations(folder, values, arrays),
        retriever=_retriever(folder, values),
        weights=Weights(
            weights["method"],
            folder / "adapter" if weights["adapter"] else None,
            weights["trainable_parameters"],
            weights.get("base", ""),
        ),
    )


def _check_manifest(folder: Path) -> None:
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise ArtifactError(
            "wrong-folder",
            f"{folder} is not an artifact: it has no {MANIFEST}",
            hint="give the folder that `rung climb` or `Artifact.save` wrote",
        )
    listed: Mapping[str, str] = json.loads(manifest.read_text())["sha256"]
    present = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()} - {MANIFEST}
    for name in sorted(present ^ set(listed)):
        state = "is missing" if name in listed else "is not listed in the manifest"
        raise ArtifactError("artifact-damaged", f"{folder}: {name} {state}", hint="copy the whole folder again")
    for name, expected in listed.items():
        if Path(name).suffix not in ALLOWED or not (folder / name).resolve().is_relative_to(folder):
            raise ArtifactError("artifact-damaged", f"{folder}: {name} has no place in an artifact")
        if file_sha256(folder / name) != expected:
            raise ArtifactError("artifact-damaged", f"{folder}: {name} was changed", hint="copy the whole folder again")


def _check_model(folder: Path, reference: str, fingerprint: str) -> None:
    found = resolve(reference).fingerprint
    if found != fingerprint:
        raise ArtifactError(
            "model-mismatch",
            f"{folder} was made with {reference} of fingerprint {fingerprint[:12]}, but here it is {found[:12]}",
            hint="restore that version of the base model, or climb again on this one",
        )


def _arrays(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    from safetensors.numpy import load_file

    arrays: dict[str, Any] = load_file(file)
    return arrays


def _decoder(values: dict[str, Any], arrays: Mapping[str, Any], folder: Path) -> Decoder:
    kind = values["kind"]
    if kind == Agent.kind:
        return agent_from_values(values, folder)
    if kind == Generate.kind:
        choices = tuple(values.get("choices", ()))
        return Generate(values["max_tokens"], values["json_schema"], choices, values.get("regex"))
    if kind == Reasoning.kind:
        return Reasoning(**{**{k: v for k, v in values.items() if k != "kind"}, "texts": tuple(values["texts"])})
    if kind == Nearest.kind:
        _check_model(folder, values["encoder"], values["encoder_fingerprint"])
        rows, outputs = tuple(values["rows"]), tuple(values["outputs"])
        return Nearest(values["k"], values["encoder"], rows, outputs, arrays["nearest"])
    if kind == SentenceSelection.kind:
        _check_model(folder, values["encoder"], values["encoder_fingerprint"])
        return SentenceSelection(values["encoder"], values["share"], values["most"])
    if kind == ListScoring.kind:
        return ListScoring(tuple(values["labels"]), tuple(values["thresholds"]))
    if kind == LabelScoring.kind:
        texts, bias = tuple(values["texts"]), tuple(values["bias"])
        return LabelScoring(tuple(values["labels"]), texts, values["normalization"], bias, _confidence(values))
    if kind == Mixture.kind:
        weights, temperatures = tuple(values["weights"]), tuple(values["temperatures"])
        members = tuple(load(folder / "members" / str(number)) for number in range(len(weights)))
        return Mixture(members, weights, temperatures, _confidence(values))
    return Head(
        tuple(values["labels"]),
        values["encoder"],
        arrays["head.weight"],
        arrays["head.intercept"],
        tuned=folder / "encoder" if values["tuned"] else None,
        thresholds=tuple(values["thresholds"]),
        confidence=_confidence(values),
    )


def _fitted(decoder: Head | Mixture) -> dict[str, Any] | None:
    return None if decoder.confidence is None else asdict(decoder.confidence)


def _confidence(values: Mapping[str, Any]) -> Calibration | None:
    fitted = values.get("confidence")
    return None if fitted is None else Calibration.from_dict(fitted)


def _overflow(folder: Path, values: Mapping[str, Any]) -> Overflow:
    policy = values.get("overflow")
    if policy not in POLICIES:
        raise ArtifactError(
            "artifact-damaged",
            f"{folder}: artifact.json: `overflow` is {policy!r}, not one of {', '.join(POLICIES)}",
            hint="run the climb again, or use the version of Rung that made the artifact",
        )
    return cast("Overflow", policy)


def _demonstrations(folder: Path, values: Mapping[str, Any], arrays: Mapping[str, Any]) -> Demonstrations | None:
    if "demonstrations" not in values:
        return None
    pool = pool_from_json(json.loads((folder / "demonstrations.json").read_text()))
    return Demonstrations(pool=pool, embeddings=arrays.get("demonstrations"), **values["demonstrations"])


def _retriever(folder: Path, values: Mapping[str, Any]) -> Retriever | None:
    """Rebuild the retriever; its index is no part of the folder, so it is checked where it lies."""
    if "retriever" not in values:
        return None
    location = os.environ.get(LOCATION) or values["retriever"]["folder"]
    retriever = Retriever(**{**values["retriever"], "folder": location_of(location)})
    check_index(retriever, folder)
    return retriever
