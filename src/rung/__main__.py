"""`python -m rung` is the `rung` command."""

from rung.cli.main import main

main()
