"""Snapshots leave the catalog: their record, their directory, and what of their bytes nothing else refers to."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from weightd.core.digest import Digest
from weightd.engine.api import Evicted
from weightd.engine.catalog import Catalog
from weightd.engine.held import Blob, Model
from weightd.engine.published import Published


class Remover:
    """On the event loop. `gone` is called of each snapshot that was removed."""

    def __init__(self, catalog: Catalog, published: Published, gone: Callable[[Model], None]) -> None:
        self._catalog, self._published, self._gone = catalog, published, gone

    async def remove(self, model: Model, may_go: Callable[[], bool]) -> Evicted | None:
        """What left each tier; None where `may_go`, asked when nothing can change any more, says no, or where something
        under way counts on it."""
        catalog = self._catalog
        async with self._unchanging(lambda: self.own(model)) as own:
            if model not in catalog.snapshots or not may_go() or any(catalog.wanted(b.record.digest) for b in own):
                return None
            left = Evicted(_shm(own), 0, sum(b.footprint for b in own))
            try:
                await self._published.forget(model, own)
            finally:
                if model not in catalog.snapshots:  # Else its record could not go.
                    self._gone(model)
            return left

    @asynccontextmanager
    async def _unchanging(self, which: Callable[[], list[Blob]]) -> AsyncGenerator[list[Blob]]:
        """Nothing is published, nor one of these blobs recorded or dropped; which they are is asked in between."""
        catalog = self._catalog
        async with AsyncExitStack() as locks:
            await locks.enter_async_context(catalog.publishing)
            await locks.enter_async_context(catalog.dropping)
            blobs = which()
            for blob in sorted(blobs, key=lambda b: b.record.digest):
                await locks.enter_async_context(catalog.recording(blob.record.digest))
            yield blobs

    def own(self, model: Model) -> list[Blob]:
        """Which no other snapshot has."""
        others: set[Digest] = set()
        for other in self._catalog.snapshots:
            if other is not model:
                others.update(other.digests.values())
        return [b for b in set(model.blobs.values()) if b.record.digest not in others]

    async def remove_unnamed(self, blobs: list[Blob]) -> None:
        """Those that no snapshot has, as a fetch leaves them that failed after some of its files had come."""
        catalog = self._catalog
        async with self._unchanging(lambda: blobs):
            for blob in blobs:
                if catalog.unnamed(blob) and not catalog.wanted(blob.record.digest):
                    await self._published.forget_blob(blob)


def _shm(blobs: list[Blob]) -> int:
    return sum(b.footprint for b in blobs if b.in_shm)
