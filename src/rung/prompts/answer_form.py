"""What a prompt says about the answer: one of these labels, a record of this form, a number in this range.

A JSON Schema is shown as the record that it describes, with types for values and the fields' descriptions as comments:
models read that as well as the schema, in a third of its tokens.

    {
      "company": string,
      "date": string (date) | null,  // the day of payment
      "items": [{"name": string, "price": number of at least 0}, ...]
    }
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rung.data.json_schema import resolved

ALONE = ", and nothing else"  # of a number; steps before it take this back
INLINE = 100  # characters; a longer object has a line for each field


def labels_form(labels: Sequence[str], descriptions: Mapping[str, str], *, several: bool) -> str:
    """Ask for one of the labels, or for `several` as a JSON list; each has its own line where a comma would mislead."""
    ask = "Answer with a JSON list of all that apply of" if several else "Answer with one of"
    if not descriptions and not any("," in label or "\n" in label for label in labels):
        return f"{ask}: " + ", ".join(labels)
    shown = {label: _quoted(label) if "\n" in label or (descriptions and ": " in label) else label for label in labels}
    lines = [f"{shown[label]}: {descriptions[label]}" if label in descriptions else shown[label] for label in labels]
    return f"{ask}:\n" + "\n".join(f"- {line}" for line in lines)


def number_form(low: float | None, high: float | None, unit: str, *, whole: bool) -> str:
    """Ask for a number: its range and its unit."""
    kind = "a whole number" if whole else "a number"
    return f"Answer with {kind}{_range(low, high)}{f', in {unit}' if unit else ''}{ALONE}."


def record_form(schema: Mapping[str, Any]) -> str:
    """Ask for JSON of the form that a JSON Schema describes; for any JSON if it says nothing."""
    form = _Form(schema)
    value, notes = form.of(schema, ())
    if value == "any JSON":
        return "Answer with JSON."
    return f"Answer with JSON of this form{f' ({notes})' if notes else ''}:\n{value}"


class _Form:
    """Writes a schema and what its references lead to."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root

    def of(self, schema: Any, seen: tuple[str, ...]) -> tuple[str, str]:
        """Give the form of a schema, and what its description says."""
        if not isinstance(schema, Mapping):
            return "any JSON", ""
        notes = str(schema.get("description", "")).strip()
        if reference := schema.get("$ref"):
            if reference in seen:  # a record inside its own kind
                return f"{str(reference).rpartition('/')[2]} as above", notes
            form, inner = self.of(resolved(str(reference), self._root), (*seen, str(reference)))
            return form, notes or inner
        if "const" in schema or "enum" in schema:
            values = [schema["const"]] if "const" in schema else schema["enum"]
            return " | ".join(_quoted(value) for value in values), notes
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                forms = [self.of(branch, seen) for branch in schema[keyword]]
                inner = "; ".join(dict.fromkeys(note for _, note in forms if note))
                return " | ".join(dict.fromkeys(form for form, _ in forms)), notes or inner
        if "allOf" in schema and "properties" not in schema and len(schema["allOf"]) == 1:
            form, inner = self.of(schema["allOf"][0], seen)
            return form, notes or inner
        kinds = schema.get("type", "object" if "properties" in schema or "allOf" in schema else "any JSON")
        kinds = [kinds] if isinstance(kinds, str) else kinds
        return " | ".join(self._typed(kind, schema, seen) for kind in kinds), notes

    def _typed(self, kind: str, schema: Mapping[str, Any], seen: tuple[str, ...]) -> str:
        if kind == "object":
            return self._object(schema, seen)
        if kind == "array":
            return self._array(schema, seen)
        if kind == "string":
            limits = _range(schema.get("minLength"), schema.get("maxLength"), what=" characters")
            pattern = f" matching {schema['pattern']}" if "pattern" in schema else ""
            return "string" + (f" ({schema['format']})" if "format" in schema else "") + pattern + limits
        if kind in ("number", "integer"):
            low, high = schema.get("minimum"), schema.get("maximum")
            above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
            more = (f" above {_quoted(above)}" if above is not None else "") + (
                f" below {_quoted(below)}" if below is not None else "")  # fmt: skip
            step = f", a multiple of {_quoted(schema['multipleOf'])}" if "multipleOf" in schema else ""
            return kind + _range(low, high) + more + step
        return kind

    def _object(self, schema: Mapping[str, Any], seen: tuple[str, ...]) -> str:
        fields = dict(self._fields(schema, seen))
        if not fields:
            other = schema.get("additionalProperties")
            return f'{{"...": {self.of(other, seen)[0]}}}' if isinstance(other, Mapping) and other else "object"
        pairs = [(f"{_quoted(name)}: {form}", notes) for name, (form, notes) in fields.items()]
        line = "{" + ", ".join(pair for pair, _ in pairs) + "}"
        if len(line) <= INLINE and "\n" not in line and not any(notes for _, notes in pairs):
            return line
        ends = [*[","] * (len(pairs) - 1), ""]
        lines = [
            f"{pair}{end}{f'  // {notes}' if notes else ''}" for (pair, notes), end in zip(pairs, ends, strict=True)
        ]
        return "{\n" + "\n".join(lines).replace("\n", "\n  ").join(("  ", "\n")) + "}"

    def _fields(self, schema: Mapping[str, Any], seen: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, str]]]:
        """Yield the form and the notes of every field, those of the parts of `allOf` included."""
        required = schema.get("required", ())
        for name, part in schema.get("properties", {}).items():
            form, notes = self.of(part, seen)
            notes = " ".join(notes.split())
            yield name, (form, notes if name in required else "; ".join(filter(None, ("optional", notes))))
        for part in schema.get("allOf", ()):
            reference = part.get("$ref") if isinstance(part, Mapping) else None
            if reference is None or reference not in seen:
                part = part if reference is None else resolved(str(reference), self._root)
                if isinstance(part, Mapping):
                    yield from self._fields(part, seen if reference is None else (*seen, str(reference)))

    def _array(self, schema: Mapping[str, Any], seen: tuple[str, ...]) -> str:
        first = [self.of(part, seen)[0] for part in schema.get("prefixItems", ())]
        if first and not isinstance(schema.get("items", True), Mapping):
            return f"[{', '.join(first)}]"
        item, notes = self.of(schema.get("items", True), seen)
        size = _range(schema.get("minItems"), schema.get("maxItems"), what=" items").removeprefix(" of ")
        about = "; ".join(filter(None, (size, notes)))
        return f"[{', '.join([*first, item, '...'])}]" + (f" ({about})" if about else "")


def _range(low: float | None, high: float | None, what: str = "") -> str:
    of = " of" if what else ""
    if low is not None and high is not None:
        return f"{of or ' from'} {_quoted(low)} to {_quoted(high)}{what}"
    if low is not None:
        return f" of at least {_quoted(low)}{what}" if low or not what else ""
    return "" if high is None else f" of at most {_quoted(high)}{what}"


def _quoted(value: Any) -> str:
    value = int(value) if isinstance(value, float) and value.is_integer() else value
    return json.dumps(value, ensure_ascii=False)
