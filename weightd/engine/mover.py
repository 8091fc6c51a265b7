"""Moves items: allocate, transfer, verify, commit, seal. Either an item is committed, or nothing of it stays.

Room is asked for as a whole, and made file by file: one is opened when the transfer comes to it, and closed when it is
committed. So the number of files that are open does not grow with that of the model.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import msgspec

from weightd.core.errors import (
    Corruption,
    DiskFull,
    FormatError,
    NotFound,
    ShmFull,
    SourceChanged,
    WeightdError,
)
from weightd.core.lifecycle import Residency
from weightd.core.manifest import FileSpec
from weightd.engine.api import EventKind
from weightd.engine.buffers import SlabBuffers
from weightd.engine.catalog import Catalog
from weightd.engine.checks import Found, check_format, check_whole, verified
from weightd.engine.counts import Counts
from weightd.engine.flights import Flight
from weightd.engine.held import Blob, Model
from weightd.engine.items import Item
from weightd.engine.jobs import FileJob
from weightd.engine.lanes import Lanes
from weightd.engine.mend import Mender, mended_text
from weightd.engine.room import Room
from weightd.engine.transfer import Stopped, Transfer, TransferOptions
from weightd.sources.protocols import Source
from weightd.storage.state import BlobRecord
from weightd.threads import finish, in_own_thread


class DamagedBlob(Exception):
    """A blob on NVMe failed its check while it was loaded."""

    def __init__(self, blob: Blob, reason: str) -> None:
        super().__init__(reason)
        self.blob = blob


@dataclass(frozen=True, slots=True)
class _Run:
    """One move: for whom, whether it may take further parts, what is told of each committed item."""

    flight: Flight[Model]
    going: threading.Event
    committed: Callable[[Item, Blob], None]
    stopping: threading.Event = field(default_factory=threading.Event)
    sealed: list[Blob] = field(default_factory=list)


@dataclass(slots=True)
class Mover:
    """`lanes` bounds how many transfers run at once, `options` how many threads each has, and files open."""

    catalog: Catalog
    sources: Source
    options: TransferOptions
    lanes: Lanes
    room: Room
    counts: Counts

    async def move(
        self, items: list[Item], ref: str, flight: Flight[Model], committed: Callable[[Item, Blob], None]
    ) -> None:
        """Bring all `items`; `committed` is called on the loop for each. Raises the first error, DamagedBlob among
        them; every item that was committed until then stays."""
        names = self.catalog.kept.claim(i for item in items for i in item.identities)
        try:
            await self.room.reserve(items, ref)
            async with self.lanes.enter(flight) as going, self.room.taken_by(items, ref):
                await self._move(items, _Run(flight, going, committed))
        finally:
            for item in items:
                item.unreserve(self.catalog)
            self.catalog.kept.release(names)
            await self.catalog.kept.refresh()

    async def _move(self, items: list[Item], run: _Run) -> None:
        slabs = None
        try:
            size_of = self.options.part_sizes(i.file for i in items)
            sizes = [min(size_of(i.file), i.file.size) for i in items if not i.into_shm]
            if sizes:
                slabs = SlabBuffers(self.options.slabs, max(sizes))
            await self._transfer(items, slabs, run, size_of)
        except ShmFull:
            # It was not foreseen, so others need what is left: what came is on NVMe, and loaded when it fits.
            await self.catalog.detach_unused(run.sealed)
            raise
        finally:
            await self.catalog.io(_discard, items, slabs)

    async def _dropped(self) -> None:
        async with self.catalog.dropping:
            pass

    def _open(self, item: Item, part_size: int, slabs: SlabBuffers | None, loop: asyncio.AbstractEventLoop) -> FileJob:
        """In a thread of the transfer, which its error stops."""
        if self.catalog.dropping.locked():  # What is being put aside now is there to be resumed.
            asyncio.run_coroutine_threadsafe(self._dropped(), loop).result()
        while True:
            try:
                item.allocate(self.catalog, part_size)
            except DiskFull:
                if not asyncio.run_coroutine_threadsafe(self.catalog.kept.drop_oldest(), loop).result():
                    raise
            else:
                return item.make_job(self.sources, self.catalog.store, slabs)

    async def _transfer(
        self, items: list[Item], slabs: SlabBuffers | None, run: _Run, size_of: Callable[[FileSpec], int]
    ) -> None:
        """Each file is committed as soon as it is complete, while the others still come."""
        loop = asyncio.get_running_loop()
        by_job: dict[FileJob, Item] = {}
        commits: set[asyncio.Task[None]] = set()
        failures: list[BaseException] = []

        def opened(item: Item) -> FileJob:
            job = self._open(item, size_of(item.file), slabs, loop)
            by_job[job] = item
            return job

        async def commit(item: Item) -> None:
            try:
                run.committed(item, await self._commit(item, run))
                self._count(item)
                await self.catalog.io(item.discard)
            except BaseException as e:  # noqa: BLE001 - raised at the end
                item.refused = isinstance(e, Corruption)
                failures.append(e)
                run.stopping.set()
                transfer.stop()
            finally:
                transfer.closed()

        def received(job: FileJob) -> None:
            loop.call_soon_threadsafe(begin, by_job.pop(job))

        def begin(item: Item) -> None:
            task = loop.create_task(commit(item))
            commits.add(task)
            task.add_done_callback(commits.discard)

        pending = [i.pending(size_of(i.file), partial(opened, i)) for i in items]
        transfer = Transfer(pending, self.options, received, run.going)
        try:
            await self._run_transfer(transfer, items)
        except BaseException:
            run.stopping.set()
            raise
        finally:
            # A commit that began ends, even when this is cancelled: nothing is left half done.
            await finish(asyncio.ensure_future(asyncio.gather(*commits, return_exceptions=True)), run.stopping.set)
        if failures:
            raise failures[0]

    def _count(self, item: Item) -> None:
        if item.held is None:
            self.counts.bytes_fetched += item.file.size
        else:
            self.counts.bytes_loaded += item.file.size

    async def _run_transfer(self, transfer: Transfer, items: list[Item]) -> None:
        try:
            await in_own_thread(transfer.run, transfer.stop, "weightd-transfer")
        except Stopped:
            pass
        except (Corruption, NotFound, SourceChanged) as e:
            self._raise_damaged(items, e)

    @staticmethod
    def _raise_damaged(items: list[Item], error: WeightdError) -> None:
        item = next((i for i in items if i.file.path == error.file), None)
        if item is not None and item.held is not None:
            raise DamagedBlob(item.held, error.message) from error
        if item is not None:
            # An answer that is too long, or none, says nothing of the parts that came before it.
            item.refused = isinstance(error, (SourceChanged, FormatError))
        raise error

    async def _commit(self, item: Item, run: _Run) -> Blob:
        if item.held is not None:
            return await self._commit_load(item, item.held, run)
        job = item.job
        if job is None:
            raise AssertionError("a commit of what was not received")
        found = job.found() if job.crc is None else await self.catalog.io(job.found)
        if not item.promise.kept_by(found):
            found = await self._mend(item, run) or found
        check_whole(found, item.promise, item.file.path)
        blob = await self._commit_fetch(item, found)
        if item.segment is not None:
            await self._seal(item, blob, run)
        item.committed = True
        return blob

    async def _mend(self, item: Item, run: _Run) -> Found | None:
        """What the file is now, if that is what it should be."""
        if item.job is None or item.ingest is None or not item.file.by_parts:
            return None
        self.sources.distrust(item.file)
        view = item.segment.view if item.segment else None
        mender = Mender(item.job, item.ingest.read, view, options=self.options, stopping=run.stopping)
        mended = await in_own_thread(partial(mender.run, item.promise), run.stopping.set, "weightd-mend")
        if mended is None:
            return None
        run.flight.report(EventKind.REPAIRED, mended_text(item.file.path, mended.parts, len(item.job.parts)))
        return mended.found

    async def _commit_load(self, item: Item, blob: Blob, run: _Run) -> Blob:
        await self._seal(item, blob, run)
        item.committed = True
        return blob

    async def _commit_fetch(self, item: Item, found: Found) -> Blob:
        ingest, digest = item.ingest, found.digest
        if ingest is None:
            raise AssertionError("a fetch without an ingest")
        view = item.segment.view if item.segment and item.file.size else None
        await self.catalog.io(check_format, item.file.path, item.file.size, view, ingest.read)
        verification = verified(item.file, found)
        checksums = b"".join(item.job.checksums) if item.job else b""
        record = BlobRecord(digest, item.file.size, verification, item.part_size, checksums, time.time())
        async with self.catalog.recording(digest):
            known = self.catalog.blobs.get(digest)
            if known is not None:
                if known.record.verification >= verification:
                    record = known.record
                # What came now is not what stays on disk.
                record = msgspec.structs.replace(record, last_verified=known.record.last_verified)
                return await self.catalog.record(record, item.file.source_key, item.deliverer)
            await self.catalog.io(ingest.commit, digest)
            return await self._record_first(item, record)

    async def _record_first(self, item: Item, record: BlobRecord) -> Blob:
        try:
            blob = await self.catalog.record(record, item.file.source_key, item.deliverer)
        except BaseException:
            # A blob without a record cannot be proven, and no budget counts it.
            await self.catalog.io(self.catalog.store.delete, record.digest)
            raise
        self.catalog.nvme.settle(item.reserved_nvme)
        item.reserved_nvme = 0
        return blob

    async def _seal(self, item: Item, blob: Blob, run: _Run) -> None:
        """The segment becomes the blob's, unless it has one already: then ours was not needed."""
        if item.segment is None or blob.shm.state is not Residency.ABSENT:
            return
        blob.shm.to(Residency.FILLING)
        try:
            await self.catalog.io(item.segment.seal)
        except BaseException:
            blob.shm.to(Residency.ABSENT)
            raise
        segment, item.segment = item.segment, None
        self.catalog.sealed(blob, segment)
        run.sealed.append(blob)
        self.catalog.shm.settle(item.reserved_shm)
        item.reserved_shm = 0


def _discard(items: list[Item], slabs: SlabBuffers | None) -> None:
    """All of them, whatever one of them raises."""
    with ExitStack() as stack:
        if slabs is not None:
            stack.callback(slabs.close)
        for item in items:
            stack.callback(item.discard)
