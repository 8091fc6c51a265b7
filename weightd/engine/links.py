"""Model directories that lead where blobs are, and follow them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from weightd.core.digest import Digest
from weightd.core.manifest import Manifest
from weightd.core.refs import Ref
from weightd.engine.held import Blob, Model
from weightd.engine.tenant_links import TenantLinks
from weightd.storage.protocols import BlobStore
from weightd.storage.snapshots import ModelDirectories


class Links:
    """On the event loop; `io` runs a blocking call. `open` first, in a thread."""

    def __init__(self, root: Path, store: BlobStore, io: Callable[..., Awaitable[Any]]) -> None:
        self._root, self._store, self._io = root, store, io
        self.tenants: TenantLinks | None = None
        """Where there are tenants: told of all."""
        self._turns: WeakKeyDictionary[Model, asyncio.Lock] = WeakKeyDictionary()

    def open(self) -> None:
        """Blocking. What an earlier process left half built goes."""
        self._directories = ModelDirectories(self._root)
        self._directories.drop_leftovers()
        if self.tenants is not None:
            self.tenants.open()

    def directory(self, ref: Ref, manifest: Manifest) -> Path:
        """Of a snapshot, whether it is there or not."""
        return self._directories.path(ref.key, manifest.revision)

    async def link(self, model: Model) -> None:
        """Make every name lead where its blob is now. Of two at the same time the later one sees what changed."""
        async with self._turns.setdefault(model, asyncio.Lock()):
            targets = {path: self._where(blob) for path, blob in model.blobs.items()}
            model.linked = True  # unless something moves before all links are made
            try:
                await self._io(self._directories.publish, model.ref.key, model.manifest.revision, targets)
                if self.tenants is not None:
                    await self.tenants.link(model, targets)
            except BaseException:
                model.linked = False
                raise

    def _where(self, blob: Blob) -> Path:
        if blob.in_shm and blob.segment is not None and blob.segment.name:
            return blob.segment.path
        return self._store.path(blob.record.digest)

    async def switch(self, model: Model, manifest: Manifest) -> None:
        """`current` of its ref leads to this snapshot."""
        await self._io(self._directories.switch, model.ref.key, manifest.revision)
        await self._show_current(model, manifest.revision)

    async def show_current(self, model: Model) -> None:
        """`current` leads to it already, but not of tenants who come to see it only now."""
        await self._show_current(model, model.manifest.revision)

    async def _show_current(self, model: Model, revision: str) -> None:
        if self.tenants is not None:
            await self.tenants.switch(model, revision)

    async def remove(self, model: Model) -> None:
        """Its directory goes, and `current` with it where that leads here."""
        await self._io(self._directories.remove, model.ref.key, model.manifest.revision)
        if self.tenants is not None:
            await self.tenants.remove(model)

    async def drop_others(self, known: Collection[tuple[str, str]]) -> None:
        """Directories of no snapshot (key, revision) that is known."""
        await self._io(self._directories.drop_others, known)

    async def admit(self, blob: Blob) -> None:
        """Its file on disk was replaced: who may read it still may."""
        if self.tenants is not None:
            await self.tenants.admit(blob)

    def withdraw(self, digest: Digest) -> None:
        """Blocking. The blob is about to leave its place."""
        if self.tenants is not None:
            self.tenants.withdraw(digest)

    async def settle(self, blobs: Iterable[Blob]) -> None:
        """At the start, once all that is held is known and linked."""
        if self.tenants is not None:
            await self.tenants.settle(blobs)
