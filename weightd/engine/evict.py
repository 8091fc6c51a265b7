"""Room in both tiers: who goes when something else is wanted, and who has to go anyway."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from weightd.core.budget import Budget, human
from weightd.core.errors import ModelBusy, ModelLeased, ModelPinned, WeightdError
from weightd.core.eviction import Holding, Plan, Use, plan_eviction
from weightd.engine.api import EventKind, Evicted, Tier
from weightd.engine.catalog import Catalog
from weightd.engine.counts import Counts
from weightd.engine.held import Blob, Model
from weightd.engine.leases import Leases
from weightd.engine.remove import Remover
from weightd.engine.usage import LATENCY_S, Usage
from weightd.storage.protocols import Segment

log = logging.getLogger(__name__)

PATIENCE_S: Final = 1.0
"""For memory that is draining, before a request is refused: a worker that ended unmaps in moments."""
SWEEP_S: Final = 1.0
"""Between two looks for what was idle for too long, or is above a watermark."""
NAMED: Final = 6
"""Holders of a tier that an error names."""

Missing = Callable[[], Awaitable[int]]
Tell = Callable[[EventKind, Model, str], None]
Stuck = dict[Model, WeightdError | OSError]
"""Models that could not go, although they might: something stands where their links have to be, say."""


@dataclass(frozen=True, slots=True)
class Watermarks:
    """Shares of a budget: above `high`, idle models go until `low` is reached."""

    high: float = 1.0
    low: float = 1.0


class Evictor:
    """On the event loop. Takes nothing that is leased, pinned, hot, being filled or verified, or that was adopted a
    moment ago; and from shared memory nothing that somebody maps without a lease, as that would free nothing."""

    def __init__(
        self,
        catalog: Catalog,
        remover: Remover,
        *,
        leases: Leases,
        usage: Usage,
        marks: Mapping[Tier, Watermarks],
        tell: Tell,
        counts: Counts,
    ) -> None:
        self._catalog, self._remover, self._leases, self._usage = catalog, remover, leases, usage
        self._marks, self._tell, self._counts = marks, tell, counts
        self._turns = {tier: asyncio.Lock() for tier in Tier}
        self._told: set[Model] = set()
        """Of whom the log has that they are stuck."""
        self._reasons: dict[str, str] = {}
        """Why the last sweep could not do each of its works, "" for those that it could."""

    async def make_room(self, tier: Tier, missing: Missing, why: str) -> bool:
        """Until nothing is `missing` (bytes; asked again and again), the least valuable models go. False when that
        cannot be reached: then hardly anything went. Who misses nothing waits for nobody. Raises what kept a model that
        might have gone, where all others together were not enough."""
        if await missing() <= 0:
            return True
        tried: set[Plan[Model, Blob]] = set()
        stuck: Stuck = {}
        async with self._turns[tier]:
            while (need := await missing()) > 0:
                plan = await self._plan(tier, need, stuck)
                # Where nothing went, who was to go has come to be used meanwhile, and others may go.
                if plan is not None and (await self._carry_out(tier, plan, why, stuck) or plan not in tried):
                    tried.add(plan)
                    continue
                if tier is Tier.NVME or not await self._catalog.drains.change(PATIENCE_S):
                    for error in stuck.values():
                        raise error
                    return False
            return True

    async def _plan(self, tier: Tier, need: int, stuck: Stuck) -> Plan[Model, Blob] | None:
        held = await self._movable() if tier is Tier.SHM else set(self._catalog.blobs.values())
        holdings = [self._holding(m, tier, held, m in stuck) for m in self._catalog.snapshots]
        named = {b for m in self._catalog.snapshots for b in m.blobs.values()}
        spare = {b: b.footprint for b in held - named if not self._wanted(b)}
        return plan_eviction(holdings, need, time.time(), unnamed=spare)

    async def _movable(self) -> set[Blob]:
        """In shared memory, mapped by nobody but who leased it, and nothing under way counts on it."""
        here = [b for b in self._catalog.blobs.values() if b.in_shm and b.segment is not None]
        there = [b for b in here if not self._wanted(b)]
        claimed = {b for m in self._catalog.snapshots if m.claimed for b in m.blobs.values()}
        loose = [b for b in there if b not in claimed]
        mapped = await self._catalog.io(_mapped, [(b, b.segment) for b in loose if b.segment is not None])
        return set(there) - mapped

    def _holding(self, model: Model, tier: Tier, held: set[Blob], stuck: bool) -> Holding[Model, Blob]:
        blobs = {b: b.footprint for b in held.intersection(model.blobs.values())}
        use = self._usage.of(model.ref) if model.current else Use()
        cost = self._usage.cost(model.ref, model.manifest, tier)
        return Holding(model, blobs, use, cost, LATENCY_S[tier], protected=stuck or self._protected(model, tier))

    def _protected(self, model: Model, tier: Tier) -> bool:
        """On NVMe a snapshot goes as a whole; in shared memory what others count on stays, and the rest may go."""
        if model.claimed or model.kept_hot:
            return True
        return tier is Tier.NVME and any(map(self._wanted, model.blobs.values()))

    def _wanted(self, blob: Blob) -> bool:
        return self._catalog.wanted(blob.record.digest)

    async def _carry_out(self, tier: Tier, plan: Plan[Model, Blob], why: str, stuck: Stuck) -> bool:
        """Whether anything went: since it was made, somebody may have leased what was to go."""
        if tier is Tier.NVME:
            spare = await self._drop_unnamed([b for b in plan.blobs if self._catalog.unnamed(b)])
            return bool(sum([await self._drop(m, why, stuck) for m in plan.victims]) or spare)
        return bool(await self._leave(list(plan.victims), set(plan.blobs), why, stuck))

    async def _drop_unnamed(self, blobs: list[Blob]) -> list[Blob]:
        """Those that are not held any more, though the file of one may stay for the next start. Raises what keeps all
        of them."""
        try:
            await self._remover.remove_unnamed(blobs)
        except (WeightdError, OSError) as e:
            blobs = [b for b in blobs if not self._catalog.unnamed(b)]
            if not blobs:
                raise
            log.warning("not all that a failed fetch left could be removed: %s", e)
        return blobs

    async def _drop(self, model: Model, why: str, stuck: Stuck) -> bool:
        left = None
        with self._kept([model], "on NVMe", stuck):
            left = await self._remover.remove(model, lambda: not self._protected(model, Tier.NVME))
        if left is None and (model not in stuck or model in self._catalog.snapshots):
            return False
        freed = f"{human(left.nvme)} of NVMe freed" if left else "what could be freed of it"
        self._tell(EventKind.REMOVED, model, f"{freed} {why}")
        return True

    @contextmanager
    def _kept(self, models: Collection[Model], where: str, stuck: Stuck) -> Iterator[None]:
        """Those that cannot go keep nobody else: they are `stuck`, and told once."""
        try:
            yield
        except (WeightdError, OSError) as e:
            stuck.update(dict.fromkeys(models, e))
            for model in models:
                if model not in self._told:
                    held = model in self._catalog.snapshots
                    what = f"stays {where}" if held else "is not held any more, but not all of it could be removed"
                    log.warning("%s %s: %s", model.ref.shown, what, e)
            self._told = {*models, *self._told.intersection(self._catalog.snapshots)}

    async def _leave(self, victims: list[Model], blobs: set[Blob], why: str, stuck: Stuck) -> int:
        """Bytes that left shared memory."""
        try:
            return await self._leave_together(victims, blobs, why)
        except (WeightdError, OSError):
            left = await self._leave_each([[v] for v in victims], blobs, why, stuck)
            # What has no bytes of its own could not go alone.
            rest = _sharing([v for v in victims if v not in stuck], {b for b in blobs if b.in_shm})
            return left + await self._leave_each(rest, blobs, why, stuck)

    async def _leave_each(self, groups: Iterable[list[Model]], blobs: set[Blob], why: str, stuck: Stuck) -> int:
        left = 0
        for group in groups:
            with self._kept(group, "in shared memory", stuck):
                free = {b for b in blobs if any(m.has(b) for m in group)}
                left += await self._leave_together(group, free, why)
        return left

    async def _leave_together(self, victims: list[Model], blobs: set[Blob], why: str) -> int:
        """Bytes that left shared memory. Raises what keeps any of them, and then they all stay."""
        async with self._catalog.publishing:
            victims = [m for m in victims if not self._protected(m, Tier.SHM)]
            free = {b for b in blobs - self._needed(victims) if b.in_shm and not self._wanted(b)}
            left = await self._catalog.leave_shm(free)
        if left.size:
            self._told.difference_update(victims)
        self._evicted(victims, free, why)
        return left.size

    def _evicted(self, models: Iterable[Model], blobs: set[Blob], why: str) -> None:
        """Told of those that have any of the blobs that left."""
        for model in models:
            if size := _bytes(model, blobs):
                self._counts.evictions += 1
                self._tell(EventKind.EVICTED, model, f"{human(size)} of shared memory freed {why}")

    def _needed(self, going: Iterable[Model]) -> set[Blob]:
        """By other models: those that are in shared memory, and those that claim what of them is there."""
        gone = set(going)
        others = [m for m in self._catalog.snapshots if m not in gone and (m.in_shm or m.claimed or m.kept_hot)]
        return {b for m in others for b in m.blobs.values()}

    async def sweep(self) -> None:
        """What was idle for longer than its rule says leaves shared memory, and what is above a high watermark its
        tier; until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_S)
            await self._swept("idle", self._drop_idle(time.time()))
            for tier, budget in (Tier.SHM, self._catalog.shm), (Tier.NVME, self._catalog.nvme):
                await self._swept(tier.name, self._drop_to_mark(tier, budget))

    async def _swept(self, what: str, work: Awaitable[None]) -> None:
        """What keeps one from being done keeps none of the others; told when it is another reason than before."""
        reason = ""
        try:
            await work
        except (WeightdError, OSError) as e:
            reason = str(e)
        if reason and self._reasons.get(what) != reason:
            log.warning("nothing could be evicted: %s", reason)
        self._reasons[what] = reason

    async def _drop_idle(self, now: float) -> None:
        idle = [m for m in self._catalog.models.values() if self._idle(m, now)]
        if idle:
            await self._leave(idle, {b for m in idle for b in m.blobs.values() if b.in_shm}, "after it was idle", {})

    def _idle(self, model: Model, now: float) -> bool:
        keep = model.rule.keep_idle
        if keep is None or self._protected(model, Tier.SHM) or not any(b.in_shm for b in model.blobs.values()):
            return False
        return now - model.last_used > keep

    async def _drop_to_mark(self, tier: Tier, budget: Budget) -> None:
        marks, used = self._marks[tier], budget.limit - budget.left
        if used <= marks.high * budget.limit:
            return

        async def missing() -> int:
            return budget.limit - budget.left - int(marks.low * budget.limit)

        await self.make_room(tier, missing, "above the high watermark")

    async def evict(self, models: list[Model]) -> Evicted:
        """Of one ref, all. Raises ModelLeased, ModelPinned, ModelBusy; then they stay."""
        self._check(models)
        await self._check_awaited(models)
        async with self._catalog.publishing:
            self._check(models)
            blobs = {b for m in models for b in m.blobs.values() if b.in_shm} - self._needed(models)
            left = await self._catalog.leave_shm(blobs)
        self._evicted(models, blobs, "by command")
        return Evicted(left.size, left.draining)

    async def remove(self, models: list[Model]) -> Evicted:
        """Of one ref, all, the current one last. Raises as `evict`."""
        self._check(models)
        await self._check_awaited(models)
        total = Evicted()
        for model in reversed(models):
            left = await self._remover.remove(model, partial(self._may_leave, model))
            if left is None and model not in self._catalog.snapshots:
                continue  # Somebody else has removed it meanwhile.
            if left is None:
                raise ModelBusy("a fetch or load under way needs it", ref=model.ref.shown, remedy="Try again after it.")
            total = Evicted(total.shm + left.shm, 0, total.nvme + left.nvme)
            self._tell(EventKind.REMOVED, model, f"{human(left.nvme)} of NVMe freed by command")
        return total

    def _may_leave(self, model: Model) -> bool:
        """True, or raises."""
        self._check([model])
        return True

    def _check(self, models: list[Model]) -> None:
        ref = models[0].ref.shown
        if leases := sum(m.leases for m in models):
            raise ModelLeased(
                f"{leases} leases hold it: {self._leases.who(models)}", ref=ref, remedy="End those workers first."
            )
        if any(m.hot and m.current for m in models):
            raise kept_by_configuration(ref)
        if any(m.pinned for m in models):
            raise ModelPinned("it is pinned", ref=ref, remedy="Unpin it first.")
        if any(m.users for m in models) or any(self._wanted(b) for m in models for b in m.blobs.values()):
            raise ModelBusy("it is being filled or verified", ref=ref, remedy="Try again when that has ended.")

    async def _check_awaited(self, models: list[Model]) -> None:
        """Who maps what was adopted had leased it, and may not have had time to come again. The background's own map,
        while it compares checksums, cannot be told from theirs."""
        blobs = {b for m in models if m.awaited for b in m.blobs.values() if b.in_shm}
        if await self._catalog.io(_mapped, [(b, b.segment) for b in blobs if b.segment is not None]):
            raise ModelBusy(
                "it was adopted after a restart and is mapped: by workers that may lease it again, or to be checked",
                ref=models[0].ref.shown,
                remedy="Try again in a moment, at the latest when [shm] adopt_grace is over, or end those workers.",
            )

    def holders(self, tier: Tier) -> str:
        """What holds the space of a tier and cannot go, the largest first; for errors."""
        held: list[tuple[int, str]] = []
        for model in self._catalog.snapshots:
            stays = [b for b in set(model.blobs.values()) if self._stays(b, model, tier)]
            if size := sum(b.footprint for b in stays):
                why = self._why(model) or "being filled or verified"
                held.append((size, f"{human(size)} {model.ref.shown} {why}"))
        held.sort(key=lambda h: -h[0])
        more = [f"{len(held) - NAMED} more"] if len(held) > NAMED else []
        return "held by " + ", ".join([text for _, text in held[:NAMED]] + more) if held else ""

    def _stays(self, blob: Blob, model: Model, tier: Tier) -> bool:
        """Whether it has to stay in this tier for the sake of this model, or for what is under way."""
        if tier is Tier.SHM and not blob.in_shm:
            return False
        return self._protected(model, tier) or self._wanted(blob)

    def _why(self, model: Model) -> str:
        """Whose claim it is; "" where it is nobody's."""
        if model.leases:
            return f"leased by {self._leases.who([model])}"
        if model.current and model.hot:
            return "hot"
        if model.current and model.pinned:
            return "pinned"
        if model.awaited:
            return "adopted after a restart, awaiting its workers"
        return ""


def kept_by_configuration(ref: str) -> ModelPinned:
    """What a command cannot change."""
    return ModelPinned("the configuration says hot", ref=ref, remedy="Change its policy and start again.")


def _bytes(model: Model, blobs: Iterable[Blob]) -> int:
    return sum(b.footprint for b in blobs if model.has(b))


def _sharing(models: Iterable[Model], blobs: set[Blob]) -> list[list[Model]]:
    """Those that have any of `blobs`, together with whoever shares one with them, or with one of those."""
    groups: list[tuple[list[Model], set[Blob]]] = []
    for model in models:
        group, shared = [model], blobs.intersection(model.blobs.values())
        if shared:
            for one in [g for g in groups if g[1] & shared]:
                groups.remove(one)
                group, shared = one[0] + group, one[1] | shared
            groups.append((group, shared))
    return [group for group, _ in groups]


def _mapped(blobs: list[tuple[Blob, Segment]]) -> set[Blob]:
    return {blob for blob, segment in blobs if segment.mapped()}
