"""Use the tools of a local server of the Model Context Protocol over stdin and stdout (https://modelcontextprotocol.io).

The official client is asynchronous: one thread runs its event loop, and calls wait for it.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rung.agents.process import ToolResult
from rung.agents.tools import Tool, plain_schema
from rung.data.sections import McpServer
from rung.errors import ConfigError, MachineError, needed_by

if TYPE_CHECKING:
    from mcp import ClientSession

START_SECONDS = 60.0
_T = TypeVar("_T")


class McpConnection:
    """A running server, started in `folder`, that of the task file.

    Raises:
        MachineError: `mcp-failed`: it cannot be started or does not speak the protocol; `missing-extra`.
    """

    def __init__(self, server: McpServer, folder: Path) -> None:
        with needed_by("an MCP server's tools", extra="tools"):
            import mcp  # noqa: F401
        self._server, self._folder = server, folder
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rung-mcp", daemon=True)
        self._thread.start()
        self._ready: Future[ClientSession] = Future()
        self._end = asyncio.Event()  # belongs to the loop that waits for it
        self._serving = self._submit(self._serve())
        try:
            self._session = self._ready.result(START_SECONDS)
        except Exception as error:
            self.close()
            raise self._failed(_cause(error)) from error

    def tools(self, number: int) -> tuple[Tool, ...]:
        """List its tools, or those that the task names; `number` is the server's position in the task file.

        Raises:
            ConfigError: `function-not-found`: it lacks a tool that the task names.
            MachineError: `mcp-failed`.
        """
        offered = {tool.name: tool for tool in self._listed()}
        names = list(offered) if self._server.only is None else self._server.only
        if missing := [name for name in names if name not in offered]:
            raise ConfigError(
                "function-not-found", f"the MCP server {self.command} has no tool {missing[0]!r}",
                hint=f"it has {', '.join(offered) or 'none'}",
            )  # fmt: skip
        schemas = {name: json.dumps(plain_schema(offered[name].input_schema), ensure_ascii=False) for name in names}
        return tuple(Tool(name, offered[name].description or "", schemas[name], server=number) for name in names)

    @property
    def command(self) -> str:
        """The command that starts it, quoted for a shell."""
        return shlex.join(self._server.mcp)

    def call(self, name: str, arguments: dict[str, Any], seconds: float) -> ToolResult:
        """Call a tool, for at most `seconds`; one that takes longer is cancelled."""
        from mcp import MCPError

        call = self._submit(self._session.call_tool(name, arguments))
        try:
            result = call.result(seconds)
        except TimeoutError:
            call.cancel()
            return ToolResult("timeout", f"it took longer than {seconds:g} seconds and was ended")
        except (MCPError, RuntimeError, OSError) as error:  # refused, or the server has ended
            return ToolResult("failed", f"{type(error).__name__}: {error}")
        text = "\n".join(_text(block) for block in result.content)
        return ToolResult("failed" if result.is_error else "result", text)

    def close(self) -> None:
        """End the server and the thread."""
        self._loop.call_soon_threadsafe(self._end.set)
        self._serving.exception(START_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _submit(self, work: Coroutine[Any, Any, _T]) -> Future[_T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _serve(self) -> None:
        """Hold the connection open until `_end` is set, in one task, as the client's task groups require."""
        from mcp import ClientSession, StdioServerParameters, stdio_client

        command, *arguments = self._server.mcp
        started = StdioServerParameters(command=command, args=arguments, cwd=self._folder)
        try:
            async with AsyncExitStack() as stack:
                streams = await stack.enter_async_context(stdio_client(started, errlog=sys.__stderr__ or sys.stderr))
                session = await stack.enter_async_context(ClientSession(*streams))
                await asyncio.wait_for(session.initialize(), START_SECONDS)
                self._ready.set_result(session)
                await self._end.wait()
        except Exception as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)  # the constructor waits for the session and raises it

    def _listed(self) -> Sequence[Any]:
        from mcp import MCPError
        from mcp.types import PaginatedRequestParams

        tools: list[Any] = []
        cursor: str | None = None
        try:
            while True:
                params = PaginatedRequestParams(cursor=cursor) if cursor else None
                page = self._submit(self._session.list_tools(params=params)).result(START_SECONDS)
                tools += page.tools
                if (cursor := page.next_cursor) is None:
                    return tools
        except (MCPError, RuntimeError, OSError, TimeoutError) as error:
            raise self._failed(_cause(error)) from error

    def _failed(self, why: str) -> MachineError:
        return MachineError(
            "mcp-failed", f"the MCP server {self.command} cannot be used: {why}",
            hint=f"start it by hand in {self._folder}; it must speak MCP over stdin and stdout",
        )  # fmt: skip


def _cause(error: BaseException) -> str:
    """Find the first error in the groups that the client's task groups raise."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


def _text(block: Any) -> str:
    """Show a block of a result as text; other content is only named."""
    return str(block.text) if block.type == "text" else f"[{block.type}, which cannot be shown here]"
