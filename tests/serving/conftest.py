from dataclasses import replace

import numpy as np
import pytest
from running_server import running, text_artifact

from browser import Watched
from rung.artifact.heads import Head
from rung.rungs import FewShot
from rung.serving.served import Served


@pytest.fixture(scope="session")
def artifacts(tiny_zero, tiny_folder, data, tmp_path_factory):
    """Artifacts by name, saved: label scores, few-shot scores, a head, free text, text of two columns, JSON, a chat."""
    folder = tmp_path_factory.mktemp("artifacts")
    scoring = replace(tiny_zero, engine="torch")
    weight = np.random.default_rng(0).normal(size=(len(scoring.signature.labels), 32)).astype(np.float32)
    head = Head(scoring.signature.labels, "", weight, np.zeros(len(weight), np.float32))
    text = text_artifact(tiny_folder)
    talk = replace(
        text,
        signature=replace(text.signature, inputs=("messages",), kind="chat"),
        prompt=replace(text.prompt, chat_column="messages"),
    )
    schema = '{"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}'
    made = {
        "intents": scoring,
        "few-shot": FewShot(selection="random", k=2).fit(scoring, data),
        "head": replace(scoring, decoder=head),
        "notes": text,
        "letters": text_artifact(tiny_folder, ("subject", "body")),
        "records": text_artifact(tiny_folder, schema=schema),
        "talk": talk,
    }
    return {name: artifact.save(folder / name) for name, artifact in made.items()}


@pytest.fixture(scope="session")
def served(artifacts, tiny_folder):
    served = Served()
    served.add_model(str(tiny_folder), engine="torch")
    for name, folder in artifacts.items():
        served.load(folder, name)
    yield served
    served.close()


@pytest.fixture(scope="module")
def server(served):
    with running(served) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    return server.client()


@pytest.fixture
def watched(browser):
    context = browser.new_context()
    yield Watched(context)
    context.close()
