"""Prompts searched by machine: candidates, a writer, a budget, a race, and a test before anything is adopted."""
