"""A header that no file could have ends a fetch when it comes, not when all has come; one that came wrong is mended."""

from __future__ import annotations

import asyncio
import struct
import threading
from pathlib import Path

import pytest

from tests.engine.rig import PART, REF, SECONDS, Origin, Served, one, pattern, running, safetensors, sha256
from weightd.core.errors import FormatError
from weightd.engine.api import Tier

SOUND = safetensors(40 * PART)
BROKEN = {
    "too long": struct.pack("<Q", 1 << 40) + SOUND[8:],
    "beyond the file": struct.pack("<Q", len(SOUND)) + SOUND[8:],
    "no JSON": SOUND[:8] + b"x" + SOUND[9:],
    "other size": SOUND + b"x",
    "a page": b"<html>" + SOUND[6:],
}
NAME = "model.safetensors"


@pytest.mark.parametrize("tier", list(Tier))
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("how", BROKEN)
async def test_the_rest_need_not_come(tmp_path: Path, how: str, named: bool, tier: Tier) -> None:
    data = BROKEN[how]
    origin = one(data, NAME, digest=sha256(data) if named else None)
    origin.hold(lambda path, offset: offset >= 20 * PART)
    async with running(tmp_path, origin) as rig:
        with pytest.raises(FormatError) as e:
            await rig.fetch(tier=tier)
        assert e.value.file == NAME
        # Nothing of it is kept.
        await rig.check_idle(blobs=0, segments=0)
        assert not any(offset >= 30 * PART for _, offset, _ in origin.starts)


async def test_other_files_may_begin_as_they_like(tmp_path: Path) -> None:
    async with running(tmp_path, one(BROKEN["no JSON"], "model.bin")) as rig:
        await rig.fetch()


@pytest.mark.parametrize("tier", list(Tier))
async def test_what_came_wrong_once_is_mended(tmp_path: Path, tier: Tier) -> None:
    origin = one(SOUND, NAME, digest=sha256(SOUND))

    def wrong_once(path: str, offset: int, length: int) -> None:
        first = origin.starts[path, offset, length] == 1 and offset == 0
        origin.models[REF][NAME].data = BROKEN["no JSON"] if first else SOUND

    origin.on_start = wrong_once
    async with running(tmp_path, origin, receivers=1) as rig:
        model = await rig.fetch(tier=tier)
        assert rig.content(model) == {NAME: SOUND}


async def test_a_header_that_goes_on_beyond_the_first_part(tmp_path: Path) -> None:
    header = b'{"t":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}'.ljust(3 * PART)
    data = struct.pack("<Q", len(header)) + header + b"data"
    async with running(tmp_path, one(data, NAME)) as rig:
        assert rig.content(await rig.fetch()) == {NAME: data}


@pytest.mark.parametrize("tier", list(Tier))
async def test_headers_come_before_the_rest_of_any_shard(tmp_path: Path, tier: Tier) -> None:
    """After the small files, and before what is large and has none."""
    shards = {f"model-{i}.safetensors": safetensors((3 + i) * PART) for i in range(3)}
    files = {**shards, "a.bin": pattern(3 * PART), "config.json": b"{}"}
    origin = Origin({REF: {path: Served(data) for path, data in files.items()}})
    async with running(tmp_path, origin, receivers=1) as rig:
        assert rig.content(await rig.fetch(tier=tier)) == files
    asked = [(path, offset) for path, offset, _ in origin.starts]  # In the order of the first time.
    assert asked[0] == ("config.json", 0)
    assert sorted(asked[1:4]) == [(path, 0) for path in shards]


async def test_a_stop_does_not_wait_for_the_second_look(tmp_path: Path) -> None:
    """The origin says nothing any more: the question is aborted, as every request of the transfer is."""
    data = BROKEN["no JSON"]
    origin = one(data, NAME, digest=sha256(data))
    first = threading.Event()

    def again(path: str, offset: int) -> bool:
        return offset >= 20 * PART or (offset == 0 and first.is_set())

    origin.on_read = lambda path, offset, length: first.set() if offset == 0 else None
    origin.hold(again)
    async with running(tmp_path, origin) as rig:
        fetching = asyncio.create_task(rig.fetch())
        async with asyncio.timeout(SECONDS):
            while origin.starts[NAME, 0, PART] < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
        flights = [*rig.engine._fetcher._flights._tasks, asyncio.ensure_future(asyncio.sleep(0))]
        _, left = await asyncio.wait(flights, timeout=SECONDS)
        assert not left
        await rig.check_idle(blobs=0, segments=0, kept=1)
