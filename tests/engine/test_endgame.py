"""Receivers that have nothing to do take over from others, over real sockets: every byte once, whoever fails."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.engine.rig import REF, SECONDS, moving_threads, one, pattern, running, sha256
from tests.engine.test_transfer import no_backoff, taking_over
from tests.support.origin import Fault, Origin
from weightd.core.errors import SourceChanged, SourceDenied, SourceUnavailable
from weightd.core.manifest import FileSpec
from weightd.core.parts import MIB
from weightd.core.refs import parse_ref
from weightd.engine.api import Tier
from weightd.engine.buffers import SegmentBuffers, SlabBuffers
from weightd.engine.jobs import FileJob
from weightd.engine.tasks import Pending, Task
from weightd.engine.transfer import Stopped, Transfer, TransferOptions
from weightd.sources.connection import HttpOptions
from weightd.sources.http import HttpSource
from weightd.storage.segments import PosixSegmentStore

PART = MIB
SIZE = 2 * PART
DATA = pattern(SIZE)
PIECE = 16 << 10
STALL = 5 * PIECE
STALLED = Fault(stall_after=STALL)
"""The first request, which goes on when it is tried again."""
OPTIONS = TransferOptions(PART, receivers=2, hashers=1, writers=1, attempts=3)


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin({"f.bin": DATA}) as origin:
        yield origin


@pytest.fixture(autouse=True)
def eager() -> Iterator[None]:
    with no_backoff(), taking_over(PIECE):
        yield


class Run:
    """One transfer into a real segment, or slabs."""

    def __init__(self, source: HttpSource, file: FileSpec, slabs: bool) -> None:
        self.segment = PosixSegmentStore("endgame").create("x", SIZE)
        self.slabs = SlabBuffers(OPTIONS.slabs, PART)
        buffers = self.slabs if slabs else SegmentBuffers(self.segment)
        self.written, self.writes = bytearray(SIZE), Counter[int]()
        self.done: list[FileJob] = []
        self.job = FileJob(
            "f.bin",
            SIZE,
            part_size=PART,
            reader=partial(source.reader, file),
            receiver=partial(source.reader, file, buffers.shared(PART)),
            width=partial(source.width, file),
            buffers=buffers,
            write=self._write,
        )
        self.transfer = Transfer([Pending.of(self.job)], OPTIONS, self.done.append)
        self.error: BaseException | None = None

    def _write(self, offset: int, view: memoryview) -> None:
        self.writes[offset] += 1
        self.written[offset : offset + len(view)] = view

    def go(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        def body() -> None:
            try:
                self.transfer.run()
            except BaseException as e:  # noqa: BLE001 - judged by the test
                self.error = e

        thread = threading.Thread(target=body, daemon=True)
        thread.start()
        meanwhile()
        thread.join(SECONDS)
        assert not thread.is_alive(), "the transfer hangs"
        assert moving_threads() == []
        assert self.slabs._used == {}

    def check(self) -> None:
        """All is there, and each part was delivered once."""
        assert self.error is None
        assert self.done == [self.job]
        assert self.job.done == SIZE
        assert self.job.digest == sha256(DATA)
        assert self.written == DATA
        assert self.writes == {0: 1, PART: 1}


@asynccontextmanager
async def begun(origin: Origin, processes: int = 0, slabs: bool = False, silence: float = 1.0) -> AsyncIterator[Run]:
    source = HttpSource(HttpOptions(read_timeout=silence), processes=processes)
    file = (await source.resolve(parse_ref(origin.url("f.bin")))).files[0]
    run = Run(source, file, slabs)
    try:
        yield run
        assert not any(g.running for g in source._pool.gates._gates.values())  # type: ignore[attr-defined]
        run.segment.seal()
    finally:
        run.segment.unlink()
        run.slabs.close()
        await source.close()


def ranges(origin: Origin) -> list[tuple[int, int]]:
    """Asked for: offset and end."""
    asked = [r.headers["range"].removeprefix("bytes=").split("-") for r in origin.requests[1:]]
    return [(int(first), int(last) + 1) for first, last in asked]


@pytest.mark.parametrize("slabs", [False, True])
@pytest.mark.parametrize("processes", [0, 1])
async def test_the_rear_of_one_that_stalls(origin: Origin, processes: int, slabs: bool) -> None:
    origin.fault("f.bin", Fault(), times=1)
    origin.fault("f.bin", STALLED, times=1)
    async with begun(origin, processes, slabs) as run:
        run.go()
        run.check()
    part = next(a for a, b in ranges(origin) if b - a == PART and any(a < c < b for c, _ in ranges(origin)))
    inside = [(a, b) for a, b in ranges(origin) if part < a < part + PART]
    again = min(inside)
    assert again[0] <= part + STALL, "it was tried again where it stalled"
    assert again[1] < part + PART, "and only for what nobody had taken over"
    assert max(b for _, b in inside) == part + PART
    assert all(a % 4096 == 0 for a, _ in inside)


@pytest.mark.parametrize("fault", [Fault(reset_after=1000), Fault(short=1000), Fault(hang_up=True), Fault(status=500)])
async def test_who_takes_over_fails_and_tries_again(origin: Origin, fault: Fault) -> None:
    for scripted in (Fault(), STALLED, Fault(), fault):
        origin.fault("f.bin", scripted, times=1)
    async with begun(origin) as run:
        run.go()
        run.check()
    assert len(ranges(origin)) > 4


async def test_who_takes_over_is_refused(origin: Origin) -> None:
    for fault in (Fault(), STALLED, Fault()):
        origin.fault("f.bin", fault, times=1)
    origin.fault("f.bin", Fault(status=403))
    async with begun(origin, silence=60) as run:
        run.go()
    assert isinstance(run.error, SourceDenied)
    assert run.done == []


async def test_the_source_changes_before_it_is_taken_over(origin: Origin) -> None:
    for fault in (Fault(), STALLED):
        origin.fault("f.bin", fault, times=1)
    async with begun(origin, silence=60) as run:
        take_over = run.transfer.requests.take_over

        def change_first(*, warm: bool) -> Task | None:
            origin.put("f.bin", pattern(SIZE, "another"))
            return take_over(warm=warm)

        run.transfer.requests.take_over = change_first  # type: ignore[method-assign]
        run.go()
    assert isinstance(run.error, SourceChanged)
    assert run.done == []


@pytest.mark.parametrize("processes", [0, 1])
async def test_all_are_aborted(origin: Origin, processes: int) -> None:
    """One stalls, and who took over from it too."""
    for fault in (Fault(), STALLED, Fault()):
        origin.fault("f.bin", fault, times=1)
    origin.fault("f.bin", STALLED)
    async with begun(origin, processes, silence=60) as run:
        run.go(lambda: (origin.wait_for(4), run.transfer.stop()))
    assert isinstance(run.error, Stopped)
    assert run.job.done <= SIZE


async def test_it_gives_up_when_nobody_gets_anything(origin: Origin) -> None:
    origin.fault("f.bin", Fault(), times=1)
    origin.fault("f.bin", Fault(stall_after=0))
    async with begun(origin, silence=0.2) as run:
        run.go()
    assert isinstance(run.error, SourceUnavailable)


@pytest.mark.parametrize("tier", list(Tier))
async def test_damage_is_mended_where_parts_were_shared(tmp_path: Path, tier: Tier) -> None:
    lied = threading.Event()
    source = one(DATA, digest=sha256(DATA))

    def lie_once(path: str, offset: int, length: int) -> None:
        wrong = bytearray(DATA)
        if offset >= SIZE // 2 and not lied.is_set():
            lied.set()
            wrong[offset] ^= 1
        source.models[REF][path].data = bytes(wrong)

    source.on_start = lie_once
    async with running(tmp_path, source, receivers=1) as rig:
        assert rig.content(await rig.fetch(tier=tier)) == {"model.bin": DATA}
        await rig.check_idle(blobs=1, segments=int(tier is Tier.SHM))
    assert lied.is_set()


@pytest.mark.parametrize("tier", list(Tier))
async def test_many_receivers_of_an_engine(tmp_path: Path, tier: Tier) -> None:
    async with running(tmp_path, one(DATA, digest=sha256(DATA)), part_size=MIB, receivers=4) as rig:
        assert rig.content(await rig.fetch(tier=tier)) == {"model.bin": DATA}
        await rig.check_idle(blobs=1, segments=int(tier is Tier.SHM))
