"""Embeddings: nothing is cut in silence, token ids are those of the model, and large batches run in parts."""

import numpy as np
import openai
import pytest
from running_server import running
from transformers import AutoTokenizer

from rung.engines.opening import open_encoder
from rung.serving import embeddings
from rung.serving.served import Served

START = "The cat sat quietly on the mat near the door. " * 60
LONG = START + "Nuclear fusion reactors need tritium. " * 40


@pytest.fixture(scope="module")
def clients(tiny_encoder, tiny_folder):
    """Clients of two servers: one refuses long texts, the other reads them in windows."""
    refusing, windowing = Served(), Served()
    refusing.add_encoder(str(tiny_encoder))
    refusing.add_model(str(tiny_folder), engine="torch")
    windowing.add_encoder(str(tiny_encoder), long_texts="window")
    with running(refusing) as first, running(windowing) as second:
        yield first.client(), second.client()
    refusing.close()
    windowing.close()


def refused(client, **options):
    with pytest.raises(openai.BadRequestError) as error:
        client.embeddings.create(**{"model": "tiny-bert", **options})
    return error.value.body["code"], error.value.body["message"]


def vectors(client, **options):
    answer = client.embeddings.create(**{"model": "tiny-bert", "encoding_format": "float", **options})
    assert [one.index for one in answer.data] == list(range(len(answer.data)))
    return np.asarray([one.embedding for one in answer.data], np.float32), answer.usage.prompt_tokens


def test_a_text_beyond_the_limit_is_refused_or_read_whole(clients, tiny_encoder):
    refusing, windowing = clients
    encoder = open_encoder(str(tiny_encoder))
    code, message = refused(refusing, input=["short", START])
    assert code == "context_length_exceeded"
    assert f"input[1] has {len(encoder.encode(START))} tokens" in message
    both, used = vectors(windowing, input=[START, LONG])
    assert used == len(encoder.encode(START)) + len(encoder.encode(LONG))
    assert both[0] @ both[1] < 0.999  # the end of the second one counts
    np.testing.assert_allclose(both, encoder.embed([START, LONG]), atol=1e-5)
    assert refused(refusing, model="tiny-llama", input="word " * 600)[0] == "context_length_exceeded"


def test_token_ids_of_the_encoder_give_the_vectors_of_their_texts(clients, tiny_encoder):
    texts = ["Where is my card?", "No"]
    ids = AutoTokenizer.from_pretrained(tiny_encoder)(texts)["input_ids"]
    wanted, _ = vectors(clients[0], input=texts)
    np.testing.assert_array_equal(vectors(clients[0], input=ids)[0], wanted)
    np.testing.assert_array_equal(vectors(clients[0], input=ids[0])[0], wanted[:1])


@pytest.mark.parametrize("ids", [[9906, 1917], [[101, 9906]], [10**6]], ids=["of another", "half", "unknown"])
def test_token_ids_of_another_tokenizer_are_refused_with_the_way_out(clients, ids):
    code, message = refused(clients[0], input=ids)
    assert code == "bad-request"
    assert "check_embedding_ctx_length=False" in message


def test_a_large_batch_runs_in_parts(clients, monkeypatch):
    texts = [f"card {number}" for number in range(20)]
    whole, used = vectors(clients[0], input=texts)
    monkeypatch.setattr(embeddings, "TOGETHER", 6)
    parts, same = vectors(clients[0], input=texts)
    np.testing.assert_allclose(parts, whole, atol=1e-6)
    assert same == used
    coded = clients[0].embeddings.create(model="tiny-bert", input=texts, encoding_format="base64")
    assert len(coded.data) == 20
    assert vectors(clients[0], input=["a"] * 600)[0].shape == (600, whole.shape[1])  # more than the queue holds


def test_dimensions_are_those_of_the_model(clients):
    width = vectors(clients[0], input="a")[0].shape[1]
    assert vectors(clients[0], input="a", dimensions=width)[0].shape == (1, width)
    assert f"have {width} dimensions" in refused(clients[0], input="a", dimensions=8)[1]
