"""A light tokenizer: the `tokenizers` library and the folder's JSON files, without transformers."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rung.errors import ModelError
from rung.models import chat

if TYPE_CHECKING:
    import tokenizers


@dataclass(frozen=True, slots=True)
class _Names:
    """Special tokens as the folder's JSON files name them."""

    bos: str | None
    eos: str | None
    pad: str | None
    unk: str | None


class Tokenizer:
    """Text to token ids and back, and chats to the exact tokens that the model reads.

    Attributes:
        eos_ids: every token that ends a text, from generation_config, tokenizer_config and config.
        end_token: the token that ends an answer: the tokenizer's eos, else the smallest of `eos_ids`.
        bos_id: the token that begins a text, if there is one.
        pad_id: the padding token; where the model names none, the end token.
        adds_bos: whether plain text is meant to begin with `bos_id`.
        chat_template: the model's Jinja chat template, if it has one.
        vocabulary_size: number of tokens, added ones included.
    """

    def __init__(self, backend: tokenizers.Tokenizer, plain: tokenizers.Tokenizer, folder: Path) -> None:
        config = _read(folder / "tokenizer_config.json")
        self._backend = backend
        self._plain = plain
        self._names = _names(config, _read(folder / "special_tokens_map.json"))
        added = backend.get_added_tokens_decoder()
        self._special = tuple(token.content for token in added.values() if token.special)
        # Plain text may become the unknown token, where a vocabulary has gaps, but never another special one.
        self._control = {i for i, token in added.items() if token.special} - {self._id(self._names.unk)}
        self.vocabulary_size = backend.get_vocab_size(with_added_tokens=True)
        self.bos_id = self._id(self._names.bos)
        self.eos_ids = _eos_ids(folder) | ({i} if (i := self._id(self._names.eos)) is not None else frozenset())
        eos = self._id(self._names.eos)
        self.end_token = eos if eos is not None else min(self.eos_ids, default=None)
        pad = self._id(self._names.pad)
        self.pad_id = pad if pad is not None else self.end_token
        self.adds_bos = self._adds_bos(config)
        self.chat_template = _chat_template(folder, config)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read the tokenizer of a model folder.

        Raises:
            ModelError: there is no tokenizer.json, or a file is damaged.
        """
        import tokenizers

        file = folder / "tokenizer.json"
        if not file.exists():
            raise ModelError(
                "no-fast-tokenizer",
                f"{folder} has no tokenizer.json",
                hint="make one: `AutoTokenizer.from_pretrained(folder, use_fast=True).save_pretrained(folder)`",
            )
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as broken:  # the library raises bare Exception
            raise ModelError("model-damaged", f"{file}: {broken}", hint="fetch the model again") from broken
        # A folder may ask for padding and truncation of its own (all-MiniLM does); nothing is cut here.
        backend.no_padding()
        backend.no_truncation()
        plain = copy.deepcopy(backend)
        plain.encode_special_tokens = True
        return cls(backend, plain, folder)

    # ---- text

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the token ids of rendered text: special tokens in it count as such, none are added."""
        return tuple(self._backend.encode(text, add_special_tokens=False).ids)

    def encode_plain(self, text: str) -> tuple[int, ...]:
        """Return the token ids of text that nobody trusts: no part of it becomes a special token."""
        ids = self._plain.encode(text, add_special_tokens=False).ids
        if not self._control.isdisjoint(ids):
            return self._encode_cut(text)
        return tuple(ids)

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Return the text of token ids."""
        return str(self._backend.decode(list(ids), skip_special_tokens=skip_special))

    # ---- chats

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """Return the text of a chat, see `rung.models.chat.render`."""
        template = self.chat_template
        bos = self._names.bos or "" if template is not None or self.adds_bos else ""
        return chat.render(
            messages,
            template,
            bos=bos,
            eos=self._names.eos or "",
            add_generation_prompt=add_generation_prompt,
            tools=tools,
        )

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> tuple[int, ...]:
        """Return the tokens of a chat: `encode(render(messages))`, except that messages cannot forge special tokens.

        Text such as `<|im_end|>` inside a message is read as plain text.

        Raises:
            ModelError: the template fails, or depends on special tokens inside the messages.
        """
        text = self.render(messages, add_generation_prompt, tools)
        shielded, shields = chat.shield(messages, self.chat_template, self._special)
        if not shields:
            return self.encode(text)
        return self._encode_shielded(self.render(shielded, add_generation_prompt, tools), shields, text)

    def _encode_shielded(self, rendered: str, shields: Mapping[str, str], text: str) -> tuple[int, ...]:
        restored = "".join(shields.get(character, character) for character in rendered)
        if restored != text:
            raise ModelError(
                "control-token",
                f"a message holds {' '.join(shields.values())}, and the chat template acts on it",
                hint="remove these control tokens from the data",
            )
        ids: list[int] = []
        start = 0
        for at, character in enumerate(rendered):
            if character in shields:
                ids += self.encode(rendered[start:at])
                ids += self.encode_plain(shields[character])
                start = at + 1
        return (*ids, *self.encode(rendered[start:]))

    # ---- reading the folder

    def _encode_cut(self, text: str) -> tuple[int, ...]:
        """Cut special tokens' text in two, for vocabularies that hold it as an ordinary piece."""
        for token in sorted(self._special, key=len, reverse=True):
            at = text.find(token)
            if at >= 0 and len(token) > 1:
                cut = at + len(token) // 2
                return (*self.encode_plain(text[:cut]), *self.encode_plain(text[cut:]))
        raise ModelError(
            "control-token",
            f"the tokenizer turns the text {text[:80]!r} into control tokens",
            hint="remove these characters from the data",
        )

    def _id(self, token: str | None) -> int | None:
        return None if token is None else self._backend.token_to_id(token)

    def _adds_bos(self, config: Mapping[str, Any]) -> bool:
        if self.bos_id is None:
            return False
        if isinstance(said := config.get("add_bos_token"), bool):
            return said
        return self._backend.encode("a", add_special_tokens=True).ids[:1] == [self.bos_id]


def _read(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        values = json.loads(file.read_text("utf-8"))
    except ValueError as broken:
        raise ModelError("model-damaged", f"{file} is not JSON: {broken}", hint="fetch the model again") from broken
    return values if isinstance(values, dict) else {}


def _names(config: Mapping[str, Any], special: Mapping[str, Any]) -> _Names:
    def name(role: str) -> str | None:
        value = config.get(f"{role}_token") or special.get(f"{role}_token")
        return value.get("content") if isinstance(value, dict) else value

    return _Names(name("bos"), name("eos"), name("pad"), name("unk"))


def _eos_ids(folder: Path) -> frozenset[int]:
    ids: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        value = _read(folder / name).get("eos_token_id")
        ids.update(value if isinstance(value, list) else [] if value is None else [value])
    return frozenset(ids)


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """Read it where transformers does: chat_template.jinja, chat_template.json, then tokenizer_config.json."""
    if (file := folder / "chat_template.jinja").exists():
        return file.read_text("utf-8")
    value = _read(folder / "chat_template.json").get("chat_template") or config.get("chat_template")
    if isinstance(value, list):  # several named ones: the one for plain chats
        value = next((entry["template"] for entry in value if entry.get("name") == "default"), None)
    return value
