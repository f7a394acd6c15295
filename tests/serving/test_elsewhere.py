import json
from dataclasses import replace

import pytest
from running_server import text_artifact

from changed_weights import tuned
from rung.artifact.artifact import Artifact
from rung.artifact.text import Generate
from rung.engines.opening import open_torch
from rung.errors import ArtifactError, TrainingError
from rung.export.servers import export_for, server_name
from rung.training.adapters import Bottleneck
from rung.training.peft import PeftAdapter, peft
from templates import published, with_template

ROWS = [{"text": text} for text in ("Where is my card?", "It was two days late.", "a b c")]


def dora(model):
    config = peft().LoraConfig(r=4, use_dora=True, init_lora_weights=False, target_modules="all-linear")
    return PeftAdapter(model, config)


def test_vllm_gets_the_model_and_the_artifact_asks_it_there(tiny_folder, tmp_path):
    from transformers import AutoModelForCausalLM

    artifact = text_artifact(tiny_folder)
    command = export_for("vllm", artifact, tmp_path / "out")
    assert command == "vllm serve ./model --served-model-name notes --generation-config vllm"
    assert command in (tmp_path / "out" / "README.md").read_text()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model").config.vocab_size == 49152
    there = Artifact.load(tmp_path / "out" / "artifact")
    assert there.model == "http://localhost:8000/v1#notes"
    assert (there.prompt, there.decoder) == (artifact.prompt, artifact.decoder)
    assert there.weights.reference is None
    with pytest.raises(ArtifactError) as full:
        export_for("vllm", artifact, tmp_path / "out")
    assert full.value.code == "file-exists"


def test_tuned_weights_are_in_what_vllm_reads_and_greedy_text_is_the_artifact_s(tiny_folder, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    artifact = tuned(text_artifact(tiny_folder), dora, "dora")
    export_for("vllm", artifact, tmp_path / "out")
    folder = tmp_path / "out" / "model"
    assert not list(folder.glob("adapter*"))
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    for row in ROWS:
        text = tokenizer.apply_chat_template(list(artifact.messages(row)), tokenize=False, add_generation_prompt=True)
        read = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        assert tuple(read.input_ids[0].tolist()) == open_torch(str(tiny_folder)).tokens(artifact.messages(row))
        with torch.inference_mode():
            written = model.generate(**read, max_new_tokens=12, do_sample=False, pad_token_id=2)
        answer = tokenizer.decode(written[0, read.input_ids.shape[1] :], skip_special_tokens=True).strip()
        assert answer == artifact.predict([row])[0].text
        assert answer != text_artifact(tiny_folder).predict([row])[0].text


def test_what_no_weights_of_the_base_model_equal_is_not_exported(tiny_folder, tmp_path):
    artifact = tuned(text_artifact(tiny_folder), lambda model: Bottleneck(model, 4, "houlsby"), "bottleneck")
    for server in ("vllm", "ollama", "kserve"):
        with pytest.raises(TrainingError) as caught:
            export_for(server, artifact, tmp_path / "out")
        assert caught.value.code == "export-unsupported"
        assert not (tmp_path / "out").exists()


def test_a_server_s_name_of_a_task_is_one_of_kubernetes():
    names = ("20 Newsgroups", "Größe!", "notes", "--", "a" * 49 + "-b")
    assert [server_name(name) for name in names] == ["task-20-newsgroups", "gr-e", "notes", "task", "a" * 49]


def test_kserve_gets_a_service_that_names_the_model(tiny_folder, tmp_path):
    export_for("kserve", text_artifact(tiny_folder), tmp_path / "out")
    service = json.loads((tmp_path / "out" / "inferenceservice.json").read_text())
    model = service["spec"]["predictor"]["model"]
    assert service["metadata"]["name"] == "notes"
    assert model["args"] == ["--model_name=notes", "--max_model_len=512", "--generation-config=vllm"]
    assert Artifact.load(tmp_path / "out" / "artifact").model.endswith("/openai/v1#notes")


def test_ollama_gets_one_file_and_a_modelfile(tiny_folder, tmp_path):
    from gguf import GGUFReader

    export_for("ollama", text_artifact(tiny_folder), tmp_path / "out")
    lines = (tmp_path / "out" / "Modelfile").read_text().splitlines()
    assert lines[0] == "FROM ./model.gguf"
    assert 'SYSTEM """Say something about this."""' in lines
    assert len(GGUFReader(tmp_path / "out" / "model.gguf").tensors) > 0
    assert not (tmp_path / "out" / "model").exists()
    assert Artifact.load(tmp_path / "out" / "artifact").decoder == Generate(12)


def test_an_artifact_that_thinks_thinks_in_ollama(tiny_folder, tmp_path):
    artifact = text_artifact(with_template(tiny_folder, tmp_path / "model", published("qwen3")))
    for thinking, empty in (("off", True), ("on", False)):
        one = replace(artifact, prompt=replace(artifact.prompt, thinking=thinking))
        export_for("ollama", one, tmp_path / thinking)
        (template,) = (s for s in (tmp_path / thinking / "Modelfile").read_text().splitlines() if s[:8] == "TEMPLATE")
        assert template.endswith('<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n" }}"""') is empty
        assert template.endswith('<|im_start|>assistant\\n" }}"""') is not empty


def test_what_another_server_cannot_answer_is_refused(artifacts, tmp_path):
    def refused(server, name):
        with pytest.raises(ArtifactError) as error:
            export_for(server, Artifact.load(artifacts[name]), tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return error.value.code

    assert refused("vllm", "head") == "export-unsupported"
    assert refused("ollama", "intents") == "export-unsupported"
