"""However many ask, a blob is fetched once and held once; who leaves does not take it from the others."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import aclosing
from pathlib import Path

import pytest

from tests.engine.rig import PART, REF, SECONDS, Origin, Served, one, pattern, running, safetensors, sha256
from weightd.core.errors import SourceUnavailable
from weightd.core.lifecycle import Residency
from weightd.core.verification import Verification
from weightd.engine.api import Tier
from weightd.engine.leases import ModelLease

DATA = pattern(20 * PART + 77)


async def held(origin: Origin) -> None:
    """Until the origin holds a read."""
    await asyncio.wait_for(asyncio.to_thread(origin.reached.wait, SECONDS), SECONDS)


async def test_many_acquires_are_one_fetch(tmp_path: Path) -> None:
    origin = one(DATA)
    origin.hold()
    async with running(tmp_path, origin) as rig:
        tasks = [asyncio.create_task(rig.acquire()) for _ in range(20)]
        await held(origin)
        origin.release()
        leases = await asyncio.gather(*tasks)
        assert set(origin.starts.values()) == {1}
        assert sum(length for _, _, length in origin.starts) == len(DATA)
        assert origin.resolved == 1
        assert len({lease.model.files[0].segment for lease in leases}) == 1
        assert rig.engine._leases.granted == leases[0].model.leases == 20
        assert rig.content(leases[0].model) == {"model.bin": DATA}
        for lease in leases:
            lease.release()
            lease.release()
        assert rig.engine._leases.granted == leases[0].model.leases == 0
        await rig.check_idle(blobs=1, segments=1)


async def test_to_disk_and_into_memory_at_the_same_time_is_one_fetch(tmp_path: Path) -> None:
    origin = one(DATA)
    origin.hold()
    async with running(tmp_path, origin) as rig:
        tasks = [
            asyncio.create_task(rig.fetch(tier=Tier.NVME)),
            asyncio.create_task(rig.acquire()),
            asyncio.create_task(rig.fetch(tier=Tier.SHM)),
        ]
        await held(origin)
        origin.release()
        model, lease, _ = await asyncio.gather(*tasks)
        assert set(origin.starts.values()) == {1}
        assert rig.content(model) == {"model.bin": DATA}
        assert lease.model.residency(Tier.SHM) is Residency.RESIDENT
        lease.release()
        await rig.check_idle(blobs=1, segments=1)


async def test_two_models_that_share_a_blob(tmp_path: Path) -> None:
    shared, own = pattern(9 * PART, "shared"), pattern(3 * PART, "own")
    other = "http://origin/other/"
    origin = Origin(
        {
            REF: {"a.bin": Served(shared, sha256(shared)), "b.bin": Served(own, sha256(own))},
            other: {"renamed.bin": Served(shared, sha256(shared))},
        }
    )
    origin.hold()
    async with running(tmp_path, origin) as rig:
        tasks = [asyncio.create_task(rig.acquire(r)) for r in (REF, other)]
        await held(origin)
        origin.release()
        first, second = await asyncio.gather(*tasks)
        assert sum(length for _, _, length in origin.starts.elements()) == len(shared) + len(own)
        assert rig.content(first.model) == {"a.bin": shared, "b.bin": own}
        assert rig.content(second.model) == {"renamed.bin": shared}
        assert first.model.files[0].segment == second.model.files[0].segment
        await rig.check_idle(blobs=2, segments=2)


async def test_a_model_sees_that_another_brought_its_blob_into_memory(tmp_path: Path) -> None:
    other = "http://origin/other/"
    origin = Origin({REF: {"a": Served(DATA, sha256(DATA))}, other: {"b": Served(DATA, sha256(DATA))}})
    async with running(tmp_path, origin) as rig:
        assert (await rig.fetch(REF, Tier.NVME)).residency(Tier.SHM) is Residency.ABSENT
        await rig.fetch(other, Tier.SHM)
        lease = await rig.acquire(REF)
        assert lease.model.files[0].segment
        assert os.readlink(Path(lease.model.directory) / "a").endswith(lease.model.files[0].segment)
        assert lease.model.residency(Tier.SHM) is Residency.RESIDENT
        assert rig.engine.model(REF).verification is Verification.SHA256


async def test_a_digest_given_later_is_seen_by_every_model(tmp_path: Path) -> None:
    other = "http://origin/other/"
    origin = Origin({REF: {"a": Served(DATA)}, other: {"b": Served(DATA, sha256(DATA))}})
    async with running(tmp_path, origin) as rig:
        assert (await rig.fetch(REF)).verification is Verification.SIZE
        assert (await rig.fetch(other)).verification is Verification.SHA256
        assert rig.engine.model(REF).verification is Verification.SHA256
        await rig.check_idle(blobs=1, segments=0)


async def test_one_that_leaves_does_not_stop_the_others(tmp_path: Path) -> None:
    origin = one(DATA)
    origin.hold()
    async with running(tmp_path, origin) as rig:
        first, second = (asyncio.create_task(rig.acquire()) for _ in range(2))
        await held(origin)
        first.cancel()
        await asyncio.wait([first])
        assert first.cancelled()
        origin.release()
        assert rig.content((await second).model) == {"model.bin": DATA}
        assert set(origin.starts.values()) == {1}
        assert rig.engine._leases.granted == 1
        await rig.check_idle(blobs=1, segments=1)


@pytest.mark.parametrize("tier", list(Tier))
async def test_when_the_last_one_leaves_all_stops(tmp_path: Path, tier: Tier) -> None:
    origin = one(DATA)
    origin.hold(lambda path, offset: offset >= 6 * PART)
    async with running(tmp_path, origin) as rig:
        tasks = [asyncio.create_task(rig.fetch(tier=tier)) for _ in range(3)]
        await held(origin)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        async with asyncio.timeout(1):
            while rig.engine._fetcher._flights:
                await asyncio.wait([f.task for f in rig.engine._fetcher._flights._flights.values()])
        await rig.check_idle(blobs=0, segments=0, kept=1)
        assert rig.engine.models() == []
        origin.release()
        assert rig.content(await rig.fetch(tier=tier)) == {"model.bin": DATA}


async def test_stop_waits_for_a_flight_that_everybody_left(tmp_path: Path) -> None:
    """It still cleans up while another one for the same ref was begun and left."""
    origin = one(DATA)
    origin.hold()
    gate = threading.Event()
    origin.on_read = lambda path, offset, length: _pass(gate)
    async with running(tmp_path, origin) as rig:
        for _ in range(2):
            task = asyncio.create_task(rig.acquire())
            await held(origin)
            origin.release()
            task.cancel()
            await asyncio.wait([task])
        stop = asyncio.create_task(rig.engine.stop())
        await asyncio.wait([stop], timeout=0.2)
        assert not stop.done()
        gate.set()
        await stop
        assert rig.segments() == []
        assert list(rig.blobs.ingests.iterdir()) == []


async def test_a_waiter_takes_over_when_the_one_who_fetches_fails(tmp_path: Path) -> None:
    other = "http://origin/other/"
    origin = Origin({REF: {"a": Served(DATA, sha256(DATA))}, other: {"b": Served(DATA, sha256(DATA))}})
    origin.hold()

    def broken(path: str, offset: int, length: int) -> None:
        if path == "a":
            raise SourceUnavailable("down")

    async with running(tmp_path, origin, attempts=1) as rig:
        first = asyncio.create_task(rig.fetch(REF))
        await held(origin)
        second = asyncio.create_task(rig.fetch(other))
        await asyncio.sleep(0)
        origin.on_read = broken
        origin.release()
        with pytest.raises(SourceUnavailable):
            await first
        assert rig.content(await second) == {"b": DATA}
        await rig.check_idle(blobs=1, segments=0)


async def test_an_acquire_that_is_closed_keeps_no_lease(tmp_path: Path) -> None:
    origin = one(DATA)
    origin.hold()
    async with running(tmp_path, origin) as rig:
        async with aclosing(rig.engine.acquire(REF)) as events:
            await anext(events)
        origin.release()
        assert rig.engine._leases.granted == 0
        async with aclosing(rig.engine.acquire(REF)) as events:
            async for event in events:
                if isinstance(event, ModelLease):
                    event.release()
        assert rig.engine._leases.granted == 0


async def test_the_same_bytes_at_two_places_of_one_model(tmp_path: Path) -> None:
    files = {f"{i}.bin": Served(DATA) for i in range(4)} | {"given.bin": Served(DATA, sha256(DATA))}
    async with running(tmp_path, Origin({REF: files})) as rig:
        lease = await rig.acquire()
        assert rig.content(lease.model) == dict.fromkeys(files, DATA)
        assert len({f.segment for f in lease.model.files}) == 1
        await rig.check_idle(blobs=1, segments=1)


async def test_empty_files(tmp_path: Path) -> None:
    origin = Origin({REF: {"a": Served(b""), "b": Served(b"", sha256(b"")), "c": Served(b"x")}})
    async with running(tmp_path, origin) as rig:
        lease = await rig.acquire()
        assert rig.content(lease.model) == {"a": b"", "b": b"", "c": b"x"}
        assert [bool(f.segment) for f in lease.model.files] == [False, False, True]
        assert lease.model.residency(Tier.SHM) is Residency.RESIDENT
        await rig.check_idle(blobs=2, segments=1)


async def test_a_thousand_small_files(tmp_path: Path) -> None:
    files = {f"{i % 10}/{i}.bin": Served(pattern(i, i)) for i in range(1000)}
    async with running(tmp_path, Origin({REF: files})) as rig:
        lease = await rig.acquire()
        assert rig.content(lease.model) == {path: f.data for path, f in files.items()}
        await rig.check_idle(blobs=1000, segments=999)


async def test_an_origin_that_names_no_version_is_fetched_once(tmp_path: Path) -> None:
    """Without ETag, date or digest nothing tells that a file is known, but what was just brought is."""
    files = {"a": Served(DATA, etag=""), "b": Served(DATA, etag=""), "c": Served(b"", etag="")}
    origin = Origin({REF: files})
    async with running(tmp_path, origin) as rig:
        lease = await rig.acquire()
        assert rig.content(lease.model) == {"a": DATA, "b": DATA, "c": b""}
        assert set(origin.starts.values()) == {1}
        await rig.check_idle(blobs=2, segments=1)
        assert rig.content(await rig.fetch()) == {"a": DATA, "b": DATA, "c": b""}
        assert set(origin.starts.values()) == {2}
        await rig.check_idle(blobs=2, segments=1)


async def test_a_resident_model_costs_no_request(tmp_path: Path) -> None:
    origin = one(safetensors(5 * PART), "model.safetensors")
    async with running(tmp_path, origin) as rig:
        (await rig.acquire()).release()
        before = origin.starts.copy(), origin.resolved
        lease = await rig.acquire()
        assert (origin.starts, origin.resolved) == before
        assert lease.model.files[0].segment


def _pass(gate: threading.Event) -> None:
    gate.wait(SECONDS)
