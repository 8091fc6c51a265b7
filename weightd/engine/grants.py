"""Leases, from the question of a worker until it has one: at once where the model is resident, else when it came."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Protocol

from weightd.core.progress import Progress
from weightd.core.refs import Ref
from weightd.engine.api import EventKind, Holder, Tier
from weightd.engine.catalog import Catalog
from weightd.engine.counts import Counts
from weightd.engine.fetcher import Fetcher, Wanted
from weightd.engine.flights import Flight
from weightd.engine.held import Model
from weightd.engine.lanes import Lanes
from weightd.engine.leases import Leases, ModelLease
from weightd.engine.usage import Usage


class Tell(Protocol):
    """The watchers."""

    def __call__(self, kind: EventKind, model: Model, *, holder: Holder) -> None: ...


class Granter:
    """On the event loop. `admit` parses a ref that may be leased now, or raises."""

    def __init__(
        self,
        catalog: Catalog,
        leases: Leases,
        fetcher: Fetcher,
        lanes: Lanes,
        *,
        usage: Usage,
        counts: Counts,
        tell: Tell,
        admit: Callable[[str], Ref],
    ) -> None:
        self._catalog, self._leases, self._fetcher, self._lanes = catalog, leases, fetcher, lanes
        self._usage, self._counts, self._tell, self._admit = usage, counts, tell, admit

    async def acquire(self, ref: str, *, revision: str, holder: Holder) -> AsyncGenerator[Progress | ModelLease, None]:
        """See `api.EngineApi`."""
        parsed = self._admit(ref)
        lease = self._leases.open(parsed, holder)
        try:
            held = self._held(parsed, revision)
            if held is not None and self.ready(held, strict=lease.strict):
                self._counts.hits += 1
                self._grant(lease, held)
            else:
                async with aclosing(self._wait_for(lease, parsed, revision)) as steps:
                    async for step in steps:
                        yield step
        except BaseException:
            lease.release()
            raise
        yield lease

    async def _wait_for(self, lease: ModelLease, ref: Ref, revision: str) -> AsyncGenerator[Progress, None]:
        """Progress until the lease is granted. From the flight's beginning until then nothing drops what it brings."""
        strict = lease.strict
        while True:
            self._admit(ref.text)
            held = self._held(ref, revision)
            flight = self.flight(ref, held, revision, strict=strict)
            self._lanes.urge(flight)
            # What is held, too: the flight begins to count on it only when its turn comes.
            with self._catalog.using([held] if held else []), self._catalog.holding(flight.blobs):
                async with aclosing(self._fetcher.follow(flight)) as events:
                    async for event in events:
                        if not isinstance(event, Model):
                            yield event
                        elif (event.current or revision) and event.in_shm and self._entitled(event, strict=strict):
                            self._grant(lease, event)
                            return
            # It was replaced between its arrival and this moment.

    def flight(self, ref: Ref, held: Model | None, revision: str = "", *, strict: bool = False) -> Flight[Model]:
        """What all follow who wait for the same."""
        wanted = Wanted(ref, Tier.SHM, held, exact=bool(revision), strict=strict)
        return self._fetcher.start(("acquire", ref.text, revision, strict), wanted)

    def ready(self, model: Model, *, strict: bool) -> bool:
        """Whether it can be leased at once; if `strict`, by who has a right to its ref alone."""
        return model.ready and self._entitled(model, strict=strict)

    def _entitled(self, model: Model, *, strict: bool) -> bool:
        return not strict or self._catalog.rights.entitled(model)

    def _held(self, ref: Ref, revision: str) -> Model | None:
        """The current snapshot, if there is one, or that of a revision. Raises ModelNotFound."""
        return self._catalog.model(ref, revision) if revision else self._catalog.models.get(ref.text)

    def _grant(self, lease: ModelLease, model: Model) -> None:
        lease.grant(model)
        self._counts.acquires += 1
        self._catalog.touch(model)
        self._usage.touch(model.ref)
        self._tell(EventKind.ACQUIRED, model, holder=lease.holder)
