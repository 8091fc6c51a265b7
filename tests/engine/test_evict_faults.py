"""What cannot be linked or unlinked stays as it was, and is served; what is damaged is not served in any case."""

from __future__ import annotations

import asyncio
import errno
import os
from contextlib import aclosing
from pathlib import Path

import pytest

from tests.engine.rig import MIB, SECONDS, Origin, Rig, Served, pattern, running, sha256
from tests.support.immutable import immutable
from weightd.core.errors import AccessDenied, Unavailable
from weightd.core.policy import Rule, Rules
from weightd.engine.api import EventKind, ModelState, Tier
from weightd.storage.places import Place

SIZE = MIB
FIRST, SECOND = "http://origin/first/", "http://origin/second/"
A, B, C = pattern(SIZE, "a"), pattern(SIZE, "b"), pattern(SIZE, "c")


def origin() -> Origin:
    return Origin({FIRST: {"a.bin": Served(A), "sub/b.bin": Served(B)}, SECOND: {"c.bin": Served(C)}})


def segment(rig: Rig, data: bytes) -> Path:
    (found,) = (p for p in rig.segments() if p.read_bytes() == data)
    return found


async def served(rig: Rig) -> None:
    """At once, from shared memory and through the directory."""
    hits = (await rig.engine.status()).counters.hits
    lease = await rig.acquire(FIRST)
    assert (await rig.engine.status()).counters.hits == hits + 1
    assert mapped(lease.model) == rig.content(lease.model) == {"a.bin": A, "sub/b.bin": B}
    lease.release()


def mapped(model: ModelState) -> dict[str, bytes]:
    """By its segments."""
    return {f.path: Path("/dev/shm" + f.segment).read_bytes() for f in model.files}


@pytest.mark.parametrize("where", ["", "sub"])
async def test_links_that_cannot_be_switched_keep_their_segments(tmp_path: Path, where: str) -> None:
    """None of them, or only some: those that were go back."""
    async with running(tmp_path, origin(), shm=2 * SIZE) as rig:
        model = await rig.fetch(FIRST, Tier.SHM)
        with immutable(Path(model.directory) / where):
            with pytest.raises(AccessDenied):
                await rig.engine.evict(FIRST)
            await rig.check_idle(blobs=2, segments=2)
            await served(rig)
            with pytest.raises(AccessDenied):
                await rig.acquire(SECOND)
            await rig.check_idle(blobs=2, segments=2)
            await served(rig)
        (await rig.acquire(SECOND)).release()
        await rig.check_idle(blobs=3, segments=1)


async def test_a_segment_that_cannot_be_unlinked_stays_and_the_others_go(tmp_path: Path) -> None:
    async with running(tmp_path, origin(), shm=2 * SIZE) as rig:
        await rig.fetch(FIRST, Tier.SHM)
        with immutable(segment(rig, A)):
            with pytest.raises(AccessDenied, match="cannot be removed"):
                await rig.engine.evict(FIRST)
            await rig.check_idle(blobs=2, segments=1)
            lease = await rig.acquire(FIRST)
            assert rig.content(lease.model) == {"a.bin": A, "sub/b.bin": B}
            lease.release()
            await served(rig)
            await rig.check_idle(blobs=2, segments=2)
        await rig.engine.evict(FIRST)
        await rig.check_idle(blobs=2, segments=0)


async def test_a_segment_that_cannot_be_looked_at_stays_and_is_served_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, origin()) as rig, asyncio.timeout(SECONDS):
        await rig.fetch(FIRST, Tier.SHM)

        def refused(place: Place, name: str) -> os.stat_result:
            raise PermissionError(errno.EACCES, "Permission denied")

        with monkeypatch.context() as patched:
            patched.setattr(Place, "stat", refused)
            with pytest.raises(Unavailable, match="Permission denied"):
                await rig.engine.evict(FIRST)
            await rig.engine._catalog.detach(rig.engine._catalog.blobs[sha256(A)])
            assert (await rig.engine.status()).shm.draining == SIZE
        while (await rig.engine.status()).shm.draining:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
        lease = await rig.acquire(FIRST)
        lease.release()
        await served(rig)
        await rig.engine.evict(FIRST)
        await rig.check_idle(blobs=2, segments=0)


async def test_a_damaged_segment_that_cannot_be_unlinked_is_not_served_and_counts_until_it_is_gone(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, origin()) as rig:
        await rig.fetch(FIRST, Tier.SHM)
        path = segment(rig, A)
        with immutable(path):
            await rig.engine._catalog.detach(rig.engine._catalog.blobs[sha256(A)])
            lease = await rig.acquire(FIRST)
            assert {f.segment for f in lease.model.files}.isdisjoint({f"/{path.name}"})
            assert rig.content(lease.model) == {"a.bin": A, "sub/b.bin": B}
            lease.release()
            status = await rig.engine.status()
            assert (status.shm.resident, status.shm.draining) == (2 * SIZE, SIZE)
        async with asyncio.timeout(10):
            while path.exists():  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
            while (await rig.engine.status()).shm.draining:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
        await rig.check_idle(blobs=2, segments=2)


async def test_what_is_left_of_one_that_was_removed_is_told_as_that(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its record has gone, and it is not held any more: only a file stays, for the next start."""
    third = "http://origin/third/"
    models = {SECOND: {"c.bin": Served(C)}, third: {"d.bin": Served(B)}}
    async with running(tmp_path, Origin(models), nvme=SIZE) as rig, aclosing(rig.engine.watch()) as events:
        coming = asyncio.ensure_future(anext(events))
        await rig.fetch(SECOND)
        with immutable(rig.blobs.path(sha256(C))):
            await rig.fetch(third)
        assert {m.ref for m in rig.engine.models()} == {third}
        (told,) = [r.getMessage() for r in caplog.records]
        assert told.startswith(f"{SECOND} is not held any more, but not all of it could be removed: ")
        kinds = [(await coming).kind]
        while EventKind.REMOVED not in kinds:
            kinds.append((await anext(events)).kind)


async def test_bytes_of_a_failed_fetch_that_cannot_be_removed_keep_nobody_from_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    third = "http://origin/third/"
    origin = Origin({FIRST: {"a.bin": Served(A), "b.bin": Served(b"b")}, third: {"d.bin": Served(C)}})
    origin.hold(lambda path, offset: path == "b.bin")
    async with running(tmp_path, origin, nvme=SIZE + MIB // 2) as rig, asyncio.timeout(SECONDS):
        left, catalog = rig.blobs.path(sha256(A)), rig.engine._catalog
        fetch = asyncio.create_task(rig.fetch(FIRST))
        while sha256(A) not in catalog.blobs:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
        fetch.cancel()
        await asyncio.wait([fetch])
        while rig.engine._fetcher._flights._tasks:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
        with immutable(left):
            await rig.fetch(third)
        assert str(left) in caplog.text


async def test_what_the_system_refuses_does_not_end_what_looks_for_idle_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told, tried again, and stops nothing else that is done in the background."""
    monkeypatch.setattr("weightd.engine.evict.SWEEP_S", 0.01)
    rules = Rules(other=Rule(keep_idle=0.0))
    models, aside = tmp_path / "models", tmp_path / "aside"
    async with running(tmp_path, origin(), residency={"rules": rules}) as rig, asyncio.timeout(SECONDS):
        await rig.fetch(FIRST, Tier.SHM)
        models.rename(aside)
        models.symlink_to(models)  # ELOOP, for which there is no error of ours
        tending = asyncio.create_task(rig.engine.tend())
        try:
            while f"{FIRST} stays in shared memory" not in caplog.text:
                assert not tending.done(), tending.exception()
                await asyncio.sleep(0.01)
            await rig.check_idle(blobs=2, segments=2)
            models.unlink()
            aside.rename(models)
            while rig.segments():
                assert not tending.done(), tending.exception()
                await asyncio.sleep(0.01)
        finally:
            tending.cancel()
            await asyncio.wait([tending])
        await rig.check_idle(blobs=2, segments=0)
