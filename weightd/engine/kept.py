"""Ingests that wait to be resumed: they take room of the NVMe budget, and give way to what is wanted now."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from weightd.core.budget import Budget
from weightd.storage.kept import Kept, by_stem, name_of
from weightd.storage.protocols import BlobStore


class KeptIngests:
    """On the event loop. `io` runs a blocking call."""

    def __init__(self, store: BlobStore, budget: Budget, io: Callable[..., Awaitable[Any]]) -> None:
        self._store, self._budget, self._io = store, budget, io
        self._kept: list[Kept] = []
        self._claimed: dict[str, int] = {}

    async def refresh(self) -> None:
        """Count what is kept now. After every transfer, and at the start."""
        self._kept = await self._io(self._store.kept)
        self._count()

    def claim(self, identities: Iterable[str]) -> list[str]:
        """These are about to be resumed, and counted as such; returns what `release` takes."""
        names = [name_of(i) for i in identities]
        for name in names:
            self._claimed[name] = self._claimed.get(name, 0) + 1
        self._count()
        return names

    def release(self, names: list[str]) -> None:
        """The counterpart of `claim`."""
        for name in names:
            self._claimed[name] -= 1
            if not self._claimed[name]:
                del self._claimed[name]

    async def drop_oldest(self) -> bool:
        """Make room; False when nothing is kept that nobody wants now."""
        waiting = self._waiting()
        if not waiting:
            return False
        self._kept.remove(waiting[0])
        await self._io(self._store.drop_kept, waiting[0])
        self._count()
        return True

    def sizes(self) -> dict[str, int]:
        """Bytes on disk, by the name of their identity, claimed or not."""
        return by_stem(self._kept)

    def _waiting(self) -> list[Kept]:
        return [k for k in self._kept if k.stem not in self._claimed]

    def _count(self) -> None:
        self._budget.kept = sum(k.size for k in self._waiting())

    def __len__(self) -> int:
        return len(self._kept)
