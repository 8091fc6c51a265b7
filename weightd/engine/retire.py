"""Old snapshots go by policy."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from weightd.core.errors import WeightdError
from weightd.core.retention import due
from weightd.engine.catalog import Catalog
from weightd.engine.held import Blob, Model
from weightd.engine.remove import Remover

log = logging.getLogger(__name__)


class Retirer:
    """In one task of its own. Keeps `keep` old snapshots of each ref on NVMe; one that is leased stays beyond that, and
    in shared memory, until its last lease ends. `told` is called of each that has gone. On the event loop."""

    def __init__(self, catalog: Catalog, remover: Remover, keep: int, told: Callable[[Model], None]) -> None:
        self._catalog, self._remover, self._keep, self._told = catalog, remover, keep, told
        self._again = False
        self._stopped = False
        self._task: asyncio.Task[None] | None = None
        self._reasons: set[str] = set()
        self._before: set[str] = set()
        """What kept some from going, this time and the last: told once."""
        catalog.settled = self.kick

    def kick(self) -> None:
        """Something ended that may have kept one. Cheap; the work is done later."""
        self._again = not self._stopped
        if self._again and self._catalog.snapshots.old and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._run(), name="retire")

    async def idle(self) -> None:
        """Until all that could be done is done."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def stop(self) -> None:
        """What was begun ends first."""
        self._stopped, self._again = True, False
        await self.idle()

    async def _run(self) -> None:
        while self._again:
            self._again = False
            self._before, self._reasons = self._reasons, set()
            for model in list(self._due()):
                with self._told_if_not(model.ref.shown):
                    await self._retire(model)
            await self._leave_memory()

    @contextmanager
    def _told_if_not(self, what: str) -> Iterator[None]:
        """One that cannot go keeps no other. Tried again when something else ends, and after the next start."""
        try:
            yield
        except (WeightdError, OSError) as e:
            reason = f"{what}: {e}"
            if reason not in self._reasons | self._before:
                log.warning("an old snapshot could not be dropped: %s", reason)
            self._reasons.add(reason)

    def _due(self) -> Iterator[Model]:
        snapshots = self._catalog.snapshots
        for text, old in snapshots.old.items():
            # One of the same bytes, of which somebody has only said more since, is no older version.
            current = snapshots.current.get(text)  # None where a start found its bytes lost.
            twins = [m for m in old if current is not None and m.digests == current.digests]
            others = [m for m in old if m not in twins]
            yield from (m for m in [*twins, *due(others, self._keep)] if not m.claimed)

    async def _retire(self, model: Model) -> None:
        # It may have been leased again since it was found, or become the current one.
        if await self._remover.remove(model, lambda: not self._stopped and model in list(self._due())) is not None:
            self._told(model)

    async def _leave_memory(self) -> None:
        """Only the current snapshot is acquired: segments that only unclaimed old ones have are of no use."""
        catalog = self._catalog
        async with catalog.publishing:
            snapshots = list(catalog.snapshots)
            idle = [m for m in snapshots if not m.current and not m.claimed]
            used = {b for m in snapshots if m.current or m.claimed for b in m.blobs.values()}
            unused = {b for m in idle for b in m.blobs.values() if b.in_shm} - used
            if not self._stopped:
                await self._leave({b for b in unused if not catalog.wanted(b.record.digest)})
            for model in idle:
                if not self._stopped:
                    with self._told_if_not(model.ref.shown):
                        await catalog.relink(model)

    async def _leave(self, blobs: set[Blob]) -> None:
        """All at once, as each call relinks, and waits for readers (`kernel.paths_followed`); where that cannot be,
        those together that the same snapshots have."""
        catalog = self._catalog
        try:
            await catalog.leave_shm(blobs)
        except (WeightdError, OSError):
            shared: dict[tuple[Model, ...], list[Blob]] = {}
            for blob in blobs:
                shared.setdefault(tuple(m for m in catalog.snapshots if m.has(blob)), []).append(blob)
            for models, some in shared.items():
                with self._told_if_not(models[0].ref.shown):
                    await catalog.leave_shm(some)
