"""Whoever asks at the same moment: what is leased stays, and who asks for what just goes gets it all the same."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.engine.rig import MIB, Origin, Rig, Served, pattern, running
from weightd.core.errors import ModelBusy, ModelLeased
from weightd.core.lifecycle import Residency
from weightd.core.policy import Rule, Rules
from weightd.engine.api import Tier
from weightd.engine.leases import ModelLease
from weightd.storage.segments import ROOT

SIZE = MIB
FIRST, SECOND, THIRD = (f"http://origin/{name}/" for name in ("first", "second", "third"))
STEPS = 40
"""Turns of the loop that one operation is ahead of the other, from 0: more than there are before its first thread."""


def origin(*refs: str, shared: bytes = b"") -> Origin:
    models = {ref: {"model.bin": Served(pattern(SIZE, ref))} for ref in refs}
    if shared:
        for files in models.values():
            files["base.bin"] = Served(shared)
    return Origin(models)


def held(rig: Rig, lease: ModelLease) -> None:
    """Its segments are there, and they and the directory have the right bytes."""
    model = lease.model
    right = {p: f.data for p, f in rig.origin.models[model.ref].items()}
    assert model.residency(Tier.SHM).name == "RESIDENT"
    assert {f.path: Path(ROOT, f.segment.removeprefix("/")).read_bytes() for f in model.files} == right
    assert rig.content(model) == right
    assert rig.engine.model(model.ref).leases >= 1


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def evict(rig: Rig) -> None:
    with suppress(ModelLeased, ModelBusy):
        await rig.engine.evict(FIRST)


async def remove(rig: Rig) -> None:
    with suppress(ModelLeased, ModelBusy):
        await rig.engine.remove(FIRST)


async def make_room(rig: Rig) -> None:
    """In shared memory, which holds one."""
    (await rig.acquire(SECOND)).release()


Going = Callable[[Rig], Awaitable[None]]


@pytest.mark.parametrize("going", [evict, remove])
async def test_acquired_while_it_goes(tmp_path: Path, going: Going) -> None:
    async with running(tmp_path, origin(FIRST, SECOND)) as rig:
        for ahead in range(STEPS):
            (await rig.acquire(FIRST)).release()
            goes = asyncio.create_task(going(rig))
            await turns(ahead)
            lease = await rig.acquire(FIRST)
            await goes
            held(rig, lease)
            lease.release()
        await rig.check_idle(blobs=1, segments=1)


@pytest.mark.parametrize("going", [evict, remove])
@pytest.mark.parametrize("tier", list(Tier))
async def test_goes_after_it_was_asked_for(tmp_path: Path, tier: Tier, going: Going) -> None:
    async with running(tmp_path, origin(FIRST)) as rig:
        for ahead in range(STEPS):
            await evict(rig) if rig.engine.models() else None
            await rig.fetch(FIRST, tier=tier)
            asked = asyncio.create_task(rig.acquire(FIRST))
            await turns(ahead)
            await going(rig)
            lease = await asked
            held(rig, lease)
            lease.release()
        await rig.check_idle(blobs=1, segments=1)


async def test_acquired_while_it_makes_room(tmp_path: Path) -> None:
    """They take turns, and neither gets less than all."""
    async with running(tmp_path, origin(FIRST, SECOND), shm=SIZE) as rig:
        for ahead in range(STEPS):
            (await rig.acquire(FIRST)).release()
            goes = asyncio.create_task(rig.acquire(SECOND))
            await turns(ahead)
            lease = (await asyncio.gather(rig.acquire(FIRST), return_exceptions=True))[0]
            other = (await asyncio.gather(goes, return_exceptions=True))[0]
            got = [one for one in (lease, other) if isinstance(one, ModelLease)]
            assert got
            for one in got:
                held(rig, one)
                one.release()


@pytest.mark.parametrize("tier", [Tier.SHM, Tier.NVME])
async def test_who_is_leased_before_he_has_gone_is_replaced_by_another(tmp_path: Path, tier: Tier) -> None:
    room = {"shm": 2 * SIZE} if tier is Tier.SHM else {"nvme": 2 * SIZE}
    async with running(tmp_path, origin(FIRST, SECOND, THIRD), **room) as rig:
        for ref in (FIRST, SECOND):
            (await rig.acquire(ref)).release()
        publishing = rig.engine._catalog.publishing
        async with publishing:
            third = asyncio.create_task(rig.fetch(THIRD, tier=tier))
            while not publishing._waiters:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0)
            lease = await rig.acquire(FIRST)
        await third
        assert {m.ref for m in rig.engine.models() if m.residency(tier) is Residency.RESIDENT} == {FIRST, THIRD}
        lease.release()


async def test_two_who_remove_it_at_the_same_time_both_find_it_gone(tmp_path: Path) -> None:
    async with running(tmp_path, origin(FIRST)) as rig:
        (await rig.acquire(FIRST)).release()
        done = await asyncio.gather(rig.engine.remove(FIRST), rig.engine.remove(FIRST))
        assert sorted(d.nvme for d in done) == [0, SIZE]
        await rig.check_idle(blobs=0, segments=0)


async def test_what_has_gone_already_is_not_told_and_counted_twice(tmp_path: Path) -> None:
    rules = Rules(other=Rule(keep_idle=0.0))
    async with running(tmp_path, origin(FIRST), residency={"rules": rules}) as rig:
        (await rig.acquire(FIRST)).release()
        publishing = rig.engine._catalog.publishing
        async with publishing:
            goes = [rig.engine.evict(FIRST), rig.engine._evictor._drop_idle(time.time() + 1)]
            tasks = []
            for waiting, one in enumerate(goes, 1):
                tasks.append(asyncio.ensure_future(one))
                while len(publishing._waiters or ()) < waiting:  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        assert (await rig.engine.status()).counters.evictions == 1
