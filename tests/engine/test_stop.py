"""A verification that is under way when the engine stops ends with it: typed, and with nothing left behind."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from tests.engine.rig import PART, one, pattern, running, sha256
from tests.engine.test_scrub import flip, verify
from weightd.core.errors import Draining
from weightd.engine.api import Tier
from weightd.engine.catalog import Catalog

DATA = pattern(9 * PART + 3)


@pytest.mark.parametrize("tier", list(Tier))
async def test_while_a_blob_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tier: Tier) -> None:
    """Damage that is found when the state is closed already stays for the next process to find."""
    async with running(tmp_path, one(DATA)) as rig:
        await rig.fetch(tier=tier)
        flip(rig.blobs.path(sha256(DATA)))
        store, reached, go = rig.engine._catalog.store, threading.Event(), threading.Event()
        size = store.size

        def held(digest: object) -> int | None:
            reached.set()
            go.wait()
            return size(digest)  # type: ignore[arg-type]

        monkeypatch.setattr(store, "size", held)
        checking = asyncio.create_task(verify(rig))
        await asyncio.to_thread(reached.wait)
        await rig.engine.stop()
        go.set()
        with pytest.raises(Draining):
            await checking
        assert rig.segments() == []
    async with running(tmp_path, one(DATA)) as rig:
        assert rig.content((await rig.acquire()).model) == {"model.bin": DATA}
        assert {offset // PART for _, offset, _ in rig.origin.starts} == {5}
        await rig.check_idle(blobs=1, segments=1)


async def test_before_a_blob_is_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No flight begins that the stop did not wait for."""
    origin = one(DATA)
    async with running(tmp_path, origin) as rig:
        await rig.fetch(tier=Tier.NVME)
        origin.starts.clear()
        flip(rig.blobs.path(sha256(DATA)))
        dropped, go = asyncio.Event(), asyncio.Event()
        drop = Catalog.drop

        async def held(catalog: Catalog, blob: object) -> None:
            await drop(catalog, blob)  # type: ignore[arg-type]
            dropped.set()
            await go.wait()

        monkeypatch.setattr(Catalog, "drop", held)
        checking = asyncio.create_task(verify(rig))
        await dropped.wait()
        await rig.engine.stop()
        go.set()
        with pytest.raises(Draining):
            await checking
        assert not origin.starts
    async with running(tmp_path, origin) as rig:
        assert rig.content(await rig.fetch(tier=Tier.NVME)) == {"model.bin": DATA}
        await rig.check_idle(blobs=1, segments=0, kept=1)
