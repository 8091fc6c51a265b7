"""The engine as a tenant sees it: what its socket allows, and nothing of anybody else."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from pathlib import Path
from typing import Protocol

import msgspec

from weightd.core.digest import Digest
from weightd.core.lifecycle import Residency
from weightd.core.manifest import Manifest
from weightd.core.progress import Progress
from weightd.core.refs import parse_ref
from weightd.core.tenants import NOBODY as NO_TENANT
from weightd.core.tenants import Tenant
from weightd.engine.api import (
    NOBODY,
    CopyState,
    Counters,
    EngineApi,
    EngineStatus,
    Event,
    Evicted,
    FileCheck,
    FileState,
    Holder,
    Lease,
    LeaseState,
    ModelState,
    Tier,
    TierStatus,
    VerifyProgress,
    VerifyStatus,
)
from weightd.engine.tenant_errors import telling
from weightd.storage.pages import footprint


class Host(EngineApi, Protocol):
    """What a view needs of the engine; implemented by `weightd.engine.engine.Engine`."""

    def load(self, ref: str, *, strict: bool = False) -> AsyncGenerator[Progress | ModelState, None]: ...

    def verify(
        self, ref: str = "", *, quick: bool = False, tenant: str = ""
    ) -> AsyncGenerator[FileCheck | VerifyProgress, None]: ...


class Directories(Protocol):
    """Where tenants find models; see `weightd.storage.tenant_files`."""

    def shown(self, tenant: str, directory: Path) -> Path: ...


class TenantLease:
    """See `api.Lease`."""

    def __init__(self, lease: Lease, view: TenantView) -> None:
        self._lease, self._view = lease, view

    @property
    def model(self) -> ModelState:
        return self._view.shown(self._lease.model)

    def release(self) -> None:
        self._lease.release()


class TenantView:
    """Implements `api.EngineApi` for one tenant. A ref that it may not see is refused with RefNotAllowed before
    anything is looked up; what is listed is its own. On the event loop."""

    def __init__(self, host: Host, tenant: Tenant, directories: Directories) -> None:
        self._host, self._tenant, self._directories = host, tenant, directories

    def _check(self, ref: str, *, operating: bool = False) -> str:
        """As it is shown. Raises RefSyntax, RefNotAllowed or AccessDenied."""
        if operating:
            self._tenant.check_operator()
        parsed = parse_ref(ref)
        self._tenant.check(parsed)
        return parsed.shown

    def shown(self, model: ModelState, leases: int = 0) -> ModelState:
        """By the directories that it may read; `leases` are its own."""
        directory = self._directories.shown(self._tenant.name, Path(model.directory))
        return msgspec.structs.replace(model, directory=str(directory), leases=leases, tenants=NO_TENANT)

    async def resolve(self, ref: str) -> Manifest:
        with telling(self._check(ref)):
            return await self._host.resolve(ref)

    async def fetch(
        self, ref: str, *, sha256: Digest | None = None, tier: Tier | None = None
    ) -> AsyncGenerator[Progress | ModelState, None]:
        shown = self._check(ref)
        async with aclosing(self._follow(shown, self._host.fetch(ref, sha256=sha256, tier=tier))) as steps:
            async for step in steps:
                yield step

    async def load(self, ref: str) -> AsyncGenerator[Progress | ModelState, None]:
        shown = self._check(ref)
        async with aclosing(self._follow(shown, self._host.load(ref, strict=True))) as steps:
            async for step in steps:
                yield step

    async def _follow(
        self, shown: str, steps: AsyncGenerator[Progress | ModelState, None]
    ) -> AsyncGenerator[Progress | ModelState, None]:
        with telling(shown):
            async with aclosing(steps):
                async for step in steps:
                    yield step if isinstance(step, Progress) else self._counted([step])[0]

    async def acquire(
        self, ref: str, *, revision: str = "", holder: Holder = NOBODY
    ) -> AsyncGenerator[Progress | Lease, None]:
        shown = self._check(ref)
        holder = msgspec.structs.replace(holder, tenant=self._tenant.name)
        with telling(shown):
            async with aclosing(self._host.acquire(ref, revision=revision, holder=holder)) as steps:
                async for step in steps:
                    yield step if isinstance(step, Progress) else TenantLease(step, self)

    def leases(self, ref: str = "") -> list[LeaseState]:
        """Taken through its own socket: of a model that others may see too, who they are is theirs."""
        with telling(self._check(ref) if ref else ""):
            return [lease for lease in self._host.leases(ref) if lease.holder.tenant == self._tenant.name]

    async def pin(self, ref: str) -> ModelState:
        with telling(self._check(ref, operating=True)):
            return self._counted([await self._host.pin(ref)])[0]

    async def unpin(self, ref: str) -> ModelState:
        with telling(self._check(ref, operating=True)):
            return self._counted([await self._host.unpin(ref)])[0]

    async def evict(self, ref: str) -> Evicted:
        with telling(self._check(ref, operating=True)):
            return await self._host.evict(ref)

    async def remove(self, ref: str) -> Evicted:
        with telling(self._check(ref, operating=True)):
            return await self._host.remove(ref)

    def models(self) -> list[ModelState]:
        return self._counted(m for m in self._host.models() if self._tenant.name in m.tenants)

    def model(self, ref: str, revision: str = "") -> ModelState:
        with telling(self._check(ref)):
            return self._counted([self._host.model(ref, revision)])[0]

    def _counted(self, models: Iterable[ModelState]) -> list[ModelState]:
        held = Counter((lease.ref, lease.revision) for lease in self.leases() if not lease.waiting)
        return [self.shown(m, held[m.ref, m.revision]) for m in models]

    async def verify(self, ref: str = "", *, quick: bool = False) -> AsyncGenerator[FileCheck | VerifyProgress, None]:
        self._tenant.check_operator()
        with telling(self._check(ref) if ref else ""):
            async with aclosing(self._host.verify(ref, quick=quick, tenant=self._tenant.name)) as found:
                async for one in found:
                    yield _plain(one) if isinstance(one, FileCheck) else one

    async def watch(self) -> AsyncGenerator[Event, None]:
        """Without details, which may name what others wanted and why theirs came first."""
        async with aclosing(self._host.watch()) as events:
            async for event in events:
                if self._sees(event):
                    yield msgspec.structs.replace(event, detail="", tenants=NO_TENANT, holder=None)

    def _sees(self, event: Event) -> bool:
        mine = event.holder is None or event.holder.tenant == self._tenant.name
        return mine and self._tenant.name in event.tenants

    async def status(self) -> EngineStatus:
        """Its own models, leases and transfers. The budgets and file systems are the host's, as is what others leave
        free; nothing is said of quotas, counters and what verifications found, which nobody keeps by tenant."""
        status, models = await self._host.status(), self.models()
        under_way = tuple(t for t in status.under_way if self._tenant.name in t.tenants)
        return EngineStatus(
            state=status.state,
            uptime=status.uptime,
            state_directory=status.state_directory,
            shm=_tier(status.shm, models, Tier.SHM),
            nvme=_tier(status.nvme, models, Tier.NVME),
            leases=sum(m.leases for m in models),
            models=sum(m.current for m in models),
            transfers=len(under_way),
            shm_huge_bytes=0,
            verify=VerifyStatus(every=status.verify.every, oldest=min((m.last_verified for m in models), default=0.0)),
            counters=Counters(),
            under_way=under_way,
        )

    def __repr__(self) -> str:
        return f"<TenantView {self._tenant.name}>"


def _tier(host: TierStatus, models: Iterable[ModelState], tier: Tier) -> TierStatus:
    """What others hold and reserve is `other`, as on the file system it is."""
    models = list(models)
    resident = _bytes(models, tier)
    return TierStatus(
        budget=host.budget,
        reserved=0,
        resident=resident,
        free=host.free,
        leased=_bytes([m for m in models if m.leases], tier),
        pinned=_bytes([m for m in models if m.pinned and m.current], tier),
        total=host.total,
        other=max(0, host.total - host.free - resident),
    )


def _bytes(models: Iterable[ModelState], tier: Tier) -> int:
    """Each blob once."""
    files = {f.digest: f for m in models for f in m.files if _at(f, tier) is Residency.RESIDENT}
    return sum(footprint(f.size) for f in files.values())


def _at(file: FileState, tier: Tier) -> Residency:
    return file.shm if tier is Tier.SHM else file.nvme


def _plain(check: FileCheck) -> FileCheck:
    """Without reasons, which may be of others: no room, or files of the host."""
    states = (check.nvme, check.shm)
    detail = "could not be repaired" if CopyState.LOST in states else ""
    detail = detail or ("was damaged" if CopyState.REPAIRED in states else "")
    return msgspec.structs.replace(check, detail=detail)
