"""Where repairs, snapshots and other refs meet: what one of them replaces or drops, the others see."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.engine.rig import PART, SECONDS, Origin, Served, running, sha256
from tests.engine.test_snapshots import SHARED, fetch, gone, version
from weightd.core.errors import SourceNotFound
from weightd.core.lifecycle import Residency
from weightd.engine.api import CopyState, FileCheck, Tier

OTHER = "http://origin/other/"


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[PART + 1] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


def recorded(root: Path) -> set[str]:
    with closing(sqlite3.connect(root / "state.db")) as db:
        return {row[0] for row in db.execute("SELECT digest FROM blobs")}


async def test_a_repair_is_seen_in_every_snapshot(tmp_path: Path) -> None:
    async with running(tmp_path, Origin()) as rig:
        await fetch(rig, 1)
        await fetch(rig, 2)
        damage(rig.blobs.path(sha256(SHARED)))
        checks = [c async for c in rig.engine.verify() if isinstance(c, FileCheck)]
        assert [c.path for c in checks if c.nvme is CopyState.REPAIRED] == ["shared", "shared"]
        for model in rig.engine.models():
            assert {f.path: f.nvme for f in model.files} == dict.fromkeys(
                (f.path for f in model.files), Residency.RESIDENT
            )


async def test_what_another_ref_brought_anew_goes_with_its_record(tmp_path: Path) -> None:
    """Of a snapshot that has a blob which was damaged, and fetched again by a flight that failed otherwise."""
    data = version(1)["a"]
    digest = sha256(data)

    def fails(path: str, offset: int, length: int) -> None:
        if path == "z":
            raise SourceNotFound("gone")

    async with running(tmp_path, Origin()) as rig:
        await fetch(rig, 1)
        await fetch(rig, 2)
        damage(rig.blobs.path(digest))
        damaged = rig.engine._catalog.blobs[digest]
        rig.origin.models[OTHER] = {"a": Served(data, digest=digest), "z": Served(b"z")}
        rig.origin.on_read = fails
        rig.origin.hold(lambda path, offset: path == "z")
        fetching = asyncio.create_task(rig.fetch(OTHER, Tier.SHM))
        async with asyncio.timeout(SECONDS):
            while rig.engine._catalog.blobs.get(digest) in (None, damaged):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        rig.origin.release()
        with pytest.raises(SourceNotFound):
            await fetching
        assert damaged not in rig.engine._catalog.blobs.values()
        await fetch(rig, 3)
        held = {str(d) for d in rig.blobs.digests()}
        assert recorded(tmp_path) == held == set(rig.engine._catalog.blobs)
        await rig.check_idle(blobs=6, segments=0)


async def test_what_cannot_be_removed_of_an_old_snapshot_keeps_the_rest_from_nothing(tmp_path: Path) -> None:
    async with running(tmp_path, Origin(), keep=0) as rig:
        await fetch(rig, 1, Tier.SHM)
        for data in version(1)["a"], version(1)["only-1"]:
            path = rig.blobs.path(sha256(data))
            path.unlink()
            (path / "somebody's").mkdir(parents=True)
        old = rig.engine.models()[0]
        await fetch(rig, 2, Tier.SHM)
        assert [m.current for m in rig.engine.models()] == [True]
        assert gone(old)
        status = await rig.engine.status()
        pages = sum(-(-len(data) // 4096) * 4096 for data in version(2).values())
        assert (status.nvme.resident, status.shm.resident) == (pages, pages)
        assert len(rig.segments()) == 3
