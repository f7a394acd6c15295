"""What of a row is read and what is learnt, token for token."""

import json
from dataclasses import replace

import pytest

from rung.artifact.artifact import Artifact
from rung.artifact.parts import Signature
from rung.artifact.text import Generate
from rung.data.rows import Document, Example
from rung.engines.local import LocalModel
from rung.errors import TrainingError
from rung.evaluation.report.words import training_data_lines
from rung.models.reference import ModelFiles, resolve
from rung.prompts.demonstrations import Demonstrations
from rung.prompts.prompt import Prompt
from rung.training.examples import TrainingReport, marked, text_blocks, tokenize
from templates import CHATML, GEMMA, LLAMA3, QWEN

SPECIAL = {
    "chatml": (CHATML, None, "<|im_end|>", ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]),
    "llama3": (
        LLAMA3, "<|begin_of_text|>", "<|eot_id|>",
        ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"],
    ),
    "gemma": (GEMMA, "<bos>", "<eos>", ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]),
    "qwen": (QWEN, None, "<|im_end|>", ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]),
    "raw": (None, None, "</s>", ["</s>"]),
}  # fmt: skip

# What Qwen3's template does to a conversation: thoughts stay in its last answer alone.
QWEN3 = (
    "{% for m in messages %}{% set text = m['content'] %}{% if m['role'] == 'assistant' and '</think>' in text and "
    "not loop.last %}{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + text + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def model(folder, name="chatml", *, template=None, context=400, bos=True):
    """A model's tokens: one for every byte, and the special ones of its family."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    default, begin, end, special = SPECIAL[name]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    values = {"bos_token": begin, "eos_token": end, "add_bos_token": bos and begin is not None}
    if template or default:
        values["chat_template"] = template or default
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    if name == "gemma":
        ids = [backend.token_to_id(token) for token in ("<eos>", "<end_of_turn>")]
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    return LocalModel(ModelFiles(str(folder), folder, "f", name, 1, context, "LlamaForCausalLM", None))


def chat_artifact(instruction="Be kind."):
    return Artifact(
        Signature("t", ("messages",), "chat", "exact_match"), "none", Prompt(instruction, "", chat_column="messages"),
        Generate(8), path=("zero-shot",),
    )  # fmt: skip


def chat(*contents, answer="Bye", roles=("user", "assistant")):
    turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    return Example("c", {"messages": turns}, (answer,), "chats.jsonl:1")


CONVERSATION = chat("Where?", " On its\nway ", "When?", "Soon", "Thanks")
GOLDEN = {
    "chatml": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n"
    ">>> On its\nway <|im_end|><<<\n<|im_start|>user\nWhen?<|im_end|>\n<|im_start|>assistant\n>>>Soon<|im_end|><<<\n"
    "<|im_start|>user\nThanks<|im_end|>\n<|im_start|>assistant\n>>>Bye<|im_end|><<<",
    "llama3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nWhere?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n>>>On its\nway<|eot_id|><<<"
    "<|start_header_id|>user<|end_header_id|>\n\nWhen?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n>>>Soon<|eot_id|><<<"
    "<|start_header_id|>user<|end_header_id|>\n\nThanks<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n>>>Bye<|eot_id|><<<",
    "gemma": "<bos><start_of_turn>user\nBe kind.\n\nWhere?<end_of_turn>\n<start_of_turn>model\n"
    ">>>On its\nway<end_of_turn><<<\n<start_of_turn>user\nWhen?<end_of_turn>\n<start_of_turn>model\n"
    ">>>Soon<end_of_turn><<<\n<start_of_turn>user\nThanks<end_of_turn>\n<start_of_turn>model\n>>>Bye<end_of_turn><<<",
}
GOLDEN["qwen"] = GOLDEN["chatml"]
DEFAULT_SYSTEM = {
    "chatml": "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    "qwen": "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_every_assistant_turn_is_learnt_and_nothing_else(name, tmp_path):
    engine = model(tmp_path / "m", name)
    (row,) = tokenize(chat_artifact(), engine, [CONVERSATION])
    assert marked(row, engine.tokenizer) == GOLDEN[name]
    assert row.tokens == engine.tokenizer.encode(GOLDEN[name].replace(">>>", "").replace("<<<", ""))
    learnt = [[engine.tokenizer.decode([t], skip_special=False) for t in row.tokens[a:b]] for a, b in row.spans]
    end = engine.tokenizer.decode([engine.end_token], skip_special=False)
    first = " On its\nway " if name in DEFAULT_SYSTEM else "On its\nway"
    assert learnt == [[*first, end], [*"Soon", end], [*"Bye", end]]


@pytest.mark.parametrize("name", GOLDEN)
def test_the_last_turn_alone_is_learnt_where_asked(name, tmp_path):
    engine = model(tmp_path / "m", name)
    (row,) = tokenize(chat_artifact(), engine, [CONVERSATION], supervise="last")
    *others, last = GOLDEN[name].split(">>>")
    assert marked(row, engine.tokenizer) == "".join(others).replace("<<<", "") + ">>>" + last
    (whole,) = tokenize(chat_artifact(), engine, [CONVERSATION], supervise="all")
    assert whole.tokens == row.tokens


@pytest.mark.parametrize("name", DEFAULT_SYSTEM)
def test_a_system_turn_of_the_template_s_own_is_read(name, tmp_path):
    engine = model(tmp_path / "m", name)
    (row,) = tokenize(chat_artifact(""), engine, [CONVERSATION])
    assert marked(row, engine.tokenizer) == GOLDEN[name].replace("Be kind.", DEFAULT_SYSTEM[name])


def test_the_embedded_model_s_tokens():
    engine = LocalModel(resolve("embedded"))
    (row,) = tokenize(chat_artifact(), engine, [CONVERSATION])
    assert marked(row, engine.tokenizer) == GOLDEN["chatml"]
    learnt = [[engine.tokenizer.decode([t], skip_special=False) for t in row.tokens[a:b]] for a, b in row.spans]
    assert learnt == [
        [" On", " its", "\n", "way", " ", "<|im_end|>"], ["Soon", "<|im_end|>"], ["By", "e", "<|im_end|>"],
    ]  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_a_turn_inside_the_conversation_is_learnt_as_it_is_predicted(name, tmp_path):
    """A conversation cut off after a turn is a row whose last turn is that one: it trains on the same tokens."""
    engine, turns = model(tmp_path / "m", name), CONVERSATION.inputs["messages"]
    (row,) = tokenize(chat_artifact(), engine, [CONVERSATION])
    for span, n in zip(row.spans, (1, 3), strict=False):
        answer = turns[n]["content"] if name in DEFAULT_SYSTEM else turns[n]["content"].strip()
        part = replace(CONVERSATION, inputs={"messages": turns[:n]}, outputs=(answer,))
        (alone,) = tokenize(chat_artifact(), engine, [part], supervise="last")
        assert (alone.tokens, alone.spans[0]) == (row.tokens[: span[1]], span)


def test_a_template_that_rewrites_what_was_said_makes_examples_of_single_turns(tmp_path):
    engine = model(tmp_path / "m", template=QWEN3)
    row = chat("2+2?", "<think>\nadd\n</think>\n\n4", "3+3?", "6", "So?", answer="<think>\nhm\n</think>\n\n10")
    report = TrainingReport()
    apart, whole = tokenize(chat_artifact(), engine, [row], report=report)
    system = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
    assert marked(apart, engine.tokenizer) == system + ">>><think>\nadd\n</think>\n\n4<|im_end|><<<"
    assert marked(whole, engine.tokenizer) == (
        system + "4<|im_end|>\n<|im_start|>user\n3+3?<|im_end|>\n<|im_start|>assistant\n>>>6<|im_end|><<<\n"
        "<|im_start|>user\nSo?<|im_end|>\n<|im_start|>assistant\n>>><think>\nhm\n</think>\n\n10<|im_end|><<<"
    )
    assert (report.rows, report.turns_apart) == (1, 1)


def test_a_template_that_counts_the_turns_never_misplaces_the_mask(tmp_path):
    """The head changes with every turn, as a date does: no earlier rendering is a beginning of the whole."""
    engine = model(tmp_path / "m", template="{{ messages | length }}\n" + QWEN3)
    examples = tokenize(chat_artifact(), engine, [CONVERSATION])
    texts = [marked(example, engine.tokenizer) for example in examples]
    assert [text[0] for text in texts] == ["2", "4", "6"]
    assert [text.split(">>>")[1] for text in texts] == [
        "On its\nway<|im_end|><<<",
        "Soon<|im_end|><<<",
        "Bye<|im_end|><<<",
    ]
    assert all(text.count(">>>") == 1 for text in texts)


def test_turns_that_answer_nobody_and_empty_ones_are_not_learnt(tmp_path):
    engine = model(tmp_path / "m")
    row = chat("Hello!", "Hi", "  ", "Well?", roles=("assistant", "user"))
    (example,) = tokenize(chat_artifact(), engine, [row])
    text = marked(example, engine.tokenizer)
    assert [part.split("<<<")[0] for part in text.split(">>>")[1:]] == ["Bye<|im_end|>"]


def test_demonstrations_are_read_and_not_learnt(tmp_path):
    engine = model(tmp_path / "m")
    shown = replace(chat("Ping", "Pong", "Ping", answer="Pong"), id="other")
    artifact = replace(chat_artifact(), demonstrations=Demonstrations("fixed", 1, (shown,)))
    artifact = artifact.with_engine(engine)
    (row,) = tokenize(artifact, engine, [CONVERSATION])
    plain = GOLDEN["chatml"]
    head, rest = plain[: plain.index("<|im_start|>user")], plain[plain.index("<|im_start|>user") :]
    ping = "<|im_start|>user\nPing<|im_end|>\n<|im_start|>assistant\nPong<|im_end|>\n"
    assert marked(row, engine.tokenizer) == head + 2 * ping + rest


def test_control_tokens_in_a_turn_stay_text(tmp_path):
    engine = model(tmp_path / "m")
    (row,) = tokenize(chat_artifact(), engine, [chat("Hi", "End<|im_end|>not", "Go")])
    assert len(row.spans) == 2
    assert list(row.tokens).count(engine.end_token) == 5
    first, last = row.spans[0]
    assert row.tokens[first:last] == (*engine.encode("End<|im_end|>not"), engine.end_token)


# ---- without a chat template


def test_a_model_without_a_template_learns_behind_the_very_prompt_that_it_predicts_from(tmp_path):
    engine = model(tmp_path / "m", "raw")
    artifact = text_artifact(template="{prompt}", inputs=("prompt",))
    row = Example("r", {"prompt": "Translate: chat\n"}, ("cat",), "rows.jsonl:1")
    (example,) = tokenize(artifact, engine, [row])
    assert marked(example, engine.tokenizer) == "Say it.\n\nTranslate: chat\n>>>cat</s><<<"
    assert example.prompt == engine.tokens(artifact.messages({"prompt": "Translate: chat\n"}))


def test_a_conversation_without_a_template_is_learnt_turn_by_turn(tmp_path):
    engine = model(tmp_path / "m", "raw")
    examples = tokenize(chat_artifact(), engine, [chat("Where?", "Here", "When?")])
    assert [marked(example, engine.tokenizer) for example in examples] == [
        "Be kind.\n\nWhere?\n\n>>>Here</s><<<",
        "Be kind.\n\nWhere?\n\nHere\n\nWhen?\n\n>>>Bye</s><<<",
    ]


# ---- rows that teach nothing, and rows that are too long


def text_artifact(template="{title}: {body}", inputs=("title", "body")):
    return Artifact(
        Signature("t", inputs, "text", "exact_match"),
        "none",
        Prompt("Say it.", template),
        Generate(8),
        path=("zero-shot",),
    )


def article(body, source="rows.csv:2"):
    return Example(source, {"title": "Cats", "body": body}, ("they purr",), source)


@pytest.mark.parametrize("name", ["chatml", "raw"])
def test_an_answer_without_a_token_is_an_error_that_names_the_row(tmp_path, name):
    engine = model(tmp_path / "m", name)
    empty = replace(article("x", "rows.csv:7"), outputs=("",))
    with pytest.raises(TrainingError, match=r"rows\.csv:7: the answer is empty") as caught:
        tokenize(text_artifact(), engine, [article("x"), empty])
    assert caught.value.code == "bad-row"


def test_an_overlong_row_is_an_error_by_default(tmp_path):
    engine = model(tmp_path / "m", context=160)
    with pytest.raises(TrainingError, match=r"rows.csv:2: \d+ tokens do not fit the context of 160") as caught:
        tokenize(text_artifact(), engine, [article("x" * 200)])
    assert caught.value.code == "context-overflow"


def test_dropped_rows_are_counted_with_their_place(tmp_path):
    engine, report = model(tmp_path / "m", context=160), TrainingReport()
    examples = tokenize(
        text_artifact(), engine, [article("x" * 200), article("short", "rows.csv:3")], truncation="drop", report=report
    )
    assert [example.source for example in examples] == ["rows.csv:3"]
    assert report.dropped == {"longer than the context": ["rows.csv:2"]}
    report.measure(examples, engine.tokenizer)
    counts = report.as_dict()
    assert (counts["rows"], counts["kept"], counts["examples"]) == (2, 1, 1)
    assert counts["supervised"] == {"min": 10, "median": 10, "max": 10}
    assert next(training_data_lines(counts)) == f"1 of 2 rows kept: 1 examples, {len(examples[0])} tokens"


@pytest.mark.parametrize("letter", ["x", "é", "🙂"])
def test_the_longest_input_is_cut_at_its_end_until_the_row_fits(tmp_path, letter):
    engine, report = model(tmp_path / "m", context=160), TrainingReport()
    row, fitting = article(letter * 200), article(letter * 3, "rows.csv:3")
    example, other = tokenize(text_artifact(), engine, [row, fitting], truncation="truncate_input", report=report)
    width = len(letter.encode())
    assert 160 - width < len(example) <= 160
    text = engine.tokenizer.decode(example.tokens, skip_special=False)
    body = text.split("Cats: ")[1].split("<|im_end|>")[0]
    assert body == letter * len(body)
    assert text.startswith("<|im_start|>system\nSay it.<|im_end|>\n<|im_start|>user\nCats: ")
    assert marked(example, engine.tokenizer).endswith("assistant\n>>>they purr<|im_end|><<<")
    assert list(report.truncated) == ["rows.csv:2"]
    assert 0 <= report.truncated["rows.csv:2"] - width * (200 - len(body)) + width - 1 < width
    assert other == tokenize(text_artifact(), engine, [fitting])[0]


def test_virtual_tokens_take_places_of_the_context(tmp_path):
    engine = model(tmp_path / "m", context=160)
    (example,) = tokenize(text_artifact(), engine, [article("x" * 200)], truncation="truncate_input", virtual_tokens=20)
    assert len(example) == 140
    with pytest.raises(TrainingError, match=r"\d+ tokens after 20 virtual ones do not fit the context of 160"):
        tokenize(text_artifact(), engine, [article("x" * 95)], virtual_tokens=20)
    assert tokenize(text_artifact(), engine, [article("x" * 95)])[0].source == "rows.csv:2"


def test_cutting_keeps_to_the_real_tokens_of_the_embedded_model():
    engine = LocalModel(replace(resolve("embedded"), context=64))
    body = " ".join(f"The {i}th cat slept on the mat." for i in range(40))
    (example,) = tokenize(text_artifact(), engine, [article(body)], truncation="truncate_input")
    assert len(example) == 64
    text = engine.tokenizer.decode(example.tokens, skip_special=False)
    assert body.startswith(text.split("Cats: ")[1].split("<|im_end|>")[0])


def test_what_cannot_fit_however_short_is_an_error(tmp_path):
    engine = model(tmp_path / "m", context=40)
    for artifact, row in ((text_artifact(), article("x" * 200)), (chat_artifact(), chat("x" * 200))):
        with pytest.raises(TrainingError) as caught:
            tokenize(artifact, engine, [row], truncation="truncate_input")
        assert caught.value.code == "context-overflow"


# ---- plain text


def test_every_token_of_the_text_is_learnt_once(tmp_path):
    engine = model(tmp_path / "m")
    examples = text_blocks(engine, [Document("abcdefg", "a.txt"), Document("hij", "b.txt")], 5)
    assert [marked(example, engine.tokenizer) for example in examples] == [
        "<|endoftext|>>>>abcd<<<", "d>>>efg<|endoftext|><<<", "<|endoftext|>>>>hij<|endoftext|><<<",
    ]  # fmt: skip
    assert [example.source for example in examples] == ["a.txt", "a.txt", "b.txt"]
    assert [len(example) for example in examples] == [5, 5, 5]
    assert len(text_blocks(engine, [Document("x" * 1000, "a.txt")], 512)[0]) == 400  # the context


@pytest.mark.parametrize(("name", "begin", "end"), [
    ("llama3", "<|begin_of_text|>", "<|end_of_text|>"), ("gemma", "<bos>", "<eos>"), ("raw", None, "</s>"),
])  # fmt: skip
def test_blocks_begin_and_documents_end_with_the_model_s_own_tokens(tmp_path, name, begin, end):
    engine = model(tmp_path / "m", name)
    first, second = text_blocks(engine, [Document("abc<eos>", "a.txt")], 8)
    assert marked(first, engine.tokenizer) == f"{begin or end}>>>abc<eos<<<"
    assert marked(second, engine.tokenizer) == f"{begin or 's'}>>>>{end}<<<"
    assert second.tokens[1] == engine.encode(">")[0]


def test_a_tokenizer_without_an_end_is_refused(tmp_path):
    engine = model(tmp_path / "m", "raw")
    values = json.loads((tmp_path / "m" / "tokenizer_config.json").read_text())
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps({**values, "eos_token": None}))
    text = (tmp_path / "m" / "tokenizer.json").read_text().replace("</s>", "<end>")
    (tmp_path / "m" / "tokenizer.json").write_text(text)
    with pytest.raises(TrainingError) as caught:
        text_blocks(LocalModel(engine.files), [Document("abc", "a.txt")], 8)
    assert caught.value.code == "tuning-unsupported"
