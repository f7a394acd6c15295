"""Cross-encoders that sentence-transformers runs, of random weights."""

import json
import random
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from rung.artifact.artifact import load_retriever
from rung.data.rows import Example, example_id
from rung.data.spec import Corpus
from rung.errors import ArtifactError, ModelError
from rung.models.checkpoint import kind_of, verify
from rung.models.reference import resolve
from rung.retrieval.build import build
from rung.retrieval.index import SearchSettings
from rung.retrieval.passage import Passage
from rung.retrieval.retriever import Retriever, by_cross_encoder

WORDS = ("card", "wire", "rate", "gold", "tin", "lost", "of", "the", "a", "is", "money", "bank")
LIMIT = 24  # tokens of a pair


def passage(text, title=""):
    return Passage(f"d:{text}", "d", title, text, None, 0, len(text))


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory):
    """Return a function that saves a BERT of two layers with one label, or as many as asked for."""

    def save(labels=1, seed=0, **config):
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
        from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

        folder = tmp_path_factory.mktemp("cross-encoder")
        vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
        backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        backend.normalizer = normalizers.Lowercase()
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        PreTrainedTokenizerFast(
            tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
            model_max_length=LIMIT,
        ).save_pretrained(folder)  # fmt: skip
        torch.manual_seed(seed)
        settings = BertConfig(
            vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_labels=labels,
            intermediate_size=32, max_position_embeddings=LIMIT, initializer_range=0.4, **config,
        )  # fmt: skip
        BertForSequenceClassification(settings).save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="module")
def model(cross_encoder):
    return cross_encoder()


def texts(number, longest=3 * LIMIT):
    chance = random.Random(0)
    return [" ".join(chance.choices(WORDS, k=chance.randint(1, longest))) for _ in range(number)]


def expected(folder, pairs):
    from sentence_transformers import CrossEncoder

    one = CrossEncoder(str(folder), local_files_only=True)
    return [float(one.predict([pair], show_progress_bar=False)[0]) for pair in pairs]  # each alone: no padding


ACTIVATIONS = {
    "none": {},
    "identity": {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "5.1.0"}},
    "sigmoid": {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid", "version": "5.1.0"}},
    "old": {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
}


@pytest.mark.parametrize("setting", ACTIVATIONS)
def test_scores_are_those_of_sentence_transformers_pair_by_pair(cross_encoder, setting):
    folder = cross_encoder(**ACTIVATIONS[setting])
    queries = texts(3, 8)
    found = [[passage(text) for text in texts(number)] for number in (40, 0, 7)]
    scores = by_cross_encoder(str(folder))(queries, found)
    assert [len(row) for row in scores] == [40, 0, 7]
    for query, passages, row in zip(queries, found, scores, strict=True):
        np.testing.assert_allclose(row, expected(folder, [(query, p.text) for p in passages]), atol=1e-5, rtol=0)
    if setting in ("none", "sigmoid"):
        assert all(0 < score < 1 for row in scores for score in row)
    else:
        assert min(map(min, filter(None, scores))) < 0


@pytest.fixture(scope="module")
def modular(cross_encoder, tmp_path_factory):
    """Save a cross-encoder whose head is of modules, as Ettin's rerankers are."""
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from torch import nn
    from transformers import AutoModel

    base = cross_encoder(seed=2)
    AutoModel.from_pretrained(base).save_pretrained(base)
    head = Dense(16, 1, activation_function=nn.Identity(), module_output_name="scores")
    modules = [Transformer(str(base)), Pooling(16, "cls"), head]
    CrossEncoder(modules=modules, activation_fn=nn.Identity()).save_pretrained(
        str(folder := tmp_path_factory.mktemp("modular"))
    )
    return folder


def test_a_reranker_of_modules_scores_as_sentence_transformers_does(modular):
    assert kind_of(resolve(str(modular))) == "reranker"
    (row,) = by_cross_encoder(str(modular))(["lost card"], [[passage(text) for text in texts(9)]])
    np.testing.assert_allclose(row, expected(modular, [("lost card", text) for text in texts(9)]), atol=1e-5, rtol=0)
    assert min(row) < 0


@pytest.mark.parametrize(
    ("kind", "padding"), [("Llama", 0), ("Llama", None), ("Llama", 7), ("Llama", "no token"), ("Doge", 0)]
)
def test_scores_of_a_language_model_are_those_pair_by_pair(cross_encoder, kind, padding):
    """With its tokenizer's padding token, none, another one, a tokenizer without one, and where padding is read."""
    folder = cross_encoder()
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=16, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_labels=1,
        max_position_embeddings=64, initializer_range=0.4, pad_token_id=None if padding == "no token" else padding,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    pairs = [("lost card", text) for text in texts(9, 16)]
    wanted = expected(folder, pairs)
    if padding == "no token":
        file = folder / "tokenizer_config.json"
        file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "pad_token"}))
    (row,) = by_cross_encoder(str(folder))(["lost card"], [[passage(text) for _, text in pairs]])
    np.testing.assert_allclose(row, wanted, atol=1e-5, rtol=0)


def test_a_model_that_finds_no_end_token_is_refused(cross_encoder):
    folder = cross_encoder()
    config = transformers.BartConfig(
        vocab_size=16, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, num_labels=1,
        decoder_attention_heads=2, max_position_embeddings=64, eos_token_id=15, pad_token_id=0,
        decoder_start_token_id=15, bos_token_id=1,
    )  # fmt: skip
    transformers.BartForSequenceClassification(config).save_pretrained(folder)
    with pytest.raises(ModelError, match="gives no scores here"):
        by_cross_encoder(str(folder))


def test_a_reranker_runs_as_its_makers_code_does(cross_encoder, tmp_path):
    """Without Mamba's kernels, transformers' Zamba 2 reads ahead in a row of several chunks."""
    folder = cross_encoder()
    config = transformers.Zamba2Config(
        vocab_size=16, hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_labels=1,
        num_key_value_heads=4, mamba_d_state=16, n_mamba_heads=4, mamba_ngroups=1, chunk_size=8, pad_token_id=0,
        layers_block_type=["mamba", "hybrid"], hybrid_layer_ids=[1], max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    right = shutil.copytree(folder, tmp_path / "right")
    values = json.loads((right / "config.json").read_text()) | {"chunk_size": 64, "time_step_min": 1e-30}
    (right / "config.json").write_text(json.dumps(values))
    pairs = [("lost card", text) for text in texts(9, 16)]
    wanted = expected(right, pairs)
    assert np.abs(np.subtract(wanted, expected(folder, pairs))).max() > 0.01
    (row,) = by_cross_encoder(str(folder))(["lost card"], [[passage(text) for _, text in pairs]])
    np.testing.assert_allclose(row, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["reranker", "encoder"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_head_of_no_numbers_is_refused(modular, tmp_path, kind, value):
    folder = shutil.copytree(modular, tmp_path / "damaged")
    if kind == "encoder":
        (folder / "config_sentence_transformers.json").unlink()
    before = resolve(str(folder))
    verify(before, kind)
    (file,) = folder.glob("*_Dense/model.safetensors")
    save_file(load_file(file) | {"linear.bias": torch.tensor([value])}, file)
    assert resolve(str(folder)).fingerprint != before.fingerprint
    with pytest.raises(ModelError, match=r"the tensor linear\.bias holds values that are no numbers"):
        verify(resolve(str(folder)), kind)


@pytest.mark.parametrize("kind", ["reranker", "encoder"])
@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"linear.bias": torch.zeros(1)}, 'Missing key(s) in state_dict: "linear.weight"'),
        ({"module.linear.bias": torch.zeros(1)}, 'Unexpected key(s) in state_dict: "module.linear.bias"'),
        ({}, "Could not find 'model.safetensors'"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(modular, tmp_path, kind, tensors, says):
    folder = shutil.copytree(modular, tmp_path / "damaged")
    if kind == "encoder":
        (folder / "config_sentence_transformers.json").unlink()
    (file,) = folder.glob("*_Dense/model.safetensors")
    file.unlink()
    if tensors:
        save_file(tensors, file)
    with pytest.raises(ModelError) as raised:
        verify(resolve(str(folder)), kind)
    assert raised.value.code == "model-damaged"
    assert raised.value.message.startswith(f"{file.parent}: ")
    assert says in raised.value.message


def test_a_reranker_of_modules_that_lost_a_layer_scores_nothing(modular, tmp_path):
    folder = shutil.copytree(modular, tmp_path / "damaged")
    kept = {name: t for name, t in load_file(folder / "model.safetensors").items() if "layer.1." not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"are missing, such as encoder\.layer\.1\."):
        by_cross_encoder(str(folder))


def test_what_is_beyond_the_limit_is_not_read(model):
    rerank = by_cross_encoder(str(model))
    long = " ".join(["gold"] * LIMIT)
    ((cut, longer, other),) = rerank(["card"], [[passage(long), passage(long + " tin"), passage("tin " + long)]])
    assert cut == longer != other


def test_the_title_is_read_before_the_passage(model):
    rerank = by_cross_encoder(str(model))
    ((titled, plain),) = rerank(["card"], [[passage("gold", "wire"), passage("wire\ngold")]])
    assert titled == plain
    assert rerank(["card"], [[passage("gold")]]) == [expected(model, [("card", "gold")])]


def test_nothing_is_scored_where_nothing_was_found(model):
    assert by_cross_encoder(str(model))([], []) == []
    assert by_cross_encoder(str(model))(["card"], [[]]) == [[]]


def test_several_labels_are_no_relevance(cross_encoder):
    folder = cross_encoder(labels=2)
    with pytest.raises(ModelError) as refused:
        by_cross_encoder(str(folder))
    assert refused.value.code == "reranker-unsupported"
    assert str(refused.value) == f"{folder} gives 2 scores for a pair instead of one"


def test_what_is_no_cross_encoder_is_refused():
    with pytest.raises(ModelError) as refused:
        by_cross_encoder("embedded-encoder")
    assert refused.value.code == "reranker-unsupported"


@pytest.fixture
def retriever(model, encoder, tmp_path):
    (tmp_path / "docs").mkdir()
    for number, text in enumerate(texts(8, 12)):
        (tmp_path / f"docs/{number}.txt").write_text(text)
    index = build(tmp_path / "index", Corpus(files="docs"), tmp_path)
    return Retriever(
        index.folder, index.fingerprint, "", k=4, encoder_fingerprint=encoder.fingerprint,
        chunk_tokens=index.manifest.tokens, reranker=str(model), reranker_fingerprint=resolve(str(model)).fingerprint,
    )  # fmt: skip


def rows(*queries):
    return [Example(example_id({"q": q}), {"q": q}, (), f"rows.csv:{i}") for i, q in enumerate(queries)]


def order(retriever, *queries):
    found = retriever.find(rows(*queries), queries, lambda passage: 1)
    return [[passage.document for passage in one.passages] for one in found]


def test_the_retriever_shows_what_the_cross_encoder_finds_best(retriever, model):
    queries = ("gold card", "lost money of the bank")
    every = retriever.index.search(queries, 8, SearchSettings(weight=retriever.weight))
    wanted = []
    for query, passages in zip(queries, every, strict=True):
        scores = expected(model, [(query, f"{p.title}\n{p.text}") for p in passages])
        ranked = sorted(range(len(passages)), key=lambda position, scores=scores: -scores[position])
        wanted.append([passages[position].document for position in ranked[:4]])
    assert order(retriever, *queries) == wanted
    assert order(replace(retriever, reranker=""), *queries) != wanted


def test_saved_and_loaded_it_orders_the_same_and_another_version_is_an_error(
    retriever, cross_encoder, tmp_path, monkeypatch
):
    values = {"retriever": json.loads(json.dumps({**asdict(retriever), "folder": str(retriever.folder)}))}
    loaded = load_retriever(tmp_path, values)
    assert loaded == retriever
    assert order(loaded, "gold card", "wire") == order(retriever, "gold card", "wire")
    values["retriever"]["reranker"] = str(cross_encoder(seed=1))
    with pytest.raises(ArtifactError, match="was measured with another version of") as other:
        load_retriever(tmp_path, values)
    assert other.value.code == "artifact-mismatch"
