"""The `rung` command, also as `python -m rung`; an interrupt while it starts ends it like a later one."""

import atexit
import os
import sys


def main() -> None:
    """Run the command."""
    codes: list[int] = []
    atexit.register(_leave, codes)  # the first to register is the last to run
    try:
        try:
            from rung.cli.main import main

            main()
            codes.append(0)
        except KeyboardInterrupt:
            sys.stderr.write("interrupted\n")
            sys.exit(130)
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            codes.append(ended.code or 0)
        raise


def _leave(codes: list[int]) -> None:
    """Leave memory to the system: to free the objects of large libraries one by one takes seconds."""
    if not codes:
        return  # the interpreter says what went wrong
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:  # the shell has closed it
                stream.flush()
        except OSError:
            return
    os._exit(codes[-1])


if __name__ == "__main__":
    main()
