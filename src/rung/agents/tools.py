"""What a tool is to the model, where it comes from, and the two lines of a task file that name it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class McpServer(BaseModel):
    """A server of tools on this machine that speaks the Model Context Protocol over stdin and stdout."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    mcp: list[str] = Field(
        min_length=1,
        description="The command that starts it; no shell reads it.",
        examples=[["python", "server.py"]],
    )
    only: list[str] | None = Field(None, description="The tools of it to use; without, all.", examples=[["search"]])


class Limits(BaseModel):
    """How far an agent may go."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    max_steps: int = Field(8, ge=1, description="Most turns of the model for one row, the answer included.")
    max_tokens: int = Field(1024, ge=1, description="Most tokens that it may write for one row, all turns together.")
    seconds: float = Field(10.0, gt=0, description="Most time of one call of a tool.")
    result_characters: int = Field(4000, ge=16, description="Longest result shown to the model; the rest is cut.")


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool by name.

    Attributes:
        name: how the model calls it.
        description: what it does.
        parameters: JSON Schema of its arguments, an object, as JSON text.
        function: `module:function` of the user's own tools; empty for a server's.
        server: which of the task's servers has it, counted from 0; -1 for the user's own.
        sha256: hash of the file of the user's function; of an installed module, or a server, empty.
    """

    name: str
    description: str
    parameters: str
    function: str = ""
    server: int = -1
    sha256: str = ""

    @property
    def schema(self) -> dict[str, Any]:
        """The parameters as values."""
        values: dict[str, Any] = json.loads(self.parameters)
        return values

    def as_template(self) -> dict[str, Any]:
        """Return it as chat templates and chat APIs take it."""
        return {
            "type": "function",
            "function": {"name": self.name, "description": self.description, "parameters": self.schema},
        }


def plain_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON Schema with references written out and titles left out.

    Raises:
        ValueError: it refers to itself, so that it has no end when written out.
    """
    definitions = {f"#/$defs/{name}": value for name, value in schema.get("$defs", {}).items()}

    def plain(value: Any, inside: tuple[str, ...]) -> Any:
        if isinstance(value, list):
            return [plain(item, inside) for item in value]
        if not isinstance(value, dict):
            return value
        if (reference := value.get("$ref")) is not None:
            if reference in inside:
                raise ValueError(f"{reference.rpartition('/')[2]} holds itself")
            return plain(definitions[reference], (*inside, reference)) | {
                key: item for key, item in value.items() if key != "$ref"
            }
        return {
            key: {name: plain(item, inside) for name, item in value[key].items()}  # names, not keywords
            if key == "properties"
            else plain(item, inside)
            for key, item in value.items()
            if key != "$defs" and not (key == "title" and isinstance(item, str))
        }

    result: dict[str, Any] = plain(schema, ())
    return result
