"""Clients that no environment of ours holds: each is installed for its test alone, and answers are the engine's."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from running_server import BASE

from rung.engines.base import GenerateRequest, Sampling
from rung.engines.opening import open_torch

CLIENTS = Path(__file__).parent / "clients"
TALK = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello."},
    {"role": "assistant", "content": "Hello to you."},
    {"role": "user", "content": "Where is my card?"},
)
JAVASCRIPT = "openai@7.59.0"


def python(script, *packages):
    uv = str(Path(sys.executable).with_name("uv"))
    given = [argument for package in packages for argument in ("--with", package)]
    return [uv, "run", "--no-project", "--isolated", "--python", sys.executable, *given, str(CLIENTS / script)]


def node(script, folder):
    """Install OpenAI's package beside a copy of the script: a module looks for packages beside itself."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    shutil.copy(CLIENTS / script, folder)
    install = ["npm", "install", "--prefix", str(folder), "--ignore-scripts", "--no-audit", "--no-fund", JAVASCRIPT]
    subprocess.run(install, check=True, capture_output=True, timeout=300)
    return ["node", str(folder / script)]


def seen_by(command, server):
    done = subprocess.run([*command, f"{server.url}/v1", BASE, BASE], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def wanted(tiny_folder):
    engine = open_torch(str(tiny_folder))
    answer = engine.generate([GenerateRequest(TALK, Sampling(max_tokens=8))])[0]
    return answer, engine.embed(["one", "two"])


def check(seen, wanted):
    answer, vectors = wanted
    assert (seen["answer"], seen["stream"]) == (answer.text, answer.text)
    np.testing.assert_allclose(seen["vectors"], vectors, atol=1e-6)


@pytest.mark.slow
def test_llama_index(server, wanted):
    packages = ("llama-index-llms-openai-like>=0.8,<0.9", "llama-index-embeddings-openai-like>=0.4,<0.5")
    seen = seen_by(python("llama_index_client.py", *packages), server)
    check(seen, wanted)
    assert isinstance(seen["completion"], str)
    assert seen["call"] == ["card", ["lost"]]


@pytest.mark.slow
def test_litellm(server, wanted):
    seen = seen_by(python("litellm_client.py", "litellm>=1.110,<2"), server)
    check(seen, wanted)
    assert seen["tokens"] == [wanted[0].completion_tokens, wanted[0].prompt_tokens]
    assert (seen["call"], seen["second turn"], seen["refused"]) == (["card", ["lost"]], True, "NotFoundError")


@pytest.mark.slow
def test_openai_for_javascript(server, wanted, tmp_path):
    seen = seen_by(node("openai_client.mjs", tmp_path), server)
    check(seen, wanted)
    assert seen["gathered"] == wanted[0].text
    assert seen["tokens"] == [wanted[0].completion_tokens, wanted[0].prompt_tokens]
    assert (seen["call"], seen["second turn"]) == ([["boolean", ["lost"]]], True)
    assert seen["refused"] == "model_not_found"
    np.testing.assert_allclose(seen["packed"], seen["vectors"], atol=1e-6)
    assert isinstance(seen["response"], str)
    assert BASE in seen["models"]
