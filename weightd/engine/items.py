"""One file that is being brought: its claim, its reservation, its ingest and segment, until it is committed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import partial

from weightd.core.digest import Digest
from weightd.core.manifest import FileSpec
from weightd.engine.buffers import Buffers, SegmentBuffers
from weightd.engine.catalog import Blob, Catalog, Model
from weightd.engine.flights import Flight
from weightd.engine.jobs import FileJob
from weightd.sources.protocols import Source
from weightd.storage.pages import footprint
from weightd.storage.protocols import BlobStore, Ingest, Segment


@dataclass(slots=True)
class Claim:
    """Who is bringing a file; `blob` is settled when it is committed, or cancelled when it will not be."""

    flight: Flight[Model]
    blob: asyncio.Future[Blob]
    item: Item


@dataclass(slots=True, eq=False)
class Item:
    """A file that is not yet where it is wanted.

    `held` is its blob when it is on NVMe already and only has to be loaded. `expected` is the digest it must have,
    whoever said so; `given` is the one that counts as verification. `keys` name its bytes: two items that have one in
    common are one. `paths` are all files of the manifest that it serves.
    """

    keys: frozenset[str]
    file: FileSpec
    expected: Digest | None
    held: Blob | None
    into_shm: bool
    reserved_shm: int = 0
    reserved_nvme: int = 0
    segment: Segment | None = None
    ingest: Ingest | None = None
    job: FileJob | None = None
    committed: bool = field(default=False)
    paths: list[str] = field(default_factory=list)

    @property
    def given(self) -> Digest | None:
        return self.file.digest

    @property
    def done(self) -> int:
        """Bytes here so far."""
        if self.committed:
            return self.file.size
        return self.job.done if self.job else 0

    def reserve(self, catalog: Catalog, ref: str) -> None:
        """Raises BudgetExceeded; then nothing of this item is reserved."""
        size = footprint(self.file.size)
        if self.held is None:
            catalog.nvme.reserve(size, ref)
            self.reserved_nvme = size
        if self.into_shm:
            try:
                catalog.shm.reserve(size, ref)
            except BaseException:
                catalog.nvme.cancel(self.reserved_nvme)
                self.reserved_nvme = 0
                raise
            self.reserved_shm = size

    def unreserve(self, catalog: Catalog) -> None:
        """Idempotent."""
        catalog.nvme.cancel(self.reserved_nvme)
        catalog.shm.cancel(self.reserved_shm)
        self.reserved_nvme = self.reserved_shm = 0

    def allocate(self, catalog: Catalog) -> None:
        """Blocking: segment and ingest. Raises ShmFull or DiskFull; `discard` removes what there is."""
        if self.into_shm:
            self.segment = catalog.segments.create(self._label(), self.file.size)
        if self.held is None:
            self.ingest = catalog.store.ingest(self.file.size)

    def _label(self) -> str:
        name = self.file.path.rsplit("/", 1)[-1]
        return "".join(c if c.isascii() and c.isalnum() else "-" for c in name)[:24]

    def make_job(self, part_size: int, sources: Source, store: BlobStore, slabs: Buffers | None) -> None:
        """Sets `job`, or leaves it None for an empty file, which has nothing to move."""
        if self.file.size == 0:
            return
        buffers: Buffers | None = SegmentBuffers(self.segment) if self.segment else slabs
        if buffers is None:
            raise AssertionError("neither a segment nor slabs")
        if self.held is None:
            self.job = FileJob(
                self.file.path,
                self.file.size,
                part_size=part_size,
                reader=partial(sources.reader, self.file),
                buffers=buffers,
                ranges=self.file.ranges,
                write=self.ingest.write if self.ingest else None,
            )
            return
        record = self.held.record
        self.job = FileJob(
            self.file.path,
            self.file.size,
            part_size=record.part_size,
            reader=partial(BlobReader, store, record.digest),
            buffers=buffers,
            expected=self.held.checksums(),
        )

    def discard(self) -> None:
        """Blocking: a segment that no blob took over and an ingest that was not committed go. Idempotent."""
        try:
            if self.segment is not None:
                self.segment.unlink()
        finally:
            if self.ingest is not None:
                self.ingest.abort()


class BlobReader:
    """A blob on NVMe as a `Reader`, so that loading is a transfer like any other."""

    def __init__(self, store: BlobStore, digest: Digest) -> None:
        self._store, self._digest = store, digest
        self._offset = 0

    def start(self, offset: int, length: int) -> None:
        self._offset = offset

    def readinto(self, view: memoryview) -> int:
        self._store.read(self._digest, self._offset, view)
        self._offset += len(view)
        return len(view)

    def finish(self) -> None:
        """The blob's size was checked when it was found."""

    def abort(self) -> None:
        """Reads of a disk end by themselves."""

    def close(self) -> None:
        """Nothing is kept open."""
