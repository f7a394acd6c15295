"""Clients that no environment of ours holds: each is installed for its test alone, and answers are the engine's.

Open WebUI takes 2.4 GB; its requests are written down from its source (backend/open_webui:
routers/openai.py, routers/tasks.py, utils/payload.py, retrieval/utils.py).
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
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


WEBUI = {
    "Authorization": "Bearer",  # where no key is given
    "X-OpenWebUI-User-Name": "Anna%20B", "X-OpenWebUI-User-Id": "7", "X-OpenWebUI-User-Email": "a@example.org",
    "X-OpenWebUI-User-Role": "user", "X-OpenWebUI-Chat-Id": "c1",
}  # fmt: skip
TITLE = "### Task:\nGenerate a concise, 3-5 word title.\n<chat_history>\nUSER: Where is my card?\n</chat_history>"


def test_open_webui_s_requests(server, wanted):
    answer, vectors = wanted

    def post(path, **body):
        given = httpx.post(f"{server.url}/v1{path}", json={"model": BASE, **body}, headers=WEBUI, timeout=60)
        assert given.status_code == 200, given.text
        return given

    listed = httpx.get(f"{server.url}/v1/models", headers=WEBUI).json()["data"]
    assert BASE in [model["id"] for model in listed]
    # a chat, with all settings that a person can make for a model
    settings = {
        "temperature": 0.0,
        "top_p": 0.9,
        "max_tokens": 8,
        "frequency_penalty": 0.0,
        "seed": 1,
        "stop": ["\x00"],
    }
    options = {"stream": True, "stream_options": {"include_usage": True}}
    lines = post("/chat/completions", messages=TALK, **settings, **options).text.split("\n\n")
    assert lines[-2] == "data: [DONE]"
    pieces = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert "".join(one["choices"][0]["delta"].get("content") or "" for one in pieces if one["choices"]) == answer.text
    assert pieces[-1]["usage"]["completion_tokens"] == answer.completion_tokens
    # the tasks beside a chat: titles, tags, queries
    task = {"messages": [{"role": "user", "content": TITLE}], "stream": False, "max_completion_tokens": 10}
    assert post("/chat/completions", **task).json()["choices"][0]["message"]["content"]
    # tools: the call goes back with its result, beside the last message a mark for caches
    calls = [{"index": 0, "id": "c", "type": "function", "function": {"name": "card", "arguments": "{}"}}]
    used = [
        *TALK, {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c", "content": "found"},
        {"role": "user", "content": [{"type": "text", "text": "So?", "cache_control": {"type": "ephemeral"}}]},
    ]  # fmt: skip
    tool = {"type": "function", "function": {"name": "card", "parameters": {"type": "object", "properties": {}}}}
    assert post("/chat/completions", messages=used, tools=[tool], max_tokens=4, stream=True).text.endswith("[DONE]\n\n")
    # an artifact gets the whole conversation, and answers the last message
    talk = post("/chat/completions", model="notes", messages=TALK, stream=False).json()
    assert talk["rung"]["left_out"] == {"system": 1, "user": 1, "assistant": 1}
    rows = post("/embeddings", input=["one", "two"]).json()["data"]
    np.testing.assert_allclose([row["embedding"] for row in rows], vectors, atol=1e-6)
