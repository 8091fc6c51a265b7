"""What this host holds: blobs by digest, models by ref. Changed on the event loop only; written through to State."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Final, TypeVar
from weakref import WeakValueDictionary

import msgspec

from weightd.core.budget import Budget
from weightd.core.digest import Digest
from weightd.core.errors import Draining, ModelNotFound, WeightdError
from weightd.core.lifecycle import Residency
from weightd.core.manifest import FileSpec, Manifest, told_apart
from weightd.core.refs import Ref, parse_ref
from weightd.core.verification import Verification
from weightd.engine.held import Blob, Model, Snapshots
from weightd.engine.kept import KeptIngests
from weightd.engine.records import Records
from weightd.engine.threads import finish
from weightd.storage.pages import footprint
from weightd.storage.protocols import BlobStore, SegmentStore
from weightd.storage.snapshots import ModelDirectories
from weightd.storage.state import BlobRecord, ModelRecord, State

T = TypeVar("T")

IO_THREADS: Final = 16
"""For blocking calls of all transfers together; so many files are made durable side by side."""


class Catalog:
    """Blobs, models and the budgets of both tiers."""

    def __init__(
        self, *, segments: SegmentStore, blobs: BlobStore, state: State, models: Path, shm: Budget, nvme: Budget
    ) -> None:
        self.segments, self.store, self.shm, self.nvme = segments, blobs, shm, nvme
        self.blobs: dict[Digest, Blob] = {}
        self.seen: dict[str, Digest] = {}
        self.snapshots = Snapshots()
        self._state = state
        self._models_root = models
        self._reached: dict[Digest, Verification] = {}
        """Of blobs that were dropped: how far bytes of that digest were verified, whoever brings them again."""
        self._io = ThreadPoolExecutor(IO_THREADS, "weightd-io")
        self._db = ThreadPoolExecutor(1, "weightd-state")
        self._closed = False
        self.kept = KeptIngests(blobs, nvme, self.io)
        self.dropping = asyncio.Lock()
        """Held until what is dropped has been put where its repair finds it."""
        self.publishing = asyncio.Lock()
        """Held while a snapshot begins or ceases to be held."""
        self.settled: Callable[[], None] = lambda: None
        """Called when what kept a snapshot from being dropped may have ended."""
        self._holds: dict[int, Collection[Digest]] = {}
        self._recording: WeakValueDictionary[Digest, asyncio.Lock] = WeakValueDictionary()
        self._records = Records(state, self._write)

    @property
    def models(self) -> dict[str, Model]:
        """The current snapshots, by the text of the ref."""
        return self.snapshots.current

    async def io(self, call: Callable[..., T], *args: object) -> T:
        """A blocking call in a thread; its end is awaited even when the caller is cancelled. Raises Draining after
        `close`."""
        return await self._run(self._io, call, *args)

    async def _write(self, call: Callable[..., T], *args: object) -> T:
        return await self._run(self._db, call, *args)

    async def _run(self, threads: ThreadPoolExecutor, call: Callable[..., T], *args: object) -> T:
        if self._closed:
            raise Draining("the daemon has stopped", remedy="Try again when it has been started again.")
        return await finish(asyncio.get_running_loop().run_in_executor(threads, call, *args))

    def recording(self, digest: Digest) -> asyncio.Lock:
        """Held by whoever records or drops a blob of this digest, from the look whether it is known."""
        return self._recording.setdefault(digest, asyncio.Lock())

    async def start(self) -> None:
        """Read what is on disk, trust what is recorded and has its size, drop the rest."""
        await self._write(self._state.open)
        records = await self._write(self._state.blobs)
        kept = await self.io(self._survey, records)
        for record in kept:
            blob = self.blobs[record.digest] = Blob(record)
            blob.nvme.to(Residency.FILLING)
            blob.nvme.to(Residency.RESIDENT)
            self.nvme.adopt(footprint(record.size))
        for record in records:
            if record.digest not in self.blobs:
                await self._write(self._state.drop_blob, record.digest)
        self.seen = {k: d for k, d in (await self._write(self._state.seen)).items() if d in self.blobs}
        await self._adopt_all(await self._write(self._state.models))

    def _survey(self, records: list[BlobRecord]) -> list[BlobRecord]:
        self.segments.drop_leftovers()
        self._directories = ModelDirectories(self._models_root)
        self._directories.drop_leftovers()
        kept = [r for r in records if r.sound and self.store.size(r.digest) == r.size]
        # A blob without a record was renamed but not recorded before a crash: only its ledger can prove it.
        for digest in set(self.store.digests()) - {r.digest for r in kept}:
            if not self.store.restore(digest):
                self.store.delete(digest)
        self.store.drop_leftovers()
        return kept

    async def _adopt_all(self, records: list[ModelRecord]) -> None:
        """The oldest snapshots come first. An old one that misses a blob is dropped; a current one is fetched again,
        and what is left of it need not come then."""
        whole = [all(d in self.blobs for d in r.digests.values()) for r in records]
        for record, one in zip(records, whole, strict=True):
            if not one and not record.current:
                kept = [r for r, w in zip(records, whole, strict=True) if w or r.current]
                await self._drop_broken(record, {d for r in kept for d in r.digests.values()})
        ours = [r for r, w in zip(records, whole, strict=True) if w or r.current]
        await self.io(self._directories.drop_others, {(parse_ref(r.ref).key, r.manifest.revision) for r in ours})
        for record, one in zip(records, whole, strict=True):
            if one:
                await self._adopt(record)

    async def _drop_broken(self, record: ModelRecord, others: set[Digest]) -> None:
        ref, digests = parse_ref(record.ref), record.digests.values()
        blobs = {path: self.blobs[d] for path, d in record.digests.items() if d in self.blobs}
        model = Model(ref, record.manifest, blobs, self._directory(ref, record.manifest), record.last_used)
        await self.forget(model, [self.blobs[d] for d in set(digests) - others if d in self.blobs])

    async def _adopt(self, record: ModelRecord) -> None:
        ref, blobs = parse_ref(record.ref), {path: self.blobs[d] for path, d in record.digests.items()}
        model = Model(ref, record.manifest, blobs, self._directory(ref, record.manifest), record.last_used)
        await self._link(model)
        if record.current:
            await self.io(self._directories.switch, ref.key, record.manifest.revision)
            self.snapshots.switch(model)
        else:
            self.snapshots.add_old(model)

    async def stop(self) -> None:
        """Point the directories at NVMe, unlink every segment, close the state. Maps of workers stay valid.

        What fails does not keep the rest from being done; the first error is raised at the end.
        """
        errors: list[WeightdError] = []
        resident = [b for b in self.blobs.values() if b.in_shm]
        for blob in resident:
            blob.shm.to(Residency.EVICTING)
        for model in list(self.snapshots):
            model.moved()
            try:
                await self._link(model)
            except WeightdError as e:
                errors.append(e)
        for blob in resident:
            if blob.segment is not None:
                await self.io(blob.segment.unlink)
            blob.segment = None
            blob.shm.to(Residency.ABSENT)
            self.shm.free(footprint(blob.record.size))
        await self.close()
        for error in errors:
            raise error

    async def close(self) -> None:
        """The state and the threads; once."""
        last = asyncio.get_running_loop().run_in_executor(self._db, self._state.close)
        self._closed = True
        await finish(last)
        self._io.shutdown()
        self._db.shutdown()

    def find(self, file: FileSpec) -> Blob | None:
        """The blob of a pinned file, if its identity is known and it is on NVMe."""
        digest = file.digest or self.seen.get(file.source_key)
        return self.blobs.get(digest) if digest else None

    async def record(self, record: BlobRecord, source_key: str) -> Blob:
        """A blob that was committed to the store is now known, and RESIDENT on NVMe. It is verified at least as far as
        bytes of its digest ever were."""
        reached = max(record.verification, self._reached.get(record.digest, Verification.SIZE))
        record = msgspec.structs.replace(record, verification=reached)
        await self._records.put(record, source_key)
        if source_key:
            self.seen[source_key] = record.digest
        blob = self.blobs.get(record.digest)
        if blob is None:
            blob = self.blobs[record.digest] = Blob(record)
            blob.nvme.to(Residency.FILLING)
            blob.nvme.to(Residency.RESIDENT)
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
        await self._write(self._state.set_verified, blob.record.digest, when)
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
            await self._write(self._state.drop_blob, blob.record.digest)
            await self.io(self._set_aside, blob)
            await self.kept.refresh()
        finally:
            # Not before it is counted as kept: somebody might take the room that it still has.
            self.nvme.free(footprint(blob.record.size))
        blob.nvme.to(Residency.ABSENT)
        self.moved(blob)

    async def detach(self, blob: Blob) -> None:
        """Its segment is no longer resident; what is mapped of it stays as it is. Done also when the caller is
        cancelled."""
        await finish(asyncio.ensure_future(self._detach(blob)))

    async def _detach(self, blob: Blob) -> None:
        segment = blob.segment
        if segment is None or not blob.in_shm:
            return
        blob.shm.to(Residency.EVICTING)
        blob.segment = None
        self.moved(blob)
        await self.io(segment.unlink)
        self.shm.free(footprint(blob.record.size))
        blob.shm.to(Residency.ABSENT)
        self.moved(blob)

    async def detach_unused(self, blobs: Iterable[Blob]) -> None:
        """Those that no model has: nobody can have mapped them."""
        async with self.publishing:  # a model that is being linked is not yet among them
            for blob in blobs:
                if not any(model.has(blob) for model in self.snapshots):
                    await self.detach(blob)

    def _set_aside(self, blob: Blob) -> None:
        record = blob.record
        if not self.store.salvage(record.digest, record.size, record.part_size, blob.checksums()):
            self.store.delete(record.digest)

    def moved(self, blob: Blob) -> None:
        """Its residency or verification changed: every model that has it shows and links it anew."""
        for model in self.snapshots:
            if model.has(blob):
                model.moved()

    async def publish(self, ref: Ref, manifest: Manifest, digests: dict[str, Digest], used: float) -> Model | None:
        """Make a snapshot the current one of its ref: until it is whole, the former one is; that one stays beside it.

        Returns None where one of the blobs has proved damaged since; then nothing changed.
        """
        async with self.publishing:
            blobs = {path: self.blobs[d] for path, d in digests.items() if d in self.blobs}
            if len(blobs) < len(digests):
                return None
            model = self.snapshots.find(ref, manifest.revision)
            if model is not None and model.digests != digests:
                # Its origin names no version, or named two alike: a snapshot is not altered.
                manifest = told_apart(manifest, digests)
                model = self.snapshots.find(ref, manifest.revision)
            if model is None:
                model = Model(ref, manifest, blobs, self._directory(ref, manifest), used)
            await self._show(model, blobs)
            if self.models.get(ref.text) is not model or model.manifest != manifest:
                await self._make_current(model, manifest)
            return model

    async def renew(self, model: Model, digests: dict[str, Digest]) -> bool:
        """Its blobs are all here again, and its leases go on. False where one has proved damaged since, or where the
        snapshot is no longer held."""
        async with self.publishing:
            blobs = {path: self.blobs[d] for path, d in digests.items() if d in self.blobs}
            if model not in self.snapshots or len(blobs) < len(digests):
                return False
            await self._show(model, blobs)
            return True

    async def _show(self, model: Model, blobs: dict[str, Blob]) -> None:
        """Links first: what cannot be linked is not recorded either."""
        if model.blobs != blobs:
            model.blobs = blobs
        await self._link(model)

    async def _make_current(self, model: Model, manifest: Manifest) -> None:
        former = self.models.get(model.ref.text)
        key, revision = model.ref.key, manifest.revision
        await self.io(self._directories.switch, key, revision)
        record = ModelRecord(model.ref.text, manifest, model.digests, model.last_used)
        try:
            await self._write(self._state.put_model, record)
        except BaseException:
            if former is not None:
                await self.io(self._directories.switch, key, former.manifest.revision)
            raise
        model.manifest = manifest
        model.renew()
        self.snapshots.switch(model)

    async def forget(self, model: Model, own: Collection[Blob]) -> None:
        """An old snapshot, and those of its blobs that no other has: first their records, at one stroke, so that after
        a crash nothing counts what is left of their bytes, and the next start removes it. What is mapped of them stays
        as it is. Its caller holds `publishing`, `dropping` and `recording` of each; done also when it is cancelled."""
        await finish(asyncio.ensure_future(self._forget(model, own)))

    async def _forget(self, model: Model, own: Collection[Blob]) -> None:
        here = [b for b in own if self.blobs.get(b.record.digest) is b]
        gone = {b.record.digest for b in own}
        # Not found from now on, so that nobody counts on them while their records go.
        for blob in here:
            del self.blobs[blob.record.digest]
        try:
            await self._write(self._state.drop_model, model.ref.text, model.manifest.revision, gone)
        except BaseException:
            self.blobs |= {b.record.digest: b for b in here}
            raise
        self.snapshots.remove(model)
        self.seen = {k: d for k, d in self.seen.items() if d not in gone}
        async with AsyncExitStack() as stack:  # All of it, whatever fails of it.
            for blob in here:
                stack.push_async_callback(self._delete, blob)
            await self.io(self._directories.remove, model.ref.key, model.manifest.revision)

    async def _delete(self, blob: Blob) -> None:
        """One without a record, of which nothing else knows."""
        blob.nvme.to(Residency.EVICTING)
        try:
            await self._detach(blob)
            await self.io(self.store.delete, blob.record.digest)
        finally:
            self.nvme.free(footprint(blob.record.size))
            blob.nvme.to(Residency.ABSENT)

    @contextmanager
    def holding(self, digests: Collection[Digest]) -> Iterator[None]:
        """Blobs of these digests, those that are added later among them, are not dropped by policy meanwhile."""
        self._holds[id(digests)] = digests
        try:
            yield
        finally:
            del self._holds[id(digests)]
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

    def wanted(self, digest: Digest) -> bool:
        """Whether something under way counts on it."""
        return any(digest in digests for digests in self._holds.values())

    async def relink(self, model: Model) -> None:
        """Where its links no longer lead where its blobs are."""
        if not model.linked and all(self.blobs.get(b.record.digest) is b for b in model.blobs.values()):
            await self._link(model)

    def _directory(self, ref: Ref, manifest: Manifest) -> Path:
        return self._directories.path(ref.key, manifest.revision)

    async def _link(self, model: Model) -> None:
        targets = {path: self._where(blob) for path, blob in model.blobs.items()}
        model.linked = True  # unless something moves before all links are made
        try:
            await self.io(self._directories.publish, model.ref.key, model.manifest.revision, targets)
        except BaseException:
            model.linked = False
            raise

    def _where(self, blob: Blob) -> Path:
        if blob.in_shm and blob.segment is not None and blob.segment.name:
            return blob.segment.path
        return self.store.path(blob.record.digest)

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
