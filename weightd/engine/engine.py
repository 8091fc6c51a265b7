"""The engine: refs in, models out. The one object that the RPC handlers and the daemon talk to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

from weightd.core.allow import AllowList
from weightd.core.budget import Budget
from weightd.core.digest import Digest
from weightd.core.errors import Draining, NotFound, SourceChanged, WeightdError
from weightd.core.lifecycle import DAEMON, DaemonState, Lifecycle
from weightd.core.manifest import Manifest, with_digest
from weightd.core.progress import Progress
from weightd.core.refs import Ref, parse_ref
from weightd.engine.api import (
    EngineStatus,
    Event,
    EventKind,
    FileCheck,
    ModelState,
    Tier,
    TierStatus,
    VerifyProgress,
)
from weightd.engine.bring import Bringer
from weightd.engine.catalog import Catalog
from weightd.engine.events import Events
from weightd.engine.flights import Flight, Flights
from weightd.engine.held import Model
from weightd.engine.lanes import Lanes
from weightd.engine.mover import Mover
from weightd.engine.patrol import Patrol, PatrolOptions
from weightd.engine.retire import Retirer
from weightd.engine.scrub import Scrubber
from weightd.engine.tracker import Seen
from weightd.engine.transfer import TransferOptions
from weightd.sources.protocols import Source
from weightd.storage.protocols import BlobStore, SegmentStore
from weightd.storage.state import State

TICK = 0.1
"""Seconds between two progress messages."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """`state_dir` holds blobs, models and state.db. Budgets in bytes. `transfers` may run at once, and as many
    more that a worker waits for. `patrol`: what is verified in the background, None for nothing. `keep`: old
    snapshots of a ref that stay beside its current one. `allow`: which refs may be asked for."""

    state_dir: Path
    shm_budget: int
    nvme_budget: int
    transfer: TransferOptions = field(default_factory=TransferOptions)
    transfers: int = 2
    patrol: PatrolOptions | None = None
    keep: int = 1
    allow: AllowList = field(default_factory=AllowList)


class ModelLease:
    """A worker's claim on a model; see `api.Lease`."""

    def __init__(self, engine: Engine, model: Model) -> None:
        self._engine, self._model = engine, model
        self._held = True
        model.leases += 1
        engine.leases += 1

    @property
    def model(self) -> ModelState:
        return self._model.state()

    def release(self) -> None:
        if self._held:
            self._held = False
            self._model.leases -= 1
            self._engine.leases -= 1
            self._engine.released(self._model)

    def __repr__(self) -> str:
        return f"<ModelLease {self._model.ref.shown} {'held' if self._held else 'released'}>"


class Engine:
    """Implements `api.EngineApi`. `start` first; every method on the event loop.

    With `state_dir` on a file system without room, `start` fails; after `stop` nothing of it is in shared memory.
    """

    def __init__(
        self, options: EngineOptions, *, segments: SegmentStore, blobs: BlobStore, sources: Source, state: State
    ) -> None:
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
        )
        self._kept = self._catalog.kept
        self._lanes = Lanes(options.transfers)
        self._mover = Mover(self._catalog, sources, options.transfer, self._lanes, self._kept)
        self._bringer = Bringer(self._catalog, self._mover)
        self._flights: Flights[Model] = Flights()
        self._events = Events()
        self._scrubber = Scrubber(self._catalog, self._restore, self._events.emit)
        self._retirer = Retirer(self._catalog, options.keep, self._retired)
        self._patrol: Patrol | None = None
        if options.patrol is not None:
            self._patrol = Patrol(self._catalog, self._scrubber, options.patrol, self._lanes.calm)
        self.leases = 0
        self._started = time.monotonic()

    async def start(self) -> None:
        """Read the state, drop what an earlier process left half done, serve what is proven."""
        try:
            await self._catalog.start()
            await self._kept.refresh()
        except BaseException:
            await self._catalog.close()
            self._life.to(DaemonState.STOPPED)
            raise
        self._life.to(DaemonState.SERVING)
        self._retirer.kick()

    async def stop(self) -> None:
        """No new work; work under way is cancelled and cleaned up; segments are unlinked. Idempotent."""
        if self._life.state is not DaemonState.SERVING:
            return
        self._life.to(DaemonState.DRAINING)
        await self._flights.stop()
        await self._retirer.stop()
        self._events.close()
        try:
            await self._catalog.stop()
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
        return await self._resolve(self._admit(ref), None)

    async def _resolve(self, ref: Ref, sha256: Digest | None) -> Manifest:
        try:
            return with_digest(await self._sources.resolve(ref), sha256)
        except WeightdError as e:
            raise e.about(ref=ref.shown) from None

    async def fetch(
        self, ref: str, *, sha256: Digest | None = None, tier: Tier = Tier.SHM
    ) -> AsyncGenerator[Progress | ModelState, None]:
        parsed = self._admit(ref)
        flight = self._start_flight(("fetch", parsed.text, sha256, tier), parsed, sha256, tier, held=None)
        async with aclosing(self._follow(flight)) as events:
            async for event in events:
                yield event.state() if isinstance(event, Model) else event

    async def acquire(self, ref: str) -> AsyncGenerator[Progress | ModelLease, None]:
        parsed = self._admit(ref)
        while True:
            self._serving()
            held = self._catalog.models.get(parsed.text)
            if held is not None and held.in_shm and held.linked:
                yield self._lease(held)
                return
            flight = self._start_flight(("acquire", parsed.text), parsed, None, Tier.SHM, held=held)
            self._lanes.urge(flight)
            async with aclosing(self._follow(flight)) as events:
                async for event in events:
                    if not isinstance(event, Model):
                        yield event
                    elif event.current and event.in_shm:
                        yield self._lease(event)
                        return
            # It was replaced between its arrival and this moment.

    def _lease(self, model: Model) -> ModelLease:
        self._catalog.touch(model)
        lease = ModelLease(self, model)
        self.announce(EventKind.ACQUIRED, model)
        return lease

    def _start_flight(
        self, key: tuple[object, ...], ref: Ref, sha256: Digest | None, tier: Tier, held: Model | None
    ) -> Flight[Model]:
        return self._flights.get(key, lambda flight: self._fly(flight, ref, sha256, tier, held))

    async def _follow(self, flight: Flight[Model]) -> AsyncGenerator[Progress | Model, None]:
        """Progress while the flight goes on, then its model. Leaving early drops this caller's interest."""
        flight.join()
        seen = Seen()
        try:
            while not flight.task.done():
                await asyncio.wait([flight.task], timeout=TICK)
                if not flight.task.done():
                    yield flight.tracker.snapshot(time.monotonic(), seen)
            if flight.task.cancelled():
                raise Draining("the daemon is stopping", remedy="Try again when it has been started again.")
            yield flight.task.result()
        finally:
            flight.leave()

    async def _fly(
        self, flight: Flight[Model], ref: Ref, sha256: Digest | None, tier: Tier, held: Model | None
    ) -> Model:
        try:
            return await self._fly_once(flight, ref, sha256, tier, held)
        except SourceChanged:
            # The revision that was wanted cannot be had any more: once more, with what is there now.
            return await self._fly_once(flight, ref, sha256, tier, None)

    async def _fly_once(
        self, flight: Flight[Model], ref: Ref, sha256: Digest | None, tier: Tier, held: Model | None
    ) -> Model:
        revision = held.manifest.revision if held else ""
        flight.report = lambda kind, detail: self._events.emit(kind, ref, revision, detail)
        try:
            with self._catalog.holding(flight.blobs):
                if held is not None:
                    model = await self._load(flight, tier, held)
                else:
                    manifest = await self._resolve(ref, sha256)
                    revision = manifest.revision
                    self._events.emit(EventKind.FETCH_STARTED, ref, revision)
                    model = await self._bring(flight, ref, manifest, tier)
        except WeightdError as e:
            self._events.emit(EventKind.FETCH_FAILED, ref, revision, e.message)
            raise e.about(ref=ref.shown) from None
        except asyncio.CancelledError:
            self._events.emit(EventKind.FETCH_FAILED, ref, revision, "cancelled: nobody waits for it")
            raise
        self._events.emit(EventKind.LOADED if held else EventKind.FETCH_FINISHED, ref, model.manifest.revision)
        return model

    async def _bring(self, flight: Flight[Model], ref: Ref, manifest: Manifest, tier: Tier) -> Model:
        while True:
            digests = await self._bringer.bring(manifest, tier, flight)
            model = await self._catalog.publish(ref, manifest, digests, time.time())
            if model is not None and model.resident(tier):
                return model

    async def _load(self, flight: Flight[Model], tier: Tier, held: Model) -> Model:
        """What is held, without asking its origin; of a snapshot that was the current one and is no longer, what took
        its place."""
        follow = held.current
        while True:
            with self._catalog.using([held]):
                digests = await self._bringer.bring(held.manifest, tier, flight, held.digests)
                renewed = await self._catalog.renew(held, digests)
            if renewed and held.resident(tier) and (held.current or not follow):
                return held
            if follow:
                held = self._catalog.models[held.ref.text]
            elif held not in self._catalog.snapshots:
                raise NotFound("the snapshot is no longer held", remedy="Fetch the model again.")

    async def verify(self, ref: str = "", *, quick: bool = False) -> AsyncGenerator[FileCheck | VerifyProgress, None]:
        self._serving()
        snapshots = self._catalog.snapshots
        models = snapshots.of(self._catalog.known(parse_ref(ref))) if ref else self._sorted()
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
        key = ("restore", model.ref.text, tier)
        # Not begun again for a source that changed: what it serves now is not what is damaged here.
        flight = self._flights.get(key, lambda flight: self._fly_once(flight, model.ref, None, tier, model))
        async with aclosing(self._follow(flight)) as events:
            async for _ in events:
                pass

    def announce(self, kind: EventKind, model: Model) -> None:
        """Tell the watchers."""
        self._events.emit(kind, model.ref, model.manifest.revision)

    def released(self, model: Model) -> None:
        """A lease on it ended."""
        self.announce(EventKind.RELEASED, model)
        if not model.current:
            self._retirer.kick()

    def _retired(self, model: Model) -> None:
        self.announce(EventKind.RETIRED, model)
        self._scrubber.tally.forget(d for d in model.digests.values() if d not in self._catalog.blobs)

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
            shm=_tier_status(catalog.shm, await catalog.io(catalog.segments.free)),
            nvme=_tier_status(catalog.nvme, await catalog.io(catalog.store.free)),
            leases=self.leases,
            models=len(catalog.models),
            transfers=self._lanes.running,
            shm_huge_bytes=await catalog.io(catalog.segments.huge_bytes),
            verify=self._scrubber.status(self._options.patrol.every if self._options.patrol else 0.0),
            quotas=tuple(self._sources.quotas()),
        )

    def __repr__(self) -> str:
        return f"<Engine {self._life.state.name} models={len(self._catalog.models)} leases={self.leases}>"


def _tier_status(budget: Budget, free: int) -> TierStatus:
    return TierStatus(budget.limit, budget.reserved, budget.resident, free)
