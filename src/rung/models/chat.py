"""The only chat renderer: messages to the text that a model reads, by the model's own template.

Equal to transformers' `apply_chat_template`: the same sandbox, extensions, filters and globals (tested against it).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from rung.errors import ModelError

if TYPE_CHECKING:
    import jinja2

PLACEHOLDERS = range(0xE000, 0xF900)  # the private use area: characters that mean nothing in text


def render(
    messages: Sequence[Mapping[str, Any]],
    template: str | None,
    *,
    bos: str = "",
    eos: str = "",
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """Return the text of a chat.

    Without a template the model is a plain text completer: the contents are joined by blank lines, after `bos`.

    Args:
        messages: mappings with `role` and `content`.
        template: the model's Jinja chat template.
        bos: text of the token that begins a text; what templates call `bos_token`.
        eos: text of the token that ends one; `eos_token`.
        add_generation_prompt: end with what opens the assistant's turn.
        tools: JSON schemas of functions, for templates that know them.

    Raises:
        ModelError: the template is not valid, or refuses these messages (as some refuse a system turn).
    """
    if template is None:
        return bos + "\n\n".join(str(message["content"]) for message in messages)
    import jinja2

    try:
        return _compiled(template).render(
            messages=[dict(message) for message in messages],
            tools=list(tools) if tools is not None else None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            bos_token=bos,
            eos_token=eos,
        )
    except (jinja2.TemplateError, TypeError) as refused:
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise ModelError(
            "chat-template",
            f"the model's chat template fails on the roles [{roles}]: {refused}",
            hint="some models know no system turn, or want user and assistant to alternate",
        ) from refused


def shield(
    messages: Sequence[Mapping[str, Any]], template: str | None, special: Sequence[str]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Replace the text of special tokens inside messages by placeholder characters.

    A message may hold `<|im_end|>` as text, from a user who tries to forge a turn or in a question about models. After
    rendering, such text cannot be told from the template's own; placeholders can.

    Returns:
        The messages, and which text each placeholder stands for (empty: nothing was found, the messages are as given).
    """
    texts = [text for message in messages for text in _strings(message)]
    found = sorted({token for token in special if any(token in text for text in texts)}, key=len, reverse=True)
    if not found:
        return [dict(message) for message in messages], {}
    taken = set("".join([template or "", *texts]))
    free = (chr(code) for code in PLACEHOLDERS if chr(code) not in taken)
    shields = {next(free): token for token in found}

    def replace(value: Any) -> Any:
        if isinstance(value, str):
            for placeholder, token in shields.items():
                value = value.replace(token, placeholder)
            return value
        if isinstance(value, Mapping):
            return {key: replace(item) for key, item in value.items()}
        return [replace(item) for item in value] if isinstance(value, list | tuple) else value

    return [replace(message) for message in messages], shields


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [text for item in items for text in _strings(item)]


@lru_cache(maxsize=32)
def _compiled(template: str) -> jinja2.Template:
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks the assistant's words for training masks; in rendering it is transparent."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    def refuse(message: str) -> str:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write plain JSON: Jinja's own filter escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
