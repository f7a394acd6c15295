"""Chat templates with which other servers render what Rung renders.

vLLM and KServe run the model's own, in Jinja; two gaps are filled. Ollama runs Go's template language: without a
TEMPLATE it compares the model's with a dozen that it knows, and a model with none of them reads the bare text of the
last message. So the text around each message is read off rendered conversations, and kept only if conversations of
every form come out equal.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

from rung.engines.base import Message, Messages
from rung.errors import ArtifactError
from rung.models.system_turn import accepts_system, fold_system
from rung.models.tokenizer import Tokenizer

# A system message goes before the first user's text (see `rung.models.system_turn`).
FOLDED = (
    "{%- if messages | length > 1 and messages[0]['role'] == 'system' and messages[1]['role'] == 'user' -%}"
    "{%- set messages = [{'role': 'user', 'content': messages[0]['content'] + '\\n\\n' + messages[1]['content']}]"
    " + messages[2:] -%}{%- endif -%}"
)
# The text of a chat with a model that has no template (see `rung.models.chat`); %s stands for the beginning token.
PLAIN = (
    "%s{%%- set ns = namespace(text='') -%%}"
    "{%%- set answer = [{'role': 'assistant', 'content': ''}] if add_generation_prompt else [] -%%}"
    "{%%- for turn in messages + answer -%%}"
    "{%%- set cued = turn['role'] == 'assistant' and ns.text[-1:].isspace() -%%}"
    "{%%- set ns.text = ns.text + ('\\n\\n' if ns.text and not cued else '') + turn['content'] -%%}"
    "{%%- endfor -%%}{{ ns.text }}"
)
CHATS = (("user",), ("system", "user"), ("user", "assistant", "user"), ("system", "user", "assistant", "user"),
         ("user", "assistant", "user", "assistant", "user"))  # fmt: skip
WORDS = ("Mind this.", "Is it {{ .Content }} or\n\n{% x %}?", 'No: "it" \\ is 2 < 3 & é.', "And {}?", "a")
LOOSE = " x \n"  # white space around a message, which many templates strip


def server_template(tokenizer: Tokenizer) -> str | None:
    """Return a chat template with which a server renders what Rung does; None where the model's own does so.

    Servers refuse chats with a model that has no template, and system messages where the template knows none.
    """
    if tokenizer.chat_template is None:
        bos = tokenizer.bos_token if tokenizer.adds_bos else None
        return PLAIN % (f"{{{{ {json.dumps(bos, ensure_ascii=False)} }}}}" if bos else "")
    return None if accepts_system(tokenizer) else FOLDED + tokenizer.chat_template


@dataclass(frozen=True, slots=True)
class OllamaTemplate:
    """What stands around the messages of a conversation: a system message or none, then user and assistant by turns.

    Attributes:
        before_system: begins a conversation that has a system message.
        after_system: between that and the first user message.
        before_user: begins a conversation without one.
        before_answer: between a user message and its answer.
        after_answer: between an answer and the next user message.
        end: behind the last user message.
        strips: whether the model's own template strips white space around messages, which Ollama's cannot.
    """

    before_system: str
    after_system: str
    before_user: str
    before_answer: str
    after_answer: str
    end: str
    strips: bool = False

    def render(self, messages: Sequence[Message]) -> str:
        """Return the text of a conversation as Ollama renders `go()`."""
        text = ""
        for number, message in enumerate(messages):
            if message["role"] == "system":
                text += self.before_system + message["content"] + self.after_system
            elif message["role"] == "user":
                text += (self.before_user if number == 0 else "") + message["content"]
            else:
                text += self.before_answer + message["content"] + self.after_answer
        return text + self.end

    def go(self) -> str:
        """Return the template in Go's language, all of its text in strings: nothing is trimmed or read as code."""
        system = f"{_quoted(self.before_system)}{{{{ .Content }}}}{_quoted(self.after_system)}"
        user = f"{{{{ if eq $i 0 }}}}{_quoted(self.before_user)}{{{{ end }}}}{{{{ .Content }}}}"
        answer = f"{_quoted(self.before_answer)}{{{{ .Content }}}}{_quoted(self.after_answer)}"
        turns = f'{{{{ if eq .Role "system" }}}}{system}{{{{ else if eq .Role "user" }}}}{user}'
        loop = f"{{{{ range $i, $_ := .Messages }}}}{turns}{{{{ else }}}}{answer}{{{{ end }}}}{{{{ end }}}}"
        return loop + _quoted(self.end)


def ollama_template(tokenizer: Tokenizer) -> OllamaTemplate:
    """Return what stands around messages in a model's chats; without the beginning token where llama.cpp puts one.

    Raises:
        ArtifactError: `not-for-servers`: the chat template does more than to put text around messages.
        ModelError: it is broken, or takes no conversation of user and assistant by turns.
    """
    talk = _around(tokenizer, ("user", "assistant", "user"))
    told = _around(tokenizer, ("system", "user"))
    found = OllamaTemplate(told[0], told[1], talk[0], talk[1], talk[2], talk[3])
    chats = [_chat(roles, WORDS) for roles in CHATS]
    if any(_rendered(tokenizer, chat) != found.render(chat) for chat in chats):
        raise _refused("does more than to put text around messages")
    loose = _chat(("user",), (LOOSE,))
    return replace(found, strips=_rendered(tokenizer, loose) != found.render(loose))


def _around(tokenizer: Tokenizer, roles: Sequence[str]) -> list[str]:
    """Return the text before, between and behind the messages of a conversation."""
    marks = [f"RUNG{number}MARK" for number in range(len(roles))]
    text, pieces = _rendered(tokenizer, _chat(roles, marks)), []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found:
            raise _refused("leaves messages out, or moves them")
        pieces.append(before)
    return [*pieces, text]


def _rendered(tokenizer: Tokenizer, messages: Messages) -> str:
    """Return the text that llama.cpp has to be given, for the tokens that `encode_messages` gives."""
    text = tokenizer.render(messages if accepts_system(tokenizer) else fold_system(messages))
    if tokenizer.chat_template is None or not tokenizer.adds_bos:
        return text
    if tokenizer.bos_token is None or not text.startswith(tokenizer.bos_token):
        raise _refused("does not begin with the token that llama.cpp puts before every text")
    return text.removeprefix(tokenizer.bos_token)


def _chat(roles: Sequence[str], words: Sequence[str]) -> Messages:
    turns = [{"role": role, "content": word} for role, word in zip(roles, words, strict=False)]
    return cast("Messages", tuple(turns))


def _quoted(text: str) -> str:
    """Return text as a string of Go in an action, or nothing for nothing."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""


def _refused(why: str) -> ArtifactError:
    return ArtifactError(
        "not-for-servers",
        f"the model's chat template {why}, and Ollama's template language cannot say that",
        hint="serve it with `rung serve`, or with a server that runs the model's own template: `--to vllm`",
    )
