"""Records that come while the disk is busy go together; each of them is told how it went for itself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.engine.rig import SECONDS
from weightd.core.digest import Digest
from weightd.core.errors import DiskFull
from weightd.core.verification import Verification
from weightd.engine.records import Records
from weightd.storage.state import BlobRecord, State


def record(number: int, parts: int = 1) -> BlobRecord:
    return BlobRecord(Digest(f"sha256:{number:064x}"), 4096 * parts, Verification.SIZE, 4096, bytes(16 * parts))


class Disk:
    """A state in its thread, whose next write waits until `free` is set."""

    def __init__(self, path: Path) -> None:
        self.state = State(path)
        self.thread = ThreadPoolExecutor(1)
        self.free = threading.Event()
        self.writes: list[int] = []
        self.records = Records(self.state, self.write)

    async def write(self, call: Callable[..., object], *args: object) -> object:
        def body() -> object:
            assert self.free.wait(SECONDS)
            if call == self.state.put_blobs:
                self.writes.append(len(args[0]))  # type: ignore[arg-type]
            return call(*args)

        return await asyncio.get_running_loop().run_in_executor(self.thread, body)


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator[Disk]:
    disk = Disk(tmp_path / "state.db")
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(disk.thread, disk.state.open)
    yield disk
    disk.free.set()
    await loop.run_in_executor(disk.thread, disk.state.close)
    disk.thread.shutdown()


async def held(disk: Disk) -> set[Digest]:
    return {b.digest for b in await asyncio.get_running_loop().run_in_executor(disk.thread, disk.state.blobs)}


async def test_many_go_in_one_transaction(disk: Disk) -> None:
    puts = [asyncio.create_task(disk.records.put(record(0), "source:0"))]
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # the first is with the disk
    puts += [asyncio.create_task(disk.records.put(record(i), f"source:{i}")) for i in range(1, 50)]
    await asyncio.sleep(0)
    assert not any(p.done() for p in puts)
    disk.free.set()
    await asyncio.wait_for(asyncio.gather(*puts), SECONDS)
    assert disk.writes == [1, 49]
    assert await held(disk) == {record(i).digest for i in range(50)}


async def test_one_that_is_refused_does_not_cost_the_others(disk: Disk) -> None:
    disk.free.set()
    await asyncio.get_running_loop().run_in_executor(disk.thread, _full, disk.state)
    puts = [disk.records.put(record(i, parts=30_000 if i == 3 else 1), "") for i in range(6)]
    results = await asyncio.wait_for(asyncio.gather(*puts, return_exceptions=True), SECONDS)
    assert [type(r) for r in results] == [type(None)] * 3 + [DiskFull] + [type(None)] * 2
    assert await held(disk) == {record(i).digest for i in (0, 1, 2, 4, 5)}


def _full(state: State) -> None:
    """A few pages are left: for small records, not for the checksums of many parts."""
    pages = state._open.execute("PRAGMA page_count").fetchone()[0]
    state._open.execute(f"PRAGMA max_page_count = {pages + 8}")


async def test_a_caller_that_is_cancelled_waits_for_its_record(disk: Disk) -> None:
    put = asyncio.create_task(disk.records.put(record(0), ""))
    await asyncio.sleep(0)
    put.cancel()
    await asyncio.sleep(0)
    assert not put.done()
    disk.free.set()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(put, SECONDS)
    assert await held(disk) == {record(0).digest}
