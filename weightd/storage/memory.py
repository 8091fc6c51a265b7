"""In-memory twins of the segment and the blob store, for tests of what stands on them.

They keep the contracts of `protocols`, errors and lifecycles among them, and need neither /dev/shm nor a disk. Their
paths name nothing in the file system.
"""

from __future__ import annotations

import itertools
import secrets
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from weightd.core.digest import Digest, hex_of
from weightd.core.errors import Corruption, DiskFull, NotFound, ShmFull, Unavailable
from weightd.core.lifecycle import INGEST, SEGMENT, IngestState, Lifecycle, SegmentState
from weightd.core.parts import ALIGN
from weightd.storage.kept import Kept, name_of
from weightd.storage.pages import footprint
from weightd.storage.protocols import SegmentIdentity

ROOT: Final = Path("/nonexistent/weightd-memory")
SEALED_MODE: Final = 0o440


_inodes = itertools.count(1)


@dataclass(eq=False)
class MemoryObject:
    """What a name stands for. `readers`: how many map it; tests may play some."""

    data: bytearray
    mode: int = 0o600
    readers: int = 0
    identity: SegmentIdentity = field(default_factory=lambda: SegmentIdentity(1, next(_inodes)))


class MemoryResidue:
    """See `protocols.Residue`."""

    known: Final = True

    def __init__(self, unlinked: MemoryObject) -> None:
        self.size = footprint(len(unlinked.data))
        self._object: MemoryObject | None = unlinked

    def gone(self) -> bool:
        if self._object is None or not self._object.readers:
            self.close()
        return self._object is None

    def close(self) -> None:
        self._object = None


class MemorySegment:
    """See `protocols.Segment`. Made by MemorySegmentStore.create, or its `adopt` of an `existing` object."""

    def __init__(self, store: MemorySegmentStore, name: str, size: int, existing: MemoryObject | None = None) -> None:
        self._store, self.name, self.size = store, name, size
        start = SegmentState.CREATED if existing is None else SegmentState.SEALED
        self._life = Lifecycle("segment", SEGMENT, start)
        self._object = existing or MemoryObject(bytearray(size))
        self._view = memoryview(bytearray() if existing else self._object.data)
        if size:
            store.objects[name] = self._object

    @property
    def path(self) -> Path:
        return ROOT / self.name.removeprefix("/")

    @property
    def identity(self) -> SegmentIdentity:
        return self._object.identity if self.size else SegmentIdentity(0, 0)

    @property
    def state(self) -> SegmentState:
        return self._life.state

    @property
    def view(self) -> memoryview:
        if self.state is not SegmentState.CREATED:
            raise AssertionError(f"{self!r} is not writable")
        return self._view

    @property
    def shared(self) -> None:
        """This process's own memory."""

    def prepare(self, offset: int, length: int) -> None:
        """All bytes are there from the start."""

    def let_go(self, piece: memoryview) -> None:
        """Nothing is mapped."""

    @property
    def unbacked(self) -> int:
        return 0

    def seal(self) -> None:
        self._view.release()
        if self.size:
            # As closing a map would: BufferError while a view of it lives.
            self._object.data.append(0)
            self._object.data.pop()
            if not self._is_ours():
                raise Unavailable(f"{self.name} was removed by somebody else", remedy="Try again.")
        self._object.mode = SEALED_MODE
        self._life.to(SegmentState.SEALED)

    @contextmanager
    def opened(self) -> Iterator[memoryview]:
        if self.size and not self._is_ours():
            raise NotFound(f"{self.name} is not there")
        self._object.readers += 1
        try:
            with memoryview(self._object.data).toreadonly() as view:
                yield view
        finally:
            self._object.readers -= 1

    def mapped(self) -> bool | None:
        if not self.size:
            return False
        if self.state is not SegmentState.SEALED or not self._is_ours():
            return None
        return self._object.readers > 0

    def unlink(self) -> None:
        if self.state is SegmentState.UNLINKED:
            return
        self._view.release()
        if self._is_ours():
            self._store.draining.append(self._store.objects.pop(self.name))
        self._life.to(SegmentState.UNLINKED)

    def retire(self) -> MemoryResidue | None:
        alive = self.state is SegmentState.SEALED and self._is_ours()
        self.unlink()
        return MemoryResidue(self._object) if alive and self._object.readers else None

    def _is_ours(self) -> bool:
        return self._store.objects.get(self.name) is self._object

    def __repr__(self) -> str:
        return f"<MemorySegment {self.name} {self.state.name} {self.size}>"


class MemorySegmentStore:
    """`capacity` in bytes, whole pages counted. `objects` by name; shared between stores it outlives them. `draining`:
    what was unlinked, and counts while it has readers."""

    directory: Final = ""

    def __init__(self, owner: str, capacity: int, objects: dict[str, MemoryObject] | None = None) -> None:
        self._prefix = f"/weightd-{owner}-"
        self._capacity = capacity
        self.objects = {} if objects is None else objects
        self.draining: list[MemoryObject] = []

    def create(self, label: str, size: int) -> MemorySegment:
        self.check_room(footprint(size))
        return MemorySegment(self, f"{self._prefix}{label}-{secrets.token_hex(6)}" if size else "", size)

    def adopt(self, name: str, size: int, identity: SegmentIdentity) -> MemorySegment | None:
        found = self.objects.get(name)
        if found is None or not name.startswith(self._prefix):
            return None
        if (len(found.data), found.mode, found.identity) != (size, SEALED_MODE, identity):
            return None
        return MemorySegment(self, name, size, found)

    def check_room(self, size: int) -> None:
        if size > self.free():
            raise ShmFull(f"memory is full: {size} bytes wanted, {self.free()} free", remedy="Use a larger one.")

    def free(self) -> int:
        self.draining = [o for o in self.draining if o.readers]
        return self._capacity - sum(footprint(len(o.data)) for o in [*self.objects.values(), *self.draining])

    def total(self) -> int:
        return self._capacity

    def room(self) -> tuple[int, int]:
        return self.free(), self._capacity

    def huge_bytes(self) -> int:
        return 0

    def drop_leftovers(self, adopted: Collection[str] = ()) -> int:
        names = [n for n in self.objects if n.startswith(self._prefix) and n not in adopted]
        for name in names:
            del self.objects[name]
        return len(names)

    def __repr__(self) -> str:
        return f"<MemorySegmentStore {self._prefix} {len(self.objects)}>"


class MemoryIngest:
    """See `protocols.Ingest`. Made by MemoryBlobStore.ingest."""

    def __init__(self, store: MemoryBlobStore, size: int, identity: str = "", part_size: int = 0) -> None:
        self._store, self.size, self.identity = store, size, identity
        self.part_size = part_size if identity else 0
        self.held: dict[int, bytes] = {}
        self.resumed = ""
        self._recorded: dict[int, bytes] = {}
        self._life = Lifecycle("ingest", INGEST, IngestState.OPEN)
        self._data = bytearray(size)
        store.ingests.add(self)

    @property
    def state(self) -> IngestState:
        return self._life.state

    def write(self, offset: int, data: memoryview) -> None:
        if offset % ALIGN or offset + len(data) > self.size:
            raise ValueError(f"{len(data)} bytes at {offset} of an ingest of {self.size}")
        self._data[offset : offset + len(data)] = data

    def read(self, offset: int, view: memoryview) -> None:
        _fill(self._data, offset, view, "the ingest")

    def record(self, parts: Mapping[int, bytes]) -> None:
        if self.part_size and self.state is IngestState.OPEN:
            self._recorded |= parts

    def keep(self) -> bool:
        if self.state is IngestState.OPEN and (self._recorded or self.held):
            self._life.to(IngestState.KEPT)
            self._store.ingests.discard(self)
            self._store.keeping[name_of(self.identity)] = self
        self.abort()
        return self.state is IngestState.KEPT

    def successor(self) -> MemoryIngest:
        """The same bytes, resumed."""
        later = MemoryIngest(self._store, self.size, self.identity, self.part_size)
        later._data, later.held = self._data, self.held | self._recorded
        later.resumed = self.identity
        return later

    def commit(self, digest: Digest) -> None:
        try:
            self._life.to(IngestState.VERIFYING)
            self._store.blobs[digest] = bytes(self._data)
            self._life.to(IngestState.COMMITTED)
            self._store.ingests.discard(self)
        finally:
            self.abort()

    def abort(self) -> None:
        if self.state in (IngestState.OPEN, IngestState.VERIFYING):
            self._life.to(IngestState.ABORTED)
            self._store.ingests.discard(self)

    def __repr__(self) -> str:
        return f"<MemoryIngest {self.state.name} {self.size}>"


class MemoryBlobStore:
    """`capacity` in bytes. `blobs` may be changed by tests, to damage what is "on disk"."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self.blobs: dict[Digest, bytes] = {}
        self.ingests: set[MemoryIngest] = set()
        self.keeping: dict[str, MemoryIngest] = {}

    def ingest(self, size: int, identities: Sequence[str] = (), part_size: int = 0) -> MemoryIngest:
        identities = [i for i in identities if i]
        with self._lock:
            for identity in identities:
                kept = self.keeping.pop(name_of(identity), None)
                if kept is not None and kept.size == size:
                    return kept.successor()
            self.check_room(size)
            identity = identities[0] if identities and 0 < part_size < size else ""
            return MemoryIngest(self, size, identity, part_size)

    def check_room(self, size: int) -> None:
        if size > self.free():
            raise DiskFull(f"memory is full: {size} bytes wanted, {self.free()} free", remedy="Use a larger one.")

    def salvage(self, digest: Digest, size: int, part_size: int, checksums: Sequence[bytes]) -> bool:
        data = self.blobs.pop(digest, None)
        if data is None:
            return False
        ingest = MemoryIngest(self, size, digest, part_size)
        ingest._data[:] = data[:size].ljust(size, b"\0")
        ingest.record(dict(enumerate(checksums)))
        return ingest.keep()

    def restore(self, digest: Digest) -> bool:
        """Memory does not outlive its process."""
        return False

    def quarantine(self, digest: Digest, report: bytes) -> Path | None:
        """Kept as any other."""
        return ROOT / "quarantine" if name_of(digest) in self.keeping else None

    def kept(self) -> list[Kept]:
        return [Kept(name, ingest.size, 0.0) for name, ingest in list(self.keeping.items())]

    def drop_kept(self, kept: Kept) -> None:
        self.keeping.pop(kept.name, None)

    def path(self, digest: Digest) -> Path:
        name = hex_of(digest)
        return ROOT / "blobs" / name[:2] / name

    def size(self, digest: Digest) -> int | None:
        data = self.blobs.get(digest)
        return None if data is None else len(data)

    def read(self, digest: Digest, offset: int, view: memoryview) -> None:
        data = self.blobs.get(digest)
        if data is None:
            raise NotFound(f"blob {digest} is not here")
        _fill(data, offset, view, f"blob {digest}")

    def delete(self, digest: Digest) -> None:
        self.blobs.pop(digest, None)

    def free(self) -> int:
        used = sum(len(b) for b in self.blobs.values()) + sum(i.size for i in self.ingests)
        used += sum(i.size for i in self.keeping.values())
        return self._capacity - used

    def room(self) -> tuple[int, int]:
        return self.free(), self._capacity

    def digests(self) -> Iterator[Digest]:
        yield from list(self.blobs)

    def drop_leftovers(self) -> int:
        count = len(self.ingests)
        self.ingests.clear()
        return count

    def __repr__(self) -> str:
        return f"<MemoryBlobStore {len(self.blobs)} blobs, {len(self.ingests)} open>"


def _fill(data: bytes | bytearray, offset: int, view: memoryview, what: str) -> None:
    piece = data[offset : offset + len(view)]
    if len(piece) < len(view):
        raise Corruption(f"{what} ends at byte {len(data)}, before its recorded size")
    view[:] = piece
