import json

import pytest
from running_server import text_artifact

from rung.artifact import Artifact
from rung.errors import ArtifactError
from rung.parts import Generate
from rung.serving.elsewhere import export_for


def test_vllm_gets_the_model_and_the_artifact_asks_it_there(tiny_folder, tmp_path):
    from transformers import AutoModelForCausalLM

    artifact = text_artifact(tiny_folder)
    command = export_for("vllm", artifact, tmp_path / "out")
    assert command == "vllm serve ./model --served-model-name notes"
    assert command in (tmp_path / "out" / "README.md").read_text()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model").config.vocab_size == 49152
    there = Artifact.load(tmp_path / "out" / "artifact")
    assert there.model == "http://localhost:8000/v1#notes"
    assert (there.prompt, there.decoder) == (artifact.prompt, artifact.decoder)
    assert there.weights.reference is None
    with pytest.raises(ArtifactError) as full:
        export_for("vllm", artifact, tmp_path / "out")
    assert full.value.code == "folder-not-empty"


def test_kserve_gets_a_service_that_names_the_model(tiny_folder, tmp_path):
    export_for("kserve", text_artifact(tiny_folder), tmp_path / "out")
    service = json.loads((tmp_path / "out" / "inferenceservice.json").read_text())
    model = service["spec"]["predictor"]["model"]
    assert service["metadata"]["name"] == "notes"
    assert "--model_name=notes" in model["args"]
    assert "--max-model-len=512" in model["args"]
    assert Artifact.load(tmp_path / "out" / "artifact").model.endswith("/openai/v1#notes")


def test_ollama_gets_one_file_and_a_modelfile(tiny_folder, tmp_path):
    from gguf import GGUFReader

    export_for("ollama", text_artifact(tiny_folder), tmp_path / "out")
    assert (tmp_path / "out" / "Modelfile").read_text().splitlines()[0] == "FROM ./model.gguf"
    assert len(GGUFReader(tmp_path / "out" / "model.gguf").tensors) > 0
    assert not (tmp_path / "out" / "model").exists()
    assert Artifact.load(tmp_path / "out" / "artifact").decoder == Generate(12)


def test_what_another_server_cannot_answer_is_refused(artifacts, tmp_path):
    def refused(server, name):
        with pytest.raises(ArtifactError) as error:
            export_for(server, Artifact.load(artifacts[name]), tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return error.value.code

    assert refused("vllm", "head") == "not-for-servers"
    assert refused("ollama", "intents") == "not-for-servers"
