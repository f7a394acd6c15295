"""Other people's clients and checkers against a running server."""

import json
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel
from running_server import BASE
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

from rung.engines.base import GenerateRequest, Sampling
from rung.engines.opening import open_torch


def model(server, **options):
    return ChatOpenAI(
        model=BASE, base_url=f"{server.url}/v1", api_key="none", max_retries=0, temperature=0, **options
    )  # fmt: skip


def test_langchain_chats_streams_and_counts(server, tiny_folder):
    request = GenerateRequest(({"role": "user", "content": "Where is my card?"},), Sampling(max_tokens=8))
    wanted = open_torch(str(tiny_folder)).generate([request])[0]
    chat = model(server, max_tokens=8)
    answer = chat.invoke([HumanMessage("Where is my card?")])
    assert answer.content == wanted.text
    assert answer.usage_metadata["output_tokens"] == wanted.completion_tokens
    assert "".join(piece.content for piece in chat.stream("Where is my card?")) == wanted.text
    assert [one.content for one in chat.batch(["Where is my card?"] * 3)] == [wanted.text] * 3


class Card(BaseModel):
    """A card's state."""

    lost: bool
    blocked: bool


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_gets_structured_output(server, method):
    structured = model(server, max_tokens=80).with_structured_output(Card, method=method, strict=True)
    assert isinstance(structured.invoke("Where is my card?"), Card)


def test_langchain_calls_a_tool_and_sends_its_result_back(server):
    chat = model(server, max_tokens=80).bind_tools([Card], tool_choice="Card", strict=True)
    question = HumanMessage("Where is my card?")
    answer = chat.invoke([question])
    assert isinstance(answer, AIMessage)
    (call,) = answer.tool_calls
    assert call["name"] == "Card"
    assert set(call["args"]) == {"lost", "blocked"}
    result = ToolMessage("found", tool_call_id=call["id"])
    assert isinstance(model(server, max_tokens=4).invoke([question, answer, result]).content, str)


def test_langchain_embeds(server):
    embeddings = OpenAIEmbeddings(
        model=BASE, base_url=f"{server.url}/v1", api_key="none", check_embedding_ctx_length=False, max_retries=0
    )
    vectors = embeddings.embed_documents(["one", "two"])
    assert vectors == open_torch_vectors(server, ["one", "two"])


def open_torch_vectors(server, texts):
    found = server.context.served.find(BASE)
    return [[float(value) for value in row] for row in found.engine.embed(texts).tolist()]


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["allowed", "forbidden"])
@pytest.mark.parametrize("examples", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_no_request_breaks_the_server(server, mode, examples):
    """Requests that the server's own description allows, and such that it forbids; most name a model that is there."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    answers = Counter()

    def check(operation):
        @settings(
            max_examples=examples, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy(generation_mode=mode))
        def run(case):
            if isinstance(case.body, dict) and case.body.get("model"):
                case.body["model"] = BASE
                if {"messages", "prompt"} & set(case.body):  # that it says little: this is no test of patience
                    case.body.pop("max_completion_tokens", None)
                    case.body |= {"max_tokens": 2, "n": 1}
            if "name" in case.path_parameters and operation.method == "post":
                case.path_parameters["name"] = "notes"
            answer = case.call()
            answers[operation.path, answer.status_code // 100] += 1
            case.validate_response(answer, checks=[not_a_server_error])

        with suppress(Unsatisfiable):  # a request without parameters cannot be a forbidden one
            run()

    for operation in schema.get_all_operations():
        check(operation.ok())
    wanted = 2 if mode is GenerationMode.POSITIVE else 4
    assert answers["/v1/chat/completions", wanted] > 0 or examples < 10
    assert server.idle()


TASK = """
task: cards
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}} Answer:"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}]
"""
ROWS = [
    {"question": "Where is my card?", "choices": ["lost", "at home", "in the mail"], "answer": 1},
    {"question": "Is it blocked?", "choices": ["yes", "no"], "answer": 0},
    {"question": "How many cards?", "choices": ["one", "two", "seventeen"], "answer": 2},
]


@pytest.mark.slow
def test_lm_eval_measures_what_the_engine_says(server, tiny_folder, tmp_path):
    """lm-eval asks for echoed log-probabilities; it is installed for this test alone, as it holds other versions."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "cards.yaml").write_text(TASK % rows)
    settings = (
        f"model={BASE},base_url={server.url}/v1/completions,tokenizer={tiny_folder},num_concurrent=2,max_retries=1"
    )
    uv = str(Path(sys.executable).with_name("uv"))
    command = [
        uv, "run", "--no-project", "--isolated", "--python", sys.executable, "--with", "lm-eval[api]", "--with",
        "transformers>=5.3,<5.6", "lm_eval", "--model", "local-completions", "--model_args", settings, "--tasks",
        "cards", "--include_path", str(tmp_path), "--output_path", str(tmp_path / "out"), "--log_samples",
    ]  # fmt: skip
    subprocess.run(command, check=True, timeout=900)
    (samples,) = (tmp_path / "out").rglob("samples_cards*.jsonl")
    engine = open_torch(str(tiny_folder))
    for line in samples.read_text().splitlines():
        sample = json.loads(line)
        row = ROWS[sample["doc_id"]]
        start = f"{row['question']} Answer:"
        for choice, (answer,) in zip(row["choices"], sample["resps"], strict=True):
            context = len(engine.encode(start))
            tokens = engine.encode(f"{start} {choice}")
            wanted = engine.read([tokens], top=1)[0].logprobs[context:].sum()
            assert abs(float(answer[0]) - float(wanted)) < 1e-3
