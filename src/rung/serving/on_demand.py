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
from typing import Protocol

from rung.artifact.files import MANIFEST
from rung.serving.served import Servable, Served, ServedArtifact

MOST = 16  # artifacts kept by default
_NAME = re.compile(r"\w[\w.:-]{0,127}")


class Loader(Protocol):
    """Loads what a request needs."""

    async def need(self, served: Served, name: str) -> Servable | None:
        """What is served under a name, loaded first if need be; None if nothing is.

        It answers the request that got it, also if it makes room for another one meanwhile.
        """


@dataclass
class OnDemand:
    """The artifacts below `root`; at most `most` of them are served at once, those that were asked for last.

    `check` raises where an artifact would run or reach what nobody allowed.
    """

    root: Path
    most: int = MOST
    check: Callable[[Path], None] = lambda _folder: None
    _used: dict[str, None] = field(default_factory=dict)  # loaded here, the longest unused first
    _loading: dict[str, asyncio.Future[ServedArtifact]] = field(default_factory=dict)

    async def need(self, served: Served, name: str) -> Servable | None:
        """What is served under this name; an artifact that is not yet is loaded, and requests for it wait together.

        Other requests go on meanwhile. The artifact that was not used for longest makes room.

        Raises:
            RungError: the artifact is damaged, or does not fit what is here.
        """
        name = served.aliases.get(name, name)
        if name in self._used:
            self._used[name] = self._used.pop(name)
        if (found := served.find(name)) is not None or not self._is_there(name):
            return found
        if name not in self._loading:
            self._loading[name] = asyncio.ensure_future(self._load(served, name))
        return await asyncio.shield(self._loading[name])  # the load goes on when this client leaves

    def _is_there(self, name: str) -> bool:
        return _NAME.fullmatch(name) is not None and (self.root / name / MANIFEST).is_file()

    async def _load(self, served: Served, name: str) -> ServedArtifact:
        try:
            loaded = await asyncio.to_thread(self._load_now, served, name)
            self._used[name] = None
            while len(self._used) > self.most:
                oldest = next(iter(self._used))
                del self._used[oldest]
                if served.find(oldest) is not None:  # else an administrator has unloaded it
                    served.unload(oldest)
            return loaded
        finally:
            del self._loading[name]

    def _load_now(self, served: Served, name: str) -> ServedArtifact:
        self.check(self.root / name)
        return served.load(self.root / name, name)
