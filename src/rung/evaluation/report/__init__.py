"""The report of a climb: on the terminal, as JSON, and as one HTML file."""
