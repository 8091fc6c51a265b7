"""Verified by a CRC alone: computed part by part, compared at the end, mended, recorded, and never claimed unproven."""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing
from pathlib import Path

import pytest

from tests.engine.rig import PART, REF, Origin, Rig, Served, moving_threads, one, pattern, running, sha256
from tests.engine.test_mend import Liar, asked, names
from tests.engine.test_scrub import flip
from weightd.core.crc import Crc, CrcAlgorithm
from weightd.core.errors import CrcMismatch, DependencyMissing, DigestMismatch, SourceUnavailable
from weightd.core.verification import Verification
from weightd.engine import jobs
from weightd.engine.api import EventKind, FileCheck, Tier
from weightd.engine.crcs import crc_of
from weightd.engine.export import fetch_to
from weightd.engine.transfer import TransferOptions

PARTS = 10
DATA = pattern(PARTS * PART - 7)
OTHER = "http://origin/other/"
BOTH = pytest.mark.parametrize("tier", list(Tier))
OPTIONS = TransferOptions(part_size=PART, receivers=1)


def crc(data: bytes = DATA, algorithm: CrcAlgorithm = CrcAlgorithm.CRC64NVME) -> Crc:
    return Crc(algorithm, crc_of(algorithm, memoryview(data)))


RIGHT, WRONG = crc(), crc(b"other")


async def check(rig: Rig, level: Verification, ref: str = REF) -> None:
    """This is the level in every answer of the engine."""
    model = rig.engine.model(ref)
    assert (model.verification, model.files[0].verification) == (level, level)
    async with aclosing(rig.engine.verify(ref)) as found:
        checks = [f async for f in found if isinstance(f, FileCheck)]
    # An old snapshot, of the same bytes, is as verified as they are.
    assert checks[0].revision == model.revision
    assert {f.verification for f in checks} == {level}


@pytest.mark.parametrize(
    ("algorithm", "value"),
    [
        (CrcAlgorithm.CRC32, 0xCBF43926),
        (CrcAlgorithm.CRC32C, 0xE3069283),
        (CrcAlgorithm.CRC64NVME, 0xAE8B14860A799888),
    ],
)
def test_what_computes_them(algorithm: CrcAlgorithm, value: int) -> None:
    assert crc_of(algorithm, memoryview(bytearray(b"123456789"))) == value


@pytest.mark.parametrize("size", [1, PART - 1, PART, PART + 1, 7 * PART, len(DATA)])
@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("algorithm", list(CrcAlgorithm))
async def test_the_right_crc(tmp_path: Path, algorithm: CrcAlgorithm, ranges: bool, size: int) -> None:
    data = DATA[:size]
    async with running(tmp_path, one(data, crc=crc(data, algorithm), ranges=ranges)) as rig:
        model = await rig.fetch(tier=Tier.SHM)
        assert rig.content(model) == {"model.bin": data}
        assert model.files[0].digest == sha256(data)
        await check(rig, Verification.CRC)
        await rig.check_idle(blobs=1, segments=1)
    async with running(tmp_path, Origin()) as rig:
        await check(rig, Verification.CRC)


@BOTH
@pytest.mark.parametrize("ranges", [True, False])
async def test_the_wrong_crc(tmp_path: Path, ranges: bool, tier: Tier) -> None:
    async with running(tmp_path, one(DATA, crc=WRONG, ranges=ranges)) as rig:
        with pytest.raises(CrcMismatch) as e:
            await rig.fetch(tier=tier)
        assert (e.value.file, e.value.ref) == ("model.bin", REF)
        assert str(WRONG) in e.value.message
        assert str(RIGHT) in e.value.message
        assert asked(rig.origin) == (dict.fromkeys(range(PARTS), 2) if ranges else {0: 1})
        await rig.check_idle(blobs=0, segments=0)


async def test_files_without_bytes(tmp_path: Path) -> None:
    empty, wrong = Served(b"", crc=crc(b"")), Served(b"", crc=WRONG)
    async with running(tmp_path, Origin({REF: {"a": empty}, OTHER: {"a": wrong}})) as rig:
        await rig.fetch()
        await check(rig, Verification.CRC)
        rig.origin.models[OTHER]["a"].etag = '"elsewhere"'
        with pytest.raises(CrcMismatch):
            await rig.fetch(OTHER)


@BOTH
@pytest.mark.parametrize("wrong", [{0: 1}, {2: 1, 4: 1}, {9: 1}])
async def test_a_part_that_was_damaged_in_transit_is_mended(tmp_path: Path, wrong: dict[int, int], tier: Tier) -> None:
    liar = Liar(wrong, digest=None, crc=RIGHT, etag='"1"')
    async with running(tmp_path, liar.origin, receivers=1) as rig:
        async with aclosing(rig.engine.watch()) as events:
            seen = asyncio.ensure_future(anext(e async for e in events if e.kind is EventKind.REPAIRED))
            await asyncio.sleep(0)
            model = await rig.fetch(tier=tier)
            assert (await seen).detail.startswith(f"model.bin: {len(wrong)} of {PARTS} parts were wrong")
        assert rig.content(model) == {"model.bin": DATA}
        assert model.files[0].digest == sha256(DATA)
        await check(rig, Verification.CRC)
        await rig.check_idle(blobs=1, segments=int(tier is Tier.SHM))


@BOTH
async def test_an_origin_that_lies_twice(tmp_path: Path, tier: Tier) -> None:
    liar = Liar({4: 9}, digest=None, crc=RIGHT, etag='"1"')
    async with running(tmp_path, liar.origin, receivers=1) as rig:
        with pytest.raises(CrcMismatch):
            await rig.fetch(tier=tier)
        await rig.check_idle(blobs=0, segments=0)


@BOTH
@pytest.mark.parametrize("lies", [{}, {2: 1}])
async def test_what_was_held_counts(tmp_path: Path, lies: dict[int, int], tier: Tier) -> None:
    """Resumed: its CRC is that of all parts, proven and received; one that was wrong when it was recorded is found."""
    liar = Liar(lies, digest=None, crc=RIGHT, etag='"1"')
    choose = liar.origin.on_start

    def breaking(path: str, offset: int, length: int) -> None:
        choose(path, offset, length)
        if offset >= 6 * PART:
            raise SourceUnavailable("reset by peer")

    liar.origin.on_start = breaking
    async with running(tmp_path, liar.origin, receivers=1, attempts=1) as rig:
        with pytest.raises(SourceUnavailable):
            await rig.fetch(tier=tier)
    liar.origin.starts.clear()
    liar.origin.on_start = choose
    async with running(tmp_path, liar.origin, receivers=1) as rig:
        assert rig.content(await rig.fetch(tier=tier)) == {"model.bin": DATA}
        assert asked(liar.origin).keys() >= {6, 7, 8, 9}
        if not lies:
            assert asked(liar.origin) == dict.fromkeys(range(6, PARTS), 1)
        await check(rig, Verification.CRC)


async def test_a_digest_goes_before_a_crc(tmp_path: Path) -> None:
    async with running(tmp_path, one(DATA, digest=sha256(DATA), crc=WRONG)) as rig:
        await rig.fetch()
        await check(rig, Verification.SHA256)
    async with running(tmp_path / "2", one(DATA, digest=sha256(b"other"), crc=RIGHT)) as rig:
        with pytest.raises(DigestMismatch):
            await rig.fetch()


async def test_no_crc_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(algorithm: CrcAlgorithm, view: memoryview) -> int:
        raise AssertionError("computed for nobody")

    monkeypatch.setattr(jobs, "crc_of", never)
    files = {"a": Served(DATA), "b": Served(DATA[:-1], sha256(DATA[:-1]), crc=WRONG)}
    async with running(tmp_path, Origin({REF: files})) as rig:
        await rig.fetch(tier=Tier.SHM)
        assert rig.engine.model(REF).verification is Verification.SIZE


async def test_a_repair_compares_with_the_crc_again(tmp_path: Path) -> None:
    async with running(tmp_path, one(DATA, crc=RIGHT)) as rig:
        await rig.fetch()
        flip(rig.blobs.path(sha256(DATA)))
        rig.origin.starts.clear()
        assert rig.content((await rig.acquire()).model) == {"model.bin": DATA}
        assert asked(rig.origin) == {5: 1}
        await check(rig, Verification.CRC)


async def test_a_crc_that_recorded_bytes_do_not_have_verifies_nothing(tmp_path: Path) -> None:
    """The digest decides whether a repair is right: the bytes are those that came first."""
    async with running(tmp_path, one(DATA)) as rig:
        await rig.fetch()
        rig.origin.models[REF]["model.bin"].crc = WRONG
        await rig.fetch()
        flip(rig.blobs.path(sha256(DATA)))
        assert rig.content((await rig.acquire()).model) == {"model.bin": DATA}
        await check(rig, Verification.SIZE)


async def test_a_level_is_never_claimed_unproven(tmp_path: Path) -> None:
    """Bytes that came without a CRC are not verified by one that is heard of later, before they come once more."""
    async with running(tmp_path, one(DATA)) as rig:
        await rig.fetch()
        await check(rig, Verification.SIZE)
        rig.origin.models[REF]["model.bin"].crc = RIGHT
        rig.origin.starts.clear()
        await rig.fetch()
        assert not rig.origin.starts
        await check(rig, Verification.SIZE)
        rig.origin.models[OTHER] = {"m": Served(DATA, crc=RIGHT)}
        await rig.fetch(OTHER)
        assert rig.origin.starts
        await check(rig, Verification.CRC)
        await check(rig, Verification.CRC, OTHER)


async def test_a_level_never_goes_down(tmp_path: Path) -> None:
    """Neither when the same bytes come from who gives less, nor when they are fetched again because they were lost."""
    models = {REF: {"a": Served(DATA, crc=RIGHT)}, OTHER: {"b": Served(DATA)}}
    async with running(tmp_path, Origin(models)) as rig:
        await rig.fetch(REF)
        await rig.fetch(OTHER)
        await check(rig, Verification.CRC, OTHER)
        await rig.fetch(REF, sha256=sha256(DATA))
        await rig.engine._retirer.idle()  # The snapshot of which less was known goes.
        await check(rig, Verification.SHA256, OTHER)
        flip(rig.blobs.path(sha256(DATA)))
        await rig.acquire(OTHER)
        await check(rig, Verification.SHA256, OTHER)
        await check(rig, Verification.SHA256, REF)
    async with running(tmp_path, Origin()) as rig:
        await check(rig, Verification.SHA256, OTHER)


async def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "awscrt", None)
    async with running(tmp_path, one(DATA, crc=RIGHT)) as rig:
        with pytest.raises(DependencyMissing) as e:
            await rig.fetch(tier=Tier.SHM)
        assert "awscrt" in e.value.message
        assert "weightd[daemon]" in e.value.remedy
        await rig.check_idle(blobs=0, segments=0)


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("lies", [{}, {3: 1}])
async def test_without_a_daemon(tmp_path: Path, lies: dict[int, int], ranges: bool) -> None:
    liar = Liar(lies if ranges else {}, digest=None, crc=RIGHT, etag='"1"', ranges=ranges)
    (file,) = await fetch_to(REF, tmp_path / "out", sources=liar.origin, options=OPTIONS)
    assert (file.verification, file.digest) == (Verification.CRC, sha256(DATA))
    assert file.repaired == (tuple(lies) if ranges else ())
    assert (tmp_path / "out/model.bin").read_bytes() == DATA
    assert moving_threads() == []


@pytest.mark.parametrize("size", [0, 1, len(DATA)])
async def test_without_a_daemon_a_wrong_crc_leaves_nothing(tmp_path: Path, size: int) -> None:
    origin = one(DATA[:size], crc=WRONG)
    with pytest.raises(CrcMismatch):
        await fetch_to(REF, tmp_path / "out", sources=origin, options=OPTIONS)
    assert names(tmp_path) == []
