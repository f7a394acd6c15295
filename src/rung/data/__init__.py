"""Rows: where they come from, how they are split, and what the data report says of them."""
