"""Signed addresses are asked for once for all readers: at first, before they end, and when they are refused."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

import pytest

from tests.support.origin import Fault, Origin
from tests.support.signed import Edge, Resolver
from weightd.core.errors import SourceDenied, SourceUnavailable, WeightdError
from weightd.core.manifest import FileSpec, Validator
from weightd.core.refs import parse_ref
from weightd.sources.connection import ConnectionPool, HttpOptions
from weightd.sources.http import HttpSource
from weightd.sources.http_reader import HttpReader
from weightd.sources.routes import Route, Routes

PART = 8192
PARTS = 64
BYTES = random.Random(3).randbytes(PART * PARTS)
READERS = 8
FILE = "http://resolver.test/f.bin"


class Clock:
    def __init__(self) -> None:
        self.now = 1_767_225_600.0

    def __call__(self) -> float:
        return self.now


def never() -> bool:
    return False


@pytest.fixture
def edge() -> Iterator[Edge]:
    with Edge(BYTES) as edge:
        yield edge


@pytest.fixture
def resolver(edge: Edge) -> Iterator[Resolver]:
    with Resolver(edge) as resolver:
        yield resolver


@pytest.fixture
def pool() -> Iterator[ConnectionPool]:
    pool = ConnectionPool(HttpOptions(connect_timeout=5, read_timeout=5))
    yield pool
    pool.close()


def spec(resolver: Resolver, edge: Edge) -> FileSpec:
    return FileSpec("f.bin", len(BYTES), resolver.url("f.bin"), validator=Validator(edge.etag))


def fetch(file: FileSpec, pool: ConnectionPool, readers: int = READERS) -> bytes:
    """All parts by several threads, each with a reader; the first error is raised when all have ended."""
    data, todo, lock = memoryview(bytearray(file.size)), list(range(PARTS - 1, -1, -1)), threading.Lock()

    def work() -> None:
        reader = HttpReader(file, pool)
        try:
            while True:
                with lock:
                    if not todo:
                        return
                    at = todo.pop() * PART
                reader.start(at, PART)
                done = 0
                while done < PART:
                    done += reader.readinto(data[at + done : at + PART])
                reader.finish()
        finally:
            reader.close()

    with ThreadPoolExecutor(readers) as threads:
        futures = [threads.submit(work) for _ in range(readers)]
    for future in futures:
        future.result()
    return bytes(data)


def test_one_question_for_all_readers(resolver: Resolver, edge: Edge, pool: ConnectionPool) -> None:
    assert fetch(spec(resolver, edge), pool) == BYTES
    assert resolver.log == ["/f.bin"]
    assert {"%2Fsigned" in target for target in edge.log} == {True}


def test_one_question_for_each_expiry_in_mid_file(resolver: Resolver, edge: Edge, pool: ConnectionPool) -> None:
    edge.expire_after = [16, 48]
    assert fetch(spec(resolver, edge), pool) == BYTES
    assert len(resolver.log) == 3
    assert len(edge.log) <= PARTS + 2 * READERS, "each reader is refused once for each expiry, at most"


async def test_the_question_of_resolving_serves_the_readers(resolver: Resolver, edge: Edge) -> None:
    source = HttpSource()
    file = (await source.resolve(parse_ref(resolver.url("f.bin")))).files[0]
    assert file.url == resolver.url("f.bin")
    assert fetch(file, source._pool) == BYTES
    await source.close()
    assert len(resolver.log) == 1


def test_an_edge_that_refuses_for_ever(resolver: Resolver, edge: Edge, pool: ConnectionPool) -> None:
    file = spec(resolver, edge)
    assert fetch(file, pool) == BYTES
    edge.refuses = True
    resolver.log.clear()
    edge.log.clear()
    with pytest.raises(SourceDenied, match="403") as caught:
        fetch(file, pool)
    assert "signed/f.bin" in str(caught.value)
    assert "%2F" not in str(caught.value)
    assert len(resolver.log) <= READERS
    assert len(edge.log) <= 4 * READERS, "four addresses for each reader, at most"


def test_a_resolver_that_is_down_at_renewal(resolver: Resolver, edge: Edge, pool: ConnectionPool) -> None:
    file = spec(resolver, edge)
    edge.expire_after = [20]
    with ThreadPoolExecutor(1) as thread:
        assert fetch(file, pool, readers=1) == BYTES  # One renewal that works.
        edge.expire()
        resolver.status = 502
        resolver.log.clear()
        with pytest.raises(SourceUnavailable, match="502"):
            fetch(file, pool)
        assert len(resolver.log) == READERS, "each one tried in its turn"
        resolver.status = None
        assert thread.submit(fetch, file, pool).result(30) == BYTES
    assert len(resolver.log) == READERS + 1


def test_those_who_wait_are_let_go_when_aborted(resolver: Resolver, edge: Edge) -> None:
    pool = ConnectionPool(HttpOptions(connect_timeout=60, read_timeout=60))
    file = spec(resolver, edge)
    resolver.hold.clear()
    asks, waits = HttpReader(file, pool), HttpReader(file, pool)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(asks.start, 0, PART)
        assert resolver.asked.wait(10)
        second = threads.submit(waits.start, 0, PART)
        waits.abort()
        with pytest.raises(SourceUnavailable, match="aborted"):
            second.result(10)
        resolver.hold.set()
        first.result(10)
    assert len(resolver.log) == 1
    asks.close()
    waits.close()
    pool.close()


def test_one_who_asks_and_is_aborted_lets_the_next_ask(resolver: Resolver, edge: Edge) -> None:
    pool = ConnectionPool(HttpOptions(connect_timeout=60, read_timeout=60))
    file = spec(resolver, edge)
    resolver.hold.clear()
    asks, waits = HttpReader(file, pool), HttpReader(file, pool)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(asks.start, 0, PART)
        assert resolver.asked.wait(10)
        second = threads.submit(waits.start, 0, PART)
        asks.abort()
        with pytest.raises(SourceUnavailable, match="aborted"):
            first.result(10)
        resolver.hold.set()
        second.result(10)
    asks.close()
    waits.close()
    pool.close()


def test_renewed_before_it_ends() -> None:
    clock = Clock()
    with Edge(BYTES) as edge, Resolver(edge, life=600, clock=clock) as resolver:
        pool = ConnectionPool(HttpOptions(), routes=Routes(10, clock))
        file = spec(resolver, edge)
        for seconds, questions in ((0, 1), (539, 1), (2, 2), (500, 2), (100, 3)):
            clock.now += seconds
            assert fetch(file, pool, readers=4) == BYTES
            assert len(resolver.log) == questions
        pool.close()


def test_a_renewal_that_fails_leaves_an_address_that_is_good(edge: Edge) -> None:
    clock = Clock()
    with Resolver(edge, life=600, clock=clock) as resolver:
        pool = ConnectionPool(HttpOptions(), routes=Routes(10, clock))
        file = spec(resolver, edge)
        assert fetch(file, pool) == BYTES
        clock.now += 550
        resolver.status = 503
        with pytest.raises(SourceUnavailable, match="503"):
            fetch(file, pool, readers=1)
        assert fetch(file, pool) == BYTES
        assert len(resolver.log) == 2
        pool.close()


def test_a_resolver_that_asks_to_wait_is_not_asked_by_the_next(
    resolver: Resolver, edge: Edge, pool: ConnectionPool
) -> None:
    resolver.status, resolver.headers = 429, {"Retry-After": "30"}
    readers = [HttpReader(spec(resolver, edge), pool) for _ in range(READERS)]
    with ThreadPoolExecutor(READERS) as threads:
        futures = [threads.submit(reader.start, 0, PART) for reader in readers]
        (first, *_), _ = wait(futures, 10, FIRST_COMPLETED)
        with pytest.raises(SourceUnavailable, match="429") as caught:
            first.result()
        assert caught.value.retry_after == 30  # type: ignore[attr-defined]
        for reader in readers:
            reader.abort()
    assert len(resolver.log) == 1
    for reader in readers:
        reader.close()


def test_an_edge_in_trouble_is_asked_for_anew(resolver: Resolver, edge: Edge, pool: ConnectionPool) -> None:
    file = spec(resolver, edge)
    assert fetch(file, pool) == BYTES
    edge.status = 500
    with pytest.raises(SourceUnavailable, match="500"):
        fetch(file, pool, readers=1)
    edge.status = None
    assert fetch(file, pool) == BYTES
    assert len(resolver.log) == 2


def test_an_origin_that_does_not_redirect_is_waited_for_once() -> None:
    """All readers but the first are at the origin at the same time."""
    with Origin({"f.bin": BYTES}) as origin:
        pool = ConnectionPool(HttpOptions(read_timeout=60))
        file = FileSpec("f.bin", len(BYTES), origin.url("f.bin"))
        first = HttpReader(file, pool)
        first.start(0, PART)
        origin.fault("f.bin", Fault(stall_head=True))
        readers = [HttpReader(file, pool) for _ in range(3)]
        with ThreadPoolExecutor(3) as threads:
            stalled = [threads.submit(reader.start, 0, PART) for reader in readers]
            origin.wait_for(4)
            for reader in readers:
                reader.abort()
            for future in stalled:
                with pytest.raises(SourceUnavailable):
                    future.result(10)
        for reader in (first, *readers):
            reader.close()
        pool.close()


def test_no_text_tells_a_signature(resolver: Resolver, edge: Edge, pool: ConnectionPool) -> None:
    file = spec(resolver, edge)
    fetch(file, pool, readers=1)
    route = pool.routes.take(file.url, never)
    assert "signed" in repr(route)
    assert "%2F" not in repr(route)
    edge.status = 500
    with pytest.raises(WeightdError) as caught:
        fetch(file, pool, readers=1)
    assert "%2F" not in f"{caught.value!s} {vars(caught.value)}"


class TestRoutes:
    def test_the_first_asks_and_the_others_get_what_was_learned(self) -> None:
        routes = Routes(10)
        first = routes.take(FILE, never)
        assert first == Route(FILE, 0, True)
        with ThreadPoolExecutor(4) as threads:
            others = [threads.submit(routes.take, FILE, never) for _ in range(4)]
            routes.learned(FILE, "http://edge.test/1")
            routes.done(FILE)
            assert {other.result(10) for other in others} == {Route("http://edge.test/1", 1, False)}

    def test_a_refusal_counts_only_for_the_address_it_met(self) -> None:
        routes = Routes(10)
        for address in ("http://edge.test/1", "http://edge.test/2"):
            routes.learned(FILE, address)
        assert not routes.refused(FILE, 1)
        assert routes.take(FILE, never) == Route("http://edge.test/2", 2, False)
        assert routes.refused(FILE, 2)
        assert routes.take(FILE, never) == Route(FILE, 2, True)

    def test_a_question_that_brought_nothing_goes_to_the_next(self) -> None:
        routes = Routes(10)
        routes.take(FILE, never)
        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(routes.take, FILE, never)
            routes.done(FILE)
            assert waiting.result(10) == Route(FILE, 0, True)

    def test_nothing_waits_for_ever(self) -> None:
        routes = Routes(0.2)
        routes.take(FILE, never)
        assert routes.take(FILE, never) == Route(FILE, 0, True)

    def test_an_aborted_wait(self) -> None:
        routes = Routes(60)
        routes.take(FILE, never)
        aborted = threading.Event()
        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(routes.take, FILE, aborted.is_set)
            aborted.set()
            routes.wake()
            assert waiting.result(10) is None

    def test_during_a_renewal_the_others_go_on_while_the_address_is_good(self) -> None:
        clock = Clock()
        routes = Routes(10, clock)
        routes.learned(FILE, f"http://edge.test/f?Expires={int(clock.now) + 100}")
        clock.now += 95
        first, second = routes.take(FILE, never), routes.take(FILE, never)
        assert [route and route.asks for route in (first, second)] == [True, False]

    def test_an_address_that_comes_expired_is_good_until_refused(self) -> None:
        clock = Clock()
        routes = Routes(10, clock)
        routes.learned(FILE, f"http://edge.test/f?Expires={int(clock.now) - 100}")
        route = routes.take(FILE, never)
        assert route == Route(f"http://edge.test/f?Expires={int(clock.now) - 100}", 1, False)

    def test_no_more_is_remembered_than_is_useful(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("weightd.sources.routes.MOST", 3)
        routes = Routes(10)
        for i in range(10):
            routes.learned(f"{FILE}{i}", "http://edge.test/")
        assert len(routes._known) == 3
