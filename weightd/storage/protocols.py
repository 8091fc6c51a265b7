"""What holds bytes at rest. Every method may block: the engine calls them in threads, never on the event loop."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

from weightd.core.digest import Digest
from weightd.core.lifecycle import SegmentState
from weightd.storage.kept import Kept
from weightd.storage.shared import SharedMap as Shared


class SegmentIdentity(NamedTuple):
    """`(st_dev, st_ino)`: no two objects have one at the same time; after a boot they may come again."""

    device: int
    inode: int


class Residue(Protocol):
    """A segment that was unlinked, and that somebody may still map."""

    @property
    def size(self) -> int:
        """Bytes of whole pages."""
        ...

    @property
    def known(self) -> bool:
        """False where the kernel does not tell whether somebody maps it: then `gone` says True, and means only that it
        cannot be asked. It may be mapped for as long as whoever leased it holds views."""
        ...

    def gone(self) -> bool:
        """Whether nobody maps it any more, so that its memory is free. Once True, always True. Any thread. Quick, but
        for the call that finds it gone, which frees its memory (0.15 s per GiB of 4 KiB pages)."""
        ...

    def close(self) -> None:
        """Ask no more, `gone` says True: its memory goes with the last map. Idempotent. Until then, or until it is
        gone, a descriptor is held."""
        ...


class Segment(Protocol):
    """One shared-memory object that holds one blob: CREATED → SEALED → UNLINKED."""

    @property
    def name(self) -> str:
        """For shm_open(3), with the leading "/"; "" for a segment of 0 bytes, which has no object."""
        ...

    @property
    def path(self) -> Path:
        """Where the object appears in the file system."""
        ...

    @property
    def size(self) -> int: ...

    @property
    def identity(self) -> SegmentIdentity:
        """(0, 0) for a segment of 0 bytes."""
        ...

    @property
    def state(self) -> SegmentState: ...

    @property
    def view(self) -> memoryview:
        """Writable, `size` bytes; only while CREATED. Bytes that were not prepared may not be touched."""
        ...

    @property
    def shared(self) -> Shared | None:
        """`view` for other processes, where they can map it; only while CREATED. Whoever maps it must have ended that
        before `seal`."""
        ...

    def prepare(self, offset: int, length: int) -> None:
        """Back these bytes with memory before they are touched; `offset` is a multiple of 4096. Any thread.

        Raises ShmFull when somebody else filled the file system in the meantime.
        """
        ...

    def let_go(self, piece: memoryview) -> None:
        """This process is done with a piece of `view` that begins at a multiple of 4096: where that takes long, what it
        maps of it is unmapped now, and not with everything else in `seal`. Bytes stay as they are, and readable. Any
        thread."""
        ...

    @property
    def unbacked(self) -> int:
        """Bytes that it will still take from what is free on the file system. Any thread."""
        ...

    def seal(self) -> None:
        """Publish: mode 0440, the writable map released. Nothing in this process can write it any more.

        Raises BufferError while somebody still holds a part of `view`, Unavailable when somebody else removed the
        object; then it is not published.
        """
        ...

    def opened(self) -> AbstractContextManager[memoryview]:
        """The bytes of a SEALED segment, read-only, by a map of their own. Raises NotFound when somebody else removed
        it, Corruption when its size is another, Unavailable when this process has no more descriptors or maps."""
        ...

    def mapped(self) -> bool | None:
        """Whether anybody maps or opens a SEALED segment at this moment, so that unlinking it would free nothing yet:
        other processes, and this one by `opened`. None where the kernel does not tell, or it is not SEALED, or not
        there. Quick; any thread."""
        ...

    def unlink(self) -> None:
        """Remove the name, if it is still this very object; existing maps stay valid. Idempotent. Raises AccessDenied,
        and then it is as it was."""
        ...

    def retire(self) -> Residue | None:
        """`unlink` a SEALED segment, and what tells when its memory is free: None where it is already, or where the
        object was somebody else's. Raises as `unlink`."""
        ...


class SegmentStore(Protocol):
    """Shared memory."""

    @property
    def directory(self) -> str:
        """Where segments are files of, for who maps them; "" for POSIX shared memory."""
        ...

    def adopt(self, name: str, size: int, identity: SegmentIdentity) -> Segment | None:
        """A segment that an earlier process of this owner SEALED, as it was recorded: None unless that very object is
        there, of this size, owned by this user, with the mode and the group of a sealed one, all of its pages there."""
        ...

    def create(self, label: str, size: int) -> Segment:
        """A new segment, if the file system has room for it. Raises ShmFull or AccessDenied; then nothing is left.

        `label` (letters, digits, "-") appears in the name, which is unique.
        """
        ...

    def check_room(self, size: int) -> None:
        """Raises ShmFull unless the file system has room for segments of `size` bytes together."""
        ...

    def free(self) -> int:
        """Bytes free on the file system below, or on the NUMA nodes that segments are bound to if that is less."""
        ...

    def total(self) -> int:
        """Bytes of the file system below, or of these nodes if that is less."""
        ...

    def room(self) -> tuple[int, int]:
        """`free` and `total`, at one moment."""
        ...

    def huge_bytes(self) -> int:
        """Bytes of this store's segments that huge pages back."""
        ...

    def drop_leftovers(self, adopted: Collection[str] = ()) -> int:
        """Unlink what an earlier process of the same owner left, but for the `adopted` names; returns how many. Called
        once, before `create`."""
        ...


class Ingest(Protocol):
    """An invisible write of one blob: OPEN → VERIFYING → COMMITTED, or ABORTED, or KEPT to be resumed later."""

    @property
    def held(self) -> Mapping[int, bytes]:
        """What an earlier process recorded: the xxh3-128 of parts by index. To be proven by reading them."""
        ...

    @property
    def resumed(self) -> str:
        """Of its identities the one under which it was kept before; "" for a new one."""
        ...

    @property
    def part_size(self) -> int:
        """Bytes of the parts that `held` and `record` count; 0 for an ingest that nobody resumes."""
        ...

    def write(self, offset: int, data: memoryview) -> None:
        """Any thread, any order, disjoint ranges; `offset` is a multiple of parts.ALIGN, and so is the address of
        `data` (as it is in a map). Raises DiskFull."""
        ...

    def read(self, offset: int, view: memoryview) -> None:
        """Fill `view`, aligned as for `write`, with what was written at `offset`; for checks before the commit. Raises
        Corruption when the disk cannot read it."""
        ...

    def record(self, parts: Mapping[int, bytes]) -> None:
        """Parts with these checksums were written: make them durable, then their record. Does nothing for an ingest
        that nobody resumes, or that is not OPEN. Raises DiskFull."""
        ...

    def commit(self, digest: Digest) -> None:
        """Durable, then visible under `digest`. The caller has verified the bytes. After an error
        nothing stays."""
        ...

    def keep(self) -> bool:
        """Close, and leave what was recorded to be resumed; False where nothing was, and then nothing stays.
        Idempotent, and harmless after `commit`."""
        ...

    def abort(self) -> None:
        """Nothing of it stays but what was committed or kept. Idempotent; also after `commit`, once the blob is
        recorded."""
        ...


class BlobStore(Protocol):
    """Immutable bytes by digest."""

    def ingest(self, size: int, identities: Sequence[str] = (), part_size: int = 0) -> Ingest:
        """The kept ingest of one of `identities` (digests or source keys), or a new one, with space for `size` bytes.

        A new one of more than one part of `part_size` bytes may be resumed later under `identities[0]`. No two
        processes get the same ingest. Raises DiskFull; then nothing is left behind.
        """
        ...

    def check_room(self, size: int) -> None:
        """Raises DiskFull unless the file system has room for ingests of `size` bytes together."""
        ...

    def salvage(self, digest: Digest, size: int, part_size: int, checksums: Sequence[bytes]) -> bool:
        """Take a damaged blob out of the store, and keep it as an ingest under its digest: the parts that still have
        their checksums need not be fetched again. False when it cannot be; the blob is where it was."""
        ...

    def restore(self, digest: Digest) -> bool:
        """A blob that was committed and that nobody recorded before its process ended is an ingest again, to be
        resumed. False when nothing is left that proves its parts; the blob is where it was."""
        ...

    def quarantine(self, digest: Digest, report: bytes) -> Path | None:
        """Put the kept ingest of a blob that could not be repaired aside, with a `report.json`; where it is, or None
        when there is none. It still counts as kept, and is resumed when its bytes can be had again."""
        ...

    def kept(self) -> list[Kept]:
        """Ingests that wait to be resumed, the longest unused first."""
        ...

    def drop_kept(self, kept: Kept) -> None:
        """Idempotent; harmless for one that was resumed since."""
        ...

    def path(self, digest: Digest) -> Path:
        """Where the blob is or would be; mode 0440."""
        ...

    def size(self, digest: Digest) -> int | None:
        """Bytes, or None when it is not here."""
        ...

    def read(self, digest: Digest, offset: int, view: memoryview) -> None:
        """Fill `view` from `offset`, both aligned as for `Ingest.write`. Raises NotFound when the blob is gone,
        Corruption when it ends early or the disk cannot read it, AccessDenied."""
        ...

    def delete(self, digest: Digest) -> None:
        """Idempotent. Raises PathInTheWay for what cannot be a blob."""
        ...

    def free(self) -> int:
        """Bytes free on the file system below."""
        ...

    def room(self) -> tuple[int, int]:
        """Free and all bytes of the file system below, at one moment."""
        ...

    def digests(self) -> Iterator[Digest]:
        """Of every blob here, in no order."""
        ...

    def drop_leftovers(self) -> int:
        """Remove the ingests of earlier processes that cannot be resumed or are too old; returns how many."""
        ...
