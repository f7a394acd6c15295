"""An agent in an artifact's folder: everything but the code of its tools, which stays where it is and is checked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rung.agents.agent import Agent
from rung.agents.toolbox import check_tools
from rung.agents.tools import Limits, McpServer, Tool

PLACE = "RUNG_TOOLS"  # where tools lie that were moved since the artifact was made


def agent_values(agent: Agent) -> dict[str, Any]:
    """Return plain JSON values."""
    return {
        "kind": agent.kind,
        "tools": [asdict(tool) for tool in agent.tools],
        "servers": [server.model_dump() for server in agent.servers],
        "folder": str(agent.folder),
        "protocol": agent.protocol,
        "max_tokens": agent.max_tokens,
        "limits": agent.limits.model_dump(),
    }


def agent_from_values(values: Mapping[str, Any], artifact: Path) -> Agent:
    """Rebuild an agent; the user's functions must be those that it was made with.

    Raises:
        ArtifactError: `tools-changed`.
        ConfigError: a function is not there any more.
    """
    folder = Path(os.environ.get(PLACE) or values["folder"]).expanduser()
    tools = tuple(Tool(**tool) for tool in values["tools"])
    servers = tuple(McpServer(**server) for server in values["servers"])
    check_tools(tools, folder, artifact)
    return Agent(tools, servers, folder, values["protocol"], values["max_tokens"], Limits(**values["limits"]))
