"""LiteLLM as a library: argument 1 is the address, 2 the model, 3 the encoder."""

import json
import sys

import litellm

url, model, encoder = sys.argv[1:]
server = {"api_base": url, "api_key": "none", "num_retries": 0}
settings = {"model": f"openai/{model}", "temperature": 0.0, "max_tokens": 8, **server}
talk = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello."},
    {"role": "assistant", "content": "Hello to you."},
    {"role": "user", "content": "Where is my card?"},
]
card = {
    "type": "function",
    "function": {
        "name": "card",
        "parameters": {"type": "object", "properties": {"lost": {"type": "boolean"}}, "required": ["lost"]},
    },
}
answer = litellm.completion(messages=talk, **settings)
stream = litellm.completion(messages=talk, stream=True, stream_options={"include_usage": True}, **settings)
pieces = list(stream)
again = [*talk, answer.choices[0].message.model_dump(), {"role": "user", "content": "And now?"}]
forced = litellm.completion(messages=talk, tools=[card], tool_choice="required", **{**settings, "max_tokens": 40})
(call,) = forced.choices[0].message.tool_calls
vectors = litellm.embedding(model=f"openai/{encoder}", input=["one", "two"], encoding_format="float", **server)
refused = ""
try:
    litellm.completion(messages=talk, **{**settings, "model": "openai/nobody"})
except litellm.NotFoundError as error:
    refused = type(error).__name__
seen = {
    "answer": answer.choices[0].message.content,
    "stream": "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices),
    "tokens": [answer.usage.completion_tokens, answer.usage.prompt_tokens],
    "second turn": isinstance(litellm.completion(messages=again, **settings).choices[0].message.content, str),
    "call": [call.function.name, sorted(json.loads(call.function.arguments))],
    "vectors": [row["embedding"] for row in vectors.data],
    "refused": refused,
}
print(json.dumps(seen))
