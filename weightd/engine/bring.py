"""Make all files of a manifest resident where they are wanted, each moved once however many ask.

Every caller works on a plan of its own; what is under way already is claimed by another, and waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from weightd.core.digest import Digest
from weightd.core.errors import Corruption
from weightd.core.manifest import FileSpec, Manifest
from weightd.core.progress import Phase
from weightd.engine.api import Tier
from weightd.engine.catalog import Blob, Catalog, Model
from weightd.engine.flights import Flight
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
        tracker = flight.tracker
        tracker.files = manifest.files
        repairs = 0
        while True:
            items = self._plan(manifest, tier, recorded or {})
            if not items:
                return await self._confirmed(manifest, recorded or {})
            tracker.phase = Phase.LOADING if all(i.held for i in items) else Phase.FETCHING
            try:
                await self._round(manifest, items, flight)
            except DamagedBlob as e:
                repairs += 1
                await self._catalog.drop(e.blob)
                if repairs > REPAIRS:
                    raise Corruption(
                        "a blob on disk is damaged again and again",
                        ref=manifest.ref,
                        remedy="Check the disk below the state directory.",
                    ) from e

    def _find(self, file: FileSpec, recorded: Mapping[str, Digest]) -> Blob | None:
        digest = recorded.get(file.path)
        return self._catalog.blobs.get(digest) if digest else self._catalog.find(file)

    def _plan(self, manifest: Manifest, tier: Tier, recorded: Mapping[str, Digest]) -> list[Item]:
        items: dict[str, Item] = {}
        for file in manifest.files:
            blob = self._find(file, recorded)
            if blob is not None and (tier is Tier.NVME or blob.in_shm):
                continue
            expected = file.digest or recorded.get(file.path)
            key = blob.record.digest if blob else expected or file.source_key or f"{file.url}\0{file.size}"
            items.setdefault(key, Item(key, file, expected, blob, into_shm=tier is Tier.SHM))
        return list(items.values())

    async def _confirmed(self, manifest: Manifest, recorded: Mapping[str, Digest]) -> dict[str, Digest]:
        digests: dict[str, Digest] = {}
        for file in manifest.files:
            blob = self._find(file, recorded)
            if blob is None:
                raise AssertionError(f"{file.path} was brought and is gone")
            await self._catalog.confirm(blob, file)
            digests[file.path] = blob.record.digest
        return digests

    async def _round(self, manifest: Manifest, items: list[Item], flight: Flight[Model]) -> None:
        """Move what nobody moves, then wait for what others move. The plan is made again afterwards."""
        mine = [i for i in items if i.key not in self._claims]
        theirs = [self._claims[i.key] for i in items if i.key in self._claims]
        flight.tracker.items = {c.item.file.path: c.item for c in theirs} | {i.file.path: i for i in mine}
        loop = asyncio.get_running_loop()
        for item in mine:
            self._claims[item.key] = Claim(flight, loop.create_future(), item)
        for claim in theirs:
            claim.flight.join()
        try:
            if mine:
                await self._mover.move(mine, manifest.ref, self._committed)
            for claim in theirs:
                await asyncio.wait([claim.blob])
        finally:
            for item in mine:
                self._release(item)
            for claim in theirs:
                claim.flight.leave()
        for claim in theirs:
            if not claim.blob.cancelled():
                claim.blob.result()

    def _committed(self, item: Item, blob: Blob) -> None:
        self._claims[item.key].blob.set_result(blob)

    def _release(self, item: Item) -> None:
        claim = self._claims.pop(item.key)
        if not claim.blob.done():
            claim.blob.cancel()
