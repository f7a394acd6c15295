"""The pipes of a worker process: its parent alone uses them, whatever libraries and users' functions print or read."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import BinaryIO


def own_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Return what this process was given as stdin and stdout; from now on stdin is empty and stdout is stderr."""
    calls = os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # also what C libraries print
    sys.stdout = sys.stderr
    sys.stdin = Path(os.devnull).open(encoding="utf-8")  # noqa: SIM115  who asks must not read calls
    return calls, replies
