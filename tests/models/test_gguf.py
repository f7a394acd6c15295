"""A small GGUF file with the embedded model's whole vocabulary, converted and compared with what went in."""

import json
import os
import shutil
import urllib.request
from collections import namedtuple

import numpy as np
import pytest

from rung.errors import ModelError
from rung.models import gguf as gguf_files
from rung.models import gguf_tokenizer
from rung.models.checkpoint import verify
from rung.models.gguf import read_file
from rung.models.reference import resolve
from rung.models.tokenizer import Tokenizer, chat_template_of

gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")

WIDTH, HEADS, LAYERS, INNER, CONTEXT = 64, 2, 1, 96, 256


@pytest.fixture(scope="module")
def vocabulary(embedded):
    made = json.loads((embedded.folder / "tokenizer.json").read_text())
    vocab = sorted(made["model"]["vocab"], key=made["model"]["vocab"].get)
    return vocab, [" ".join(merge) for merge in made["model"]["merges"]]


@pytest.fixture(scope="module")
def weights(vocabulary):
    draw = np.random.default_rng(0)
    kv = WIDTH
    shapes = {
        "token_embd": (len(vocabulary[0]), WIDTH),
        "output_norm": (WIDTH,),
        "blk.0.attn_norm": (WIDTH,),
        "blk.0.ffn_norm": (WIDTH,),
        "blk.0.attn_q": (WIDTH, WIDTH),
        "blk.0.attn_k": (kv, WIDTH),
        "blk.0.attn_v": (kv, WIDTH),
        "blk.0.attn_output": (WIDTH, WIDTH),
        "blk.0.ffn_gate": (INNER, WIDTH),
        "blk.0.ffn_up": (INNER, WIDTH),
        "blk.0.ffn_down": (WIDTH, INNER),
    }
    return {name: draw.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def file(tmp_path_factory, vocabulary, weights):
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(vocabulary[0]))
    writer.add_license("mit")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary[0])
    writer.add_token_types([3 if i < 17 else 1 for i in range(len(vocabulary[0]))])
    writer.add_token_merges(vocabulary[1])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")
    for name, values in weights.items():
        writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def converted(file, tmp_path_factory):
    before = os.environ.get("RUNG_CACHE")
    os.environ["RUNG_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield resolve(str(file))
    os.environ.pop("RUNG_CACHE")
    if before is not None:
        os.environ["RUNG_CACHE"] = before


def test_the_facts(converted, weights):
    assert (converted.name, converted.architecture, converted.context) == ("small", "LlamaForCausalLM", CONTEXT)
    assert (converted.licence, chat_template_of(converted.folder) is not None) == ("mit", True)
    assert converted.parameters == sum(values.size for values in weights.values())


def test_a_second_resolve_converts_nothing(converted, file, monkeypatch):
    monkeypatch.setattr("rung.models.gguf.convert", lambda *args, **settings: pytest.fail("converted again"))
    assert resolve(str(file)) == converted


def test_the_weights_come_back_exactly(converted, weights):
    from safetensors.numpy import load_file

    found = load_file(converted.folder / "model.safetensors")
    np.testing.assert_array_equal(found["model.embed_tokens.weight"], weights["token_embd"])
    np.testing.assert_array_equal(found["model.layers.0.mlp.down_proj.weight"], weights["blk.0.ffn_down"])
    np.testing.assert_array_equal(found["model.layers.0.self_attn.v_proj.weight"], weights["blk.0.attn_v"])
    # GGUF keeps queries and keys with the two halves of each head interleaved.
    halves = weights["blk.0.attn_q"].reshape(HEADS, WIDTH // HEADS // 2, 2, WIDTH).swapaxes(1, 2)
    np.testing.assert_array_equal(found["model.layers.0.self_attn.q_proj.weight"], halves.reshape(WIDTH, WIDTH))


def test_the_tokenizer_is_the_embedded_models(converted, embedded):
    ours, theirs = Tokenizer.load(converted.folder), Tokenizer.load(embedded.folder)
    for text in ("Hello 2024, naïve 银行 🙂\n\n", "<|im_start|>user\nhi<|im_end|>"):
        assert ours.encode(text) == theirs.encode(text)
        assert max(ours.encode(text)) < ours.vocabulary_size
    assert (ours.bos_id, ours.eos_ids, ours.pad_id) == (1, frozenset({0, 2}), 2)  # <|endoftext|> and <|im_end|>


@pytest.fixture(scope="module")
def llama_cpp(file):
    """The real llama.cpp server, on the same file."""
    xllamacpp = pytest.importorskip("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx, params.n_parallel, params.port, params.warmup = 256, 1, 0, False
    server = xllamacpp.Server(params)

    def post(path, **body):
        request = urllib.request.Request(
            f"{server.listening_address}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    return post


TEXTS = [
    "Hello world",
    "  two  spaces and\ttabs\r\n\n lines ",
    "1234567 and 3.14",
    "It's naïve; can't we?",
    "银行卡还没有到 🙂🏽‍🚀",
    "e\u0301 \u00a0 \u200b x",
    "def f(x):\n    return x**2  # note",
    "<|im_start|>user\nhi<|im_end|>\n",
]


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_equal_llama_cpp(converted, llama_cpp, text):
    tokenizer = Tokenizer.load(converted.folder)
    said = llama_cpp("/tokenize", content=text, add_special=False, parse_special=True)["tokens"]
    assert tokenizer.encode(text) == tuple(said)
    plain = llama_cpp("/tokenize", content=text, add_special=False, parse_special=False)["tokens"]
    assert tokenizer.encode_plain(text) == tuple(plain)


def test_greedy_tokens_equal_llama_cpp(converted, llama_cpp):
    from transformers import AutoModelForCausalLM

    tokenizer = Tokenizer.load(converted.folder)
    ids = tokenizer.encode("Where is my card?")
    model = AutoModelForCausalLM.from_pretrained(converted.folder, dtype=torch.float32)
    with torch.inference_mode():
        best = model(torch.tensor([ids])).logits[0, -1].argmax().item()
    said = llama_cpp("/completion", prompt=list(ids), n_predict=1, temperature=0, return_tokens=True)["tokens"]
    assert said == [best]


def metadata(pre="smollm", kind="gpt2", **more):
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": kind,
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": ["<|end|>", "a", "b", "ab"],
        "tokenizer.ggml.token_type": [3, 1, 1, 1],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": 0,
        **more,
    }


@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "olmo", "llama-bpe", "dbrx", "qwen2"])
def test_known_pre_tokenizers(pre):
    made = gguf_tokenizer.build(metadata(pre), "x.gguf")
    assert made.tokenizer.encode("abb<|end|>a").ids == [3, 2, 0, 1]
    assert made.special == {"eos": 0, "pad": 0}


def test_a_beginning_token_is_added_where_the_file_says_so():
    made = gguf_tokenizer.build(
        metadata(**{"tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.add_bos_token": True}), "x.gguf"
    )
    assert made.adds_bos
    assert made.tokenizer.encode("ab").ids == [0, 3]


@pytest.mark.parametrize("values", [metadata("brand-new"), metadata(kind="rwkv"), {"general.architecture": "llama"}])
def test_what_cannot_be_rebuilt_is_refused(values):
    with pytest.raises(ModelError, match=r"x\.gguf") as caught:
        gguf_tokenizer.build(values, "x.gguf")
    assert caught.value.code == "gguf-unsupported"


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("gpt2", "general.architecture"), ("gpt2", "tokenizer.ggml.tokens"), ("gpt2", "tokenizer.ggml.merges"),
        ("llama", "tokenizer.ggml.scores"), ("llama", "tokenizer.ggml.token_type"),
    ],
)  # fmt: skip
def test_a_file_without_a_needed_setting_is_refused(kind, key):
    values = metadata(kind=kind, **{"tokenizer.ggml.scores": [0.0] * 4})
    del values[key]
    with pytest.raises(ModelError, match=rf"x\.gguf has no {key}$") as caught:
        gguf_tokenizer.build(values, "x.gguf")
    assert caught.value.code == "gguf-unsupported"


def sentencepiece(pieces, **more):
    """The metadata of a SentencePiece vocabulary: these pieces and their scores, after the bytes."""
    tokens = {"<unk>": 0.0, "<s>": 0.0, "</s>": 0.0, **dict.fromkeys(gguf_tokenizer.BYTES, 0.0), **pieces}
    return metadata(kind="llama") | {
        "tokenizer.ggml.tokens": list(tokens), "tokenizer.ggml.scores": list(tokens.values()),
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(pieces)],
        "tokenizer.ggml.eos_token_id": 2, **more,
    }  # fmt: skip


def test_the_neighbours_with_the_highest_score_merge_first():
    letters = {"▁": -9.0, "a": -9.0, "b": -9.0, "c": -9.0}
    for first, second, pieces in (("ab", "bc", ["▁", "ab", "c"]), ("bc", "ab", ["▁", "a", "bc"])):
        values = sentencepiece({**letters, first: -1.0, second: -2.0})
        assert gguf_tokenizer.build(values, "x.gguf").tokenizer.encode("abc", add_special_tokens=False).tokens == pieces


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_keeps_spaces_lines_and_unknown_characters(prefix):
    values = sentencepiece({"▁": -9.0, "a": -9.0}, **{"tokenizer.ggml.add_space_prefix": prefix})
    tokenizer = gguf_tokenizer.build(values, "x.gguf").tokenizer
    encoded = tokenizer.encode("a a\né", add_special_tokens=False)
    assert encoded.tokens == [*["▁"] * prefix, "a", "▁", "a", "<0x0A>", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(encoded.ids) == "a a\né"


@pytest.mark.parametrize(
    ("pieces", "problem"),
    [
        ({"a": -9.0, "b": -9.0, "c": -9.0, "ab": -1.0, "bc": -1.0}, "share their score with another one, such as 'ab'"),
        ({"a": -9.0, "ab": -1.0}, "have a character that is no token, such as 'ab'"),
    ],
)
def test_a_sentencepiece_vocabulary_with_two_readings_is_refused(pieces, problem):
    with pytest.raises(ModelError, match=rf"x\.gguf: the SentencePiece .* {problem}") as caught:
        gguf_tokenizer.build(sentencepiece(pieces), "x.gguf")
    assert caught.value.code == "gguf-unsupported"


def test_a_sentencepiece_vocabulary_without_bytes_is_refused():
    with pytest.raises(ModelError, match="no tokens for 256 of the 256 bytes, such as '<0x00>'"):
        gguf_tokenizer.build(metadata(kind="llama", **{"tokenizer.ggml.scores": [0.0] * 4}), "x.gguf")


def test_a_damaged_file(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"not a model at all")
    with pytest.raises(ModelError, match=r"x\.gguf") as caught:
        read_file(tmp_path / "x.gguf")
    assert caught.value.code == "model-damaged"


def test_no_conversion_begins_without_room_for_it(file, weights, converted, tmp_path, monkeypatch):
    assert (converted.folder, "small.gguf", "mit") in gguf_files.converted()
    monkeypatch.setenv("RUNG_CACHE", str(tmp_path / "cache"))
    needed, usage = 4 * sum(values.size for values in weights.values()), namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, needed - 1))
    with pytest.raises(ModelError, match=r"small\.gguf, whose weights are kept in 32 bits, needs 0\.0 GB") as caught:
        resolve(str(file))
    assert caught.value.code == "write-failed"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, needed))
    assert resolve(str(file)).fingerprint == converted.fingerprint


# ---- a model in several files, as llama.cpp's gguf-split writes it


def copy_metadata(reader, writer):
    for name, entry in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            items = entry.types[1] if entry.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, entry.contents(), entry.types[0], items)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def written_part(path, file, number, some, count=2, change=np.array):
    """Write a part of the small file with `some` of its tensors."""
    read, writer = gguf.GGUFReader(file), gguf.GGUFWriter(path, "llama")
    if number == 0:
        copy_metadata(read, writer)
    writer.add_uint16("split.no", number)
    writer.add_uint16("split.count", count)
    writer.add_int32("split.tensors.count", len(read.tensors))
    for tensor in read.tensors[some]:
        writer.add_tensor(tensor.name, change(tensor.data))
    finish(writer)
    return path


@pytest.fixture
def parts(file, tmp_path):
    """The small file in two parts, cut between its tensors."""
    cut = (slice(None, 5), slice(5, None))
    return [written_part(tmp_path / f"small-{i + 1:05d}-of-00002.gguf", file, i, some) for i, some in enumerate(cut)]


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ({"number": 0, "some": slice(None, 5)}, "holds part 1 of 2"),
        ({"number": 1, "some": slice(5, None), "count": 3}, "holds part 2 of 3"),
        ({"number": 1, "some": slice(4, None)}, "holds 1 tensors that an earlier part holds too, such as "),
    ],
)
def test_a_part_that_is_another_one_is_named(parts, file, part, says):
    written_part(parts[1], file, **part)
    with pytest.raises(ModelError) as wrong:
        resolve(str(parts[0]))
    assert wrong.value.code == "model-damaged"
    assert f"{parts[1]} {says}" in wrong.value.message


def test_a_tensor_of_no_numbers_is_one_of_the_users_file(parts, file, converted):
    written_part(parts[1], file, 1, slice(5, None), change=lambda data: np.full_like(data, np.nan))
    with pytest.raises(ModelError, match="holds values that are no numbers") as wrong:
        verify(resolve(str(parts[0])))
    assert wrong.value.message.startswith(f"{parts[0]}: ")


@pytest.mark.parametrize("name", ["small.bin", "small.gguf.part1of2"])
def test_a_gguf_file_of_another_name_is_known_by_its_content(file, tmp_path, monkeypatch, name):
    (tmp_path / "models").mkdir()
    shutil.copyfile(file, tmp_path / "models" / name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="is a GGUF file, and its name does not end in") as wrong:
        resolve(f"models/{name}")
    assert "did you mean" not in wrong.value.hint


def test_a_folder_of_gguf_files_is_not_the_model(file):
    with pytest.raises(ModelError, match="holds no weights in safetensors format") as wrong:
        resolve(str(file.parent))
    assert wrong.value.hint == f"name a GGUF file itself, such as {file}"


def test_all_parts_of_a_split_file_make_the_whole_model_and_are_read_once(parts, converted, monkeypatch):
    from safetensors.numpy import load_file

    checked, check = [], gguf_files._check_header
    monkeypatch.setattr(gguf_files, "_check_header", lambda file: checked.append(file) or check(file))
    whole, joined = (load_file(f.folder / "model.safetensors") for f in (converted, resolve(str(parts[0]))))
    assert whole.keys() == joined.keys()
    assert all(np.array_equal(whole[name], joined[name]) for name in whole)
    resolve(str(parts[0]))
    assert checked == parts


def test_a_part_of_a_split_file_is_not_the_model(parts):
    with pytest.raises(ModelError, match="is not the first part") as wrong:
        resolve(str(parts[1]))
    assert wrong.value.hint == f"name {parts[0]}"
    parts[1].unlink()
    with pytest.raises(ModelError, match=r"00002-of-00002.gguf is missing: the model has 2 parts"):
        resolve(str(parts[0]))


def test_a_renamed_part_is_not_the_model(parts, tmp_path):
    renamed = parts[0].rename(tmp_path / "model.gguf")
    with pytest.raises(ModelError, match="is part 1 of 2"):
        resolve(str(renamed))


def test_a_file_without_some_tensors_is_refused(file, tmp_path):
    read, path = gguf.GGUFReader(file), tmp_path / "less.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    copy_metadata(read, writer)
    for tensor in read.tensors:
        if tensor.name != "blk.0.ffn_up.weight":
            writer.add_tensor(tensor.name, np.array(tensor.data))
    finish(writer)
    with pytest.raises(ModelError, match=r"lacks 1 tensors of its model, such as model.layers.0.mlp.up_proj.weight"):
        resolve(str(path))


@pytest.mark.parametrize(("pre", "begins"), [("gpt-2", False), ("qwen2", False), ("llama-bpe", True), ("tekken", True)])
@pytest.mark.parametrize("said", [None, True, False])
def test_a_text_begins_as_in_llama_cpp_where_the_file_does_not_say(pre, begins, said):
    metadata = {
        "general.architecture": "llama", "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": ["<s>", "a"], "tokenizer.ggml.token_type": [3, 1], "tokenizer.ggml.merges": [],
        "tokenizer.ggml.bos_token_id": 0,
    }  # fmt: skip
    if said is not None:
        metadata["tokenizer.ggml.add_bos_token"] = said
    assert gguf_tokenizer.build(metadata, "m.gguf").adds_bos is (begins if said is None else said)
