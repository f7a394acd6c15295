"""The tokenizer of a model folder as GGUF metadata: tokens, their types, merges or scores, special tokens, template.

llama.cpp knows pre-tokenizers by name and not by their rules, so a tokenizer is only written when one of the names in
`rung.models.gguf_tokenizer` splits text as it does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rung.errors import EngineError
from rung.models.gguf_tokenizer import CONTROL, USER_DEFINED, pre_tokenizer
from rung.models.tokenizer import Tokenizer
from rung.models.turns import end_token

NORMAL, UNKNOWN, UNUSED, BYTE = 1, 2, 5, 6  # tokenizer.ggml.token_type; its others are shared with the reader
FAMILIES = ("gpt-2", "smollm", "llama-bpe", "qwen2")  # as llama.cpp spells them
SPACE = "▁"  # what SentencePiece writes for a space
BYTES = [f"<0x{value:02X}>" for value in range(256)]
PROBE = (  # what pre-tokenizers disagree about: digits, contractions, spaces, line ends, scripts, signs
    "Hello World's 3 33 333 3333 33333 don't DON'T we'll  two   three\n\n \n\t\ttabs\r\n"
    "x=1+2;//* naïve façade Ünï 12.5% $1,000 ___ 中文字符 日本語 кириллица العربية हिन्दी ไทย 🚀🦙 ½ ² é e\u0301 "
    "'s'S 'Tis ....... !!!\n a\n b   c \u00a0d \u2003e 1st2nd (brackets)[x]{y} \n"
)


def add_vocabulary(writer: Any, folder: Path, size: int) -> None:
    """Write the tokenizer in `folder`.

    Args:
        writer: a gguf.GGUFWriter.
        folder: with tokenizer.json and the files beside it.
        size: rows of the embedding; ids without a token get an unused one.

    Raises:
        EngineError: `gguf-export-unsupported`: llama.cpp has no tokenizer that does the same.
    """
    tokenizer = Tokenizer.load(folder)
    definition = json.loads(tokenizer.definition)
    model = definition["model"]
    if model["type"] != "BPE":
        raise _unsupported(f"a tokenizer of type {model['type']}")
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ", 1)) for m in model["merges"]]
    tokens, types = _tokens(definition, size)
    if model.get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(tokens)
        writer.add_token_scores(_scores(tokens, merges))
        writer.add_add_space_prefix(_prepends_space(definition))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_family(definition))
        writer.add_token_list(tokens)
        writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_token_types(types)
    _add_special(writer, tokenizer)


def _tokens(definition: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    known = {i: token for token, i in definition["model"]["vocab"].items()}
    kinds = dict.fromkeys(known, NORMAL)
    if definition["model"].get("byte_fallback"):
        kinds |= {i: BYTE for i, token in known.items() if token in BYTES}
    for added in definition["added_tokens"]:
        known[added["id"]] = added["content"]
        kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    unknown = definition["model"].get("unk_token")
    kinds |= {i: UNKNOWN for i, token in known.items() if unknown is not None and token == unknown}
    if max(known) >= size:
        raise _unsupported(f"a tokenizer with ids up to {max(known)} for a model of {size} embeddings")
    return [known.get(i, f"[PAD{i}]") for i in range(size)], [kinds.get(i, UNUSED) for i in range(size)]


# ---- byte-level BPE


def _family(definition: dict[str, Any]) -> str:
    """Return the name of the pre-tokenizer that splits the probe as this one does."""
    from tokenizers import Tokenizer as Backend

    normalizer = definition["normalizer"]
    if normalizer is not None and normalizer["type"] != "NFC":  # llama.cpp leaves text as it is, NFC nearly always is
        raise _unsupported(f"a byte-level tokenizer that normalizes text ({normalizer['type']})")
    own = Backend.from_str(json.dumps(definition)).pre_tokenizer
    whole = bool(definition["model"].get("ignore_merges"))
    for name in FAMILIES:
        # With the `llama-bpe` name, llama.cpp also takes a word that is a token as it is, whatever the merges say.
        if own is not None and _splits(own) == _splits(pre_tokenizer(name)) and whole == (name == "llama-bpe"):
            return name
    raise _unsupported(f"a byte-level tokenizer that splits text like none of {', '.join(FAMILIES)}")


def _splits(splitter: Any) -> list[str]:
    return [piece for piece, _ in splitter.pre_tokenize_str(PROBE)]


# ---- SentencePiece


def _scores(tokens: list[str], merges: list[tuple[str, ...]]) -> list[float]:
    """Return minus the rank of the first merge that makes each token: llama.cpp merges what scores highest."""
    rank: dict[str, int] = {}
    for i, pair in enumerate(merges):
        rank.setdefault("".join(pair), i)
    last = float(-len(merges))
    return [float(-rank[token]) if token in rank else last for token in tokens]


def _prepends_space(definition: dict[str, Any]) -> bool:
    """Tell whether a space is put before the text; spaces must become SentencePiece's sign, and nothing else change."""
    normalizer = definition["normalizer"] or {"type": "Sequence", "normalizers": []}
    steps = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
    splitter = definition["pre_tokenizer"]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = {"type": "Prepend", "prepend": SPACE}
    if steps == [] and splitter is not None and splitter["type"] == "Metaspace" and not splitter.get("split", True):
        scheme = splitter["prepend_scheme"]
        if scheme in ("first", "never"):
            return bool(scheme == "first")
    if steps in ([replace], [prepend, replace]) and _harmless(splitter):
        return len(steps) == 2
    raise _unsupported("a SentencePiece tokenizer that changes more in a text than its spaces")


def _harmless(splitter: dict[str, Any] | None) -> bool:
    """Gemma's splits at spaces, of which its normalizer leaves none."""
    return splitter is None or (splitter["type"] == "Split" and splitter["pattern"] == {"String": " "})


# ---- special tokens


def _add_special(writer: Any, tokenizer: Tokenizer) -> None:
    for add, token in (
        (writer.add_bos_token_id, tokenizer.bos_id),
        (writer.add_eos_token_id, tokenizer.eos_id),
        (writer.add_unk_token_id, tokenizer.unk_id),
        (writer.add_pad_token_id, tokenizer.pad_id),
        (writer.add_eot_token_id, end_token(tokenizer)),
    ):
        if token is not None:
            add(token)
    writer.add_add_bos_token(tokenizer.adds_bos)
    writer.add_add_eos_token(False)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


def _unsupported(what: str) -> EngineError:
    return EngineError(
        "gguf-export-unsupported",
        f"llama.cpp has no tokenizer that does the same as {what}",
        hint="export with `--to huggingface`, and convert it elsewhere",
    )
