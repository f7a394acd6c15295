"""Artifacts of a folder that a server loads by their name, at the first request for each.

With many artifacts on one base model, each replica keeps those that it was asked for last. A proxy that sends an
artifact's requests to the same replica (docs/clusters.md) makes that few.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rung.artifact.files import MANIFEST
from rung.serving.served import Served

MOST = 16  # artifacts kept by default
_NAME = re.compile(r"\w[\w.:-]{0,127}")


@dataclass
class OnDemand:
    """The artifacts below `root`; at most `most` of them are served at once, those that were asked for last.

    `check` raises where an artifact would run or reach what nobody allowed.
    """

    root: Path
    most: int = MOST
    check: Callable[[Path], None] = lambda _folder: None
    _used: dict[str, None] = field(default_factory=dict)  # loaded here, the longest unused first
    _loading: dict[str, asyncio.Future[None]] = field(default_factory=dict)

    async def need(self, served: Served, name: str) -> None:
        """Load the artifact of this name, if there is one and it is not served yet; requests for it wait together.

        Other requests go on meanwhile. The artifact that was not used for longest makes room.

        Raises:
            RungError: the artifact is damaged, or does not fit what is here.
        """
        name = served.aliases.get(name, name)
        if name in self._used:
            self._used[name] = self._used.pop(name)
        if served.find(name) is not None or not self._is_there(name):
            return
        if name not in self._loading:
            self._loading[name] = asyncio.ensure_future(self._load(served, name))
        await asyncio.shield(self._loading[name])  # the load goes on when this client leaves

    def _is_there(self, name: str) -> bool:
        return _NAME.fullmatch(name) is not None and (self.root / name / MANIFEST).is_file()

    async def _load(self, served: Served, name: str) -> None:
        try:
            await asyncio.to_thread(self._load_now, served, name)
            self._used[name] = None
            while len(self._used) > self.most:
                oldest = next(iter(self._used))
                del self._used[oldest]
                served.unload(oldest)
        finally:
            del self._loading[name]

    def _load_now(self, served: Served, name: str) -> None:
        self.check(self.root / name)
        served.load(self.root / name, name)
