"""Make all files of a manifest resident where they are wanted, each moved once however many ask.

Every caller works on a plan of its own; what is under way already is claimed by another, and waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from weightd.core.digest import Digest
from weightd.core.errors import Corruption, SizeMismatch
from weightd.core.manifest import FileSpec, Manifest
from weightd.core.progress import Phase
from weightd.engine.api import EventKind, Tier
from weightd.engine.catalog import Catalog
from weightd.engine.flights import Flight
from weightd.engine.held import Blob, Model
from weightd.engine.items import Claim, Item
from weightd.engine.mover import DamagedBlob, Mover

REPAIRS = 2
"""How often one bringing drops damaged blobs and fetches them again before it gives up."""


class Bringer:
    """Shared by all flights of an engine."""

    def __init__(self, catalog: Catalog, mover: Mover) -> None:
        self._catalog, self._mover = catalog, mover
        self._claims: dict[str, Claim] = {}

    async def bring(
        self,
        manifest: Manifest,
        tier: Tier,
        flight: Flight[Model],
        recorded: Mapping[str, Digest] | None = None,
    ) -> dict[str, Digest]:
        """Returns the digest of each file by path once all are RESIDENT on NVMe and, for Tier.SHM, in shm.

        `recorded` are the digests of a snapshot that is held already: files that have to be fetched again must have
        them.
        """
        known = dict(recorded or {})
        flight.blobs.update(known.values())
        tracker = flight.tracker
        tracker.files = manifest.files
        repairs = 0
        while True:
            items = self._plan(manifest, tier, known, flight.blobs)
            if not items:
                digests = await self._confirmed(manifest, known)
                if digests is not None:
                    return digests
                continue
            tracker.phase = Phase.LOADING if all(i.held for i in items) else Phase.FETCHING
            try:
                known |= await self._round(manifest, items, flight)
            except DamagedBlob as e:
                repairs += 1
                flight.report(EventKind.DAMAGED, f"blob {e.blob.record.digest} on disk: {e}")
                await self._catalog.drop(e.blob)
                if repairs > REPAIRS:
                    raise Corruption(
                        "a blob on disk is damaged again and again",
                        ref=manifest.ref,
                        remedy="Check the disk below the state directory.",
                    ) from e

    def _find(self, file: FileSpec, known: Mapping[str, Digest]) -> Blob | None:
        digest = known.get(file.path)
        blob = self._catalog.blobs.get(digest) if digest else self._catalog.find(file)
        if blob is not None and blob.record.size != file.size:
            raise SizeMismatch(
                f"the origin's file has {file.size} bytes, the one of its digest {blob.record.size}",
                file=file.path,
                remedy="The origin serves other bytes than were named: correct the digest or the origin.",
            )
        return blob

    def _plan(self, manifest: Manifest, tier: Tier, known: Mapping[str, Digest], wanted: set[Digest]) -> list[Item]:
        """What is here already is `wanted` to stay."""
        items: list[Item] = []
        by_key: dict[str, Item] = {}
        for file in manifest.files:
            blob = self._find(file, known)
            if blob is not None:
                wanted.add(blob.record.digest)
            if blob is not None and (tier is Tier.NVME or blob.in_shm):
                continue
            expected = file.digest or known.get(file.path)
            keys = _keys(file, expected, blob)
            item = next((by_key[k] for k in keys if k in by_key), None)
            if item is None:
                item = Item(keys, file, expected, blob, into_shm=tier is Tier.SHM)
                item.repairing = blob is None and file.path in known
                items.append(item)
            item.paths.append(file.path)
            by_key |= dict.fromkeys(keys, item)
        return items

    async def _confirmed(self, manifest: Manifest, known: Mapping[str, Digest]) -> dict[str, Digest] | None:
        """None when another flight found one of the blobs damaged in the meantime."""
        digests: dict[str, Digest] = {}
        for file in manifest.files:
            blob = self._find(file, known)
            if blob is None:
                return None
            await self._catalog.confirm(blob, file)
            if self._catalog.blobs.get(blob.record.digest) is not blob:
                return None
            digests[file.path] = blob.record.digest
        return digests

    async def _round(self, manifest: Manifest, items: list[Item], flight: Flight[Model]) -> dict[str, Digest]:
        """Move what nobody moves, then wait for what others move. The plan is made again afterwards.

        Returns the digests of what came, by path: an origin that names no version lets nobody find it again.
        """
        claims = [(i, self._claimed(i)) for i in items]
        mine = [i for i, claim in claims if claim is None]
        theirs = [(i, claim) for i, claim in claims if claim is not None]
        flight.tracker.items = {c.item.file.path: c.item for _, c in theirs} | {i.file.path: i for i in mine}
        loop = asyncio.get_running_loop()
        brought: dict[str, Digest] = {}
        for item in mine:
            self._claims |= dict.fromkeys(item.keys, Claim(flight, loop.create_future(), item))
        for _, claim in theirs:
            claim.flight.join()
            if flight.urgent:
                self._mover.lanes.urge(claim.flight)

        def committed(item: Item, blob: Blob) -> None:
            flight.blobs.add(blob.record.digest)
            brought.update(dict.fromkeys(item.paths, blob.record.digest))
            claim = self._claimed(item)
            if claim is not None:
                claim.blob.set_result(blob)

        try:
            if mine:
                await self._mover.move(mine, manifest.ref, flight, committed)
            for _, claim in theirs:
                await asyncio.wait([claim.blob])
        finally:
            for item in mine:
                self._release(item)
            for _, claim in theirs:
                claim.flight.leave()
        for item, claim in theirs:
            if not claim.blob.cancelled():
                brought.update(dict.fromkeys(item.paths, claim.blob.result().record.digest))
        return brought

    def _claimed(self, item: Item) -> Claim | None:
        return next((self._claims[k] for k in item.keys if k in self._claims), None)

    def _release(self, item: Item) -> None:
        for key in item.keys:
            claim = self._claims.pop(key)
            claim.blob.cancel()


def _keys(file: FileSpec, expected: Digest | None, blob: Blob | None) -> frozenset[str]:
    """Whoever brings a file under any of these brings the same bytes."""
    names = {expected or file.source_key or file.url, blob.record.digest if blob else ""}
    return frozenset(f"{name}\0{file.size}" for name in names if name)
