"""Whether what is about to be moved fits where it goes: asked as a whole, before the first byte comes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager

from weightd.core.errors import DiskFull
from weightd.engine.catalog import Catalog
from weightd.engine.items import Item
from weightd.engine.kept import KeptIngests
from weightd.storage.kept import missing
from weightd.storage.pages import footprint


class Room:
    """Counts what the files of all transfers under way will still take: ingests are made when their turn comes, and the
    pages of segments part by part, so that what is free on the file systems is not yet what is left. On the event
    loop."""

    def __init__(self, catalog: Catalog, kept: KeptIngests) -> None:
        self._catalog, self._kept = catalog, kept
        self._moving: list[list[Item]] = []

    @asynccontextmanager
    async def taken_by(self, items: list[Item]) -> AsyncGenerator[None]:
        """Raises ShmFull or DiskFull unless they fit beside what else is under way. Kept ingests give way to them."""
        self._moving.append(items)
        try:
            await self._check()
            yield
        finally:
            self._moving.remove(items)

    async def _check(self) -> None:
        await self._check_shm()
        while True:
            kept = self._kept.sizes()
            waiting = [i for i in self._items() if not i.opened and i.held is None]
            disk = sum(missing(i.file.size, i.identities, kept) for i in waiting)
            try:
                await self._catalog.io(self._catalog.store.check_room, disk)
            except DiskFull:
                if not await self._kept.drop_oldest():
                    raise
            else:
                return

    async def _check_shm(self) -> None:
        segments = self._catalog.segments
        # Before it is asked what others still take: what they take in between counts as had, never twice.
        free = await self._catalog.io(segments.free)
        takers = [(i.segment, i) for i in self._items() if i.into_shm and not i.committed]
        made = [segment for segment, _ in takers if segment is not None]
        wanted = sum(footprint(i.file.size) for segment, i in takers if segment is None and not i.discarded)
        wanted += await self._catalog.io(lambda: sum(s.unbacked for s in made))
        if wanted > free:
            await self._catalog.io(segments.check_room, wanted)

    def _items(self) -> Iterator[Item]:
        return (i for items in self._moving for i in items)
