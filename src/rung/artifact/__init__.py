"""Decoders: how an artifact comes to its answers, one kind a module; the artifact only asks its own."""
