import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from rung.cli.main import main
from rung.engines.base import GenerateRequest
from rung.engines.encoders import open_sentence_encoder
from rung.engines.opening import open_engine, open_torch
from rung.engines.torch_engine import TorchEngine
from rung.errors import ModelError
from rung.models.cache import cache_dir
from rung.models.checkpoint import kind_of, verify
from rung.models.embedded import LANGUAGE_MODEL, SENTENCE_ENCODER, folder_of
from rung.models.hub import ALLOWED, IGNORED, loaded_weights
from rung.models.reference import resolve, tensor_sizes
from rung.models.tokenizer import Tokenizer
from rung.retrieval.retriever import by_cross_encoder
from rung.training.encoder import EncoderWithHead

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


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (torch.int8, "integers"),
        (torch.float8_e4m3fn, "numbers of 8 bits without a scale"),
        (torch.float8_e5m2, "numbers of 8 bits without a scale"),
    ],
)
def test_packed_numbers_without_a_quantization_are_no_weights(llama, tmp_path, kind, what):
    name = "model.layers.0.self_attn.q_proj.weight"
    folder = edited(llama[False], tmp_path / "packed", lambda t: t | {name: t[name].to(kind)})
    assert f"the tensor {name} holds {what}, and config.json names no quantization" in refused(folder).message


@pytest.mark.parametrize("end", [None, -1, 64])
def test_a_model_that_nothing_ends_is_refused(llama, tmp_path, end):
    # Without an end, the label `1` would win over `10` always, and no answer would end.
    folder = edited(llama[False], tmp_path / "endless", eos_token_id=end)
    (folder / "generation_config.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<not there>"}')
    assert "names no token that ends an answer" in refused(folder).message
    (folder / "generation_config.json").write_text('{"eos_token_id": [63, 64]}')
    verify(resolve(str(folder)))


def without_the_second_layer(tensors):
    return {name: tensor for name, tensor in tensors.items() if not any(f"{layer}.1." in name for layer in LAYERS)}


LAYERS = ("layers", "layer")


def test_no_engine_opens_a_damaged_model(llama, tmp_path, monkeypatch):
    folder = edited(llama[False], tmp_path / "bad", without_the_second_layer)
    monkeypatch.setattr("rung.engines.openvino_export.exported", lambda *_, **__: pytest.fail("exported it"))
    with pytest.raises(ModelError, match="are missing"):
        open_torch(str(folder))
    for apart in (False, True):
        engine = open_engine(str(folder), "openvino", remember=False, apart=apart)
        with pytest.raises(ModelError, match="are missing"):
            engine.session().add(0, GenerateRequest("t1"))


def test_no_damaged_encoder_is_trained(tiny_encoder, tmp_path):
    folder = edited(tiny_encoder, tmp_path / "bad", without_the_second_layer)
    with pytest.raises(ModelError, match="are missing"):
        EncoderWithHead(resolve(str(folder)))


# ---- tokens that the model has no embedding for


def with_tokens(source, target, *added, **settings):
    """A copy with these added tokens, from id 64 on."""
    folder = edited(source, target)
    values = json.loads((folder / "tokenizer.json").read_text())
    switches = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    values["added_tokens"] = [
        {"id": 64 + i, "content": text, "special": special, **switches} for i, (text, special) in enumerate(added)
    ]
    (folder / "tokenizer.json").write_text(json.dumps(values))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "t2"} | settings))
    return folder


@pytest.mark.parametrize("special", [True, False])
def test_added_tokens_that_only_another_model_reads_are_text(llama, tmp_path, special):
    image = ("<image_soft_token>", special)
    folder = with_tokens(llama[True], tmp_path / "text", image, image_token=image[0], chat_template="{{ messages }} t3")
    verify(resolve(str(folder)))
    tokenizer = Tokenizer.load(folder)
    for encode in (tokenizer.encode, tokenizer.encode_plain, tokenizer.encode_whole):
        assert encode(image[0]) == (0,)  # an unknown word
    assert tokenizer.vocabulary_size == 64
    assert open_torch(str(folder)).embed([image[0]]).shape == (1, 16)
    with_row = edited(folder, tmp_path / "whole", lambda t: t | {TABLE: torch.ones(65, 16)}, vocab_size=65)
    assert Tokenizer.load(with_row).encode(image[0]) == (64,)


TABLE = "model.embed_tokens.weight"


@pytest.mark.parametrize(
    "settings",
    [{"chat_template": "{{ messages }}<new>"}, *({f"{name}_token": "<new>"} for name in ("bos", "eos", "pad"))],
)
def test_a_token_without_an_embedding_that_is_written_is_refused(llama, tmp_path, settings):
    folder = with_tokens(llama[True], tmp_path / "large", ("<new>", True), ("<other>", True), **settings)
    error = refused(folder)
    assert error.code == "model-damaged"
    assert "the tokenizer writes '<new>' as token 64, and the model has 64 embeddings" in error.message


def test_an_end_of_a_turn_without_an_embedding_is_refused(llama, tmp_path):
    folder = with_tokens(llama[True], tmp_path / "end", ("<end_of_turn>", True))
    verify(resolve(str(folder)))
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 64]}')
    assert "'<end_of_turn>' as token 64" in refused(folder).message


def test_a_vocabulary_larger_than_the_model_is_refused(llama, tmp_path):
    folder = edited(llama[True], tmp_path / "large")
    values = json.loads((folder / "tokenizer.json").read_text())
    values["model"]["vocab"]["t64"] = 64
    (folder / "tokenizer.json").write_text(json.dumps(values))
    assert "'t64' as token 64, and the model has 64 embeddings" in refused(folder).message


def test_an_encoder_reads_the_text_of_a_token_without_an_embedding(tiny_encoder, tmp_path):
    folder = edited(tiny_encoder, tmp_path / "encoder")
    values = json.loads((folder / "tokenizer.json").read_text())
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    new = {**values["added_tokens"][0], "id": max(rows, len(values["model"]["vocab"])), "content": "<image>"}
    values["added_tokens"].append(new)
    (folder / "tokenizer.json").write_text(json.dumps(values))
    with_token, without = (
        open_sentence_encoder(resolve(str(one)), backend="torch", device="cpu") for one in (folder, tiny_encoder)
    )
    assert (with_token.embed(["card <image>"]) == without.embed(["card <image>"])).all()
    trained = [EncoderWithHead(resolve(str(one)), "cpu").tokenize(["card <image>"]) for one in (folder, tiny_encoder)]
    assert trained[0] == trained[1]


# ---- kinds of models


@pytest.mark.parametrize(
    ("config", "model", "says"),
    [
        (transformers.BertConfig(**SIZE), transformers.BertForMaskedLM, "is an encoder"),
        (transformers.BertConfig(**SIZE), transformers.BertLMHeadModel, "is an encoder"),
        (transformers.RobertaConfig(**SIZE), transformers.RobertaForCausalLM, "is an encoder"),
        (
            transformers.Gemma3TextConfig(**SIZE, head_dim=8, use_bidirectional_attention=True),
            transformers.Gemma3ForCausalLM, "(use_bidirectional_attention: True in its config.json)",
        ),
        (
            transformers.XLMConfig(vocab_size=64, emb_dim=16, n_layers=1, n_heads=2),
            transformers.XLMWithLMHeadModel, "(causal: False in its config.json)",
        ),
        (
            transformers.LlamaConfig(**SIZE, is_causal=False), transformers.LlamaForCausalLM,
            "(is_causal: False in its config.json)",
        ),
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


def test_a_bert_that_is_a_decoder_writes_text(tmp_path):
    config = transformers.BertConfig(**SIZE, is_decoder=True, eos_token_id=2)
    verify(resolve(str(saved(tmp_path / "model", transformers.BertLMHeadModel(config)))))


NARROW = {"vocab_size": 64, "dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2}
SMALL = {**SIZE, "embedding_size": 8}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}


@pytest.mark.parametrize(
    ("model", "config", "lost"),
    [
        (transformers.BertForMaskedLM, transformers.BertConfig(**SIZE), "encoder.layer.1."),
        (transformers.DistilBertForMaskedLM, transformers.DistilBertConfig(**NARROW), "transformer.layer.1."),
        (transformers.ModernBertForMaskedLM, transformers.ModernBertConfig(**SIZE, **IDS), "layers.1."),
        (transformers.AlbertForMaskedLM, transformers.AlbertConfig(**SMALL), "encoder.albert_layer_groups.0."),
        (transformers.ElectraForMaskedLM, transformers.ElectraConfig(**SMALL), "encoder.layer.1."),
        (transformers.ElectraForPreTraining, transformers.ElectraConfig(**SMALL), "encoder.layer.1."),
        (transformers.RobertaForMaskedLM, transformers.RobertaConfig(**SIZE), "encoder.layer.1."),
    ],
)
def test_an_encoder_is_verified_without_the_head_on_top_of_it(tmp_path, model, config, lost):
    folder = saved(tmp_path / "masked", model(config))
    verify(resolve(str(folder)), "encoder")
    damaged = edited(folder, tmp_path / "bad", lambda t: {k: v for k, v in t.items() if lost not in k})
    assert f"are missing, such as {lost}" in str(refused(damaged, "encoder"))
    prefix = model.base_model_prefix
    more = edited(folder, tmp_path / "more", lambda t: t | {f"{prefix}.{lost}more.weight": torch.zeros(2)})
    assert "have no place in the model" in str(refused(more, "encoder"))


@pytest.fixture
def reranker(tmp_path):
    return saved(
        tmp_path / "reranker", transformers.BertForSequenceClassification(transformers.BertConfig(**SIZE, num_labels=1))
    )


def test_a_reranker_is_shown_as_one(reranker, tmp_path):
    files = resolve(str(reranker))
    verify(files)
    assert kind_of(files) == "reranker"
    several = saved(tmp_path / "several", transformers.BertForSequenceClassification(transformers.BertConfig(**SIZE)))
    assert kind_of(resolve(str(several))) == "language model"  # a classifier of single texts
    assert "is an encoder" in refused(reranker).message  # where a task names it as its model


def test_a_reranker_without_its_head_scores_nothing(reranker, tmp_path):
    damaged = edited(reranker, tmp_path / "bad", lambda t: {k: v for k, v in t.items() if k != "classifier.weight"})
    with pytest.raises(ModelError, match=r"are missing, such as classifier\.weight"):
        by_cross_encoder(str(damaged))


# ---- quantized models


BITS = {"bits": 4, "group_size": 128}


@pytest.mark.parametrize(
    ("settings", "library"),
    [
        (BITS | {"quant_method": "gptq", "desc_act": False, "sym": True}, "gptqmodel"),
        (BITS | {"quant_method": "awq", "zero_point": True, "version": "gemm"}, "gptqmodel"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes"),
        ({"load_in_8bit": True}, "bitsandbytes"),
        (
            {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}},
            "compressed-tensors",
        ),
        ({"quant_method": "hqq"}, "hqq"),
    ],
)
def test_a_quantized_checkpoint_without_its_library_is_one_clear_error(llama, tmp_path, settings, library):
    error = refused(edited(llama[False], tmp_path / "packed", quantization_config=settings))
    assert error.code == "model-unsupported"
    assert f"it is quantized ({settings.get('quant_method', library)}), which cannot run here" in error.message
    assert "is not defined" not in error.message
    assert f"`pip install {library}`" in error.hint


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"quantization_config": BITS | {"quant_method": "exl2"}}, "(exl2), which cannot run here: transformers does"),
        ({"quantization_config": {"quant_method": "modelopt"}}, "(modelopt), which cannot run here: transformers does"),
        ({"quantization_config": BITS}, "names no quant_method: {'bits': 4, 'group_size': 128}"),
        ({"quantization_config": {}}, "names no quant_method: {}"),
        ({"quantization": BITS, "quantization_config": BITS}, "for MLX, which nothing here runs"),
        ({}, "for ModelOpt, which nothing here runs"),
    ],
)
def test_a_quantization_of_other_tools_is_named(llama, tmp_path, config, says):
    folder = edited(llama[False], tmp_path / "foreign", **config)
    if not config:
        (folder / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}')
    error = refused(folder)
    assert error.code == "model-unsupported"
    assert says in error.message
    assert error.hint.startswith("choose the model in full precision or as GGUF")


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A folder for each quantization that transformers unpacks."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("packed")
    wide = {**SIZE, "hidden_size": 128, "intermediate_size": 128, "max_position_embeddings": 64}
    experts = {"head_dim": 32, "num_key_value_heads": 2, "num_local_experts": 2, "num_experts_per_tok": 1}
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    models = {
        "fp8": transformers.LlamaForCausalLM(transformers.LlamaConfig(**wide)),
        "mxfp4": transformers.GptOssForCausalLM(
            transformers.GptOssConfig(**wide, **experts, rope_parameters=rope, eos_token_id=2, pad_token_id=0)
        ),
    }
    folders = {}
    for method, model in models.items():
        plain = saved(root / f"plain-{method}", model)
        settings = {"fp8": {"activation_scheme": "dynamic", "weight_block_size": [128, 128]}, "mxfp4": {}}[method]
        folders[method] = edited(
            plain, root / method, {"fp8": in_8_bits, "mxfp4": in_4_bits}[method],
            quantization_config={"quant_method": method, **settings},
        )  # fmt: skip
    return folders


def in_8_bits(tensors):
    scaled = {name: tensor for name, tensor in tensors.items() if "_proj" in name}
    return (
        tensors
        | {name: (tensor * 64).to(torch.float8_e4m3fn) for name, tensor in scaled.items()}
        | {f"{name}_scale_inv": torch.full((1, 1), 1 / 64) for name in scaled}
    )


def in_4_bits(tensors):
    """Every value of the experts is 1: the code 2, twice in a byte, with the scale 2 ** 0."""
    experts = {name: tensor.shape for name, tensor in tensors.items() if name.endswith(("up_proj", "down_proj"))}
    return (
        {name: tensor for name, tensor in tensors.items() if name not in experts}
        | {f"{k}_blocks": torch.full((e, o, i // 32, 16), 0x22, dtype=torch.uint8) for k, (e, i, o) in experts.items()}
        | {f"{k}_scales": torch.full((e, o, i // 32), 127, dtype=torch.uint8) for k, (e, i, o) in experts.items()}
    )


def test_a_model_in_8_bits_is_what_was_quantized(packed):
    verify(resolve(str(packed["fp8"])))
    name = "model.layers.0.mlp.up_proj.weight"
    expected = load_file(packed["fp8"].parent / "plain-fp8" / "model.safetensors")[name]
    loaded = open_torch(str(packed["fp8"])).model.get_parameter(name).float()
    torch.testing.assert_close(loaded, expected, atol=0.01, rtol=0.07)


def test_a_model_in_4_bits_is_what_was_quantized(packed):
    verify(resolve(str(packed["mxfp4"])))
    loaded = open_torch(str(packed["mxfp4"])).model.get_parameter("model.layers.1.mlp.experts.down_proj")
    assert (loaded == 1).all()


@pytest.mark.parametrize("method", ["fp8", "mxfp4"])
def test_a_damaged_quantized_model_is_refused(packed, tmp_path, method):
    lost = edited(packed[method], tmp_path / "lost", without_the_second_layer)
    assert "are missing" in refused(lost).message
    unscaled = edited(
        packed[method], tmp_path / "unscaled",
        lambda t: {k: v for k, v in t.items() if not ("layers.1." in k and "_scale" in k)},
    )  # fmt: skip
    assert {"fp8": "have no scale, such as", "mxfp4": "cannot load it"}[method] in refused(unscaled).message
    large = with_tokens(packed[method], tmp_path / "large", ("<new>", True), eos_token="<new>")
    assert "'<new>' as token 64" in refused(large).message
    endless = edited(packed[method], tmp_path / "endless", eos_token_id=None)
    (endless / "generation_config.json").unlink()
    assert "names no token that ends an answer" in refused(endless).message


def test_a_quantized_model_that_does_not_load_is_one_clear_error(packed, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no kernel\nfor this")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)
    files = resolve(str(packed["fp8"]))
    with pytest.raises(ModelError, match=r"is quantized, and transformers cannot load it here: no kernel$") as raised:
        TorchEngine(files)
    assert raised.value.code == "model-unsupported"


@pytest.mark.parametrize(
    ("kind", "code", "says"),
    [
        ("damaged", "model-damaged", "are missing, such as model.layers.1.input_layernorm.weight"),
        ("no config", "model-damaged", "config.json"),
        ("awq", "model-unsupported", "it is quantized (awq), which cannot run here"),
    ],
)
def test_show_refuses_what_cannot_run(llama, tmp_path, monkeypatch, capsys, kind, code, says):
    settings = {"quantization_config": {"quant_method": "awq", "bits": 4}} if kind == "awq" else {}
    folder = edited(
        llama[False], tmp_path / "bad", without_the_second_layer if kind == "damaged" else lambda t: t, **settings
    )
    if kind == "no config":
        (folder / "config.json").write_text("{")
    monkeypatch.setattr("sys.argv", ["rung", "models", "show", str(folder)])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    assert (ended.value.code, printed.out) == (3, "")
    assert f"error[{code}]" in printed.err
    assert says in " ".join(printed.err.split())
    assert "hint: " in printed.err
    assert "Traceback" not in printed.err


def test_show_describes_a_model_in_8_bits(packed, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["rung", "models", "show", str(packed["fp8"]), "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert json.loads(capsys.readouterr().out)["kind"] == "language model"


# ---- weights that a folder holds twice


def test_only_the_weights_that_transformers_loads_count(llama, tmp_path):
    twice = edited(llama[False], tmp_path / "twice")
    tensors = load_file(twice / "model.safetensors")
    (twice / "model.safetensors").unlink()
    names = {}
    for number in (1, 2):
        part = {k: v for i, (k, v) in enumerate(sorted(tensors.items())) if i % 2 == number - 1}
        save_file(part, twice / f"model-{number}.safetensors", metadata={"format": "pt"})
        names |= dict.fromkeys(part, f"model-{number}.safetensors")
    (twice / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    before = resolve(str(twice))
    save_file({f"own.{k}": v for k, v in tensors.items()}, twice / "consolidated.safetensors")
    assert resolve(str(twice)) == before
    assert before.parameters == sum(tensor.numel() for tensor in tensors.values())
    assert tensor_sizes(twice).keys() == tensors.keys()
    verify(before)
    save_file(tensors, twice / "model.safetensors", metadata={"format": "pt"})
    assert loaded_weights(twice) == [twice / "model.safetensors"]  # transformers prefers it to the index


def test_weights_are_fetched_once():
    from huggingface_hub.utils import filter_repo_objects

    files = ["model-1.safetensors", "consolidated.safetensors", "consolidated.00.pth", "config.json"]
    fetched = filter_repo_objects(files, allow_patterns=ALLOWED, ignore_patterns=IGNORED)
    assert list(fetched) == ["model-1.safetensors", "config.json"]


def test_a_file_for_llama_cpp_has_the_tokens_and_weights_that_transformers_loads(embedded, tmp_path):
    import gguf

    from rung.export.gguf import write_gguf

    config = transformers.LlamaConfig(**{**SIZE, "vocab_size": 49_152}, max_position_embeddings=64)
    folder = tmp_path / "model"
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    shutil.copyfile(folder / "model.safetensors", folder / "consolidated.safetensors")
    shutil.copyfile(embedded.folder / "tokenizer_config.json", folder / "tokenizer_config.json")
    values = json.loads((embedded.folder / "tokenizer.json").read_text())
    values["added_tokens"].append({**values["added_tokens"][0], "id": 49_152, "content": "<image>"})
    (folder / "tokenizer.json").write_text(json.dumps(values))
    write_gguf(folder, tmp_path / "model.gguf", precision="f32")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    assert len(reader.fields["tokenizer.ggml.tokens"].data) == 49_152
    assert len({tensor.name for tensor in reader.tensors}) == len(reader.tensors) == len(tensor_sizes(folder))


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
