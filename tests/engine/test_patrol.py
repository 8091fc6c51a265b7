"""Verification in the background: it finds what is damaged, gives way to everybody, and survives whatever it meets."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from math import inf
from pathlib import Path

import pytest

from tests.engine.rig import PART, REF, SECONDS, Origin, Rig, Served, one, pattern, running, sha256
from tests.engine.test_scrub import flip, gone, segment
from tests.support.serving import until
from weightd.core import patrol as core_patrol
from weightd.core.digest import Digest
from weightd.core.errors import AlreadyRunning, DiskFull
from weightd.engine import patrol as module
from weightd.engine.api import CopyState, Event, EventKind, FileCheck, Tier, VerifyStatus
from weightd.engine.patrol import PatrolOptions
from weightd.kernel import reads_last
from weightd.storage.blobs import DirectoryBlobStore

DATA = pattern(40 * PART + 3)
OTHER = "http://origin/other/"
OTHER_DATA = pattern(10 * PART, "other")
OFTEN = PatrolOptions(0.05)
RARELY = PatrolOptions(1e6)
CRAWL = 64 << 10
"""Bytes per second: a reading of DATA takes 40 s, twice as long as a test may."""


class Reads:
    """Which blobs are read from disk, in order, as seen below the store."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[Digest] = []
        self.fails: list[BaseException] = []
        read = DirectoryBlobStore.read

        def noted(store: DirectoryBlobStore, digest: Digest, offset: int, view: memoryview) -> None:
            self.seen.append(digest)
            if self.fails:
                raise self.fails.pop()
            read(store, digest, offset, view)

        monkeypatch.setattr(DirectoryBlobStore, "read", noted)

    async def more(self, than: int | None = None) -> None:
        """Wait for one more."""
        than = len(self.seen) if than is None else than
        await until(lambda: len(self.seen) > than, "nothing is read")


class Events:
    """What the engine tells. `next` waits for one of `kinds`, and returns it."""

    def __init__(self, rig: Rig, *kinds: EventKind) -> None:
        self._stream, self._kinds = rig.engine.watch(), kinds
        self._coming = asyncio.ensure_future(anext(self._stream))

    async def next(self) -> Event:
        async with asyncio.timeout(SECONDS):
            while True:
                event = await self._coming
                self._coming = asyncio.ensure_future(anext(self._stream))
                if event.kind in self._kinds:
                    return event

    async def close(self) -> None:
        self._coming.cancel()
        await asyncio.wait([self._coming])
        await self._stream.aclose()


def reading() -> bool:
    """Whether a copy is read."""
    return any(t.name == "weightd-verify" for t in threading.enumerate())


@asynccontextmanager
async def patrolling(rig: Rig) -> AsyncIterator[asyncio.Task[None]]:
    """The task, which must neither fail nor end by itself, and ends at once when it is cancelled."""
    task = asyncio.create_task(rig.engine.patrol())
    try:
        yield task
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.wait([task], timeout=SECONDS)
    assert task.cancelled()
    await until(lambda: not reading())  # a thread ends after it has told its result


@asynccontextmanager
async def watched(rig: Rig) -> AsyncIterator[Events]:
    events = Events(rig, EventKind.DAMAGED, EventKind.REPAIRED)
    try:
        yield events
    finally:
        await events.close()


def two() -> Origin:
    return Origin({REF: {"model.bin": Served(DATA)}, OTHER: {"other.bin": Served(OTHER_DATA)}})


def blob(rig: Rig, data: bytes = DATA) -> Path:
    return rig.blobs.path(sha256(data))


def forget(root: Path, *data: bytes) -> None:
    """As if these had never been verified."""
    db = sqlite3.connect(root / "state.db")
    with db:
        for one in data:
            db.execute("UPDATE blobs SET last_verified = 0 WHERE digest = ?", (sha256(one),))
    db.close()


def recorded(root: Path) -> dict[str, float]:
    db = sqlite3.connect(root / "state.db")
    found = dict(db.execute("SELECT digest, last_verified FROM blobs"))
    db.close()
    return found


async def status(rig: Rig) -> VerifyStatus:
    return (await rig.engine.status()).verify


async def verify(rig: Rig, ref: str = "") -> list[FileCheck]:
    async with asyncio.timeout(SECONDS), aclosing(rig.engine.verify(ref)) as events:
        return [e async for e in events if isinstance(e, FileCheck)]


def damage(kind: str, path: Path) -> None:
    if kind == "flip":
        flip(path)
    elif kind == "delete":
        path.unlink()
    else:
        path.chmod(0o600)
        os.truncate(path, 39 * PART)


async def test_without_a_period_nothing_is_read(tmp_path: Path) -> None:
    async with running(tmp_path, one(DATA)) as rig:
        await rig.fetch()
        await rig.engine.patrol()
        assert await status(rig) == VerifyStatus(oldest=rig.engine.model(REF).last_verified)


@pytest.mark.parametrize("kind", ["flip", "truncate", "delete"])
async def test_damage_on_disk_is_found_and_mended(tmp_path: Path, kind: str) -> None:
    async with running(tmp_path, one(DATA), patrol=OFTEN) as rig, watched(rig) as events:
        await rig.fetch()
        rig.origin.starts.clear()
        damage(kind, blob(rig))
        async with patrolling(rig):
            assert [(await events.next()).kind.name for _ in range(2)] == ["DAMAGED", "REPAIRED"]
            assert {o // PART for _, o, _ in rig.origin.starts} == {
                "flip": {5}, "truncate": {39, 40}, "delete": set(range(41)),
            }[kind]  # fmt: skip
            assert blob(rig).read_bytes() == DATA
            found = await status(rig)
            assert (found.every, found.damaged, found.repaired, found.lost) == (0.05, 1, 1, 0)
            await until(lambda: rig.engine.model(REF).last_verified > found.oldest)
        await rig.check_idle(blobs=1, segments=0)


async def test_damage_in_shared_memory_is_found_and_mended(tmp_path: Path) -> None:
    async with running(tmp_path, one(DATA), patrol=OFTEN) as rig, watched(rig) as events:
        lease = await rig.acquire()
        gone(rig.origin)
        old = segment(rig)
        flip(old)
        async with patrolling(rig):
            assert "in shared memory, which 1 leases" in (await events.next()).detail
            assert (await events.next()).kind is EventKind.REPAIRED
        assert segment(rig) != old
        assert segment(rig).read_bytes() == DATA
        lease.release()
        await rig.check_idle(blobs=1, segments=1)


async def test_damage_on_disk_is_mended_from_shared_memory(tmp_path: Path) -> None:
    async with running(tmp_path, one(DATA), patrol=OFTEN) as rig, watched(rig) as events:
        await rig.fetch(tier=Tier.SHM)
        gone(rig.origin)
        flip(blob(rig))
        async with patrolling(rig):
            assert [(await events.next()).kind.name for _ in range(2)] == ["DAMAGED", "REPAIRED"]
            before = rig.engine.model(REF).last_verified
            await until(lambda: rig.engine.model(REF).last_verified > before)
        assert blob(rig).read_bytes() == DATA
        await rig.check_idle(blobs=1, segments=1)


async def test_what_a_fetch_and_a_command_verified_is_recorded(tmp_path: Path) -> None:
    async with running(tmp_path, two()) as rig:
        await rig.fetch()
        fetched = rig.engine.model(REF).last_verified
        await rig.fetch(OTHER)
        assert (await status(rig)).oldest == fetched > 0
        await verify(rig, REF)
        verified = rig.engine.model(REF).last_verified
        assert verified > fetched
        async with aclosing(rig.engine.verify(quick=True)) as events:
            async for _ in events:
                pass
        await rig.fetch(sha256=sha256(DATA))
        assert rig.engine.model(REF).last_verified == verified
    assert recorded(tmp_path)[sha256(DATA)] == verified
    async with running(tmp_path, two()) as rig:
        assert rig.engine.model(REF).last_verified == verified


async def test_a_model_that_was_verified_is_still_acquired_at_once(tmp_path: Path) -> None:
    async with running(tmp_path, one(DATA)) as rig:
        await rig.fetch(tier=Tier.SHM)
        await verify(rig)
        assert rig.engine._catalog.models[REF].linked


async def test_after_a_restart_it_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads(monkeypatch)
    async with running(tmp_path, two()) as rig:
        await rig.fetch()
        await rig.fetch(OTHER)
    forget(tmp_path, DATA, OTHER_DATA)
    first, second = sorted([DATA, OTHER_DATA], key=sha256)
    # The first is read, and the second is not yet.
    monkeypatch.setattr(module, "next_checks", lambda *args: (core_patrol.next_checks(*args)[0][: not reads.seen], inf))
    async with running(tmp_path, Origin(), patrol=RARELY) as rig, patrolling(rig):
        await until(lambda: recorded(tmp_path)[sha256(first)] > 0)
    monkeypatch.setattr(module, "next_checks", core_patrol.next_checks)
    assert set(reads.seen) == {sha256(first)}
    async with running(tmp_path, Origin(), patrol=RARELY) as rig:
        assert (await status(rig)).oldest == 0
        reads.seen.clear()
        async with patrolling(rig):
            await until(lambda: rig.engine.models()[0].last_verified > 0 < rig.engine.models()[1].last_verified)
        assert set(reads.seen) == {sha256(second)}
        assert (await status(rig)).oldest > 0


async def test_a_restart_in_the_middle_of_a_blob_begins_it_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Reads(monkeypatch)
    async with running(tmp_path, one(DATA)) as rig:
        await rig.fetch()
    forget(tmp_path, DATA)
    async with running(tmp_path, Origin(), patrol=PatrolOptions(1e6, CRAWL)) as rig, patrolling(rig):
        await reads.more()
    assert recorded(tmp_path) == {sha256(DATA): 0}
    async with running(tmp_path, Origin(), patrol=RARELY) as rig, patrolling(rig):
        await until(lambda: recorded(tmp_path)[sha256(DATA)] > 0)


async def test_a_host_that_was_upgraded_serves_at_once_and_verifies_all(tmp_path: Path) -> None:
    from tests.storage.test_migration import SCHEMA_1

    async with running(tmp_path, two()) as rig:
        await rig.fetch()
        await rig.fetch(OTHER)
    db = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
    db.executescript("ALTER TABLE blobs RENAME TO later; " + SCHEMA_1)
    db.execute("INSERT INTO blobs SELECT digest, size, verification, part_size, checksums FROM later")
    db.executescript("DROP TABLE segments; DROP TABLE pins; DROP TABLE uses; DROP TABLE delivered")
    db.executescript("DROP TABLE later; ALTER TABLE models DROP COLUMN turn; PRAGMA user_version = 1")
    db.close()
    origin = Origin()
    async with running(tmp_path, origin, patrol=RARELY) as rig:
        assert (await status(rig)).oldest == 0
        assert rig.content(rig.engine.model(REF)) == {"model.bin": DATA}
        async with patrolling(rig):
            await until(lambda: min(recorded(tmp_path).values()) > 0)
        assert not origin.starts


async def test_a_command_does_not_wait_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its reading of one blob takes longer than the test may; the one of the command is not slowed down."""
    reads = Reads(monkeypatch)
    async with running(tmp_path, one(DATA)) as rig:
        await rig.fetch()
    forget(tmp_path, DATA)
    async with running(tmp_path, Origin(), patrol=PatrolOptions(1e6, CRAWL)) as rig, patrolling(rig):
        await reads.more()
        found = await asyncio.gather(*(verify(rig) for _ in range(3)))
        assert [[c.nvme for c in checks] for checks in found] == [[CopyState.SOUND]] * 3
        assert (await status(rig)).oldest > 0


async def test_it_goes_on_after_a_command_that_was_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads(monkeypatch)
    async with running(tmp_path, two(), patrol=OFTEN) as rig, watched(rig) as events:
        await rig.fetch()
        async with patrolling(rig):
            for _ in range(5):
                command = rig.engine.verify()
                await anext(command)
                await command.aclose()
            await reads.more()
            flip(blob(rig))
            assert [(await events.next()).kind.name for _ in range(2)] == ["DAMAGED", "REPAIRED"]


async def test_it_pauses_while_a_worker_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads(monkeypatch)
    origin = two()
    async with running(tmp_path, origin, patrol=OFTEN) as rig:
        await rig.fetch()
        async with patrolling(rig):
            await reads.more()
            origin.hold(lambda path, offset: path == "other.bin")
            waiting = asyncio.create_task(rig.acquire(OTHER))
            assert await asyncio.to_thread(origin.reached.wait, SECONDS)
            await asyncio.sleep(0.3)  # a piece that was being read ends
            seen = len(reads.seen)
            await asyncio.sleep(0.5)
            assert len(reads.seen) == seen
            origin.release()
            lease = await waiting
            await reads.more()
            assert rig.content(lease.model) == {"other.bin": OTHER_DATA}


async def test_it_ends_at_once_while_it_pauses_and_while_it_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Reads(monkeypatch)
    origin = two()
    async with running(tmp_path, origin, patrol=PatrolOptions(0.05, CRAWL)) as rig:
        await rig.fetch()
        async with patrolling(rig):
            await reads.more()
        origin.hold(lambda path, offset: path == "other.bin")
        waiting = asyncio.create_task(rig.acquire(OTHER))
        assert await asyncio.to_thread(origin.reached.wait, SECONDS)
        async with patrolling(rig):
            await until(reading)
        origin.release()
        await waiting


async def test_an_origin_that_is_down_does_not_end_it_nor_is_it_asked_without_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The other model is verified, the damaged one is put aside, and its time to be tried again is far."""
    async with running(tmp_path, two()) as rig:
        await rig.fetch()
        await rig.fetch(OTHER)
    forget(tmp_path, DATA, OTHER_DATA)
    origin = two()
    gone(origin)
    async with running(tmp_path, origin, patrol=RARELY) as rig:
        flip(blob(rig))
        async with patrolling(rig):
            await until(lambda: recorded(tmp_path).get(sha256(OTHER_DATA), 0) > 0)
            patrol = rig.engine._patrol
            assert patrol is not None
            await until(lambda: sha256(DATA) in patrol._trouble)
            assert origin.starts.total() == 1
            found = await status(rig)
            assert (found.damaged, found.repaired, found.lost) == (1, 0, 1)
            assert "cannot be repaired: gone; what is left of it is in " in caplog.text
            trouble = patrol._trouble[sha256(DATA)]
            assert trouble.failures == 1
            held = [patrol._at_rest(b) for b in patrol._blobs().values()]
            assert core_patrol.next_checks(held, RARELY.every, trouble.retry_at - 1) == ([], trouble.retry_at)
        (place,) = (tmp_path / "quarantine").iterdir()
        assert (place / "report.json").exists()


async def test_what_was_lost_is_repaired_when_its_origin_is_back(tmp_path: Path) -> None:
    async with running(tmp_path, one(DATA), patrol=OFTEN) as rig, watched(rig) as events:
        await rig.fetch()
        gone(rig.origin)
        rig.origin.starts.clear()
        flip(blob(rig))
        async with patrolling(rig):
            await until(lambda: rig.origin.starts.total() > 3)
            assert (await status(rig)).lost == 1
            rig.origin.on_start = lambda path, offset, length: None
            assert [(await events.next()).kind.name for _ in range(2)] == ["DAMAGED", "REPAIRED"]
            found = await status(rig)
            assert (found.damaged, found.repaired, found.lost) == (1, 1, 0)
        assert rig.content(rig.engine.model(REF)) == {"model.bin": DATA}
        await rig.check_idle(blobs=1, segments=0)


async def test_a_copy_that_cannot_be_written_anew_is_not_called_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise DiskFull("no space left")

    async with running(tmp_path, one(DATA), patrol=OFTEN) as rig, watched(rig) as events:
        await rig.fetch(tier=Tier.SHM)
        before = rig.engine.model(REF).last_verified
        flip(blob(rig))
        with monkeypatch.context() as m:
            m.setattr(DirectoryBlobStore, "ingest", full)
            async with patrolling(rig):
                patrol = rig.engine._patrol
                assert patrol is not None
                await until(lambda: any(t.failures > 2 for t in patrol._trouble.values()))
            assert rig.engine.model(REF).last_verified == before
            found = await status(rig)
            assert (found.damaged, found.repaired, found.lost) == (1, 0, 1)
        async with patrolling(rig):
            assert [(await events.next()).kind.name for _ in range(2)] == ["DAMAGED", "REPAIRED"]
            await until(lambda: rig.engine.model(REF).last_verified > before)
        found = await status(rig)
        assert (found.damaged, found.repaired, found.lost) == (1, 1, 0)
        assert blob(rig).read_bytes() == DATA


async def test_a_worker_that_acquires_what_is_being_repaired_gets_the_right_bytes(tmp_path: Path) -> None:
    async with running(tmp_path, one(DATA), patrol=OFTEN) as rig:
        await rig.fetch()
        async with patrolling(rig):
            for _ in range(10):
                flip(blob(rig))
                model = (await rig.acquire()).model
                assert rig.content(model) == {"model.bin": DATA}
                await rig.engine._catalog.detach(rig.engine._catalog.blobs[sha256(DATA)])
        assert [c.nvme for c in await verify(rig)] == [CopyState.SOUND]
        await rig.check_idle(blobs=1, segments=0)


async def test_what_another_finds_damaged_meanwhile_is_not_called_so_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The patrol reads slowly; a load finds the damage first, drops the blob and brings it anew."""
    reads = Reads(monkeypatch)
    async with running(tmp_path, one(DATA)) as rig:
        await rig.fetch()
        flip(blob(rig), 20 * PART)
    forget(tmp_path, DATA)
    async with running(tmp_path, one(DATA), patrol=PatrolOptions(1e6, 1 << 20)) as rig, patrolling(rig):
        await reads.more()
        lease = await rig.acquire()
        assert rig.content(lease.model) == {"model.bin": DATA}
        await until(lambda: not reading())
        found = await status(rig)
        assert (found.damaged, found.lost) == (0, 0)
        assert found.oldest > 0


@pytest.mark.parametrize("tier", list(Tier))
async def test_a_blob_that_no_model_has_is_verified_and_dropped_when_it_is_damaged(tmp_path: Path, tier: Tier) -> None:
    both = {"model.bin": Served(DATA), "more.bin": Served(pattern(len(DATA), "more"))}
    async with running(tmp_path, Origin({REF: both}), patrol=OFTEN) as rig:
        known = rig.engine._catalog.blobs
        rig.origin.hold(lambda path, offset: (path, offset) == ("more.bin", 40 * PART))
        begun = asyncio.create_task(rig.fetch(tier=tier))
        await until(lambda: sha256(DATA) in known and (tier is Tier.NVME or known[sha256(DATA)].in_shm))
        begun.cancel()
        await asyncio.wait([begun])
        await until(lambda: not rig.engine._fetcher._flights._tasks)
        rig.origin.release()
        rig.origin.models[REF] = {"model.bin": Served(OTHER_DATA)}
        await rig.fetch(tier=tier)
        old = known[sha256(DATA)]
        before = old.record.last_verified
        async with patrolling(rig):
            await until(lambda: old.record.last_verified > before)
            flip(blob(rig))
            await until(lambda: sha256(DATA) not in rig.engine._catalog.blobs)
            found = await status(rig)
            assert (found.damaged, found.repaired, found.lost) == (1, 0, 0)
        assert rig.content(rig.engine.model(REF)) == {"model.bin": OTHER_DATA}
        await rig.engine._catalog.kept.refresh()
        await rig.check_idle(blobs=1, segments=int(tier is Tier.SHM), kept=2)


@pytest.mark.parametrize(
    "error", [OSError(24, "Too many open files"), DiskFull("no space left"), AlreadyRunning("locked")]
)
async def test_an_error_that_is_no_damage_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    reads = Reads(monkeypatch)
    async with running(tmp_path, one(DATA), patrol=OFTEN) as rig:
        await rig.fetch()
        before = rig.engine.model(REF).last_verified
        reads.fails = [error, error]
        async with patrolling(rig):
            await until(lambda: rig.engine.model(REF).last_verified > before)
        assert caplog.text.count("cannot be verified now") == 2
        assert (await status(rig)).damaged == 0


async def test_a_record_that_cannot_be_written_is_told_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path, one(DATA), patrol=OFTEN) as rig:
        await rig.fetch()
        other = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
        state = rig.engine._catalog.state
        await rig.engine._catalog.write(lambda: state._open.execute("PRAGMA busy_timeout = 1"))
        other.execute("BEGIN IMMEDIATE")
        before = rig.engine.model(REF).last_verified
        async with patrolling(rig):
            await until(lambda: "another process uses" in caplog.text)
            other.execute("ROLLBACK")
            await until(lambda: rig.engine.model(REF).last_verified > before)
        other.close()


def test_its_threads_read_after_everybody_else() -> None:
    """Asked of the kernel, from inside the thread; others keep their class."""
    import ctypes
    import platform

    get = {"x86_64": 252, "aarch64": 31, "riscv64": 31}.get(platform.machine())
    if get is None:
        pytest.skip(f"the number of ioprio_get on {platform.machine()} is not known here")
    seen: list[tuple[bool, int]] = []

    def ask() -> int:
        return int(ctypes.CDLL(None).syscall(get, 1, 0)) >> 13

    before = ask()
    thread = threading.Thread(target=lambda: seen.append((reads_last(), ask())))
    thread.start()
    thread.join()
    assert seen == [(True, 3)]
    assert ask() == before != 3
