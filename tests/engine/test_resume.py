"""Nothing that can be proven is fetched twice: after a failure, a restart, a damaged part, a damaged blob."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.engine.rig import PART, REF, Origin, Rig, Served, one, pattern, running, safetensors, sha256
from weightd.core.errors import (
    BudgetExceeded,
    DigestMismatch,
    SizeMismatch,
    SourceDenied,
    SourceNotFound,
    SourceUnavailable,
    WeightdError,
)
from weightd.core.parts import MIB
from weightd.engine.api import Tier
from weightd.storage.ledger import Ledger

PARTS = 10
DATA = pattern((PARTS - 1) * PART + 1)
BOTH = pytest.mark.parametrize("tier", list(Tier))
LAST = (PARTS - 1) * PART


def asked(origin: Origin) -> set[int]:
    """Indices of the parts that the origin was asked for since it was last forgotten."""
    found = {offset // PART for _, offset, _ in origin.starts}
    origin.starts.clear()
    return found


def breaking(origin: Origin, *parts: int) -> None:
    """From now on these parts cannot be had."""

    def broken(path: str, offset: int, length: int) -> None:
        if offset // PART in parts:
            raise SourceUnavailable("reset by peer")

    origin.on_start = broken


async def interrupted(rig: Rig, tier: Tier, *missing: int) -> None:
    """One receiver: all parts before the first missing one arrive, and are recorded at the latest at the end."""
    breaking(rig.origin, *missing)
    with pytest.raises(SourceUnavailable):
        await rig.fetch(tier=tier)
    breaking(rig.origin)
    rig.origin.starts.clear()


def place(rig: Rig) -> Path:
    (found,) = rig.blobs.ingests.iterdir()
    return found


def recorded(rig: Rig) -> set[int]:
    read = Ledger.read(place(rig) / "ledger")
    assert read is not None
    return set(read[1])


@BOTH
async def test_the_next_fetch_asks_for_the_rest(tmp_path: Path, tier: Tier) -> None:
    async with running(tmp_path, one(DATA), attempts=1, receivers=1) as rig:
        await interrupted(rig, tier, 7)
        assert recorded(rig) == set(range(7))
        await rig.check_idle(blobs=0, segments=0, kept=1)
        model = await rig.fetch(tier=tier)
        assert asked(rig.origin) == {7, 8, 9}
        assert rig.content(model) == {"model.bin": DATA}
        await rig.check_idle(blobs=1, segments=int(tier is Tier.SHM))


@BOTH
async def test_a_restarted_daemon_asks_for_the_rest(tmp_path: Path, tier: Tier) -> None:
    async with running(tmp_path, one(DATA), attempts=1, receivers=1) as rig:
        await interrupted(rig, Tier.SHM, 4)
    async with running(tmp_path, one(DATA), attempts=1, receivers=1) as rig:
        await rig.check_idle(blobs=0, segments=0, kept=1)
        assert len(rig.blobs.kept()) == 1
        assert rig.content(await rig.fetch(tier=tier)) == {"model.bin": DATA}
        assert asked(rig.origin) == set(range(4, PARTS))


@pytest.mark.parametrize("part", [0, 3, 6])
@BOTH
async def test_a_part_damaged_on_disk_is_fetched_alone(tmp_path: Path, part: int, tier: Tier) -> None:
    async with running(tmp_path, one(DATA), attempts=1, receivers=1) as rig:
        await interrupted(rig, tier, 7)
        with (place(rig) / "data").open("r+b") as file:
            file.seek(part * PART + 100)
            file.write(b"damage")
        assert rig.content(await rig.fetch(tier=tier)) == {"model.bin": DATA}
        assert asked(rig.origin) == {part, 7, 8, 9}


async def test_parts_without_a_record_are_not_believed(tmp_path: Path) -> None:
    async with running(tmp_path, one(DATA), attempts=1, receivers=1) as rig:
        await interrupted(rig, Tier.NVME, 7)
        ledger = place(rig) / "ledger"
        os.truncate(ledger, ledger.stat().st_size - 2 * 28)
        left = recorded(rig)
        assert len(left) == 5
        await rig.fetch()
        assert asked(rig.origin) == set(range(PARTS)) - left


async def test_without_its_ledger_all_comes_again(tmp_path: Path) -> None:
    async with running(tmp_path, one(DATA), attempts=1, receivers=1) as rig:
        await interrupted(rig, Tier.NVME, 7)
        (place(rig) / "ledger").write_bytes(bytes(500))
        assert rig.content(await rig.fetch()) == {"model.bin": DATA}
        assert asked(rig.origin) == set(range(PARTS))
        await rig.check_idle(blobs=1, segments=0)


async def test_another_part_size_does_not_cost_what_is_here(tmp_path: Path) -> None:
    async with running(tmp_path, one(DATA), attempts=1, receivers=1) as rig:
        await interrupted(rig, Tier.NVME, 7)
    async with running(tmp_path, one(DATA), part_size=PART // 2) as rig:
        assert rig.content(await rig.fetch(tier=Tier.NVME)) == {"model.bin": DATA}
        assert min(offset for _, offset, _ in rig.origin.starts) == 7 * PART


async def test_another_version_begins_anew(tmp_path: Path) -> None:
    new = pattern(len(DATA), "new")
    async with running(tmp_path, one(DATA), attempts=1, receivers=1) as rig:
        await interrupted(rig, Tier.NVME, 7)
        rig.origin.models[REF]["model.bin"] = Served(new, etag="v2")
        assert rig.content(await rig.fetch()) == {"model.bin": new}
        assert asked(rig.origin) == set(range(PARTS))


async def test_without_a_version_nothing_is_kept(tmp_path: Path) -> None:
    async with running(tmp_path, one(DATA, etag=""), attempts=1, receivers=1) as rig:
        await interrupted(rig, Tier.NVME, 0)
        assert rig.blobs.kept() == []
        await rig.check_idle(blobs=0, segments=0)


async def test_a_wrong_digest_keeps_nothing(tmp_path: Path) -> None:
    async with running(tmp_path, one(DATA, digest=sha256(b"other")), attempts=1) as rig:
        with pytest.raises(DigestMismatch):
            await rig.fetch()
        await rig.check_idle(blobs=0, segments=0)


async def test_a_stream_is_not_kept(tmp_path: Path) -> None:
    async with running(tmp_path, one(DATA, ranges=False), attempts=1, receivers=1) as rig:
        breaking(rig.origin, 0)
        with pytest.raises(SourceUnavailable):
            await rig.fetch()
        await rig.check_idle(blobs=0, segments=0)


@BOTH
async def test_of_a_damaged_blob_only_the_damaged_part_is_fetched(tmp_path: Path, tier: Tier) -> None:
    async with running(tmp_path, one(DATA)) as rig:
        await rig.fetch(tier=Tier.NVME)
        asked(rig.origin)
        path = rig.blobs.path(sha256(DATA))
        path.chmod(0o600)
        with path.open("r+b") as file:
            file.seek(5 * PART)
            file.write(b"damage")
        lease = await rig.acquire()
        assert asked(rig.origin) == {5}
        assert rig.content(lease.model) == {"model.bin": DATA}
        assert path.read_bytes() == DATA
        assert path.stat().st_mode & 0o777 == 0o440
        await rig.check_idle(blobs=1, segments=1)


async def test_a_truncated_blob_keeps_its_front(tmp_path: Path) -> None:
    async with running(tmp_path, one(DATA)) as rig:
        await rig.fetch(tier=Tier.NVME)
        asked(rig.origin)
        path = rig.blobs.path(sha256(DATA))
        path.chmod(0o600)
        os.truncate(path, 6 * PART + 5)
        await rig.acquire()
        assert asked(rig.origin) == {6, 7, 8, 9}
        assert path.read_bytes() == DATA


@pytest.mark.parametrize("error", [SourceNotFound, SourceDenied, SizeMismatch])
async def test_an_origin_that_refuses_one_part_costs_no_other(tmp_path: Path, error: type[WeightdError]) -> None:
    async with running(tmp_path, one(DATA), attempts=1, receivers=1) as rig:

        def refused(path: str, offset: int, length: int) -> None:
            if offset // PART == 7:
                raise error("no")

        rig.origin.on_start = refused
        with pytest.raises(error):
            await rig.fetch()
        breaking(rig.origin)
        rig.origin.starts.clear()
        assert rig.content(await rig.fetch()) == {"model.bin": DATA}
        assert asked(rig.origin) == {7, 8, 9}


async def test_what_is_kept_gives_way_to_what_is_wanted(tmp_path: Path) -> None:
    other = "http://origin/other/"
    big = pattern(MIB, "big")
    origin = Origin({REF: {"model.bin": Served(DATA)}, other: {"big": Served(big)}})
    async with running(tmp_path, origin, nvme=MIB + PART, attempts=1, receivers=1) as rig:
        await interrupted(rig, Tier.NVME, 7)
        assert rig.content(await rig.fetch(other, tier=Tier.NVME)) == {"big": big}
        await rig.check_idle(blobs=1, segments=0)
        await rig.engine.pin(other)
        with pytest.raises(BudgetExceeded):
            await rig.fetch(tier=Tier.NVME)


async def test_what_is_kept_counts_once_when_it_is_resumed(tmp_path: Path) -> None:
    async with running(tmp_path, one(DATA), nvme=len(DATA) + 4096, attempts=1, receivers=1) as rig:
        for missing in (2, 5, 8):
            await interrupted(rig, Tier.NVME, missing)
        assert recorded(rig) == set(range(8))
        await rig.fetch(tier=Tier.NVME)
        assert asked(rig.origin) == {8, 9}


async def test_a_model_of_which_one_file_was_complete(tmp_path: Path) -> None:
    tensors = safetensors(3 * PART)
    origin = Origin({REF: {"a.safetensors": Served(tensors), "model.bin": Served(DATA)}})
    async with running(tmp_path, origin, attempts=1, receivers=1) as rig:
        await interrupted(rig, Tier.SHM, 8)
        model = await rig.fetch()
        assert {(path, offset // PART) for path, offset, _ in origin.starts} == {("model.bin", 8), ("model.bin", 9)}
        assert rig.content(model) == {"a.safetensors": tensors, "model.bin": DATA}
