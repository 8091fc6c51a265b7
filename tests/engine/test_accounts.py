"""What the daemon says of its bytes adds up to what the file system says, on a tmpfs of 64 MiB of its own."""

from __future__ import annotations

import asyncio
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.rig import MIB, REF, Origin, Rig, Served, pattern, running
from tests.support.tmpfs import mounted
from weightd.core.errors import BudgetExceeded, ShmFull
from weightd.engine.api import Tier
from weightd.storage.segment_files import DirectorySegmentStore

OTHER = "http://origin/other/"
SIZE = 20 * MIB + 12345


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "shm"
    place.mkdir()
    with mounted(place, "size=64m"):
        yield place


def origin() -> Origin:
    return Origin({ref: {"model.bin": Served(pattern(SIZE, ref)), "x": Served(b"x")} for ref in (REF, OTHER)})


async def reconciled(rig: Rig, mount: Path, others: int = 0) -> None:
    """To the byte."""
    shm = (await rig.engine.status()).shm
    status = os.statvfs(mount)
    used = (status.f_blocks - status.f_bfree) * status.f_frsize
    assert (shm.total, shm.free) == (status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize)
    assert shm.other == others
    assert used == shm.resident + shm.draining + others
    assert shm.reserved + shm.resident + shm.draining <= shm.budget
    assert max(shm.leased, shm.pinned) <= shm.resident


async def test_it_adds_up_at_every_step(tmp_path: Path, mount: Path) -> None:
    store = DirectorySegmentStore(mount, "adds")
    async with running(tmp_path / "state", origin(), shm=48 * MIB, segments=store) as rig:
        await reconciled(rig, mount)
        lease = await rig.acquire(REF)
        await reconciled(rig, mount)
        shm = (await rig.engine.status()).shm
        assert shm.leased == shm.resident == -(-SIZE // 4096) * 4096 + 4096
        fd = os.open(mount / os.path.basename(rig.engine.model(REF).files[0].segment), os.O_RDONLY)
        view = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
        os.close(fd)
        lease.release()
        evicted = await rig.engine.evict(REF)
        assert (evicted.shm, evicted.draining) == (shm.resident, shm.resident - 4096)
        await reconciled(rig, mount)
        await rig.engine.pin((await rig.fetch(OTHER, tier=Tier.SHM)).ref)
        await reconciled(rig, mount)
        shm = (await rig.engine.status()).shm
        assert (shm.pinned, shm.leased, shm.draining > 0) == (shm.resident, 0, True)
        with pytest.raises(BudgetExceeded, match="draining"):
            await rig.acquire(REF)
        view.close()
        async with asyncio.timeout(10):
            while (await rig.engine.status()).shm.draining:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
        await reconciled(rig, mount)
        (await rig.acquire(REF)).release()
        await reconciled(rig, mount)
    store.close()


async def test_filling_counts_what_is_there(tmp_path: Path, mount: Path) -> None:
    store = DirectorySegmentStore(mount, "fills")
    async with running(tmp_path / "state", origin(), shm=48 * MIB, segments=store) as rig:
        rig.origin.hold(lambda path, offset: offset > SIZE // 2)
        waiting = asyncio.create_task(rig.acquire(REF))
        await asyncio.to_thread(rig.origin.reached.wait)
        shm = (await rig.engine.status()).shm
        assert shm.reserved + shm.resident == -(-SIZE // 4096) * 4096 + 4096
        assert shm.other == 0
        rig.origin.release()
        (await waiting).release()
        await reconciled(rig, mount)
    store.close()


async def test_somebody_else_fills_the_mount(tmp_path: Path, mount: Path) -> None:
    """The error says so, and nothing is half done; what nobody uses makes room even then."""
    store = DirectorySegmentStore(mount, "filled")
    async with running(tmp_path / "state", origin(), shm=60 * MIB, segments=store) as rig:
        lease = await rig.acquire(OTHER)
        foreign = mount / "somebody-elses"
        fd = os.open(foreign, os.O_CREAT | os.O_WRONLY, 0o600)
        free = os.statvfs(mount).f_bavail * 4096
        os.posix_fallocate(fd, 0, free - MIB)
        os.close(fd)
        with pytest.raises(ShmFull, match="is full"):
            await rig.acquire(REF)
        await reconciled(rig, mount, free - MIB)
        lease.release()
        (await rig.acquire(REF)).release()  # OTHER has made room.
        await reconciled(rig, mount, free - MIB)
        os.unlink(foreign)
    store.close()


async def test_what_was_damaged_and_dropped_is_neither_pinned_nor_leased(tmp_path: Path) -> None:
    async with running(tmp_path, origin()) as rig:
        lease = await rig.acquire(REF)
        await rig.engine.pin(REF)
        (large,) = [f.digest for f in lease.model.files if f.path == "model.bin"]
        await rig.engine._catalog.drop(rig.engine._catalog.blobs[large])
        nvme = (await rig.engine.status()).nvme
        assert (nvme.resident, nvme.leased, nvme.pinned) == (4096, 4096, 4096)
        lease.release()
