"""What a page starts: the command `rung` in a process of its own, one at a time, and tasks made of uploaded rows."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rung.machine import end_group
from rung.serving.limits import Refused

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,59}")
INIT_SECONDS = 120.0  # for `rung init`, which reads the rows once
SHOWN = 4_000  # characters of what a command said


@dataclass
class Starter:
    """The commands of one server: at most one runs."""

    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)  # added to that of the commands
    options: tuple[str, ...] = ()  # of every climb and improvement: where runs go
    improving: tuple[str, ...] | None = None  # the options of an improvement; None where nothing is captured
    words: tuple[str, ...] = ()  # of the last command
    _process: subprocess.Popen[bytes] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def log(self) -> Path:
        """What the last command said."""
        return self.folder / ".rung-start.log"

    def tasks(self) -> list[str]:
        """The task files in the folder and in its folders."""
        files = [*self.folder.glob("*.yaml"), *self.folder.glob("*/*.yaml")]
        return sorted(str(file.relative_to(self.folder)) for file in files if re.search(r"(?m)^output:", _head(file)))

    def running(self) -> bool:
        """Whether a command runs now."""
        return self._process is not None and self._process.poll() is None

    def said(self) -> str:
        """The end of what the last command said; empty before the first."""
        return self.log.read_text("utf-8", "replace")[-SHOWN:] if self.words and self.log.is_file() else ""

    def begin(self, *words: str) -> None:
        """Run `rung` with these words; refuse while another command runs."""
        with self._lock:
            if self.running():
                raise Refused(409, "busy", "a command that was started here is still running")
            self.words = words
            with self.log.open("wb") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "rung", *words], cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log,
                    stderr=subprocess.STDOUT, start_new_session=True, env={**os.environ, **self.environment},
                )  # fmt: skip

    def stop(self) -> None:
        """End the command that runs; a climb can be resumed."""
        with self._lock:
            if self._process is not None and self.running():
                end_group(self._process)
                self._process.wait()

    def take(self, name: str, rows: str, output: str) -> None:
        """Keep uploaded rows in a new folder, and guess their task."""
        if not NAME.fullmatch(name):
            raise Refused(400, "bad-name", "a name has letters, digits, - and _, at most 60")
        if not rows.strip():
            raise Refused(400, "no-rows", "there are no rows")
        place = self.folder / name
        try:
            place.mkdir(mode=0o700)
        except FileExistsError:
            raise Refused(409, "name-taken", f"there is already a folder {name!r}: choose another name") from None
        file = place / f"{name}.{'jsonl' if rows.lstrip().startswith('{') else 'csv'}"  # the task has the file's name
        file.write_text(rows, "utf-8", newline="\n")
        words = [sys.executable, "-m", "rung", "init", file.name, "--yes", *(["--output", output] if output else [])]
        try:
            done = subprocess.run(
                words, cwd=place, stdin=subprocess.DEVNULL, capture_output=True, timeout=INIT_SECONDS, check=False
            )
            problem = "" if done.returncode == 0 else done.stderr.decode("utf-8", "replace")[-SHOWN:]
        except subprocess.TimeoutExpired:
            problem = "rung init took too long"
        if problem:
            shutil.rmtree(place)  # with what `rung init` may have left there
            raise Refused(400, "no-task", problem)


def _head(file: Path) -> str:
    with file.open(encoding="utf-8", errors="replace") as text:
        return text.read(100_000)
