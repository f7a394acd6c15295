"""Tools and steps of an agent, and how the user's Python functions become tools."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

from rung import user_code
from rung.errors import ConfigError
from rung.models.cache import file_sha256
from rung.user_code import Permit


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool by name."""

    name: str  # how the model calls it
    description: str  # what it does
    parameters: str  # JSON Schema of its arguments, an object, as JSON text
    function: str = ""  # `module:function` of the user's own tools; empty for a server's
    server: int = -1  # which of the task's servers has it, counted from 0; -1 for the user's own
    sha256: str = ""  # hash of the file of the user's function; of an installed module, or a server, empty

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON Schema of the arguments."""
        values: dict[str, Any] = json.loads(self.parameters)
        return values

    def as_template(self) -> dict[str, Any]:
        """Write it as chat templates and chat APIs read it."""
        function = {"name": self.name, "description": self.description, "parameters": self.schema}
        return {"type": "function", "function": function}


StepOutcome = Literal["result", "failed", "timeout", "malformed", "answer"]


@dataclass(frozen=True, slots=True)
class AgentStep:
    """One turn of the model, or one call in it."""

    # The tool gave a `result`, `failed` (it raised, or refused the arguments) or ran into its `timeout`; the model's
    # text was `malformed`; or it is the `answer`.
    outcome: StepOutcome
    text: str  # what the model reads next: the tool's result, or the error; of an answer, the answer
    written: str  # what the model wrote
    tool: str = ""  # the tool called, or empty
    arguments: str = ""  # its arguments, JSON text
    tokens: int = 0  # tokens that the model wrote; 0 for further calls of the same turn
    seconds: float = 0.0  # time of the tool's call


def trace(steps: Sequence[AgentStep], stopped: str) -> dict[str, Any]:
    """Convert an agent's steps, and the limit that stopped it, to JSON values; nothing if no agent answered."""
    return {"steps": [asdict(step) for step in steps], "stopped": stopped or None} if steps or stopped else {}


def plain_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Write out the references of a JSON Schema, and leave its titles out.

    Raises:
        ValueError: it refers to itself, so writing it out would not end.
    """
    definitions = {f"#/$defs/{name}": value for name, value in schema.get("$defs", {}).items()}

    def plain(value: Any, inside: tuple[str, ...]) -> Any:
        if isinstance(value, list):
            return [plain(item, inside) for item in value]
        if not isinstance(value, dict):
            return value
        if (reference := value.get("$ref")) is not None:
            if reference in inside:
                raise ValueError(f"{reference.rpartition('/')[2]} contains itself")
            beside = {key: item for key, item in value.items() if key != "$ref"}
            return plain(definitions[reference], (*inside, reference)) | beside
        return {
            key: {name: plain(item, inside) for name, item in value[key].items()}  # names, not keywords
            if key == "properties"
            else plain(item, inside)
            for key, item in value.items()
            if key != "$defs" and not (key == "title" and isinstance(item, str))
        }

    result: dict[str, Any] = plain(schema, ())
    return result


# ---- the user's functions: type hints and docstring tell the model how to call them

_EXAMPLE = 'def look_up(name: str) -> str: """Look a name up in the table."""'
_TOOL = user_code.FunctionKind("tool", _EXAMPLE)
_ARGUMENT = re.compile(r"^\s+\**(\w+)(?: \([^)]*\))?:\s*(.+)$")


def check_function(spec: str, folder: Path) -> str:
    """Find the function that `module:function` names, without importing it; the hash of its file, see `Tool.sha256`.

    Raises:
        ConfigError: `function-not-found`.
    """
    folders = [folder, Path.cwd()]
    user_code.check(spec, folders, _TOOL)
    file = user_code.file_of(user_code.split(spec)[0], folders)
    return file_sha256(file[0]) if file else ""


def function_permit(spec: str, folder: Path) -> Permit:
    """What the user has to allow before the function is imported."""
    return user_code.permit(spec, [folder, Path.cwd()], _TOOL)


def load_function(spec: str, folders: Sequence[Path]) -> Callable[..., Any]:
    """Load the function that `module:function` names.

    Raises:
        ConfigError: `function-not-found`.
        MachineError: `not-trusted`.
    """
    function = user_code.load(spec, folders, _TOOL)
    if not callable(function):
        raise ConfigError("function-not-found", f"{spec} is not a function", hint=f"define there: {_EXAMPLE}")
    return cast("Callable[..., Any]", function)


def function_tool(spec: str, folder: Path) -> Tool:
    """Make a tool of a function; its file is searched in `folder`, then in the current folder.

    Raises:
        ConfigError: it is not there, cannot be imported, or `tool-untyped`: it has no docstring, or
            an argument without a type.
        MachineError: `not-trusted`.
    """
    function = load_function(spec, [folder, Path.cwd()])
    description, arguments = _documented(function)
    if not description:
        raise ConfigError(
            "tool-untyped", f"the tool {spec} has no docstring to tell the model when to call it", hint=_EXAMPLE
        )
    schema = _schema(spec, function)
    for name, text in arguments.items():
        if name in schema.get("properties", {}):
            schema["properties"][name].setdefault("description", text)
    parameters = json.dumps(schema, ensure_ascii=False)
    return Tool(spec.partition(":")[2], description, parameters, spec, sha256=check_function(spec, folder))


def _schema(spec: str, function: Callable[..., Any]) -> dict[str, Any]:
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError

    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.annotation is parameter.empty:
            raise ConfigError("tool-untyped", f"the argument {name!r} of the tool {spec} has no type", hint=_EXAMPLE)
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ConfigError(
                "tool-untyped", f"the argument {name!r} of the tool {spec} cannot be given by name", hint=_EXAMPLE
            )
    try:
        return plain_schema(TypeAdapter(cast("Any", function)).json_schema())
    except (PydanticUserError, NameError, ValueError) as error:
        raise ConfigError(
            "tool-untyped", f"the tool {spec} has types without a JSON Schema: {str(error).splitlines()[0]}",
            hint="use str, int, float, bool, Literal, list, dict, dataclasses or pydantic models",
        ) from error  # fmt: skip


def _documented(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """Split a docstring into its text before the sections, and the description of each argument."""
    text = inspect.getdoc(function) or ""
    described, _, rest = text.partition("\nArgs:\n")
    arguments = {}
    for line in rest.splitlines():
        if line and not line.startswith(" "):
            break
        if match := _ARGUMENT.match(line):
            arguments[match[1]] = match[2].strip()
    return re.split(r"\n(?:Returns|Raises|Yields|Examples?):\n", described)[0].strip(), arguments
