"""Segments of an earlier process are taken over, when they are what was recorded."""

from __future__ import annotations

import asyncio
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.rig import MIB, Origin, Rig, Served, pattern, running
from tests.support.immutable import immutable
from weightd.core.errors import BudgetExceeded, ModelBusy, ModelNotFound
from weightd.engine.adopt import Adoption
from weightd.engine.api import EventKind, Tier

KEEP = {"keep_segments": True}
OWNER = "adopts"
SIZE = MIB
FIRST, SECOND = "http://origin/first/", "http://origin/second/"


def origin() -> Origin:
    """Of two models, the second of several files, one of them empty."""
    second = {f"{i}.bin": Served(pattern(100_000 * i, i)) for i in range(4)}
    return Origin({FIRST: {"model.bin": Served(pattern(SIZE, FIRST))}, SECOND: second})


def again(root: Path, **options: object) -> object:
    """The next process, whose origin is down."""
    return running(root, Origin(), owner=OWNER, residency=KEEP | options)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def nothing_stays() -> object:
    yield
    for path in Path("/dev/shm").glob(f"weightd-{OWNER}-*"):
        path.unlink()


async def prepare(root: Path) -> dict[str, Path]:
    """Both are resident, and their process has ended. Where each file's segment is, by model and path."""
    async with running(root, origin(), owner=OWNER, residency=KEEP) as rig:
        for ref in (FIRST, SECOND):
            await rig.fetch(ref, tier=Tier.SHM)
        return {
            f"{m.ref}{f.path}": (Path(m.directory) / f.path).resolve() for m in rig.engine.models() for f in m.files
        }


def resident(rig: Rig) -> set[str]:
    return {m.ref for m in rig.engine.models() if m.residency(Tier.SHM).name == "RESIDENT"}


@pytest.mark.parametrize("how", [Adoption.FULL, Adoption.LAZY])
async def test_what_is_whole_is_served_at_once(tmp_path: Path, how: Adoption) -> None:
    segments = await prepare(tmp_path)
    inodes = {p: p.stat().st_ino for p in segments.values()}
    async with again(tmp_path, adoption=how) as rig:  # type: ignore[attr-defined]
        assert resident(rig) == {FIRST, SECOND}
        for ref, files in origin().models.items():
            lease = await rig.acquire(ref)
            assert rig.content(lease.model) == {p: f.data for p, f in files.items()}
            lease.release()
        assert {p: p.stat().st_ino for p in rig.segments()} == {
            p: i for p, i in inodes.items() if p.is_relative_to("/dev/shm")
        }
        assert rig.origin.resolved == 0
        tending = asyncio.create_task(rig.engine.tend())
        async with asyncio.timeout(10):
            while rig.engine._adopter._unread:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
        tending.cancel()
        await rig.check_idle(blobs=5, segments=4)
        assert resident(rig) == {FIRST, SECOND}


async def test_off_drops_all_and_loads(tmp_path: Path) -> None:
    segments = await prepare(tmp_path)
    async with again(tmp_path, adoption=Adoption.OFF) as rig:  # type: ignore[attr-defined]
        assert resident(rig) == set()
        assert rig.segments() == []
        assert all((Path(m.directory) / f.path).exists() for m in rig.engine.models() for f in m.files)
        lease = await rig.acquire(FIRST)
        assert rig.segments() != [segments[f"{FIRST}model.bin"]]
        lease.release()


def flip(path: Path, offset: int = SIZE // 2) -> None:
    path.chmod(0o640)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))
    path.chmod(0o440)


def other_object(path: Path) -> None:
    """The same bytes, and not what was sealed."""
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    path.chmod(0o440)


def cut(path: Path) -> None:
    os.truncate(path, SIZE - 1)


def hole(path: Path) -> None:
    os.truncate(path, 0)
    os.truncate(path, SIZE)


def writable(path: Path) -> None:
    path.chmod(0o660)


def link(path: Path) -> None:
    path.with_name(f"weightd-{OWNER}-twin").hardlink_to(path)


def given_away(path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give files away")
    os.chown(path, 65534, -1)


@pytest.mark.parametrize(
    "damage", [Path.unlink, other_object, cut, hole, writable, link, given_away], ids=lambda d: d.__name__
)
async def test_what_is_not_what_was_sealed_is_dropped(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    segments = await prepare(tmp_path)
    path = segments[f"{FIRST}model.bin"]
    damage(path)
    async with again(tmp_path) as rig:  # type: ignore[attr-defined]
        assert resident(rig) == {SECOND}
        assert path not in rig.segments() or damage is given_away  # somebody else's file is left alone
        lease = await rig.acquire(FIRST)
        assert rig.content(lease.model) == {"model.bin": pattern(SIZE, FIRST)}
        lease.release()


async def test_damage_is_found_before_anything_is_served(tmp_path: Path) -> None:
    flip((await prepare(tmp_path))[f"{FIRST}model.bin"])
    async with again(tmp_path, adoption=Adoption.FULL) as rig:  # type: ignore[attr-defined]
        assert resident(rig) == {SECOND}
        lease = await rig.acquire(FIRST)
        assert rig.content(lease.model) == {"model.bin": pattern(SIZE, FIRST)}
        lease.release()


async def test_damage_is_found_in_the_background(tmp_path: Path) -> None:
    flip((await prepare(tmp_path))[f"{FIRST}model.bin"])
    async with again(tmp_path, adoption=Adoption.LAZY) as rig:  # type: ignore[attr-defined]
        assert resident(rig) == {FIRST, SECOND}
        lease = await rig.acquire(FIRST)
        watch = rig.engine.watch()
        found = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0)
        tending = asyncio.create_task(rig.engine.tend())
        async with asyncio.timeout(10):
            event = await found
        tending.cancel()
        await watch.aclose()
        assert (event.kind, event.ref) == (EventKind.DAMAGED, FIRST)
        assert resident(rig) == {SECOND}
        lease.release()
        lease = await rig.acquire(FIRST)
        assert rig.content(lease.model) == {"model.bin": pattern(SIZE, FIRST)}
        lease.release()


async def test_damage_that_cannot_be_unlinked_from_does_not_end_the_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not served, and the others are compared as well."""
    monkeypatch.setattr("weightd.engine.adopt.RETRY_S", 0.01)
    segments = await prepare(tmp_path)
    for at in (f"{FIRST}model.bin", f"{SECOND}3.bin"):
        flip(segments[at], 1000)
    async with again(tmp_path, adoption=Adoption.LAZY) as rig:  # type: ignore[attr-defined]
        with immutable(Path(rig.engine.model(FIRST).directory)):
            tending = asyncio.create_task(rig.engine.tend())
            async with asyncio.timeout(10):
                while rig.engine._adopter._unread:
                    assert not tending.done(), tending.exception()
                    await asyncio.sleep(0.01)
            tending.cancel()
            await asyncio.wait([tending])
            assert resident(rig) == set()
        for ref in (FIRST, SECOND):
            lease = await rig.acquire(ref)
            assert rig.content(lease.model) == {p: f.data for p, f in origin().models[ref].items()}
            lease.release()


async def test_nothing_adopted_is_evicted_until_its_workers_had_time(tmp_path: Path) -> None:
    await prepare(tmp_path)
    third = Origin({"http://origin/third/": {"model.bin": Served(pattern(SIZE, "third"))}})
    async with running(tmp_path, third, owner=OWNER, shm=2 * SIZE, residency=KEEP | {"grace": 3600.0}) as rig:
        with pytest.raises(BudgetExceeded, match="awaiting its workers"):
            await rig.acquire("http://origin/third/")
        for model in rig.engine._catalog.snapshots:
            model.awaited = False
        (await rig.acquire("http://origin/third/")).release()


async def test_no_command_takes_what_workers_map_before_they_had_time(tmp_path: Path) -> None:
    segments = await prepare(tmp_path)
    with segments[f"{FIRST}model.bin"].open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    async with again(tmp_path, grace=3600.0) as rig:  # type: ignore[attr-defined]
        for command in (rig.engine.evict, rig.engine.remove):
            with pytest.raises(ModelBusy, match="adopted after a restart"):
                await command(FIRST)
        assert resident(rig) == {FIRST, SECOND}
        await rig.engine.evict(SECOND)  # Nobody maps it.
        mapped.close()
        await rig.engine.evict(FIRST)
        assert resident(rig) == set()


async def test_grace_ends(tmp_path: Path) -> None:
    await prepare(tmp_path)
    async with again(tmp_path, grace=0.05) as rig:  # type: ignore[attr-defined]
        assert all(m.awaited for m in rig.engine._catalog.snapshots)
        tending = asyncio.create_task(rig.engine.tend())
        async with asyncio.timeout(10):
            while any(m.awaited for m in rig.engine._catalog.snapshots):  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
        tending.cancel()


async def test_a_lower_budget_adopts_what_fits(tmp_path: Path) -> None:
    """The last used first."""
    await prepare(tmp_path)
    async with running(tmp_path, Origin(), owner=OWNER, residency=KEEP) as rig:
        (await rig.acquire(FIRST)).release()
        await rig.engine._catalog.write(
            lambda: rig.engine._catalog.state._open.execute("UPDATE models SET last_used = 1 WHERE ref = ?", (SECOND,))
        )
    async with running(tmp_path, Origin(), owner=OWNER, shm=SIZE, residency=KEEP) as rig:
        assert resident(rig) == {FIRST}
        await rig.check_idle(blobs=5, segments=1)


async def test_an_old_snapshot_that_was_leased_is_leased_again(tmp_path: Path) -> None:
    first = origin()
    async with running(tmp_path, first, owner=OWNER, residency=KEEP) as rig:
        revision = (await rig.fetch(FIRST, tier=Tier.SHM)).revision
        lease = await rig.acquire(FIRST)
        first.models[FIRST] = {"model.bin": Served(pattern(SIZE, "new"))}
        await rig.fetch(FIRST, tier=Tier.SHM)
        assert lease.model.revision == revision
    async with again(tmp_path) as rig:  # type: ignore[attr-defined]
        old = await rig.acquire(FIRST, revision=revision)
        assert rig.content(old.model) == {"model.bin": pattern(SIZE, FIRST)}
        new = await rig.acquire(FIRST)
        assert rig.content(new.model) == {"model.bin": pattern(SIZE, "new")}
        with pytest.raises(ModelNotFound):
            await rig.acquire(FIRST, revision="0" * 16)
        old.release()
        new.release()
    async with again(tmp_path, adoption=Adoption.OFF) as rig:  # type: ignore[attr-defined]
        old = await rig.acquire(FIRST, revision=revision)  # Loaded, as it is not in shared memory any more.
        assert rig.content(old.model) == {"model.bin": pattern(SIZE, FIRST)}
        old.release()


async def test_another_boot_adopts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await prepare(tmp_path)
    monkeypatch.setattr("weightd.engine.adopt.boot_id", lambda: "another")
    async with again(tmp_path) as rig:  # type: ignore[attr-defined]
        assert (resident(rig), rig.segments()) == (set(), [])


async def test_leftovers_go_before_anything_is_allocated(tmp_path: Path) -> None:
    await prepare(tmp_path)
    stray = f"/dev/shm/weightd-{OWNER}-stray-00"
    os.close(os.open(stray, os.O_CREAT | os.O_EXCL, 0o600))
    async with again(tmp_path) as rig:  # type: ignore[attr-defined]
        assert stray not in map(str, rig.segments())
