"""One host name with several addresses: they share the load, and one that is dead, silent or slow costs little."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.sources.conftest import DATA
from tests.sources.test_http_reader import read, read_and_close
from tests.support.origin import Fault
from tests.support.places import HOST, Away, Names, black_hole, free_port
from weightd.core.errors import SourceUnavailable
from weightd.core.manifest import FileSpec
from weightd.core.refs import parse_ref
from weightd.engine.requests import Requests
from weightd.sources.connection import ConnectionPool, HttpOptions
from weightd.sources.dial import Place
from weightd.sources.http import HttpSource
from weightd.sources.http_reader import HttpReader

SIZE = len(DATA)
PATIENT = HttpOptions(connect_timeout=60, read_timeout=60)
"""What ends in time was not ended by a timeout: every test here has 30 s."""
pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    return Names(monkeypatch)


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[ConnectionPool]:
    """Its gates are wide open from the start."""
    monkeypatch.setattr("weightd.core.pace.START", 16)
    pool = ConnectionPool(PATIENT)
    yield pool
    pool.close()


@contextlib.contextmanager
def several(names: Names, *addresses: str) -> Iterator[list[Away]]:
    """Origins on these addresses and one port, with one name."""
    port = free_port()
    names[HOST] = list(addresses)
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Away({"f.bin": DATA}, address, port)) for address in addresses]


def spec(origin: Away) -> FileSpec:
    return FileSpec("f.bin", SIZE, origin.url("f.bin"))


def readers(pool: ConnectionPool, file: FileSpec, count: int) -> list[HttpReader]:
    """Each in the middle of an answer."""
    made = [HttpReader(file, pool) for _ in range(count)]
    for reader in made:
        reader.start(0, 10)
    return made


def used(pool: ConnectionPool, port: int) -> dict[str, int]:
    return pool.addresses._spreads[Place(HOST, port)]._used


def test_connections_are_spread(names: Names, pool: ConnectionPool) -> None:
    with several(names, "127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4") as origins:
        open_ones = readers(pool, spec(origins[0]), 8)
        assert [origin.connections for origin in origins] == [2, 2, 2, 2]
        for reader in open_ones:
            reader.close()
        assert used(pool, origins[0].port) == {}


def test_threads_that_begin_together_are_spread(names: Names, pool: ConnectionPool) -> None:
    with several(names, "127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4") as origins:
        file, barrier = spec(origins[0]), threading.Barrier(4)
        pool.routes.learned(file.url, file.url)

        def work() -> HttpReader:
            reader = HttpReader(file, pool)
            barrier.wait(10)
            reader.start(0, 10)
            return reader

        with ThreadPoolExecutor(4) as threads:
            open_ones = [future.result() for future in [threads.submit(work) for _ in range(4)]]
        for reader in open_ones:
            reader.close()
        assert [origin.connections for origin in origins] == [1, 1, 1, 1]


def test_connections_that_end_with_their_answer_are_counted_while_it_lasts(names: Names, pool: ConnectionPool) -> None:
    with several(names, "127.0.0.1", "127.0.0.2") as origins:
        for origin in origins:
            origin.fault("f.bin", Fault(headers={"Connection": "close"}))
        open_ones = readers(pool, spec(origins[0]), 4)
        assert [origin.connections for origin in origins] == [2, 2]
        for reader in open_ones:
            reader.close()
        assert used(pool, origins[0].port) == {}


def test_a_closed_port_among_them(names: Names, pool: ConnectionPool) -> None:
    with several(names, "127.0.0.2", "127.0.0.3") as origins:
        names[HOST].insert(0, "127.0.0.1")
        open_ones = readers(pool, spec(origins[0]), 6)
        assert [origin.connections for origin in origins] == [3, 3]
        for reader in open_ones:
            reader.close()


def test_a_black_hole_among_them(names: Names, pool: ConnectionPool) -> None:
    """It costs the first connection half a second, and the others nothing."""
    with several(names, "127.0.0.2", "127.0.0.3") as origins, black_hole("127.0.0.1", origins[0].port):
        names[HOST].insert(0, "127.0.0.1")
        open_ones = readers(pool, spec(origins[0]), 6)
        assert [origin.connections for origin in origins] == [3, 3]
        assert "127.0.0.1" in pool.addresses._spreads[Place(HOST, origins[0].port)]._bad_until
        for reader in open_ones:
            reader.close()
        assert used(pool, origins[0].port) == {}


def test_a_dead_a_silent_and_a_slow_one(names: Names, pool: ConnectionPool) -> None:
    """Of four addresses one serves; the transfer's bytes come from there."""
    with several(names, "127.0.0.3", "127.0.0.4") as (slow, good), black_hole("127.0.0.2", good.port):
        names[HOST][:0] = ["127.0.0.1", "127.0.0.2"]
        slow.fault("f.bin", Fault(stall_after=1000))
        requests, file = Requests(100), spec(good)
        crawling = HttpReader(file, pool)
        request = requests.begin(crawling, SIZE, replaceable=True)
        with ThreadPoolExecutor(1) as thread:
            stuck = thread.submit(read, crawling)
            slow.wait_for(1)
            for _ in range(5):
                fast = HttpReader(file, pool)
                moving = requests.begin(fast, SIZE, replaceable=True)
                assert read_and_close(fast) == DATA
                moving.moved = 1 << 30
                requests.end(moving)
            # What the transfer does when a request is slower than a third of the median.
            request.replaced = True
            crawling.abort()
            with pytest.raises(SourceUnavailable, match="aborted"):
                stuck.result(10)
        crawling.close()
        for _ in range(8):
            assert read_and_close(HttpReader(file, pool), 1000, 5000) == DATA[1000:6000]
        assert len(slow.requests) == 1
        assert used(pool, good.port).keys() <= {"127.0.0.4"}


@pytest.mark.parametrize("fault", [Fault(reset_after=1000), Fault(short=1000), Fault(hang_up=True), Fault(status=500)])
def test_one_that_broke_off_goes_behind_the_others(names: Names, pool: ConnectionPool, fault: Fault) -> None:
    with several(names, "127.0.0.1", "127.0.0.2") as (bad, good):
        bad.fault("f.bin", fault)
        with pytest.raises(SourceUnavailable):
            read_and_close(HttpReader(spec(good), pool))
        for _ in range(4):
            assert read_and_close(HttpReader(spec(good), pool)) == DATA
        assert (len(bad.requests), len(good.requests)) == (1, 4)


def test_idle_connections_to_a_bad_address_are_not_used(names: Names, pool: ConnectionPool) -> None:
    with several(names, "127.0.0.1", "127.0.0.2") as (first, second):
        file = spec(first)
        open_ones = readers(pool, file, 3)
        for reader in open_ones:
            assert reader.readinto(memoryview(bytearray(10))) == 10
            reader.finish()
            reader.close()
        for origin in (first, second):
            origin.fault("f.bin", Fault(reset_after=1000), times=1)
        with pytest.raises(SourceUnavailable):
            read_and_close(HttpReader(file, pool))
        broken, sound = (first, second) if len(first.requests) == 3 else (second, first)
        sound.mend()
        before = len(sound.requests)
        for _ in range(3):
            read_and_close(HttpReader(file, pool))
        assert len(sound.requests) == before + 3
        assert len(broken.requests) <= 3


def test_none_of_them_answers(names: Names, pool: ConnectionPool) -> None:
    names[HOST] = ["127.0.0.1", "127.0.0.2"]
    file = FileSpec("f.bin", SIZE, f"http://{HOST}:{free_port()}/f.bin")
    with pytest.raises(SourceUnavailable, match=f"no connection to {HOST} port"):
        read_and_close(HttpReader(file, pool))


def test_all_are_silent(names: Names) -> None:
    pool, port = ConnectionPool(HttpOptions(connect_timeout=0.7)), free_port()
    names[HOST] = ["127.0.0.1", "127.0.0.2"]
    with black_hole("127.0.0.1", port), black_hole("127.0.0.2", port):
        with pytest.raises(SourceUnavailable, match=r"within 0\.7 s"):
            read_and_close(HttpReader(FileSpec("f.bin", SIZE, f"http://{HOST}:{port}/f.bin"), pool))
    assert used(pool, port) == {}
    pool.close()


def test_abort_ends_the_attempts(names: Names, pool: ConnectionPool) -> None:
    port = free_port()
    names[HOST] = ["127.0.0.1", "127.0.0.2"]
    with black_hole("127.0.0.1", port), black_hole("127.0.0.2", port):
        reader = HttpReader(FileSpec("f.bin", SIZE, f"http://{HOST}:{port}/f.bin"), pool)
        names.asked.clear()
        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(reader.start, 0, 10)
            assert names.asked.wait(10)
            reader.abort()
            with pytest.raises(SourceUnavailable, match="aborted"):
                waiting.result(10)
        reader.close()
        assert used(pool, port) == {}


def test_no_tls_on_any_of_them(names: Names, pool: ConnectionPool) -> None:
    """A handshake that fails is a failed address as well; the last reason is told."""
    port, greeted = free_port(), []
    names[HOST] = ["127.0.0.1", "127.0.0.2"]

    def plain(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        with sock:
            sock.recv(65536)
            sock.sendall(b"HTTP/1.1 400 This is plain HTTP\r\n\r\n")
            greeted.append(listener.getsockname()[0])

    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server((address, port))) for address in names[HOST]]
        threads = stack.enter_context(ThreadPoolExecutor(2))
        for listener in listeners:
            threads.submit(plain, listener)
        with pytest.raises(SourceUnavailable, match="no secure connection"):
            read_and_close(HttpReader(FileSpec("f.bin", SIZE, f"https://{HOST}:{port}/f.bin"), pool))
    assert greeted == names[HOST]
    assert used(pool, port) == {}


async def test_ipv6(names: Names) -> None:
    with Away({"f.bin": DATA, "g.bin": DATA}, "::1", host="[::1]") as origin:
        source = HttpSource()
        origin.fault("g.bin", Fault(redirect=origin.url("f.bin?x=%2F")))
        for name in ("f.bin", "g.bin"):
            file = (await source.resolve(parse_ref(origin.url(name)))).files[0]
            assert read_and_close(source.reader(file)) == DATA
        assert {request.headers["host"] for request in origin.requests} == {f"[::1]:{origin.port}"}
        assert origin.requests[-1].target == "/f.bin?x=%2F"
        await source.close()


async def test_a_name_whose_ipv6_address_refuses(names: Names) -> None:
    names[HOST] = ["::1", "127.0.0.1"]
    with Away({"f.bin": DATA}, "127.0.0.1", free_port()) as origin:
        source = HttpSource(PATIENT)
        file = (await source.resolve(parse_ref(origin.url("f.bin")))).files[0]
        assert read_and_close(source.reader(file)) == DATA
        await source.close()


def test_a_host_without_ipv6(names: Names, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel was started with ipv6.disable=1, and DNS has both."""
    real = socket.socket

    class Without(real):  # type: ignore[misc,valid-type]
        def __init__(self, family: int = -1, *args: object, **options: object) -> None:
            if family == socket.AF_INET6:
                raise OSError(97, "Address family not supported by protocol")
            super().__init__(family, *args, **options)

    names[HOST] = ["::1", "127.0.0.1"]
    with Away({"f.bin": DATA}, "127.0.0.1", free_port()) as origin:
        monkeypatch.setattr(socket, "socket", Without)
        assert read_and_close(HttpReader(spec(origin), pool)) == DATA
