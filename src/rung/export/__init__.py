"""Using a tuned model outside Rung: merged weights, files for other tools, a model card."""
