"""Segments that an earlier process left are taken over when they prove to be what was recorded."""

from __future__ import annotations

import asyncio
import enum
import logging
import threading
from collections.abc import Callable
from typing import Final

import xxhash

from weightd.core.digest import Digest
from weightd.core.errors import Corruption, NotFound, WeightdError
from weightd.core.lifecycle import Residency
from weightd.core.parts import plan_parts
from weightd.engine.catalog import Catalog
from weightd.engine.held import Blob, Model
from weightd.kernel import step_back
from weightd.storage.owners import boot_id
from weightd.storage.protocols import Segment, SegmentIdentity
from weightd.storage.state import SegmentRecord
from weightd.threads import in_own_thread

log = logging.getLogger(__name__)

READERS: Final = 4
"""Threads that compare checksums at the start, while nobody is served."""
RETRY_S: Final = 5.0
"""After what kept a segment from being compared in the background."""


class Adoption(enum.Enum):
    """How far adopted segments are compared with the checksums of their parts. Their identity, size, owner and mode
    always are."""

    FULL = "full"
    """All, before anything is served."""
    LAZY = "lazy"
    """All, in the background, while they are served: they were verified before they were sealed, and since then only
    root and the daemon's own user could have altered them."""
    OFF = "off"
    """Nothing is adopted."""


class Adopter:
    """On the event loop. `damaged` is called of a blob whose segment is not what it should be, and goes."""

    def __init__(self, catalog: Catalog, how: Adoption, damaged: Callable[[Blob], None]) -> None:
        self._catalog, self._how, self._damaged = catalog, how, damaged
        self.adopted: list[Blob] = []
        self._unread: list[Blob] = []

    async def start(self) -> None:
        """After the blobs are known, and before anything is allocated. What is not adopted is unlinked."""
        catalog = self._catalog
        records = await catalog.write(catalog.state.segments)
        for record in await self._by_use(records):
            await self._adopt(record)
        if self.adopted:
            await self._complete()
        if self._how is Adoption.FULL:
            await self._compare_all()
        names = {b.segment.name for b in self.adopted if b.segment is not None}
        await catalog.io(catalog.segments.drop_leftovers, names)
        gone = {r.digest for r in records} - {b.record.digest for b in self.adopted}
        await catalog.write(catalog.state.drop_segments, gone)
        self._unread = list(self.adopted) if self._how is Adoption.LAZY else []

    async def _by_use(self, records: list[SegmentRecord]) -> list[SegmentRecord]:
        """Those that can be adopted, the last used first: what no longer fits the budget is not."""
        catalog = self._catalog
        used: dict[Digest, float] = {}
        for model in await catalog.write(catalog.state.models):
            for digest in model.digests.values():
                used[digest] = max(used.get(digest, 0.0), model.last_used)
        boot = boot_id() if self._how is not Adoption.OFF else ""
        ours = [r for r in records if r.boot == boot and r.digest in catalog.blobs]
        return sorted(ours, key=lambda r: -used.get(r.digest, 0.0))

    async def _adopt(self, record: SegmentRecord) -> None:
        catalog, blob = self._catalog, self._catalog.blobs[record.digest]
        size, identity = blob.record.size, SegmentIdentity(record.device, record.inode)
        if blob.footprint > catalog.shm.left:
            return
        segment = await catalog.io(catalog.segments.adopt, record.name, size, identity)
        if segment is None:
            log.info("segment %s is not what was recorded, and is not adopted", record.name)
            return
        self._take(blob, segment)

    async def _complete(self) -> None:
        """Files of 0 bytes have no object that could have stayed."""
        for blob in self._catalog.blobs.values():
            if not blob.record.size:
                segment = await self._catalog.io(self._catalog.segments.create, "empty", 0)
                await self._catalog.io(segment.seal)
                self._take(blob, segment)

    def _take(self, blob: Blob, segment: Segment) -> None:
        blob.shm.to(Residency.FILLING)
        blob.shm.to(Residency.RESIDENT)
        blob.segment = segment
        self._catalog.shm.adopt(blob.footprint)
        self.adopted.append(blob)

    async def _compare_all(self) -> None:
        turns = asyncio.Semaphore(READERS)

        async def compare(blob: Blob) -> None:
            async with turns:
                await self._compare(blob)

        try:
            async with asyncio.TaskGroup() as group:
                for blob in list(self.adopted):
                    group.create_task(compare(blob))
        except* (WeightdError, OSError) as e:
            raise e.exceptions[0] from None

    async def read_on(self) -> None:
        """Those that are served and were not yet compared, one after the other, beside everything else."""
        while self._unread:
            blob = self._unread[0]
            try:
                await self._compare(blob)
            except (WeightdError, OSError) as e:
                log.warning("segment of blob %s cannot be compared or dropped now: %s", blob.record.digest, e)
                self._unread.append(blob)  # Again, after all others.
                await asyncio.sleep(RETRY_S)
            self._unread.pop(0)

    async def _compare(self, blob: Blob) -> None:
        stopping = threading.Event()
        sound = await in_own_thread(lambda: checksums_fit(blob, stopping), stopping.set, "weightd-adopt")
        if not sound and blob.in_shm:
            log.warning("segment of blob %s is not what was sealed, and is dropped", blob.record.digest)
            self.adopted.remove(blob)
            self._damaged(blob)
            await self._catalog.detach(blob)

    def models(self) -> list[Model]:
        """Snapshots that have any of them."""
        return [m for m in self._catalog.snapshots if any(m.has(b) for b in self.adopted)]


def checksums_fit(blob: Blob, stopping: threading.Event) -> bool:
    """Blocking. Whether each part of its segment has its recorded checksum; True when it is stopped."""
    step_back()
    record, segment = blob.record, blob.segment
    if segment is None:
        return True
    try:
        with segment.opened() as view:
            for part, checksum in zip(plan_parts(record.size, record.part_size), blob.checksums(), strict=True):
                if stopping.is_set():
                    return True
                with view[part.offset : part.offset + part.length] as piece:
                    if xxhash.xxh3_128_digest(piece) != checksum:
                        return False
    except (Corruption, NotFound):
        return False
    return True
