"""Chat messages, as the chat APIs write them."""

from __future__ import annotations

from typing import Literal, TypedDict


class Message(TypedDict):
    """One chat turn."""

    role: Literal["system", "user", "assistant"]
    content: str


Messages = tuple[Message, ...]
