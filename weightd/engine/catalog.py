"""Blobs that this host holds, and in which tiers. Changed on the event loop only; written through to State."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, TypeVar
from weakref import WeakValueDictionary

import msgspec

from weightd.core.budget import Budget
from weightd.core.digest import Digest
from weightd.core.errors import ModelNotFound, WeightdError
from weightd.core.lifecycle import Residency
from weightd.core.manifest import FileSpec
from weightd.core.refs import Ref
from weightd.core.tenants import Tenants
from weightd.core.verification import Verification
from weightd.engine.drains import Drains, Stuck
from weightd.engine.held import Blob, Model, Snapshots
from weightd.engine.kept import KeptIngests
from weightd.engine.links import Links
from weightd.engine.records import Records
from weightd.engine.resident import Resident
from weightd.engine.tenant_links import TenantLinks
from weightd.engine.tenant_rights import Rights
from weightd.engine.workers import Workers
from weightd.kernel import paths_followed
from weightd.storage.direct import left_behind
from weightd.storage.protocols import BlobStore, Residue, Segment, SegmentStore
from weightd.storage.state import BlobRecord, State
from weightd.storage.tenant_files import TenantFiles
from weightd.threads import finish

T = TypeVar("T")


class Left(NamedTuple):
    """Bytes that left shared memory, and how many of them somebody still maps."""

    size: int
    draining: int


class Catalog:
    """Blobs, the budgets of both tiers, and which snapshots are made of them."""

    def __init__(
        self,
        *,
        segments: SegmentStore,
        blobs: BlobStore,
        state: State,
        models: Path,
        shm: Budget,
        nvme: Budget,
        rights: Rights | None = None,
        files: TenantFiles | None = None,
    ) -> None:
        self.rights = rights or Rights(Tenants())
        self.segments, self.store, self.state, self.shm, self.nvme = segments, blobs, state, shm, nvme
        self.blobs: dict[Digest, Blob] = {}
        self.seen: dict[str, Digest] = {}
        self.snapshots = Snapshots()
        self._reached: dict[Digest, Verification] = {}
        """Of blobs that were dropped: how far bytes of that digest were verified, whoever brings them again."""
        self._workers = Workers()
        self.io, self.write = self._workers.io, self._workers.write
        self.links = Links(models, blobs, self.io)
        if files is not None and files.needed:
            self.links.tenants = TenantLinks(files, self.rights, blobs, lambda: self.snapshots, self.io)
        self.kept = KeptIngests(blobs, nvme, self.io)
        self.drains = Drains(shm, self.io)
        self.resident = Resident(state, self.write)
        self.dropping = asyncio.Lock()
        """Held until what is dropped has been put where its repair finds it."""
        self.publishing = asyncio.Lock()
        """Held while a snapshot begins or ceases to be held."""
        self.settled: Callable[[], None] = lambda: None
        """Called when what kept a snapshot from being dropped may have ended."""
        self._holds: dict[object, Collection[Digest]] = {}
        self._recording: WeakValueDictionary[Digest, asyncio.Lock] = WeakValueDictionary()
        self._records = Records(state, self.write)

    @property
    def models(self) -> dict[str, Model]:
        """The current snapshots, by the text of the ref."""
        return self.snapshots.current

    def recording(self, digest: Digest) -> asyncio.Lock:
        """Held by whoever records or drops a blob of this digest, from the look whether it is known."""
        return self._recording.setdefault(digest, asyncio.Lock())

    async def start(self) -> None:
        """Read what is on disk, trust what is recorded and has its size, drop the rest."""
        await self.write(self.state.open)
        records = await self.write(self.state.blobs)
        kept = await self.io(self._survey, records)
        for record in kept:
            blob = self.blobs[record.digest] = Blob(record)
            blob.arrive_on_nvme()
            self.nvme.adopt(blob.footprint)
        for record in records:
            if record.digest not in self.blobs:
                await self.write(self.state.drop_blob, record.digest)
        self.seen = {k: d for k, d in (await self.write(self.state.seen)).items() if d in self.blobs}
        self.rights.start(await self.write(self.state.delivered))

    def _survey(self, records: list[BlobRecord]) -> list[BlobRecord]:
        self.links.open()
        kept = [r for r in records if r.sound and self.store.size(r.digest) == r.size]
        # A blob without a record was renamed but not recorded before a crash: only its ledger can prove it.
        for digest in set(self.store.digests()) - {r.digest for r in kept}:
            with left_behind(self.store.path(digest)):
                if not self.store.restore(digest):
                    self.store.delete(digest)
        self.store.drop_leftovers()
        return kept

    async def stop(self, *, keep: bool) -> None:
        """Close the state. With `keep` the segments stay for the next start to adopt; else the directories are pointed
        at NVMe and every segment is unlinked. Maps of workers stay valid in any case.

        What fails does not keep the rest from being done; the first error is raised at the end.
        """
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.close)
            stack.push_async_callback(self.drains.stop)
            if not keep:
                # Also of blobs that were dropped, and that a snapshot still misses.
                blobs = set(self.blobs.values()).union(*(m.blobs.values() for m in self.snapshots))
                stack.push_async_callback(self._leave_shm, self._evicting(blobs), damaged=True)

    async def close(self) -> None:
        """The state and the threads; once."""
        await self.resident.settle()
        await self._workers.close(self.state.close)

    def find(self, file: FileSpec) -> Blob | None:
        """The blob of a pinned file, if its identity is known and it is on NVMe."""
        digest = file.digest or self.seen.get(file.source_key)
        return self.blobs.get(digest) if digest else None

    async def record(self, record: BlobRecord, source_key: str, deliverer: str = "") -> Blob:
        """A blob that was committed to the store is now known, and RESIDENT on NVMe. It is verified at least as far as
        bytes of its digest ever were. `deliverer`: text of the ref whose source has just sent all of its bytes."""
        reached = max(record.verification, self._reached.get(record.digest, Verification.SIZE))
        record = msgspec.structs.replace(record, verification=reached)
        await self._records.put(record, source_key, deliverer)
        self.rights.delivered(record.digest, deliverer)
        if source_key:
            self.seen[source_key] = record.digest
        blob = self.blobs.get(record.digest)
        if blob is None:
            blob = self.blobs[record.digest] = Blob(record)
            blob.arrive_on_nvme()
            for model in self.snapshots:
                model.replace(blob)
        blob.record = record
        self.moved(blob)
        return blob

    async def confirm(self, blob: Blob, file: FileSpec) -> None:
        """Somebody gave the digest of a blob that was not verified by it: now it is. A CRC that somebody gives proves
        nothing of bytes that were not compared with it, and changes nothing here."""
        if file.digest != blob.record.digest or blob.record.verification >= Verification.SHA256:
            return
        async with self.recording(blob.record.digest):
            if self.blobs.get(blob.record.digest) is blob:
                await self.record(msgspec.structs.replace(blob.record, verification=Verification.SHA256), "")

    async def verified(self, blob: Blob, when: float) -> None:
        """Its copy on NVMe had its digest at `when`. Does nothing for a blob that was dropped since."""
        if self.blobs.get(blob.record.digest) is not blob:
            return
        await self.write(self.state.set_verified, blob.record.digest, when)
        blob.record = msgspec.structs.replace(blob.record, last_verified=when)
        for model in self.snapshots:
            if model.has(blob):
                model.renew()

    async def drop(self, blob: Blob) -> None:
        """A blob on NVMe proved damaged: forget it. What can be proven of it is kept as an ingest, so that its
        repair fetches only the rest. What is mapped or resident in shm is not touched. Done also when the caller is
        cancelled."""
        await finish(asyncio.ensure_future(self._drop(blob)))

    async def _drop(self, blob: Blob) -> None:
        async with self.dropping, self.recording(blob.record.digest):
            if self.blobs.get(blob.record.digest) is blob:
                await self._drop_now(blob)

    async def _drop_now(self, blob: Blob) -> None:
        del self.blobs[blob.record.digest]
        self.seen = {k: d for k, d in self.seen.items() if d != blob.record.digest}
        blob.nvme.to(Residency.EVICTING)
        self._reached[blob.record.digest] = blob.record.verification
        try:
            try:
                await self.write(self.state.drop_blob, blob.record.digest)
            finally:  # A record that could not be dropped must not vouch for it at the next start.
                await self.io(self._set_aside, blob)
                await self.kept.refresh()
        finally:
            # Not before it is counted as kept: somebody might take the room that it still has.
            self.nvme.free(blob.footprint)
        blob.nvme.to(Residency.ABSENT)
        self.moved(blob)

    def sealed(self, blob: Blob, segment: Segment) -> None:
        """Its segment holds it now. Recorded in the background, for the next process to adopt."""
        blob.segment = segment
        blob.shm.to(Residency.RESIDENT)
        self.resident.add(blob.record.digest, segment)
        self.moved(blob)

    async def detach(self, blob: Blob) -> None:
        """Its segment proved damaged: not served from now on, whatever else fails; what is mapped of it stays as it is.
        Done also when the caller is cancelled."""
        await finish(asyncio.ensure_future(self._leave_shm(self._evicting([blob]), damaged=True)))

    async def leave_shm(self, blobs: Iterable[Blob]) -> Left:
        """Every link to them leads to NVMe, then their segments lose their names. Raises what the links raise, and then
        they stay. Done also when the caller is cancelled. What the caller saw when it called holds until they are
        EVICTING: nobody leases them in between."""
        going = self._evicting(blobs)
        return await finish(asyncio.ensure_future(self._leave_shm(going, damaged=False)))

    def _evicting(self, blobs: Iterable[Blob]) -> list[Blob]:
        """Those of them that were resident, and are served no more."""
        going = [b for b in blobs if b.in_shm]
        for blob in going:
            blob.shm.to(Residency.EVICTING)
            self.moved(blob)
        return going

    async def _leave_shm(self, going: Sequence[Blob], *, damaged: bool) -> Left:
        """They are EVICTING. Those that cannot go stay, unless they are `damaged`, whatever else is raised."""
        errors: list[Exception] = []
        try:
            await self._lead_away(self._having(going))
        except (WeightdError, OSError) as e:
            errors.append(e)
            if not damaged:
                await self._stay(going)
                raise
        tried = await self.io(_retire_all, [b.segment for b in going if b.segment is not None])
        done = list(zip(going, tried, strict=True))
        left = self._left([(b, r) for b, r in done if not isinstance(r, WeightdError)])
        failed = [b for b, r in done if isinstance(r, WeightdError)]
        if damaged:
            self._withdraw(failed)
        else:
            await self._stay(failed)
            errors += [r for r in tried if isinstance(r, WeightdError)]
        if errors:
            raise errors[0]
        return left

    async def _lead_away(self, models: Sequence[Model]) -> None:
        """No link leads to what is EVICTING, and nobody is on the way by one that did."""
        for model in models:
            await self.links.link(model)
        if models:
            await self.io(paths_followed)

    async def _stay(self, blobs: Sequence[Blob]) -> None:
        """They could not go, and are served as before; by other links, where those cannot be switched back."""
        owned = [b for b in blobs if self._owned(b)]
        self._withdraw([b for b in blobs if b not in owned])
        for blob in owned:
            blob.shm.to(Residency.RESIDENT)
            self.moved(blob)
        for model in self._having(owned):
            with suppress(WeightdError, OSError):
                await self.links.link(model)

    def _owned(self, blob: Blob) -> bool:
        """One that was dropped meanwhile, and has come anew, is another's."""
        return self.blobs.get(blob.record.digest) is blob or any(m.has(blob) for m in self.snapshots)

    def _left(self, retired: Sequence[tuple[Blob, Residue | None]]) -> Left:
        size = sum(b.footprint for b, _ in retired)
        residues = [r for _, r in retired if r is not None]
        draining = sum(r.size for r in residues)
        self._absent(b for b, _ in retired)
        self.shm.free(size - draining)
        self.drains.add(residues)
        return Left(size, draining)

    def _withdraw(self, blobs: Sequence[Blob]) -> None:
        """They have their names and their memory, and are not served: tried again until they are gone."""
        stuck = [Stuck(b.segment) for b in blobs if b.segment is not None]
        self._absent(blobs)
        self.drains.add(stuck)

    def _absent(self, blobs: Iterable[Blob]) -> None:
        for blob in blobs:
            blob.segment = None
            blob.shm.to(Residency.ABSENT)
            self.moved(blob)
            self.resident.drop([blob.record.digest])

    def _having(self, blobs: Iterable[Blob]) -> list[Model]:
        blobs = list(blobs)
        return [m for m in self.snapshots if any(m.has(b) for b in blobs)]

    async def detach_unused(self, blobs: Iterable[Blob]) -> None:
        """Those that no model has: nobody can have mapped them."""
        async with self.publishing:  # a model that is being linked is not yet among them
            await self.leave_shm(b for b in blobs if not any(model.has(b) for model in self.snapshots))

    def _set_aside(self, blob: Blob) -> None:
        record = blob.record
        self.links.withdraw(record.digest)
        if not self.store.salvage(record.digest, record.size, record.part_size, blob.checksums()):
            self.store.delete(record.digest)

    def moved(self, blob: Blob) -> None:
        """Its residency or verification changed: every model that has it shows and links it anew."""
        for model in self.snapshots:
            if model.has(blob):
                model.moved()

    async def delete(self, blob: Blob) -> None:
        """One without a record, of which nothing else knows."""
        blob.nvme.to(Residency.EVICTING)
        try:
            await self._leave_shm(self._evicting([blob]), damaged=True)
            await self.io(self.links.withdraw, blob.record.digest)
            await self.io(self.store.delete, blob.record.digest)
        finally:
            self.nvme.free(blob.footprint)
            blob.nvme.to(Residency.ABSENT)

    @contextmanager
    def holding(self, digests: Collection[Digest]) -> Iterator[None]:
        """Blobs of these digests, those that are added later among them, are not dropped by policy meanwhile."""
        token = object()
        self._holds[token] = digests
        try:
            yield
        finally:
            del self._holds[token]
            self.settled()

    @contextmanager
    def using(self, models: Collection[Model]) -> Iterator[None]:
        """These stay held meanwhile."""
        for model in models:
            model.users += 1
        try:
            yield
        finally:
            for model in models:
                model.users -= 1
            self.settled()

    def unnamed(self, blob: Blob) -> bool:
        """Whether it is here, and no snapshot has it."""
        return self.blobs.get(blob.record.digest) is blob and not any(m.has(blob) for m in self.snapshots)

    def wanted(self, digest: Digest) -> bool:
        """Whether something under way counts on it."""
        return any(digest in digests for digests in self._holds.values())

    async def relink(self, model: Model) -> None:
        """Where its links no longer lead where its blobs are."""
        if not model.linked and all(self.blobs.get(b.record.digest) is b for b in model.blobs.values()):
            await self.links.link(model)

    def model(self, ref: Ref, revision: str = "") -> Model:
        """The current snapshot of a ref, or the one of a revision. Raises ModelNotFound."""
        model = self.snapshots.find(ref, revision) if revision else self.models.get(ref.text)
        if model is None:
            what = f"revision {revision[:100]} of the model" if revision else "the model"
            raise ModelNotFound(f"this host does not hold {what}", ref=ref.shown, remedy="Fetch it first.")
        return model

    def known(self, ref: Ref) -> Ref:
        """One of which any snapshot is held. Raises ModelNotFound."""
        return ref if self.snapshots.of(ref) else self.model(ref).ref

    def touch(self, model: Model) -> None:
        """It is used now."""
        model.last_used = time.time()


def _retire_all(segments: list[Segment]) -> list[Residue | WeightdError | None]:
    """Each of them, whatever another one raises."""
    done: list[Residue | WeightdError | None] = []
    for segment in segments:
        try:
            done.append(segment.retire())
        except WeightdError as e:
            done.append(e)
    return done
