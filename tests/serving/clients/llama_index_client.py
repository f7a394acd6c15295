"""LlamaIndex's client for servers like OpenAI's: argument 1 is the address, 2 the model, 3 the encoder."""

import json
import sys

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike

url, model, encoder = sys.argv[1:]
settings = {"api_base": url, "api_key": "none", "max_retries": 0, "temperature": 0.0, "max_tokens": 8}
llm = OpenAILike(model=model, is_chat_model=True, is_function_calling_model=True, **settings)
talk = [
    ChatMessage(role="system", content="Be brief."),
    ChatMessage(role="user", content="Hello."),
    ChatMessage(role="assistant", content="Hello to you."),
    ChatMessage(role="user", content="Where is my card?"),
]


def card(lost: bool) -> str:
    """Look for the card."""
    return f"lost: {lost}"


called = llm.chat_with_tools([FunctionTool.from_defaults(card)], user_msg="Where is my card?", tool_required=True)
(call,) = llm.get_tool_calls_from_response(called)
embedding = OpenAILikeEmbedding(model_name=encoder, api_base=url, api_key="none", max_retries=0)
seen = {
    "answer": llm.chat(talk).message.content,
    "stream": "".join(piece.delta or "" for piece in llm.stream_chat(talk)),
    "completion": OpenAILike(model=model, **settings).complete("Where is my card?").text,
    "call": [call.tool_name, sorted(call.tool_kwargs)],
    "vectors": embedding.get_text_embedding_batch(["one", "two"]),
}
print(json.dumps(seen))
