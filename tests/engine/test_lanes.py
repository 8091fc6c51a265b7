"""A worker that waits goes before prefetches, and none of them starves."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.engine.rig import PART, SECONDS, Origin, Served, pattern, running
from weightd.engine.api import Tier
from weightd.engine.flights import Flight
from weightd.engine.lanes import Lanes

A, B, C = (f"http://origin/{name}/" for name in "abc")
DATA = {ref: pattern(20 * PART, ref) for ref in (A, B, C)}


def origin() -> Origin:
    return Origin({ref: {ref[-2]: Served(data)} for ref, data in DATA.items()})


async def reached(source: Origin) -> None:
    assert await asyncio.to_thread(source.reached.wait, SECONDS)


async def test_a_worker_does_not_wait_for_prefetches_to_end(tmp_path: Path) -> None:
    source = origin()
    source.hold(lambda path, offset: path in "ab" and offset >= 3 * PART)
    async with running(tmp_path, source, transfers=2, receivers=1) as rig:
        prefetches = [asyncio.create_task(rig.fetch(ref, tier=Tier.NVME)) for ref in (A, B)]
        await reached(source)
        lease = await rig.acquire(C)
        assert rig.content(lease.model) == {"c": DATA[C]}
        assert not any(t.done() for t in prefetches)
        source.release()
        assert [rig.content(await t) for t in prefetches] == [{"a": DATA[A]}, {"b": DATA[B]}]


async def test_prefetches_pause_while_a_worker_waits(tmp_path: Path) -> None:
    source = origin()
    source.hold(lambda path, offset: (path, offset) in (("a", 3 * PART), ("c", 10 * PART)))
    async with running(tmp_path, source, receivers=1) as rig:
        prefetch = asyncio.create_task(rig.fetch(A, tier=Tier.NVME))
        await reached(source)
        source.reached.clear()
        acquire = asyncio.create_task(rig.acquire(C))
        while not rig.origin.starts["c", 9 * PART, PART]:  # noqa: ASYNC110 - a counter has no event
            await asyncio.sleep(0.01)
        source.hold(lambda path, offset: path == "c")
        source.wake()  # "a" goes on with the part that it had begun, and begins no other
        await asyncio.sleep(0.3)
        assert {offset // PART for path, offset, _ in source.starts if path == "a"} == {0, 1, 2, 3}
        source.release()
        await acquire
        assert rig.content(await prefetch) == {"a": DATA[A]}


async def test_a_prefetch_that_a_worker_joins_goes_first(tmp_path: Path) -> None:
    """It waits behind another one for its place, and gets one when somebody acquires its model."""
    source = origin()
    source.hold(lambda path, offset: path == "a")
    async with running(tmp_path, source, transfers=1) as rig:
        first = asyncio.create_task(rig.fetch(A))
        await reached(source)
        second = asyncio.create_task(rig.fetch(B))
        await asyncio.sleep(0)
        lease = await rig.acquire(B)
        assert rig.content(lease.model) == {"b": DATA[B]}
        assert (await second).revision == lease.model.revision
        source.release()
        await first


async def test_places() -> None:
    lanes = Lanes(1)
    prefetch, waiting, urgent, late = (Flight[None]() for _ in range(4))
    async with lanes.enter(prefetch) as going:
        assert going.is_set()
        second = asyncio.create_task(_inside(lanes, waiting))
        await asyncio.sleep(0)
        assert lanes.running == 1
        lanes.urge(urgent)
        async with lanes.enter(urgent) as first:
            assert (first.is_set(), going.is_set(), lanes.running) == (True, False, 2)
            lanes.urge(late)
            third = asyncio.create_task(_inside(lanes, late))
            await asyncio.sleep(0)
            assert lanes.running == 2
            third.cancel()
            await asyncio.wait([third])
        assert going.is_set()
    await second
    assert lanes.running == 0


async def _inside(lanes: Lanes, flight: Flight[None]) -> None:
    async with lanes.enter(flight):
        pass
