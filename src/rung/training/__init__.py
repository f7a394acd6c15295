"""The training loop, its data, its losses, and adapters on disk."""
