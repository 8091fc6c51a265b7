"""What is at rest is checked again: damage is found in either copy, mended, reported; nothing is lost in silence."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import time
from contextlib import aclosing
from pathlib import Path

import pytest

from tests.engine.rig import PART, REF, Origin, Rig, Served, one, pattern, running, sha256
from tests.support.serving import until
from weightd.core.errors import AccessDenied, ModelNotFound, SourceNotFound
from weightd.engine.api import CopyState, Event, EventKind, FileCheck, Tier, VerifyProgress
from weightd.engine.patrol import PatrolOptions

DATA = pattern(40 * PART + 3)
SOUND, REPAIRED, LOST, ABSENT = CopyState.SOUND, CopyState.REPAIRED, CopyState.LOST, CopyState.ABSENT


async def verify(rig: Rig, ref: str = "", *, quick: bool = False) -> list[FileCheck]:
    found: list[FileCheck] = []
    async with aclosing(rig.engine.verify(ref, quick=quick)) as events:
        async for event in events:
            if isinstance(event, FileCheck):
                found.append(event)
            else:
                assert 0 <= event.done <= event.total
    return found


async def states(rig: Rig, *, quick: bool = False) -> tuple[CopyState, CopyState]:
    (check,) = await verify(rig, quick=quick)
    return check.nvme, check.shm


def flip(path: Path, at: int = 5 * PART) -> None:
    """One bit, in place, as a bad disk or bad memory does."""
    mode = path.stat().st_mode
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    path.chmod(mode & 0o777)


def blob(rig: Rig) -> Path:
    return rig.blobs.path(sha256(DATA))


def segment(rig: Rig) -> Path:
    (found,) = rig.segments()
    return found


def gone(origin: Origin) -> None:
    def missing(path: str, offset: int, length: int) -> None:
        raise SourceNotFound("gone")

    origin.on_start = missing


async def watch(rig: Rig, seen: list[Event]) -> None:
    async with aclosing(rig.engine.watch()) as events:
        async for event in events:
            seen.append(event)


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("tier", list(Tier))
async def test_sound(tmp_path: Path, tier: Tier, quick: bool) -> None:
    async with running(tmp_path, one(DATA)) as rig:
        await rig.fetch(tier=tier)
        rig.origin.starts.clear()
        assert await states(rig, quick=quick) == (SOUND, SOUND if tier is Tier.SHM else ABSENT)
        assert not rig.origin.starts
        await rig.check_idle(blobs=1, segments=int(tier is Tier.SHM))


async def test_every_file_of_every_model(tmp_path: Path) -> None:
    other = "http://origin/other/"
    files = {"a": Served(DATA), "b": Served(b""), "c": Served(DATA)}
    async with running(tmp_path, Origin({REF: files, other: {"d": Served(b"x", sha256(b"x"))}})) as rig:
        await rig.fetch(tier=Tier.SHM)
        await rig.fetch(other, tier=Tier.NVME)
        checks = await verify(rig)
        assert [(c.ref, c.path) for c in checks] == [(REF, "a"), (REF, "b"), (REF, "c"), (other, "d")]
        assert {c.nvme for c in checks} == {SOUND}
        assert [c.verification.name for c in checks] == ["SIZE", "SIZE", "SIZE", "SHA256"]
        assert [c.ref for c in await verify(rig, other)] == [other]
        with pytest.raises(ModelNotFound):
            await verify(rig, "http://origin/none/")


async def test_a_flipped_bit_on_nvme_is_mended_from_shared_memory(tmp_path: Path) -> None:
    seen: list[Event] = []
    async with running(tmp_path, one(DATA)) as rig:
        watcher = asyncio.create_task(watch(rig, seen))
        await rig.fetch(tier=Tier.SHM)
        gone(rig.origin)
        flip(blob(rig))
        assert await states(rig, quick=True) == (SOUND, SOUND)
        assert await states(rig) == (REPAIRED, SOUND)
        assert blob(rig).read_bytes() == DATA
        assert blob(rig).stat().st_mode & 0o777 == 0o440
        assert await states(rig) == (SOUND, SOUND)
        await rig.check_idle(blobs=1, segments=1)
    await watcher
    assert [e.kind for e in seen if e.kind in (EventKind.DAMAGED, EventKind.REPAIRED)] == [
        EventKind.DAMAGED,
        EventKind.REPAIRED,
    ]


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
async def test_nvme_alone_is_mended_from_the_origin(tmp_path: Path, damage: str) -> None:
    async with running(tmp_path, one(DATA)) as rig:
        await rig.fetch(tier=Tier.NVME)
        rig.origin.starts.clear()
        if damage == "flip":
            flip(blob(rig))
        elif damage == "truncate":
            blob(rig).chmod(0o600)
            os.truncate(blob(rig), 39 * PART)
        else:
            blob(rig).unlink()
        assert await states(rig, quick=damage != "flip") == (REPAIRED, ABSENT)
        assert blob(rig).read_bytes() == DATA
        asked = {offset // PART for _, offset, _ in rig.origin.starts}
        assert asked == {"flip": {5}, "truncate": {39, 40}, "delete": set(range(41))}[damage]
        assert rig.content((await rig.acquire()).model) == {"model.bin": DATA}
        await rig.check_idle(blobs=1, segments=1)


class BadSector:
    """One part of every file below `root` cannot be read, until it is written anew, as of a disk that then maps another
    sector in its place."""

    def __init__(self, root: Path, at: int, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hits = 0
        preadv, pwrite, bad = os.preadv, os.pwrite, [True]

        def inside(fd: int, offset: int, length: int) -> bool:
            return (
                bad[0]
                and offset < at + PART
                and at < offset + length
                and str(root) in os.readlink(f"/proc/self/fd/{fd}")
            )

        def read(fd: int, views: list[memoryview], offset: int) -> int:
            if inside(fd, offset, sum(map(len, views))):
                self.hits += 1
                del views  # the kernel keeps none of them either, while the error is on its way
                raise OSError(code, os.strerror(code))
            return preadv(fd, views, offset)

        def write(fd: int, data: memoryview, offset: int) -> int:
            if inside(fd, offset, len(data)):
                bad[0] = False
            return pwrite(fd, data, offset)

        monkeypatch.setattr(os, "preadv", read)
        monkeypatch.setattr(os, "pwrite", write)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENODATA, errno.EILSEQ, errno.EBADMSG, errno.EUCLEAN])
async def test_a_sector_that_cannot_be_read_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    async with running(tmp_path, one(DATA)) as rig:
        await rig.fetch(tier=Tier.NVME)
        rig.origin.starts.clear()
        sector = BadSector(tmp_path, 5 * PART, code, monkeypatch)
        assert await states(rig) == (REPAIRED, ABSENT)
        assert sector.hits == 2  # by the verification, and when what is left was to be proven
        assert [offset // PART for _, offset, _ in rig.origin.starts] == [5]
        assert await states(rig) == (SOUND, ABSENT)
        assert blob(rig).read_bytes() == DATA


async def test_what_may_not_be_read_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path, one(DATA)) as rig:
        await rig.fetch(tier=Tier.NVME)
        with monkeypatch.context() as m:
            BadSector(tmp_path, 5 * PART, errno.EACCES, m)
            with pytest.raises(AccessDenied, match="may not be read"):
                await states(rig)
        assert await states(rig) == (SOUND, ABSENT)


async def test_what_was_lost_is_still_called_so_until_it_is_repaired(tmp_path: Path) -> None:
    seen: list[Event] = []
    async with running(tmp_path, one(DATA)) as rig:
        watcher = asyncio.create_task(watch(rig, seen))
        await rig.fetch(tier=Tier.NVME)
        flip(blob(rig))
        gone(rig.origin)
        for _ in range(3):
            (check,) = await verify(rig)
            assert check.nvme is LOST
            assert "cannot be repaired: gone; what is left of it is in " in check.detail
            assert len(list((tmp_path / "quarantine").iterdir())) == 1
        rig.origin.on_start = lambda path, offset, length: None
        rig.origin.starts.clear()
        assert await states(rig) == (REPAIRED, ABSENT)
        assert {offset // PART for _, offset, _ in rig.origin.starts} == {5}
        assert await states(rig) == (SOUND, ABSENT)
    await watcher
    assert [e.kind.name for e in seen if e.kind in (EventKind.DAMAGED, EventKind.REPAIRED)] == ["DAMAGED", "REPAIRED"]


async def test_a_damaged_segment_is_replaced_and_its_maps_stay(tmp_path: Path) -> None:
    async with running(tmp_path, one(DATA)) as rig:
        lease = await rig.acquire()
        old = segment(rig)
        with old.open("rb") as mapped:
            gone(rig.origin)
            flip(old)
            assert await states(rig) == (SOUND, REPAIRED)
            assert mapped.read() != DATA  # what a worker has is not altered under it
        assert segment(rig) != old
        assert segment(rig).read_bytes() == DATA
        lease.release()
        assert rig.content((await rig.acquire()).model) == {"model.bin": DATA}
        await rig.check_idle(blobs=1, segments=1)


@pytest.mark.parametrize("how", ["removed", "replaced"])
async def test_a_segment_that_somebody_removed(tmp_path: Path, how: str) -> None:
    async with running(tmp_path, one(DATA)) as rig:
        await rig.fetch(tier=Tier.SHM)
        path = segment(rig)
        path.unlink()
        if how == "replaced":
            path.write_bytes(DATA)
        try:
            assert await states(rig, quick=True) == (SOUND, REPAIRED)
            assert rig.content((await rig.acquire()).model) == {"model.bin": DATA}
        finally:
            path.unlink(missing_ok=True)


async def test_both_copies_are_mended_from_the_origin(tmp_path: Path) -> None:
    async with running(tmp_path, one(DATA)) as rig:
        await rig.fetch(tier=Tier.SHM)
        rig.origin.starts.clear()
        flip(blob(rig))
        flip(segment(rig), 7 * PART)
        assert await states(rig) == (REPAIRED, REPAIRED)
        assert {offset // PART for _, offset, _ in rig.origin.starts} == {5}
        assert (blob(rig).read_bytes(), segment(rig).read_bytes()) == (DATA, DATA)
        await rig.check_idle(blobs=1, segments=1)


@pytest.mark.parametrize("why", ["gone", "other bytes"])
async def test_what_cannot_be_mended_is_put_aside_and_not_served(tmp_path: Path, why: str) -> None:
    async with running(tmp_path, one(DATA)) as rig:
        await rig.fetch(tier=Tier.NVME)
        flip(blob(rig))
        if why == "gone":
            gone(rig.origin)
        else:
            rig.origin.models[REF]["model.bin"].data = pattern(len(DATA), "other")
        (check,) = await verify(rig)
        assert check.nvme is LOST
        assert "cannot be repaired" in check.detail
        (place,) = (tmp_path / "quarantine").iterdir()
        assert str(place) in check.detail
        report = json.loads((place / "report.json").read_text())
        assert (report["digest"], report["path"], report["ref"]) == (sha256(DATA), "model.bin", REF)
        assert (place / "data").stat().st_size >= len(DATA)
        assert not blob(rig).exists()
        assert [k.name for k in rig.blobs.kept()] == [place.name]
        rig.origin.on_start = lambda path, offset, length: None
        rig.origin.models[REF]["model.bin"].data = DATA
        rig.origin.starts.clear()
        assert rig.content((await rig.acquire()).model) == {"model.bin": DATA}
        if why == "gone":
            assert {offset // PART for _, offset, _ in rig.origin.starts} == {5}
        assert list((tmp_path / "quarantine").iterdir()) == []


async def test_a_verification_that_nobody_waits_for_ends(tmp_path: Path) -> None:
    async with running(tmp_path, one(pattern(400 * PART))) as rig:
        await rig.fetch(tier=Tier.SHM)
        for _ in range(3):
            events = rig.engine.verify()
            assert isinstance(await anext(events), VerifyProgress)
            async with asyncio.timeout(2):
                await events.aclose()
        assert [c.nvme for c in await verify(rig)] == [SOUND]


async def test_one_that_is_mended_from_an_origin_that_hangs_keeps_no_other_from_being_verified(tmp_path: Path) -> None:
    other = "http://origin/other/"
    origin = one(DATA)
    origin.models[other] = {"other.bin": Served(b"other")}
    async with running(tmp_path, origin, patrol=PatrolOptions(0.05)) as rig:
        await rig.fetch(tier=Tier.NVME)
        await rig.fetch(other, tier=Tier.NVME)
        flip(blob(rig))
        origin.hold()
        mending = asyncio.create_task(verify(rig, REF))
        await asyncio.to_thread(origin.reached.wait, 10)
        assert [c.nvme for c in await verify(rig, other)] == [SOUND]
        patrol = asyncio.create_task(rig.engine.patrol())
        since, record = time.time(), rig.engine._catalog.blobs[sha256(b"other")]
        await until(lambda: record.record.last_verified > since)
        origin.release()
        assert [c.nvme for c in await mending] == [REPAIRED]
        patrol.cancel()
        await asyncio.wait([patrol])


async def test_one_whose_answers_are_not_read_keeps_no_other_from_being_verified(tmp_path: Path) -> None:
    files = {name: Served(pattern(PART, name)) for name in ("a", "b")}
    async with running(tmp_path, Origin({REF: files})) as rig:
        await rig.fetch(tier=Tier.SHM)
        async with aclosing(rig.engine.verify()) as stopped:
            await anext(stopped)
            assert [c.nvme for c in await verify(rig)] == [SOUND, SOUND]
            assert [c.nvme async for c in stopped if isinstance(c, FileCheck)] == [SOUND, SOUND]


async def test_two_at_once_take_turns(tmp_path: Path) -> None:
    async with running(tmp_path, one(DATA)) as rig:
        await rig.fetch(tier=Tier.NVME)
        flip(blob(rig))
        rig.origin.starts.clear()
        found = await asyncio.gather(*(states(rig) for _ in range(3)))
        assert sorted(s[0].name for s in found) == ["REPAIRED", "SOUND", "SOUND"]
        assert rig.origin.starts.total() == 1
