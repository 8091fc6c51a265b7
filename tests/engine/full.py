"""Run by test_full.py in a mount namespace of its own: `python -m tests.engine.full CASE DIRECTORY`.

Prints "ok" when all held.
"""

# ruff: noqa: ASYNC221, ASYNC240, PT017 - a process of its own, without pytest; it may block its loop

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import subprocess
import sys
from pathlib import Path

from tests.engine.rig import MIB, PART, REF, Origin, Served, moving_threads, one, pattern, running, safetensors
from weightd.core.errors import AccessDenied, DiskFull, Exhausted, ShmFull
from weightd.engine.api import Tier
from weightd.engine.export import fetch_to
from weightd.engine.transfer import TransferOptions
from weightd.storage.segments import PosixSegmentStore

BIG, SMALL = pattern(12 * MIB), pattern(MIB, "small")
OTHER = "http://origin/small/"


def mount(where: Path | str, options: str) -> Path:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(where)], check=True)
    return Path(where)


def origin() -> Origin:
    return Origin({REF: {"big": Served(BIG)}, OTHER: {"small": Served(SMALL)}})


def fill(directory: Path, leave: int = 0) -> Path:
    """Take all room there but `leave` bytes, also while others take some."""
    path = directory / "filler"
    with path.open("wb") as file:
        for _ in range(1000):
            status = os.statvfs(directory)
            try:
                os.posix_fallocate(file.fileno(), 0, max(4096, status.f_bavail * status.f_frsize - leave))
            except OSError as e:
                if e.errno != errno.ENOSPC:
                    raise
            else:
                return path
    raise AssertionError(f"{directory} could not be filled")


async def refused(call: object, error: type[Exhausted]) -> None:
    try:
        await call  # type: ignore[misc]
    except error as e:
        assert e.remedy
        assert e.ref
    else:
        raise AssertionError(f"no {error.__name__}")


async def shm(directory: Path, options: str) -> None:
    """/dev/shm too small for one model: the other one works, before and after."""
    mount("/dev/shm", options)
    async with running(directory, origin(), part_size=MIB) as rig:
        await refused(rig.acquire(), ShmFull)
        await rig.check_idle(blobs=0, segments=0)
        assert rig.content((await rig.acquire(OTHER)).model) == {"small": SMALL}
        await rig.fetch()
        await refused(rig.acquire(), ShmFull)
        await rig.check_idle(blobs=2, segments=1)


async def shm_taken(directory: Path) -> None:
    """Somebody else takes the room while a model is received."""
    mount("/dev/shm", "size=16m")
    source = origin()
    source.hold(lambda path, offset: offset >= 4 * MIB)
    async with running(directory, source) as rig:
        task = asyncio.create_task(rig.acquire())
        await asyncio.to_thread(source.reached.wait)
        filler = fill(Path("/dev/shm"))
        source.release()
        await refused(task, ShmFull)
        await rig.check_idle(blobs=0, segments=0, kept=1)
        filler.unlink()
        assert rig.content((await rig.acquire()).model) == {"big": BIG}
        await rig.check_idle(blobs=1, segments=1)


async def shm_names(directory: Path) -> None:
    """No inode is left for another segment."""
    mount("/dev/shm", "size=64m,nr_inodes=4")
    many = Origin({REF: {f"{i}": Served(pattern(PART, i)) for i in range(8)}, OTHER: {"small": Served(SMALL)}})
    async with running(directory, many) as rig:
        await refused(rig.acquire(), ShmFull)
        # Some had come before; they are on disk, and hold no shared memory that others need.
        await rig.check_idle(blobs=len(list(rig.blobs.digests())), segments=0)
        assert rig.content((await rig.acquire(OTHER)).model) == {"small": SMALL}


async def disk(directory: Path) -> None:
    mount(directory, "size=8m")
    async with running(directory, origin()) as rig:
        for tier in Tier:
            await refused(rig.fetch(tier=tier), DiskFull)
            await rig.check_idle(blobs=0, segments=0)
        assert rig.content(await rig.fetch(OTHER)) == {"small": SMALL}


async def disk_at_every_step(directory: Path) -> None:
    """Only so many pages are left: for the ingest, then its directory, the record, the links. Any of them may fail."""
    mount(directory, "size=8m")
    data = safetensors(3 * PART)
    outcomes = set()
    for leave in range(3 * PART, 3 * PART + 40 * 4096, 4096):
        async with running(directory, Origin({REF: {"m.safetensors": Served(data)}})) as rig:
            filler = fill(directory, leave)
            try:
                outcomes.add(rig.content(await rig.fetch(tier=Tier.SHM)) == {"m.safetensors": data})
            except DiskFull as e:
                assert e.remedy
                outcomes.add(None)
                blobs = len(list(rig.blobs.digests()))
                assert blobs == len(rig.engine._catalog.blobs)
                await rig.check_idle(blobs=blobs, segments=len(rig.segments()))
            finally:
                filler.unlink()
            assert rig.content(await rig.fetch(tier=Tier.SHM)) == {"m.safetensors": data}
            await rig.check_idle(blobs=1, segments=1)
        _wipe(directory)
    assert outcomes == {None, True}


async def disk_names(directory: Path) -> None:
    """No inode is left: for an ingest, a directory, a link."""
    outcomes = set()
    for number in range(12, 34):
        mount(directory, f"size=32m,nr_inodes={number}")
        source = Origin({REF: {f"{i}/x": Served(pattern(PART, i)) for i in range(4)}})
        with contextlib.suppress(DiskFull):
            async with running(directory, source) as rig:
                outcomes.add("started")
                try:
                    await rig.fetch(tier=Tier.SHM)
                    outcomes.add("fetched")
                except DiskFull:
                    outcomes.add("refused")
                    blobs = len(list(rig.blobs.digests()))
                    assert blobs == len(rig.engine._catalog.blobs)
                    await rig.check_idle(blobs=blobs, segments=len(rig.segments()))
        subprocess.run(["umount", str(directory)], check=True)
    assert outcomes == {"started", "fetched", "refused"}


async def stop_without_room(directory: Path) -> None:
    """No link can be switched when the engine stops; its segments go all the same."""
    mount(directory, "size=32m,nr_inodes=40")
    source = origin()
    try:
        async with running(directory, source) as rig:
            await rig.acquire(OTHER)
            assert len(rig.segments()) == 1
            with contextlib.suppress(OSError):
                for number in range(100):
                    (directory / f"filler{number}").touch()
    except DiskFull:
        assert rig.segments() == []
        assert moving_threads() == []
        assert source.closed
    else:
        raise AssertionError("there was room")


async def start_without_room(directory: Path) -> None:
    """A state that cannot be made says that the disk is full, not that it is damaged."""
    mount(directory, "size=1m")
    for name in ("blobs/sha256", "ingest", "models"):
        (directory / name).mkdir(parents=True)
    filler = fill(directory)
    try:
        async with running(directory, origin()):
            raise AssertionError("there was room")
    except DiskFull:
        pass
    filler.unlink()
    async with running(directory, origin()) as rig:
        await rig.check_idle(blobs=0, segments=0)


async def start_resident_without_room(directory: Path) -> None:
    """What is held is served also from a full disk."""
    mount(directory, "size=8m")
    async with running(directory, origin()) as rig:
        await rig.fetch(OTHER)
    filler = fill(directory, leave=64 << 10)
    async with running(directory, Origin()) as rig:
        assert rig.content((await rig.acquire(OTHER)).model) == {"small": SMALL}
    filler.unlink()


async def export(directory: Path) -> None:
    mount(directory, "size=8m")
    out = directory / "a" / "out"
    await refused(fetch_to(REF, out, sources=origin()), DiskFull)
    assert list(directory.iterdir()) == []
    await fetch_to(OTHER, out, sources=origin())
    assert (out / "small").read_bytes() == SMALL
    await refused(fetch_to(REF, out, sources=origin()), DiskFull)
    assert [p.name for p in out.iterdir()] == ["small"]
    assert moving_threads() == []


async def export_names(directory: Path) -> None:
    """All or nothing also when the last directory cannot be made."""
    source = Origin({REF: {f"{i}/{i}/x": Served(pattern(PART, i)) for i in range(4)}})
    outcomes = set()
    for number in range(3, 20):
        mount(directory, f"size=8m,nr_inodes={number}")
        try:
            await fetch_to(REF, directory / "out", sources=source, options=TransferOptions(PART))
            outcomes.add(len(list(directory.glob("out/*/*/x"))))
        except DiskFull:
            outcomes.add(0)
            assert list(directory.iterdir()) == []
        subprocess.run(["umount", str(directory)], check=True)
    assert outcomes == {0, 4}


async def shm_refused(directory: Path, options: str, user: int) -> None:
    """/dev/shm may not be written, or segments not be given to the group."""
    mount("/dev/shm", options)
    directory.chmod(0o777)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    try:
        PosixSegmentStore("refused", group=0).create("x", 10)
    except AccessDenied as e:
        assert e.remedy
    else:
        raise AssertionError("a segment was made")
    assert list(Path("/dev/shm").iterdir()) == []


async def read_only(directory: Path) -> None:
    mount(directory, "size=8m,ro")
    try:
        await fetch_to(REF, directory, sources=one(SMALL))
    except AccessDenied as e:
        assert e.remedy
    else:
        raise AssertionError("written to a read-only file system")


CASES = {
    "shm": lambda d: shm(d, "size=8m"),
    "shm-within-size": lambda d: shm(d, "size=8m,huge=within_size"),
    "shm-advise": lambda d: shm(d, "size=8m,huge=advise"),
    "shm-taken": shm_taken,
    "shm-names": shm_names,
    "shm-read-only": lambda d: shm_refused(d, "size=8m,ro", 0),
    "shm-not-ours": lambda d: shm_refused(d, "size=8m,mode=755", 65534),
    "shm-group-not-ours": lambda d: shm_refused(d, "size=8m,mode=1777", 65534),
    "disk": disk,
    "disk-steps": disk_at_every_step,
    "disk-names": disk_names,
    "stop": stop_without_room,
    "start": start_without_room,
    "start-resident": start_resident_without_room,
    "export": export,
    "export-names": export_names,
    "read-only": read_only,
}


def _wipe(directory: Path) -> None:
    for path in sorted(directory.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


if __name__ == "__main__":
    asyncio.run(CASES[sys.argv[1]](Path(sys.argv[2])))
    print("ok")
