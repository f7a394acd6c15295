import json

import pytest

from rung.errors import ModelError
from rung.models.hub import check_folder


def refused(folder, *words):
    with pytest.raises(ModelError) as caught:
        check_folder(folder)
    for word in words:
        assert word in str(caught.value)
    assert caught.value.hint


def test_a_data_folder_passes(small_model):
    check_folder(small_model)


@pytest.mark.parametrize(
    "name",
    [
        "modeling_x.py",
        "pytorch_model.bin",
        "a.pt",
        "b.pth",
        "c.pkl",
        "d.ckpt",
        "e.joblib",
        "F.PKL",
        "deep/x.py",
        "g.npy",
    ],
)
def test_code_and_pickles_are_refused(small_model, name):
    (small_model / name).parent.mkdir(exist_ok=True)
    (small_model / name).write_bytes(b"\x80\x04N.")
    refused(small_model, name)


def test_openvino_weights_are_not_pickles(small_model):
    (small_model / "openvino_model.xml").write_text("<net/>")
    (small_model / "openvino_model.bin").write_bytes(b"\0")
    check_folder(small_model)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "1_Pooling/config.json"])
@pytest.mark.parametrize("nested", [False, True])
def test_auto_map_is_refused(small_model, name, nested):
    file = small_model / name
    file.parent.mkdir(exist_ok=True)
    values = json.loads(file.read_text()) if file.exists() else {}
    auto = {"auto_map": {"AutoModel": "modeling_x.X"}}
    file.write_text(json.dumps({**values, **({"text_config": auto} if nested else auto)}))
    refused(small_model, name, "auto_map")


def test_a_vocabulary_may_contain_the_word(small_model):
    (small_model / "vocab.json").write_text('{"auto_map": 1}')
    check_folder(small_model)


@pytest.mark.parametrize("shard", ["../other.safetensors", "/etc/passwd", "model-1.bin", "missing.safetensors"])
def test_weight_maps_stay_in_the_folder(small_model, shard):
    (small_model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": shard}}))
    refused(small_model, "model.safetensors.index.json", shard)


def test_links_stay_in_the_folder(small_model, tmp_path):
    (tmp_path / "secret.json").write_text("{}")
    (small_model / "extra.json").symlink_to(tmp_path / "secret.json")
    refused(small_model, "extra.json")


def test_links_of_a_hub_cache_pass(small_model, tmp_path):
    repository = tmp_path / "models--org--name"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for i, file in enumerate(small_model.iterdir()):
        (repository / "blobs" / str(i)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{i}")
    check_folder(snapshot)


def test_no_weights(small_model):
    (small_model / "model.safetensors").unlink()
    refused(small_model, "safetensors")


def test_damaged_json(small_model):
    (small_model / "generation_config.json").write_text("{")
    refused(small_model, "generation_config.json")


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", "", "..", "a.b", "x\n"])
@pytest.mark.parametrize("file", ["tokenizer_config.json", "processor_config.json", "chat_template.json"])
@pytest.mark.parametrize("shape", ["list", "object"])
def test_names_of_chat_templates_are_no_paths(small_model, name, file, shape):
    named = [{"name": "default", "template": "x"}, {"name": name, "template": "x"}]
    templates = named if shape == "list" else {entry["name"]: "x" for entry in named}
    (small_model / file).write_text(json.dumps({"chat_template": templates}))
    refused(small_model, file, "chat template")


@pytest.mark.parametrize("templates", ["{{ messages }}", [{"name": "tool_use", "template": "x"}], {"a-B_9": "x"}, None])
def test_usual_chat_templates_pass(small_model, templates):
    (small_model / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))
    check_folder(small_model)
