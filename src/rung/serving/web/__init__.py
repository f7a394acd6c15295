"""Pages of the server: HTML made on the server, one script, one style sheet, and nothing from elsewhere."""
