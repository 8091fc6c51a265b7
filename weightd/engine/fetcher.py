"""Models on their way: each wanted thing is done once, however many ask, and goes on while anybody waits for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final, NamedTuple

from weightd.core.digest import Digest
from weightd.core.errors import Draining, NotFound, SourceChanged, WeightdError
from weightd.core.manifest import Manifest, with_digest
from weightd.core.progress import Progress
from weightd.core.refs import Ref
from weightd.engine.api import EventKind, Tier, TransferState
from weightd.engine.bring import Bringer
from weightd.engine.catalog import Catalog
from weightd.engine.events import Events
from weightd.engine.flights import Flight, Flights
from weightd.engine.held import Model
from weightd.engine.published import Published
from weightd.engine.tracker import Seen
from weightd.engine.usage import Usage
from weightd.sources.protocols import Source

TICK: Final = 0.1
"""Seconds between two progress messages."""


class Wanted(NamedTuple):
    """What a flight is for. What is `held` is loaded, of `None` the source is asked; `exact`: that very snapshot, and
    not what may have taken its place; `strict`: what of it does not stand for its ref is fetched, too."""

    ref: Ref
    tier: Tier
    held: Model | None = None
    sha256: Digest | None = None
    exact: bool = False
    strict: bool = False


class Fetcher:
    """Resolves, brings and publishes; on the event loop."""

    def __init__(
        self,
        catalog: Catalog,
        published: Published,
        bringer: Bringer,
        sources: Source,
        *,
        usage: Usage,
        events: Events,
    ) -> None:
        self._catalog, self._published, self._bringer, self._sources = catalog, published, bringer, sources
        self._usage, self._events = usage, events
        self._flights: Flights[Model] = Flights()

    async def stop(self) -> None:
        """All flights are cancelled, and have cleaned up."""
        await self._flights.stop()

    def under_way(self) -> list[TransferState]:
        """The urgent ones first."""
        now = time.monotonic()
        states = [_transfer(flight, flight.tracker.snapshot(now, Seen())) for flight in self._flights]
        return sorted(states, key=lambda s: not s.urgent)

    async def resolve(self, ref: Ref, sha256: Digest | None) -> Manifest:
        """What a ref means now."""
        try:
            return with_digest(await self._sources.resolve(ref), sha256)
        except WeightdError as e:
            raise e.about(ref=ref.shown) from None

    def start(self, key: tuple[object, ...], wanted: Wanted) -> Flight[Model]:
        """The flight of this `key` under way, or a new one, which the caller follows before it awaits anything."""
        fly = self._fly_once if wanted.exact and wanted.held is not None else self._fly
        return self._flights.get(key, lambda flight: fly(flight, wanted))

    async def follow(self, flight: Flight[Model]) -> AsyncGenerator[Progress | Model, None]:
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

    async def again(self, key: tuple[object, ...], model: Model, tier: Tier) -> None:
        """All files of a model once more, after some proved damaged; not begun anew for a source that changed: what it
        serves now is not what is damaged here."""
        wanted = Wanted(model.ref, tier, model)
        flight = self._flights.get(key, lambda flight: self._fly_once(flight, wanted))
        await self.end(flight)

    async def end(self, flight: Flight[Model]) -> None:
        """Follow it without looking."""
        async with aclosing(self.follow(flight)) as events:
            async for _ in events:
                pass

    async def _fly(self, flight: Flight[Model], wanted: Wanted) -> Model:
        try:
            return await self._fly_once(flight, wanted)
        except SourceChanged:
            # The revision that was wanted cannot be had any more: once more, with what is there now.
            return await self._fly_once(flight, wanted._replace(held=None))

    async def _fly_once(self, flight: Flight[Model], wanted: Wanted) -> Model:
        ref, held = wanted.ref, wanted.held
        began = time.monotonic()
        flight.ref, flight.tenants = ref.shown, self._catalog.rights.who(ref)
        revision = held.manifest.revision if held else ""
        flight.report = lambda kind, detail: self._events.emit(kind, ref, revision, detail)
        try:
            with self._catalog.holding(flight.blobs):
                if held is not None:
                    model = await self._load(flight, wanted, held, follow=held.current and not wanted.exact)
                else:
                    manifest = await self.resolve(ref, wanted.sha256)
                    revision = manifest.revision
                    self._events.emit(EventKind.FETCH_STARTED, ref, revision)
                    model = await self._bring(flight, ref, manifest, wanted.tier)
        except WeightdError as e:
            self._events.emit(EventKind.FETCH_FAILED, ref, revision, e.message)
            raise e.about(ref=ref.shown) from None
        except asyncio.CancelledError:
            self._events.emit(EventKind.FETCH_FAILED, ref, revision, "cancelled: nobody waits for it")
            raise
        self._came(flight, model, held, time.monotonic() - began)
        return model

    def _came(self, flight: Flight[Model], model: Model, held: Model | None, seconds: float) -> None:
        self._catalog.touch(model)
        if held is None:
            self._usage.expect(model.ref)
        # Of one that fetched some and loaded the rest, the fetch is what took the time.
        tier = Tier.NVME if flight.moved[Tier.NVME] else Tier.SHM
        self._usage.brought(model.ref, tier, flight.moved[tier], seconds)
        kind = EventKind.LOADED if held else EventKind.FETCH_FINISHED
        self._events.emit(kind, model.ref, model.manifest.revision)

    async def _bring(self, flight: Flight[Model], ref: Ref, manifest: Manifest, tier: Tier) -> Model:
        while True:
            digests = await self._bringer.bring(ref, manifest, tier, flight)
            model = await self._published.publish(ref, manifest, digests, time.time())
            if model is not None and model.resident(tier):
                return model

    async def _load(self, flight: Flight[Model], wanted: Wanted, held: Model, *, follow: bool) -> Model:
        """What is held, without asking its origin; if `follow`, of a snapshot that was the current one and is no
        longer, what took its place."""
        tier, strict = wanted.tier, wanted.strict
        while True:
            with self._catalog.using([held]):
                digests = await self._bringer.bring(held.ref, held.manifest, tier, flight, held.digests, strict=strict)
                renewed = await self._published.renew(held, digests)
            if renewed and held.resident(tier) and (held.current or not follow):
                return held
            if follow:
                held = self._catalog.model(held.ref)
            elif held not in self._catalog.snapshots:
                raise NotFound("the snapshot is no longer held", remedy="Fetch the model again.")


def _transfer(flight: Flight[Model], progress: Progress) -> TransferState:
    return TransferState(
        flight.ref,
        progress.phase,
        progress.done,
        progress.total,
        progress.rate,
        flight.urgent,
        flight.tenants,
    )
