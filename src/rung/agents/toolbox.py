"""Find and call a task's tools; workers and servers are started once per process and shared."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rung.agents.process import FunctionWorker, ToolResult
from rung.agents.tools import Tool, check_function, function_permit, function_tool
from rung.data.sections import McpServer
from rung.errors import ArtifactError, ConfigError
from rung.user_code import Permit, command_permit, require

if TYPE_CHECKING:
    from rung.agents.mcp_client import McpConnection

_workers: dict[tuple[Any, ...], FunctionWorker] = {}
_connections: dict[tuple[Any, ...], McpConnection] = {}
_opening = threading.Lock()


def find_tools(named: Sequence[str | McpServer], folder: Path) -> tuple[Tool, ...]:
    """Find the tools that a task names; this starts its servers.

    Raises:
        ConfigError: a function or a server's tool is not there, cannot be described, or two have the same name.
        MachineError: a server cannot be used, or `not-trusted`.
    """
    tools: list[Tool] = []
    servers = [source for source in named if isinstance(source, McpServer)]
    for source in named:
        if isinstance(source, McpServer):
            tools += _connection(source, folder).tools(servers.index(source))
        else:
            tools.append(function_tool(source, folder))
    names = [tool.name for tool in tools]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(
            "duplicate-name", f"two tools are called {twice[0]!r}", hint="rename one, or choose with `only` of a server"
        )
    return tuple(tools)


def check_tools(tools: Sequence[Tool], folder: Path, artifact: Path) -> None:
    """Check that the files of the user's functions are those that an artifact was made with; nothing is imported.

    Servers, and functions of installed packages, are compared when they are used.

    Raises:
        ArtifactError: `artifact-mismatch`.
        ConfigError: `function-not-found`.
    """
    for tool in tools:
        if tool.function and check_function(tool.function, folder) != tool.sha256:
            raise _changed(tool, folder, str(artifact))


def permits(tools: Sequence[Tool | str], servers: Sequence[McpServer], folder: Path) -> list[Permit]:
    """What the user has to allow before these tools, or functions, and servers are used."""
    functions = [tool if isinstance(tool, str) else tool.function for tool in tools]
    return [
        *(function_permit(function, folder) for function in functions if function),
        *(command_permit(server.mcp, folder) for server in servers),
    ]


def call(
    tool: Tool, arguments: Mapping[str, Any], tools: Sequence[Tool], servers: Sequence[McpServer], folder: Path,
    seconds: float,
) -> ToolResult:  # fmt: skip
    """Call a tool for at most `seconds`.

    Raises:
        ArtifactError: its server or package now offers another tool by this name.
        MachineError: `not-trusted`.
    """
    if tool.function:
        functions = tuple(known.function for known in tools if known.function)
        with _opening:
            if (worker := _workers.get((folder, functions))) is None:
                _check_installed(tools, folder)
                worker = _workers[folder, functions] = FunctionWorker(folder, functions)
        return worker.call(tool.function, dict(arguments), seconds)
    connection = _connection(servers[tool.server], folder)
    if tool not in connection.tools(tool.server):
        raise ArtifactError(
            "artifact-mismatch", f"the MCP server {connection.command} offers another {tool.name!r} than it did",
            hint="use the server's earlier version, or make the artifact again",
        )  # fmt: skip
    return connection.call(tool.name, dict(arguments), seconds)


def _check_installed(tools: Sequence[Tool], folder: Path) -> None:
    for tool in tools:
        if tool.function:
            require(function_permit(tool.function, folder))
            if not tool.sha256 and function_tool(tool.function, folder) != tool:
                raise _changed(tool, folder, "the artifact")


def _changed(tool: Tool, folder: Path, artifact: str) -> ArtifactError:
    return ArtifactError(
        "artifact-mismatch", f"{artifact} was made with another version of the tool {tool.function} in {folder}",
        hint="restore that version, name its folder in RUNG_TOOLS, or make the artifact again",
    )  # fmt: skip


def _connection(server: McpServer, folder: Path) -> McpConnection:
    from rung.agents.mcp_client import McpConnection

    key = (folder, tuple(server.mcp), tuple(server.only or ()))
    with _opening:
        if key not in _connections:
            require(command_permit(server.mcp, folder))
            _connections[key] = McpConnection(server, folder)
        return _connections[key]


@atexit.register
def close_all() -> None:
    """End every worker and server that was started."""
    for opened in (_workers, _connections):
        while opened:
            opened.popitem()[1].close()
