"""Transfers of any shape, under any faults: the right bytes or a typed error; never a hang, a view or a thread left."""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest import mock

import pytest
import xxhash
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.engine.rig import SECONDS, Origin, Served, moving_threads, pattern, sha256
from weightd.core.errors import (
    ChecksumMismatch,
    DiskFull,
    ShmFull,
    SourceChanged,
    SourceDenied,
    SourceUnavailable,
    WeightdError,
)
from weightd.core.manifest import FileSpec, Validator
from weightd.core.parts import ALIGN, Part, plan_parts
from weightd.engine.buffers import Buffers, SegmentBuffers, SlabBuffers
from weightd.engine.jobs import FileJob
from weightd.engine.tasks import Pending
from weightd.engine.transfer import Stopped, Transfer, TransferOptions
from weightd.kernel import BULK_NICE
from weightd.storage.memory import MemorySegment, MemorySegmentStore

MEMORIES = ["segments", "slabs"]
URL = "http://origin/m/"
FATAL = [SourceDenied("no"), SourceChanged("moved"), ValueError("a bug")]


@dataclass(frozen=True)
class Plan:
    """What hypothesis chose. `faults` are (file, n, error): the n-th read of the file raises it."""

    sizes: list[int]
    part: int
    options: TransferOptions
    memory: str
    ranges: list[bool]
    write: bool
    faults: list[tuple[int, int, Exception]]
    write_fault: int
    wrong_checksum: int
    stop_after: int
    seed: int


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    part = ALIGN * draw(st.integers(1, 3))
    sizes = draw(st.lists(st.integers(1, 30 * ALIGN) | st.sampled_from([1, ALIGN, part, part + 1]), max_size=5))
    count = len(sizes)
    errors = st.sampled_from([SourceUnavailable("reset")] * 4 + FATAL)
    faults = st.tuples(st.integers(0, max(count - 1, 0)), st.integers(1, 40), errors)
    numbers = st.integers(1, 4)
    load = draw(st.sampled_from([-1, -1, -1, 0, 3]))
    return Plan(
        sizes=sizes,
        part=part,
        options=TransferOptions(part, draw(numbers), draw(numbers), draw(numbers), attempts=draw(numbers)),
        memory=draw(st.sampled_from(MEMORIES)),
        ranges=draw(st.lists(st.booleans(), min_size=count, max_size=count)),
        write=draw(st.booleans()),
        faults=draw(st.lists(faults, max_size=6)) if count else [],
        write_fault=draw(st.sampled_from([0, 0, 0, 1, 5])),
        wrong_checksum=load,
        stop_after=draw(st.sampled_from([0, 0, 0, 0, 1, 7])),
        seed=draw(st.integers(0, 1000)),
    )


@dataclass
class Run:
    """One transfer, and all that can be seen of it."""

    plan: Plan
    done: list[FileJob] = field(default_factory=list)
    written: dict[str, bytearray] = field(default_factory=dict)
    error: BaseException | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.data = {str(i): pattern(size, i) for i, size in enumerate(self.plan.sizes)}
        self.origin = Origin({URL: {p: Served(d) for p, d in self.data.items()}})
        self.origin.on_read = self._on_read
        self.reads: Counter[str] = Counter()
        self.writes = 0
        self.random = random.Random(self.plan.seed)
        self.store = MemorySegmentStore("t", 1 << 30)
        self.segments: list[MemorySegment] = []
        self.slabs = SlabBuffers(self.plan.options.slabs, self.plan.part) if self.plan.memory == "slabs" else None
        self.jobs = [self._job(p, d) for p, d in self.data.items()]
        self.transfer = Transfer(map(Pending.of, self.jobs), self.plan.options, self.done.append)

    def _job(self, path: str, data: bytes) -> FileJob:
        file = FileSpec(path, len(data), URL + path, None, Validator("x"), self.plan.ranges[int(path)])
        self.written[path] = bytearray(len(data))
        return FileJob(
            path,
            len(data),
            part_size=self.plan.part,
            reader=lambda: self.origin.reader(file),
            buffers=self._buffers(len(data)),
            ranges=file.ranges,
            write=(lambda offset, view: self._write(path, offset, view)) if self.plan.write else None,
            expected=self._expected(path, data),
        )

    def _buffers(self, size: int) -> Buffers:
        if self.slabs is not None:
            return self.slabs
        self.segments.append(self.store.create("x", size))
        return SegmentBuffers(self.segments[-1])

    def _expected(self, path: str, data: bytes) -> list[bytes] | None:
        if self.plan.wrong_checksum < 0:
            return None
        sums = checksums(data, self.plan.part)
        if path == "0" and self.plan.wrong_checksum:
            sums[min(self.plan.wrong_checksum, len(sums)) - 1] = bytes(16)
        return sums

    def _on_read(self, path: str, offset: int, length: int) -> None:
        with self.lock:
            self.reads[path] += 1
            number, pause = self.reads[path], self.random.random()
            if self.plan.stop_after and self.reads.total() == self.plan.stop_after:
                threading.Thread(target=self.transfer.stop).start()
        if pause < 0.3:
            threading.Event().wait(pause / 1000)  # parts overtake each other
        for file, at, error in self.plan.faults:
            if (str(file), at) == (path, number):
                raise type(error)(*error.args)

    def _write(self, path: str, offset: int, view: memoryview) -> None:
        with self.lock:
            self.writes += 1
            if self.writes == self.plan.write_fault:
                raise DiskFull("full")
        self.written[path][offset : offset + len(view)] = view

    def go(self) -> None:
        def body() -> None:
            try:
                self.transfer.run()
            except BaseException as e:  # noqa: BLE001 - judged by the test
                self.error = e

        thread = threading.Thread(target=body, daemon=True)
        thread.start()
        thread.join(SECONDS)
        assert not thread.is_alive(), "the transfer hangs"

    def check(self) -> None:
        self._check_nothing_left()
        if self.error is None:
            assert {j.path for j in self.done} == set(self.data)
        else:
            assert self._foreseen(self.error), self.error
        assert len(self.done) == len(set(self.done)) <= len(self.jobs)
        for job in self.done:
            self._check_done(job)

    def _check_done(self, job: FileJob) -> None:
        data = self.data[job.path]
        assert job.done == len(data)
        assert job.checksums == checksums(data, self.plan.part)
        if self.plan.wrong_checksum < 0:
            assert job.digest == sha256(data)
        if self.plan.write:
            assert self.written[job.path] == data

    def _check_nothing_left(self) -> None:
        assert moving_threads() == []
        assert self.origin.readers == set()
        for segment, data in zip(self.segments, self.data.values(), strict=False):
            if self.error is None:
                assert bytes(segment.view) == data
            segment.seal()
        if self.slabs is not None:
            assert self.slabs._used == {}
            self.slabs.close()

    def _foreseen(self, error: BaseException) -> bool:
        if isinstance(error, Stopped):
            return True
        if isinstance(error, ChecksumMismatch):
            return self.plan.wrong_checksum > 0
        if isinstance(error, DiskFull):
            return bool(self.plan.write_fault)
        if isinstance(error, WeightdError) and not error.file:
            return False
        return type(error) in {type(e) for _, _, e in self.plan.faults}


def checksums(data: bytes, part: int) -> list[bytes]:
    return [xxhash.xxh3_128_digest(data[p.offset : p.offset + p.length]) for p in plan_parts(len(data), part)]


@contextmanager
def no_backoff() -> Iterator[None]:
    with mock.patch("weightd.engine.receiver.full_jitter", return_value=0.0):
        yield


@contextmanager
def taking_over(piece: int = 512) -> Iterator[None]:
    """Little is read at a time, and what is left of a part is shared whenever a receiver has nothing to do."""
    with (
        mock.patch.multiple("weightd.core.endgame", LEAST=piece, ALIGN=piece, WORTH_S=0.0, TRIPS=0, COLD_TRIPS=0),
        mock.patch.multiple("weightd.engine.receiver", LEAST=piece, RECEIVE=piece),
        mock.patch("weightd.engine.transfer.IDLE_S", 0.0001),
    ):
        yield


PLAIN = Plan([40 * ALIGN + 1] * 3, ALIGN, TransferOptions(ALIGN), "segments", [True] * 3, True, [], 0, -1, 0, 0)


def plain(**changes: object) -> Plan:
    return Plan(**(vars(PLAIN) | changes))  # type: ignore[arg-type]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plans())
@example(PLAIN)
@example(plain(ranges=[False] * 3, faults=[(0, 20, SourceUnavailable("x"))]))
@example(plain(faults=[(0, 1, SourceUnavailable("x"))] * 2))
@example(plain(sizes=[], ranges=[]))
@example(plain(stop_after=1))
@example(plain(write_fault=1))
def test_any_transfer(plan: Plan) -> None:
    with no_backoff():
        run = Run(plan)
        run.go()
    run.check()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plans())
@example(plain(sizes=[3 * ALIGN] * 3, part=3 * ALIGN))
def test_any_transfer_whose_parts_are_shared(plan: Plan) -> None:
    with no_backoff(), taking_over():
        run = Run(plan)
        run.go()
    run.check()


@pytest.mark.parametrize("memory", MEMORIES)
def test_stop_before_the_start(memory: str) -> None:
    run = Run(plain(memory=memory))
    run.transfer.stop()
    run.transfer.stop()
    run.go()
    assert isinstance(run.error, Stopped)
    run.check()
    assert run.done == []


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("ranges", [True, False])
def test_stop_wakes_readers_that_are_blocked(memory: str, ranges: bool) -> None:
    run = Run(plain(memory=memory, ranges=[ranges] * 3))
    run.origin.hold()
    waiter = threading.Thread(target=lambda: run.origin.reached.wait(SECONDS) and run.transfer.stop())
    waiter.start()
    run.go()
    waiter.join()
    assert isinstance(run.error, Stopped)
    run.check()


class FullBuffers:
    """Memory that ends after `count` parts, as a segment's does when somebody else fills /dev/shm."""

    def __init__(self, buffers: Buffers, count: int) -> None:
        self._buffers, self._left = buffers, count

    def acquire(self, part: Part, *rest: threading.Event) -> memoryview | None:
        self._left -= 1
        if self._left < 0:
            raise ShmFull("full")
        return self._buffers.acquire(part, *rest)

    def __getattr__(self, name: str) -> object:
        return getattr(self._buffers, name)


@pytest.mark.parametrize("count", [0, 1, 17])
def test_memory_that_ends_on_the_way(count: int) -> None:
    run = Run(PLAIN)
    for job in run.jobs:
        job.buffers = FullBuffers(job.buffers, count)  # type: ignore[assignment]
    run.go()
    assert isinstance(run.error, ShmFull)
    assert run.error.file
    run._check_nothing_left()


def test_threads_that_move_bytes_step_back() -> None:
    run = Run(PLAIN)
    before, seen = niceness(), []

    def noting(call: Callable[..., None]) -> Callable[..., None]:
        def noted(*args: object) -> None:
            seen.append(niceness())
            call(*args)

        return noted

    run.origin.on_read = noting(run._on_read)
    for job in run.jobs:
        assert job.write is not None
        job.write = noting(job.write)
    run.go()
    run.check()
    assert len(seen) >= 2 * len(run.jobs)
    assert min(seen) >= BULK_NICE
    assert niceness() == before


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
