"""Regular expressions of a source file, and texts that make slow ones slow."""

import ast
import re
import signal
import time
from collections.abc import Iterator
from re import _constants as codes
from re import _parser
from typing import NamedTuple

CALLS = {"compile", "search", "match", "fullmatch", "sub", "subn", "split", "findall", "finditer"}
WHOLE = {"match", "fullmatch", "pydantic"}  # these look at one place; the others begin at each
_IMPORTS = re.compile(r"^from .* import (?:\([^)]*\)|.*)$", re.MULTILINE)
ENDS = ("", "\0")
MOST = 160  # texts of a pattern
CHARACTERS = " \t\na1-_.:\"'\\`([{<|#@/,é"
SAMPLES = {
    codes.CATEGORY_DIGIT: "1", codes.CATEGORY_WORD: "a", codes.CATEGORY_SPACE: " ",
    codes.CATEGORY_NOT_DIGIT: "a", codes.CATEGORY_NOT_WORD: "-", codes.CATEGORY_NOT_SPACE: "a",
}  # fmt: skip


class Found(NamedTuple):
    """One regular expression: its line, what is called, the pattern and its flags."""

    line: int
    call: str
    pattern: str
    flags: int


def found_in(source: str, everywhere: str = "") -> Iterator[Found]:
    """The patterns that are written in a source file; `x` stands for what is only known when it runs.

    `everywhere` is the text of all files: a compiled pattern of which it calls `fullmatch` alone is called so.
    """
    tree = ast.parse(source)
    known: dict[str, str] = {}
    names: dict[ast.AST, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            names[node.value] = node.targets[0].id
            known.setdefault(node.targets[0].id, _text(node.value, known) or "x")
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        call, given = node.func, {word.arg: word.value for word in node.keywords}
        owner = call.value if isinstance(call, ast.Attribute) and call.attr in CALLS else None
        if isinstance(owner, ast.Name) and owner.id in ("re", "regex") and (text := _text(node.args[0], known)):
            name = call.attr if call.attr != "compile" else _called(names.get(node), everywhere)
            yield Found(node.lineno, name, text, _flags([*node.args[1:], *given.values()]))
        if isinstance(given.get("pattern"), ast.Constant):
            yield Found(node.lineno, "pydantic", given["pattern"].value, 0)


def _called(name: str | None, everywhere: str) -> str:
    """What is called of a compiled pattern with this name: `match` if it only looks at the beginning."""
    everywhere = _IMPORTS.sub("", everywhere)
    uses = set(re.findall(rf"(?<![\w.]){name}\b(?!\s*[:=])(\.\w+)?", everywhere)) - {".pattern"} if name else {""}
    return "match" if uses and uses <= {".match", ".fullmatch"} else "search"


def _text(node: ast.AST, known: dict[str, str]) -> str | None:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.Constant(value=bytes(raw)):
            return raw.decode("latin-1")
        case ast.JoinedStr(values=parts):
            return "".join(_text(part, known) or "x" for part in parts)
        case ast.FormattedValue(value=value):
            return _text(value, known) or "x"
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return (_text(left, known) or "x") + (_text(right, known) or "x")
        case ast.Name(id=name):
            return known.get(name)
    return None


def _flags(nodes: list[ast.expr]) -> int:
    names = [part.attr for node in nodes for part in ast.walk(node) if isinstance(part, ast.Attribute)]
    return sum({getattr(re, name) for name in names if isinstance(getattr(re, name, None), re.RegexFlag)})


def attacks(pattern: str, flags: int = 0) -> list[tuple[str, str]]:
    """Beginnings, each with a piece to repeat after it: characters, and what a part of the pattern matches."""
    tree = _parser.parse(pattern, flags)
    parts = list(dict.fromkeys(_parts(tree)))
    characters = dict.fromkeys([*CHARACTERS, *[chr(code) for code in _literals(tree) if code < 0x3000][:12]])
    starts = list(dict.fromkeys(before for before, _ in parts if before))[:2]
    pairs = [(start, character) for character in characters for start in ("", *starts)]
    for before, inside in parts[:40]:
        pairs += [(before, inside), *(("", before + inside + end) for end in ("", "-", " ", "\n"))]
    pairs = [pair for pair in dict.fromkeys(pairs) if pair[1]]
    return pairs[:: 1 + len(pairs) // MOST]


def _literals(tree) -> Iterator[int]:
    for code, value in tree:
        if code in (codes.LITERAL, codes.NOT_LITERAL):
            yield value
        elif code is codes.IN:
            yield from _literals([one for one in value if one[0] is codes.LITERAL])
        else:
            for inner in _inner(code, value):
                yield from _literals(inner)


def _inner(code, value) -> list:
    if code in (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT):
        return [value[2]]
    if code is codes.SUBPATTERN:
        return [value[3]]
    if code is codes.BRANCH:
        return list(value[1])
    if code in (codes.ASSERT, codes.ASSERT_NOT):
        return [value[1]]
    return [value] if code is codes.ATOMIC_GROUP else []


def _parts(tree, before: str = "") -> Iterator[tuple[str, str]]:
    """A text that leads to each repeat or alternative, and one that it matches once."""
    for code, value in tree:
        for inner in _inner(code, value):
            yield from _parts(inner, before)
            yield before[-40:], _sample(inner)[:40]
        before += _sample([(code, value)])


def _sample(tree) -> str:
    """A text that a part of a pattern matches, mostly."""
    text = ""
    for code, value in tree:
        if code is codes.LITERAL:
            text += chr(value)
        elif code is codes.NOT_LITERAL or code is codes.ANY:
            text += "a" if value != ord("a") else "b"
        elif code is codes.IN:
            text += _one_of(value)
        elif code in (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT):
            text += _sample(value[2]) * min(max(1, value[0]), 40) if value[1] else ""
        elif code is codes.BRANCH:
            text += _sample(value[1][0])
        elif code in (codes.SUBPATTERN, codes.ATOMIC_GROUP):
            text += _sample(value[3] if code is codes.SUBPATTERN else value)
    return text


def _one_of(choices) -> str:
    if choices[0][0] is codes.NEGATE:
        excluded = re.compile("[^" + "".join(map(_written, choices[1:])) + "]")
        return next((one for one in "a1 -.\n" if excluded.match(one)), "~")
    code, value = choices[0]
    return SAMPLES.get(value, "a") if code is codes.CATEGORY else chr(value if code is codes.LITERAL else value[0])


def _written(choice) -> str:
    code, value = choice
    if code is codes.CATEGORY:
        words = {"DIGIT": "d", "WORD": "w", "SPACE": "s"}
        name = str(value).removeprefix("CATEGORY_")
        return "\\" + (words[name[4:]].upper() if name.startswith("NOT_") else words[name])
    if code is codes.RANGE:
        return f"{re.escape(chr(value[0]))}-{re.escape(chr(value[1]))}"
    return re.escape(chr(value))


class TooSlowError(Exception):
    """The time is up."""


def _stop(*_):
    raise TooSlowError


def seconds(found: Found, text: str, most: float) -> float:
    """Seconds of the processor that a pattern takes on a text; `most` where it takes more."""
    compiled = re.compile(found.pattern, found.flags)
    before = signal.signal(signal.SIGVTALRM, _stop)
    began = time.thread_time()
    signal.setitimer(signal.ITIMER_VIRTUAL, most)
    try:
        if found.call in WHOLE:
            compiled.match(text), compiled.fullmatch(text)
        else:
            for _ in compiled.finditer(text):
                pass
    except TooSlowError:
        return most
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    return time.thread_time() - began


def slow_on(found: Found, length: int, most: float) -> str:
    """A text of about this length on which a pattern takes more than `most` seconds, in a short form; or empty."""
    for start, piece in attacks(found.pattern, found.flags):
        for end in ENDS:
            for size in (60, length):  # what grows exponentially is slow on a short text, too
                text = start + piece * (size // len(piece)) + end
                if seconds(found, text, most) >= most and seconds(found, text, most) >= most:
                    return f"{start!r} + {piece!r} * {size // len(piece)} + {end!r}"
    return ""
