"""A small MCP server, run as a process by the tests."""

import os
import time

from mcp.server.mcpserver import MCPServer

server = MCPServer("small")


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool()
def breaks(text: str) -> str:
    """Raise."""
    raise ValueError(f"no {text}")


@server.tool()
def sleeps() -> str:
    """Take long."""
    time.sleep(30)
    return "late"


@server.tool()
def ends() -> str:
    """End the server."""
    os._exit(3)


server.run("stdio")
