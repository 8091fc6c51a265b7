"""Connections that nobody uses end when they are old, whether their pool is used again or not."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.sources.conftest import DATA
from tests.sources.test_http_reader import read_and_close
from tests.support.origin import Origin
from weightd.core.manifest import FileSpec
from weightd.sources.connection import ConnectionPool, HttpOptions
from weightd.sources.dial import Addresses, Place
from weightd.sources.http_reader import HttpReader
from weightd.sources.idle import Idle
from weightd.sources.process_reader import ProcessReader
from weightd.sources.processes import Processes
from weightd.storage.shared import Slabs

SOON = 0.05


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Pairs:
    """Sockets, and their other ends."""

    def __init__(self) -> None:
        self.made: dict[socket.socket, socket.socket] = {}

    def make(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        theirs.settimeout(10)
        self.made[ours] = theirs
        return ours

    def ended(self, ours: socket.socket) -> bool:
        return ours.fileno() < 0 and self.made[ours].recv(1) == b""


@pytest.fixture
def pairs() -> Iterator[Pairs]:
    pairs = Pairs()
    yield pairs
    for ours, theirs in pairs.made.items():
        ours.close()
        theirs.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def second() -> Iterator[Origin]:
    with Origin({"f.bin": DATA}) as origin:
        yield origin


def kept(clock: Clock, most: int = 4) -> Idle[str, socket.socket]:
    return Idle(socket.socket.close, most, timed=False, seconds=10, clock=clock)


def spec(origin: Origin) -> FileSpec:
    return FileSpec("f.bin", len(DATA), origin.url("f.bin"))


def hung_up(origin: Origin) -> bool:
    """The last connection to it ended, within ten seconds."""
    origin._threads[-1].join(10)
    return not origin._threads[-1].is_alive()


@pytest.mark.parametrize("use", ["give", "take", "take another"])
def test_the_old_end_when_anything_is_used(pairs: Pairs, clock: Clock, use: str) -> None:
    idle = kept(clock)
    old, young = pairs.make(), pairs.make()
    idle.give("a", old)
    clock.now = 5
    idle.give("a", young)
    clock.now = 9.9
    assert idle.take("b") is None
    assert old.fileno() >= 0
    clock.now = 10
    match use:
        case "give":
            idle.give("b", pairs.make())
        case "take":
            assert idle.take("a") is young
        case "take another":
            assert idle.take("b") is None
    assert pairs.ended(old)
    assert young.fileno() >= 0
    idle.close()


def test_the_one_used_last_is_used_first(pairs: Pairs, clock: Clock) -> None:
    idle = kept(clock)
    first, last = pairs.make(), pairs.make()
    idle.give("a", first)
    idle.give("a", last)
    assert [idle.take("a"), idle.take("a"), idle.take("a")] == [last, first, None]
    idle.close()


def test_no_more_of_a_key_than_there_may_be(pairs: Pairs, clock: Clock) -> None:
    idle = kept(clock, most=1)
    first, other, too_many = pairs.make(), pairs.make(), pairs.make()
    idle.give("a", first)
    idle.give("b", other)
    idle.give("a", too_many)
    assert pairs.ended(too_many)
    idle.drop(lambda one: one is other)
    assert pairs.ended(other)
    assert idle.take("a") is first
    idle.close()


def test_after_close_nothing_is_kept(pairs: Pairs, clock: Clock) -> None:
    idle = Idle[str, socket.socket](socket.socket.close, 4, seconds=60)
    before, after = pairs.make(), pairs.make()
    idle.give("a", before)
    idle.close()
    idle.close()
    assert pairs.ended(before)
    idle.give("a", after)
    assert pairs.ended(after)
    assert "weightd-idle" not in [t.name for t in threading.enumerate()]


def test_they_end_by_themselves_and_so_does_who_ends_them(pairs: Pairs) -> None:
    idle = Idle[str, socket.socket](socket.socket.close, 4, seconds=SOON)
    for _ in range(3):
        sock = pairs.make()
        idle.give("a", sock)
        watcher = idle._thread
        assert pairs.made[sock].recv(1) == b""
        if watcher is not None:
            watcher.join(10)
            assert not watcher.is_alive()
    idle.close()


def test_without_a_thread_to_be_had_they_end_with_the_next_use(
    pairs: Pairs, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    idle = Idle[str, socket.socket](socket.socket.close, 4, seconds=10, clock=clock)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        sock = pairs.make()
        idle.give("a", sock)
    clock.now = 10
    assert idle.take("a") is None
    assert pairs.ended(sock)
    idle.close()


def test_a_pool_that_is_used_for_another_origin(origin: Origin, second: Origin, clock: Clock) -> None:
    with closing(ConnectionPool(HttpOptions(), timed=False, clock=clock)) as pool:
        assert read_and_close(HttpReader(spec(origin), pool)) == DATA
        clock.now = 9
        assert read_and_close(HttpReader(spec(origin), pool)) == DATA
        assert origin.connections == 1
        clock.now = 20
        assert read_and_close(HttpReader(spec(second), pool)) == DATA
        assert hung_up(origin)


def test_a_pool_that_is_not_used_any_more(origin: Origin) -> None:
    addresses = Addresses()
    with closing(ConnectionPool(HttpOptions(), addresses=addresses, seconds=SOON)) as pool:
        assert read_and_close(HttpReader(spec(origin), pool)) == DATA
        assert hung_up(origin)
        if (watcher := pool._idle._thread) is not None:
            watcher.join(10)
        assert not any(addresses._spreads[Place("127.0.0.1", origin.port)]._used.values())
        assert read_and_close(HttpReader(spec(origin), pool)) == DATA
        assert origin.connections == 2


def test_a_receiver_process_that_is_not_used_any_more(origin: Origin) -> None:
    with closing(Slabs(1, 1 << 20)) as slabs, closing(ConnectionPool(HttpOptions())) as pool:
        with closing(Processes(1, pool, seconds=SOON)) as processes:
            for connections in (1, 2):
                with closing(ProcessReader(spec(origin), slabs.shared, processes)) as reader:
                    reader.start(0, len(DATA))
                    done = 0
                    while done < len(DATA):
                        with slabs.views[0][done : len(DATA)] as view:
                            done += reader.readinto(view)
                    reader.finish()
                assert slabs.views[0][: len(DATA)] == DATA
                assert hung_up(origin)
                assert origin.connections == connections
            assert len(processes.pids()) == 1
            place = Place("127.0.0.1", origin.port)
            assert not any(pool.addresses._spreads[place]._used.values())  # type: ignore[attr-defined]
