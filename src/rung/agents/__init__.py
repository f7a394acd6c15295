"""Reasoning with tools: a model calls the user's Python functions and MCP servers until it knows the answer."""
