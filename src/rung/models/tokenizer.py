"""A light tokenizer: tokenizer.json and its settings through the `tokenizers` library, without transformers.

Two ways to encode: `encode` reads the text of special tokens (`<|im_end|>`) as those tokens, for text from a chat
template; `encode_plain` reads it as ordinary text, for everything that comes from users.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rung.errors import ModelError
from rung.models import chat
from rung.models.chat import PLAIN, Beginning
from rung.models.hub import read_json, text_settings

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

ROOM = 8  # tokens that a piece of text leaves free, since a word that was cut may take more
ANCHOR = "\U0010fffd"  # a private-use character before a piece of text, so that it is not the beginning
# In the special tokens that mark calls of tools, such as Gemma's `<|"|>` around texts in them.
CALL_MARK = re.compile(r'tool|call|function|action|args|python|\|"\|', re.IGNORECASE)
MARKS = range(0xE000, 0xF8FF)  # private-use characters that may mark special-token text inside contents


class Tokenizer:
    """The tokenizer of one model folder. Immutable and safe to share between threads."""

    def __init__(self, folder: Path, backend: Backend, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self._backend = backend
        self._settings = settings
        self.bos_token = _token_text(settings.get("bos_token"))
        self.eos_token = _token_text(settings.get("eos_token"))
        self.bos_id = self._id(self.bos_token)
        self.eos_id = self._id(self.eos_token)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read tokenizer.json and the files beside it.

        Raises:
            ModelError: tokenizer.json is missing or damaged.
        """
        from tokenizers import Tokenizer as Backend

        file = folder / "tokenizer.json"
        if not file.exists():
            hint = "save it once with `AutoTokenizer.from_pretrained(folder).save_pretrained(folder)`"
            raise ModelError("model-damaged", f"{folder} has no tokenizer.json", hint=hint)
        try:
            backend = Backend.from_file(str(file))
        except Exception as broken:  # the library raises bare Exception
            raise ModelError("model-damaged", f"{file}: {broken}", hint="download the model again") from broken
        backend = without_unknown(backend, folder)
        backend.no_padding()
        backend.no_truncation()  # some encoders' files ask for it, which would cut text silently
        return cls(folder, backend, _settings(folder))

    # ---- encoding and decoding

    def encode(self, text: str) -> tuple[int, ...]:
        """The token ids of rendered text; special tokens in it are recognized, and none are added."""
        return tuple(self._backend.encode(text, add_special_tokens=False).ids)

    def encode_plain(self, text: str) -> tuple[int, ...]:
        """The token ids of ordinary text; the text of a special token remains text.

        Raises:
            ModelError: the vocabulary has no other reading of some special token's text.
        """
        return self._encode_blind(text) if self._holds_special(text) else self.encode(text)

    def exceeds(self, text: str, tokens: int) -> bool:
        """Whether a very long text has more tokens, judged by its beginning: to encode megabytes takes seconds."""
        part = 16 * tokens  # characters; ordinary text has three to five a token
        return len(text) > part and len(self.encode_plain(text[:part])) > tokens + 256  # a cut word takes a few more

    def encode_whole(self, text: str) -> tuple[int, ...]:
        """The token ids as the model's own tokenizer writes a text: with the special tokens that it adds."""
        return tuple(self._backend.encode(text).ids)

    def decode(self, ids: Iterable[int], *, skip_special: bool = True, call_marks: bool = False) -> str:
        """The text of token ids; `call_marks` keeps special tokens that mark calls of tools."""
        if call_marks and self._call_marks:
            ids, skip_special = [i for i in ids if i not in self._control or i in self._call_marks], False
        return str(self._backend.decode(list(ids), skip_special_tokens=skip_special))

    def beginning(self, text: str, tokens: int) -> str:
        """The beginning of ordinary text that its first `tokens` tokens cover, in whole characters."""
        backend = self._plain if self._holds_special(text) else self._backend
        offsets = backend.encode(text, add_special_tokens=False).offsets
        return text if tokens >= len(offsets) else text[: offsets[tokens][0]]

    def pieces(self, text: str, tokens: int) -> list[str]:
        """Cut ordinary text into the fewest pieces of about equal length, at most `tokens` tokens each.

        Pieces begin at words where there are any. Cut apart, words may take more tokens; room is left for that.
        """
        backend = self._plain if self._holds_special(text) else self._backend
        places = [start for start, _ in backend.encode(text, add_special_tokens=False).offsets]
        if len(places) <= tokens:
            return [text]
        most = max(1, tokens - ROOM)
        pieces, first = [], 0
        while len(places) - first > most:
            left = len(places) - first
            cut = first + math.ceil(left / math.ceil(left / most))
            words = (at for at in range(cut, max(first, cut - ROOM), -1) if text[places[at] - 1].isspace())
            cut = next(words, cut)
            pieces.append(text[places[first] : places[cut]])
            first = cut
        return [*pieces, text[places[first] :]]

    # ---- chat

    def render(
        self, messages: Iterable[Mapping[str, Any]], add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None, begin: Beginning = PLAIN,
    ) -> str:  # fmt: skip
        """The text of a chat, by the model's template (see `rung.models.chat.render`), begun as `begin` says."""
        text = chat.render(
            begin.asking(messages), self.chat_template, bos=self.bos_token, eos=self.eos_token,
            add_generation_prompt=add_generation_prompt, tools=tools, variables=begin.variables,
        )  # fmt: skip
        return begin.edited(text) if add_generation_prompt else text

    def encode_chat(
        self, messages: Iterable[Mapping[str, Any]], add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None, begin: Beginning = PLAIN,
    ) -> tuple[int, ...]:  # fmt: skip
        """The token ids of a chat; contents cannot inject special tokens.

        Equal to `encode(render(messages))` unless a content contains the text of a special token. That text is then
        encoded as plain text, together with its surroundings up to the template's next special tokens.

        A model without a template reads plain text, after its beginning token where its tokenizer adds one.
        """
        turns = list(messages)
        if self.chat_template is None:
            start = (self.bos_id,) if self.adds_bos and self.bos_id is not None else ()
            return (*start, *self.encode_plain(self.render(turns, add_generation_prompt, tools)))
        if not any(self._holds_special(text) for text in _strings(turns)):
            return self.encode(self.render(turns, add_generation_prompt, tools, begin))
        taken = set(self.chat_template).union(*_strings(turns))
        mark = next(chr(point) for point in MARKS if chr(point) not in taken)
        marked = [_mapped(turn, lambda text: self._marked(text, mark)) for turn in turns]
        return self._encode_marked(self.render(marked, add_generation_prompt, tools, begin), mark)

    def _marked(self, text: str, mark: str) -> str:
        """Put `mark` before special tokens' text, or before the first word where only the normalizer creates one."""
        if self._special.search(text):
            return self._special.sub(rf"{mark}\g<0>", text)
        return re.sub(r"\S", rf"{mark}\g<0>", text, count=1) if self._holds_special(text) else text

    def _encode_marked(self, text: str, mark: str) -> tuple[int, ...]:
        """Encode rendered text in which `mark` precedes every special-token text that is not the template's."""
        ids: list[int] = []
        trusted = ""  # text not yet encoded, without marks, ending in a special token
        end = 0
        stops = [m for m in self._special.finditer(text) if text[m.start() - 1 : m.start()] != mark]
        for stop in (*stops, None):
            run = text[end : stop.start() if stop else len(text)]
            if mark in run:
                ids += self.encode(trusted)
                ids += self._encode_run(run.replace(mark, ""), trusted, stop.group() if stop else "")
                trusted = ""
            else:
                trusted += run
            if stop:
                trusted, end = trusted + stop.group(), stop.end()
        return (*ids, *self.encode(trusted))

    def _encode_run(self, run: str, before: str, after: str) -> tuple[int, ...]:
        """Encode plain text between two special tokens, as the tokenizer does."""
        previous = next((token for token in self._added if before and before.endswith(token)), None)
        if previous and self._added[previous].rstrip:
            run = run.lstrip()
        if after and self._added[after].lstrip:
            run = run.rstrip()
        return self._encode_blind(run, inside=previous is not None)

    def _encode_blind(self, text: str, *, inside: bool = False) -> tuple[int, ...]:
        """Encode text without matching special tokens.

        Some tokenizers treat the beginning of a text differently; for text from the `inside` of a longer one the anchor
        replaces the text before. Vocabularies that contain a special token as an ordinary piece too (SentencePiece
        unigram) would still choose it, so its text is cut in two.
        """
        encoding = self._plain.encode((ANCHOR if inside else "") + text, add_special_tokens=False)
        ids: list[int] = encoding.ids[inside:]
        control = next((k for k, token in enumerate(ids) if token in self._control), None)
        if control is None:
            return tuple(ids)
        start, end = (offset - inside for offset in encoding.offsets[inside:][control])
        if end - start < 2:
            problem = f"the tokenizer of {self.folder} turns the text {text[start:end]!r} into a control token"
            raise ModelError("control-token", problem, hint="remove these characters from the data")
        cut = (start + end) // 2
        return (*self._encode_blind(text[:cut], inside=inside), *self._encode_blind(text[cut:], inside=True))

    @property
    def definition(self) -> str:
        """The whole tokenizer as the JSON text of a tokenizer.json."""
        return str(self._backend.to_str())

    # ---- special tokens

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens, added ones included."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    @cached_property
    def chat_template(self) -> str | None:
        """The model's chat template in Jinja, or None for a model that completes plain text."""
        return chat_template_of(self.folder)

    @property
    def unk_id(self) -> int | None:
        """Id of the token for text outside the vocabulary."""
        return self._id(_token_text(self._settings.get("unk_token")))

    @property
    def pad_id(self) -> int | None:
        """Id of the padding token, else an end token, since attention masks hide padding."""
        own = self._id(_token_text(self._settings.get("pad_token")))
        return own if own is not None else min(self.eos_ids, default=None)

    @cached_property
    def adds_bos(self) -> bool:
        """Whether plain text for this model starts with the beginning token."""
        if self.bos_id is None:
            return False
        explicit = self._settings.get("add_bos_token")
        if isinstance(explicit, bool):
            return explicit
        return bool(self._backend.encode("a", add_special_tokens=True).ids[0] == self.bos_id)

    @cached_property
    def adds_space(self) -> bool:
        """Whether a text's first word is read as if a space stood before it."""
        first = self._backend.encode("a", add_special_tokens=False).tokens[:1]
        return bool(first) and first[0].startswith("\u2581")

    def ends(self, stop: Iterable[str] = ()) -> frozenset[int]:
        """The tokens at which a completion ends: the model's own, and stop texts that are special tokens."""
        return self.eos_ids | {token for text in stop if text in self._added and (token := self._id(text)) is not None}

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Every token at which generation ends, from generation_config.json, config.json and the tokenizer."""
        ids = {self.eos_id}
        for name in ("generation_config.json", "config.json"):
            if (self.folder / name).exists():
                value = read_json(self.folder / name).get("eos_token_id")
                ids.update(value if isinstance(value, list) else [value])
        return frozenset(i for i in ids if i is not None)

    def token_id(self, token: str) -> int | None:
        """The id of the token with exactly this text, if the vocabulary has it."""
        return self._backend.token_to_id(token)

    def token(self, number: int) -> str | None:
        """The text of a token as the vocabulary spells it."""
        return self._backend.id_to_token(number)

    def _id(self, token: str | None) -> int | None:
        return None if token is None else self.token_id(token)

    def writes(self, token: int, text: str) -> bool:
        """Whether a token of this text gets to the model: in texts, by the chat template, or among special tokens."""
        special = (
            _token_text(self._settings.get(f"{name}_token")) for name in ("bos", "eos", "unk", "pad", "sep", "cls")
        )
        by_itself = token in self.eos_ids or token in self.encode_whole("")
        return self.token(token) == text or by_itself or text in special or text in (self.chat_template or "")

    @cached_property
    def _added(self) -> dict[str, Any]:
        """Special tokens by text, longest first."""
        special = [token for token in self._backend.get_added_tokens_decoder().values() if token.special]
        return {token.content: token for token in sorted(special, key=lambda token: -len(token.content))}

    @cached_property
    def _control(self) -> set[int]:
        """Ids that plain text must not give; the unknown token may represent any character."""
        unknown = _token_text(self._settings.get("unk_token"))
        return {i for token in self._added if token != unknown and (i := self._id(token)) is not None}

    @cached_property
    def _call_marks(self) -> set[int]:
        """The ids of special tokens that mark calls."""
        return {i for token in self._added if CALL_MARK.search(token) and (i := self._id(token)) is not None}

    @cached_property
    def _special(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self._added)) or r"(?!)")

    @cached_property
    def _plain(self) -> Backend:
        """The same tokenizer, without matching of special tokens."""
        from tokenizers import AddedToken
        from tokenizers import Tokenizer as Backend

        plain = Backend.from_str(self._backend.to_str())
        plain.add_tokens([AddedToken(ANCHOR, normalized=False)])
        plain.encode_special_tokens = True
        return plain

    def _holds_special(self, text: str) -> bool:
        """Whether the text, as it is or normalized, contains a special token's text."""
        if self._special.search(text):
            return True
        normalizer = self._backend.normalizer
        return normalizer is not None and bool(self._special.search(normalizer.normalize_str(text)))


def without_unknown(backend: Backend, folder: Path) -> Backend:
    """The same tokenizer without added tokens that the model has no embeddings for: their text is ordinary text.

    The text part of a larger model keeps the tokenizer of the whole (Gemma 3: `<image_soft_token>`).
    """
    rows = text_settings(folder).get("vocab_size")
    if not isinstance(rows, int) or max(backend.get_added_tokens_decoder(), default=-1) < rows:
        return backend
    definition = json.loads(backend.to_str())
    definition["added_tokens"] = [token for token in definition["added_tokens"] if token["id"] < rows]
    return type(backend).from_str(json.dumps(definition))


def chat_template_of(folder: Path) -> str | None:
    """The chat template of a model folder: chat_template.jinja, or what the JSON files say."""
    if (folder / "chat_template.jinja").exists():
        return (folder / "chat_template.jinja").read_text("utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = read_json(folder / name).get("chat_template") if (folder / name).exists() else None
        if isinstance(template, list):  # several, by name
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        if isinstance(template, str):
            return template
    return None


def _settings(folder: Path) -> dict[str, Any]:
    """The settings beside tokenizer.json; those of tokenizer_config.json override the others."""
    values: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).exists():
            values |= {key: value for key, value in read_json(folder / name).items() if value is not None}
    return values


def _token_text(value: Any) -> str | None:
    """A token's text, which files write as text or as an object."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _strings(value: Any) -> list[str]:
    """Every text inside messages, without roles, which choose a branch of the template."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for key, inner in value.items() if key != "role" for text in _strings(inner)]
    return [text for inner in value for text in _strings(inner)] if isinstance(value, list | tuple) else []


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of a message with `change` applied to the texts that `_strings` finds."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: inner if key == "role" else _mapped(inner, change) for key, inner in value.items()}
    return [_mapped(inner, change) for inner in value] if isinstance(value, list | tuple) else value
