"""An engine with two tenants and a host that sees everything, in one process and with real files."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.engine.rig import MIB, SECONDS, Origin, Rig, running
from weightd.core.allow import AllowList
from weightd.core.tenants import Tenant, Tenants
from weightd.engine.api import EngineApi, FileCheck, Lease, ModelState, Tier
from weightd.engine.tenant_view import TenantView
from weightd.storage.acl import groups
from weightd.storage.tenant_files import TenantFiles

A, B, SHARED, MAIN = "http://a/model/", "http://b/model/", "http://shared/model/", "http://main/model/"
GROUPS = {"a": 61_101, "b": 61_102}
ALLOW = {"a": ["http://a/", "http://shared/"], "b": ["http://b/", "http://shared/"]}


def tenants(allow: dict[str, list[str]] | None = None, operate: str = "") -> Tenants:
    """`operate`: names of those that may, one letter each."""
    allow = ALLOW if allow is None else allow
    return Tenants(Tenant(n, GROUPS[n], AllowList(patterns), n in operate) for n, patterns in allow.items())


@dataclass
class Seen:
    """An engine, or a view of it, called as the rig calls its own."""

    api: EngineApi

    async def acquire(self, ref: str, revision: str = "") -> Lease:
        async with asyncio.timeout(SECONDS):
            async with aclosing(self.api.acquire(ref, revision=revision)) as events:
                async for event in events:
                    if hasattr(event, "release"):
                        return event
        raise AssertionError("an acquire without an end")

    async def fetch(self, ref: str, **options: object) -> ModelState:
        async with asyncio.timeout(SECONDS):
            async with aclosing(self.api.fetch(ref, **options)) as events:  # type: ignore[arg-type]
                async for event in events:
                    if isinstance(event, ModelState):
                        return event
        raise AssertionError("no model at the end")

    async def load(self, ref: str) -> ModelState:
        async with asyncio.timeout(SECONDS):
            async with aclosing(self.api.load(ref)) as events:
                async for event in events:
                    if isinstance(event, ModelState):
                        return event
        raise AssertionError("no model at the end")

    async def verify(self, ref: str = "") -> list[FileCheck]:
        async with asyncio.timeout(SECONDS):
            async with aclosing(self.api.verify(ref)) as events:
                return [e async for e in events if isinstance(e, FileCheck)]


@dataclass
class Shared:
    """`host` sees everything."""

    rig: Rig
    a: Seen
    b: Seen
    host: Seen

    def readers(self, path: Path) -> set[int]:
        """Groups that may read a file, beside its own."""
        return {gid for gid, rights in groups(path).items() if rights & 4}

    def blob(self, digest: str) -> Path:
        return self.rig.blobs.path(digest)  # type: ignore[arg-type]

    def tree(self, tenant: str) -> Path:
        return self.rig.root / "tenants" / tenant

    def asked(self, ref: str) -> int:
        """How often bytes were asked for at the origin of a ref."""
        return self.rig.origin.asked[ref]  # type: ignore[attr-defined,no-any-return]


class Origins(Origin):
    """Counts by ref what is asked for, where all have files of the same names, and marks each byte that is sent."""

    def __init__(self, models: dict[str, dict[str, object]]) -> None:
        super().__init__(models)  # type: ignore[arg-type]
        self.asked = dict.fromkeys(models, 0)
        self.sent: dict[tuple[str, bytes], bytearray] = {}
        """By ref and content."""

    def reader(self, file: object, memory: object = None) -> object:  # type: ignore[override]
        ref = next(r for r in self.models if file.url.startswith(r))  # type: ignore[attr-defined]
        self.asked[ref] = self.asked.get(ref, 0) + 1
        reader = super().reader(file, memory)  # type: ignore[arg-type]
        read = reader.readinto

        def readinto(view: memoryview) -> int:
            at, data = reader._offset, reader._data
            count = read(view)
            self.sent.setdefault((ref, data), bytearray(len(data)))[at : at + count] = b"\1" * count
            return count

        reader.readinto = readinto  # type: ignore[method-assign]
        return reader


@asynccontextmanager
async def sharing(
    root: Path,
    origin: Origin,
    configured: Tenants | None = None,
    *,
    owner: str = "",
    attempts: int = 5,
    shm: int = 256 * MIB,
    **options: object,
) -> AsyncIterator[Shared]:
    """Stopped at the end."""
    configured = tenants() if configured is None else configured
    files = TenantFiles(root, configured, os.getegid())
    residency = {"tenants": configured, "grace": 0.0, **options}
    async with running(root, origin, owner=owner, residency=residency, files=files, attempts=attempts, shm=shm) as rig:
        views = {t.name: Seen(TenantView(rig.engine, t, files)) for t in configured}
        nobody = Seen(rig.engine)
        yield Shared(rig, views.get("a", nobody), views.get("b", nobody), nobody)


__all__ = ["ALLOW", "MAIN", "SHARED", "A", "B", "Origins", "Seen", "Shared", "Tier", "sharing", "tenants"]
