import csv
import dataclasses
import json
import math
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from rung.engines import encoders
from rung.engines.encoders import (
    BATCH_TOKENS,
    OpenVinoEncoder,
    Recipe,
    batches,
    choose_backend,
    open_sentence_encoder,
    pool,
    read_recipe,
)
from rung.engines.opening import open_encoder
from rung.errors import ConfigError, ModelError
from rung.models.reference import resolve

EXAMPLES = Path(__file__).parents[2] / "examples"
ODD = [
    "",
    " ",
    "Ünïcödé ÀÉÎ İstanbul ß",
    "a [SEP] b [MASK] [PAD] c",
    "国際 送金 \u200b zero width",
    "tab\tnew\nline \x00 control",
    "word " * 400,
    "x" * 300,
    "😀 emoji 👩‍👩‍👧",
]


@pytest.fixture(scope="module")
def files():
    return resolve("embedded-encoder")


@pytest.fixture(scope="module")
def openvino(files):
    return open_sentence_encoder(files, backend="openvino")


@pytest.fixture(scope="module")
def torch(files):
    return open_sentence_encoder(files, backend="torch", device="cpu")


@pytest.fixture(scope="module")
def texts():
    with (EXAMPLES / "banking77" / "test.csv").open(newline="") as rows:
        messages = [row["text"] for row in csv.DictReader(rows)]
    abstracts = [json.loads(line) for line in (EXAMPLES / "scitldr" / "test.jsonl").read_text().splitlines()]
    return [*messages[:200], *ODD, *("".join(abstract["source"]) for abstract in abstracts[:12])]


def test_tokens_are_those_of_sentence_transformers(openvino, torch, texts):
    ours = [encoding.ids for encoding in openvino._batches.encode_batch_fast(texts)]
    theirs = [torch._model.tokenize([text])["input_ids"][0].tolist() for text in texts]
    assert ours == theirs
    assert max(map(len, ours)) == openvino.recipe.limit == 256


def test_vectors_are_those_of_sentence_transformers(openvino, torch, texts):
    ours, theirs = openvino.embed(texts), torch.embed(texts)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)
    assert (ours * theirs).sum(1).min() > 0.99999
    assert openvino.embed([]).shape == torch.embed([]).shape == (0, 384)
    assert openvino.fingerprint == torch.fingerprint
    assert openvino.encode("a [SEP] b") == torch.encode("a [SEP] b")


@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_a_text_longer_than_the_encoder_reads_is_the_mean_of_its_windows(backend, request):
    encoder = request.getfixturevalue(backend)
    text = " ".join(f"the {n}th customer waits for number {n * 7919}" for n in range(120)) + " [SEP] the end"
    windows = encoder.windows(text)
    assert len(windows) == math.ceil(len(encoder.encode(text)) / (encoder.limit - 8)) > 3
    assert "".join(windows) == text
    lengths = [len(encoder.encode(window)) for window in windows]
    assert max(lengths) <= encoder.limit
    assert min(lengths) > 0.9 * max(lengths)
    mean = encoder.embed(windows).mean(0)
    vectors = encoder.embed(["short", text])
    np.testing.assert_allclose(vectors[1], mean / np.linalg.norm(mean), atol=1e-5)
    np.testing.assert_allclose(vectors[:1], encoder.embed(["short"]), atol=1e-5)
    assert len(encoder.windows("中国" * 300)) == 3  # a text without a space is cut as well


def test_a_vector_depends_neither_on_its_batch_nor_on_the_order(openvino, texts):
    texts = [*ODD, *texts[:60]]
    together = openvino.embed(texts)
    np.testing.assert_allclose(openvino.embed(texts[::-1])[::-1], together, atol=1e-5)
    np.testing.assert_allclose(
        np.concatenate([openvino.embed([text]) for text in texts[:20]]), together[:20], atol=1e-5
    )


def test_batches_hold_every_text_once_under_the_bound():
    lengths = [3, 256, 5000, 4, 4, 90, *range(1, 200)]
    made = list(batches(lengths))
    assert sorted(row for rows in made for row in rows) == list(range(len(lengths)))
    for rows in made:
        assert len(rows) == 1 or len(rows) * max(lengths[row] for row in rows) <= BATCH_TOKENS
    assert list(batches([])) == []


@pytest.mark.parametrize("mode", ["mean", "cls", "max"])
def test_pooling_is_that_of_sentence_transformers(mode):
    import torch
    from sentence_transformers.sentence_transformer.modules import Pooling

    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(5, 7, 8)).astype(np.float32)
    mask = (np.arange(7) < np.array([1, 3, 7, 5, 2])[:, None]).astype(np.int64)
    features = {"token_embeddings": torch.tensor(hidden), "attention_mask": torch.tensor(mask)}
    expected = Pooling(8, pooling_mode=mode)(features)["sentence_embedding"].numpy()
    np.testing.assert_allclose(pool(hidden, mask, mode), expected, atol=1e-6)


def changed(files, tmp_path, file, change):
    """Return a copy of the encoder's settings, with one file changed."""
    folder = tmp_path / "copy"
    shutil.copytree(files.folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    values = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(change(values)))
    return folder


DENSE = {"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"}


@pytest.mark.parametrize(
    ("file", "change", "recipe"),
    [
        ("config.json", lambda v: v, Recipe("mean", 256)),
        ("modules.json", lambda v: v[:2], Recipe("mean", 256)),
        ("modules.json", lambda v: [*v, DENSE], None),
        ("1_Pooling/config.json", lambda v: {**v, "pooling_mode_cls_token": True}, None),
        ("1_Pooling/config.json", lambda v: {"pooling_mode_cls_token": True}, Recipe("cls", 256)),
        ("1_Pooling/config.json", lambda v: {"pooling_mode": "max"}, Recipe("max", 256)),
        ("1_Pooling/config.json", lambda v: {"pooling_mode": "lasttoken"}, None),
        ("sentence_bert_config.json", lambda v: {"max_seq_length": 128, "do_lower_case": True}, None),
        ("sentence_bert_config.json", lambda v: {"max_seq_length": 128, "unknown": 1}, None),
        ("sentence_bert_config.json", lambda v: {"transformer_task": "feature-extraction"}, Recipe("mean", 512)),
        ("config_sentence_transformers.json", lambda v: {"default_prompt_name": "query"}, None),
        ("config.json", lambda v: {**v, "model_type": "qwen3"}, None),
    ],
)
def test_only_what_is_understood_is_a_recipe(files, tmp_path, file, change, recipe):
    assert read_recipe(changed(files, tmp_path, file, change)) == recipe


def test_the_backend_is_openvino_on_processors_and_torch_elsewhere(files, monkeypatch):
    monkeypatch.setattr(encoders, "_has_gpu", lambda: False)
    assert choose_backend(files) == choose_backend(files, device="cpu") == "openvino"
    assert choose_backend(files, device="cuda") == "torch"
    monkeypatch.setattr(encoders, "_has_gpu", lambda: True)
    assert choose_backend(files) == "torch"
    monkeypatch.setattr(encoders, "read_recipe", lambda folder: None)
    assert choose_backend(files, device="cpu") == "torch"
    with pytest.raises(ConfigError, match="exactly"):
        open_sentence_encoder(files, backend="openvino")


def test_an_artifact_answers_the_same_with_either_backend(zero, data, files, monkeypatch):
    from rung.engines import opening
    from rung.rungs import Features

    artifact = Features().fit(zero, data)
    answers = {}
    for backend in ("openvino", "torch"):
        encoder = open_sentence_encoder(files, backend=backend)
        monkeypatch.setattr("rung.artifact.heads.open_encoder", lambda model, progress, encoder=encoder: encoder)
        answers[backend] = [answer.text for answer in artifact.answer(data.test)]
    assert answers["openvino"] == answers["torch"]
    assert opening.open_encoder("embedded-encoder").backend == choose_backend(files)


def test_the_first_inference_runs_alone(files, monkeypatch):
    seen = []
    run = OpenVinoEncoder._run

    def spy(self, requests, encodings):
        seen.append((threading.current_thread() is threading.main_thread(), len(encodings)))
        return run(self, requests, encodings)

    monkeypatch.setattr(OpenVinoEncoder, "_run", spy)
    open_sentence_encoder(files, backend="openvino")
    assert seen == [(True, 1)]  # two first ones at once can wait for each other for ever


@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_queries_and_documents_are_read_behind_the_encoders_prompts(files, tmp_path, monkeypatch, backend, request):
    """As sentence-transformers reads them; the weights are the built-in encoder's, so nothing is exported again."""
    folder = tmp_path / "prompted"
    shutil.copytree(files.folder, folder)
    settings = {"prompts": {"query": "ask: ", "passage": "read: ", "other": "no: "}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    opened = request.getfixturevalue(backend)
    monkeypatch.setattr(opened, "files", resolve(str(folder)))
    vars(opened).pop("prompts", None)
    texts, plain = ["My card is lost", "word " * 400], request.getfixturevalue("torch")._model
    try:
        assert opened.prompts == {"query": "ask: ", "document": "read: "}
        for role, prompt in (("query", "ask: "), ("document", "read: "), (None, "")):
            ours = opened.embed(texts, role=role)
            theirs = plain.encode(texts[:1], prompt=prompt, normalize_embeddings=True)
            assert (ours[:1] * theirs).sum() > 0.99999
            windows = opened.windows(texts[1], len(opened.encode(prompt)))
            mean = plain.encode(windows, prompt=prompt, normalize_embeddings=True).mean(0)
            assert (ours[1] @ mean) / np.linalg.norm(mean) > 0.99999
    finally:
        vars(opened).pop("prompts", None)


def test_an_encoder_of_the_catalogue_has_its_prompts(files, openvino, monkeypatch):
    listed = dataclasses.replace(files, reference="intfloat/multilingual-e5-small", folder=files.folder / "1_Pooling")
    monkeypatch.setattr(openvino, "files", listed)
    vars(openvino).pop("prompts", None)
    try:
        assert openvino.prompts == {"query": "query: ", "document": "passage: "}
    finally:
        vars(openvino).pop("prompts", None)


@pytest.mark.parametrize("padding", ["[PAD]", None])
def test_vectors_of_a_language_model_that_reads_padding_are_those_row_by_row(tiny_encoder, tmp_path, padding):
    import transformers
    from sentence_transformers import SentenceTransformer

    folder = shutil.copytree(tiny_encoder, tmp_path / "doge")
    config = transformers.DogeConfig(
        vocab_size=30522, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.3,
    )  # fmt: skip
    transformers.DogeModel(config).save_pretrained(folder)
    texts = ["a", "my card", "why is the card that was sent to my old address by post two weeks ago still not here"]
    alone = [SentenceTransformer(str(folder)).encode([text])[0] for text in texts]
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token": padding}))
    encoder = open_sentence_encoder(resolve(str(folder)), backend="torch", device="cpu")
    np.testing.assert_allclose(encoder.embed(texts), alone, atol=1e-5)


@pytest.fixture(scope="module")
def static(files, tmp_path_factory):
    """A random table of token vectors, as sentence-transformers saves it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
    from tokenizers import Tokenizer as Backend

    folder = tmp_path_factory.mktemp("static")
    backend = Backend.from_file(str(files.folder / "tokenizer.json"))
    backend.no_truncation()  # all of a text is read
    table = np.random.default_rng(0).normal(size=(backend.get_vocab_size(), 24)).astype(np.float32)
    SentenceTransformer(modules=[StaticEmbedding(backend, embedding_weights=table), Normalize()]).save(str(folder))
    return folder


def test_a_table_of_token_vectors_is_read_as_sentence_transformers_reads_it(static, texts):
    from sentence_transformers import SentenceTransformer

    opened = open_encoder(str(static))
    assert (opened.backend, opened.files.architecture) == ("static", "StaticEmbedding")
    with pytest.raises(ConfigError, match="int8 through OpenVINO alone, and here static runs it"):
        open_encoder(str(static), precision="int8")
    ours, theirs = opened.embed(texts), SentenceTransformer(str(static), device="cpu").encode(texts)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert opened.embed([]).shape == (0, 24)


def test_a_damaged_table_is_refused(static, tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "damaged"
    shutil.copytree(static, folder)
    tensors = load_file(folder / "model.safetensors")
    (name,) = tensors
    for wrong, code in (
        ({name: tensors[name][:9]}, "model-damaged"),
        ({name: tensors[name] * np.float32(np.nan)}, "model-damaged"),
        ({name: tensors[name], "weights": tensors[name][0]}, "model-unsupported"),
    ):
        save_file(wrong, folder / "model.safetensors")
        with pytest.raises(ModelError) as refused:
            open_encoder(str(folder))
        assert refused.value.code == code
