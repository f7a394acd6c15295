"""Programs by others, run within limits: chat templates of models, and regular expressions.

A template is a Jinja program by the model's authors. It runs in an immutable sandbox, over messages that are values and
never template text. The environment is that of transformers' `apply_chat_template`, so both give the same text, except
that today is always the same day. The sandbox does not keep a template from writing gigabytes or looping for ever, and
some regular expressions take for ever on some texts. So both run in a process of their own, `python -m
rung.models.bounded`, with limits of memory, time and output. The templates of the built-in models, which are known, run
in this one.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import re
import threading
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from rung.errors import ConfigError, ModelError
from rung.machine import limit_memory
from rung.worker_pipes import WorkerEndedError, WorkerError, WorkerProcess, WorkerTimeoutError, serve

if TYPE_CHECKING:
    from jinja2 import Environment, Template

# What a template reads as today, Llama 3.2's default: a prompt that changed every day would not be the measured one.
DAY = datetime(2024, 7, 26)
SECONDS = 10.0  # of one call; they take a millisecond
START_SECONDS = 60.0  # of the first one, in which the process starts
MEMORY = 2**30  # bytes of addresses; an idle process has a tenth
MAX_TEMPLATE = 100_000  # characters; the longest known ones have 30,000
MAX_TEXT = 1_000_000  # characters, besides ten times the messages'
# sha256 of the templates of the built-in models, which run in this process.
KNOWN = {
    "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788",  # SmolLM2-135M-Instruct
    "cd8e9439f0570856fd70470bf8889ebd8b5d1107207f67a5efb46e342330527f",  # Qwen2.5-Coder-0.5B-Instruct
    "d5495a1e5db0611132a97e46a65dbb64a642a499421228b9c8b93229097fa9a4",  # Qwen2.5-Coder-1.5B-Instruct
}

_TODAY = re.compile(r"""\bstrftime_now\(\s*+(["'])([^"'\\]*+)\1\s*+\)""")
_lock = threading.Lock()
_workers: list[WorkerProcess] = []
_exceeding: set[str] = set()  # templates that ran into a limit of time or memory are not run again


def rendered(template: str, variables: Mapping[str, Any]) -> str:
    """The text that a template makes of its variables.

    Raises:
        ModelError: the template is broken, refuses these messages, or exceeds a limit.
    """
    if _is_known(template):
        return _text(template, variables)
    text: str = _asked("text", template, variables)
    return text


@lru_cache(maxsize=16)
def names_read(template: str) -> tuple[str, ...]:
    """The variables that a template reads.

    Raises:
        ModelError: the template is broken, or exceeds a limit.
    """
    if _is_known(template):
        return tuple(_names(template, {}))
    return tuple(_asked("names", template, {"messages": ()}))


def _asked(call: str, template: str, variables: Mapping[str, Any]) -> Any:
    if template in _exceeding:
        raise _refused(variables, "it exceeds the limits of time and memory")
    try:
        return _apart(call, template, variables)
    except WorkerError as failed:
        _exceeding.add(template)
        raise _refused(variables, f"it exceeds the limits of time and memory: {failed}") from failed


def dated(template: str) -> str:
    """A template with that day's text where it asks for today's, for servers that would tell it the real day."""
    return _TODAY.sub(lambda call: json.dumps(DAY.strftime(call[2])), template)


def found(pattern: str, text: str, *, whole: bool = False) -> bool:
    """Whether a regular expression by others is found in a text, or matches the `whole` of it.

    Raises:
        ConfigError: `bad-constraint`: it is not valid, or takes too long on this text.
    """
    try:
        return bool(_apart("found", pattern, text, whole))
    except WorkerError as failed:
        problem = f"the regex {pattern[:80]!r} cannot be matched: {failed}"
        raise ConfigError("bad-constraint", problem, hint="write it without nested repetitions") from failed


def _apart(name: str, *arguments: Any) -> Any:
    """Call a function of the process, which is started at the first call and after it was ended."""
    with _lock:
        starts = not _workers
        if starts:
            _workers.append(WorkerProcess("rung.models.bounded"))
        try:
            return _workers[0].call(name, *arguments, seconds=START_SECONDS if starts else SECONDS)
        except (WorkerTimeoutError, WorkerEndedError):
            _workers.clear()
            raise


def _found(pattern: str, text: str, whole: bool) -> bool:
    return (re.fullmatch if whole else re.search)(pattern, text) is not None


@lru_cache(maxsize=16)
def _is_known(template: str) -> bool:
    return hashlib.sha256(template.encode()).hexdigest() in KNOWN


@atexit.register
def close() -> None:
    """End the process, if there is one."""
    while _workers:
        _workers.pop().close()


def _text(template: str, variables: Mapping[str, Any]) -> str:
    from jinja2.exceptions import TemplateError

    try:
        return _compiled(template).render(variables)
    except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as refused:
        raise _refused(variables, str(refused)) from refused


def _bounded_text(template: str, variables: Mapping[str, Any]) -> str:
    text, most = _text(template, variables), MAX_TEXT + 10 * len(json.dumps(variables))
    if len(text) > most:
        raise _refused(variables, f"it writes {len(text):,} characters, more than {most:,}")
    return text


def _names(template: str, variables: Mapping[str, Any]) -> list[str]:
    from jinja2.meta import find_undeclared_variables

    del variables
    _compiled(template)  # raises for a broken one
    return sorted(find_undeclared_variables(_environment().parse(template)))


def _refused(variables: Mapping[str, Any], why: str) -> ModelError:
    roles = ", ".join(str(turn.get("role")) for turn in variables["messages"])
    problem = f"the model's chat template refuses messages of the roles {roles}: {why}"
    hint = "some models accept no system message, or require user and assistant to alternate"
    return ModelError("chat-template-refused", problem, hint=hint)


def main() -> None:
    """Answer calls until stdin ends."""
    limit_memory(MEMORY)
    serve({"text": _bounded_text, "names": _names, "found": _found})


@lru_cache(maxsize=16)
def _compiled(template: str) -> Template:
    """The compiled template.

    Raises:
        ModelError: it is not valid Jinja.
    """
    from jinja2.exceptions import TemplateSyntaxError

    if len(template) > MAX_TEMPLATE:
        raise _damaged(f"the model's chat template has more than {MAX_TEMPLATE:,} characters")
    try:
        return _environment().from_string(template)
    except TemplateSyntaxError as broken:
        raise _damaged(f"line {broken.lineno} of the model's chat template: {broken.message}") from broken


def _damaged(problem: str) -> ModelError:
    hint = "download the model again, or correct its chat_template.jinja"
    return ModelError("model-damaged", problem, hint=hint)


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
    environment.globals["strftime_now"] = DAY.strftime
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


if __name__ == "__main__":
    main()
