"""What a task's artifact reads of a conversation: it was measured on single inputs, and chat clients send many turns.

`last` reads the user's last message. `condense` lets the base model rewrite that message so that it needs no earlier
turn. `refuse` takes single messages only. The response says what was left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rung.engines.base import Engine, GenerateRequest, Generation, Sampling
from rung.errors import DataError
from rung.models.messages import Messages
from rung.serving.schemas import ChatMessage, ToolSpec

ConversationPolicy = Literal["last", "condense", "refuse"]
CONDENSED_TOKENS = 200  # of a rewritten message
TURNS, CHARACTERS = 6, 1000  # earlier turns that the rewriting reads, and of each
CONDENSE = """Conversation:
{talk}

Last message of the user: {last}

Write the last message again as one question that can be understood without the conversation: name what it refers to. \
Keep its language. Write the question alone."""


def last_message(messages: Sequence[ChatMessage]) -> str:
    """Take the text of the user's last message; a conversation that ends with another turn is a DataError."""
    if messages[-1].role != "user":
        hint = "end with a message of the role `user`, or name the base model"
        raise DataError("bad-request", "this artifact answers a user, and the last turn is another", hint=hint)
    return messages[-1].text


def left_out(messages: Sequence[ChatMessage]) -> dict[str, int]:
    """Count the turns before the last one by role."""
    roles = [message.role for message in messages[:-1]]
    return {role: roles.count(role) for role in dict.fromkeys(roles)}


def condensed(engine: Engine, messages: Sequence[ChatMessage]) -> Generation:
    """Rewrite the last message so that it needs no earlier one; a model that writes nothing leaves it as it is."""
    spoken = [message for message in messages[:-1] if message.role in ("user", "assistant") and message.text]
    talk = "\n".join(f"{message.role.title()}: {message.text[:CHARACTERS]}" for message in spoken[-TURNS:])
    text = CONDENSE.format_map({"talk": talk, "last": last_message(messages)})
    prompt: Messages = ({"role": "user", "content": text},)
    return engine.generate([GenerateRequest(prompt, Sampling(CONDENSED_TOKENS))])[0]


# ---- functions that a model must call

_OPENS = frozenset({"$ref", "allOf", "anyOf", "dependentSchemas", "if", "not", "oneOf", "patternProperties",
                    "unevaluatedProperties"})  # fmt: skip  # beside `properties`, they may add some


def parameters_of(tool: ToolSpec) -> dict[str, Any]:
    """Give the schema of a function's arguments; without one it takes none, as OpenAI says."""
    return tool.function.parameters or {"type": "object", "properties": {}, "additionalProperties": False}


def closed(schema: Any) -> Any:
    """Forbid arguments that an object's schema does not list, where its author leaves that open.

    A small model would invent some. Objects that are combined of several schemas stay as they are.
    """
    if not isinstance(schema, Mapping):
        return [closed(item) for item in schema] if isinstance(schema, list) else schema
    inner = {key: closed(value) if key in ("items", "prefixItems") else value for key, value in schema.items()}
    if isinstance(schema.get("properties"), Mapping) and not _OPENS & set(schema):
        inner["properties"] = {name: closed(value) for name, value in schema["properties"].items()}
        inner.setdefault("additionalProperties", False)
    if "allOf" not in json.dumps(schema):
        for key in ("$defs", "definitions"):
            if isinstance(schema.get(key), Mapping):
                inner[key] = {name: closed(value) for name, value in schema[key].items()}
    return inner
