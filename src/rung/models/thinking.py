"""How a model's chat template begins an answer: after thoughts, or without any. Found by rendering it in many ways.

Templates differ in what opens and closes a thought (`<think>`, channels, addressees), in what switches thoughts on (the
variable `enable_thinking`, a budget, `/no_think` in a turn), and in whether their generation prompt ends before, inside
or after one.
The template itself is the reference: what it writes before the text of an assistant's turn is where an answer begins.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

from rung.errors import ModelError
from rung.models import bounded
from rung.models.chat import OPENING, PLAIN, Beginning, closing, left_open

if TYPE_CHECKING:
    from rung.models.tokenizer import Tokenizer

Thinking = Literal["off", "on", "low", "medium", "high"]
THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")  # in which templates look for a turn's thoughts
THOUGHT_TOKENS: Mapping[str, int] = {"on": 2048, "low": 512, "medium": 2048, "high": 8192}  # the most of one answer

_QUESTION, _THOUGHT, _ANSWER, _CALL = "probe-question", "probe-thought", "probe-answer", "probe-call"
_SWITCH = re.compile(r"think|thought|reason|effort", re.IGNORECASE)  # variables that are tried
_BUDGET = re.compile(r"budget|token|limit", re.IGNORECASE)  # those that are numbers
_FORBIDS = re.compile(r"(?:\A|_)(?:no|not|disable|skip|without|hide)(?:_?think|_?reason|_)", re.IGNORECASE)
_LEVELS: Mapping[str, tuple[str, ...]] = {
    "low": ("low", "minimal"), "medium": ("medium",), "high": ("high", "xhigh", "max"),
}  # fmt: skip
_MODES = {"off": ("none", "off", "disabled", "no_think"), "on": ("on", "enabled", "thinking")}  # of variables in words
_TEXTS = {"off": ("/no_think", "/nothink"), "on": ("/think",)}  # in a user's turn
_TAG = re.compile(r"<[^<>]+>")


@dataclass(frozen=True)
class Thought(Beginning):
    """How a turn begins with an open thought, and what comes between the thought and the answer."""

    end: str = ""

    @property
    def stop(self) -> str:
        """The first mark of the end: a model that has written it has finished its thought."""
        tag = _TAG.search(self.end)
        return tag.group() if tag else self.end.strip()


_OPENING, THOUGHT_END = "<think>", "</think>"
_WRITTEN = re.compile(rf"\A\s*+(?:{_OPENING})?+((?:(?!{THOUGHT_END}).)*+){THOUGHT_END}\s*", re.DOTALL)


def split_thought(text: str) -> tuple[str, str]:
    """A thought in tags at the beginning of a text, and the text after it: none where the thought does not end."""
    if (thought := _WRITTEN.match(text)) is not None:
        return thought[1].strip(), text[thought.end() :]
    begun = text.lstrip()
    return (begun.removeprefix(_OPENING).strip(), "") if begun.startswith(_OPENING) else ("", text)


class AfterThought:
    """Leaves out the thought at the beginning of a text that comes in pieces, as `split_thought` does of the whole."""

    def __init__(self) -> None:
        self._held: str | None = ""  # what may be of a thought; None after it

    def more(self, piece: str) -> str:
        """Add a piece and return what can be shown now."""
        if self._held is None:
            return piece
        self._held += piece
        begun = self._held.lstrip()
        if not begun:  # lines and spaces are shown as they come
            text, self._held = self._held, ""
            return text
        thinks = begun.startswith(_OPENING)
        text = split_thought(self._held)[1] if thinks else self._held
        if _OPENING.startswith(begun) or (thinks and not text):
            return ""
        self._held = None
        return text

    def end(self) -> str:
        """What is left at the end of the text: the beginning of a tag that never came."""
        held, self._held = self._held or "", None
        return split_thought(held)[1]


@lru_cache(maxsize=64)
def answer_beginning(tokenizer: Tokenizer, thinking: Thinking = "off", *, written: bool = False) -> Beginning:
    """How a turn begins whose answer has no thought before it; never inside an open one.

    The generation prompt is completed to what the template writes before an answer, such as an empty block of thoughts.
    Some templates write that block in their generation prompt only; with `written`, it is left out there too.

    Raises:
        ModelError: `chat-template-refused`: the template refuses a question, or does not show an assistant's text.
    """
    if tokenizer.chat_template is None:
        return PLAIN
    asked = _asked(tokenizer, thinking)
    prompt, answered = _prompt(tokenizer, asked), _written(tokenizer, asked)
    if prompt is None or _ANSWER not in answered:
        raise _unusable(tokenizer)
    drop, add = _answer_edit(tokenizer, prompt, answered[: answered.rindex(_ANSWER)], written=written)
    return replace(asked, drop=drop, add=add, closes=True)


@lru_cache(maxsize=64)
def thought_beginning(tokenizer: Tokenizer, thinking: Thinking) -> Thought:
    """How a turn begins with an open thought.

    Raises:
        ModelError: `no-thinking`: the template knows no thoughts.
    """
    asked = PLAIN if tokenizer.chat_template is None else _asked(tokenizer, thinking)
    prompt = None if tokenizer.chat_template is None else _prompt(tokenizer, asked)
    shown = None if prompt is None else _shown_thought(tokenizer, asked, prompt)
    if prompt is None or shown is None:
        hint = "leave `thinking` out, or choose a model that was trained to think"
        why = "knows no thoughts"
        if prompt is not None and prompt != _prompt(tokenizer, _asked(tokenizer, "off")):
            why = "can ask for thoughts, but does not show what opens and ends one"
        raise ModelError("no-thinking", f"the chat template of {tokenizer.folder.name} {why}", hint=hint)
    before, end = shown
    drop, add = _edit(tokenizer, prompt, before)
    return Thought(asked.variables, drop, add, asked.switch, end=end)


@lru_cache(maxsize=16)
def thought_key(tokenizer: Tokenizer) -> str:
    """The key in which the template looks for the thoughts of an assistant's last turn; empty where it shows none."""
    return next((key for key in THOUGHT_KEYS if _between(_written(tokenizer, PLAIN, **{key: _THOUGHT}))), "")


# ---- probes


def _render(tokenizer: Tokenizer, asked: Beginning, *turns: Mapping[str, Any]) -> str | None:
    """The text of turns after a question; None where the template refuses them."""
    try:
        return tokenizer.render([{"role": "user", "content": _QUESTION}, *turns], not turns, begin=asked)
    except ModelError as error:
        if error.code == "chat-template-refused":
            return None
        raise


def _prompt(tokenizer: Tokenizer, asked: Beginning) -> str | None:
    return _render(tokenizer, asked)


def _prompt_with(tokenizer: Tokenizer, name: str, value: Any) -> str | None:
    return _prompt(tokenizer, Beginning(((name, value),)))


def _written(tokenizer: Tokenizer, asked: Beginning, **turn: Any) -> str:
    """The text of a question and an answer; not edited, since the generation prompt is not in it."""
    return _render(tokenizer, asked, {"role": "assistant", "content": _ANSWER, **turn}) or ""


def _unusable(tokenizer: Tokenizer) -> ModelError:
    """Say why no answer can begin: what the template says of a question, or of a question and an answer."""
    turns = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    why = "the model's chat template does not show the text of an assistant's turn"
    hint = (
        "correct the model's chat template, or choose another model: a question and its answer are all it has to show"
    )
    try:
        tokenizer.render(turns[:1])
        tokenizer.render(turns, False)
    except ModelError as refused:
        if refused.code != "chat-template-refused":
            return refused
        why = refused.message
    parts = [{"role": turn["role"], "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
    with suppress(ModelError):
        if _ANSWER in tokenizer.render(parts, False):
            hint = "choose a model for text: this template, like others of models for images, expects lists of parts"
    return ModelError("chat-template-refused", why, hint=hint)


def _edit(tokenizer: Tokenizer, prompt: str, before: str) -> tuple[str, str]:
    """What to drop at the end of a prompt and to add, so that it is the text `before`."""
    pairs = zip(prompt, before, strict=False)
    shared = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(prompt), len(before)))
    drop, add = prompt[shared:], before[shared:]
    # Templates of SentencePiece models write a space before an answer, which their tokenizers add by themselves.
    spaced = not drop and add and not add.strip(" ") and tokenizer.adds_space
    return ("", "") if spaced else (drop, add)


def _answer_edit(tokenizer: Tokenizer, prompt: str, before: str, *, written: bool) -> tuple[str, str]:
    """The edit that lets an answer begin.

    An empty thought at the end of the generation prompt stays: without it, the model would begin with a thought.
    """
    drop, add = _edit(tokenizer, prompt, before)
    block = _empty_thought(prompt)
    start = prompt.removesuffix(block)
    opening = OPENING.match(block)
    if written or not drop or opening is None or not before.startswith(start):
        return drop, add
    rest = before.removeprefix(start)
    return (drop, add) if opening[0] in rest else ("", rest.removeprefix(closing(opening[0])))


def _empty_thought(prompt: str) -> str:
    """The block with which a prompt ends that opens a thought and closes it; empty where there is none."""
    turn = prompt.rpartition(_QUESTION)[2]
    blocks = (turn[opened.start() :] for opened in OPENING.finditer(turn) if _closes(turn, opened[0]))
    return next(blocks, "")


def _closes(text: str, opening: str) -> bool:
    return text.rstrip().endswith(closing(opening))


def _between(written: str) -> tuple[str, str] | None:
    """What a template writes before a thought, and between thought and answer."""
    before, thought, rest = written.partition(_THOUGHT)
    end, answer, _ = rest.partition(_ANSWER)
    return (before, end) if thought and answer else None


def _shown_thought(tokenizer: Tokenizer, asked: Beginning, prompt: str) -> tuple[str, str] | None:
    """What comes before a thought, and between thought and answer, if the template shows, opens or names one."""
    parts = [{"type": "thinking", "thinking": _THOUGHT}, {"type": "text", "text": _ANSWER}]
    blocks = [{"type": "thoughts", "text": _THOUGHT}, {"type": "response", "text": _ANSWER}]
    turns: list[dict[str, Any]] = [{key: _THOUGHT} for key in THOUGHT_KEYS]
    for turn in (*turns, {"content": parts}, {"content": {"blocks": blocks}}):
        shown = _between(_written(tokenizer, asked, **turn))
        if shown and "type" not in shown[1]:  # templates for text print a list of parts as it is
            return shown
    call = {"id": "call00000", "type": "function", "function": {"name": _CALL, "arguments": {}}}
    for key in THOUGHT_KEYS:  # some show thoughts before calls only
        turn = {"role": "assistant", "content": "", "tool_calls": [call]}
        with_thought = _render(tokenizer, asked, {**turn, key: _THOUGHT}) or ""
        called = (_render(tokenizer, asked, turn) or "").removeprefix(prompt)
        before, thought, rest = with_thought.partition(_THOUGHT)
        if thought and called and rest.endswith(called):
            return before, rest.removesuffix(called)
    if opened := left_open(prompt):
        return prompt, f"\n{closing(opened)}\n\n"
    return _named_thought(tokenizer, prompt)


def _named_thought(tokenizer: Tokenizer, prompt: str) -> tuple[str, str] | None:
    """What opens and ends a thought by the empty one before answers, or by the system turn, which asks for it."""
    off = answer_beginning(tokenizer)
    asked = replace(off, drop="", add="")
    block = _empty_thought(_prompt(tokenizer, asked) or "")
    block = block + off.add if block else _empty_thought(_prompt(tokenizer, off) or "")
    if opening := OPENING.match(block):
        end = closing(opening[0])
        space, _, after = block[opening.end() :].partition(end)
        line = "\n" if "\n" in space else ""
        return prompt + opening[0] + line, ("\n" if space.count("\n") > 1 else "") + end + after
    for opened in OPENING.finditer(prompt):
        if closing(opened[0]) in prompt[opened.end() :]:
            return f"{prompt}{opened[0]}\n", f"\n{closing(opened[0])}\n\n"
    return None


@dataclass(frozen=True)
class _Controls:
    """What changes how much a model thinks, by level."""

    variables: Mapping[str, Mapping[str, Any]]
    texts: Mapping[str, str]  # in the last user's turn


@lru_cache(maxsize=16)
def _controls(tokenizer: Tokenizer) -> _Controls:
    """Try every variable whose name may mean thoughts, and keep those that change the generation prompt."""
    found: dict[str, dict[str, Any]] = {level: {} for level in ("off", *THOUGHT_TOKENS)}
    for name in filter(_SWITCH.search, bounded.names_read(tokenizer.chat_template or "")):
        values = _budget(tokenizer, name) or _switch(tokenizer, name) or _words(tokenizer, name)
        for level, value in values.items():
            found[level][name] = value
    texts = {} if found["off"] else {kind: _text_switch(tokenizer, words) for kind, words in _TEXTS.items()}
    return _Controls(found, texts)


def _budget(tokenizer: Tokenizer, name: str) -> dict[str, Any]:
    """The values of a variable for the most tokens of a thought."""
    if not _BUDGET.search(name):
        return {}
    prompts = {_prompt_with(tokenizer, name, number) for number in (0, *THOUGHT_TOKENS.values())}
    return {"off": 0, **THOUGHT_TOKENS} if None not in prompts and len(prompts) > 2 else {}


def _switch(tokenizer: Tokenizer, name: str) -> dict[str, Any]:
    """The values of a variable that is true or false."""
    without, with_ = _prompt_with(tokenizer, name, False), _prompt_with(tokenizer, name, True)
    if without is None or with_ is None or without.replace("False", "") == with_.replace("True", ""):
        return {}
    if (level := next((level for level in _LEVELS if level in name.lower()), None)) is not None:
        return {level: True}
    off = _FORBIDS.search(name) is not None
    prompts = {False: without, True: with_}
    if left_open(prompts[off]) and not left_open(prompts[not off]):  # a name that says the opposite of what it does
        off = not off
    return {"off": off, **dict.fromkeys(THOUGHT_TOKENS, not off)}


def _words(tokenizer: Tokenizer, name: str) -> dict[str, Any]:
    """The values of a variable in words: levels, and modes that the template tells from any other word."""
    prompts = {
        word: _prompt_with(tokenizer, name, word) for word in (*chain(*_LEVELS.values()), *chain(*_MODES.values()))
    }
    any_word = (_prompt_with(tokenizer, name, _CALL) or "").replace(_CALL, "")

    def known(word: str) -> bool:
        prompt = prompts[word]
        return prompt is not None and prompt.replace(word, "") != any_word.replace(word, "")

    off, on = (next(filter(known, _MODES[mode]), None) for mode in ("off", "on"))
    levels = {level: next((w for w in words if prompts[w] is not None), None) for level, words in _LEVELS.items()}
    values: dict[str, Any] = {level: word for level, word in levels.items() if word is not None}
    if len({prompts[word] for word in values.values()}) < 2:  # no level differs from another, but all may from `off`
        values = {level: word for level, word in values.items() if off and known(word)}
    if off is not None:
        on = on or values.get("medium") or values.get("high")
        values = {"off": off, **(dict.fromkeys(THOUGHT_TOKENS, on) if on else {}), **values}
    return values


def _text_switch(tokenizer: Tokenizer, words: Sequence[str]) -> str:
    """A word in the user's turn after which the template ends its prompt otherwise; empty where none does."""

    def turn(word: str) -> str:
        prompt = _prompt(tokenizer, Beginning(switch=word)) or ""
        return prompt.rpartition(_QUESTION)[2].removeprefix(word)

    return next((f" {word}" for word in words if turn(f" {word}").strip() != turn("").strip()), "")


def _asked(tokenizer: Tokenizer, thinking: Thinking) -> Beginning:
    """What the template is asked for, without an edit."""
    controls = _controls(tokenizer)
    text = controls.texts.get("off" if thinking == "off" else "on", "")
    return Beginning(tuple(controls.variables[thinking].items()), switch=text)
