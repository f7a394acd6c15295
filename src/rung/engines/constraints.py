"""Constrained text on torch: which tokens each row of a batch may take next. And the check of a value by JSON Schema.

The grammars are llguidance's (MIT licence, one wheel of 2 MB without dependencies) rather than xgrammar's (Apache-2.0,
needs torch, transformers and a compiler runtime): it refuses what it cannot guarantee, such as a schema keyword that it
does not implement, where others silently drop it; and it reads tokenizer.json itself, so it sees exactly the vocabulary
that decodes the answer. Guarantees of a finished answer:

    choices      it is exactly one of them
    regex        all of it matches (Rust's syntax: Unicode classes, no look-around, no back-references)
    json_schema  it parses and is valid; separators are ", " and ": " and nothing else is spaced, which is how Rung
                 writes the JSON that models are trained on

Within the constraint the model chooses: greedy text takes the likeliest allowed token. Where only one text is possible,
its tokens are those of the tokenizer, as the model saw them in training.

An answer that reaches `max_tokens` first is cut there, and its finish reason says so.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rung.engines.base import Constraint
from rung.errors import ConfigError, EngineError, needed_by
from rung.models.bounded import found
from rung.yamlfile import json_value

if TYPE_CHECKING:
    from rung.models.tokenizer import Tokenizer

JSON_STYLE = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
COMPILED = 64  # grammars kept
_COPYING = threading.Lock()  # a compiled grammar is shared by all threads, and may be copied by one at a time


class TokenMask:
    """The state of a constraint in every row of a batch, from the beginning of the answers on.

    `width` is the number of the model's logits, which may be more than the tokenizer has tokens (padding).

    Raises:
        EngineError: llguidance is not installed, or it cannot read this kind of tokenizer.
        ConfigError: the constraint is not valid, or asks for what cannot be guaranteed.
    """

    def __init__(self, tokenizer: Tokenizer, constraint: Constraint, rows: int, width: int) -> None:
        start = compiled(tokenizer, constraint)
        with _COPYING:
            self._rows: list[Any] = [start.deep_copy() for _ in range(rows)]
        self._constraint, self._width = constraint, width
        self._vocabulary = vocabulary(tokenizer)

    def allowed(self) -> npt.NDArray[np.bool_]:
        """The tokens that each row may take next, shape [rows, width]; end tokens are allowed where the text may end.

        Raises:
            EngineError: the grammar grew beyond llguidance's limits, or the model lacks every token it needs.
        """
        from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask_par

        words = allocate_token_bitmask(len(self._rows), self._vocabulary.vocab_size)
        fill_next_token_bitmask_par(_executor(), [(state, row) for row, state in enumerate(self._rows)], words)
        self._check()
        bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")[:, : self._vocabulary.vocab_size]
        known = min(self._width, bits.shape[1])
        result = np.zeros((len(self._rows), self._width), np.bool_)
        result[:, :known] = bits[:, :known]
        if not result.any(1).all():
            raise self._failed("no token of the model continues the text")
        return result

    def advance(self, tokens: Sequence[int]) -> list[bool]:
        """Take one token per row; return which rows are finished: only an end token could follow."""
        for state, token in zip(self._rows, tokens, strict=True):
            state.consume_token(token)
        self._check()
        return [bool(state.is_stopped()) for state in self._rows]

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order."""
        self._rows = [self._rows[row] for row in rows]

    def _check(self) -> None:
        for state in self._rows:
            if state.is_error():
                raise self._failed(state.get_error().splitlines()[0])

    def _failed(self, why: str) -> EngineError:
        problem = f"the {self._constraint.kind} constraint cannot be followed further: {why}"
        hint = "simplify it: fewer alternatives, shorter repetitions, shallower nesting"
        return EngineError("constraint-failed", problem, hint=hint)


def constrained_text(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """The text that a grammar read in `tokens`, without end tokens; half a character is U+FFFD.

    Unlike the tokenizer's decoding, it keeps the space that some vocabularies put before the first word.
    """
    known = vocabulary(tokenizer)
    return str(known.decode_str([token for token in tokens if token not in known.eos_tokens]))


@lru_cache(maxsize=COMPILED)
def compiled(tokenizer: Tokenizer, constraint: Constraint) -> Any:
    """The grammar of a constraint in its first state; copy it before use.

    Raises:
        EngineError: llguidance is not installed, or it cannot read this kind of tokenizer.
        ConfigError: the constraint is not valid, or asks for what cannot be guaranteed.
    """
    matcher = _library().LLMatcher(vocabulary(tokenizer), _grammar(constraint))
    if matcher.is_error():
        raise _refused(constraint, matcher.get_error())
    if warnings := matcher.get_grammar_warnings():
        raise _refused(constraint, warnings[0])
    return matcher


@lru_cache(maxsize=4)
def vocabulary(tokenizer: Tokenizer) -> Any:
    """The tokenizer in llguidance's form, which takes a third of a second to build."""
    try:
        return _library().LLTokenizer(tokenizer.definition, eos_token=sorted(tokenizer.eos_ids) or None)
    except ValueError as error:
        problem = f"text cannot be constrained with the tokenizer of {tokenizer.folder}: {error}"
        hint = "use `--engine openvino`, an endpoint, or another model"
        raise EngineError("constraint-unsupported", problem, hint=hint) from error


@lru_cache(maxsize=1)
def _executor() -> Any:
    """The threads that fill the masks of many rows, started once."""
    return _library().LLExecutor()


def _grammar(constraint: Constraint) -> str:
    library, value = _library(), constraint.value
    if constraint.kind == "choices":
        choices = [value] if isinstance(value, str) else list(value)
        if not choices or not all(choices):
            raise _refused(constraint, "it has no choice, or an empty one")
        alternatives = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
        return str(library.LLMatcher.grammar_from_lark(f"start: {alternatives}"))
    if not isinstance(value, str):
        raise _refused(constraint, f"expected text, found {type(value).__name__}")
    if constraint.kind == "regex":
        return str(library.LLMatcher.grammar_from_regex(value))
    try:
        return str(library.LLMatcher.grammar_from_json_schema(value, overrides=JSON_STYLE))
    except ValueError as error:
        raise _refused(constraint, str(error)) from error


def _refused(constraint: Constraint, why: str) -> ConfigError:
    problem = f"the {constraint.kind} constraint is not valid here: {why.strip()}"
    hint = "correct it, or remove the named part, which cannot be guaranteed"
    return ConfigError("bad-constraint", problem, hint=hint)


# ---- JSON Schema


def schema_problem(value: object, schema: str) -> str | None:
    """Why a JSON value is not valid under a JSON Schema (its text), or None where it is.

    Raises:
        ConfigError: `bad-constraint`: the schema itself is not valid.
    """
    from jsonschema.exceptions import best_match
    from referencing.exceptions import Unresolvable

    try:
        problem = best_match(_validator(schema).iter_errors(value))
    except Unresolvable as error:
        raise _bad_schema(f"it refers to {error.ref!r}, which it does not contain") from error
    return None if problem is None else f"{problem.json_path}: {problem.message}"


def fits(value: object, part: Any, schema: str) -> bool:
    """Whether a JSON value is valid under a part of a schema; its references lead into the whole."""
    return bool(_validator(schema).evolve(schema=part).is_valid(value))


def check_constraint(constraint: Constraint) -> None:
    """Raise ConfigError `bad-constraint` where no text can be constrained so."""
    with suppress(EngineError):  # without local models there is no grammar of ours; a server has its own
        _written_in_bytes(constraint)


def unguaranteed(constraint: Constraint) -> str | None:
    """Why no text can be constrained so; None if it can, or llguidance is not installed."""
    try:
        check_constraint(constraint)
    except ConfigError as refused:
        return refused.message.partition(": ")[2]
    return None


def unwritable(text: str, constraint: Constraint) -> str | None:
    """Why text under a constraint cannot be `text`; None if it can, or if `unguaranteed`."""
    if unguaranteed(constraint) is not None:
        return None
    try:
        with _COPYING:
            state = _written_in_bytes(constraint).deep_copy()
    except EngineError:
        return None
    tokens = list(text.encode(errors="surrogatepass"))
    taken = state.try_consume_tokens(tokens)
    if taken == len(tokens) and state.is_accepting():
        return None
    before = bytes(tokens[:taken]).decode(errors="ignore")
    rest = text[len(before) :]
    if not before:
        return f"it may not begin with `{rest[:20]}`"
    return f"after `{before[-40:]}` it may not continue with `{rest[:20]}`" if rest else "it may not end there"


@lru_cache(maxsize=COMPILED)
def _written_in_bytes(constraint: Constraint) -> Any:
    """The grammar of a constraint over bytes, which no model's tokenizer is needed for."""
    library = _library()
    matcher = library.LLMatcher(library.LLTokenizer("byte"), _grammar(constraint))
    if matcher.is_error():
        raise _refused(constraint, matcher.get_error().splitlines()[0])
    return matcher


@lru_cache(maxsize=COMPILED)
def _validator(schema: str) -> Any:
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import Draft202012Validator, extend, validator_for
    from referencing import Registry

    try:
        definition = json_value(schema)
        kind = validator_for(definition, default=Draft202012Validator)
        kind.check_schema(definition)
    except (ValueError, SchemaError) as error:
        where = f"{error.json_path}: {error.message}" if isinstance(error, SchemaError) else f"it is not JSON: {error}"
        raise _bad_schema(where) from error
    # An empty registry: references to other documents fetch nothing.
    bounded = extend(kind, {"pattern": _pattern, "patternProperties": _pattern_properties})
    return bounded(definition, registry=Registry(), format_checker=kind.FORMAT_CHECKER)


def _pattern(validator: Any, pattern: str, value: Any, schema: Any) -> Iterator[Any]:
    """The keyword `pattern`, within a time limit: others may have written the schema, and a model the text."""
    from jsonschema.exceptions import ValidationError

    del schema
    if validator.is_type(value, "string") and not found(pattern, value):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, patterns: Mapping[str, Any], value: Any, schema: Any) -> Iterator[Any]:
    del schema
    for pattern, part in patterns.items():
        for key in value if validator.is_type(value, "object") else ():
            if found(pattern, key):
                yield from validator.descend(value[key], part, path=key, schema_path=pattern)


def _bad_schema(why: str) -> ConfigError:
    return ConfigError("bad-constraint", f"the JSON Schema is not valid: {why}", hint="correct the schema")


def _library() -> Any:
    with needed_by("constrained text", error=EngineError):
        import llguidance
    return llguidance
