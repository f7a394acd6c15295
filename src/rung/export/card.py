"""The model card of an export: the training, the data, the results, and how to load it; never the contents of a row."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rung._version import __version__
from rung.artifact.artifact import Artifact
from rung.evaluation.report.words import TRAINING_DATA, training_data_lines
from rung.models import embedded
from rung.models.checkpoint import text_class
from rung.models.hub import read_settings
from rung.models.reference import ModelFiles, hub_name
from rung.yamlfile import read_object, read_sealed

ExportFormat = Literal["peft", "huggingface", "openvino", "gguf"]

LIBRARIES = {"peft": "peft", "huggingface": "transformers", "openvino": "openvino", "gguf": "gguf"}
RELATIONS = {"peft": "adapter", "huggingface": "finetune", "openvino": "finetune", "gguf": "finetune"}
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what `--max-lora-rank` takes
# Curves are not settings, a path means nothing elsewhere, and the training data are stated without the text of a row.
LEFT_OUT = {"losses", "evaluations", "measures", "continue_from", TRAINING_DATA}


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a finished climb recorded of one of its artifacts: the run folder's report.json and climb.json."""

    report: dict[str, Any]
    result: dict[str, Any]
    identity: dict[str, Any]


def evidence(folder: Path, name: str) -> Evidence | None:
    """Read the run folder around an artifact's folder (RUN/rungs/NAME/artifact), if there is one."""
    folder = folder.resolve()
    run = folder.parents[2] if len(folder.parents) > 2 else folder
    if folder != run / "rungs" / name / "artifact" or not (run / "report.json").is_file():
        return None
    report = read_sealed(run / "report.json")
    result = next((entry for entry in report["rungs"] if entry["name"] == name), None)
    identity = read_sealed(run / "climb.json") if (run / "climb.json").is_file() else {}
    return None if result is None else Evidence(report, result, identity)


def model_card(
    artifact: Artifact, files: ModelFiles, form: ExportFormat, *, identity: str, file: str, merged: str,
    known: Evidence | None,
) -> str:  # fmt: skip
    """The text of a README.md.

    `identity` is the artifact's fingerprint, `file` names the file to load, `merged` says what merging changed,
    `known` is what the climb measured.
    """
    demonstrations = documents = "none"
    if (shown := artifact.demonstrations) is not None:
        demonstrations = f"{shown.k} of {len(shown.pool)} rows ({shown.selection}); not part of this folder"
    if (retriever := artifact.retriever) is not None:
        documents = f"up to {retriever.k} passages before the question, from an index that is not part of this folder"
    return f"""{_front(artifact, files, form)}
# {artifact.signature.task}: {artifact.weights.method}

{files.name} customized for the task `{artifact.signature.task}` by {artifact.name} with Rung {__version__}.

- artifact: `{identity}`

## Loading

{_loading(files, form, file)}{_with_vllm(artifact, files) if form == "peft" else ""}
## Prompt

The weights were measured together with this prompt. `rung export ARTIFACT --prompt text` writes it.

- instruction: {json.dumps(artifact.prompt.head(), ensure_ascii=False)}
- template: {json.dumps(artifact.prompt.template, ensure_ascii=False)}
- demonstrations: {demonstrations}
- documents: {documents}
- answer: {artifact.decoder.kind}{f", {len(artifact.signature.labels)} labels" if artifact.signature.labels else ""}
- prompt: `{artifact.prompt.fingerprint}`

## Results

{_results(artifact, known)}
## Data

{_data(known)}
## Base model

- name: {files.name} ({_origin(files)})
- licence: {files.licence or "unknown: see the base model"}
- parameters: {files.parameters:,}
- fingerprint: `{files.fingerprint}`

## Training

- method: {artifact.weights.method}, {artifact.weights.trainable_parameters:,} trained parameters
{_settings(artifact)}{f"- merged: {merged}" + chr(10) if merged else ""}"""


def hub_id(files: ModelFiles) -> str | None:
    """The base model's id on the Hugging Face Hub, where it is known."""
    if (model := embedded.find(files.reference)) is not None:
        return model.source.removeprefix("https://huggingface.co/")
    return hub_name(files.reference)


def _front(artifact: Artifact, files: ModelFiles, form: ExportFormat) -> str:
    lines = ["---"]
    if files.licence:
        lines.append(f"license: {files.licence}")
    if (base := hub_id(files)) is not None:
        lines += [f"base_model: {base}", f"base_model_relation: {RELATIONS[form]}"]
    lines += [f"library_name: {LIBRARIES[form]}", "tags:", "- rung", f"- {artifact.weights.method}", "---", ""]
    return "\n".join(lines)


def _origin(files: ModelFiles) -> str:
    if (model := embedded.find(files.reference)) is not None:
        return f"{model.source}; {model.about}, so its numbers differ from those on the Hub"
    return hub_name(files.reference) or "a local model"


def _loading(files: ModelFiles, form: ExportFormat, file: str) -> str:
    base = hub_id(files) or "PATH_OF_THE_BASE_MODEL"
    loader = text_class(read_settings(files.folder / "config.json").get("model_type", "")).__name__
    code = {
        "peft": f"""python
            from peft import PeftModel
            from transformers import {loader}

            base = {loader}.from_pretrained("{base}")
            model = PeftModel.from_pretrained(base, "THIS_FOLDER")""",
        "huggingface": f"""python
            from transformers import {loader}, AutoTokenizer

            model = {loader}.from_pretrained("THIS_FOLDER")
            tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")""",
        "openvino": """python
            import openvino_genai

            pipeline = openvino_genai.LLMPipeline("THIS_FOLDER", "CPU")""",
        "gguf": f"""sh
            llama-server --model {file} --jinja""",
    }
    return "```" + re.sub("^ {12}", "", code[form], flags=re.MULTILINE) + "\n```\n"


def vllm_refusal(settings: Mapping[str, Any]) -> str | None:
    """Why vLLM does not load an adapter with this adapter_config.json; None where it does."""
    if settings["peft_type"] != "LORA":
        return f"it loads only LoRA adapters, and this is {settings['peft_type']}"
    if settings.get("use_dora"):
        return "it does not run DoRA"
    if settings.get("bias", "none") != "none":
        return "it does not load biases"
    if settings.get("modules_to_save"):
        return "it does not load whole modules"
    if settings.get("rank_pattern") or settings.get("alpha_pattern"):
        return "it takes one rank and one scale for all layers"
    return None if settings["r"] <= VLLM_RANKS[-1] else f"its ranks end at {VLLM_RANKS[-1]}"


def _with_vllm(artifact: Artifact, files: ModelFiles) -> str:
    assert artifact.weights.reference is not None
    settings = read_object(Path(artifact.weights.reference) / "adapter_config.json")
    if (why := vllm_refusal(settings)) is not None:
        return f"\nvLLM does not load it: {why}. Where it can be merged, vLLM serves `rung export --to vllm`.\n"
    base = hub_id(files) or "PATH_OF_THE_BASE_MODEL"
    rank = next(rank for rank in VLLM_RANKS if rank >= settings["r"])
    return (
        f"\n```sh\nvllm serve {base} --enable-lora --max-lora-rank {rank} "
        "--lora-modules tuned=THIS_FOLDER --generation-config vllm\n```\n"
    )


def _results(artifact: Artifact, known: Evidence | None) -> str:
    if known is None or known.result["score"] is None:
        return f"Not measured here. The task's metric is {artifact.signature.metric}.\n"
    own = known.result
    zero_shot = [
        entry for entry in known.report["rungs"]
        if entry["name"] == "zero-shot" and entry["score"] is not None
        and (entry["split"], entry["n"]) == (own["split"], own["n"])
    ]  # fmt: skip
    lines = ["| artifact | metric | score | 95 % interval | rows |", "|---|---|---|---|---|"]
    for entry in (own, *zero_shot[:1]):
        interval = "" if entry["low"] is None else f"[{entry['low']:.4f}, {entry['high']:.4f}]"
        score = f"{entry['score']:.4f} | {interval} | {entry['n']} {entry['split']}"
        lines.append(f"| {entry['name']} | {own['metric']} | {score} |")
    if own["split"] != "test":
        lines += ["", "These rows also chose among the artifacts: the score is optimistic."]
    return "\n".join(lines) + f"\n\nMeasured with {known.report['engine']}, seed {known.report['seed']}.\n"


def _data(known: Evidence | None) -> str:
    if known is None:
        return "The rows are not recorded with this artifact.\n"
    lines = [f"- {split}: {rows['kept']} rows" for split, rows in known.report["data"]["splits"].items()]
    lines += [
        f"- {key.removesuffix('_fingerprint')} fingerprint: `{known.identity[key]}`"
        for key in ("task_fingerprint", "data_fingerprint")
        if key in known.identity
    ]
    return "\n".join(lines) + "\n"


def _settings(artifact: Artifact) -> str:
    values = artifact.settings.get(artifact.weights.method, {})
    data = values.get(TRAINING_DATA)
    lines = training_data_lines({**data, "supervised": {}}) if data else ()
    return "".join(f"- {line}\n" for line in lines) + "".join(
        f"- {key}: {value:.6g}\n" if isinstance(value, float) else f"- {key}: {value}\n"
        for key, value in values.items()
        if key not in LEFT_OUT and value is not None
    )
