"""Snapshots begin and cease to be held: their directories, their records, and which one is current."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager

from weightd.core.digest import Digest
from weightd.core.errors import DiskFull, WeightdError
from weightd.core.manifest import Manifest, told_apart
from weightd.core.policy import Rules
from weightd.core.refs import Ref, parse_ref
from weightd.engine.catalog import Catalog
from weightd.engine.held import Blob, Model
from weightd.storage.state import ModelRecord
from weightd.threads import finish

log = logging.getLogger(__name__)


class Published:
    """Of the blobs in `catalog`. On the event loop."""

    def __init__(self, catalog: Catalog, rules: Rules) -> None:
        self._catalog, self._rules = catalog, rules
        self.pins: set[str] = set()
        """Texts of refs."""

    async def start(self) -> None:
        """What is recorded, after the blobs are known. The oldest snapshots come first. An old one that misses a blob
        is dropped; a current one is fetched again, and what is left of it need not come then."""
        catalog = self._catalog
        self.pins = set(await catalog.write(catalog.state.pins))
        records = await catalog.write(catalog.state.models)
        whole = [all(d in catalog.blobs for d in r.digests.values()) for r in records]
        for record, one in zip(records, whole, strict=True):
            if not one and not record.current:
                kept = [r for r, w in zip(records, whole, strict=True) if w or r.current]
                await self._drop_broken(record, {d for r in kept for d in r.digests.values()})
        ours = [r for r, w in zip(records, whole, strict=True) if w or r.current]
        await catalog.links.drop_others({(parse_ref(r.ref).key, r.manifest.revision) for r in ours})
        for record, one in zip(records, whole, strict=True):
            if one:
                await self._adopt(record)

    async def _drop_broken(self, record: ModelRecord, others: set[Digest]) -> None:
        """`others`: digests of what is kept."""
        ref, held = parse_ref(record.ref), self._catalog.blobs
        blobs = {path: held[d] for path, d in record.digests.items() if d in held and d not in others}
        model = self._model(ref, record.manifest, blobs, record.last_used)
        with _told(model, "is not removed as a whole"):
            await self.forget(model, set(blobs.values()))

    async def _adopt(self, record: ModelRecord) -> None:
        blobs = {path: self._catalog.blobs[d] for path, d in record.digests.items()}
        model = self._model(parse_ref(record.ref), record.manifest, blobs, record.last_used)
        with _told(model, "is not shown in its directory"):
            await self._catalog.links.link(model)
            if record.current:
                await self._catalog.links.switch(model, record.manifest)
        if record.current:
            self._catalog.snapshots.switch(model)
        else:
            self._catalog.snapshots.add_old(model)

    def _model(self, ref: Ref, manifest: Manifest, blobs: dict[str, Blob], used: float) -> Model:
        catalog = self._catalog
        model = Model(ref, manifest, blobs, catalog.links.directory(ref, manifest), used)
        model.rule, model.pinned = self._rules.of(ref), ref.text in self.pins
        model.segment_directory = catalog.segments.directory
        model.tenants = catalog.rights.who(ref)
        return model

    async def pin(self, ref: Ref, since: float | None) -> None:
        """An operator's word, or its end, which is None."""
        await self._catalog.write(self._catalog.state.set_pin, ref.text, since)
        if since is None:
            self.pins.discard(ref.text)
        else:
            self.pins.add(ref.text)
        for model in self._catalog.snapshots.of(ref):
            model.pinned = since is not None

    async def publish(self, ref: Ref, manifest: Manifest, digests: dict[str, Digest], used: float) -> Model | None:
        """Make a snapshot the current one of its ref: until it is whole, the former one is; that one stays beside it.

        Returns None where one of the blobs has proved damaged since; then nothing changed.
        """
        catalog = self._catalog
        async with catalog.publishing:
            blobs = {path: catalog.blobs[d] for path, d in digests.items() if d in catalog.blobs}
            if len(blobs) < len(digests):
                return None
            model = catalog.snapshots.find(ref, manifest.revision)
            if model is not None and model.digests != digests:
                # Its origin names no version, or named two alike: a snapshot is not altered.
                manifest = told_apart(manifest, digests)
                model = catalog.snapshots.find(ref, manifest.revision)
            if model is None:
                model = self._model(ref, manifest, blobs, used)
            await self._show(model, blobs)
            if catalog.models.get(ref.text) is not model or model.manifest != manifest:
                await self._make_current(model, manifest)
            return model

    async def renew(self, model: Model, digests: dict[str, Digest]) -> bool:
        """Its blobs are all here again, and its leases go on. False where one has proved damaged since, or where the
        snapshot is no longer held."""
        catalog = self._catalog
        async with catalog.publishing:
            blobs = {path: catalog.blobs[d] for path, d in digests.items() if d in catalog.blobs}
            if model not in catalog.snapshots or len(blobs) < len(digests):
                return False
            await self._show(model, blobs)
            if catalog.models.get(model.ref.text) is model:
                await catalog.links.show_current(model)
            return True

    async def _show(self, model: Model, blobs: dict[str, Blob]) -> None:
        """Links first: what cannot be linked is not recorded either."""
        if model.blobs != blobs:
            model.blobs = blobs
        await self._catalog.links.link(model)

    async def _make_current(self, model: Model, manifest: Manifest) -> None:
        catalog = self._catalog
        former = catalog.models.get(model.ref.text)
        await catalog.links.switch(model, manifest)
        record = ModelRecord(model.ref.text, manifest, model.digests, model.last_used)
        try:
            await catalog.write(catalog.state.put_model, record)
        except BaseException:
            if former is not None:
                await catalog.links.switch(former, former.manifest)
            raise
        model.manifest = manifest
        model.renew()
        catalog.snapshots.switch(model)

    async def forget(self, model: Model, own: Collection[Blob]) -> None:
        """A snapshot, and those of its blobs that no other has: first their records, at one stroke, so that after
        a crash nothing counts what is left of their bytes, and the next start removes it. What is mapped of them stays
        as it is. Its caller holds `publishing`, `dropping` and `recording` of each; done also when it is cancelled.

        From the call on nobody finds them, so that nobody leases or counts on them while their records go.
        """
        here = [b for b in own if self._catalog.blobs.get(b.record.digest) is b]
        self._hide(here)
        put_back = self._catalog.snapshots.remove(model)
        await finish(asyncio.ensure_future(self._forget(model, own, here, put_back)))

    async def _forget(
        self, model: Model, own: Collection[Blob], here: Sequence[Blob], put_back: Callable[[], None]
    ) -> None:
        catalog = self._catalog
        gone = {b.record.digest for b in own}
        left = catalog.rights.left(model, catalog.snapshots, gone)
        dropped = (model.ref.text, model.manifest.revision, gone)
        try:
            await catalog.write(catalog.state.drop_model, *dropped, left.digests, left.heirs)
        except BaseException:
            self._show_again(here)
            put_back()
            raise
        catalog.seen = {k: d for k, d in catalog.seen.items() if d not in gone}
        catalog.rights.forget(gone)
        catalog.rights.leave(left)
        async with AsyncExitStack() as stack:  # All of it, whatever fails of it.
            for blob in here:
                stack.push_async_callback(catalog.delete, blob)
            await catalog.links.remove(model)

    async def forget_blob(self, blob: Blob) -> None:
        """One that is here, and that no snapshot has. Locked, and done, as `forget`."""
        self._hide([blob])
        await finish(asyncio.ensure_future(self._forget_blob(blob)))

    async def _forget_blob(self, blob: Blob) -> None:
        catalog, digest = self._catalog, blob.record.digest
        try:
            await catalog.write(catalog.state.drop_blob, digest)
        except BaseException:
            self._show_again([blob])
            raise
        catalog.seen = {k: d for k, d in catalog.seen.items() if d != digest}
        catalog.rights.forget([digest])
        await catalog.delete(blob)

    def _hide(self, blobs: Iterable[Blob]) -> None:
        for blob in blobs:
            del self._catalog.blobs[blob.record.digest]

    def _show_again(self, blobs: Iterable[Blob]) -> None:
        self._catalog.blobs |= {b.record.digest: b for b in blobs}


@contextmanager
def _told(model: Model, what: str) -> Iterator[None]:
    """What stands in the way of one model keeps no other from being served; who asks for it is told as well. Raises
    DiskFull, which is about all."""
    try:
        yield
    except DiskFull:
        raise
    except (WeightdError, OSError) as e:
        log.warning("%s %s: %s", model.ref.shown, what, e)
