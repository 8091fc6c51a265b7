"""Whether what is about to be moved fits where it goes: asked as a whole, before the first byte comes."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from weightd.core.errors import DiskFull
from weightd.engine.catalog import Catalog
from weightd.engine.items import Item
from weightd.engine.kept import KeptIngests
from weightd.storage.kept import missing
from weightd.storage.pages import footprint


class Room:
    """Counts what the files of all transfers under way will take once their turn comes: segments and ingests are made
    one by one, so that what is free on the file systems is not yet what is left. On the event loop."""

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
        waiting = [i for items in self._moving for i in items if not i.opened]
        shm = sum(footprint(i.file.size) for i in waiting if i.into_shm)
        await self._catalog.io(self._catalog.segments.check_room, shm)
        while True:
            kept = self._kept.sizes()
            disk = sum(missing(i.file.size, i.identities, kept) for i in waiting if i.held is None)
            try:
                await self._catalog.io(self._catalog.store.check_room, disk)
            except DiskFull:
                if not await self._kept.drop_oldest():
                    raise
            else:
                return
