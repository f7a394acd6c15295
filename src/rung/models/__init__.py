"""Models: references, the embedded default, conversion to one folder format, tokenizers and chat templates."""
