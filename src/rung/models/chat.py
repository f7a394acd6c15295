"""The only chat renderer: the model's own template turns messages into the text that the model reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rung.errors import ModelError
from rung.models import bounded

BETWEEN = "\n\n"  # between the messages of a model that has no template


@dataclass(frozen=True)
class Beginning:
    """How an assistant's turn begins: the template's variables, and an edit of the end of its generation prompt."""

    variables: tuple[tuple[str, Any], ...] = ()
    drop: str = ""  # the end of the generation prompt that is left out
    add: str = ""  # what follows it

    def edited(self, rendered: str) -> str:
        """Rendered text with a generation prompt at its end, begun this way."""
        return rendered.removesuffix(self.drop) + self.add


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
