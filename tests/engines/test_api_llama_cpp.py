"""The api engine against the real llama.cpp server, which the wheel `xllamacpp` holds, with the embedded model."""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from rung.artifact.artifact import Artifact
from rung.artifact.labels import LabelScoring
from rung.artifact.text import Generate
from rung.engines.api import ApiEngine
from rung.engines.api_options import ApiOptions
from rung.engines.base import Constraint, GenerateRequest, Sampling, ScoreRequest
from rung.engines.opening import open_torch
from rung.errors import EngineError, ModelError
from rung.models import embedded
from rung.models import embedded as catalogue
from rung.models.cache import cache_dir, publish
from rung.models.messages import encode_messages, end_token
from rung.models.reference import resolve
from rung.models.tokenizer import Tokenizer

pytest.importorskip("xllamacpp")
SERVE = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.model_alias = sys.argv[1], {"smol"}
params.n_ctx, params.n_parallel, params.port, params.hostnames, params.warmup = 4096, 2, 0, ["127.0.0.1"], False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
server = xllamacpp.Server(params)
print("listening", server.listening_address, flush=True)
sys.stdin.read()
"""
QUESTION = ({"role": "user", "content": "What is the capital of France?"},)
SHORT = Sampling(max_tokens=12)


@pytest.fixture(scope="module")
def gguf() -> Path:
    model = catalogue.find("embedded")
    folder = cache_dir() / "sources" / embedded.folder_of(model).name

    def build(target):
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            embedded.fetch(model, Path(scratch), target)

    try:
        if not folder.exists():
            publish(folder, build)
    except ModelError as missing:
        pytest.skip(f"the GGUF file of the embedded model is not to be had: {missing}")
    return next(folder.rglob("*.gguf"))


@pytest.fixture(scope="module")
def reference(gguf):
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(gguf)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    with server:
        address = next((line.split()[1] for line in server.stdout if line.startswith("listening")), None)
        assert address, "the server did not start"
        yield f"{address}/v1#smol"
        server.kill()


@pytest.fixture(scope="module")
def engine(reference):
    return ApiEngine(reference, ApiOptions(concurrency=4))


def one(engine, sampling=SHORT, **fields):
    return engine.generate([GenerateRequest(QUESTION, sampling, **fields)])[0]


def test_what_the_server_says_of_itself(engine):
    info = engine.info
    assert (info.details["server"], info.details["scoring"], info.details["tokens"]) == ("llama.cpp", "forced", "exact")
    assert info.parameters == resolve("embedded").parameters
    assert info.context == 2048


def test_tokens_are_those_of_the_model(engine):
    tokenizer = Tokenizer.load(resolve("embedded").folder)
    text = "lost or stolen card: 3 × <|im_end|> naïve"
    assert engine.encode(text) == tokenizer.encode_plain(text)
    assert engine.count(QUESTION) == len(encode_messages(tokenizer, QUESTION))
    assert engine.end_token == end_token(tokenizer)


def test_text_is_made_and_streamed(engine):
    answers = engine.generate([GenerateRequest(QUESTION, SHORT)] * 4)
    used = {(answer.prompt_tokens, answer.completion_tokens, answer.finish_reason) for answer in answers}
    assert used == {(engine.count(QUESTION), 12, "length")}
    assert "".join(engine.stream(GenerateRequest(QUESTION, SHORT))) == one(engine).text != ""


def test_constraints_hold(engine, reference):
    choices = Constraint("choices", ("Berlin", "Rome", 'a "quoted" town'))
    assert one(engine, Sampling(), constraint=choices).text in choices.value
    grammar = ApiEngine(reference, ApiOptions(constraints="grammar"))
    assert one(grammar, Sampling(), constraint=choices).text in choices.value
    assert re.fullmatch("[0-9]{3}-[a-f]", one(engine, constraint=Constraint("regex", "[0-9]{3}-[a-f]")).text)
    schema = (
        '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": false}'
    )
    made = one(engine, Sampling(max_tokens=40), constraint=Constraint("json_schema", schema))
    assert isinstance(json.loads(made.text)["n"], int)


def test_scores_are_the_log_probabilities_of_what_the_server_writes(engine):
    written = one(engine, logprobs=True)
    tokens = engine.encode(written.text)
    scored = engine.score([ScoreRequest(QUESTION, (tokens, tokens[:2]))])[0]
    expected = [sum(written.logprobs[: len(tokens)]), sum(written.logprobs[:2])]
    np.testing.assert_allclose(scored.logprobs, expected, atol=0.05)  # one token a batch, or many: sums in other orders


def test_scores_are_near_those_of_the_same_weights_in_full_precision(engine):
    labels = tuple(engine.encode(text) for text in ("Paris", "London", "a cold day in Oslo"))
    request = ScoreRequest(QUESTION, labels)
    ours, full = engine.score([request])[0], open_torch("embedded").score([request])[0]
    np.testing.assert_allclose(ours.logprobs, full.logprobs, rtol=0.05, atol=0.2)  # it rounds activations to 8 bits
    assert ours.prompt_tokens > full.prompt_tokens  # every request to the server reads the prompt again


def test_too_many_labels_for_one_token_a_request(engine):
    labels = tuple((i, 5, 6) for i in range(40))
    with pytest.raises(EngineError) as caught:
        engine.score([ScoreRequest(QUESTION, labels)])
    assert caught.value.code == "scoring-unsupported"


def test_a_prompt_beyond_the_context(engine):
    with pytest.raises(EngineError) as caught:
        engine.generate([GenerateRequest(({"role": "user", "content": "word " * 3000},), SHORT)])
    assert caught.value.code == "context-overflow"


def test_embeddings_that_the_server_was_not_started_for(engine):
    with pytest.raises(EngineError) as caught:
        engine.embed(["a"])
    assert caught.value.code == "embedding-unsupported"


def test_artifacts_answer_with_labels(reference, task, data):
    remote = task.model_copy(update={"model": reference})
    rows = [data.validation[i].inputs for i in range(2)]
    few = Artifact.zero_shot(remote, data.labels)
    assert isinstance(few.decoder, LabelScoring)
    answer = few.predict(rows[:1])[0]
    assert answer.text in data.labels
    assert sum(answer.probabilities) == pytest.approx(1, abs=1e-5)
    many = Artifact.zero_shot(remote, (*data.labels, "atm_support", "card_linking", "direct_debit"))
    assert isinstance(many.decoder, Generate)
    assert {answer.text for answer in many.predict(rows)} <= set(many.signature.labels)
