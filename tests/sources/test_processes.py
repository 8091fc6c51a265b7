"""Readers whose work a receiver process does: the same bytes and errors, and never a byte after the answer."""

from __future__ import annotations

import asyncio
import os
import resource
import select
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from tests.sources.conftest import DATA
from tests.support.origin import Fault, Origin
from tests.support.proxy import Proxy as RealProxy
from tests.support.signed import Edge, Resolver
from weightd.core.errors import (
    SizeMismatch,
    SourceChanged,
    SourceDenied,
    SourceNotFound,
    SourceUnavailable,
    WeightdError,
)
from weightd.core.manifest import FileSpec, Validator
from weightd.core.parts import Part
from weightd.core.refs import parse_ref
from weightd.engine.buffers import SlabBuffers
from weightd.sources import process_reader
from weightd.sources.connection import ConnectionPool, HttpOptions
from weightd.sources.dial import Addresses, Place
from weightd.sources.http import HttpSource
from weightd.sources.messages import Channel, Read
from weightd.sources.process_reader import ProcessReader
from weightd.sources.processes import Processes
from weightd.sources.proxies import Proxies, parse_proxy
from weightd.sources.receiver_process import Window
from weightd.storage.shared import Slabs

SIZE = len(DATA)
SLAB = 1 << 20


@pytest.fixture
async def source() -> AsyncIterator[HttpSource]:
    source = HttpSource(HttpOptions(connect_timeout=5, read_timeout=60), processes=2)
    yield source
    await source.close()


@pytest.fixture
def slabs() -> Iterator[Slabs]:
    slabs = Slabs(4, SLAB)
    yield slabs
    slabs.close()


async def pin(source: HttpSource, origin: Origin, name: str = "f.bin") -> FileSpec:
    return (await source.resolve(parse_ref(origin.url(name)))).files[0]


def make(source: HttpSource, file: FileSpec, slabs: Slabs) -> ProcessReader:
    reader = source.reader(file, slabs.shared)
    assert isinstance(reader, ProcessReader)
    return reader


def read(reader: ProcessReader, view: memoryview, offset: int = 0, length: int = SIZE) -> bytes:
    """By way of the front of `view`, which other bytes follow that must stay."""
    guard = bytes(view[length : length + 4096])
    reader.start(offset, length)
    done = 0
    while done < length:
        with view[done:length] as rest:
            done += reader.readinto(rest)
    reader.finish()
    assert bytes(view[length : length + 4096]) == guard
    return bytes(view[:length])


def pids(source: HttpSource) -> list[int]:
    assert source._receiving._processes is not None
    return source._receiving._processes.pids()


def running(source: HttpSource) -> int:
    """Requests at all origins that count as under way."""
    return sum(g.running for g in source._pool.gates._gates.values())  # type: ignore[attr-defined]


def maps(pid: int) -> bool:
    """Whether it maps slabs, or has them open."""
    fds = [os.readlink(p) for p in Path(f"/proc/{pid}/fd").iterdir()]
    return "memfd:weightd-slabs" in Path(f"/proc/{pid}/maps").read_text() or any("slabs" in f for f in fds)


def runs(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def told_of(pid: int) -> bytes:
    """What other users of the host may see of it."""
    return b"".join(Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ"))


async def test_the_bytes_come_into_our_memory(origin: Origin, source: HttpSource, slabs: Slabs) -> None:
    file = await pin(source, origin)
    reader = make(source, file, slabs)
    before = origin.connections
    assert read(reader, slabs.views[3]) == DATA
    assert read(reader, slabs.views[0], 4097, 8192) == DATA[4097:12289]
    reader.close()
    again = make(source, file, slabs)
    assert read(again, slabs.views[1], 5, 5) == DATA[5:10]
    again.close()
    assert origin.connections == before + 1, "the connection is used again, also by the next reader"
    assert len(pids(source)) == 1


async def test_unaligned_views(origin: Origin, source: HttpSource, slabs: Slabs) -> None:
    reader = make(source, await pin(source, origin), slabs)
    with slabs.views[1][777:] as odd:
        assert read(reader, odd) == DATA
    reader.close()


async def test_a_view_of_other_memory_is_refused(origin: Origin, source: HttpSource, slabs: Slabs) -> None:
    reader = make(source, await pin(source, origin), slabs)
    reader.start(0, SIZE)
    with pytest.raises(ValueError, match="not of this memory"):
        reader.readinto(memoryview(bytearray(SIZE)))
    reader.close()
    assert running(source) == 0


async def test_side_by_side_in_both_processes(origin: Origin, source: HttpSource, slabs: Slabs) -> None:
    file = await pin(source, origin)
    readers = [make(source, file, slabs) for _ in slabs.views]
    for reader in readers:
        reader.start(0, SIZE)  # All four are under way at the same time.
    assert len(pids(source)) == 2
    assert running(source) == 4
    for reader, view in zip(readers, slabs.views, strict=True):
        done = 0
        while done < SIZE:
            with view[done:SIZE] as rest:
                done += reader.readinto(rest)
        reader.finish()
        reader.close()
        assert view[:SIZE] == DATA
    assert running(source) == 0


async def test_no_more_requests_than_the_daemon_allows(origin: Origin, slabs: Slabs) -> None:
    source = HttpSource(HttpOptions(connections_per_host=1), processes=2)
    file = await pin(source, origin)
    first, second = make(source, file, slabs), make(source, file, slabs)
    first.start(0, SIZE)
    waiting = asyncio.create_task(asyncio.to_thread(second.start, 0, 10))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    first.close()
    async with asyncio.timeout(10):
        await waiting
    second.close()
    await source.close()


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(status=404), SourceNotFound),
        (Fault(status=403), SourceDenied),
        (Fault(status=500), SourceUnavailable),
        (Fault(etag='"other"'), SourceChanged),
        (Fault(short=1000), SourceUnavailable),
        (Fault(reset_after=1000), SourceUnavailable),
        (Fault(hang_up=True), SourceUnavailable),
        (Fault(extra=b"more", content_range=f"bytes 0-{SIZE - 1}/{SIZE}"), SizeMismatch),
        (Fault(raw=b"nonsense\r\n\r\n"), SourceUnavailable),
    ],
)
async def test_the_errors_are_those_of_a_thread(
    origin: Origin, source: HttpSource, slabs: Slabs, fault: Fault, error: type[WeightdError]
) -> None:
    file = await pin(source, origin)
    here = source.reader(file)
    texts = []
    for reader in (here, make(source, file, slabs)):
        origin.fault("f.bin", fault, times=1)
        with pytest.raises(error) as caught:
            read(reader, slabs.views[0])  # type: ignore[arg-type]
        reader.close()
        assert type(caught.value) is error
        texts.append(str(caught.value))
    assert texts[0] == texts[1]
    assert running(source) == 0
    assert not any(maps(p) for p in pids(source))
    good = make(source, file, slabs)
    assert read(good, slabs.views[0]) == DATA
    good.close()


async def test_a_refusal_counts_for_all(origin: Origin, source: HttpSource, slabs: Slabs) -> None:
    file = await pin(source, origin)
    origin.fault("f.bin", Fault(status=429, headers={"Retry-After": "7"}), times=1)
    reader = make(source, file, slabs)
    with pytest.raises(SourceUnavailable) as caught:
        reader.start(0, SIZE)
    assert caught.value.retry_after == 7
    reader.close()
    (gate,) = source._pool.gates._gates.values()  # type: ignore[attr-defined]
    assert gate.delay() > 5


@pytest.mark.parametrize("fault", [Fault(stall_head=True), Fault(stall_after=1000)])
async def test_abort_ends_a_blocked_reader(origin: Origin, source: HttpSource, slabs: Slabs, fault: Fault) -> None:
    file = await pin(source, origin)
    origin.fault("f.bin", fault, times=1)
    reader = make(source, file, slabs)
    caught: list[Exception] = []

    def work() -> None:
        try:
            read(reader, slabs.views[0])
        except SourceUnavailable as e:
            caught.append(e)

    thread = threading.Thread(target=work)
    thread.start()
    origin.wait_for(2)
    reader.abort()
    thread.join(20)
    assert not thread.is_alive(), "it waits for its read timeout of 60 s"
    assert "aborted" in str(caught[0])
    reader.close()
    assert running(source) == 0
    assert not any(maps(p) for p in pids(source)), "its process may still write"
    good = make(source, file, slabs)
    assert read(good, slabs.views[0]) == DATA
    good.close()


async def test_abort_before_start(origin: Origin, source: HttpSource, slabs: Slabs) -> None:
    reader = make(source, await pin(source, origin), slabs)
    reader.abort()
    with pytest.raises(SourceUnavailable, match="aborted"):
        reader.start(0, SIZE)
    reader.close()
    assert len(origin.requests) == 1


async def test_one_that_waits_for_its_turn_is_aborted(origin: Origin, source: HttpSource, slabs: Slabs) -> None:
    file = await pin(source, origin)
    origin.fault("f.bin", Fault(status=503, headers={"Retry-After": "30"}), times=1)
    first, second = make(source, file, slabs), make(source, file, slabs)
    with pytest.raises(SourceUnavailable):
        first.start(0, 10)
    first.close()
    waiting = asyncio.create_task(asyncio.to_thread(second.start, 0, 10))
    await asyncio.sleep(0.1)
    second.abort()
    async with asyncio.timeout(5):
        with pytest.raises(SourceUnavailable, match="aborted"):
            await waiting
    second.close()
    assert running(source) == 0


async def test_when_a_request_has_ended_nothing_is_mapped(origin: Origin, source: HttpSource, slabs: Slabs) -> None:
    """Else a sealed segment could still be written."""
    reader = make(source, await pin(source, origin), slabs)
    reader.start(0, SIZE)
    done = reader.readinto(slabs.views[0][:100])
    (pid,) = pids(source)
    assert maps(pid)
    while done < SIZE:
        with slabs.views[0][done:SIZE] as rest:
            done += reader.readinto(rest)
    reader.finish()
    assert not maps(pid)
    reader.start(0, SIZE)
    reader.readinto(slabs.views[0][:100])
    reader.close()
    assert not maps(pid)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
async def test_a_process_that_dies(origin: Origin, source: HttpSource, slabs: Slabs, number: signal.Signals) -> None:
    file = await pin(source, origin)
    origin.fault("f.bin", Fault(stall_after=1000), times=1)
    reader = make(source, file, slabs)
    reader.start(0, SIZE)
    (pid,) = pids(source)
    view = slabs.views[0][:SIZE]
    reading = asyncio.create_task(asyncio.to_thread(reader.readinto, view))
    os.kill(pid, number)
    async with asyncio.timeout(20):
        with pytest.raises(SourceUnavailable, match="receiver process ended"):
            await reading
    view.release()
    reader.close()
    assert running(source) == 0
    assert pids(source) == []
    good = make(source, file, slabs)
    assert read(good, slabs.views[0]) == DATA
    good.close()


async def begun_and_stopped(source: HttpSource, origin: Origin, slabs: Slabs) -> tuple[ProcessReader, int, memoryview]:
    """A reader, its process, which a signal stopped, and where its bytes are to come."""
    reader = make(source, await pin(source, origin), slabs)
    reader.start(0, SIZE)
    (pid,) = pids(source)
    os.kill(pid, signal.SIGSTOP)
    return reader, pid, slabs.views[0][:SIZE]


async def test_a_process_that_hangs_is_killed_when_its_reader_is_aborted(
    origin: Origin, source: HttpSource, slabs: Slabs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_reader, "ANSWER_S", 0.5)
    reader, pid, view = await begun_and_stopped(source, origin, slabs)
    reading = asyncio.create_task(asyncio.to_thread(reader.readinto, view))
    await asyncio.sleep(0.05)
    reader.abort()
    async with asyncio.timeout(20):
        with pytest.raises(SourceUnavailable, match="aborted"):
            await reading
    view.release()
    reader.close()
    assert not runs(pid)
    assert running(source) == 0


async def test_a_process_that_was_stopped_is_killed_and_another_goes_on(
    origin: Origin, source: HttpSource, slabs: Slabs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has to abort its readers: whoever waits for it would wait until somebody lets it go on."""
    monkeypatch.setattr(process_reader, "ANSWER_S", 0.5)
    reader, pid, view = await begun_and_stopped(source, origin, slabs)
    try:
        async with asyncio.timeout(20):
            with pytest.raises(SourceUnavailable, match="receiver process ended"):
                await asyncio.to_thread(reader.readinto, view)
    finally:
        reader.abort()
    view.release()
    reader.close()
    assert not runs(pid)
    with closing(make(source, await pin(source, origin), slabs)) as other:
        assert read(other, slabs.views[0]) == DATA


async def test_a_channel_that_ends_in_mid_request_ends_no_other(
    origin: Origin, source: HttpSource, slabs: Slabs
) -> None:
    """As all of them do when the daemon is killed."""
    file = await pin(source, origin)
    one = make(source, file, slabs)
    one.start(0, SIZE)
    (pid,) = pids(source)
    before = len(os.listdir(f"/proc/{pid}/fd"))
    assert one._line is not None
    one._line.channel.shutdown()
    async with asyncio.timeout(20):
        while runs(pid) and len(os.listdir(f"/proc/{pid}/fd")) >= before:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert pids(source) == [pid]
    with closing(make(source, file, slabs)) as other:
        assert read(other, slabs.views[1]) == DATA
    one.close()


async def test_signals_to_the_group_do_not_end_it(origin: Origin, source: HttpSource, slabs: Slabs) -> None:
    """systemd sends SIGTERM to all processes of a unit; the daemon still finishes what it drains."""
    file = await pin(source, origin)
    reader = make(source, file, slabs)
    reader.start(0, SIZE)
    (pid,) = pids(source)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(pid, number)
    done = 0
    while done < SIZE:
        with slabs.views[0][done:SIZE] as rest:
            done += reader.readinto(rest)
    reader.finish()
    reader.close()
    assert pids(source) == [pid]


async def test_after_close_no_process_runs(origin: Origin, slabs: Slabs) -> None:
    source = HttpSource(processes=1)
    reader = make(source, await pin(source, origin), slabs)
    read(reader, slabs.views[0])
    reader.close()
    (pid,) = pids(source)
    await source.close()
    assert not runs(pid)
    with pytest.raises(SourceUnavailable, match="closed"):
        reader.start(0, 1)


PARENT = """
import asyncio, sys, time
from weightd.core.parts import Part
from weightd.core.refs import parse_ref
from weightd.engine.buffers import SlabBuffers
from weightd.sources.http import HttpSource
from weightd.sources.receiver_process import Window
from weightd.storage.shared import Slabs
source, slabs = HttpSource(processes=1), Slabs(1, 1 << 20)
file = asyncio.run(source.resolve(parse_ref(sys.argv[1]))).files[0]
reader = source.reader(file, slabs.shared)
reader.start(0, file.size)
print(*source._receiving._processes.pids(), flush=True)
reader.readinto(slabs.views[0][:file.size])
"""


def test_it_ends_with_its_parent(origin: Origin) -> None:
    origin.fault("f.bin", Fault(), times=1)
    origin.fault("f.bin", Fault(stall_after=1000))
    parent = subprocess.Popen([sys.executable, "-c", PARENT, origin.url("f.bin")], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    with parent.stdout:
        pidfd = os.pidfd_open(int(parent.stdout.readline()))
    try:
        parent.kill()
        parent.wait()
        ended, _, _ = select.select([pidfd], [], [], 20)  # Readable when the process has ended.
        assert ended
    finally:
        os.close(pidfd)


async def test_no_secret_is_in_its_title_or_environment(origin: Origin, source: HttpSource, slabs: Slabs) -> None:
    url = origin.url("f.bin").replace("//", "//user:hunter2@")
    reader = make(source, (await source.resolve(parse_ref(url))).files[0], slabs)
    assert read(reader, slabs.views[0]) == DATA
    (pid,) = pids(source)
    assert b"hunter2" not in told_of(pid)
    reader.close()


def test_signed_addresses_are_asked_for_once_for_all_processes() -> None:
    data = os.urandom(64 * 8192)
    with Edge(data) as edge, Resolver(edge) as resolver, closing(Slabs(1, SLAB)) as slabs:
        edge.expire_after = [16, 48]
        file = FileSpec("f.bin", len(data), resolver.url("f.bin"), validator=Validator(edge.etag))
        pool = ConnectionPool(HttpOptions(connect_timeout=5, read_timeout=5))
        owner, todo = Processes(2, pool), list(range(64))
        started = threading.Barrier(4)

        def work() -> None:
            reader = ProcessReader(file, slabs.shared, owner)
            started.wait(10)
            while todo:
                at = todo.pop() * 8192
                with slabs.views[0][at : at + 8192] as view:
                    reader.start(at, 8192)
                    done = 0
                    while done < 8192:
                        with view[done:] as rest:
                            done += reader.readinto(rest)
                    reader.finish()
            reader.close()

        with ThreadPoolExecutor(4) as threads:
            for future in [threads.submit(work) for _ in range(4)]:
                future.result()
        assert len(owner.pids()) == 2
        owner.close()
        pool.close()
        assert slabs.views[0][: len(data)] == data
        assert len(resolver.log) == 3, "at first, and after each expiry"


async def test_addresses_count_for_all_processes(origin: Origin, source: HttpSource, slabs: Slabs) -> None:
    file = await pin(source, origin)
    place, known = Place("127.0.0.1", origin.port), source._pool.addresses
    readers = [make(source, file, slabs) for _ in range(3)]
    for reader in readers:
        reader.start(0, SIZE)
    assert isinstance(known, Addresses)
    assert known._spreads[place]._used == {"127.0.0.1": 3}
    for pid in pids(source):
        os.kill(pid, signal.SIGKILL)
    for reader in readers:
        with pytest.raises(SourceUnavailable), slabs.views[0][:SIZE] as view:
            reader.readinto(view)
        reader.close()
    assert known._spreads[place]._used == {}, "the addresses of connections that died with their process"


async def test_through_a_proxy(origin: Origin, slabs: Slabs) -> None:
    """Its credentials go to the process in a message, as all options do."""
    with RealProxy(basic="user:hunter2") as proxy:
        proxies = Proxies(parse_proxy(proxy.url("user:hunter2")))
        source = HttpSource(HttpOptions(proxies=proxies), processes=1)
        reader = make(source, await pin(source, origin), slabs)
        before = len(proxy.log)
        assert read(reader, slabs.views[0]) == DATA
        assert len(proxy.log) == before + 1
        reader.close()
        await source.close()


def test_a_read_without_its_memory_ends_the_process(tmp_path: Path) -> None:
    """A descriptor can be lost on the way: nothing may be received into memory that is nobody's."""
    window = Window()
    with pytest.raises(AssertionError, match="without the memory"):
        window.view(0, 10)
    ours, theirs = Channel.pair()
    with theirs, (tmp_path / "file").open("wb") as file:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        ours.send(Read(0, 10), file.fileno())
        lowest = os.dup(file.fileno())
        os.close(lowest)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
            with pytest.raises(EOFError):
                Channel(theirs).receive()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    ours.close()


def test_no_slab_of_another_size_reaches_a_process() -> None:
    """One that was made for a larger part is never given to a smaller one."""
    buffers, stop = SlabBuffers(2, 4096), threading.Event()
    shared = buffers.shared(4096)
    assert shared is not None
    assert buffers.shared(8192) is None
    for _ in range(3):
        assert buffers.reserve(stop)
        large = buffers.acquire(Part(0, 0, 8192))
        buffers.release(large)
        assert buffers.reserve(stop)
        assert buffers.reserve(stop)
        views = [buffers.acquire(Part(i, 0, 4096)) for i in range(2)]
        assert sorted(map(shared.offset_of, views)) == [0, 4096]
        for view in views:
            buffers.release(view)
    assert len(buffers._large) == 1
    buffers.close()


async def test_idle_channels_keep_no_more_connections_than_a_host_may_have(origin: Origin, slabs: Slabs) -> None:
    source = HttpSource(HttpOptions(connections_per_host=2), processes=2)
    owner, file = source._receiving._processes, await pin(source, origin)
    assert owner is not None
    lines = [owner.take() for _ in range(4)]
    for line in lines:
        owner.give(line)
    assert sum(p.channels for p in owner._processes) == 2
    reader = make(source, file, slabs)
    assert read(reader, slabs.views[0]) == DATA
    reader.close()
    assert sum(p.channels for p in owner._processes) == 2
    await source.close()
