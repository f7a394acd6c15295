import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any library looks at it
os.environ["RUNG_TRUST"] = os.sep  # tests write their own code; tests/security takes the consent away

import csv
from pathlib import Path

import pytest

from browser import chromium
from rung.artifact.artifact import Artifact
from rung.data.rows import Data
from rung.models.tokenizer import Tokenizer
from rung.task import Task

EXAMPLES = Path(__file__).parents[1] / "examples"
LABELS = ("card_arrival", "lost_or_stolen_card", "exchange_rate", "age_limit", "top_up_failed", "get_physical_card")


@pytest.fixture(scope="session", autouse=True)
def _own_responses_and_indexes(tmp_path_factory):
    """What earlier runs remembered and indexed must not make a test pass or fail; the models' cache is shared."""
    from rung.engines import response_cache
    from rung.models.cache import cache_dir
    from rung.retrieval import build

    folder = tmp_path_factory.mktemp("cache")
    shared = cache_dir()
    patch = pytest.MonkeyPatch()
    patch.setattr(response_cache, "store_path", lambda: folder / "responses.sqlite")
    patch.setattr(build, "cache_dir", lambda: folder if (now := cache_dir()) == shared else now)
    yield
    patch.undo()


@pytest.fixture(scope="session")
def small_task_file(tmp_path_factory):
    """Six intents of BANKING77: 8 training, 4 validation and 6 test rows each, as real files."""
    folder = tmp_path_factory.mktemp("task")
    for name, per_label in (("train", 8), ("validation", 4), ("test", 6)):
        chosen = []
        for label in LABELS:
            chosen += [row for row in _rows(name) if row["category"] == label][:per_label]
        with (folder / f"{name}.csv").open("w", newline="") as out:
            writer = csv.DictWriter(out, ["text", "category"])
            writer.writeheader()
            writer.writerows(chosen)
    file = folder / "task.yaml"
    file.write_text(
        "name: intents\ninstruction: Which intent does this message of a bank's customer express?\ninputs: [text]\n"
        "output: {column: category, kind: category}\n"
        "data: {train: train.csv, validation: validation.csv, test: test.csv}\n"
    )
    return file


def _rows(name):
    with (EXAMPLES / "banking77" / f"{name}.csv").open(newline="") as rows:
        return list(csv.DictReader(rows))


@pytest.fixture(scope="session")
def task(small_task_file) -> Task:
    return Task.load(small_task_file)


@pytest.fixture(scope="session")
def data(task) -> Data:
    return task.read()


@pytest.fixture(scope="session")
def zero(task, data) -> Artifact:
    return Artifact.zero_shot(task, data.labels)


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory) -> Tokenizer:
    """Byte-level BPE over the letters a, b, c and the space; ids 0 to 2 are special, 2 ends an answer."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("tiny")
    backend = Backend(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=24, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    backend.train_from_iterator(["ab abba ba bab c c", "abba bab", "ba c ab"] * 9, trainer)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>", "unk_token": "<unk>"}')
    return Tokenizer.load(folder)


@pytest.fixture(scope="session")
def tiny_model():
    """Return a function that builds a random Llama of two layers with so many logits, the same every time."""

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    def build(vocabulary: int) -> LlamaForCausalLM:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.5, bos_token_id=1, eos_token_id=2,
            pad_token_id=0,
        )  # fmt: skip
        return LlamaForCausalLM(config).eval()

    return build


@pytest.fixture(scope="session")
def letters_folder(tiny_tokenizer, tiny_model, tmp_path_factory) -> Path:
    """A saved artifact that scores labels on a random Llama of a few thousand weights, and refuses long rows."""
    from rung.artifact.labels import LabelScoring
    from rung.artifact.parts import Signature
    from rung.prompts.prompt import Prompt

    model = tmp_path_factory.mktemp("model") / "tiny"
    tiny_model(tiny_tokenizer.vocabulary_size).save_pretrained(model)
    for file in tiny_tokenizer.folder.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    artifact = Artifact(
        signature=Signature("letters", ("text",), "category", "accuracy", ("x", "y", "z")),
        model=str(model),
        prompt=Prompt(instruction="", template="{text}"),
        decoder=LabelScoring(("x", "y", "z"), ("ab", "ba", "c")),
        path=("zero-shot",),
    )
    return artifact.save(tmp_path_factory.mktemp("artifact") / "letters")


@pytest.fixture(scope="session")
def letters(letters_folder) -> Artifact:
    return Artifact.load(letters_folder)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A folder with a random Llama of two layers and the embedded model's tokenizer: for mechanics, in seconds."""
    import shutil

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from rung.models.reference import resolve

    source, folder = resolve("embedded").folder, tmp_path_factory.mktemp("model") / "tiny-llama"
    folder.mkdir()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    for file in source.iterdir():
        if "token" in file.name or file.suffix == ".jinja":
            shutil.copyfile(file, folder / file.name)
    return folder


@pytest.fixture(scope="session")
def tiny_zero(task, data, tiny_folder) -> Artifact:
    return Artifact.zero_shot(task.model_copy(update={"model": str(tiny_folder)}), data.labels)


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory) -> Path:
    """A folder with a random BERT of two layers and the embedded sentence encoder's tokenizer and pooling."""
    import shutil

    import torch
    from transformers import BertConfig, BertModel

    from rung.models.reference import resolve

    folder = tmp_path_factory.mktemp("encoder") / "tiny-bert"
    ignored = shutil.ignore_patterns("*.safetensors", "*.md", "*.txt")
    shutil.copytree(resolve("embedded-encoder").folder, folder, ignore=ignored)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30522, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def browser():
    """One browser for all tests of a process: Playwright can be started only once at a time."""
    with chromium() as opened:
        yield opened
