"""The model card of an export: what was trained on what, how well it did, how to load it. Never a row's contents."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rung._version import __version__
from rung.artifact.artifact import Artifact
from rung.models import embedded
from rung.models.reference import ModelFiles, hub_name

Form = Literal["peft", "huggingface", "openvino", "gguf"]

LIBRARIES = {"peft": "peft", "huggingface": "transformers", "openvino": "openvino", "gguf": "gguf"}
RELATIONS = {"peft": "adapter", "huggingface": "finetune", "openvino": "finetune", "gguf": "finetune"}
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what `--max-lora-rank` takes; 16 where nothing is said
LEFT_OUT = {"losses", "evaluations", "continue_from"}  # curves are no settings, and a path means nothing elsewhere


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a finished climb knows of one of its artifacts: the folder's report.json and climb.json."""

    report: dict[str, Any]
    result: dict[str, Any]
    identity: dict[str, Any]


def evidence(folder: Path, name: str) -> Evidence | None:
    """Return what the run folder around an artifact's folder (RUN/rungs/NAME/artifact) says, if there is one."""
    folder = folder.resolve()
    run = folder.parents[2] if len(folder.parents) > 2 else folder
    if folder != run / "rungs" / name / "artifact" or not (run / "report.json").is_file():
        return None
    report = json.loads((run / "report.json").read_text("utf-8"))
    result = next((entry for entry in report["rungs"] if entry["name"] == name), None)
    identity = json.loads((run / "climb.json").read_text("utf-8")) if (run / "climb.json").is_file() else {}
    return None if result is None else Evidence(report, result, identity)


def card(
    artifact: Artifact,
    files: ModelFiles,
    form: Form,
    *,
    file: str = "",
    merged: str = "",
    known: Evidence | None = None,
) -> str:
    """Return the text of a README.md.

    Args:
        artifact: what is exported.
        files: its base model.
        form: of the export.
        file: the name of the file to load, where there is one.
        merged: what merging changed, in words.
        known: what its climb measured.
    """
    title = f"{artifact.signature.task}: {artifact.weights.method}"
    return f"""{_front(artifact, files, form)}
# {title}

{files.name} customized for the task `{artifact.signature.task}` by {artifact.name} with Rung {__version__}.

## Loading

{_loading(files, form, file)}{_with_vllm(artifact, files) if form == "peft" else ""}
## Prompt

The weights are one part of what was measured; the prompt is another. `rung export ARTIFACT --prompt text` writes it.

- instruction: {json.dumps(artifact.prompt.head(), ensure_ascii=False)}
- template: {json.dumps(artifact.prompt.template, ensure_ascii=False)}
- demonstrations: {_demonstrations(artifact)}
- documents: {_documents(artifact)}
- answer: {artifact.decoder.kind}{f", {len(artifact.signature.labels)} labels" if artifact.signature.labels else ""}
- fingerprint: `{artifact.prompt.fingerprint}`

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
    """Return the base model's id on the Hugging Face Hub, where it is known."""
    if (model := embedded.find(files.reference)) is not None:
        return model.source.removeprefix("https://huggingface.co/")
    return hub_name(files.reference)


def _front(artifact: Artifact, files: ModelFiles, form: Form) -> str:
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


def _loading(files: ModelFiles, form: Form, file: str) -> str:
    base = hub_id(files) or "PATH_OF_THE_BASE_MODEL"
    code = {
        "peft": f"""
            from peft import PeftModel
            from transformers import AutoModelForCausalLM

            base = AutoModelForCausalLM.from_pretrained("{base}")
            model = PeftModel.from_pretrained(base, "THIS_FOLDER")
            """,
        "huggingface": """
            from transformers import AutoModelForCausalLM, AutoTokenizer

            model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")
            tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")
            """,
        "openvino": """
            import openvino_genai

            pipeline = openvino_genai.LLMPipeline("THIS_FOLDER", "CPU")
            """,
        "gguf": f"""
            llama-server --model {file} --jinja
            """,
    }
    language = "sh" if form == "gguf" else "python"
    return f"```{language}\n{textwrap.dedent(code[form]).strip()}\n```\n"


def vllm_refusal(settings: Mapping[str, Any]) -> str | None:
    """Return why vLLM does not load an adapter, from its adapter_config.json; None where it does."""
    if settings["peft_type"] != "LORA":
        return f"it loads LoRA adapters alone, and this is {settings['peft_type']}"
    if settings.get("use_dora"):
        return "it does not run DoRA"
    if settings.get("bias", "none") != "none":
        return "it loads no biases"
    if settings.get("modules_to_save"):
        return "it loads no whole modules beside the updates"
    if settings.get("rank_pattern") or settings.get("alpha_pattern"):
        return "it takes one rank and one scale for all layers"
    return None if settings["r"] <= VLLM_RANKS[-1] else f"its ranks end at {VLLM_RANKS[-1]}"


def _with_vllm(artifact: Artifact, files: ModelFiles) -> str:
    assert artifact.weights.reference is not None
    settings = json.loads((Path(artifact.weights.reference) / "adapter_config.json").read_text("utf-8"))
    if (why := vllm_refusal(settings)) is not None:
        return f"\nvLLM does not load it: {why}. Where it can be merged, vLLM serves `rung export --to vllm`.\n"
    base = hub_id(files) or "PATH_OF_THE_BASE_MODEL"
    rank = next(rank for rank in VLLM_RANKS if rank >= settings["r"])
    return (
        f"\n```sh\nvllm serve {base} --enable-lora --max-lora-rank {rank} "
        "--lora-modules tuned=THIS_FOLDER --generation-config vllm\n```\n"
    )


def _documents(artifact: Artifact) -> str:
    looks = artifact.retriever
    if looks is None:
        return "none"
    return f"up to {looks.k} passages before the question, from an index that is no part of these weights"


def _demonstrations(artifact: Artifact) -> str:
    shown = artifact.demonstrations
    return (
        "none" if shown is None else f"{shown.k} of {len(shown.pool)} rows ({shown.selection}); not part of this folder"
    )


def _results(artifact: Artifact, known: Evidence | None) -> str:
    if known is None or known.result["score"] is None:
        return f"Not measured here. The task's metric is {artifact.signature.metric}.\n"
    r = known.result
    lines = [
        "| artifact | metric | score | 95 % interval | rows |",
        "|---|---|---|---|---|",
        f"| {r['name']} | {r['metric']} | {r['score']:.4f} | {_interval(r)} | {r['n']} {r['split']} |",
    ]
    zero = next((e for e in known.report["rungs"] if e["name"] == "zero-shot" and e["score"] is not None), None)
    if zero is not None and zero["split"] == r["split"] and zero["n"] == r["n"]:
        lines.append(
            f"| zero-shot | {r['metric']} | {zero['score']:.4f} | {_interval(zero)} | {zero['n']} {r['split']} |"
        )
    if r["split"] != "test":
        lines += ["", "These rows also chose among the artifacts: the score is optimistic."]
    return "\n".join(lines) + f"\n\nMeasured with {known.report['engine']}, seed {known.report['seed']}.\n"


def _interval(result: dict[str, Any]) -> str:
    return "" if result["low"] is None else f"[{result['low']:.4f}, {result['high']:.4f}]"


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
    return "".join(
        f"- {key}: {value:.6g}\n" if isinstance(value, float) else f"- {key}: {value}\n"
        for key, value in values.items()
        if key not in LEFT_OUT and value is not None
    )
