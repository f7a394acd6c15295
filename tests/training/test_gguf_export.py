"""GGUF files run by llama.cpp itself, against the models that they were written from."""

import json

import numpy as np
import pytest
import torch
from llama_cpp import ask, continued, greedy, logprobs

from rung.engines.apart import mend
from rung.engines.base import GenerateRequest, Sampling
from rung.engines.opening import open_torch
from rung.errors import EngineError, ModelError
from rung.export.gguf import write_gguf
from rung.models.gguf import read_file
from rung.models.gguf_tokenizer import WHOLE_WORDS, pre_tokenizer
from rung.models.reference import resolve
from rung.models.tokenizer import Tokenizer

gguf = pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")

SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.2, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
TEXT = "Naïve façade: don't you'll x=1+23;\n\n  two   words 🚀 中文 a_b\tc ABC abc the there then"
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
USUAL = {"beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": 1.138629436111989}
GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8}
LONGROPE = {
    "max_position_embeddings": 4096, "original_max_position_embeddings": 1024,
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1 + i / 8 for i in range(8)],
        "long_factor": [2.0 + i for i in range(8)], "original_max_position_embeddings": 1024,
    },
}  # fmt: skip
A = 3 + 64  # the letter a, behind the special tokens
MODELS = {
    "llama": ("Llama", {}),
    "llama-biased": ("Llama", {"attention_bias": True, "head_dim": 32, "tie_word_embeddings": True}),
    "llama-rope-llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama-rope-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-rope-yarn": ("Qwen2", {"rope_parameters": YARN}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "gemma": ("Gemma", {"head_dim": 32}),
    "gemma2": ("Gemma2", {**GEMMA, "num_hidden_layers": 3}),
    "gemma3": ("Gemma3", {**GEMMA, "num_hidden_layers": 7}),
    "mistral": ("Mistral", {"head_dim": 32, "sliding_window": None}),
    "phi3": ("Phi3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
    "phi3-longrope": ("Phi3", LONGROPE),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 5, "tie_word_embeddings": True}),
    "olmo": ("Olmo", {"clip_qkv": 1.0}),
    "olmo2": ("Olmo2", {}),
    "olmo3": ("Olmo3", {"num_hidden_layers": 5, "sliding_window": 8}),
    "olmo3-rope-yarn": ("Olmo3", {"num_hidden_layers": 5, "sliding_window": 8, "rope_parameters": YARN | USUAL}),
}


def byte_level(folder, splitter, special=("<unk>", "<|start|>", "<|end|>")):
    """Train byte-level BPE with 300 tokens on the text, with this pre-tokenizer, and write it to the folder."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, trainers
    from tokenizers.pre_tokenizers import ByteLevel

    backend = Backend(models.BPE())
    backend.pre_tokenizer = splitter
    backend.decoder = decoders.ByteLevel()
    alphabet = ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )  # fmt: skip
    backend.train_from_iterator([TEXT] * 9, trainer)
    save_tokenizer(backend, folder, {"bos_token": "<|start|>", "eos_token": "<|end|>", "add_bos_token": False})
    return backend.get_vocab_size()


def save_tokenizer(backend, folder, settings):
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def build(folder, architecture, settings, vocabulary):
    import transformers

    torch.manual_seed(0)
    name = "Gemma3Text" if architecture == "Gemma3" else architecture
    config = getattr(transformers, f"{name}Config")(vocab_size=vocabulary, **{**SIZES, **settings})
    model = getattr(transformers, f"{architecture}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name or "bias" in parameter_name:
                parameter += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    model.set_attn_implementation("eager")  # the others of transformers leave Gemma2's softcapping out
    mend(model)
    return model


def tabled_gelu(x):
    """GELU as llama.cpp has it on CPU: looked up in a table of half-precision numbers."""
    table = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
    return torch.where(x.abs() >= 10, x.relu(), table)


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_has_the_probabilities_of_transformers(tmp_path, name):
    model = build(tmp_path, *MODELS[name], byte_level(tmp_path, pre_tokenizer("gpt-2")))
    write_gguf(tmp_path, tmp_path / "m.gguf", precision="f32")
    ids = torch.randint(3, 300, (40,)).tolist()
    computed = logprobs(tmp_path / "m.gguf", ids, 300, spoken=A)
    for layer in model.model.layers:
        if name.startswith("gemma"):
            layer.mlp.act_fn.forward = tabled_gelu
    wanted = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    np.testing.assert_allclose(computed, wanted.detach().numpy(), atol=1e-3)
    assert wanted.std() > 0.5  # it says something
    tokenizer = Tokenizer.load(tmp_path)
    part = [i for i in range(300) if not (text := tokenizer.decode((i,), skip_special=True)) or "\ufffd" in text]
    assert len(part) < 200
    written = continued(tmp_path / "m.gguf", ids, 16, part)  # of unfinished characters it tells nothing
    assert len(written) == 16
    for i, token in enumerate(written):
        logits = model(torch.tensor([ids + written[:i]])).logits[0, -1]
        logits[part] = -torch.inf
        best = logits.topk(2)
        assert token == int(best.indices[0]) or best.values[0] - best.values[1] < 1e-3


def sentencepiece(folder, prefix):
    """Train BPE as SentencePiece's converters write it: spaces become a sign, unknown characters bytes."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers, trainers

    steps = [normalizers.Replace(" ", "▁")]
    steps = [normalizers.Prepend("▁"), *steps] if prefix else steps
    scratch = Backend(models.BPE())
    scratch.normalizer = normalizers.Sequence(steps)
    scratch.train_from_iterator([TEXT] * 9, trainers.BpeTrainer(vocab_size=150, show_progress=False))
    model = json.loads(scratch.to_str())["model"]
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    vocabulary = {token: i for i, token in enumerate([*special, *model["vocab"]])}
    merges = [tuple(merge) for merge in model["merges"]]
    backend = Backend(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence(steps)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(special[:3])
    save_tokenizer(backend, folder, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    return len(vocabulary)


def same_tokens(folder, spoken):
    tokenizer = Tokenizer.load(folder)
    size = tokenizer.vocabulary_size
    build(folder, "Llama", {}, size)
    write_gguf(folder, folder / "m.gguf", precision="f32")
    sentence = TEXT + " never seen: Ω жук 12345"
    ours = logprobs(folder / "m.gguf", list(tokenizer.encode_plain(sentence)), size, spoken)
    assert logprobs(folder / "m.gguf", sentence, size, spoken) == ours


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2", "tekken"])
def test_llama_cpp_reads_text_as_the_same_tokens(tmp_path, name):
    byte_level(tmp_path, pre_tokenizer(name))
    if name in WHOLE_WORDS:
        definition = json.loads((tmp_path / "tokenizer.json").read_text())
        definition["model"]["ignore_merges"] = True
        (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    same_tokens(tmp_path, A)
    assert read_file(tmp_path / "m.gguf")[1]["tokenizer.ggml.pre"] == name


@pytest.mark.parametrize("prefix", [True, False])
def test_llama_cpp_reads_text_as_the_same_sentencepiece_tokens(tmp_path, prefix):
    sentencepiece(tmp_path, prefix)
    vocabulary = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
    same_tokens(tmp_path, vocabulary["a"])


def test_texts_end_where_llama_cpp_ends_them(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNG_CACHE", str(tmp_path / "cache"))
    usual, own = ("<|end|>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>"), ("<|mine|>", "<|turn|>", "<|no|>")
    special = ("<unk>", "<|start|>", *usual, *own)
    source = tmp_path / "source"
    source.mkdir()
    build(source, "Llama", {}, byte_level(source, pre_tokenizer("llama-bpe"), special))
    definition = json.loads((source / "tokenizer.json").read_text())
    definition["model"]["ignore_merges"] = True
    (source / "tokenizer.json").write_text(json.dumps(definition))
    ids = {token: special.index(token) for token in special}
    ends = [ids["<|mine|>"], ids["<|end|>"], ids["<|turn|>"]]
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    settings = json.loads((source / "tokenizer_config.json").read_text())
    template = "{% for m in messages %}{{ m.content }}<|turn|>{% endfor %}"
    (source / "tokenizer_config.json").write_text(
        json.dumps(settings | {"eos_token": "<|mine|>", "chat_template": template})
    )
    write_gguf(source, tmp_path / "m.gguf", precision="f32")
    requests = [{**greedy([A + 6], 3), "logit_bias": [[ids[token], 1000.0]]} for token in special]
    theirs = {
        token
        for token, answer in zip(special, ask(tmp_path / "m.gguf", requests), strict=True)
        if answer["choices"][0]["finish_reason"] == "stop"
    }
    read = Tokenizer.load(resolve(str(tmp_path / "m.gguf")).folder)
    assert {read.token(i) for i in read.eos_ids} == theirs == {*usual, "<|mine|>", "<|turn|>"}
    assert (read.eos_id, read.adds_bos) == (ids["<|mine|>"], False)
    config = {"eos_token_id": [*ends, ids["<|no|>"]]}  # two more than there are keys for
    (source / "generation_config.json").write_text(json.dumps(config))
    (source / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "<|mine|>"}))
    with pytest.raises(EngineError, match="answers end at"):
        write_gguf(source, tmp_path / "n.gguf", precision="f32")


def test_eight_bits_are_the_quantized_tensors(tmp_path):
    model = build(tmp_path, "Qwen3", {"head_dim": 32}, byte_level(tmp_path, pre_tokenizer("gpt-2")))
    write_gguf(tmp_path, tmp_path / "m.gguf", precision="q8_0")
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    kinds = gguf.GGMLQuantizationType
    for name, ours in {"blk.1.ffn_up.weight": "up_proj", "blk.0.attn_q_norm.weight": "q_norm"}.items():
        layer = model.model.layers[int(name[4])]
        wanted = getattr(layer.mlp if "ffn" in name else layer.self_attn, ours).weight.detach().numpy()
        kind = kinds.Q8_0 if "ffn" in name else kinds.F32
        assert stored[name].tensor_type == kind
        np.testing.assert_array_equal(stored[name].data, gguf.quants.quantize(wanted, kind))


@pytest.mark.parametrize(
    ("architecture", "settings", "message"),
    [
        ("Mixtral", {"num_local_experts": 2}, "MixtralForCausalLM"),
        ("Mistral", {"sliding_window": 64}, "window of 64"),
        ("SmolLM3", {"no_rope_layer_interval": 3, "num_hidden_layers": 3}, "rotary"),
        ("Llama", {"hidden_act": "relu"}, "relu"),
        ("Gemma2", {**GEMMA, "query_pre_attn_scalar": 99}, "query_pre_attn_scalar 99"),
        ("Gemma2", {**GEMMA, "layer_types": ["full_attention"] * 2}, "pattern"),
        ("Llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "dynamic"),
    ],
)
def test_what_llama_cpp_would_run_differently_is_refused(tmp_path, architecture, settings, message):
    build(tmp_path, architecture, settings, byte_level(tmp_path, pre_tokenizer("gpt-2")))
    with pytest.raises(EngineError, match=message) as caught:
        write_gguf(tmp_path, tmp_path / "m.gguf")
    assert caught.value.code == "export-unsupported"


def test_a_splitter_that_llama_cpp_does_not_know_is_refused(tmp_path):
    from tokenizers.pre_tokenizers import ByteLevel

    build(tmp_path, "Llama", {}, byte_level(tmp_path, ByteLevel(add_prefix_space=True)))
    with pytest.raises(EngineError, match="splits text like none"):
        write_gguf(tmp_path, tmp_path / "m.gguf")


# ---- files that Rung reads back: the same model and the same tokens, or a refusal by name


def read_back(folder, monkeypatch, precision="f32"):
    """Import the exported model into an empty cache."""
    monkeypatch.setenv("RUNG_CACHE", str(folder / "cache"))
    write_gguf(folder, folder / "m.gguf", precision=precision)
    return resolve(str(folder / "m.gguf")).folder


def loaded(folder, **settings):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **settings)
    mend(model)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_an_imported_model_computes_what_the_exported_one_does(tmp_path, monkeypatch, name):
    model = build(tmp_path, *MODELS[name], byte_level(tmp_path, pre_tokenizer("gpt-2")))
    folder = read_back(tmp_path, monkeypatch)
    ids = torch.randint(3, 300, (1, 250))
    wanted = model(ids).logits
    torch.testing.assert_close(loaded(folder)(ids).logits, wanted, atol=1e-4, rtol=1e-4)
    if "-rope-" in name:  # without the scaling, positions far into the text are others
        config = model.config.__class__.from_pretrained(folder)
        config.rope_parameters = {"rope_type": "default", "rope_theta": config.rope_parameters["rope_theta"]}
        assert (loaded(folder, config=config)(ids).logits - wanted)[0, -1].abs().max() > 0.1


def test_the_settings_of_llama_3_come_back(tmp_path, monkeypatch):
    rope = LLAMA3 | {"factor": 32.0, "original_max_position_embeddings": 8192}
    settings = {"rope_parameters": rope, "head_dim": 64, "max_position_embeddings": 131072}
    build(tmp_path, "Llama", settings, byte_level(tmp_path, pre_tokenizer("gpt-2")))
    config = json.loads((read_back(tmp_path, monkeypatch) / "config.json").read_text())
    assert config["rope_parameters"] == rope


@pytest.mark.parametrize("low", [1.5, 3.9])
def test_other_factors_than_those_of_llama_3_are_refused(tmp_path, monkeypatch, low):
    settings = {"rope_parameters": LLAMA3 | {"low_freq_factor": low}, "head_dim": 64}
    build(tmp_path, "Llama", settings, byte_level(tmp_path, pre_tokenizer("gpt-2")))
    with pytest.raises(ModelError, match=r"m\.gguf has 1 settings or tensors .*: rope_freqs\.weight"):
        read_back(tmp_path, monkeypatch)


@pytest.mark.parametrize(("architecture", "settings"), [("Gemma2", GEMMA), ("Gemma3", GEMMA)])
def test_the_scale_of_attention_and_the_caps_come_back(tmp_path, monkeypatch, architecture, settings):
    caps = {"final_logit_softcapping": 7.0} | ({"attn_logit_softcapping": 9.0} if architecture == "Gemma2" else {})
    linear = {
        "full_attention": {"rope_type": "linear", "rope_theta": 5e5, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    rope = {"rope_parameters": linear, "num_hidden_layers": 7} if architecture == "Gemma3" else {}
    model = build(tmp_path, architecture, settings | caps | rope, byte_level(tmp_path, pre_tokenizer("gpt-2")))
    ids = torch.randint(3, 300, (1, 200))
    found = loaded(read_back(tmp_path, monkeypatch))(ids).logits
    torch.testing.assert_close(found, model(ids).logits, atol=1e-4, rtol=1e-4)


TEXTS = [
    TEXT, " leading and trailing ", "a\n\nb\n  c\td", "façade e\u0301 ñ", "🚀🦙 中文 Ω жук", "", " ", "   ",
    "<s>the words</s> then  <s>", "aaaa   aaaa",
]  # fmt: skip


@pytest.mark.parametrize("architecture", ["Llama", "Phi3", "Gemma2", "Gemma3"])
@pytest.mark.parametrize("prefix", [True, False])
def test_imported_sentencepiece_tokens_are_the_exported_ones(tmp_path, monkeypatch, architecture, prefix):
    size = sentencepiece(tmp_path, prefix)
    build(tmp_path, architecture, GEMMA if "Gemma" in architecture else {}, size)
    ours, theirs = Tokenizer.load(read_back(tmp_path, monkeypatch, "f16")), Tokenizer.load(tmp_path)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.encode_plain(text) == theirs.encode_plain(text)
        assert ours.decode(ours.encode_plain(text), skip_special=False) == text
    assert (ours.bos_id, ours.eos_ids, ours.unk_id) == (1, frozenset({2}), 0)


@pytest.mark.parametrize("prefix", [True, False])
def test_llama_cpp_reads_special_tokens_in_text_as_the_imported_tokenizer(tmp_path, monkeypatch, prefix):
    size = sentencepiece(tmp_path, prefix)
    build(tmp_path, "Llama", {}, size)
    tokenizer = Tokenizer.load(read_back(tmp_path, monkeypatch))
    text, spoken = "<s>the words</s> then  <s> Ω\n\nfaçade 🚀", tokenizer.encode_plain("a")[-1]
    ours = logprobs(tmp_path / "m.gguf", list(tokenizer.encode(text)), size, spoken)
    assert logprobs(tmp_path / "m.gguf", text, size, spoken) == ours


def test_a_file_of_olmo_has_the_pre_tokenizer_of_gpt_2(tmp_path, monkeypatch):
    byte_level(tmp_path, pre_tokenizer("gpt-2"))
    same_tokens(tmp_path, A)
    file = rewritten(
        tmp_path / "m.gguf", tmp_path / "n.gguf", without="tokenizer.ggml.pre", settings={"tokenizer.ggml.pre": "olmo"}
    )
    monkeypatch.setenv("RUNG_CACHE", str(tmp_path / "cache"))
    tokenizer = Tokenizer.load(resolve(str(file)).folder)
    ours = logprobs(file, list(tokenizer.encode_plain(TEXT)), tokenizer.vocabulary_size, A)
    assert logprobs(file, TEXT, tokenizer.vocabulary_size, A) == ours


def test_norms_of_another_epsilon_than_transformers_has_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNG_CACHE", str(tmp_path / "cache"))
    build(tmp_path, "Olmo", {}, byte_level(tmp_path, pre_tokenizer("gpt-2")))
    write_gguf(tmp_path, tmp_path / "m.gguf", precision="f32")
    key = "olmo.attention.layer_norm_epsilon"
    file = rewritten(tmp_path / "m.gguf", tmp_path / "n.gguf", architecture="olmo", without=key, settings={key: 1e-6})
    with pytest.raises(ModelError, match=rf"n\.gguf has 1 settings or tensors that Rung cannot convert: {key}$"):
        resolve(str(file))


def rewritten(file, target, *, architecture="llama", without=None, settings=None, tensors=None):
    """Copy a GGUF file without the keys that begin so, and with more settings and tensors."""
    read, writer = gguf.GGUFReader(file), gguf.GGUFWriter(target, architecture)
    for name, entry in read.fields.items():
        if not name.startswith(("GGUF.", "general.architecture", without or "GGUF.")):
            items = entry.types[1] if entry.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, entry.contents(), entry.types[0], items)
    add = {float: writer.add_float32, int: writer.add_uint32, str: writer.add_string}
    for name, value in (settings or {}).items():
        add[type(value)](name, value)
    own = {tensor.name: np.array(tensor.data) for tensor in read.tensors} if without != "llama." else {}
    for name, values in {**own, **(tensors or {})}.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNG_CACHE", str(tmp_path / "cache"))
    build(tmp_path, "Llama", {}, byte_level(tmp_path, pre_tokenizer("gpt-2")))
    write_gguf(tmp_path, tmp_path / "m.gguf", precision="f32")
    return tmp_path / "m.gguf"


YARN_KEYS = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}


@pytest.mark.parametrize(
    ("settings", "tensors", "named"),
    [
        ({"llama.rope.scaling.type": "longrope"}, {}, "llama.rope.scaling.type"),
        ({**YARN_KEYS, "llama.rope.scaling.attn_factor": 2.0}, {}, "llama.rope.scaling.attn_factor"),
        ({"llama.rope.dimension_count": 8}, {}, "llama.rope.dimension_count"),
        ({"llama.attention.value_length": 8}, {}, "llama.attention.value_length"),
        ({"llama.attention.sliding_window": 8}, {}, "llama.attention.sliding_window"),
        ({"llama.expert_count": 2}, {}, "llama.expert_count"),
        ({}, {"blk.0.attn_q.bias": np.ones(64, np.float32)}, "blk.0.attn_q.bias"),
        ({}, {"rope_freqs.weight": np.arange(8, dtype=np.float32)}, "rope_freqs.weight"),
        (YARN_KEYS, {"rope_freqs.weight": np.ones(8, np.float32)}, "rope_freqs.weight"),
        ({}, {"rope_factors_long.weight": np.ones(8, np.float32)}, "rope_factors_long.weight"),
    ],
)
def test_what_would_be_left_unread_is_refused_by_name(small, tmp_path, settings, tensors, named):
    file = rewritten(small, tmp_path / "n.gguf", without=next(iter(settings), None), settings=settings, tensors=tensors)
    with pytest.raises(
        ModelError, match=rf"n\.gguf has 1 settings or tensors that Rung cannot convert: {named}$"
    ) as caught:
        resolve(str(file))
    assert (caught.value.code, "original safetensors" in caught.value.hint) == ("gguf-unsupported", True)


def test_the_older_name_of_linear_scaling_is_read(small, tmp_path):
    file = rewritten(small, tmp_path / "n.gguf", settings={"llama.rope.scale_linear": 4.0})
    config = json.loads((resolve(str(file)).folder / "config.json").read_text())
    assert config["rope_parameters"] == {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}


def test_starcoder2_keeps_the_base_of_its_frequencies(small, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    rope = {"rope_type": "default", "rope_theta": 999999.0}
    model = build(source, "Starcoder2", {"rope_parameters": rope}, 300)
    config, names = model.config, gguf.get_tensor_name_map(gguf.MODEL_ARCH.STARCODER2, 2)
    settings = {
        "block_count": 2, "context_length": 256, "embedding_length": 64, "feed_forward_length": 96,
        "attention.head_count": 4, "attention.head_count_kv": 2, "attention.layer_norm_epsilon": config.norm_epsilon,
        "rope.freq_base": 999999.0,
    }  # fmt: skip
    tensors = {
        names.get_name(name, try_suffixes=(".weight", ".bias")): values.numpy()
        for name, values in model.state_dict().items()
        if name != "lm_head.weight" or not config.tie_word_embeddings
    }
    file = rewritten(
        small, tmp_path / "n.gguf", architecture="starcoder2", without="llama.",
        settings={f"starcoder2.{key}": value for key, value in settings.items()}, tensors=tensors,
    )  # fmt: skip
    ids = torch.randint(3, 300, (1, 200))
    found = loaded(resolve(str(file)).folder)(ids).logits
    torch.testing.assert_close(found, model(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_llama_cpp_writes_what_torch_writes_with_the_embedded_model(tmp_path):
    files, engine = resolve("embedded"), open_torch("embedded")
    write_gguf(files.folder, tmp_path / "m.gguf", precision="f16")
    questions = (
        "What is the capital of France?",
        "Name three colours.",
        "Write a line about the sea.",
        "What is 2 + 3?",
    )
    prompts = [({"role": "user", "content": question},) for question in questions]
    ours = engine.generate([GenerateRequest(prompt, Sampling(max_tokens=16)) for prompt in prompts])
    theirs = ask(tmp_path / "m.gguf", [greedy(engine.text(prompt), 16) for prompt in prompts])
    assert [answer["choices"][0]["text"].strip() for answer in theirs] == [answer.text.strip() for answer in ours]
