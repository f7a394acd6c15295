"""The only chat renderer: the model's own template turns messages into the text that the model reads.

The template is a Jinja program by the model's authors. It runs in an immutable sandbox, over messages that are values
and never template text. The environment is that of transformers' `apply_chat_template`, so both give the same text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from rung.errors import ModelError

if TYPE_CHECKING:
    from jinja2 import Environment, Template

BETWEEN = "\n\n"  # between the messages of a model that has no template


def render(
    messages: Iterable[Mapping[str, Any]], template: str | None, *, bos: str | None, eos: str | None,
    add_generation_prompt: bool = True, tools: Sequence[Mapping[str, Any]] | None = None,
) -> str:  # fmt: skip
    """The text of a chat.

    A model without a template completes plain text: the contents of the messages with blank lines between them, and
    with `add_generation_prompt` another blank line before the answer, unless the content before an assistant's turn
    ends in white space already, such as the cue `Answer: `. `tools` (JSON schemas of functions) are refused.

    With a `template` in Jinja, `add_generation_prompt` ends the text with the opening of the assistant's turn.

    Raises:
        ModelError: the template is broken, or refuses these messages (some know no system role, for example).
    """
    turns = [dict(message) for message in messages]
    if template is None:
        if tools:
            hint = "use an instruction-tuned model whose template supports tools"
            raise ModelError("no-chat-template", "the model has no chat template, so it cannot use tools", hint=hint)
        return _plain(turns, add_generation_prompt)
    from jinja2.exceptions import TemplateError

    names = {name: text for name, text in (("bos_token", bos), ("eos_token", eos)) if text is not None}
    functions = [dict(tool) for tool in tools] if tools else None
    try:
        return compiled(template).render(
            messages=turns, tools=functions, documents=None, add_generation_prompt=add_generation_prompt, **names
        )
    except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as refused:
        roles = ", ".join(str(turn.get("role")) for turn in turns)
        problem = f"the model's chat template refuses messages of the roles {roles}: {refused}"
        hint = "some models accept no system message, or require user and assistant to alternate"
        raise ModelError("chat-template-refused", problem, hint=hint) from refused


def _plain(turns: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> str:
    """The text for a model without a template; white space always separates an answer from the word before it."""
    text = ""
    for turn in (*turns, *([{"role": "assistant", "content": ""}] if add_generation_prompt else ())):
        cued = turn["role"] == "assistant" and text[-1:].isspace()
        text += (BETWEEN if text and not cued else "") + str(turn["content"])
    return text


@lru_cache(maxsize=16)
def compiled(template: str) -> Template:
    """The compiled template.

    Raises:
        ModelError: it is not valid Jinja.
    """
    from jinja2.exceptions import TemplateSyntaxError

    try:
        return _environment().from_string(template)
    except TemplateSyntaxError as broken:
        problem = f"line {broken.lineno} of the model's chat template: {broken.message}"
        hint = "download the model again, or correct its chat_template.jinja"
        raise ModelError("model-damaged", problem, hint=hint) from broken


@lru_cache(maxsize=1)
def _environment() -> Environment:
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationTag(Extension):
        """`{% generation %}` marks the assistant's text for training libraries; the text itself is unchanged."""

        tags = {"generation"}  # noqa: RUF012  Jinja reads a plain set

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:  # fmt: skip
    """Jinja's own filter escapes HTML characters, which would be wrong in prompts."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    from jinja2.exceptions import TemplateError

    raise TemplateError(message)
