"""The only chat renderer: the model's own template turns messages into the text that the model reads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rung.errors import ModelError
from rung.models import bounded

BETWEEN = "\n\n"  # between the messages of a model that has no template


# What opens a thought: `<think>`, `<seed:think>`, `[THINK]`, `<|START_THINKING|>`, `<|channel>thought`.
OPENING = re.compile(
    r"[<\[](?!/|\|END)[^<>\[\]\s]{0,40}?(?:think|thought|reason)[^<>\[\]\s]{0,40}[>\]]|<\|\w{1,20}>thought\b",
    re.IGNORECASE,
)
_TAIL = 200  # characters at the end of a text, in which an opening is looked for


def closing(opening: str) -> str:
    """What ends a thought that was opened this way."""
    if opening.startswith("<|START"):
        return opening.replace("START", "END", 1)
    if not opening.endswith((">", "]")):  # `<|channel>thought` and `<channel|>`
        return f"<{opening[2:].partition('>')[0]}|>"
    return f"{opening[0]}/{opening[1:]}"


def left_open(text: str) -> str:
    """The opening of a thought with which a text ends; empty where the text ends outside one."""
    end = text[-_TAIL:].rstrip()
    return next((opened[0] for opened in OPENING.finditer(end) if opened.end() == len(end)), "")


@dataclass(frozen=True)
class Beginning:
    """How an assistant's turn begins: what the template is asked for, and an edit of the end of its prompt."""

    variables: tuple[tuple[str, Any], ...] = ()
    drop: str = ""  # the end of the generation prompt that is left out
    add: str = ""  # what follows it
    switch: str = ""  # what the last user's turn says to the template, such as `/no_think`
    closes: bool = False  # whether a thought that is open at the end is closed, so that an answer can follow

    def asking(self, messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The messages with the switch in the last user's turn."""
        turns = [dict(message) for message in messages]
        last = next((turn for turn in reversed(turns) if turn.get("role") == "user"), None)
        if self.switch and last is not None and isinstance(last.get("content"), str):
            last["content"] += self.switch
        return turns

    def edited(self, rendered: str) -> str:
        """Rendered text with a generation prompt at its end, begun this way."""
        text = rendered.removesuffix(self.drop) + self.add
        opened = left_open(text) if self.closes else ""
        return f"{text.rstrip()}\n\n{closing(opened)}\n\n" if opened else text


PLAIN = Beginning()


def render(
    messages: Iterable[Mapping[str, Any]], template: str | None, *, bos: str | None, eos: str | None,
    add_generation_prompt: bool = True, tools: Sequence[Mapping[str, Any]] | None = None,
    variables: Iterable[tuple[str, Any]] = (),
) -> str:  # fmt: skip
    """The text of a chat.

    A model without a template completes plain text: the contents of the messages with blank lines between them, and
    with `add_generation_prompt` another blank line before the answer, unless the content before an assistant's turn
    ends in white space already, such as the cue `Answer: `. `tools` (JSON schemas of functions) are refused.

    With a `template` in Jinja, `add_generation_prompt` ends the text with the opening of the assistant's turn. The
    template also reads the `variables`, such as `enable_thinking`.

    Raises:
        ModelError: the template is broken, or refuses these messages (some know no system role, for example).
    """
    turns = [dict(message) for message in messages]
    if template is None:
        if tools:
            hint = "use an instruction-tuned model whose template supports tools"
            raise ModelError("no-chat-template", "the model has no chat template, so it cannot use tools", hint=hint)
        return _plain(turns, add_generation_prompt)
    names = {name: text for name, text in (("bos_token", bos), ("eos_token", eos)) if text is not None}
    functions = [dict(tool) for tool in tools] if tools else None
    return bounded.rendered(template, {
        "messages": turns, "tools": functions, "documents": None, "add_generation_prompt": add_generation_prompt,
        **names, **dict(variables),
    })  # fmt: skip


def _plain(turns: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> str:
    """The text for a model without a template; white space always separates an answer from the word before it."""
    text = ""
    for turn in (*turns, *([{"role": "assistant", "content": ""}] if add_generation_prompt else ())):
        cued = turn["role"] == "assistant" and text[-1:].isspace()
        text += (BETWEEN if text and not cued else "") + str(turn["content"])
    return text
