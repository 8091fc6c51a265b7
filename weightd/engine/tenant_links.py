"""Model directories and rights to files of tenants, beside those that `links` keeps for all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from weightd.core.digest import Digest
from weightd.core.tenants import NOBODY, Scope, union
from weightd.engine.held import Blob, Model
from weightd.engine.tenant_rights import Rights
from weightd.storage.protocols import BlobStore
from weightd.storage.tenant_files import Due, TenantFiles


class TenantLinks:
    """On the event loop; `io` runs a blocking call. `models` gives every snapshot that is held. A snapshot is shown to
    a tenant once all of its bytes stand for its ref, and then its files may be read by it."""

    def __init__(
        self,
        files: TenantFiles,
        rights: Rights,
        store: BlobStore,
        models: Callable[[], Iterable[Model]],
        io: Callable[..., Awaitable[Any]],
    ) -> None:
        self._files, self._rights, self._store, self._models, self._io = files, rights, store, models, io
        self.open = files.open
        """Blocking."""

    async def link(self, model: Model, where: dict[str, Path]) -> None:
        """In each tenant's tree every name leads where its blob is now: to its segment in `where`, or to the blob. They
        may read it before they are led there."""
        readers = self._rights.readers(model)
        if not readers:
            return
        await self._admit(set(model.blobs.values()), readers)
        for name in sorted(readers):
            targets = {path: self._target(name, model.blobs[path], at) for path, at in where.items()}
            await self._io(self._files.trees[name].publish, model.ref.key, model.manifest.revision, targets)

    def _target(self, tenant: str, blob: Blob, where: Path) -> Path:
        digest = blob.record.digest
        return self._files.blob(tenant, digest) if where == self._store.path(digest) else where

    async def admit(self, blob: Blob) -> None:
        """Its file was replaced."""
        await self._admit([blob], NOBODY)

    async def _admit(self, blobs: Iterable[Blob], readers: Scope) -> None:
        """Also those of other snapshots: it may be a file that they had read, and that has come anew."""
        due = self._due(blobs, readers)
        if due:
            await self._io(self._files.admit, due)

    def _due(self, blobs: Iterable[Blob], readers: Scope = NOBODY) -> list[Due]:
        """`readers` are those of a snapshot that has all of them."""
        shown = [(m, self._rights.readers(m)) for m in self._models()]
        others = [(m, scope) for m, scope in shown if not scope <= readers]
        return [Due(readers | union(s for m, s in others if m.has(b)), *_places(b, self._store)) for b in blobs]

    def withdraw(self, digest: Digest) -> None:
        """Blocking. The blob is about to leave its place."""
        self._files.withdraw(digest, self._store.path(digest))

    async def switch(self, model: Model, revision: str) -> None:
        """`current` of its ref leads to this revision."""
        for name in sorted(self._rights.readers(model)):
            await self._io(self._files.trees[name].switch, model.ref.key, revision)

    async def remove(self, model: Model) -> None:
        """Its directories."""
        for name in sorted(self._rights.who(model.ref)):
            await self._io(self._files.trees[name].remove, model.ref.key, model.manifest.revision)

    async def settle(self, blobs: Iterable[Blob]) -> None:
        """All that is held: what another configuration let tenants reach, and this one does not, is closed to them."""
        for name, tree in self._files.trees.items():
            shown = [m for m in self._models() if name in self._rights.readers(m)]
            await self._io(tree.drop_others, {(m.ref.key, m.manifest.revision) for m in shown})
        await self._io(self._files.settle, self._due(blobs))


def _places(blob: Blob, store: BlobStore) -> tuple[Digest, Path, Path | None]:
    segment = blob.segment.path if blob.in_shm and blob.segment is not None and blob.segment.name else None
    return blob.record.digest, store.path(blob.record.digest), segment
