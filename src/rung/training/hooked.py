"""Changes that live in forward hooks: nothing of the model itself is touched."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

from torch.utils.hooks import RemovableHandle

from rung.training.changes import Change


class Hooked(Change):
    """A change that is on for as long as its hooks are."""

    _handles: tuple[RemovableHandle, ...] = ()

    @abstractmethod
    def hooks(self) -> Iterator[RemovableHandle]:
        """Register the hooks, yielding the handle of each."""

    def enable(self) -> None:
        """Put the hooks on."""
        if not self._handles:
            self._handles = tuple(self.hooks())

    def disable(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = ()

    def remove(self) -> None:
        """Switch it off; nothing else was changed."""
        self.disable()
