"""Learning from production: capture, feedback, corrections, improvement, promotion, trials."""
