"""What this host holds: blobs by digest, models by ref. Changed on the event loop only; written through to State."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar
from weakref import WeakValueDictionary

import msgspec

from weightd.core.budget import Budget
from weightd.core.digest import Digest
from weightd.core.errors import Draining, ModelNotFound, WeightdError
from weightd.core.lifecycle import RESIDENCY, Lifecycle, Residency
from weightd.core.manifest import FileSpec, Manifest
from weightd.core.refs import Ref, parse_ref
from weightd.core.verification import Verification
from weightd.engine.api import FileState, ModelState, Tier
from weightd.engine.kept import KeptIngests
from weightd.engine.records import Records
from weightd.engine.threads import finish
from weightd.storage.pages import footprint
from weightd.storage.protocols import BlobStore, Segment, SegmentStore
from weightd.storage.snapshots import ModelDirectories
from weightd.storage.state import BlobRecord, ModelRecord, State

T = TypeVar("T")

IO_THREADS: Final = 16
"""For blocking calls of all transfers together; so many files are made durable side by side."""


class Blob:
    """One committed blob and where it is resident. It is in the catalog exactly while it is on NVMe."""

    __slots__ = ("nvme", "record", "segment", "shm")

    def __init__(self, record: BlobRecord) -> None:
        self.record = record
        self.nvme = Lifecycle("nvme", RESIDENCY, Residency.ABSENT)
        self.shm = Lifecycle("shm", RESIDENCY, Residency.ABSENT)
        self.segment: Segment | None = None

    @property
    def in_shm(self) -> bool:
        return self.shm.state is Residency.RESIDENT

    def checksums(self) -> list[bytes]:
        """xxh3-128 of each part."""
        raw = self.record.checksums
        return [raw[i : i + 16] for i in range(0, len(raw), 16)]

    def __repr__(self) -> str:
        return f"<Blob {self.record.digest[:19]} nvme={self.nvme.state.name} shm={self.shm.state.name}>"


class Model:
    """The current snapshot of a ref, all of its blobs committed."""

    def __init__(self, ref: Ref, manifest: Manifest, blobs: dict[str, Blob], directory: Path, used: float) -> None:
        self.ref, self.manifest, self.directory = ref, manifest, directory
        self.linked = False
        """Whether the links in `directory` lead where its blobs are now."""
        self.leases = 0
        self.last_used = used
        self._files: tuple[FileState, ...] | None = None
        self._in_shm: bool | None = None
        self.blobs = blobs

    @property
    def blobs(self) -> dict[str, Blob]:
        """By file path."""
        return self._blobs

    @blobs.setter
    def blobs(self, blobs: dict[str, Blob]) -> None:
        self._blobs, self._set = blobs, frozenset(blobs.values())
        self.moved()

    def has(self, blob: Blob) -> bool:
        """Asked of every model whenever a blob moves."""
        return blob in self._set

    @property
    def in_shm(self) -> bool:
        if self._in_shm is None:
            self._in_shm = all(b.in_shm for b in self._set)
        return self._in_shm

    def resident(self, tier: Tier) -> bool:
        """Whether all of it is there; a segment may have been dropped since it was brought."""
        return tier is Tier.NVME or self.in_shm

    @property
    def digests(self) -> dict[str, Digest]:
        """By file path."""
        return {path: blob.record.digest for path, blob in self.blobs.items()}

    def moved(self) -> None:
        """The residency or verification of one of its blobs changed."""
        self.renew()
        self._in_shm = None
        self.linked = False

    def renew(self) -> None:
        """Something else that `state` tells of one of its blobs changed."""
        self._files = None

    def state(self) -> ModelState:
        """As data. Cheap while nothing moved: an acquire makes one."""
        if self._files is None:
            self._files = tuple(_file_state(f, self.blobs[f.path]) for f in self.manifest.files)
        return ModelState(
            ref=self.ref.shown,
            revision=self.manifest.revision,
            format=self.manifest.format,
            directory=str(self.directory),
            leases=self.leases,
            last_used=self.last_used,
            files=self._files,
        )


def _file_state(file: FileSpec, blob: Blob) -> FileState:
    return FileState(
        path=file.path,
        size=file.size,
        digest=blob.record.digest,
        verification=blob.record.verification,
        shm=blob.shm.state,
        nvme=blob.nvme.state,
        segment=blob.segment.name if blob.in_shm and blob.segment else "",
        last_verified=blob.record.last_verified,
    )


class Catalog:
    """Blobs, models and the budgets of both tiers."""

    def __init__(
        self, *, segments: SegmentStore, blobs: BlobStore, state: State, models: Path, shm: Budget, nvme: Budget
    ) -> None:
        self.segments, self.store, self.shm, self.nvme = segments, blobs, shm, nvme
        self.blobs: dict[Digest, Blob] = {}
        self.seen: dict[str, Digest] = {}
        self.models: dict[str, Model] = {}
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
        self._publishing = asyncio.Lock()
        self._recording: WeakValueDictionary[Digest, asyncio.Lock] = WeakValueDictionary()
        self._records = Records(state, self._write)

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
        for model in await self._write(self._state.models):
            await self._adopt(model)

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

    async def _adopt(self, record: ModelRecord) -> None:
        if all(d in self.blobs for d in record.digests.values()):
            ref, blobs = parse_ref(record.ref), {path: self.blobs[d] for path, d in record.digests.items()}
            model = Model(ref, record.manifest, blobs, self._directory(ref, record.manifest), record.last_used)
            await self._link(model)
            self.models[ref.text] = model

    async def stop(self) -> None:
        """Point the directories at NVMe, unlink every segment, close the state. Maps of workers stay valid.

        What fails does not keep the rest from being done; the first error is raised at the end.
        """
        errors: list[WeightdError] = []
        resident = [b for b in self.blobs.values() if b.in_shm]
        for blob in resident:
            blob.shm.to(Residency.EVICTING)
        for model in self.models.values():
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
        for model in self.models.values():
            if blob in model.blobs.values():
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
        async with self._publishing:  # a model that is being linked is not yet among them
            for blob in blobs:
                if not any(model.has(blob) for model in self.models.values()):
                    await self.detach(blob)

    def _set_aside(self, blob: Blob) -> None:
        record = blob.record
        if not self.store.salvage(record.digest, record.size, record.part_size, blob.checksums()):
            self.store.delete(record.digest)

    def moved(self, blob: Blob) -> None:
        """Its residency or verification changed: every model that has it shows and links it anew."""
        for model in self.models.values():
            if model.has(blob):
                model.moved()

    async def publish(
        self, ref: Ref, manifest: Manifest, digests: dict[str, Digest], used: float, held: Model | None = None
    ) -> Model | None:
        """Make a snapshot the current one of its ref. With `held`, only if that still is the current one.

        Returns None where it is not, or where one of the blobs has proved damaged since; then nothing changed.
        """
        async with self._publishing:
            model = self.models.get(ref.text)
            blobs = {path: self.blobs[d] for path, d in digests.items() if d in self.blobs}
            if (held is not None and model is not held) or len(blobs) < len(digests):
                return None
            if model is None or model.manifest != manifest:
                model = Model(ref, manifest, blobs, self._directory(ref, manifest), used)
            await self._show(model, blobs, digests)
            self.models[ref.text] = model
            return model

    async def _show(self, model: Model, blobs: dict[str, Blob], digests: dict[str, Digest]) -> None:
        """Links first: what cannot be linked is not recorded either."""
        known = self.models.get(model.ref.text) is model and model.digests == digests
        if model.blobs != blobs:
            # The same snapshot, of which a blob was fetched again: its leases go on.
            model.blobs = blobs
        await self._link(model)
        if not known:
            await self._write(
                self._state.put_model, ModelRecord(model.ref.text, model.manifest, digests, model.last_used)
            )

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

    def model(self, ref: Ref) -> Model:
        """Raises ModelNotFound."""
        try:
            return self.models[ref.text]
        except KeyError:
            raise ModelNotFound("this host does not hold the model", ref=ref.shown, remedy="Fetch it first.") from None

    def touch(self, model: Model) -> None:
        """It is used now."""
        model.last_used = time.time()
