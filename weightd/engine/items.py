"""One file that is being brought: its claim, its reservation, its ingest and segment, until it is committed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from weightd.core.digest import Digest
from weightd.core.manifest import FileSpec
from weightd.engine.buffers import Buffers, SegmentBuffers
from weightd.engine.catalog import Catalog
from weightd.engine.checks import Promise, promise_of
from weightd.engine.heads import Again, Write, checked, has_head
from weightd.engine.held import Blob
from weightd.engine.jobs import FileJob
from weightd.engine.tasks import Pending
from weightd.sources.protocols import Source
from weightd.storage.pages import footprint
from weightd.storage.protocols import BlobStore, Ingest, Segment

LOADERS = 8
"""Threads that read one drive: 4 to 8 reach its limit (measured, DESIGN §4)."""


@dataclass(slots=True, eq=False)
class Item:
    """A file that is not yet where it is wanted.

    `held` is its blob when it is on NVMe already and only has to be loaded. `expected` is the digest it must have,
    whoever said so; only `file.digest` counts as verification. `keys` name its bytes: two items that have one in
    common are one. `paths` are all files of the manifest that it serves. `ref`, by its text: whose source is asked.
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
    repairing: bool = False
    """What is kept of it is a damaged blob, whose sound parts are right whatever the origin serves now."""
    refused: bool = field(default=False)
    """Its bytes are not those that were promised: nothing of them is kept."""
    part_size: int = 0
    opened: bool = field(default=False)
    """Its ingest was made, or is being made: the disk knows of it."""
    discarded: bool = field(default=False)
    paths: list[str] = field(default_factory=list)
    ref: str = ""
    label: str = ""
    """Says whose ingests it may go on with: of its ref alone, "" for all; see `tenant_rights.Rights.label`."""
    entitled: bool = True
    """Bytes of its digest, whoever brought them, may stand for its ref."""
    anonymous: bool = False
    """Nobody else is to know of what it is: tenants can list the names of segments."""

    @property
    def promise(self) -> Promise:
        return promise_of(self.file, self.expected)

    @property
    def done(self) -> int:
        """Bytes here so far."""
        if self.committed:
            return self.file.size
        job = self.job  # another thread may be done with it
        return job.done if job else 0

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

    @property
    def identities(self) -> list[str]:
        """Under which an ingest of it is kept, and found again; none where nothing could prove what was kept, or
        where the origin has no ranges, so that all would come again anyway."""
        if self.held is not None or not self.file.by_parts:
            return []
        names = [i for i in (self.expected or "", self.file.source_key) if i]
        return [n if not self.label or (self.entitled and n == self.expected) else f"{n}@{self.label}" for n in names]

    @property
    def deliverer(self) -> str:
        """Text of its ref, if the source of that sent all of its bytes: not where it went on with what others may have
        left, or with what of a damaged blob was sound."""
        resumed = self.ingest.resumed if self.ingest is not None else ""
        return self.ref if not resumed or (self.label and resumed.endswith(f"@{self.label}")) else ""

    def pending(self, part_size: int, open: Callable[[], FileJob]) -> Pending:
        """As a transfer knows it before its turn comes; `part_size` is that of new ingests."""
        if self.held is not None:
            return Pending(-(-self.file.size // self.held.record.part_size), True, open)
        return Pending(-(-self.file.size // part_size), self.file.by_parts, open, has_head(self.file.path))

    def allocate(self, catalog: Catalog, part_size: int) -> None:
        """Blocking: segment and ingest, if they are not there. Raises ShmFull or DiskFull; `discard` removes what
        there is. Sets `part_size`, which for what is on disk already is that of its record."""
        self.opened = True
        if self.into_shm and self.segment is None:
            self.segment = catalog.segments.create(self._label(), self.file.size)
        if self.held is not None:
            self.part_size = self.held.record.part_size
        elif self.ingest is None:
            self.ingest = catalog.store.ingest(self.file.size, self.identities, part_size)
            self.part_size = self.ingest.part_size or part_size

    def _label(self) -> str:
        if self.anonymous:
            return "blob"
        name = self.file.path.rsplit("/", 1)[-1]
        return "".join(c if c.isascii() and c.isalnum() else "-" for c in name)[:24]

    def make_job(self, sources: Source, store: BlobStore, slabs: Buffers | None) -> FileJob:
        """Sets `job`."""
        buffers: Buffers | None = SegmentBuffers(self.segment) if self.segment else slabs
        if buffers is None:
            raise AssertionError("neither a segment nor slabs")
        if self.held is None:
            if self.ingest is None:
                raise AssertionError("a fetch without an ingest")
            write, abort = self._written(sources, self.ingest.write)
            job = self.job = FileJob(
                self.file.path,
                self.file.size,
                part_size=self.part_size,
                reader=partial(sources.reader, self.file),
                width=partial(sources.width, self.file),
                receiver=partial(sources.reader, self.file, buffers.shared(self.part_size)),
                buffers=buffers,
                ranges=self.file.by_parts,
                write=write,
                abort=abort,
                record=self.ingest.record if self.ingest.part_size else None,
                held=self.ingest.held,
                local=partial(LocalReader, self.ingest.read),
                crc=self.file.crc_algorithm,
                git=self.file.by_git_id,
            )
            return job
        record = self.held.record
        job = self.job = FileJob(
            self.file.path,
            self.file.size,
            part_size=self.part_size,
            reader=partial(LocalReader, partial(store.read, record.digest)),
            buffers=buffers,
            expected=self.held.checksums(),
            width=lambda: LOADERS,
        )
        return job

    def _written(self, sources: Source, write: Write) -> tuple[Write, Callable[[], None]]:
        """What writes a part, and what ends its questions."""
        file, again = self.file, Again(partial(sources.reader, self.file))
        if self.promise == Promise(None, None):
            return checked(write, file.path, file.size, None), again.abort
        # What comes as one stream is not asked for a second time.
        return checked(write, file.path, file.size, again) if file.by_parts else write, again.abort

    def discard(self) -> None:
        """Blocking: a segment that no blob took over goes, and an ingest that was not committed is kept to be
        resumed, or goes too; nothing of it is open any more. Idempotent."""
        self.discarded = True
        segment, ingest, self.segment, self.ingest, self.job = self.segment, self.ingest, None, None, None
        try:
            if segment is not None:
                segment.unlink()
        finally:
            if ingest is not None:
                # One that was not needed, because its bytes were here already, is not kept either.
                ingest.abort() if (self.refused and not self.repairing) or self.committed else ingest.keep()


class LocalReader:
    """A blob or an ingest on NVMe as a `Reader`, so that loading is a transfer like any other."""

    def __init__(self, read: Callable[[int, memoryview], None]) -> None:
        self._read = read
        self._offset = 0

    def start(self, offset: int, length: int) -> None:
        self._offset = offset

    def readinto(self, view: memoryview) -> int:
        self._read(self._offset, view)
        self._offset += len(view)
        return len(view)

    def finish(self) -> None:
        """The blob's size was checked when it was found."""

    def abort(self, *, slow: bool = False) -> None:
        """Reads of a disk end by themselves."""

    def close(self) -> None:
        """Nothing is kept open."""
