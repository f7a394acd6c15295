"""What a model's turn means: an answer, or calls of tools in the format of any family of models.

Each family puts its own marks around a call. The text between them has one of six forms, which its beginning tells.
The formats are those of the makers' chat templates.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rung.agents.tools import Tool
from rung.yamlfile import json_value


@dataclass(frozen=True, slots=True)
class Call:
    """A tool that the model wants to call, with its arguments."""

    tool: str
    arguments: Mapping[str, Any]


ModelTurn = str | tuple[Call, ...]  # an answer, or calls
Schemas = Mapping[str, Mapping[str, Any]]  # of the arguments, by the tool's name


class MalformedError(Exception):
    """A turn that begins a call and does not finish it; the text tells the model what is wrong."""


# ---- the table: what opens and closes calls; a lookahead closes what has no mark of its own

_FAMILIES: Sequence[tuple[str, str]] = (
    # Hermes, Qwen, SmolLM, Granite 4, Nemotron 3, StepFun, GLM, Ling; MiniMax M2; Seed-OSS
    (r"<(?:minimax:|seed:)?tool_call>", r"</(?:minimax:|seed:)?tool_call>"),
    (r"\[TOOL_CALLS\]", r"(?=\[TOOL_CALLS\])"),  # Mistral
    (r"<\|python_tag\|>", r"(?=<\|python_tag\|>)"),  # Llama
    (r"<\|tool_call_start\|>", r"<\|tool_call_end\|>"),  # LFM2
    (r"<\|tool_call>", r"<tool_call\|>"),  # Gemma 4
    (r"<\|tool_call\|>", r"<\|/tool_call\|>"),  # Granite 3, Phi-4-mini
    (r"<\|START_ACTION\|>", r"<\|END_ACTION\|>"),  # Command
    (r"<｜tool▁calls▁begin｜>", r"<｜tool▁calls▁end｜>"),  # DeepSeek to 3.1
    (r"<｜DSML｜(?:function|tool)_calls>", r"</｜DSML｜(?:function|tool)_calls>"),  # DeepSeek from 3.2
    (r"<\|tool_calls_section_begin\|>", r"<\|tool_calls_section_end\|>"),  # Kimi K2
    (r"<tool_calls>|<TOOLCALL>", r"</tool_calls>|</TOOLCALL>"),  # Apriel, MiniMax M1; Nemotron 2
    (r"<\|function_call\|>", r"(?=<\|function_call\|>)"),  # GigaChat 3.1
)
_OF_KNOWN: Sequence[tuple[str, str]] = (  # these begin a call only before the name of a known tool
    (r"<(?=function(?:=|\s+name=\")(?:{names})[\">])", r"(?<=</function>)"),  # functionary 3.1, MiniCPM 5, Qwen3-Coder
    (r"to=functions\.(?=(?:{names})\s*(?:<|json|j?s?o?\Z))", r"<\|call\|>"),  # gpt-oss
    (r"```tool_code\s+(?=(?:print\()?(?:{names})\()", r"```"),  # Gemma 3
)
_GAP = re.compile(r"[\s;]*")
_NAME = r"[\w.-]+"
_NAMED = re.compile(
    rf"(?:<｜tool▁call▁begin｜>(?:function<｜tool▁sep｜>)?|<\|tool_call_begin\|>(?:functions\.)?)?({_NAME}?)(?::\d+)?\s*"
    r"(?:\[CALL_ID\]\w*)?(?:\[ARGS\]|<｜tool▁sep｜>|<\|tool_call_argument_begin\|>|\s```json|"
    r"(?:<\|channel\|>commentary)?\s*+(?:<\|constrain\|>)?json\s*+(?:<\|message\|>)?)\s*+"
)
_NAMED_END = re.compile(r"\s*(?:```)?\s*(?:<｜tool▁call▁end｜>|<\|tool_call_end\|>)?\s*")
_PREFIX = r"(?:｜DSML｜)?"
_ELEMENT = re.compile(rf'\s*<?{_PREFIX}(?:function|invoke)(?:=|\s+name=")({_NAME})"?>\s*')
_ELEMENT_END = re.compile(rf"\s*</{_PREFIX}(?:function|invoke)>\s*")
_PARAMETER = re.compile(
    rf'\s*<{_PREFIX}param(?:eter)?(?:=|\s+name=")([^">]++)"?([^>]*+)>(.*?)</{_PREFIX}param(?:eter)?>'
    rf"(?=\s*</?{_PREFIX}(?:param|function|invoke))",  # a value may hold the mark that ends it
    re.DOTALL,
)
_CDATA = re.compile(r"<!\[CDATA\[(.*)\]\]>", re.DOTALL)
_PAIR = re.compile(r"\s*<arg_key>([^<]*+)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
_GEMMA_NAME = re.compile(rf"call:({_NAME})(?=\{{)")
_GEMMA_KEY = re.compile(r"([{,]\s*)([^\s{}\[\],:\"]+)\s*:")
_OPENING = re.compile(r'\{\{?\s*+"')  # of an object with keys, perhaps with doubled braces
_WRITTEN = 'a call is written {"name": ..., "arguments": {...}}'
LONGEST_CALL = 20_000  # characters of a call with doubled braces
_UNREADABLE = (KeyError, TypeError, ValueError, SyntaxError, RecursionError, MemoryError)


def read_turn(text: str, tools: Sequence[Tool] = ()) -> ModelTurn:
    """Read an answer, or calls in the format of any family.

    A call is marked, or it is the whole turn: JSON (Llama 3) or a list in Python (Llama 4). Marks in code, which only
    show how a call looks, are no calls. Arguments written as bare text get the types of the tool's schema. JSON calls
    of the known `tools` may also stand between other text, such as fences, and have doubled braces.

    Raises:
        MalformedError: a call is begun that cannot be read, or the arguments are not an object.
    """
    schemas: Schemas = {tool.name: tool.schema for tool in tools}
    calls: list[Call] = []
    try:
        for body, closed in _marked(text, schemas):
            calls += _calls(body, schemas, closed=closed)
    except _UNREADABLE as error:
        if named := _named_calls(text, schemas):
            return named
        if isinstance(error, KeyError | TypeError):
            raise MalformedError(_WRITTEN) from None
        why = "is not valid JSON" if isinstance(error, json.JSONDecodeError) else "cannot be read"
        raise MalformedError(f"that call {why}: {error}") from None
    return tuple(calls) or _unmarked(text, schemas)


def begins_at(text: str, tools: Sequence[Tool]) -> int:
    """Where the first marked call begins; 0 where none is marked."""
    return next((mark.start() for mark, _ in _marks(text, [tool.name for tool in tools])), 0)


def _marks(text: str, names: Collection[str]) -> Iterator[tuple[re.Match[str], re.Match[str] | None]]:
    """Find what opens and closes calls outside of code."""
    known = "|".join(map(re.escape, names))
    rows = [*_FAMILIES, *((opening.replace("{names}", known), end) for opening, end in _OF_KNOWN if known)]
    any_mark = re.compile("|".join(f"({opening})" for opening, _ in rows))
    prose = position = 0  # what is read, and to where marks are found
    while mark := any_mark.search(text, position):
        position, line = mark.end(), max(prose, text.rfind("\n", 0, mark.start()) + 1)
        if text.count("```", prose, mark.start()) % 2 or text[line : mark.start()].replace("```", "").count("`") % 2:
            continue
        end = re.compile(rows[(mark.lastindex or 1) - 1][1]).search(text, mark.end())
        yield mark, end
        prose = position = end.end() if end else len(text)


def _marked(text: str, names: Collection[str]) -> Iterator[tuple[str, bool]]:
    """What is written between marks, and whether it is closed."""
    for mark, end in _marks(text, names):
        yield text[mark.end() : end.start() if end else len(text)].strip(), end is not None


def _unmarked(text: str, schemas: Schemas) -> ModelTurn:
    """A turn without marks: calls where it is nothing but calls, else an answer."""
    begun = text.strip()
    names = "|".join(map(re.escape, schemas)) or "(?!)"
    try:
        if re.match(rf"\[\s*(?:{names})\(", begun):
            return _python_calls(begun, schemas)
        values = list(_json_values(text))
    except _UNREADABLE as error:
        if calls := _named_calls(text, schemas):
            return calls
        if re.match(rf'(?s)\[?\s*\{{\s*"name":\s*"(?:{names})"|\[\s*(?:{names})\((?!.*\)\])', begun):  # it is cut
            raise MalformedError(f"that call cannot be read: {error}") from None
        return begun
    if not (values and all(map(_looks_like_call, values))):
        return begun  # an answer that happens to be JSON
    try:
        return tuple(call_of(value, value["name"]) for value in values)
    except _UNREADABLE:
        raise MalformedError(_WRITTEN) from None


# ---- the forms of a call between marks


def _calls(body: str, schemas: Schemas, *, closed: bool) -> tuple[Call, ...]:
    """Read the calls between marks; raise an error of `_UNREADABLE` where there are none."""
    form = next((form for begins, form in _FORMS if begins(body)), None)
    if form is None or (form is _pair_call and not closed):  # which nothing else shows to be whole
        raise ValueError("it is not whole" if form else "it begins with no tool's name, and with no object")
    calls = form(body, schemas)
    if not calls:
        raise TypeError(_WRITTEN)
    return calls


def _json_calls(body: str, schemas: Schemas) -> tuple[Call, ...]:
    del schemas  # JSON has types of its own
    values = _json_values(body)
    return tuple(call_of(value, value["tool_name" if "tool_name" in value else "name"]) for value in values)


def _python_calls(body: str, schemas: Schemas) -> tuple[Call, ...]:
    """`[f(a="x"), g()]`, or `print(f(a="x"))`."""
    # Names of tools need not be names of Python.
    others = {name: f"_tool_{i}_" for i, name in enumerate(schemas) if not name.isidentifier()}
    for name, other in others.items():
        body = body.replace(f"{name}(", f"{other}(")
    tree: ast.expr = ast.parse(body.strip(), mode="eval").body
    if isinstance(tree, ast.Call) and ast.unparse(tree.func) == "print" and len(tree.args) == 1:
        tree = tree.args[0]
    names = {other: name for name, other in others.items()}

    def restored(value: Any) -> Any:
        for other, name in names.items():
            value = value.replace(f"{other}(", f"{name}(") if isinstance(value, str) else value
        return value

    calls = []
    for node in tree.elts if isinstance(tree, ast.List) else [tree]:
        if not isinstance(node, ast.Call) or node.args or any(keyword.arg is None for keyword in node.keywords):
            raise ValueError('write every argument with its name: f(a="x")')
        tool = ast.unparse(node.func)
        arguments = {str(keyword.arg): _literal(keyword.value, restored) for keyword in node.keywords}
        calls.append(Call(names.get(tool, tool), arguments))
    return tuple(calls)


def _literal(node: ast.expr, restored: Callable[[Any], Any] = lambda value: value) -> Any:
    """The value of a literal; templates write some of it as JSON."""
    match node:
        case ast.Constant(value=None | bool() | int() | float() | str() as value):
            return restored(value)
        case ast.Name(id="true" | "false" | "null" as word):
            return json.loads(word)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_literal(item, restored) for item in items]
        case ast.Dict(keys=keys, values=values):
            pairs = zip(keys, values, strict=True)
            return {str(_literal(key, restored)): _literal(value, restored) for key, value in pairs if key is not None}
    raise ValueError(f"{ast.unparse(node)[:80]!r} is no value")


def _named_json_calls(body: str, schemas: Schemas) -> tuple[Call, ...]:
    """`f[ARGS]{"a": "x"}`, and the like: a name, a separator, the arguments."""
    del schemas
    calls, position = [], 0
    while position < len(body):
        if (named := _NAMED.match(body, position)) is None:
            raise ValueError("its arguments are no JSON object")
        arguments, end = json.JSONDecoder().raw_decode(body, named.end())
        calls.append(call_of({"arguments": arguments}, named[1]))
        position = _end(_NAMED_END, body, end)
    return tuple(calls)


def _element_calls(body: str, schemas: Schemas) -> tuple[Call, ...]:
    """`<function=f><parameter=a>x</parameter></function>`, with attributes, or with the arguments as JSON."""
    calls, position = [], 0
    while position < len(body):
        if (opened := _ELEMENT.match(body, position)) is None:
            raise ValueError(f"{body[position : position + 40]!r} is no call")
        name, position, arguments = opened[1], opened.end(), dict[str, Any]()
        if body.startswith("{", position):
            arguments, position = json.JSONDecoder().raw_decode(body, position)
        while (given := _PARAMETER.match(body, position)) is not None:
            key, attributes, text = given.groups()
            if text.startswith("\n") and text.endswith("\n"):
                text = text[1:-1]
            cdata = _CDATA.fullmatch(text)
            verbatim = cdata is not None or 'string="true"' in attributes
            arguments[key] = (cdata[1] if cdata else text) if verbatim else _typed(text, key, schemas.get(name, {}))
            position = given.end()
        if (ended := _ELEMENT_END.match(body, position)) is None:
            raise ValueError("an argument, or the call, is not ended")
        calls.append(call_of({"arguments": arguments}, name))
        position = ended.end()
    return tuple(calls)


def _pair_call(body: str, schemas: Schemas) -> tuple[Call, ...]:
    """`f<arg_key>a</arg_key><arg_value>x</arg_value>`."""
    name = re.split(r"\s|<", body, maxsplit=1)[0]
    arguments, position = {}, len(name)
    while (pair := _PAIR.match(body, position)) is not None:
        arguments[pair[1].strip()] = _typed(pair[2], pair[1].strip(), schemas.get(name, {}))
        position = pair.end()
    if body[position:].strip():
        raise ValueError(f"{body[position : position + 40]!r} is no argument")
    return (Call(name, arguments),)


def _gemma_call(body: str, schemas: Schemas) -> tuple[Call, ...]:
    """`call:f{a:<|"|>x<|"|>,b:3}`: JSON whose keys are bare, and whose strings have their own marks."""
    del schemas
    if (named := _GEMMA_NAME.match(body)) is None:
        raise ValueError("a call is written call:NAME{...}")
    parts = body[named.end() :].split('<|"|>')
    for i, part in enumerate(parts):
        bare = re.sub(r"(?<=:)None\b", "null", _GEMMA_KEY.sub(r'\1"\2":', part))
        parts[i] = json.dumps(part) if i % 2 else bare
    return (call_of({"arguments": json.loads("".join(parts))}, named[1]),)


_PYTHON = re.compile(rf"\[?\s*{_NAME}\(")
_PAIRED = re.compile(rf"{_NAME}\s*(?:<arg_key>|\Z)")
# What tells a form by its beginning, and what reads it.
_FORMS: Sequence[tuple[Callable[[str], object], Callable[[str, Schemas], tuple[Call, ...]]]] = (
    (_PYTHON.match, _python_calls),
    (re.compile(r"[\[{]").match, _json_calls),
    (_ELEMENT.match, _element_calls),
    (re.compile(r"call:").match, _gemma_call),
    (_PAIRED.match, _pair_call),
    (_NAMED.match, _named_json_calls),
)


# ---- values


def _typed(text: str, key: str, schema: Mapping[str, Any]) -> Any:
    """A value that was written as bare text, by its type in the schema of the arguments."""
    types = _types(schema.get("properties", {}).get(key, {}), schema)
    if types == {"string"}:
        return text
    try:
        value = json_value(text)
    except (ValueError, RecursionError):
        try:
            value = _literal(ast.parse(text.strip(), mode="eval").body)  # some templates write `True`
        except _UNREADABLE:
            return text
    own = {_type(value)} | ({"number"} if _type(value) == "integer" else set())
    return text if isinstance(value, str) or ("string" in types and not own & types) else value


def _types(part: Mapping[str, Any], root: Mapping[str, Any]) -> set[str]:
    """The JSON types that a schema names; none where it allows all."""
    if isinstance(target := part.get("$ref"), str):
        part = root.get("$defs", {}).get(target.removeprefix("#/$defs/"), {})
    named = part.get("type", [])
    types = {named} if isinstance(named, str) else set(named)
    types |= {_type(value) for value in part.get("enum", ())} if not types else set()
    return types.union(*(_types(each, root) for kind in ("anyOf", "oneOf") for each in part.get(kind, ())))


def _type(value: Any) -> str:
    names = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}
    return names.get(type(value), "null")


def _named_calls(text: str, names: Collection[str]) -> tuple[Call, ...]:
    """Find the JSON calls of known tools between other text."""
    calls: list[Call] = []
    decoder, position = json.JSONDecoder(), 0
    while names and (opening := _OPENING.search(text, position)):
        position, doubled = opening.start(), opening[0].startswith("{{")
        places = [(text, position)]
        if doubled:
            single = text[position : position + LONGEST_CALL].replace("{{", "{").replace("}}", "}")
            places += [(text, position + 1), (single, 0)]
        position = opening.end()
        for written, begin in places:
            try:
                value, end = decoder.raw_decode(written, begin)
                call = call_of(value, value["name"])
            except (KeyError, TypeError, ValueError, RecursionError):
                continue
            if call.tool in names:
                calls.append(call)
                position = end if written is text else opening.start() + end
                break
    return tuple(calls)


def _json_values(text: str) -> Iterable[Any]:
    """Yield the JSON values written one after another; the items of a list count as values."""
    decoder, position = json.JSONDecoder(), _end(_GAP, text, 0)
    while position < len(text):
        value, end = decoder.raw_decode(text, position)
        for item in value if isinstance(value, list) else [value]:
            yield item["function"] if isinstance(item, dict) and isinstance(item.get("function"), dict) else item
        position = _end(_GAP, text, end)


def _end(gap: re.Pattern[str], text: str, position: int) -> int:
    found = gap.match(text, position)
    return found.end() if found else position


def _looks_like_call(value: Any) -> bool:
    return isinstance(value, dict) and "name" in value and ("arguments" in value or "parameters" in value)


def call_of(values: Mapping[str, Any], tool: Any) -> Call:
    """The call of a tool; raise KeyError, TypeError or ValueError where `values` hold no object of arguments."""
    arguments = values["arguments"] if "arguments" in values else values["parameters"]
    if isinstance(arguments, str):
        arguments = json_value(arguments)
    if not isinstance(tool, str) or not isinstance(arguments, dict):
        raise TypeError("its arguments are no object")
    return Call(tool, arguments)
