"""What goes wrong on the way: a typed error that names the file, nothing behind, and the engine works on."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.engine.rig import PART, REF, Origin, Served, one, pattern, running, safetensors, sha256
from weightd.core.errors import (
    BudgetExceeded,
    DigestMismatch,
    FormatError,
    PathInTheWay,
    SizeMismatch,
    SourceChanged,
    SourceNotFound,
    SourceUnavailable,
    WeightdError,
)
from weightd.core.lifecycle import Residency
from weightd.core.verification import Verification
from weightd.engine.api import Tier

DATA = pattern(9 * PART + 1)
BOTH = pytest.mark.parametrize("tier", list(Tier))


@BOTH
async def test_wrong_digest(tmp_path: Path, tier: Tier) -> None:
    origin = one(DATA, digest=sha256(b"other"))
    async with running(tmp_path, origin) as rig:
        with pytest.raises(DigestMismatch) as caught:
            await rig.fetch(tier=tier)
        assert (caught.value.ref, caught.value.file) == (REF, "model.bin")
        await rig.check_idle(blobs=0, segments=0)
        assert rig.engine.models() == []
        origin.models[REF]["model.bin"].digest = sha256(DATA)
        model = await rig.fetch(tier=tier)
        assert (rig.content(model), model.verification) == ({"model.bin": DATA}, Verification.SHA256)


@BOTH
async def test_the_callers_digest(tmp_path: Path, tier: Tier) -> None:
    async with running(tmp_path, one(DATA)) as rig:
        with pytest.raises(DigestMismatch):
            await rig.fetch(tier=tier, sha256=sha256(b"other"))
        await rig.check_idle(blobs=0, segments=0)
        assert (await rig.fetch(tier=tier, sha256=sha256(DATA))).verification is Verification.SHA256


@BOTH
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 8,
        b"\xff" * 100,
        pattern(3 * PART),
        safetensors(3 * PART) + b"x",
        safetensors(3 * PART)[:-1],
        safetensors(0)[:-1],
    ],
    ids=["empty", "zeros", "huge", "noise", "longer", "shorter", "cut header"],
)
async def test_a_bad_header_is_never_visible(tmp_path: Path, tier: Tier, data: bytes) -> None:
    good = safetensors(2 * PART)
    origin = Origin({REF: {"bad.safetensors": Served(data), "good.safetensors": Served(good)}})
    async with running(tmp_path, origin) as rig:
        with pytest.raises(FormatError) as caught:
            await rig.fetch(tier=tier)
        assert caught.value.file == "bad.safetensors"
        assert rig.engine.models() == []
        committed = len(list(rig.blobs.digests()))
        await rig.check_idle(blobs=committed, segments=len(rig.segments()), kept=1)
        assert sha256(data) not in set(rig.blobs.digests())
        assert not (tmp_path / "models").exists() or list((tmp_path / "models").iterdir()) == []


@BOTH
@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("times", [1, 3])
async def test_an_origin_that_breaks_off_and_comes_back(
    tmp_path: Path, tier: Tier, ranges: bool, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first, a middle and the last part fail a few times each; a stream starts over and skips what it has."""
    _no_backoff(monkeypatch)
    left = dict.fromkeys((0, 4 * PART, 9 * PART), times)

    def broken(path: str, offset: int, length: int) -> None:
        for at, more in left.items():
            if offset <= at < offset + length and more:
                left[at] -= 1
                raise SourceUnavailable("reset by peer")

    origin = one(DATA, ranges=ranges)
    origin.on_read = broken
    async with running(tmp_path, origin) as rig:
        model = await rig.fetch(tier=tier)
        assert rig.content(model) == {"model.bin": DATA}
        assert model.files[0].digest == sha256(DATA)
        assert set(left.values()) == {0}
        await rig.check_idle(blobs=1, segments=int(tier is Tier.SHM))


@BOTH
@pytest.mark.parametrize("ranges", [True, False])
async def test_an_origin_that_stays_away(
    tmp_path: Path, tier: Tier, ranges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    _no_backoff(monkeypatch)
    origin = one(DATA, ranges=ranges)
    origin.on_read = _raising(SourceUnavailable("reset by peer"), at=4 * PART)
    async with running(tmp_path, origin, attempts=3) as rig:
        with pytest.raises(SourceUnavailable) as caught:
            await rig.fetch(tier=tier)
        assert (caught.value.ref, caught.value.file) == (REF, "model.bin")
        asked = origin.starts["model.bin", 4 * PART, PART] if ranges else origin.starts["model.bin", 0, len(DATA)]
        assert asked == (3 if ranges else 4)
        await rig.check_idle(blobs=0, segments=0, kept=1)


@BOTH
@pytest.mark.parametrize("error", [SizeMismatch, SourceNotFound])
async def test_what_no_retry_mends_is_not_tried_again(tmp_path: Path, tier: Tier, error: type[WeightdError]) -> None:
    origin = one(DATA)
    origin.on_start = _raising(error("no"), at=3 * PART)
    async with running(tmp_path, origin) as rig:
        with pytest.raises(error) as caught:
            await rig.fetch(tier=tier)
        assert caught.value.file == "model.bin"
        assert origin.starts["model.bin", 3 * PART, PART] == 1
        await rig.check_idle(blobs=0, segments=0, kept=1)


def _changing(origin: Origin, versions: list[bytes]) -> None:
    """Each time its fourth part is asked for, the origin has a new version, until there is none left."""

    def change(path: str, offset: int, length: int) -> None:
        if offset == 3 * PART and versions:
            origin.models[REF][path] = Served(versions.pop(0))
            raise SourceChanged("its ETag is another", file=path)

    origin.on_start = change


@BOTH
async def test_a_source_that_changes_is_fetched_anew(tmp_path: Path, tier: Tier) -> None:
    origin, new = one(DATA), pattern(len(DATA), "new")
    _changing(origin, [new])
    async with running(tmp_path, origin, receivers=1) as rig:
        model = await rig.fetch(tier=tier)
        assert rig.content(model) == {"model.bin": new}
        assert origin.resolved == 2
        assert rig.engine.model(REF).revision == model.revision
        await rig.check_idle(blobs=1, segments=int(tier is Tier.SHM))


@BOTH
async def test_a_source_that_changes_again_is_an_error(tmp_path: Path, tier: Tier) -> None:
    origin = one(DATA)
    _changing(origin, [pattern(len(DATA), "new"), pattern(len(DATA), "newer")])
    async with running(tmp_path, origin) as rig:
        with pytest.raises(SourceChanged) as caught:
            await rig.fetch(tier=tier)
        assert (caught.value.ref, caught.value.file) == (REF, "model.bin")
        assert origin.resolved == 2
        assert rig.engine.models() == []
        await rig.check_idle(blobs=0, segments=0)


async def test_a_damaged_blob_whose_origin_has_another_version(tmp_path: Path) -> None:
    """What was held cannot be made whole: what the ref means now takes its place."""
    origin, new = one(DATA), pattern(len(DATA), "new")
    async with running(tmp_path, origin) as rig:
        old = await rig.fetch()
        _damage(rig.blobs.path(sha256(DATA)), "zeroed")
        _changing(origin, [new])
        lease = await rig.acquire()
        assert rig.content(lease.model) == {"model.bin": new}
        assert lease.model.revision != old.revision


@BOTH
async def test_a_slow_part_does_not_starve_the_rest_of_memory(
    tmp_path: Path, tier: Tier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first part is tried again only when the other receivers took all the memory that there is."""
    data = pattern(100 * PART)
    origin = one(data)
    loop = asyncio.get_running_loop()
    waits: list[int] = []

    def wait_for_the_others(attempt: int, draw: float, base: float) -> float:
        asyncio.run_coroutine_threadsafe(_settled(origin), loop).result()
        waits.append(attempt)
        return 0.0

    monkeypatch.setattr("weightd.engine.receiver.full_jitter", wait_for_the_others)

    def first_fails(path: str, offset: int, length: int) -> None:
        if offset == 0 and origin.starts["model.bin", 0, PART] == 1:
            raise SourceUnavailable("reset by peer")

    origin.on_read = first_fails
    async with running(tmp_path, origin) as rig:
        assert rig.content(await rig.fetch(tier=tier)) == {"model.bin": data}
        assert waits == [1]


async def _settled(origin: Origin) -> None:
    """Until no new request comes for a while."""
    before = -1
    while before != (before := sum(origin.starts.values())):  # noqa: ASYNC110 - quiet has no event
        await asyncio.sleep(0.1)


@BOTH
async def test_a_model_larger_than_the_budget(tmp_path: Path, tier: Tier) -> None:
    origin = Origin({REF: {"a": Served(DATA), "b": Served(pattern(PART, "b"))}})
    small = len(DATA) + PART
    for budget in ({"shm": small}, {"nvme": small}) if tier is Tier.SHM else ({"nvme": small},):
        async with running(tmp_path, origin, **budget) as rig:
            with pytest.raises(BudgetExceeded) as caught:
                await rig.fetch(tier=tier)
            assert "missing" in caught.value.message
            assert caught.value.ref == REF
            assert origin.starts == {}
            await rig.check_idle(blobs=0, segments=0)


async def test_memory_too_small_is_said_before_a_load(tmp_path: Path) -> None:
    async with running(tmp_path, one(DATA), shm=PART) as rig:
        await rig.fetch()
        with pytest.raises(BudgetExceeded):
            await rig.acquire()
        assert rig.engine._leases.granted == 0
        await rig.check_idle(blobs=1, segments=0)


async def test_a_budget_is_used_up_to_its_last_page(tmp_path: Path) -> None:
    size = 4096 * 10
    origin = Origin({REF: {f"{i}": Served(pattern(4096, i)) for i in range(10)}})
    async with running(tmp_path, origin, shm=size, nvme=size) as rig:
        (await rig.acquire()).release()
        status = await rig.engine.status()
        assert (status.shm.resident, status.nvme.resident) == (size, size)


async def test_a_file_whose_size_belies_its_digest(tmp_path: Path) -> None:
    longer = "http://origin/longer/"
    origin = Origin({REF: {"a": Served(DATA, sha256(DATA))}, longer: {"b": Served(DATA + b"x", sha256(DATA))}})
    async with running(tmp_path, origin) as rig:
        await rig.fetch(REF)
        with pytest.raises(SizeMismatch):
            await rig.fetch(longer, Tier.SHM)
        await rig.check_idle(blobs=1, segments=0)
        assert [m.ref for m in rig.engine.models()] == [REF]


async def test_one_digest_for_two_sizes(tmp_path: Path) -> None:
    files = {"a": Served(DATA, sha256(DATA)), "b": Served(DATA + b"x", sha256(DATA))}
    async with running(tmp_path, Origin({REF: files})) as rig:
        with pytest.raises(DigestMismatch):
            await rig.fetch(tier=Tier.SHM)
        assert rig.engine.models() == []


async def test_the_origin_changes_between_two_fetches(tmp_path: Path) -> None:
    origin = one(DATA)
    async with running(tmp_path, origin) as rig:
        old = await rig.acquire()
        changed = pattern(len(DATA), "new")
        origin.models[REF]["model.bin"] = Served(changed)
        new = await rig.fetch(tier=Tier.SHM)
        assert new.revision != old.model.revision
        assert (rig.content(old.model), rig.content(new)) == ({"model.bin": DATA}, {"model.bin": changed})
        assert rig.engine.model(REF).revision == new.revision
        old.release()
        assert rig.engine._leases.granted == 0


async def test_an_older_snapshot_does_not_come_back(tmp_path: Path) -> None:
    """A load of what is held ends after a fetch of what is newer."""
    origin = one(DATA)
    async with running(tmp_path, origin, transfers=1) as rig:
        held = await rig.fetch(tier=Tier.NVME)
        origin.models[REF]["model.bin"] = Served(pattern(PART, "new"))
        origin.hold()
        fetch = asyncio.create_task(rig.fetch(tier=Tier.NVME))
        await asyncio.to_thread(origin.reached.wait, 10)
        (flight,) = rig.engine._fetcher._flights._flights.values()
        rig.engine._lanes.urge(flight)  # so that the load has to wait for its place
        acquire = asyncio.create_task(rig.acquire())
        while rig.engine._catalog.shm.reserved == 0:  # noqa: ASYNC110 - the engine has no event for it
            await asyncio.sleep(0)
        origin.release()
        new, lease = await fetch, await acquire
        assert held.revision != new.revision == lease.model.revision == rig.engine.model(REF).revision


@pytest.mark.parametrize("damage", ["zeroed", "truncated", "emptied", "deleted", "symlink", "fifo"])
async def test_a_damaged_blob_is_fetched_again(tmp_path: Path, damage: str) -> None:
    other = "http://origin/other/"
    files = {"a": Served(DATA), "b": Served(pattern(PART, "b"))}
    origin = Origin({REF: files, other: {"c": Served(DATA, sha256(DATA))}})
    async with running(tmp_path, origin) as rig:
        await rig.fetch(other)
        await rig.fetch()
        origin.starts.clear()
        _damage(rig.blobs.path(sha256(DATA)), damage)
        lease = await rig.acquire()
        assert rig.content(lease.model) == {p: f.data for p, f in files.items()}
        assert {path for path, _, _ in origin.starts} == {"a"}
        assert rig.content((await rig.acquire(other)).model) == {"c": DATA}
        assert rig.engine.model(REF).leases == 1
        assert rig.blobs.path(sha256(DATA)).read_bytes() == DATA
        await rig.check_idle(blobs=2, segments=2)


async def test_a_directory_in_the_place_of_a_blob(tmp_path: Path) -> None:
    async with running(tmp_path, one(DATA)) as rig:
        await rig.fetch()
        place = rig.blobs.path(sha256(DATA))
        _damage(place, "directory")
        for _ in range(2):
            with pytest.raises(PathInTheWay):
                await rig.acquire()
        place.rmdir()
        assert rig.content((await rig.acquire()).model) == {"model.bin": DATA}


async def test_a_damaged_blob_whose_origin_is_down_stays_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _no_backoff(monkeypatch)
    origin = one(DATA)
    async with running(tmp_path, origin) as rig:
        await rig.fetch()
        _damage(rig.blobs.path(sha256(DATA)), "zeroed")
        origin.on_start = _raising(SourceUnavailable("down"), at=0)
        for _ in range(2):
            with pytest.raises(SourceUnavailable):
                await rig.acquire()
            await rig.check_idle(blobs=0, segments=0, kept=1)
        assert rig.engine.model(REF).residency(Tier.NVME) is Residency.ABSENT
        origin.on_start = lambda path, offset, length: None
        assert rig.content((await rig.acquire()).model) == {"model.bin": DATA}


async def test_a_damaged_blob_whose_origin_has_other_bytes_now(tmp_path: Path) -> None:
    origin = one(DATA)
    async with running(tmp_path, origin) as rig:
        await rig.fetch()
        _damage(rig.blobs.path(sha256(DATA)), "zeroed")
        origin.models[REF]["model.bin"].data = pattern(len(DATA), "other")
        with pytest.raises(DigestMismatch):
            await rig.acquire()
        await rig.check_idle(blobs=0, segments=0, kept=1)


async def test_something_in_the_way_of_the_models_directory(tmp_path: Path) -> None:
    async with running(tmp_path, one(DATA)) as rig:
        directory = Path((await rig.fetch()).directory)
        moved = directory.with_name("moved")
        os.rename(directory, moved)
        os.symlink("moved", directory)
        with pytest.raises(PathInTheWay):
            await rig.acquire()
        assert rig.engine._leases.granted == 0
        os.unlink(directory)
        os.rename(moved, directory)
        assert rig.content((await rig.acquire()).model) == {"model.bin": DATA}
        await rig.check_idle(blobs=1, segments=1)


async def test_a_segment_that_somebody_deletes_while_it_is_filled(tmp_path: Path) -> None:
    origin = one(DATA)
    origin.hold()
    async with running(tmp_path, origin) as rig:
        task = asyncio.create_task(rig.acquire())
        await asyncio.to_thread(origin.reached.wait, 10)
        for path in rig.segments():
            path.unlink()
        origin.release()
        with pytest.raises(WeightdError, match="removed"):
            await task
        assert rig.content((await rig.acquire()).model) == {"model.bin": DATA}
        await rig.check_idle(blobs=1, segments=1)


async def test_errors_and_answers_hold_no_credentials(tmp_path: Path) -> None:
    ref = "http://user:secret@origin/model/?key=secret"
    origin = Origin({ref: {"a": Served(DATA)}})
    async with running(tmp_path, origin, nvme=PART) as rig:
        with pytest.raises(BudgetExceeded) as caught:
            await rig.fetch(ref)
        assert "secret" not in f"{caught.value} {caught.value.ref}"
    async with running(tmp_path, origin) as rig:
        model = await rig.fetch(ref)
        assert "secret" not in repr(model)
    async with running(tmp_path, origin) as rig:
        assert "secret" not in repr(rig.engine.models())
        assert rig.content(rig.engine.model(ref)) == {"a": DATA}


def _no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightd.engine.receiver.full_jitter", lambda attempt, draw, base: 0.0)


def _raising(error: WeightdError, at: int):
    def hook(path: str, offset: int, length: int) -> None:
        if offset <= at < offset + length:
            raise type(error)(error.message)

    return hook


def _damage(path: Path, how: str) -> None:
    if how == "zeroed":
        path.write_bytes(bytes(path.stat().st_size))
    elif how == "truncated":
        os.truncate(path, path.stat().st_size - 1)
    elif how == "emptied":
        os.truncate(path, 0)
    else:
        path.rename(path.with_name("elsewhere"))
        if how == "directory":
            path.mkdir()
        elif how == "symlink":
            path.symlink_to("elsewhere")
        elif how == "fifo":
            os.mkfifo(path)
