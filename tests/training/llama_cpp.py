"""llama.cpp in a process of its own, asked through the wheel `xllamacpp`."""

import json
import subprocess
import sys

ASK = """
import json, sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx, params.n_parallel, params.warmup = 512, 1, False
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
for line in sys.stdin:
    answer = server.handle_completions(json.loads(line))
    print("answer", json.dumps(answer if isinstance(answer, (dict, list)) else json.loads(answer)), flush=True)
"""


def ask(file, requests):
    """Return llama.cpp's answer to each `/completion` request."""
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    done = subprocess.run([sys.executable, "-c", ASK, str(file)], input=lines, capture_output=True, text=True)
    answers = [json.loads(line.removeprefix("answer ")) for line in done.stdout.splitlines() if line[:7] == "answer "]
    assert len(answers) == len(requests), done.stderr[-3000:]
    return answers


def greedy(prompt, tokens):
    """Complete token ids or text."""
    return {"prompt": prompt, "n_predict": tokens, "temperature": 0, "cache_prompt": False}


def continued(file, ids, tokens, without):
    """Return the ids of so many tokens that it writes behind these, the likeliest each but for some."""
    (answer,) = ask(file, [{**greedy(ids, tokens), "n_probs": 1, "logit_bias": [[i, False] for i in without]}])
    return [token["id"] for token in answer["choices"][0]["logprobs"]["content"]]


def logprobs(file, prompt, vocabulary, spoken):
    """Return the log-probability of every next token; `spoken`, a token of whole characters, is what is written."""
    request = {**greedy(prompt, 1), "n_probs": vocabulary, "logit_bias": [[spoken, 1000.0]]}
    (answer,) = ask(file, [request])
    found = {top["id"]: top["logprob"] for top in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]}
    return [found[i] for i in range(vocabulary)]
