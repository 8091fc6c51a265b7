"""Check again what is at rest, copy by copy; mend what is damaged from the other copy or the origin.

Nothing is altered that a worker has mapped: a damaged segment loses its name, its maps stay as they are, and who
acquires the model afterwards gets a new one.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

import msgspec

from weightd.core.digest import Digest
from weightd.core.errors import BudgetExceeded, ModelBusy, NotFound, WeightdError
from weightd.core.refs import Ref
from weightd.engine.api import CopyState, EventKind, FileCheck, Tier, VerifyProgress, VerifyStatus
from weightd.engine.catalog import Catalog
from weightd.engine.copies import Copies, Manner
from weightd.engine.held import Blob, Model
from weightd.engine.transfer import Stopped
from weightd.threads import in_own_thread

TICK = 0.1
"""Seconds between two progress messages."""

Restore = Callable[[Model, Tier], Awaitable[None]]
Emit = Callable[[EventKind, Ref, str, str], None]


class Preempted(Exception):
    """Somebody waits for a verification: the one that nobody waits for gives way, and has to begin anew."""


@dataclass(slots=True)
class Tally:
    """Blobs, since the start. The copies on NVMe of those that were `given_up` could not be repaired then; others may
    have come in their place."""

    damaged: int = 0
    repaired: int = 0
    given_up: dict[Digest, Blob] = field(default_factory=dict)

    def forget(self, digests: Iterable[Digest]) -> None:
        """Nobody misses them any more."""
        for digest in digests:
            self.given_up.pop(digest, None)


@dataclass(frozen=True, slots=True)
class _Way:
    """Of one check, by `copies`. `preempt` ends its reading from outside; what it has begun to mend it ends."""

    copies: Copies
    quick: bool = False
    manner: Manner = field(default_factory=Manner)
    preempt: threading.Event | None = None


class Scrubber:
    """One copy is read at a time, and one blob is in the hands of one verification; what is mended, which may take as
    long as an origin likes, keeps no other blob from being verified.

    `restore(model, tier)` makes a model whole again, from its origin where need be.
    """

    def __init__(self, catalog: Catalog, restore: Restore, emit: Emit) -> None:
        self._catalog, self._restore, self._emit = catalog, restore, emit
        self._turn = asyncio.Lock()
        self._blobs: WeakValueDictionary[Digest, asyncio.Lock] = WeakValueDictionary()
        self._callers = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._preempt = threading.Event()
        self.tally = Tally()

    def status(self, every: float) -> VerifyStatus:
        """As of now."""
        blobs, tally = self._catalog.blobs, self.tally
        return VerifyStatus(
            every=every,
            oldest=min((b.record.last_verified for b in blobs.values()), default=0.0),
            damaged=tally.damaged,
            repaired=tally.repaired,
            lost=sum(blobs.get(d) in (None, blob) for d, blob in tally.given_up.items()),
        )

    async def verify(self, models: Iterable[Model], *, quick: bool) -> AsyncGenerator[FileCheck | VerifyProgress]:
        """Progress, and what was found of each file, in order. `quick` compares sizes only. Closing it stops it."""
        models = list(models)
        way = _Way(Copies(self._catalog.store), quick)
        with self._counted(1), self._catalog.using(models):
            async with aclosing(self._verify(models, way)) as events:
                async for event in events:
                    yield event

    @contextmanager
    def _counted(self, change: int) -> Iterator[None]:
        """Of those who wait for a verification to read on."""
        self._count(change)
        try:
            yield
        finally:
            self._count(-change)

    def _count(self, change: int) -> None:
        self._callers += change
        if self._callers:
            self._quiet.clear()
            self._preempt.set()
        else:
            self._quiet.set()

    async def _verify(self, models: list[Model], way: _Way) -> AsyncGenerator[FileCheck | VerifyProgress]:
        copies = way.copies
        found: dict[Digest, FileCheck] = {}
        total = 0 if way.quick else _bytes({b.record.digest: b for m in models for b in m.blobs.values()}.values())
        for model in models:
            for path, blob in sorted(model.blobs.items()):
                if blob.record.digest not in found:
                    task = asyncio.ensure_future(self._check(model, path, blob, way))
                    try:
                        while not task.done():
                            yield VerifyProgress(min(copies.read, total), total)
                            await asyncio.wait([task], timeout=TICK)
                    finally:
                        await _end(task)
                    found[blob.record.digest] = task.result()
                yield msgspec.structs.replace(
                    found[blob.record.digest], ref=model.ref.shown, revision=model.manifest.revision, path=path
                )

    async def check(self, blob: Blob, manner: Manner) -> FileCheck | None:
        """One blob, for nobody who waits. None for one that no model has, which is dropped when it is damaged.

        Raises Preempted when somebody wants to `verify` before it has been read, ModelBusy where somebody does verify
        or mend it.
        """
        await self._quiet.wait()
        if self._of(blob.record.digest).locked():
            raise ModelBusy("it is being verified", remedy="Try again when that has ended.")
        way = _Way(Copies(self._catalog.store), manner=manner, preempt=self._preempt)
        for model in self._catalog.snapshots:
            for path, one in model.blobs.items():
                if one.record.digest == blob.record.digest:
                    with self._catalog.using([model]):
                        return await self._check(model, path, blob, way)
        async with self._of(blob.record.digest):
            await self._check_unnamed(blob, way)
        return None

    def _of(self, digest: Digest) -> asyncio.Lock:
        return self._blobs.setdefault(digest, asyncio.Lock())

    async def _check(self, model: Model, path: str, blob: Blob, way: _Way) -> FileCheck:
        async with self._of(blob.record.digest):
            return await self._check_alone(model, path, blob, way)

    async def _check_alone(self, model: Model, path: str, blob: Blob, way: _Way) -> FileCheck:
        began = time.time()
        digest = blob.record.digest
        here = digest in self._catalog.blobs  # or it was lost earlier, and may be had again
        blob = self._catalog.blobs.get(digest, blob)
        nvme = await self._sound(blob, Tier.NVME, way)
        shm = await self._sound(blob, Tier.SHM, way) if blob.in_shm else None
        check = _found(model, path, blob, nvme=nvme, shm=shm)
        if not nvme or shm is False:
            if here and self._catalog.blobs.get(digest) is not blob:
                return msgspec.structs.replace(check, detail="replaced while it was read; verify again")
            with self._counted(-1 if way.preempt is None else 0):
                check = await self._mended(model, check, blob, here=here, nvme=nvme, shm=shm)
        if not way.quick and check.nvme is not CopyState.LOST:
            self.tally.given_up.pop(digest, None)
            await self._catalog.verified(blob, began)
        return check

    async def _mended(
        self, model: Model, check: FileCheck, blob: Blob, *, here: bool, nvme: bool, shm: bool | None
    ) -> FileCheck:
        """What is known as damaged from an earlier check is told and counted once."""
        where = _places(nvme=nvme, shm=shm)
        again = blob.record.digest in self.tally.given_up
        if here and self.tally.given_up.get(blob.record.digest) is not blob:
            self._tell_damaged(model, check.path, blob, nvme=nvme, shm=shm)
        try:
            await self._mend(model, blob, nvme=nvme, shm=shm)
        except WeightdError as e:
            if not nvme:
                self.tally.given_up[blob.record.digest] = blob
            return await self._given_up(check, blob, e, nvme=nvme, shm=shm)
        # Else a load found it, and brings it anew just now.
        self.tally.repaired += here or again
        self._tell(EventKind.REPAIRED, model, f"{check.path}: {blob.record.digest} in {where}")
        return msgspec.structs.replace(check, detail=f"was damaged in {where}")

    async def _mend(self, model: Model, blob: Blob, *, nvme: bool, shm: bool | None) -> None:
        if shm is False:
            await self._catalog.detach(blob)
        if not nvme and shm:
            await self._rewrite(blob)
            return
        if not nvme:
            await self._catalog.drop(blob)
        await self._restore(model, Tier.NVME if shm is None else Tier.SHM)
        if blob.record.digest not in self._catalog.blobs:
            raise NotFound("the model was replaced meanwhile", remedy="Verify again.")

    async def _rewrite(self, blob: Blob) -> None:
        """NVMe from shared memory. Where the budget has no room for two, the damaged one goes first; should the new one
        fail then, the next verification finds none and writes it."""
        catalog, size = self._catalog, blob.footprint
        try:
            catalog.nvme.reserve(size)
        except BudgetExceeded:
            size = 0
            await catalog.io(catalog.store.delete, blob.record.digest)
        try:
            await self._in_thread(Copies(catalog.store).rewrite, threading.Event(), blob)
            await catalog.links.admit(blob)
        finally:
            catalog.nvme.cancel(size)

    async def _given_up(
        self, check: FileCheck, blob: Blob, error: WeightdError, *, nvme: bool, shm: bool | None
    ) -> FileCheck:
        detail = f"cannot be repaired: {error.message}"
        if not nvme and blob.record.digest not in self._catalog.blobs:
            report = {
                "digest": blob.record.digest,
                "size": blob.record.size,
                "ref": check.ref,
                "revision": check.revision,
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

    async def _check_unnamed(self, blob: Blob, way: _Way) -> None:
        """No model has it, so that nobody can say where it came from: a later fetch brings what is damaged of it."""
        began = time.time()
        nvme = await self._sound(blob, Tier.NVME, way)
        if blob.in_shm and not await self._sound(blob, Tier.SHM, way):
            await self._catalog.detach(blob)
        if nvme:
            await self._catalog.verified(blob, began)
        elif self._catalog.blobs.get(blob.record.digest) is blob:
            self.tally.damaged += 1
            await self._catalog.detach(blob)
            await self._catalog.drop(blob)

    async def _sound(self, blob: Blob, tier: Tier, way: _Way) -> bool:
        copies, preempt = way.copies, way.preempt
        if way.quick:
            return await self._catalog.io(copies.size_fits, blob, tier)
        async with self._turn:
            if preempt is not None:
                if self._callers:
                    raise Preempted
                preempt.clear()
            try:
                return await self._in_thread(copies.digest_fits, preempt or threading.Event(), blob, tier, way.manner)
            except Stopped:
                raise Preempted from None

    async def _in_thread(self, call: Callable[..., bool], stopping: threading.Event, *args: object) -> bool:
        return await in_own_thread(lambda: call(*args, stopping), stopping.set, "weightd-verify")

    def _tell_damaged(self, model: Model, path: str, blob: Blob, *, nvme: bool, shm: bool | None) -> None:
        self.tally.damaged += 1
        where = _places(nvme=nvme, shm=shm)
        leases = f", which {model.leases} leases of this model may still map" if shm is False and model.leases else ""
        self._tell(EventKind.DAMAGED, model, f"{path}: {blob.record.digest} in {where}{leases}")

    def _tell(self, kind: EventKind, model: Model, detail: str) -> None:
        self._emit(kind, model.ref, model.manifest.revision, detail)


def _found(model: Model, path: str, blob: Blob, *, nvme: bool, shm: bool | None) -> FileCheck:
    """With what is damaged repaired, which is still to be done."""
    return FileCheck(
        ref=model.ref.shown,
        revision=model.manifest.revision,
        path=path,
        size=blob.record.size,
        digest=blob.record.digest,
        verification=blob.record.verification,
        nvme=CopyState.SOUND if nvme else CopyState.REPAIRED,
        shm=CopyState.ABSENT if shm is None else CopyState.SOUND if shm else CopyState.REPAIRED,
    )


def _places(*, nvme: bool, shm: bool | None) -> str:
    """Of what is damaged, for people."""
    return " and ".join(w for w, ok in (("NVMe", nvme), ("shared memory", shm is not False)) if not ok)


def _bytes(blobs: Iterable[Blob]) -> int:
    """To be read."""
    return sum(b.record.size * (2 if b.in_shm else 1) for b in blobs)


async def _end(task: asyncio.Future[FileCheck]) -> None:
    """A check that nobody waits for any more ends first."""
    if not task.done():
        task.cancel()
        await asyncio.wait([task])
