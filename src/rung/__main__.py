"""The `rung` command, also as `python -m rung`; an interrupt while it starts ends it like a later one."""

import sys


def main() -> None:
    """Run the command."""
    try:
        from rung.cli.main import main

        main()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
