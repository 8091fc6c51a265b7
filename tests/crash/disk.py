"""Run by test_disk.py in a mount namespace of its own: `python -m tests.crash.disk CASE DIRECTORY`.

A real ext4 on a loop device, whose error the kernel answers as it answers those of a dying disk: it is read-only from
then on, also for files that are open. Prints "ok" when all held.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Awaitable, Mapping
from pathlib import Path

from tests.crash.test_kill import provable
from tests.crash.victim import DATA
from tests.engine.rig import MIB, PART, REF, Origin, Served, moving_threads, pattern, running, sha256
from weightd.core.errors import AccessDenied, DiskFull, WeightdError
from weightd.engine.api import Tier
from weightd.engine.export import fetch_to
from weightd.engine.transfer import TransferOptions
from weightd.storage.ledger import Ledger

OTHER, SMALL = "http://origin/small/", pattern(MIB, "small")
THIRD = "http://origin/third/"
HELD = 5
"""Parts that arrive before the disk fails."""


class Disk:
    """48 MiB below `directory`, mounted at `root`."""

    def __init__(self, directory: Path) -> None:
        self._image, self.root = directory / "image", directory / "disk"
        with self._image.open("wb") as file:
            file.truncate(48 * MIB)
        self.root.mkdir()
        subprocess.run(["mkfs.ext4", "-q", self._image], check=True)
        self._mount()

    def _mount(self) -> None:
        subprocess.run(["mount", "-o", "loop,errors=remount-ro", self._image, self.root], check=True)
        lines = Path("/proc/self/mounts").read_text().splitlines()
        self._device = next(x.split()[0] for x in lines if x.split()[1] == str(self.root)).rpartition("/")[2]

    def fail(self) -> None:
        """See `errors` in ext4(5)."""
        Path(f"/sys/fs/ext4/{self._device}/trigger_fs_error").write_text("tests")
        try:
            (self.root / "x").touch()
        except OSError:
            return
        raise AssertionError("the disk can still be written")

    def mend(self) -> None:
        """As an operator does it."""
        subprocess.run(["umount", self.root], check=True)
        fixed = subprocess.run(["e2fsck", "-fy", self._image], capture_output=True, text=True, check=False)
        assert fixed.returncode in (0, 1), fixed.stdout
        self._mount()

    def close(self) -> None:
        subprocess.run(["umount", self.root], check=True)


def origin() -> Origin:
    models = {REF: {"model.bin": Served(DATA)}, OTHER: {"small": Served(SMALL)}, THIRD: {"x": Served(b"x" * 70_000)}}
    source = Origin(models)
    source.hold(lambda path, offset: path == "model.bin" and offset >= HELD * PART)
    return source


class Records:
    """Counts what ledgers hold for certain."""

    def __init__(self) -> None:
        self._changed, self._durable = threading.Condition(), 0
        append = Ledger.append

        def counted(ledger: Ledger, parts: Mapping[int, bytes]) -> None:
            append(ledger, parts)
            with self._changed:
                self._durable += len(parts)
                self._changed.notify_all()

        Ledger.append = counted  # type: ignore[method-assign]

    def wait(self) -> None:
        """For all that arrives before the disk fails."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._durable == HELD, 20), "nothing is recorded"


async def refused(call: Awaitable[object]) -> None:
    error: WeightdError | None = None
    try:
        await call
    except (AccessDenied, DiskFull) as e:
        error = e
    assert error is not None, "written to a read-only disk"
    assert error.remedy, error
    assert error.ref, error


async def engine(disk: Disk, tier: Tier) -> None:
    source, served = origin(), False
    try:
        async with running(disk.root, source) as rig:
            await rig.acquire(OTHER)
            records = Records()
            task = asyncio.create_task(rig.fetch(tier=tier))
            await asyncio.to_thread(source.reached.wait)
            await asyncio.to_thread(records.wait)
            disk.fail()
            source.release()
            await refused(task)
            await refused(rig.fetch(THIRD, tier=tier))
            await refused(rig.fetch(tier=tier))
            # What is resident is served all the same, and nothing stays claimed.
            assert rig.content((await rig.acquire(OTHER)).model) == {"small": SMALL}
            status = await rig.engine.status()
            assert (status.transfers, status.shm.reserved, status.nvme.reserved) == (0, 0, 0)
            assert len(rig.segments()) == 1
            assert source.readers == set()
            served = True
    except WeightdError:
        assert served
        # The links of the resident model could not be turned to the disk.
        assert rig.segments() == []
        assert moving_threads() == []
        assert source.closed
    else:
        raise AssertionError("stopped as if the disk could be written")
    disk.mend()
    proven = provable(disk.root)
    assert proven == set(range(HELD))
    source.starts.clear()
    async with running(disk.root, source) as rig:
        assert rig.content((await rig.acquire(OTHER)).model) == {"small": SMALL}
        assert rig.content(await rig.fetch(tier=tier)) == {"model.bin": DATA}
        assert rig.blobs.path(sha256(DATA)).read_bytes() == DATA
        assert {offset // PART for path, offset, _ in source.starts} == set(range(10)) - proven
        await rig.check_idle(blobs=2, segments=1 + (tier is Tier.SHM))


async def export(disk: Disk) -> None:
    source, records, out = origin(), Records(), disk.root / "out"
    options = TransferOptions(PART)
    task = asyncio.create_task(fetch_to(REF, out, sources=source, options=options))
    await asyncio.to_thread(source.reached.wait)
    await asyncio.to_thread(records.wait)
    disk.fail()
    source.release()
    await refused(task)
    assert source.readers == set()
    assert moving_threads() == []
    assert [p.name for p in out.iterdir() if not p.name.startswith(".weightd-")] == []
    disk.mend()
    await fetch_to(REF, out, sources=source, options=options)
    assert (out / "model.bin").read_bytes() == DATA


CASES = {
    "engine-shm": lambda d: engine(d, Tier.SHM),
    "engine-nvme": lambda d: engine(d, Tier.NVME),
    "export": export,
}


if __name__ == "__main__":
    disk = Disk(Path(sys.argv[2]))
    try:
        asyncio.run(CASES[sys.argv[1]](disk))
    finally:
        disk.close()
    print("ok")
