"""What a tuned model becomes outside Rung: merged weights, files for other tools, a model card."""
