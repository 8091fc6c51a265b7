"""Read the copies of a blob again, and compare them with its digest. Blocking: for threads."""

from __future__ import annotations

import hashlib
import mmap
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from weightd.core.digest import Digest, digest_of
from weightd.core.errors import Corruption, NotFound
from weightd.core.parts import DEFAULT_PART, plan_parts
from weightd.engine.api import Tier
from weightd.engine.held import Blob
from weightd.engine.transfer import Stopped
from weightd.kernel import step_back
from weightd.storage.pages import footprint
from weightd.storage.protocols import BlobStore


def _never_waits(count: int, stopping: threading.Event) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Manner:
    """How bytes are read: `piece` at a time, a multiple of 4096; `begin` is called first in each thread that reads,
    `wait(count, stopping)` before each `count` bytes, and returns at once when `stopping` is set."""

    piece: int = DEFAULT_PART
    begin: Callable[[], None] = step_back
    wait: Callable[[int, threading.Event], None] = _never_waits


class Copies:
    """Of blobs in `store` and in shared memory. `read` counts bytes, also those that there was no need to read."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self.read = 0

    def size_fits(self, blob: Blob, tier: Tier) -> bool:
        """Whether the copy is there and has the size that it should have."""
        if tier is Tier.NVME:
            return self._store.size(blob.record.digest) == blob.record.size
        with suppress(Corruption, NotFound):
            if blob.segment is not None:
                with blob.segment.opened():
                    return True
        return False

    def digest_fits(self, blob: Blob, tier: Tier, manner: Manner, stopping: threading.Event) -> bool:
        """Raises Stopped, and AccessDenied for what may not be read."""
        manner.begin()
        if not self.size_fits(blob, tier):
            self.read += blob.record.size
            return False
        try:
            return self._hash(blob, tier, manner, stopping) == blob.record.digest
        except (Corruption, NotFound):
            return False

    def _hash(
        self,
        blob: Blob,
        tier: Tier,
        manner: Manner,
        stopping: threading.Event,
        also: Callable[[int, memoryview], None] = lambda offset, view: None,
    ) -> Digest:
        sha = hashlib.sha256()
        with mmap.mmap(-1, footprint(max(1, min(manner.piece, blob.record.size)))) as memory:
            for part in plan_parts(blob.record.size, manner.piece):
                manner.wait(part.length, stopping)
                if stopping.is_set():
                    raise Stopped
                with memoryview(memory)[: part.length] as view:
                    if tier is Tier.NVME:
                        self._store.read(blob.record.digest, part.offset, view)
                    else:
                        _copy(blob, part.offset, view)
                    sha.update(view)
                    also(part.offset, view)
                self.read += part.length
        return digest_of(sha.digest())

    def rewrite(self, blob: Blob, stopping: threading.Event) -> bool:
        """NVMe from shared memory, which has just proved sound and is compared again."""
        manner = Manner()
        manner.begin()
        ingest = self._store.ingest(blob.record.size)
        try:
            if self._hash(blob, Tier.SHM, manner, stopping, ingest.write) != blob.record.digest:
                raise Corruption("the copy in shared memory changed while it was read", remedy="Verify again.")
            ingest.commit(blob.record.digest)
        finally:
            ingest.abort()
        return True


def _copy(blob: Blob, offset: int, view: memoryview) -> None:
    if blob.segment is None:
        raise NotFound("the segment is gone")
    with blob.segment.opened() as whole, whole[offset : offset + len(view)] as piece:
        view[:] = piece
