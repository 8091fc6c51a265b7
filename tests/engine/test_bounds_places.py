"""Files are opened when their turn comes and closed when they are committed: never more at a time than have a place."""

from __future__ import annotations

import asyncio
import random
import threading
from pathlib import Path

import pytest

from tests.engine.rig import PART, REF, SECONDS, Origin, Served, moving_threads, pattern, running
from weightd.core.errors import PathInTheWay, SourceUnavailable
from weightd.core.manifest import FileSpec, Validator
from weightd.core.parts import ALIGN
from weightd.engine.api import Tier
from weightd.engine.buffers import SegmentBuffers
from weightd.engine.export import fetch_to
from weightd.engine.jobs import FileJob
from weightd.engine.tasks import Pending
from weightd.engine.transfer import Stopped, Transfer, TransferOptions
from weightd.storage.ingests import IngestDirectory
from weightd.storage.memory import MemorySegmentStore


class Crowd:
    """Files of a transfer, all in memory, that note how many are open."""

    def __init__(self, sizes: list[int], options: TransferOptions, *, heads: bool = False) -> None:
        self.heads = heads
        self.data = {str(i): pattern(size, i) for i, size in enumerate(sizes)}
        self.origin = Origin({REF: {p: Served(d) for p, d in self.data.items()}})
        self.store = MemorySegmentStore("t", 1 << 30)
        self.options = options
        self.open: set[str] = set()
        self.most = 0
        self.received: list[FileJob] = []
        self.changed = threading.Condition()

    def pending(self, path: str) -> Pending:
        return Pending(-(-len(self.data[path]) // ALIGN), True, lambda: self._open(path), self.heads)

    def _open(self, path: str) -> FileJob:
        with self.changed:
            self.open.add(path)
            self.most = max(self.most, len(self.open))
        data = self.data[path]
        file = FileSpec(path, len(data), REF + path, None, Validator("x"))
        return FileJob(
            path,
            len(data),
            part_size=ALIGN,
            reader=lambda: self.origin.reader(file),
            buffers=SegmentBuffers(self.store.create("x", len(data))),
        )

    def on_done(self, job: FileJob) -> None:
        with self.changed:
            self.received.append(job)
            self.changed.notify()

    def close_one(self, transfer: Transfer) -> None:
        """Some file that was received; late, when all that can be open is."""
        with self.changed:
            self.changed.wait_for(lambda: self.received, SECONDS)
            job = self.received.pop(0)
            self.open.discard(job.path)
        transfer.closed()


@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", ["small", "large", "mixed", "empty"])
def test_no_more_files_are_open_than_there_are_places(kind: str, threads: int, heads: bool) -> None:
    rng = random.Random(kind)
    sizes = {
        "small": [rng.randint(1, ALIGN) for _ in range(120)],
        "large": [rng.randint(2, 9) * ALIGN for _ in range(60)],
        "mixed": [rng.randint(0, 5 * ALIGN) for _ in range(120)],
        "empty": [0] * 120,
    }[kind]
    options = TransferOptions(ALIGN, threads, threads, threads)
    crowd = Crowd(sizes, options, heads=heads)
    transfer = Transfer(map(crowd.pending, crowd.data), options, crowd.on_done)
    thread = threading.Thread(target=transfer.run, daemon=True)
    thread.start()
    for _ in sizes:
        crowd.close_one(transfer)
    thread.join(SECONDS)
    assert not thread.is_alive(), "the transfer hangs"
    assert crowd.most <= options.open_files
    assert crowd.open == set()
    assert crowd.origin.readers == set()


@pytest.mark.parametrize("held", [1, 6])
def test_a_transfer_that_waits_for_a_place_can_be_stopped(held: int) -> None:
    """Nobody closes what is done: the transfer stands, and ends when it is told to."""
    options = TransferOptions(ALIGN, held, 1, 1)
    crowd = Crowd([10] * 100, options)
    transfer = Transfer(map(crowd.pending, crowd.data), options, crowd.on_done)
    errors: list[BaseException] = []

    def body() -> None:
        try:
            transfer.run()
        except BaseException as e:  # noqa: BLE001 - judged below
            errors.append(e)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    with crowd.changed:
        assert crowd.changed.wait_for(lambda: len(crowd.received) == options.open_files, SECONDS)
    transfer.stop()
    thread.join(SECONDS)
    assert not thread.is_alive(), "the transfer hangs"
    assert [type(e) for e in errors] == [Stopped]
    assert len(crowd.open) == options.open_files
    assert moving_threads() == []


SMALL, BIG = 60, 5
"""Files of one part, and files of ten, by name in this order: small ones come first."""
FILES = {f"{i:02}": pattern(PART - i, i) for i in range(SMALL)}
FILES |= {f"big{i}": pattern(9 * PART + 1, f"big{i}") for i in range(BIG)}


def crowd() -> Origin:
    return Origin({REF: {p: Served(d) for p, d in FILES.items()}})


@pytest.mark.parametrize("tier", list(Tier))
@pytest.mark.parametrize("where", ["30", "big0"])
async def test_a_cancelled_fetch_ends_while_its_origin_stalls(tmp_path: Path, tier: Tier, where: str) -> None:
    """What was committed stays, what was recorded can be resumed, and what had not begun left no trace."""
    origin = crowd()
    origin.hold(lambda path, offset: path == where and offset >= 4 * PART * where.startswith("big"))
    async with running(tmp_path, origin, receivers=1) as rig:
        task = asyncio.create_task(rig.fetch(tier=tier))
        assert await asyncio.to_thread(origin.reached.wait, SECONDS)
        task.cancel()
        await asyncio.wait([task], timeout=SECONDS)
        assert task.cancelled()
        while rig.engine._fetcher._flights._tasks:
            await asyncio.wait(list(rig.engine._fetcher._flights._tasks), timeout=SECONDS)
        blobs = len(list(rig.blobs.digests()))
        assert blobs < len(FILES)
        await rig.check_idle(blobs=blobs, segments=blobs * (tier is Tier.SHM), kept=2)
        # One part after the other, in the order of their names; large files may come side by side.
        begun = {p for p in FILES if p <= where}
        assert {path for path, _, _ in origin.starts} - begun <= ({"big1"} if where == "big0" else set())
        origin.release()
        origin.starts.clear()
        assert rig.content(await rig.fetch(tier=tier)) == FILES
        again = {path for path, _, _ in origin.starts}
        assert len(again) == len(FILES) - blobs
        if where == "big0":
            assert min(offset for path, offset, _ in origin.starts if path == "big0") > 0
        await rig.check_idle(blobs=len(FILES), segments=len(FILES) * (tier is Tier.SHM))


async def test_parts_larger_than_those_of_today_are_resumed_beside_small_files(tmp_path: Path) -> None:
    """Their slabs are made larger on the way."""
    origin = crowd()

    def broken(path: str, offset: int, length: int) -> None:
        if path == "big0" and offset >= 4 * PART:
            raise SourceUnavailable("reset by peer")

    origin.on_start = broken
    async with running(tmp_path, origin, receivers=1, attempts=1) as rig:
        with pytest.raises(SourceUnavailable):
            await rig.fetch()
        assert len(rig.blobs.kept()) >= 1
    origin = crowd()
    async with running(tmp_path, origin, part_size=ALIGN) as rig:
        assert rig.content(await rig.fetch()) == FILES
        assert min(offset for path, offset, _ in origin.starts if path == "big0") == 4 * PART
        await rig.check_idle(blobs=len(FILES), segments=0)


async def test_what_gets_in_the_way_of_an_export_ends_it_and_costs_nothing(tmp_path: Path) -> None:
    origin = crowd()
    origin.hold(lambda path, offset: path == "big0" and offset >= 4 * PART)
    options = TransferOptions(PART, receivers=1)
    fetch = asyncio.create_task(fetch_to(REF, tmp_path / "out", sources=origin, options=options))
    assert await asyncio.to_thread(origin.reached.wait, SECONDS)
    (tmp_path / "out" / "big4").mkdir()
    origin.release()
    with pytest.raises(PathInTheWay) as caught:
        await asyncio.wait_for(fetch, SECONDS)
    assert caught.value.file == "big4"
    assert moving_threads() == []
    (tmp_path / "out" / "big4").rmdir()
    assert [p.name for p in (tmp_path / "out").iterdir() if not p.name.startswith(".weightd-")] == []
    origin.starts.clear()
    await fetch_to(REF, tmp_path / "out", sources=origin, options=options)
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == FILES
    assert {path for path, _, _ in origin.starts}.isdisjoint({"big0", "big1"})


async def test_what_is_kept_is_not_looked_for_anew_for_each_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Path] = []
    look = IngestDirectory._waiting

    def counted(directory: IngestDirectory) -> list[Path]:
        looks.append(directory.root)
        return look(directory)

    monkeypatch.setattr(IngestDirectory, "_waiting", counted)
    await fetch_to(REF, tmp_path / "out", sources=crowd(), options=TransferOptions(PART))
    async with running(tmp_path / "state", crowd()) as rig:
        await rig.fetch()
    # When they start and end, and when room is made; not for each of the files.
    assert len(looks) < len(FILES) / 4
