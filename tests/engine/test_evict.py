"""Who goes when something else is wanted; and who never does."""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path

import pytest

from tests.engine.rig import MIB, Origin, Rig, Served, pattern, running, sha256
from weightd.core.errors import BudgetExceeded, ModelBusy, ModelLeased, ModelNotFound, ModelPinned, PathInTheWay
from weightd.core.policy import Policy, Rule, Rules
from weightd.engine.api import Event, EventKind, Evicted, Holder, Tier
from weightd.engine.evict import Watermarks
from weightd.engine.held import Model

SIZE = MIB
FIRST, SECOND, THIRD = (f"http://origin/{name}/" for name in ("first", "second", "third"))


def origin(*refs: str, size: int = SIZE, shared: bytes = b"") -> Origin:
    models = {ref: {"model.bin": Served(pattern(size, ref))} for ref in refs}
    if shared:
        for files in models.values():
            files["base.bin"] = Served(shared)
    return Origin(models)


async def resident(rig: Rig) -> set[str]:
    return {m.ref for m in rig.engine.models() if m.residency(Tier.SHM).name == "RESIDENT"}


async def events(rig: Rig, kind: EventKind, done: asyncio.Event) -> list[Event]:
    found: list[Event] = []
    async with aclosing(rig.engine.watch()) as watch:
        done.set()
        async for event in watch:
            if event.kind is kind:
                found.append(event)
                return found
    return found


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """As a worker has it that kept a view after its lease."""
    fd = os.open(path, os.O_RDONLY)
    try:
        with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as view:
            os.close(fd)
            fd = -1
            yield view
    finally:
        if fd >= 0:
            os.close(fd)


async def test_the_one_that_is_used_least_makes_room(tmp_path: Path) -> None:
    async with running(tmp_path, origin(FIRST, SECOND, THIRD), shm=2 * SIZE) as rig:
        for ref in (FIRST, SECOND, FIRST, FIRST):
            (await rig.acquire(ref)).release()
        begun = asyncio.Event()
        told = asyncio.create_task(events(rig, EventKind.EVICTED, begun))
        await begun.wait()
        lease = await rig.acquire(THIRD)
        (event,) = await told
        assert (event.ref, event.detail) == (SECOND, f"1.0 MiB of shared memory freed for {THIRD}")
        assert await resident(rig) == {FIRST, THIRD}
        assert rig.content(rig.engine.model(SECOND)) == {"model.bin": pattern(SIZE, SECOND)}
        lease.release()
        await rig.check_idle(blobs=3, segments=2)


async def test_a_model_is_in_use_until_its_lease_ends(tmp_path: Path) -> None:
    async with running(tmp_path, origin(FIRST, SECOND, THIRD), shm=2 * SIZE) as rig:
        long = await rig.acquire(FIRST)
        (await rig.acquire(SECOND)).release()
        long.release()
        (await rig.acquire(THIRD)).release()
        assert await resident(rig) == {FIRST, THIRD}


async def test_nothing_that_is_leased_goes_and_the_error_says_who(tmp_path: Path) -> None:
    async with running(tmp_path, origin(FIRST, SECOND, THIRD), shm=2 * SIZE) as rig:
        one = await rig.acquire(FIRST, holder=Holder(pid=7, command="python serve.py", pod="prod/llama-0"))
        two = await rig.acquire(SECOND)
        with pytest.raises(BudgetExceeded) as failure:
            await rig.acquire(THIRD)
        text = str(failure.value)
        assert f"1.0 MiB {FIRST} leased by process 7 (python serve.py) in pod prod/llama-0" in text
        assert f"1.0 MiB {SECOND} leased by 1 that do not say who they are" in text
        assert "1.0 MiB missing" in text
        assert [(s.ref, s.waiting) for s in rig.engine.leases()] == [(FIRST, False), (SECOND, False)]
        one.release()
        three = await rig.acquire(THIRD)
        assert await resident(rig) == {SECOND, THIRD}
        two.release()
        three.release()
        await rig.check_idle(blobs=3, segments=2)


async def test_pinned_and_hot_ones_stay(tmp_path: Path) -> None:
    hot = Origin({"hot": {"model.bin": Served(pattern(SIZE, "hot"))}} | origin(FIRST, SECOND).models)
    rules = Rules({"hot": Rule(Policy.HOT)})
    async with running(tmp_path, hot, shm=2 * SIZE, residency={"rules": rules}) as rig:
        (await rig.acquire("hot")).release()
        (await rig.acquire(FIRST)).release()
        assert (await rig.engine.pin(FIRST)).pinned
        with pytest.raises(BudgetExceeded, match=r"hot hot.*first/ pinned|first/ pinned.*hot hot"):
            await rig.acquire(SECOND)
        for ref in ("hot", FIRST):
            with pytest.raises(ModelPinned):
                await rig.engine.evict(ref)
            with pytest.raises(ModelPinned):
                await rig.engine.remove(ref)
        with pytest.raises(ModelPinned):
            await rig.engine.unpin("hot")
        await rig.engine.unpin(FIRST)
        (await rig.acquire(SECOND)).release()
        assert await resident(rig) == {"hot", SECOND}


async def test_pins_outlive_the_daemon(tmp_path: Path) -> None:
    async with running(tmp_path, origin(FIRST)) as rig:
        await rig.fetch(FIRST, tier=Tier.NVME)
        await rig.engine.pin(FIRST)
    async with running(tmp_path, origin(FIRST)) as rig:
        assert rig.engine.model(FIRST).pinned
        with pytest.raises(ModelPinned):
            await rig.engine.remove(FIRST)


async def test_a_command_evicts_and_says_what_it_freed(tmp_path: Path) -> None:
    base = pattern(SIZE, "base")
    async with running(tmp_path, origin(FIRST, SECOND, shared=base)) as rig:
        lease = await rig.acquire(FIRST)
        (await rig.acquire(SECOND)).release()
        with pytest.raises(ModelLeased, match="1 leases hold it"):
            await rig.engine.evict(FIRST)
        assert (await rig.engine.evict(SECOND)).shm == SIZE  # The base is in use.
        assert await resident(rig) == {FIRST}
        lease.release()
        evicted = await rig.engine.evict(FIRST)
        assert (evicted.shm, evicted.draining) == (2 * SIZE, 0)
        assert (await rig.engine.evict(FIRST)).shm == 0
        with pytest.raises(ModelNotFound):
            await rig.engine.evict(THIRD)
        await rig.check_idle(blobs=3, segments=0)


async def test_what_is_mapped_without_a_lease_is_not_chosen_and_drains_when_it_must_go(tmp_path: Path) -> None:
    async with running(tmp_path, origin(FIRST, SECOND, THIRD), shm=2 * SIZE) as rig:
        model = await rig.fetch(FIRST, tier=Tier.SHM)
        path = Path(os.readlink(Path(model.directory) / "model.bin"))
        with mapped(path) as view:
            (await rig.acquire(SECOND)).release()
            for _ in range(3):
                (await rig.acquire(SECOND)).release()
            (await rig.acquire(THIRD)).release()  # FIRST is used less, but would free nothing.
            assert await resident(rig) == {FIRST, THIRD}
            evicted = await rig.engine.evict(FIRST)
            assert (evicted.shm, evicted.draining) == (SIZE, SIZE)
            status = await rig.engine.status()
            assert (status.shm.resident, status.shm.draining) == (SIZE, SIZE)
            lease = await rig.acquire(THIRD)
            with pytest.raises(BudgetExceeded, match=r"1.0 MiB draining"):
                await rig.acquire(FIRST)
            lease.release()
            assert view[:] == pattern(SIZE, FIRST)
        async with asyncio.timeout(10):
            while (await rig.engine.status()).shm.draining:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
        (await rig.acquire(FIRST)).release()
        await rig.check_idle(blobs=3, segments=2)


async def test_memory_that_drains_in_a_moment_is_waited_for(tmp_path: Path) -> None:
    async with running(tmp_path, origin(FIRST, SECOND), shm=SIZE) as rig:
        model = await rig.fetch(FIRST, tier=Tier.SHM)
        with mapped(Path(os.readlink(Path(model.directory) / "model.bin"))):
            await rig.engine.evict(FIRST)
            waiting = asyncio.create_task(rig.acquire(SECOND))
            while not rig.engine._catalog.drains._looks:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0)
        (await waiting).release()


async def test_nvme_makes_room_too(tmp_path: Path) -> None:
    async with running(tmp_path, origin(FIRST, SECOND, THIRD), nvme=2 * SIZE) as rig:
        lease = await rig.acquire(FIRST)
        (await rig.acquire(SECOND)).release()
        (await rig.acquire(THIRD)).release()
        assert {m.ref for m in rig.engine.models()} == {FIRST, THIRD}
        await rig.engine.pin(THIRD)
        with pytest.raises(BudgetExceeded, match=r"nvme budget.*held by.*leased.*pinned"):
            await rig.fetch(SECOND)
        lease.release()
        await rig.fetch(SECOND, tier=Tier.NVME)
        assert {m.ref for m in rig.engine.models()} == {SECOND, THIRD}
        await rig.check_idle(blobs=2, segments=1)
        assert sorted(p.name for p in (tmp_path / "models").iterdir()) == sorted(
            Path(m.directory).parent.name for m in rig.engine.models()
        )


async def test_blobs_that_no_model_has_go_first(tmp_path: Path) -> None:
    """A fetch that failed after one of its files had come leaves that one."""
    broken = origin(FIRST, SECOND)
    broken.models[THIRD] = {"a.bin": Served(pattern(SIZE, "a")), "b.bin": Served(pattern(SIZE, "b"), size=SIZE + 1)}
    async with running(tmp_path, broken, nvme=3 * SIZE + (1 << 20), transfers=1, receivers=1) as rig:
        (await rig.acquire(FIRST)).release()
        with pytest.raises(Exception, match=r"ended early|bytes"):
            await rig.fetch(THIRD, tier=Tier.NVME)
        assert sha256(pattern(SIZE, "a")) in rig.engine._catalog.blobs
        rig.engine._catalog.nvme.limit = 2 * SIZE
        (await rig.acquire(SECOND)).release()
        assert {m.ref for m in rig.engine.models()} == {FIRST, SECOND}
        assert sha256(pattern(SIZE, "a")) not in rig.engine._catalog.blobs
        await rig.check_idle(blobs=2, segments=2)


async def test_removing_forgets_all_of_it(tmp_path: Path) -> None:
    async with running(tmp_path, origin(FIRST, SECOND)) as rig:
        lease = await rig.acquire(FIRST)
        with pytest.raises(ModelLeased):
            await rig.engine.remove(FIRST)
        lease.release()
        removed = await rig.engine.remove(FIRST)
        assert (removed.shm, removed.nvme) == (SIZE, SIZE)
        with pytest.raises(ModelNotFound):
            rig.engine.model(FIRST)
        assert list((tmp_path / "models").iterdir()) == []
        await rig.check_idle(blobs=0, segments=0)
    async with running(tmp_path, origin()) as rig:
        assert rig.engine.models() == []


async def test_what_is_being_filled_stays(tmp_path: Path) -> None:
    async with running(tmp_path, origin(FIRST)) as rig:
        await rig.fetch(FIRST, tier=Tier.NVME)
        flight = rig.engine._fetcher
        with rig.engine._catalog.holding({sha256(pattern(SIZE, FIRST))}):
            for refused in (rig.engine.evict, rig.engine.remove):
                with pytest.raises(ModelBusy):
                    await refused(FIRST)
        assert flight is rig.engine._fetcher
        await rig.engine.remove(FIRST)


async def test_two_that_do_not_fit_together_come_one_after_the_other(tmp_path: Path) -> None:
    """However they hurry: neither takes what the other needs, nor evicts what the other waits for."""
    async with running(tmp_path, origin(FIRST, SECOND, THIRD), shm=SIZE, nvme=4 * SIZE) as rig:

        async def use(ref: str, count: int) -> int:
            done = 0
            while done < count:
                try:
                    lease = await rig.acquire(ref)
                except BudgetExceeded:
                    await asyncio.sleep(0.001)
                    continue
                assert rig.content(lease.model) == {"model.bin": pattern(SIZE, ref)}
                lease.release()
                done += 1
            return done

        async with asyncio.timeout(60):
            assert await asyncio.gather(*(use(ref, 10) for ref in (FIRST, SECOND, THIRD))) == [10, 10, 10]
        await rig.check_idle(blobs=3, segments=1)


async def test_idle_and_cold_models_leave(tmp_path: Path) -> None:
    models = Origin({name: {"model.bin": Served(pattern(SIZE, name))} for name in ("cold", "warm")})
    rules = Rules({"cold": Rule(Policy.COLD, 5.0), "warm": Rule(Policy.WARM, None)})
    async with running(tmp_path, models, residency={"rules": rules}) as rig:
        async with aclosing(rig.engine.fetch("cold")) as steps:
            fetched = [step async for step in steps][-1]
        assert fetched.residency(Tier.SHM).name == "ABSENT"  # type: ignore[union-attr]
        lease = await rig.acquire("cold")
        (await rig.acquire("warm")).release()
        evictor, later = rig.engine._evictor, rig.engine._catalog.models["cold"].last_used + 100
        await evictor._drop_idle(later)
        assert await resident(rig) == {"cold", "warm"}
        lease.release()
        await evictor._drop_idle(rig.engine._catalog.models["cold"].last_used + 4)
        assert await resident(rig) == {"cold", "warm"}
        await evictor._drop_idle(rig.engine._catalog.models["cold"].last_used + 6)
        assert await resident(rig) == {"warm"}
        await rig.check_idle(blobs=2, segments=1)


async def test_watermarks(tmp_path: Path) -> None:
    marks = {Tier.SHM: Watermarks(0.7, 0.5), Tier.NVME: Watermarks()}
    async with running(tmp_path, origin(FIRST, SECOND, THIRD), shm=4 * SIZE, residency={"marks": marks}) as rig:
        for ref in (FIRST, SECOND, THIRD):
            await rig.fetch(ref, tier=Tier.SHM)
        await rig.engine._evictor._drop_to_mark(Tier.SHM, rig.engine._catalog.shm)
        assert len(await resident(rig)) == 2
        await rig.engine._evictor._drop_to_mark(Tier.SHM, rig.engine._catalog.shm)
        assert len(await resident(rig)) == 2
        await rig.check_idle(blobs=3, segments=2)


async def drop_idle(rig: Rig) -> None:
    """As it is six seconds after the last use of any model."""
    later = max(m.last_used for m in rig.engine._catalog.models.values()) + 6
    await rig.engine._evictor._drop_idle(later)


def in_the_way(rig: Rig, ref: str) -> Path:
    """A directory where a link of its model has to be: its links cannot be switched."""
    link = Path(rig.engine.model(ref).directory, "model.bin")
    link.unlink()
    link.mkdir()
    return link


async def test_one_that_cannot_be_led_away_keeps_nobody_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(tmp_path, origin(FIRST, SECOND, THIRD), shm=2 * SIZE) as rig:
        for ref in (FIRST, SECOND, SECOND):
            (await rig.acquire(ref)).release()
        link = in_the_way(rig, FIRST)
        lease = await rig.acquire(THIRD)
        assert await resident(rig) == {FIRST, THIRD}
        (told,) = [r.getMessage() for r in caplog.records]
        assert told.startswith(f"{FIRST} stays in shared memory: {link} cannot be made: Is a directory")
        with pytest.raises(PathInTheWay, match=str(link)):
            await rig.acquire(SECOND)
        assert len(caplog.records) == 1
        link.rmdir()
        (await rig.acquire(SECOND)).release()
        assert await resident(rig) == {SECOND, THIRD}
        lease.release()
        await rig.check_idle(blobs=3, segments=2)


async def test_one_that_cannot_be_led_away_keeps_nobody_else_that_is_idle(tmp_path: Path) -> None:
    rules = Rules({}, Rule(Policy.WARM, 5.0))
    async with running(tmp_path, origin(FIRST, SECOND, THIRD), residency={"rules": rules}) as rig:
        for ref in (SECOND, FIRST, THIRD):
            (await rig.acquire(ref)).release()
        link = in_the_way(rig, FIRST)
        await drop_idle(rig)
        assert await resident(rig) == {FIRST}
        link.rmdir()
        await drop_idle(rig)
        assert await resident(rig) == set()
        await rig.check_idle(blobs=3, segments=0)


async def test_one_that_cannot_be_removed_keeps_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path, origin(FIRST, SECOND, THIRD), nvme=2 * SIZE) as rig:
        for ref in (FIRST, SECOND):
            await rig.fetch(ref, tier=Tier.NVME)
        remover = rig.engine._evictor._remover
        remove = remover.remove

        async def failing(model: Model, may_go: Callable[[], bool]) -> Evicted | None:
            if model.ref.text == FIRST:
                raise OSError(errno.EIO, "the disk")
            return await remove(model, may_go)

        monkeypatch.setattr(remover, "remove", failing)
        await rig.fetch(THIRD, tier=Tier.NVME)
        assert {m.ref for m in rig.engine.models()} == {FIRST, THIRD}
        await rig.engine.pin(THIRD)
        with pytest.raises(OSError, match="the disk"):
            await rig.fetch(SECOND, tier=Tier.NVME)
        monkeypatch.undo()
        await rig.fetch(SECOND, tier=Tier.NVME)
        assert {m.ref for m in rig.engine.models()} == {SECOND, THIRD}
        await rig.check_idle(blobs=2, segments=0)


async def test_one_that_cannot_be_led_away_keeps_only_those_of_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("weightd.core.eviction.MOMENT_S", 0.0)
    other = "http://origin/other/"
    served = origin(FIRST, SECOND, THIRD)
    served.models[other] = served.models[FIRST]
    async with running(tmp_path, served, shm=2 * SIZE) as rig:
        for ref in (FIRST, other, *[SECOND] * 9):
            (await rig.acquire(ref)).release()
        link = in_the_way(rig, FIRST)
        await rig.fetch(THIRD, tier=Tier.SHM)
        assert await resident(rig) == {FIRST, other, THIRD}
        await rig.engine.pin(THIRD)
        for _ in range(2):
            with pytest.raises(PathInTheWay, match=str(link)):
                await rig.acquire(SECOND)
        assert sorted(r.getMessage().split()[0] for r in caplog.records) == [FIRST, other]
        link.rmdir()
        (await rig.acquire(SECOND)).release()
        assert await resident(rig) == {SECOND, THIRD}
        await rig.check_idle(blobs=3, segments=2)


async def test_idle_ones_of_the_same_bytes_go_beside_one_that_cannot(tmp_path: Path) -> None:
    other = "http://origin/other/"
    served = origin(FIRST, SECOND)
    served.models[other] = served.models[SECOND]
    rules = Rules({}, Rule(Policy.WARM, 5.0))
    async with running(tmp_path, served, residency={"rules": rules}) as rig:
        for ref in (FIRST, SECOND, other):
            (await rig.acquire(ref)).release()
        link = in_the_way(rig, FIRST)
        await drop_idle(rig)
        assert await resident(rig) == {FIRST}
        link.rmdir()


async def test_one_tier_that_cannot_be_swept_keeps_not_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("weightd.engine.evict.SWEEP_S", 0.01)
    monkeypatch.setattr("weightd.engine.evict.PATIENCE_S", 0.01)
    monkeypatch.setattr("weightd.core.eviction.MOMENT_S", 0.0)
    marks = {Tier.SHM: Watermarks(0.4, 0.4), Tier.NVME: Watermarks(0.7, 0.5)}
    served, residency = origin(FIRST, SECOND, THIRD), {"marks": marks}
    async with (
        running(tmp_path, served, shm=2 * SIZE, nvme=4 * SIZE, residency=residency) as rig,
        asyncio.timeout(10),
    ):
        for ref in (SECOND, THIRD):
            await rig.fetch(ref, tier=Tier.NVME)
        for _ in range(9):
            (await rig.acquire(FIRST)).release()
        link = in_the_way(rig, FIRST)
        tending = asyncio.create_task(rig.engine.tend())
        try:
            while len(rig.engine.models()) > 2:
                assert not tending.done(), tending.exception()
                await asyncio.sleep(0.01)
            assert len([r for r in caplog.records if "nothing could be evicted" in r.getMessage()]) == 1
        finally:
            tending.cancel()
            await asyncio.wait([tending])
            link.rmdir()
        assert FIRST in {m.ref for m in rig.engine.models()}
