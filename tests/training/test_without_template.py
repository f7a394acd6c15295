"""A base model without a chat template: what it is trained on is, token for token, what it reads and writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rung.artifact.artifact import Artifact
from rung.engines.local import LocalModel
from rung.engines.opening import open_torch
from rung.engines.openvino import OpenVinoEngine
from rung.engines.torch_engine import TorchEngine
from rung.rungs import Full
from rung.task import Task
from rung.training.examples import tokenize


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a token for every byte, one that begins and one that ends; no chat template."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    folder = tmp_path_factory.mktemp("base") / "tiny-base"
    folder.mkdir()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<s>", normalized=False), AddedToken("</s>", normalized=False)])
    backend.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=258, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=256, eos_token_id=257,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def chat(question: str, answer: str) -> str:
    return json.dumps(
        {
            "messages": [
                {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"},
                {"role": "user", "content": question}, {"role": "assistant", "content": answer},
            ]
        }
    )  # fmt: skip


ROWS = [(f"How is {name}?", "ill") for name in ("Ann", "Bob")]
KINDS = {
    "table and template": (
        "rows.csv",
        "question,answer\n" + "".join(f"{q},{a}\n" for q, a in ROWS),
        'inputs: [question]\noutput: {column: answer, kind: text, max_tokens: 8}\ntemplate: "Q: {question}\\nA: "\n',
        "<s>Answer.\n\nQ: How is Ann?\nA: >ill</s>",
    ),
    "prompt and completion": (
        "rows.jsonl",
        "".join(json.dumps({"prompt": q, "completion": f" {a}"}) + "\n" for q, a in ROWS),
        "inputs: [prompt]\noutput: {column: completion, kind: text, max_tokens: 8}\n",
        "<s>Answer.\n\nHow is Ann?\n\n>ill</s>",
    ),
    "chat messages": (
        "rows.jsonl",
        "".join(chat(q, a) + "\n" for q, a in ROWS),
        "inputs: [messages]\noutput: {kind: chat, max_tokens: 8}\n",
        "<s>Answer.\n\nHi\n\nHello\n\nHow is Ann?\n\n>ill</s>",
    ),
    "labels": (
        "rows.csv",
        "question,answer\n" + "".join(f"{q},{a}\n" for q, a in ROWS) + "How is Cem?,fine\n",
        "inputs: [question]\noutput: {column: answer, kind: category, labels: [fine, ill]}\n",
        "<s>Answer.\n\nAnswer with one of: fine, ill\n\nHow is Ann?\n\n>ill</s>",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_learnt_is_what_is_read_and_written(base_model: Path, tmp_path: Path, kind: str) -> None:
    name, rows, about, text = KINDS[kind]
    splits = []
    for split, word in (("train", "How"), ("validation", "Who"), ("test", "Where")):
        (tmp_path / f"{split}-{name}").write_text(rows.replace("How", word))
        splits.append(f"{split}: {split}-{name}")
    file = tmp_path / "task.yaml"
    file.write_text(f"name: t\ninstruction: Answer.\nmodel: {base_model}\n{about}data: {{{', '.join(splits)}}}\n")
    task = Task.load(file)
    data = task.read()
    zero = Artifact.zero_shot(task, data.labels, engine="torch")
    engine = open_torch(str(base_model))
    learnt = next(row for row in reversed(tokenize(zero, engine, data.train)) if "Ann" in engine.text(row.prompt))
    ends = learnt.spans[-1][0]
    prompt, answer = learnt.tokens[:ends], learnt.tokens[ends:]
    assert f"{engine.tokenizer.decode(prompt, skip_special=False)}>{engine.text(answer)}" == text

    tuned = Full(learning_rate=0.01, epochs=60, batch_size=4, lr_scheduler="constant").fit(zero, data)
    fed: list[int] = []
    hook = engine.model.get_input_embeddings().register_forward_hook(lambda _, given, __: fed.extend(given[0][0]))
    asked = next(row for row in data.train if "Ann" in json.dumps(row.inputs))
    found = tuned.with_engine(engine).predict([asked.inputs])[0]
    hook.remove()
    assert found.text == "ill"
    assert tuple(map(int, fed[:ends])) == prompt
    if kind != "labels":  # the label tree is read in its own order
        assert tuple(map(int, fed[ends:])) == answer[:-1]  # the token that ends is written, and not read again
        assert found.completion_tokens == len(answer)


def test_every_engine_of_a_folder_reads_the_same_tokens() -> None:
    for engine in (TorchEngine, OpenVinoEngine):
        assert engine.tokens is LocalModel.tokens
        assert engine.fitting is LocalModel.fitting
