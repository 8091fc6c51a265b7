"""Make all files of a manifest resident where they are wanted, each moved once however many ask.

Every caller works on a plan of its own; what is under way already is claimed by another, and waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from functools import partial

from weightd.core.digest import Digest
from weightd.core.errors import Corruption, SizeMismatch
from weightd.core.manifest import FileSpec, Manifest
from weightd.core.progress import Phase
from weightd.core.refs import Ref
from weightd.core.tenants import Scope
from weightd.engine.api import EventKind, Tier
from weightd.engine.catalog import Catalog
from weightd.engine.claims import Claim, Claims
from weightd.engine.flights import Flight
from weightd.engine.held import Blob, Model
from weightd.engine.items import Item
from weightd.engine.mover import DamagedBlob, Mover

REPAIRS = 2
"""How often one bringing drops damaged blobs and fetches them again before it gives up."""

Find = Callable[[FileSpec], Blob | None]


class Bringer:
    """Shared by all flights of an engine."""

    def __init__(self, catalog: Catalog, mover: Mover) -> None:
        self._catalog, self._mover = catalog, mover
        self._claims = Claims()

    async def bring(
        self,
        ref: Ref,
        manifest: Manifest,
        tier: Tier,
        flight: Flight[Model],
        recorded: Mapping[str, Digest] | None = None,
        *,
        strict: bool = False,
    ) -> dict[str, Digest]:
        """Returns the digest of each file by path once all are RESIDENT on NVMe and, for Tier.SHM, in shm.

        `recorded` are the digests of a snapshot that is held already: files that have to be fetched again must have
        them. What is here, but does not stand for `ref` (see `tenant_rights`), is fetched from its source as if it were
        not here; if `strict`, also what is recorded.
        """
        known = dict(recorded or {})
        find = partial(self._find, ref, known, () if strict else frozenset(known))
        flight.blobs.update(known.values())
        tracker = flight.tracker
        tracker.files = manifest.files
        repairs = 0
        while True:
            items = self._plan(ref, manifest, tier, known, find, flight.blobs)
            if not items:
                digests = await self._confirmed(manifest, find)
                if digests is not None:
                    return digests
                continue
            tracker.phase = Phase.LOADING if all(i.held for i in items) else Phase.FETCHING
            try:
                known |= await self._round(ref, manifest, items, flight)
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

    def _find(self, ref: Ref, known: Mapping[str, Digest], held: Collection[str], file: FileSpec) -> Blob | None:
        digest = known.get(file.path)
        blob = self._catalog.blobs.get(digest) if digest else self._catalog.find(file)
        if blob is None:
            return None
        # Before anything is told of it, its size as well.
        if file.path not in held and not self._catalog.rights.stand_for(blob.record.digest, ref):
            return None
        if blob.record.size != file.size:
            raise SizeMismatch(
                f"the origin's file has {file.size} bytes, the one of its digest {blob.record.size}",
                file=file.path,
                remedy="The origin serves other bytes than were named: correct the digest or the origin.",
            )
        return blob

    def _plan(
        self,
        ref: Ref,
        manifest: Manifest,
        tier: Tier,
        known: Mapping[str, Digest],
        find: Find,
        wanted: set[Digest],
    ) -> list[Item]:
        """What is here already is `wanted` to stay."""
        items: list[Item] = []
        by_key: dict[str, Item] = {}
        for file in manifest.files:
            blob = find(file)
            if blob is not None:
                wanted.add(blob.record.digest)
            if blob is not None and (tier is Tier.NVME or blob.in_shm):
                continue
            expected = file.digest or known.get(file.path)
            keys = _keys(file, expected, blob)
            item = next((by_key[k] for k in keys if k in by_key), None)
            if item is None:
                item = self._item(ref, Item(keys, file, expected, blob, into_shm=tier is Tier.SHM))
                item.repairing = blob is None and file.path in known
                items.append(item)
            item.paths.append(file.path)
            by_key |= dict.fromkeys(keys, item)
        return items

    def _item(self, ref: Ref, item: Item) -> Item:
        rights = self._catalog.rights
        item.ref, item.label, item.anonymous = ref.text, rights.label(ref), bool(rights.tenants)
        item.entitled = item.expected is not None and rights.stand_for(item.expected, ref)
        return item

    async def _confirmed(self, manifest: Manifest, find: Find) -> dict[str, Digest] | None:
        """None when another flight found one of the blobs damaged in the meantime."""
        digests: dict[str, Digest] = {}
        for file in manifest.files:
            blob = find(file)
            if blob is None:
                return None
            await self._catalog.confirm(blob, file)
            if self._catalog.blobs.get(blob.record.digest) is not blob:
                return None
            digests[file.path] = blob.record.digest
        return digests

    async def _round(self, ref: Ref, manifest: Manifest, items: list[Item], flight: Flight[Model]) -> dict[str, Digest]:
        """Move what nobody moves, then wait for what others move. The plan is made again afterwards.

        Returns the digests of what came, by path: an origin that names no version lets nobody find it again.
        """
        who = self._catalog.rights.who(ref)
        claims = [(i, self._claims.find(i.keys, who)) for i in items]
        theirs = [(i, claim) for i, claim in claims if claim is not None]
        mine = {i: self._claim(i, who, flight) for i, claim in claims if claim is None}
        flight.tracker.items = {c.item.file.path: c.item for _, c in theirs} | {i.file.path: i for i in mine}
        brought: dict[str, Digest] = {}
        for _, claim in theirs:
            claim.flight.join()
            if flight.urgent:
                self._mover.lanes.urge(claim.flight)

        def committed(item: Item, blob: Blob) -> None:
            flight.blobs.add(blob.record.digest)
            brought.update(dict.fromkeys(item.paths, blob.record.digest))
            mine[item].blob.set_result(blob)
            _count(flight, item)

        try:
            if mine:
                await self._mover.move(list(mine), manifest.ref, flight, committed)
            for _, claim in theirs:
                await asyncio.wait([claim.blob])
        finally:
            for claim in mine.values():
                self._claims.remove(claim)
            for _, claim in theirs:
                claim.flight.leave()
        for item, claim in theirs:
            if not claim.blob.cancelled():
                brought.update(dict.fromkeys(item.paths, claim.blob.result().record.digest))
                _count(flight, claim.item)
        return brought

    def _claim(self, item: Item, who: Scope, flight: Flight[Model]) -> Claim:
        """What is loaded is for all who may have it."""
        scope = who | self._catalog.rights.of(item.held.record.digest) if item.held else who
        claim = Claim(flight, asyncio.get_running_loop().create_future(), item, scope)
        self._claims.add(claim)
        return claim


def _count(flight: Flight[Model], item: Item) -> None:
    flight.moved[Tier.SHM if item.held else Tier.NVME] += item.file.size


def _keys(file: FileSpec, expected: Digest | None, blob: Blob | None) -> frozenset[str]:
    """Whoever brings a file under any of these brings the same bytes."""
    names = {expected or file.source_key or file.url, blob.record.digest if blob else ""}
    return frozenset(f"{name}\0{file.size}" for name in names if name)
