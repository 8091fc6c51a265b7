"""Where every byte is."""

from __future__ import annotations

from collections.abc import Callable

from weightd.core.budget import Budget
from weightd.core.lifecycle import Residency
from weightd.engine.api import TierStatus
from weightd.engine.catalog import Catalog
from weightd.engine.held import Blob, Model
from weightd.engine.room import Room


class Accounts:
    """Of both tiers, as their budgets and their file systems have them. On the event loop."""

    def __init__(self, catalog: Catalog, room: Room) -> None:
        self._catalog, self._room = catalog, room

    async def shm(self) -> TierStatus:
        """Shared memory."""
        catalog = self._catalog
        # In this order: what is filled in between is nobody else's.
        free, total = await catalog.io(catalog.segments.room)
        filling = await catalog.io(self._room.filling_shm())
        budget = catalog.shm
        other = total - free - budget.resident - budget.draining - filling
        return self._status(budget, free, total, other, lambda b: b.in_shm)

    async def nvme(self) -> TierStatus:
        """The state directory's file system."""
        catalog = self._catalog
        free, total = await catalog.io(catalog.store.room)
        budget = catalog.nvme
        other = total - free - budget.resident - budget.kept - self._room.filling_nvme()
        return self._status(budget, free, total, other, lambda b: b.nvme.state is Residency.RESIDENT)

    def _status(self, budget: Budget, free: int, total: int, other: int, there: Callable[[Blob], bool]) -> TierStatus:
        return TierStatus(
            budget=budget.limit,
            reserved=budget.reserved,
            resident=budget.resident,
            free=free,
            leased=self._sum(lambda m: m.leases > 0, there),
            pinned=self._sum(lambda m: m.kept_hot, there),
            draining=budget.draining,
            kept=budget.kept,
            total=total,
            other=max(0, other),
        )

    def _sum(self, which: Callable[[Model], bool], there: Callable[[Blob], bool]) -> int:
        blobs = {b for m in self._catalog.snapshots if which(m) for b in m.blobs.values()}
        return sum(b.footprint for b in blobs if there(b))
