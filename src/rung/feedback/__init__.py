"""What goes wrong in production, kept and made the next climb: capture, feedback, corrections, promotion."""
