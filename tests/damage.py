"""Flips bits in folders that Rung wrote, and reads them."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rung.errors import RungError

FLIPS = 300  # of one bit each, in each folder


def check_flips(folder: Path, scratch: Path, read: Callable[[Path], Any], *unread: str) -> None:
    """Each flip of a random bit must be an error with the place; in files that are `unread` it changes nothing."""
    expected, rng = read(folder), random.Random(0)
    files = sorted(file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    for number in range(FLIPS):
        target = scratch / str(number)
        shutil.copytree(folder, target)
        name = files[number % len(files)]
        data = bytearray((target / name).read_bytes())
        place, bit = rng.randrange(len(data)), rng.randrange(8)
        data[place] ^= 1 << bit
        (target / name).write_bytes(data)
        flipped, problem = f"bit {bit} of byte {place} of {name}", ""
        try:
            assert read(target) == expected, flipped
        except RungError as error:
            problem = error.render()
        assert (str(target) in problem) != (name.name in unread), f"{flipped}: {problem}"
        shutil.rmtree(target)
