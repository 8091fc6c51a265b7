"""Check again what is at rest, copy by copy; mend what is damaged from the other copy or the origin.

Nothing is altered that a worker has mapped: a damaged segment loses its name, its maps stay as they are, and who
acquires the model afterwards gets a new one.
"""

from __future__ import annotations

import asyncio
import hashlib
import mmap
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import suppress

import msgspec

from weightd.core.digest import Digest, digest_of
from weightd.core.errors import Corruption, NotFound, WeightdError
from weightd.core.parts import DEFAULT_PART, plan_parts
from weightd.core.refs import Ref
from weightd.engine.api import CopyState, EventKind, FileCheck, Tier, VerifyProgress
from weightd.engine.catalog import Blob, Catalog, Model
from weightd.engine.threads import in_own_thread, step_back
from weightd.engine.transfer import Stopped
from weightd.storage.pages import footprint

TICK = 0.1
"""Seconds between two progress messages."""

Restore = Callable[[Model, Tier], Awaitable[None]]
Emit = Callable[[EventKind, Ref, str, str], None]


class Scrubber:
    """One verification at a time. `restore(model, tier)` makes a model whole again, from its origin where need be."""

    def __init__(self, catalog: Catalog, restore: Restore, emit: Emit) -> None:
        self._catalog, self._restore, self._emit = catalog, restore, emit
        self._turn = asyncio.Lock()
        self._read = 0

    async def verify(self, models: Iterable[Model], *, quick: bool) -> AsyncGenerator[FileCheck | VerifyProgress]:
        """Progress, and what was found of each file, in order. `quick` compares sizes only. Closing it stops it."""
        async with self._turn:
            self._read = 0
            found: dict[Digest, FileCheck] = {}
            models = list(models)
            total = 0 if quick else _bytes({b.record.digest: b for m in models for b in m.blobs.values()}.values())
            for model in models:
                for path, blob in sorted(model.blobs.items()):
                    if blob.record.digest not in found:
                        task = asyncio.ensure_future(self._check(model, path, blob, quick))
                        try:
                            while not task.done():
                                yield VerifyProgress(min(self._read, total), total)
                                await asyncio.wait([task], timeout=TICK)
                        finally:
                            await _end(task)
                        found[blob.record.digest] = task.result()
                    yield msgspec.structs.replace(found[blob.record.digest], ref=model.ref.shown, path=path)

    async def _check(self, model: Model, path: str, blob: Blob, quick: bool) -> FileCheck:
        nvme = await self._sound(blob, Tier.NVME, quick)
        shm = await self._sound(blob, Tier.SHM, quick) if blob.in_shm else None
        check = FileCheck(
            ref=model.ref.shown,
            path=path,
            size=blob.record.size,
            digest=blob.record.digest,
            verification=blob.record.verification,
            nvme=CopyState.SOUND if nvme else CopyState.REPAIRED,
            shm=CopyState.ABSENT if shm is None else CopyState.SOUND if shm else CopyState.REPAIRED,
        )
        if nvme and shm is not False:
            return check
        if self._catalog.blobs.get(blob.record.digest) is not blob:
            return msgspec.structs.replace(check, detail="replaced while it was read; verify again")
        where = " and ".join(w for w, ok in (("NVMe", nvme), ("shared memory", shm is not False)) if not ok)
        leases = f", which {model.leases} leases of this model may still map" if shm is False and model.leases else ""
        self._tell(EventKind.DAMAGED, model, f"{path}: {blob.record.digest} in {where}{leases}")
        try:
            await self._mend(model, blob, nvme=nvme, shm=shm)
        except WeightdError as e:
            return await self._given_up(check, blob, e, nvme=nvme, shm=shm)
        self._tell(EventKind.REPAIRED, model, f"{path}: {blob.record.digest} in {where}")
        return msgspec.structs.replace(check, detail=f"was damaged in {where}")

    async def _mend(self, model: Model, blob: Blob, *, nvme: bool, shm: bool | None) -> None:
        if shm is False:
            await self._catalog.detach(blob)
        if not nvme and shm:
            await self._in_thread(self._rewrite, blob)
            return
        if not nvme:
            await self._catalog.drop(blob)
        await self._restore(model, Tier.NVME if shm is None else Tier.SHM)
        if blob.record.digest not in self._catalog.blobs:
            raise NotFound("the model was replaced meanwhile", remedy="Verify again.")

    async def _given_up(
        self, check: FileCheck, blob: Blob, error: WeightdError, *, nvme: bool, shm: bool | None
    ) -> FileCheck:
        detail = f"cannot be repaired: {error.message}"
        if not nvme and blob.record.digest not in self._catalog.blobs:
            report = {
                "digest": blob.record.digest,
                "size": blob.record.size,
                "ref": check.ref,
                "path": check.path,
                "found": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "reason": str(error),
            }
            text = msgspec.json.format(msgspec.json.encode(report))
            place = await self._catalog.io(self._catalog.store.quarantine, blob.record.digest, text)
            detail += f"; what is left of it is in {place}" if place else "; nothing is left of it"
        return msgspec.structs.replace(
            check,
            nvme=check.nvme if nvme else CopyState.LOST,
            shm=CopyState.LOST if shm is False else check.shm,
            detail=detail,
        )

    async def _sound(self, blob: Blob, tier: Tier, quick: bool) -> bool:
        call = self._size_fits if quick else self._digest_fits
        return await self._in_thread(call, blob, tier)

    async def _in_thread(self, call: Callable[..., bool], *args: object) -> bool:
        stopping = threading.Event()

        def body() -> bool:
            step_back()
            return call(*args, stopping)

        return await in_own_thread(body, stopping.set, "weightd-verify")

    def _size_fits(self, blob: Blob, tier: Tier, _: threading.Event) -> bool:
        if tier is Tier.NVME:
            return self._catalog.store.size(blob.record.digest) == blob.record.size
        with suppress(Corruption, NotFound):
            if blob.segment is not None:
                with blob.segment.opened():
                    return True
        return False

    def _digest_fits(self, blob: Blob, tier: Tier, stopping: threading.Event) -> bool:
        if not self._size_fits(blob, tier, stopping):
            self._read += blob.record.size
            return False
        try:
            return self._hash(blob, tier, stopping) == blob.record.digest
        except (Corruption, NotFound):
            return False

    def _hash(
        self,
        blob: Blob,
        tier: Tier,
        stopping: threading.Event,
        also: Callable[[int, memoryview], None] = lambda offset, view: None,
    ) -> Digest:
        sha = hashlib.sha256()
        with mmap.mmap(-1, footprint(max(1, min(DEFAULT_PART, blob.record.size)))) as memory:
            for part in plan_parts(blob.record.size):
                if stopping.is_set():
                    raise Stopped
                with memoryview(memory)[: part.length] as view:
                    if tier is Tier.NVME:
                        self._catalog.store.read(blob.record.digest, part.offset, view)
                    else:
                        _copy(blob, part.offset, view)
                    sha.update(view)
                    also(part.offset, view)
                self._read += part.length
        return digest_of(sha.digest())

    def _rewrite(self, blob: Blob, stopping: threading.Event) -> bool:
        """NVMe from shared memory, which has just proved sound and is compared again."""
        ingest = self._catalog.store.ingest(blob.record.size)
        try:
            if self._hash(blob, Tier.SHM, stopping, ingest.write) != blob.record.digest:
                raise Corruption("the copy in shared memory changed while it was read", remedy="Verify again.")
            ingest.commit(blob.record.digest)
        finally:
            ingest.abort()
        return True

    def _tell(self, kind: EventKind, model: Model, detail: str) -> None:
        self._emit(kind, model.ref, model.manifest.revision, detail)


def _copy(blob: Blob, offset: int, view: memoryview) -> None:
    if blob.segment is None:
        raise NotFound("the segment is gone")
    with blob.segment.opened() as whole, whole[offset : offset + len(view)] as piece:
        view[:] = piece


def _bytes(blobs: Iterable[Blob]) -> int:
    """To be read."""
    return sum(b.record.size * (2 if b.in_shm else 1) for b in blobs)


async def _end(task: asyncio.Future[FileCheck]) -> None:
    """A check that nobody waits for any more ends first."""
    if not task.done():
        task.cancel()
        await asyncio.wait([task])
