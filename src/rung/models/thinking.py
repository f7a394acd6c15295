"""How a model's chat template begins an answer: after thoughts, or without any. Found by rendering it in many ways.

Templates differ in what opens and closes a thought (`<think>`, channels, addressees), in the variable that switches
thoughts on (`enable_thinking`, `thinking`), and in whether their generation prompt ends before, inside or after one.
The template itself is the reference: what it writes before the text of an assistant's turn is where an answer begins.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from rung.errors import ModelError
from rung.models import bounded
from rung.models.chat import PLAIN, Beginning

if TYPE_CHECKING:
    from rung.models.tokenizer import Tokenizer

Thinking = Literal["off", "on", "low", "medium", "high"]
THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")  # in which templates look for a turn's thoughts
THOUGHT_TOKENS: Mapping[str, int] = {"on": 2048, "low": 512, "medium": 2048, "high": 8192}  # the most of one answer

_QUESTION, _THOUGHT, _ANSWER, _CALL = "probe-question", "probe-thought", "probe-answer", "probe-call"
_SWITCH = re.compile(r"think|reason|effort", re.IGNORECASE)  # variables that are tried
_LEVELS: Mapping[str, tuple[str, ...]] = {
    "low": ("low", "minimal"), "medium": ("medium",), "high": ("high", "xhigh", "max"),
}  # fmt: skip
_OPEN_TAG = re.compile(r"<(\w{0,40}(?:think|thought|reason)\w{0,40})>\s*+\Z")
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
def answer_beginning(tokenizer: Tokenizer, thinking: Thinking = "off") -> Beginning:
    """How a turn begins whose answer has no thought before it; never inside an open one.

    The generation prompt is completed to what the template writes before an answer, such as an empty block of thoughts.

    Raises:
        ModelError: `chat-template-refused`: the template does not show an assistant's text.
    """
    if tokenizer.chat_template is None:
        return PLAIN
    variables = _variables(tokenizer, thinking)
    edit = _edit_to_answer(tokenizer, variables)
    if edit is None:
        hint = "choose a model for text: the templates of models for images expect lists of parts"
        why = "the model's chat template does not show the text of an assistant's turn"
        raise ModelError("chat-template-refused", why, hint=hint)
    return Beginning(tuple(variables.items()), *edit)


@lru_cache(maxsize=64)
def thought_beginning(tokenizer: Tokenizer, thinking: Thinking) -> Thought:
    """How a turn begins with an open thought.

    Raises:
        ModelError: `no-thinking`: the template knows no thoughts.
    """
    variables = _variables(tokenizer, thinking) if tokenizer.chat_template is not None else {}
    prompt = _prompt(tokenizer, variables) if tokenizer.chat_template is not None else None
    shown = None if prompt is None else _shown_thought(tokenizer, variables, prompt)
    if prompt is None or shown is None:
        hint = "leave `thinking` out, or choose a model that was trained to think"
        raise ModelError("no-thinking", f"the chat template of {tokenizer.folder.name} knows no thoughts", hint=hint)
    before, end = shown
    return Thought(tuple(variables.items()), *_edit(prompt, before), end=end)


@lru_cache(maxsize=16)
def thought_key(tokenizer: Tokenizer) -> str:
    """The key in which the template looks for the thoughts of an assistant's last turn; empty where it shows none."""
    return next((key for key in THOUGHT_KEYS if _between(_written(tokenizer, {}, **{key: _THOUGHT}))), "")


# ---- probes


def _render(tokenizer: Tokenizer, variables: Mapping[str, Any], *turns: Mapping[str, Any]) -> str | None:
    """The text of turns after a question; None where the template refuses them."""
    try:
        return tokenizer.render(
            [{"role": "user", "content": _QUESTION}, *turns], not turns, begin=Beginning(tuple(variables.items()))
        )
    except ModelError as error:
        if error.code == "chat-template-refused":
            return None
        raise


def _prompt(tokenizer: Tokenizer, variables: Mapping[str, Any]) -> str | None:
    return _render(tokenizer, variables)


def _written(tokenizer: Tokenizer, variables: Mapping[str, Any], **turn: Any) -> str:
    return _render(tokenizer, variables, {"role": "assistant", "content": _ANSWER, **turn}) or ""


def _edit(prompt: str, before: str) -> tuple[str, str]:
    """What to drop at the end of a prompt and to add, so that it is the text `before`."""
    pairs = zip(prompt, before, strict=False)
    shared = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(prompt), len(before)))
    drop, add = prompt[shared:], before[shared:]
    # Templates of SentencePiece models write a space before an answer, which their tokenizers add by themselves.
    return ("", "") if not drop and add and not add.strip(" ") else (drop, add)


def _edit_to_answer(tokenizer: Tokenizer, variables: Mapping[str, Any]) -> tuple[str, str] | None:
    """The edit that lets an answer begin; None where the template refuses the turns, or shows no answer."""
    prompt, written = _prompt(tokenizer, variables), _written(tokenizer, variables)
    return None if prompt is None or _ANSWER not in written else _edit(prompt, written[: written.rindex(_ANSWER)])


def _between(written: str) -> tuple[str, str] | None:
    """What a template writes before a thought, and between thought and answer."""
    before, thought, rest = written.partition(_THOUGHT)
    end, answer, _ = rest.partition(_ANSWER)
    return (before, end) if thought and answer else None


def _shown_thought(tokenizer: Tokenizer, variables: Mapping[str, Any], prompt: str) -> tuple[str, str] | None:
    """What comes before a thought, and between thought and answer, if the template shows or opens one at all."""
    for key in THOUGHT_KEYS:
        if shown := _between(_written(tokenizer, variables, **{key: _THOUGHT})):
            return shown
    call = {"id": "call00000", "type": "function", "function": {"name": _CALL, "arguments": {}}}
    for key in THOUGHT_KEYS:  # some show thoughts before calls only
        turn = {"role": "assistant", "content": "", "tool_calls": [call]}
        with_thought = _render(tokenizer, variables, {**turn, key: _THOUGHT}) or ""
        called = (_render(tokenizer, variables, turn) or "").removeprefix(prompt)
        before, thought, rest = with_thought.partition(_THOUGHT)
        if thought and called and rest.endswith(called):
            return before, rest.removesuffix(called)
    tag = _OPEN_TAG.search(prompt)
    return (prompt, f"\n</{tag[1]}>\n\n") if tag else None


@dataclass(frozen=True)
class _Controls:
    """The variables of a template that change how much is thought."""

    off: dict[str, bool]  # the value of each switch without thoughts
    levels: dict[str, dict[str, Any]]  # what each level adds


@lru_cache(maxsize=16)
def _controls(tokenizer: Tokenizer) -> _Controls:
    """Try every variable whose name may mean thoughts, and keep those that change the generation prompt."""
    off: dict[str, bool] = {}
    levels: dict[str, dict[str, Any]] = {level: {} for level in _LEVELS}
    for name in filter(_SWITCH.search, bounded.names_read(tokenizer.chat_template or "")):
        without, with_ = _prompt(tokenizer, {name: False}), _prompt(tokenizer, {name: True})
        level = next((level for level in _LEVELS if level in name.lower()), None)
        if None not in (without, with_) and without != with_:
            if level is not None:
                levels[level][name] = True
            else:
                edits = {value: _edit_to_answer(tokenizer, {name: value}) for value in (False, True)}
                # Thoughts are off with the value after which an answer can begin at once.
                off[name] = len("".join(edits[False] or ())) > len("".join(edits[True] or ()))
            continue
        texts = {text: _prompt(tokenizer, {name: text}) for names in _LEVELS.values() for text in names}
        if len({text for text in texts.values() if text is not None}) > 1:
            for level, names in _LEVELS.items():
                if known := next((text for text in names if texts[text] is not None), None):
                    levels[level][name] = known
    return _Controls(off, levels)


def _variables(tokenizer: Tokenizer, thinking: Thinking) -> dict[str, Any]:
    controls = _controls(tokenizer)
    if thinking == "off":
        return dict(controls.off)
    return {name: not value for name, value in controls.off.items()} | controls.levels.get(thinking, {})
