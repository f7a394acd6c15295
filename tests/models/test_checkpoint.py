import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from rung.engines.opening import open_torch
from rung.errors import ModelError
from rung.models.cache import cache_dir
from rung.models.checkpoint import verify
from rung.models.embedded import LANGUAGE_MODEL, SENTENCE_ENCODER, folder_of
from rung.models.reference import resolve

SIZE = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TOKENS = {f"t{i}": i for i in range(64)}


def saved(folder, model, tokens=TOKENS):
    model.save_pretrained(folder)
    tokenizer = {"version": "1.0", "model": {"type": "WordLevel", "vocab": tokens, "unk_token": "t0"}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A folder for each of tied and untied embeddings."""
    torch.manual_seed(0)
    folders = {}
    for tied in (False, True):
        config = transformers.LlamaConfig(**SIZE, max_position_embeddings=64, tie_word_embeddings=tied)
        folder = tmp_path_factory.mktemp("llama") / str(tied)
        folders[tied] = saved(folder, transformers.LlamaForCausalLM(config))
    return folders


def edited(source, target, tensors=lambda t: t, **config):
    shutil.copytree(source, target)
    changed = {name: tensor.contiguous() for name, tensor in tensors(load_file(source / "model.safetensors")).items()}
    save_file(changed, target / "model.safetensors", metadata={"format": "pt"})
    values = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(values | config))
    return target


def refused(folder, kind="language model"):
    with pytest.raises(ModelError) as raised:
        verify(resolve(str(folder)), kind)
    return raised.value


@pytest.mark.parametrize("tied", [False, True])
def test_what_save_pretrained_wrote_passes_once(llama, tied):
    files = resolve(str(llama[tied]))
    verify(files)
    passed = [file.name for file in (cache_dir() / "verified").iterdir()]
    assert any(name.startswith(f"{files.fingerprint}-language-{transformers.__version__}") for name in passed)
    verify(files)


@pytest.mark.parametrize(
    ("edit", "named", "hint"),
    [
        (lambda t: {k: v for k, v in t.items() if "layers.1." not in k}, "model.layers.1.input_layernorm.weight", ""),
        (lambda t: {f"_orig_mod.{k}": v for k, v in t.items()}, "_orig_mod.", "torch.compile"),
        (lambda t: {f"module.{k}": v for k, v in t.items()}, "module.", "DataParallel"),
        (lambda t: {f"base_model.model.{k}": v for k, v in t.items()}, "base_model.model.", "merge_and_unload"),
        (lambda t: t | {"value_head.weight": torch.zeros(3)}, "value_head.weight", "save_pretrained"),
        (lambda t: t | {"model.norm.weight": torch.zeros(8)}, "model.norm.weight: [8] instead of [16]", "config.json"),
        (lambda t: t | {"model.norm.weight": torch.full((16,), torch.nan)}, "model.norm.weight", "diverged"),
        (lambda t: t | {"model.norm.weight": torch.full((16,), torch.inf)}, "model.norm.weight", "diverged"),
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_tensors_that_do_not_fit_are_named(llama, tmp_path, tied, edit, named, hint):
    error = refused(edited(llama[tied], tmp_path / "bad", edit))
    assert error.code == "model-damaged"
    assert named in str(error)
    assert hint in error.hint


def test_a_missing_head_is_missing_only_where_it_is_not_tied(llama, tmp_path):
    def headless(tensors):
        return {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}

    assert "lm_head.weight" in str(refused(edited(llama[False], tmp_path / "untied", headless)))
    verify(resolve(str(edited(llama[True], tmp_path / "tied", headless))))


def test_a_head_that_is_tied_and_written_too_has_to_be_the_embeddings(llama, tmp_path):
    twice = edited(
        llama[True], tmp_path / "twice", lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"].clone()}
    )
    verify(resolve(str(twice)))
    another = edited(llama[False], tmp_path / "another", tie_word_embeddings=True)
    error = refused(another)
    assert error.code == "model-damaged"
    assert "config.json ties the output layer" in error.message
    assert '"tie_word_embeddings": false' in error.hint
    verify(resolve(str(edited(another, tmp_path / "untied", tie_word_embeddings=False))))


def test_integers_without_a_quantization_are_no_weights(llama, tmp_path):
    name = "model.layers.0.self_attn.q_proj.weight"
    folder = edited(llama[False], tmp_path / "int8", lambda t: t | {name: t[name].to(torch.int8)})
    assert f"the tensor {name} holds integers" in refused(folder).message


@pytest.mark.parametrize("end", [None, -1, 64])
def test_a_model_that_nothing_ends_is_refused(llama, tmp_path, end):
    # Without an end, the label `1` would win over `10` always, and no answer would end.
    folder = edited(llama[False], tmp_path / "endless", eos_token_id=end)
    (folder / "generation_config.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<not there>"}')
    assert "names no token that ends an answer" in refused(folder).message
    (folder / "generation_config.json").write_text('{"eos_token_id": [63, 64]}')
    verify(resolve(str(folder)))


def test_no_engine_opens_a_damaged_model(llama, tmp_path):
    folder = edited(llama[False], tmp_path / "bad", lambda t: {k: v for k, v in t.items() if "layers.1." not in k})
    with pytest.raises(ModelError, match="are missing"):
        open_torch(str(folder))


def test_a_tokenizer_larger_than_the_model_is_refused(llama, tmp_path):
    folder = edited(llama[True], tmp_path / "large")
    tokens = json.loads((folder / "tokenizer.json").read_text())
    tokens["added_tokens"] = [{"id": 64, "content": "<new>"}]
    (folder / "tokenizer.json").write_text(json.dumps(tokens))
    assert "65 tokens and the model 64" in str(refused(folder))


@pytest.mark.parametrize(
    ("config", "model", "says"),
    [
        (transformers.BertConfig(**SIZE), transformers.BertForMaskedLM, "is an encoder"),
        (
            transformers.BartConfig(vocab_size=64, d_model=16, encoder_layers=1, decoder_layers=1,
                                    encoder_attention_heads=2, decoder_attention_heads=2),
            transformers.BartForConditionalGeneration, "encoder-decoder",
        ),
        (
            transformers.T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2),
            transformers.T5ForConditionalGeneration, "encoder-decoder",
        ),
    ],
)  # fmt: skip
def test_models_that_do_not_continue_a_text_are_refused(tmp_path, config, model, says):
    folder = saved(tmp_path / "model", model(config))
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 64} | values))
    error = refused(folder)
    assert error.code == "model-unsupported"
    assert says in str(error)


def test_an_encoder_is_verified_as_one(tmp_path):
    folder = saved(tmp_path / "bert", transformers.BertForMaskedLM(transformers.BertConfig(**SIZE)))
    verify(resolve(str(folder)), "encoder")  # the head on top of it is no loss
    damaged = edited(folder, tmp_path / "bad", lambda t: {k: v for k, v in t.items() if "layer.1." not in k})
    assert "encoder.layer.1." in str(refused(damaged, "encoder"))


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors"])
def test_a_quantized_checkpoint_without_its_library_is_one_clear_error(llama, tmp_path, method):
    settings = {
        "gptq": {"bits": 4, "group_size": 128, "desc_act": False, "sym": True},
        "awq": {"bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"},
        "bitsandbytes": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        "compressed-tensors": {"format": "pack-quantized", "config_groups": {}},
    }[method]
    folder = edited(llama[False], tmp_path / method, quantization_config={"quant_method": method, **settings})
    error = refused(folder)
    assert error.code == "model-unsupported"
    assert f"it is quantized ({method})" in str(error)


def test_an_unknown_architecture_is_one_clear_error(llama, tmp_path):
    error = refused(edited(llama[False], tmp_path / "new", model_type="llama9", architectures=["Llama9ForCausalLM"]))
    assert (error.code, "llama9" in str(error)) == ("model-unsupported", True)


@pytest.mark.parametrize(("model", "kind"), [(LANGUAGE_MODEL, "language model"), (SENTENCE_ENCODER, "encoder")])
def test_the_built_in_models_pass(model, kind):
    assert folder_of(model).exists()
    verify(resolve(model.alias), kind)


def test_a_cache_that_cannot_be_written_stops_nothing(llama, tmp_path, monkeypatch):
    files = resolve(
        str(edited(llama[True], tmp_path / "other", lambda t: t | {"model.norm.weight": torch.ones(16) * 2}))
    )
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RUNG_CACHE", str(tmp_path / "file"))
    verify(files)
