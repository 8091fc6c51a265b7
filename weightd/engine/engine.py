"""The engine: refs in, models out. The one object that the RPC handlers and the daemon talk to."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from functools import partial
from typing import Final

from weightd.core.budget import Budget
from weightd.core.digest import Digest
from weightd.core.errors import Draining, WeightdError
from weightd.core.lifecycle import DAEMON, DaemonState, Lifecycle
from weightd.core.manifest import Manifest
from weightd.core.policy import Policy
from weightd.core.progress import Progress
from weightd.core.refs import Ref, parse_ref
from weightd.engine.accounts import Accounts
from weightd.engine.adopt import Adopter
from weightd.engine.api import (
    NOBODY,
    EngineStatus,
    Event,
    EventKind,
    Evicted,
    FileCheck,
    Holder,
    LeaseState,
    ModelState,
    Tier,
    VerifyProgress,
)
from weightd.engine.bring import Bringer
from weightd.engine.catalog import Catalog
from weightd.engine.counts import Counts
from weightd.engine.events import Events
from weightd.engine.evict import Evictor, kept_by_configuration
from weightd.engine.fetcher import Fetcher, Wanted
from weightd.engine.flights import Flight
from weightd.engine.grants import Granter
from weightd.engine.held import Blob, Model
from weightd.engine.hot import HotKeeper
from weightd.engine.lanes import Lanes
from weightd.engine.leases import Leases, ModelLease
from weightd.engine.mover import Mover
from weightd.engine.options import EngineOptions
from weightd.engine.patrol import Patrol
from weightd.engine.published import Published
from weightd.engine.remove import Remover
from weightd.engine.retire import Retirer
from weightd.engine.room import Room
from weightd.engine.scrub import Scrubber
from weightd.engine.tenant_rights import Rights
from weightd.engine.usage import Usage
from weightd.sources.protocols import Source
from weightd.storage.protocols import BlobStore, SegmentStore
from weightd.storage.state import State
from weightd.storage.tenant_files import TenantFiles

log = logging.getLogger(__name__)

SAVE_S: Final = 60.0
"""Seconds between two records of how often models are used."""


class Engine:
    """Implements `api.EngineApi`. `start` first; every method on the event loop.

    With `state_dir` on a file system without room, `start` fails; after `stop` nothing of it is in shared memory,
    unless that keeps it for the next one.
    """

    def __init__(
        self,
        options: EngineOptions,
        *,
        segments: SegmentStore,
        blobs: BlobStore,
        sources: Source,
        state: State,
        files: TenantFiles | None = None,
    ) -> None:
        """`files`: of the tenants of `options`, where there are any."""
        self._options = options
        self._sources = sources
        self._life = Lifecycle("engine", DAEMON, DaemonState.STARTING)
        self._catalog = Catalog(
            segments=segments,
            blobs=blobs,
            state=state,
            models=options.state_dir / "models",
            shm=Budget("shm", options.shm_budget),
            nvme=Budget("nvme", options.nvme_budget),
            rights=Rights(options.tenants),
            files=files,
        )
        catalog, self._events = self._catalog, Events(options.tenants.who)
        self._published = Published(catalog, options.rules)
        self._usage = Usage(state, catalog.write)
        self._leases = Leases(self._released)
        self._remover = Remover(catalog, self._published, self._removed)
        self._counts = Counts()
        self._evictor = Evictor(
            catalog,
            self._remover,
            leases=self._leases,
            usage=self._usage,
            marks=options.marks,
            tell=self._tell,
            counts=self._counts,
        )
        self._lanes = Lanes(options.transfers)
        self._mover = Mover(catalog, sources, options.transfer, self._lanes, Room(catalog, self._evictor), self._counts)
        self._accounts = Accounts(catalog, self._mover.room)
        self._fetcher = Fetcher(
            catalog, self._published, Bringer(catalog, self._mover), sources, usage=self._usage, events=self._events
        )
        self._granter = Granter(
            catalog,
            self._leases,
            self._fetcher,
            self._lanes,
            usage=self._usage,
            counts=self._counts,
            tell=self._tell,
            admit=self._admit,
        )
        self._scrubber = Scrubber(catalog, self._restore, self._events.emit)
        self._retirer = Retirer(catalog, self._remover, options.keep, partial(self._tell, EventKind.RETIRED))
        self._adopter = Adopter(catalog, options.adoption, self._found_damaged)
        self._hot = HotKeeper(options.rules.hot(), self._is_hot, self._bring_hot)
        self._patrol: Patrol | None = None
        if options.patrol is not None:
            self._patrol = Patrol(self._catalog, self._scrubber, options.patrol, self._lanes.calm)
        self._started = time.monotonic()

    async def start(self) -> None:
        """Read the state, take over what an earlier process left in shared memory, drop what it left half done, serve
        what is proven."""
        catalog = self._catalog
        try:
            await catalog.start()
            await self._usage.start()
            await self._adopter.start()
            await self._published.start()
            await catalog.links.settle(catalog.blobs.values())
            await catalog.kept.refresh()
        except BaseException:
            await catalog.close()
            self._life.to(DaemonState.STOPPED)
            raise
        for model in self._adopter.models():
            model.awaited = self._options.grace > 0
            if model.in_shm:
                self._counts.adopted += 1
                self._tell(EventKind.ADOPTED, model)
        self._life.to(DaemonState.SERVING)
        self._retirer.kick()

    async def tend(self) -> None:
        """Keep residency as the policies say, until cancelled. Once, after `start` and before `stop`."""
        works = (self._end_grace(), self._adopter.read_on(), self._evictor.sweep(), self._hot.run(), self._save())
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)

    async def _end_grace(self) -> None:
        await asyncio.sleep(self._options.grace)
        for model in self._catalog.snapshots:
            model.awaited = False
        self._catalog.settled()

    async def _save(self) -> None:
        before = ""
        while True:
            await asyncio.sleep(SAVE_S)
            reason = ""
            try:
                await self._usage.save()
                await self._usage.forget({m.ref.text for m in self._catalog.snapshots})
            except WeightdError as e:  # Only what is weighed after a restart; tried again, and once more by `stop`.
                reason = str(e)
            if reason and reason != before:
                log.warning("how often models are used cannot be recorded: %s", reason)
            before = reason

    async def stop(self, *, keep: bool | None = None) -> None:
        """No new work; work under way is cancelled and cleaned up; segments are unlinked, or kept, as `keep` says, or
        else the options. Idempotent."""
        if self._life.state is not DaemonState.SERVING:
            return
        self._life.to(DaemonState.DRAINING)
        await self._fetcher.stop()
        await self._retirer.stop()
        self._events.close()
        try:
            with suppress(WeightdError):
                await self._usage.save()
            await self._catalog.stop(keep=self._options.keep_segments if keep is None else keep)
        finally:
            await self._sources.close()
            self._life.to(DaemonState.STOPPED)

    def _serving(self) -> None:
        if self._life.state is not DaemonState.SERVING:
            raise Draining(
                f"the daemon is {self._life.state.value}", remedy="Try again when it has been started again."
            )

    def _admit(self, ref: str) -> Ref:
        """A ref that is to be brought or leased: also one that is held may have ceased to be allowed."""
        self._serving()
        parsed = parse_ref(ref)
        self._options.allow.check(parsed)
        return parsed

    async def resolve(self, ref: str) -> Manifest:
        return await self._fetcher.resolve(self._admit(ref), None)

    async def fetch(
        self, ref: str, *, sha256: Digest | None = None, tier: Tier | None = None
    ) -> AsyncGenerator[Progress | ModelState, None]:
        parsed = self._admit(ref)
        if tier is None:
            cold = self._options.rules.of(parsed).policy is Policy.COLD
            tier = Tier.NVME if cold else Tier.SHM
        flight = self._fetcher.start(("fetch", parsed.text, sha256, tier), Wanted(parsed, tier, sha256=sha256))
        async with aclosing(self._states(flight)) as events:
            async for event in events:
                yield event

    async def load(self, ref: str, *, strict: bool = False) -> AsyncGenerator[Progress | ModelState, None]:
        """`strict`: for a tenant, of whom what is held is not hidden, and who may not have the bytes by that alone:
        those that do not stand for the ref are fetched from its source."""
        model = self._catalog.model(self._admit(ref))
        if self._granter.ready(model, strict=strict):
            yield model.state()
            return
        wanted = Wanted(model.ref, Tier.SHM, model, strict=strict)
        flight = self._fetcher.start(("load", model.ref.text, strict), wanted)
        async with aclosing(self._states(flight)) as events:
            async for event in events:
                yield event

    async def _states(self, flight: Flight[Model]) -> AsyncGenerator[Progress | ModelState, None]:
        async with aclosing(self._fetcher.follow(flight)) as events:
            async for event in events:
                yield event.state() if isinstance(event, Model) else event

    def acquire(
        self, ref: str, *, revision: str = "", holder: Holder = NOBODY
    ) -> AsyncGenerator[Progress | ModelLease, None]:
        return self._granter.acquire(ref, revision=revision, holder=holder)

    def leases(self, ref: str = "") -> list[LeaseState]:
        if not ref:
            return self._leases.states()
        parsed = parse_ref(ref)
        found = self._leases.states(parsed.text)
        if not found:
            self._catalog.known(parsed)
        return found

    async def pin(self, ref: str) -> ModelState:
        return await self._set_pin(ref, EventKind.PINNED)

    async def unpin(self, ref: str) -> ModelState:
        return await self._set_pin(ref, EventKind.UNPINNED)

    async def _set_pin(self, ref: str, kind: EventKind) -> ModelState:
        self._serving()
        model = self._catalog.model(parse_ref(ref))
        if kind is EventKind.UNPINNED and model.hot:
            raise kept_by_configuration(model.ref.shown)
        if model.pinned is not (kind is EventKind.PINNED):
            await self._published.pin(model.ref, time.time() if kind is EventKind.PINNED else None)
            self._tell(kind, model)
        return model.state()

    async def evict(self, ref: str) -> Evicted:
        return await self._evictor.evict(self._all_of(ref))

    async def remove(self, ref: str) -> Evicted:
        return await self._evictor.remove(self._all_of(ref))

    def _all_of(self, ref: str) -> list[Model]:
        self._serving()
        return self._catalog.snapshots.of(self._catalog.known(parse_ref(ref)))

    async def verify(
        self, ref: str = "", *, quick: bool = False, tenant: str = ""
    ) -> AsyncGenerator[FileCheck | VerifyProgress, None]:
        """Of all models those that `tenant` may see, unless it is ""."""
        self._serving()
        snapshots = self._catalog.snapshots
        models = snapshots.of(self._catalog.known(parse_ref(ref))) if ref else self._sorted()
        if tenant:
            models = [m for m in models if tenant in m.tenants]
        async with aclosing(self._scrubber.verify(models, quick=quick)) as checks:
            async for check in checks:
                yield check

    def _sorted(self) -> list[Model]:
        """By ref, the current snapshot first."""
        snapshots = self._catalog.snapshots
        refs = {m.ref.text: m.ref for m in snapshots}
        return [m for text in sorted(refs) for m in snapshots.of(refs[text])]

    async def patrol(self) -> None:
        """Verify in the background, if so configured, until cancelled. Once, after `start` and before `stop`."""
        if self._patrol is not None:
            await self._patrol.run()

    async def _restore(self, model: Model, tier: Tier) -> None:
        """All of its files resident again; its origin is asked only for what is not here."""
        self._serving()  # or a flight would begin that `stop` does not wait for
        self._options.allow.check(model.ref)
        await self._fetcher.again(("restore", model.ref.text, tier), model, tier)

    def _tell(self, kind: EventKind, model: Model, detail: str = "", holder: Holder | None = None) -> None:
        """The watchers."""
        self._events.emit(kind, model.ref, model.manifest.revision, detail, holder)

    def _released(self, model: Model, holder: Holder) -> None:
        """A lease on it ended."""
        self._catalog.touch(model)
        self._usage.end(model.ref)
        self._tell(EventKind.RELEASED, model, holder=holder)
        self._catalog.drains.look()
        if not model.current:
            self._retirer.kick()

    def _removed(self, model: Model) -> None:
        self._scrubber.tally.forget(d for d in model.digests.values() if d not in self._catalog.blobs)

    def _found_damaged(self, blob: Blob) -> None:
        """An adopted segment was not what was sealed."""
        for model in self._catalog.snapshots:
            if model.has(blob):
                self._tell(EventKind.DAMAGED, model, f"blob {blob.record.digest} in shared memory, found at adoption")

    def _is_hot(self, ref: Ref) -> bool:
        model = self._catalog.models.get(ref.text)
        return model is not None and model.ready

    async def _bring_hot(self, ref: Ref) -> None:
        """As a worker would, without a claim: what is held is loaded, else it is fetched."""
        self._serving()
        await self._fetcher.end(self._granter.flight(ref, self._catalog.models.get(ref.text)))

    def models(self) -> list[ModelState]:
        return [m.state() for m in self._sorted()]

    def model(self, ref: str, revision: str = "") -> ModelState:
        return self._catalog.model(parse_ref(ref), revision).state()

    def watch(self) -> AsyncGenerator[Event, None]:
        self._serving()
        return self._events.watch()

    async def status(self) -> EngineStatus:
        catalog = self._catalog
        return EngineStatus(
            state=self._life.state,
            uptime=time.monotonic() - self._started,
            state_directory=str(self._options.state_dir),
            shm=await self._accounts.shm(),
            nvme=await self._accounts.nvme(),
            leases=self._leases.granted,
            models=len(catalog.models),
            transfers=self._lanes.running,
            shm_huge_bytes=await catalog.io(catalog.segments.huge_bytes),
            verify=self._scrubber.status(self._options.patrol.every if self._options.patrol else 0.0),
            quotas=tuple(self._sources.quotas()),
            counters=self._counts.counters(),
            under_way=tuple(self._fetcher.under_way()),
        )

    def __repr__(self) -> str:
        return f"<Engine {self._life.state.name} models={len(self._catalog.models)} leases={len(self._leases)}>"
