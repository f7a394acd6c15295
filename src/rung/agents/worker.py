"""The process in which the user's tools run, so that one that never ends can be ended: `python -m rung.agents.worker`.

Lines of JSON. First read {"folder", "functions"}, answered by {"ready": true}; then {"function", "arguments"}, each
answered by {"result"} or {"error"}. What tools print goes to stderr.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from rung.user_code import own_pipes


def main() -> None:
    """Answer calls until stdin ends."""
    from rung.agents.tools import load_function

    calls, replies = own_pipes()
    setup = json.loads(calls.readline())
    folders = [Path(setup["folder"]), Path.cwd()]
    functions = {spec: load_function(spec, folders) for spec in setup["functions"]}
    _reply(replies, {"ready": True})
    for line in calls:
        call = json.loads(line)
        _reply(replies, run(functions[call["function"]], call["arguments"]))


def run(function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, str]:
    """Call a function with arguments that are checked against its types; return {"result"} or {"error"}."""
    from pydantic import ValidationError, validate_call
    from pydantic_core import to_json

    try:
        value = validate_call(function)(**arguments)
    except ValidationError as wrong:
        told = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'arguments'}: {e['msg']}" for e in wrong.errors())
        return {"error": told}
    except Exception as error:  # whatever the user's function raises is told to the model
        return {"error": f"{type(error).__name__}: {error}"}
    if isinstance(value, str):
        return {"result": value}
    try:
        return {"result": to_json(value).decode()}
    except ValueError as error:  # PydanticSerializationError is one
        return {"error": f"the result cannot be written as JSON: {error}"}


def _reply(replies: BinaryIO, value: dict[str, Any]) -> None:
    replies.write(json.dumps(value).encode() + b"\n")
    replies.flush()


if __name__ == "__main__":
    main()
