"""Models that share blobs: what one of them is leased with stays, whatever becomes of the others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from tests.engine.rig import MIB, Origin, Rig, Served, pattern, running, sha256
from weightd.core.policy import Policy, Rule, Rules
from weightd.engine.api import Event, EventKind, Tier
from weightd.engine.usage import Usage

SIZE = MIB
BASE = pattern(SIZE, "base")
NAMES = ("first", "second")
RULES = {"rules": Rules({"second": Rule(Policy.WARM, 5.0)})}


def origin() -> Origin:
    return Origin(
        {name: {"model.bin": Served(pattern(SIZE, name)), "base.bin": Served(BASE)} for name in NAMES}
        | {"base": {"base.bin": Served(BASE)}}
    )


async def evict(rig: Rig) -> None:
    await rig.engine.evict("second")


async def idle(rig: Rig) -> None:
    await rig.engine._evictor._drop_idle(rig.engine._catalog.models["second"].last_used + 6)


@pytest.mark.parametrize("going", [evict, idle])
@pytest.mark.parametrize("claim", ["lease", "pin"])
async def test_what_is_left_of_a_claimed_model_stays(
    tmp_path: Path, going: Callable[[Rig], Awaitable[None]], claim: str
) -> None:
    """One whose other segment was found damaged, and dropped."""
    async with running(tmp_path, origin(), residency=RULES) as rig:
        lease = await rig.acquire("first")
        (await rig.acquire("second")).release()
        if claim == "pin":
            await rig.engine.pin("first")
            lease.release()
        await rig.engine._catalog.detach(rig.engine._catalog.blobs[sha256(pattern(SIZE, "first"))])
        await going(rig)
        (left,) = rig.segments()
        assert left.read_bytes() == BASE
        assert {f.segment for f in rig.engine.model("first").files} == {"", f"/{left.name}"}
        lease.release()


async def test_what_an_idle_model_shares_with_one_in_use_is_not_evicted_again_and_again(tmp_path: Path) -> None:
    async with running(tmp_path, origin(), residency=RULES) as rig:
        lease = await rig.acquire("base")
        (await rig.acquire("second")).release()
        told: list[Event] = []

        async def note(ready: asyncio.Event) -> None:
            async with aclosing(rig.engine.watch()) as watch:
                ready.set()
                async for event in watch:
                    told.append(event)

        ready = asyncio.Event()
        noting = asyncio.create_task(note(ready))
        await ready.wait()
        for _ in range(3):
            await idle(rig)
        await asyncio.sleep(0)
        noting.cancel()
        assert [e.detail for e in told if e.kind is EventKind.EVICTED] == [
            "1.0 MiB of shared memory freed after it was idle"
        ]
        assert (await rig.engine.status()).counters.evictions == 1
        assert rig.engine.model("base").residency(Tier.SHM).name == "RESIDENT"
        lease.release()


async def test_what_a_load_shares_with_an_idle_model_stays_and_the_rest_of_that_makes_room(tmp_path: Path) -> None:
    async with running(tmp_path, origin(), shm=2 * SIZE) as rig:
        await rig.fetch("first", tier=Tier.NVME)
        (await rig.acquire("second")).release()
        (base,) = [f.segment for f in rig.engine.model("second").files if f.path == "base.bin"]
        lease = await rig.acquire("first")
        assert base in {f.segment for f in lease.model.files}
        assert [f.segment for f in rig.engine.model("second").files if f.path == "model.bin"] == [""]
        lease.release()
        await rig.check_idle(blobs=3, segments=2)


async def test_what_it_costs_to_bring_a_model_is_measured_by_what_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a model whose base is there already would look as if a drive could bring all of it in no time."""
    came: list[tuple[str, Tier, int]] = []
    monkeypatch.setattr(Usage, "brought", lambda _, ref, tier, size, __: came.append((ref.text, tier, size)))
    async with running(tmp_path, origin()) as rig:
        await rig.fetch("first", tier=Tier.NVME)
        lease = await rig.acquire("first")
        other = await rig.acquire("second")
        other.release()
        await rig.engine.evict("second")
        (await rig.acquire("second")).release()
        lease.release()
    assert came == [
        ("first", Tier.NVME, 2 * SIZE),
        ("first", Tier.SHM, 2 * SIZE),
        ("second", Tier.NVME, 2 * SIZE),  # Its origin gives no digest: that the base is here turns out afterwards.
        ("second", Tier.SHM, SIZE),
    ]


async def test_segments_of_an_old_snapshot_go_all_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be published meanwhile, and each time readers on their way are waited for."""
    waits: list[None] = []
    monkeypatch.setattr("weightd.engine.catalog.paths_followed", lambda: waits.append(None))
    first, second = ({f"{i}.bin": Served(pattern(4096, (n, i))) for i in range(8)} for n in range(2))
    served = Origin({"model": first})
    async with running(tmp_path, served) as rig:
        await rig.fetch("model", tier=Tier.SHM)
        served.models["model"] = second
        await rig.fetch("model", tier=Tier.SHM)
        await rig.engine._retirer.idle()
        assert len(rig.segments()) == 8
        assert len(rig.engine.models()) == 2
        assert len(waits) == 1
