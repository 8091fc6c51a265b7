"""All parts came, the digest is wrong: what was wrong is found, replaced and reported, or the error says so."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from contextlib import aclosing
from pathlib import Path

import pytest

from tests.engine.rig import PART, REF, Origin, Rig, Served, moving_threads, one, pattern, running, sha256
from weightd.core.errors import DigestMismatch, SourceUnavailable
from weightd.engine.api import Event, EventKind, Tier
from weightd.engine.export import fetch_to
from weightd.engine.transfer import TransferOptions

PARTS = 10
DATA = pattern(PARTS * PART - 7)
BOTH = pytest.mark.parametrize("tier", list(Tier))


class Liar:
    """Serves wrong bytes for these parts, each as often as said."""

    def __init__(self, lies: dict[int, int], **served: object) -> None:
        self.origin: Origin = one(DATA, **({"digest": sha256(DATA)} | served))
        self._left = Counter(lies)
        self._lock = threading.Lock()
        self.origin.on_start = self._choose

    def _choose(self, path: str, offset: int, length: int) -> None:
        """The reader takes what the origin has at its start."""
        part = offset // PART
        with self._lock:
            lie = self._left[part] > 0
            self._left[part] -= 1
        served = self.origin.models[REF][path]
        wrong = bytearray(DATA)
        wrong[offset + length // 2] ^= 1
        served.data = bytes(wrong) if lie else DATA


def asked(origin: Origin) -> dict[int, int]:
    return {offset // PART: times for (_, offset, _), times in origin.starts.items()}


def names(directory: Path) -> list[str]:
    return [p.name for p in directory.iterdir()]


async def watched(rig: Rig, seen: list[Event]) -> None:
    async with aclosing(rig.engine.watch()) as events:
        async for event in events:
            seen.append(event)


@pytest.mark.parametrize("wrong", [{0: 1}, {3: 1}, {2: 1, 4: 1}, {9: 1}, {1: 1, 8: 1}])
@BOTH
async def test_wrong_parts_are_found_and_replaced(tmp_path: Path, tier: Tier, wrong: dict[int, int]) -> None:
    liar, seen = Liar(wrong), list[Event]()
    async with running(tmp_path, liar.origin, receivers=1) as rig:
        watcher = asyncio.create_task(watched(rig, seen))
        await asyncio.sleep(0)
        assert rig.content(await rig.fetch(tier=tier)) == {"model.bin": DATA}
        assert rig.blobs.path(sha256(DATA)).read_bytes() == DATA
        halves = PARTS if max(wrong) >= PARTS // 2 else PARTS // 2
        assert asked(liar.origin) == {i: 2 if i < halves else 1 for i in range(PARTS)}
        await asyncio.sleep(0)
        (repaired,) = [e for e in seen if e.kind is EventKind.REPAIRED]
        assert repaired.detail.startswith(f"model.bin: {len(wrong)} of {PARTS} parts were wrong")
        await rig.check_idle(blobs=1, segments=int(tier is Tier.SHM))
    await watcher
    async with running(tmp_path, liar.origin) as rig:  # the recorded checksums are those of the right parts
        liar.origin.starts.clear()
        assert rig.content((await rig.acquire()).model) == {"model.bin": DATA}
        assert not liar.origin.starts


@BOTH
async def test_an_origin_that_lies_twice_is_an_error(tmp_path: Path, tier: Tier) -> None:
    liar = Liar({4: 9})
    async with running(tmp_path, liar.origin, receivers=1) as rig:
        with pytest.raises(DigestMismatch):
            await rig.fetch(tier=tier)
        assert asked(liar.origin) == dict.fromkeys(range(PARTS), 2)
        await rig.check_idle(blobs=0, segments=0)


async def test_what_cannot_be_asked_for_by_parts_is_not_mended(tmp_path: Path) -> None:
    liar = Liar({0: 1}, ranges=False)
    async with running(tmp_path, liar.origin) as rig:
        with pytest.raises(DigestMismatch):
            await rig.fetch()
        assert asked(liar.origin) == {0: 1}
        await rig.check_idle(blobs=0, segments=0)


async def test_a_wrong_part_that_was_recorded_is_found_after_a_resume(tmp_path: Path) -> None:
    liar = Liar({2: 1})
    choose = liar.origin.on_start

    def breaking(path: str, offset: int, length: int) -> None:
        choose(path, offset, length)
        if offset >= 6 * PART:
            raise SourceUnavailable("reset by peer")

    liar.origin.on_start = breaking
    async with running(tmp_path, liar.origin, receivers=1, attempts=1) as rig:
        with pytest.raises(SourceUnavailable):
            await rig.fetch()
        liar.origin.on_start = choose
        assert rig.content(await rig.fetch()) == {"model.bin": DATA}
        await rig.check_idle(blobs=1, segments=0)


@BOTH
async def test_a_mending_is_stopped(tmp_path: Path, tier: Tier) -> None:
    liar = Liar({0: 1})
    async with running(tmp_path, liar.origin, receivers=2) as rig:
        choose = liar.origin.on_start

        def blocking(path: str, offset: int, length: int) -> None:
            choose(path, offset, length)
            if liar.origin.starts.total() > PARTS:
                liar.origin.hold()

        liar.origin.on_start = blocking
        task = asyncio.create_task(rig.fetch(tier=tier))
        await asyncio.to_thread(liar.origin.reached.wait, 20)
        task.cancel()
        async with asyncio.timeout(2):
            await asyncio.wait([task])
            while rig.engine._fetcher._flights:  # noqa: ASYNC110 - the engine has no event for it
                await asyncio.sleep(0.01)
        await rig.check_idle(blobs=0, segments=0, kept=1)
        assert [t for t in threading.enumerate() if "mend" in t.name] == []


async def test_a_broken_mending_says_what_broke(tmp_path: Path) -> None:
    liar = Liar({0: 1})
    choose = liar.origin.on_start

    def breaking(path: str, offset: int, length: int) -> None:
        if liar.origin.starts.total() > PARTS + 2:
            raise SourceUnavailable("reset by peer")
        choose(path, offset, length)

    liar.origin.on_start = breaking
    async with running(tmp_path, liar.origin, receivers=1, attempts=1) as rig:
        with pytest.raises(SourceUnavailable) as caught:
            await rig.fetch()
        assert caught.value.file == "model.bin"
        await rig.check_idle(blobs=0, segments=0, kept=1)


@pytest.mark.parametrize("wrong", [{3: 1}, {9: 1}])
async def test_without_a_daemon(tmp_path: Path, wrong: dict[int, int]) -> None:
    liar = Liar(wrong)
    options = TransferOptions(part_size=PART, receivers=1)
    (file,) = await fetch_to(REF, tmp_path / "out", sources=liar.origin, options=options)
    assert file.repaired == tuple(wrong)
    assert (tmp_path / "out/model.bin").read_bytes() == DATA
    assert names(tmp_path / "out") == ["model.bin"]
    assert moving_threads() == []


async def test_without_a_daemon_a_wrong_digest_leaves_nothing(tmp_path: Path) -> None:
    origin = Origin({REF: {"model.bin": Served(DATA, sha256(b"other"))}})
    with pytest.raises(DigestMismatch):
        await fetch_to(REF, tmp_path / "out", sources=origin, options=TransferOptions(part_size=PART))
    assert names(tmp_path) == []
