"""Retrieval: the user's documents, cut into passages, indexed and searched."""
