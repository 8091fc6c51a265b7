"""The budget of the disk holds at every moment of a repair."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.rig import PART, Rig, one, pattern, running, sha256
from tests.engine.test_scrub import LOST, REPAIRED, SOUND, flip, states
from weightd.core.errors import DiskFull
from weightd.engine.api import Tier
from weightd.storage.ingests import FileIngest

SIZE = 40 * PART
DATA = pattern(SIZE)


def on_disk(rig: Rig) -> int:
    """Bytes of blobs, of ingests and of what was put aside."""
    files = [p for name in ("blobs", "ingest", "kept", "quarantine") for p in (rig.root / name).rglob("*")]
    return sum(p.stat().st_blocks * 512 for p in files if p.is_file())


@pytest.mark.parametrize("room", [0, PART, SIZE])
async def test_of_a_copy_that_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    budget, most = SIZE + room, [0]
    async with running(tmp_path, one(DATA), nvme=budget) as rig:
        await rig.fetch(tier=Tier.SHM)
        rig.origin.starts.clear()
        flip(rig.blobs.path(sha256(DATA)))
        write = FileIngest.write

        def watched(ingest: FileIngest, offset: int, data: memoryview) -> None:
            write(ingest, offset, data)
            most[0] = max(most[0], on_disk(rig))

        monkeypatch.setattr(FileIngest, "write", watched)
        assert await states(rig) == (REPAIRED, SOUND)
        assert 0 < most[0] <= budget
        assert not rig.origin.starts
        assert rig.blobs.path(sha256(DATA)).read_bytes() == DATA
        await rig.check_idle(blobs=1, segments=1)


async def test_of_a_copy_that_cannot_be_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in shared memory is served all the same, and the next verification writes it."""
    async with running(tmp_path, one(DATA), nvme=SIZE) as rig:
        await rig.fetch(tier=Tier.SHM)
        flip(rig.blobs.path(sha256(DATA)))

        def full(ingest: FileIngest, offset: int, data: memoryview) -> None:
            raise DiskFull("no space left")

        with monkeypatch.context() as patched:
            patched.setattr(FileIngest, "write", full)
            assert await states(rig) == (LOST, SOUND)
        assert rig.content((await rig.acquire()).model) == {"model.bin": DATA}
        assert await states(rig) == (REPAIRED, SOUND)
        await rig.check_idle(blobs=1, segments=1)


async def test_of_what_is_dropped(tmp_path: Path) -> None:
    """What can be proven of it has its room until it gives way."""
    async with running(tmp_path, one(DATA)) as rig:
        await rig.fetch(tier=Tier.NVME)
        catalog = rig.engine._catalog
        (blob,) = catalog.blobs.values()
        await catalog.drop(blob)
        assert catalog.nvme.resident == 0
        assert SIZE <= on_disk(rig) == catalog.nvme.kept
