"""As full.py, with models of many files: `python -m tests.engine.full_many CASE DIRECTORY`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.engine.full import BIG, OTHER, SMALL, fill, mount, refused
from tests.engine.rig import MIB, REF, Origin, Served, pattern, running
from weightd.core.errors import DiskFull, Exhausted, ShmFull, WeightdError
from weightd.engine.export import fetch_to

MANY = {f"{i:02}": Served(pattern(MIB // 2, i)) for i in range(24)}
"""Half a MiB each, 12 in all; asked for in this order."""


def many() -> Origin:
    return Origin({REF: MANY, OTHER: {"small": Served(SMALL)}})


async def sum_of_files(directory: Path, options: str) -> None:
    """No file alone is too large for either file system, and all of them are: nothing is asked for."""
    mount(directory, options)
    mount("/dev/shm", "size=64m")
    await _nothing_asked_for(directory, DiskFull)
    mount(directory, "size=64m")
    mount("/dev/shm", options)
    await _nothing_asked_for(directory, ShmFull)


async def _nothing_asked_for(directory: Path, error: type[Exhausted]) -> None:
    async with running(directory, many()) as rig:
        await refused(rig.acquire(), error)
        assert rig.origin.starts == {}
        await rig.check_idle(blobs=0, segments=0)
    if error is DiskFull:
        await refused(fetch_to(REF, directory / "out", sources=many()), DiskFull)
        assert not (directory / "out").exists()


async def sum_of_transfers(directory: Path) -> None:
    """What another transfer has yet to take is not there for this one, which is told so before it begins."""
    mount("/dev/shm", "size=16m")
    source = many()
    source.models[OTHER] = {"big": Served(pattern(8 * MIB))}
    source.hold(lambda path, offset: path == "03")
    async with running(directory, source, part_size=MIB, receivers=1) as rig:
        task = asyncio.create_task(rig.acquire())
        await asyncio.to_thread(source.reached.wait)
        await refused(rig.acquire(OTHER), ShmFull)
        assert {path for path, _, _ in source.starts} <= set(MANY)
        source.release()
        assert len(rig.content((await task).model)) == len(MANY)


async def sum_of_opened(directory: Path, options: str) -> None:
    """So is what a file that has begun has yet to take; and what it has taken is not counted again."""
    mount("/dev/shm", options)
    source = Origin({REF: {"big": Served(BIG)}})
    sizes = {"too-large": 6, "fits": 4}
    models = {name: f"http://origin/{name}/" for name in sizes}
    for name, size in sizes.items():
        source.models[models[name]] = {name: Served(pattern(size * MIB, name))}
    source.hold(lambda path, offset: path == "big" and offset >= 4 * MIB)
    async with running(directory, source, part_size=MIB, receivers=1) as rig:
        task = asyncio.create_task(rig.acquire())
        await asyncio.to_thread(source.reached.wait)
        await refused(rig.acquire(models["too-large"]), ShmFull)
        assert {path for path, _, _ in source.starts} == {"big"}
        await rig.acquire(models["fits"])
        assert len(rig.segments()) == 2
        source.release()
        assert rig.content((await task).model) == {"big": BIG}


async def disk_taken(directory: Path) -> None:
    """Somebody else takes the room between two files. What came stays, and the rest is all that comes later."""
    mount(directory, "size=32m")
    source = many()
    source.hold(lambda path, offset: path == "10")
    async with running(directory, source, part_size=MIB, receivers=1) as rig:
        task = asyncio.create_task(rig.fetch())
        await asyncio.to_thread(source.reached.wait)
        filler = fill(directory, leave=MIB)
        source.release()
        await refused(task, DiskFull)
        blobs = len(list(rig.blobs.digests()))
        assert 0 < blobs < len(MANY)
        await rig.check_idle(blobs=blobs, segments=0)
        filler.unlink()
        source.starts.clear()
        await rig.fetch()
        assert len({path for path, _, _ in source.starts}) == len(MANY) - blobs


async def disk_taken_while_something_is_kept(directory: Path) -> None:
    """An ingest that waits to be resumed gives way to a file whose turn comes when the disk is full."""
    mount(directory, "size=32m")
    source = many()
    source.models[OTHER] = {"big": Served(pattern(16 * MIB))}
    source.hold(lambda path, offset: offset >= 4 * MIB or path == "03")
    async with running(directory, source, part_size=MIB, receivers=1) as rig:
        other = asyncio.create_task(rig.fetch(OTHER))
        await asyncio.to_thread(source.reached.wait)
        other.cancel()
        await asyncio.wait([other])
        async with asyncio.timeout(20):
            while not len(rig.engine._catalog.kept):  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
        source.reached.clear()
        task = asyncio.create_task(rig.fetch())
        await asyncio.to_thread(source.reached.wait)
        assert len(rig.engine._catalog.kept) == 1
        fill(directory, leave=MIB // 4)
        source.release()
        assert len(rig.content(await task)) == len(MANY)
        await rig.check_idle(blobs=len(MANY), segments=0)


async def cancelled_between_files(directory: Path, options: str) -> None:
    mount("/dev/shm", options)
    source = many()
    source.hold(lambda path, offset: path == "10")
    async with running(directory, source, part_size=MIB, receivers=1) as rig:
        task = asyncio.create_task(rig.acquire())
        await asyncio.to_thread(source.reached.wait)
        await rig.engine.stop()
        try:
            await task
        except WeightdError:
            pass
        else:
            raise AssertionError("acquired")
        assert {path for path, _, _ in source.starts} == {p for p in MANY if p <= "10"}
        assert rig.segments() == []


CASES = {
    "sum-of-files": lambda d: sum_of_files(d, "size=8m"),
    "sum-of-files-huge": lambda d: sum_of_files(d, "size=8m,huge=within_size"),
    "sum-of-transfers": sum_of_transfers,
    "sum-of-opened": lambda d: sum_of_opened(d, "size=16m"),
    "sum-of-opened-huge": lambda d: sum_of_opened(d, "size=16m,huge=within_size"),
    "disk-taken": disk_taken,
    "disk-taken-kept": disk_taken_while_something_is_kept,
    "cancelled": lambda d: cancelled_between_files(d, "size=64m"),
    "cancelled-within-size": lambda d: cancelled_between_files(d, "size=64m,huge=within_size"),
    "cancelled-advise": lambda d: cancelled_between_files(d, "size=64m,huge=advise"),
}


if __name__ == "__main__":
    asyncio.run(CASES[sys.argv[1]](Path(sys.argv[2])))
    print("ok")
