"""Whether what is about to be moved fits where it goes: asked as a whole, before the first byte comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

from weightd.core.budget import Budget
from weightd.engine.api import Tier
from weightd.engine.catalog import Catalog
from weightd.engine.evict import Evictor
from weightd.engine.items import Item
from weightd.storage.kept import missing
from weightd.storage.pages import footprint


class Room:
    """Counts what the files of all transfers under way will still take: ingests are made when their turn comes, and the
    pages of segments part by part, so that what is free on the file systems is not yet what is left. On the event
    loop. Where something is missing, kept ingests give way first, then models that nobody uses."""

    def __init__(self, catalog: Catalog, evictor: Evictor) -> None:
        self._catalog, self._evictor = catalog, evictor
        self._moving: list[list[Item]] = []
        self._turn = asyncio.Lock()

    async def reserve(self, items: list[Item], ref: str) -> None:
        """In both budgets, all of it or nothing: of two models that do not fit together one gets all that it needs.
        Raises BudgetExceeded, which says what holds the space."""
        catalog = self._catalog
        async with self._turn:
            fetched = sum(footprint(i.file.size) for i in items if i.held is None)
            while fetched > catalog.nvme.left and await catalog.kept.drop_oldest():
                pass
            await self._evictor.make_room(Tier.NVME, _lacking(catalog.nvme, fetched), f"for {ref}")
            wanted = sum(footprint(i.file.size) for i in items if i.into_shm)
            await self._evictor.make_room(Tier.SHM, _lacking(catalog.shm, wanted), f"for {ref}")
            _refuse(catalog.nvme, fetched, ref, lambda: self._evictor.holders(Tier.NVME))
            _refuse(catalog.shm, wanted, ref, lambda: self._evictor.holders(Tier.SHM))
            for item in items:  # All of it is there, and nobody comes in between.
                item.reserve(catalog, ref)

    @asynccontextmanager
    async def taken_by(self, items: list[Item], ref: str) -> AsyncGenerator[None]:
        """Raises ShmFull or DiskFull unless they fit beside what else is under way."""
        self._moving.append(items)
        try:
            await self._check(f"for {ref}")
            yield
        finally:
            self._moving.remove(items)

    async def _check(self, why: str) -> None:
        if not await self._evictor.make_room(Tier.SHM, self._missing_shm, why):
            await self._catalog.io(self._catalog.segments.check_room, await self._wanted_shm())
        while (short := await self._missing_disk()) > 0 and await self._catalog.kept.drop_oldest():
            pass
        if short > 0 and not await self._evictor.make_room(Tier.NVME, self._missing_disk, why):
            await self._catalog.io(self._catalog.store.check_room, self._wanted_disk())

    def _wanted_disk(self) -> int:
        kept = self._catalog.kept.sizes()
        waiting = [i for i in self._items() if not i.opened and i.held is None]
        return sum(missing(i.file.size, i.identities, kept) for i in waiting)

    async def _missing_disk(self) -> int:
        return self._wanted_disk() - await self._catalog.io(self._catalog.store.free)

    async def _missing_shm(self) -> int:
        # Before it is asked what others still take: what they take in between counts as had, never twice.
        free = await self._catalog.io(self._catalog.segments.free)
        return await self._wanted_shm() - free

    async def _wanted_shm(self) -> int:
        takers = self._takers()
        made = [i.segment for i in takers if i.segment is not None]
        wanted = sum(footprint(i.file.size) for i in takers if i.segment is None and not i.discarded)
        return wanted + await self._catalog.io(lambda: sum(s.unbacked for s in made))

    def _takers(self) -> list[Item]:
        return [i for i in self._items() if i.into_shm and not i.committed]

    def filling_shm(self) -> Callable[[], int]:
        """Counts the bytes that open segments have taken so far; blocking."""
        made = [(i.segment, footprint(i.file.size)) for i in self._takers() if i.segment is not None]
        return lambda: sum(size - segment.unbacked for segment, size in made)

    def filling_nvme(self) -> int:
        """Bytes of open ingests, which take all of theirs when they are made."""
        return sum(footprint(i.file.size) for i in self._items() if i.opened and i.held is None and not i.committed)

    def _items(self) -> Iterator[Item]:
        return (i for items in self._moving for i in items)


def _lacking(budget: Budget, size: int) -> Callable[[], Awaitable[int]]:
    async def lacking() -> int:
        return size - budget.left

    return lacking


def _refuse(budget: Budget, size: int, ref: str, holders: Callable[[], str]) -> None:
    """Only to raise, as a whole, what its parts would raise one by one."""
    if size > budget.left:
        budget.reserve(size, ref, holders())
