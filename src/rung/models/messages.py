"""Chat messages, as the chat APIs write them, and how a model's template reads them and ends them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict, cast

from rung.errors import ModelError
from rung.models.thinking import Thinking, answer_beginning, thought_beginning, thought_key
from rung.models.tokenizer import Tokenizer

_PROBE = "answer"
TEXT_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")  # their usual names in models with a chat template


class Message(TypedDict):
    """One chat turn. The first one of a conversation with functions has the list of them as `tools`.

    An assistant's turn may also have `reasoning_content`: what it thought before the content. The first turn may say
    with `thinking` how much the model is to think. A last turn of the assistant with `thinking` is not finished: its
    thought is `open`, or `closed` so that the answer follows (see `with_thought`).
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: NotRequired[list[dict[str, Any]]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]
    tools: NotRequired[list[dict[str, Any]]]
    reasoning_content: NotRequired[str]
    thinking: NotRequired[str]


Messages = tuple[Message, ...]


def encode_messages(
    tokenizer: Tokenizer, messages: Messages, *, answered: bool = False, written: bool = False
) -> tuple[int, ...]:
    """The tokens of chat messages, ready for an answer; every engine and estimate encodes by this function.

    With `answered`, the last message is the answer, and nothing follows it. Otherwise the answer begins after an empty
    thought, if the model has any, or after the thought that the last message holds. With `written`, it begins as in a
    whole conversation, in which some templates leave the empty thought out.
    """
    thinking, begun, messages = _begun(messages)
    shown, tools = for_template(tokenizer, messages)
    if answered:
        return tokenizer.encode_chat(shown, False, tools, answer_beginning(tokenizer, thinking))
    if begun is None:
        return tokenizer.encode_chat(shown, True, tools, answer_beginning(tokenizer, thinking, written=written))
    opened = thought_beginning(tokenizer, thinking)
    tokens = tokenizer.encode_chat(shown, True, tools, opened) + tokenizer.encode_plain(begun["reasoning_content"])
    return tokens if begun["thinking"] == "open" else tokens + tokenizer.encode(opened.end)


def thinking_of(messages: Messages) -> Thinking:
    """How much the model is to think before it answers these messages."""
    return cast("Thinking", messages[0].get("thinking", "off")) if messages else "off"


def with_thinking(messages: Messages, thinking: Thinking) -> Messages:
    """The messages, with how much the model is to think before it answers."""
    return messages if thinking == "off" or not messages else ({**messages[0], "thinking": thinking}, *messages[1:])


def with_thought(messages: Messages, thought: str | None) -> Messages:
    """The messages with what was thought before the answer, or with an open thought to be written next."""
    state = "open" if thought is None else "closed"
    return (*messages, {"role": "assistant", "content": "", "reasoning_content": thought or "", "thinking": state})


def _begun(messages: Messages) -> tuple[Thinking, Message | None, Messages]:
    """How much to think, the unfinished turn, and the messages without either."""
    thinking, begun = thinking_of(messages), None
    if messages and "thinking" in messages[-1] and messages[-1]["role"] == "assistant":
        begun, messages = messages[-1], messages[:-1]
    if messages and "thinking" in messages[0]:
        messages = (cast("Message", {k: v for k, v in messages[0].items() if k != "thinking"}), *messages[1:])
    return thinking, begun, messages


def for_template(tokenizer: Tokenizer, messages: Messages) -> tuple[Messages, list[dict[str, Any]] | None]:
    """The messages and tools that the model's template renders.

    What the template does not show is written as text: a system turn before the first user's, functions, calls and
    results in the tags of Hermes, and thoughts of the turns after the last user's between `<think>` and `</think>`.
    """
    tools = messages[0].get("tools") if messages else None
    if tools is not None:
        messages = (cast("Message", {k: v for k, v in messages[0].items() if k != "tools"}), *messages[1:])
    if tools or any(len(turn) > 2 or turn["role"] == "tool" for turn in messages):
        support = shown_parts(tokenizer)
        messages = _as_text(messages, support)
        if tools and not support.tools:
            messages = with_system(messages, tag_head(tools))
            tools = None
    return messages if accepts_system(tokenizer) else fold_system(messages), tools or None


def with_system(messages: Messages, text: str) -> Messages:
    """The messages with a text at the end of their system turn, which is made if there is none."""
    if messages and messages[0]["role"] == "system":
        head: Message = {**messages[0], "content": f"{messages[0]['content']}\n\n{text}"}
        return (head, *messages[1:])
    return ({"role": "system", "content": text}, *messages)


def _as_text(messages: Messages, support: Shows) -> Messages:
    """Write as text what the template does not show; results in sequence become one user turn."""
    last_user = max((i for i, turn in enumerate(messages) if turn["role"] == "user"), default=-1)
    shown: list[Message] = []
    for i, turn in enumerate(messages):
        content, kept = turn["content"], dict(turn)
        if turn["role"] == "tool" and not support.calls:
            text = tagged_result(content)
            if i and messages[i - 1]["role"] == "tool":
                shown[-1]["content"] += f"\n{text}"
            else:
                shown.append({"role": "user", "content": text})
            continue
        if "tool_calls" in turn and not support.calls:
            calls = (tagged_call(c["function"]["name"], c["function"]["arguments"]) for c in kept.pop("tool_calls"))  # type: ignore[attr-defined]
            content = "\n".join(filter(None, (content.strip(), *calls)))
        if "reasoning_content" in turn and support.thought_key != "reasoning_content":
            thought = str(kept.pop("reasoning_content")).strip()
            if support.thought_key:
                kept[support.thought_key] = thought
            elif i > last_user:
                content = f"<think>\n{thought}\n</think>\n\n{content}"
        shown.append(cast("Message", {**kept, "content": content}))
    return tuple(shown)


class Shows(NamedTuple):
    """What a chat template shows of the parts of a conversation besides texts."""

    tools: bool  # the functions that may be called
    calls: bool  # calls, and their results
    thought_key: str  # where it looks for what the assistant thought before the last answer; empty: nowhere


@lru_cache(maxsize=16)
def shown_parts(tokenizer: Tokenizer) -> Shows:
    """Probe the model's chat template."""
    if tokenizer.chat_template is None:
        return Shows(tools=False, calls=False, thought_key="")
    function = {"name": "probe-tool", "description": "x", "parameters": {"type": "object", "properties": {}}}
    tools = [{"type": "function", "function": function}]
    call = {"id": call_id(0), "type": "function", "function": {"name": "probe-call", "arguments": {}}}
    question = {"role": "user", "content": "x"}
    calls = (
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "probe-call", "content": "probe-result", "tool_call_id": call_id(0)},
    )

    def shown(*turns: Mapping[str, Any], tools: Sequence[Mapping[str, Any]] | None = None) -> str:
        try:
            return tokenizer.render(turns, add_generation_prompt=turns[-1]["role"] != "assistant", tools=tools)
        except ModelError as error:
            if error.code == "chat-template-refused":
                return ""
            raise

    talk = shown(question, *calls, tools=tools)
    return Shows(
        tools="probe-tool" in shown(question, tools=tools), calls="probe-call" in talk and "probe-result" in talk,
        thought_key=thought_key(tokenizer),
    )  # fmt: skip


# ---- tools as text, in the tags of Hermes (https://github.com/NousResearch/Hermes-Function-Calling)

_TAG_HEAD = """You may call one of these functions to answer. Each is given as a JSON object:
<tools>
{tools}
</tools>
To call one, answer with a JSON object with its name and arguments between these marks, and nothing else:
<tool_call>
{{"name": NAME, "arguments": ARGUMENTS}}
</tool_call>"""


def tag_head(tools: Sequence[Mapping[str, Any]]) -> str:
    """Describe functions, and the tags of a call, for the system message."""
    return _TAG_HEAD.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))


def tagged_call(name: str, arguments: Any) -> str:
    """Write a call in tags."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}\n</tool_call>"


def tagged_result(text: str) -> str:
    """Write a result in tags."""
    return f"<tool_response>\n{text}\n</tool_response>"


def call_id(number: int) -> str:
    """Nine letters and digits: Mistral's templates refuse every other form."""
    return f"call{number:05d}"


# ---- system turns, and ends


@lru_cache(maxsize=16)
def accepts_system(tokenizer: Tokenizer) -> bool:
    """Whether the model's template takes a system turn and shows its text (Gemma's does not)."""
    probe: Messages = ({"role": "system", "content": "probe-system"}, {"role": "user", "content": "x"})
    try:
        return "probe-system" in tokenizer.render(probe)
    except ModelError as error:
        if error.code == "chat-template-refused":
            return False
        raise


def fold_system(messages: Messages) -> Messages:
    """Put the text of a system turn before that of the first user turn, for templates without system turns."""
    if len(messages) < 2 or messages[0]["role"] != "system" or messages[1]["role"] != "user":
        return messages
    first: Message = {"role": "user", "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
    return (first, *messages[2:])


def end_token(tokenizer: Tokenizer) -> int | None:
    """The token that ends an answer: the special token that the chat template adds, else the tokenizer's end token.

    Templates end a turn with their own token (`<|im_end|>`, `<|eot_id|>`, `<end_of_turn>`), which need not be the
    end-of-text token of the tokenizer.
    """
    if tokenizer.chat_template is not None:
        turns: Messages = ({"role": "user", "content": "question"}, {"role": "assistant", "content": _PROBE})
        after = tokenizer.render(turns, False).rpartition(_PROBE)[2]
        for token in tokenizer.encode(after.strip())[:1]:
            if token in tokenizer.eos_ids:
                return token
    return tokenizer.eos_id if tokenizer.eos_id is not None else min(tokenizer.eos_ids, default=None)


def text_end(tokenizer: Tokenizer) -> int | None:
    """The special token that ends a document, as in the text that the model was pretrained on.

    It is the tokenizer's end token, unless that one ends an answer in a chat; then the one with a usual name.
    """
    answer_end = end_token(tokenizer) if tokenizer.chat_template is not None else None
    if tokenizer.eos_id is not None and tokenizer.eos_id != answer_end:
        return tokenizer.eos_id
    for name in TEXT_ENDS:
        if len(ids := tokenizer.encode(name)) == 1:
            return ids[0]
    return tokenizer.eos_id
