"""Files whose own URL is of another scheme: a mint says where they are now, and with which headers."""

from __future__ import annotations

import math
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from tests.support.signed import Edge, Resolver
from weightd.core.errors import SourceDenied, SourceUnavailable
from weightd.core.manifest import FileSpec, Validator
from weightd.core.pace import START
from weightd.core.parts import Part, plan_parts
from weightd.engine.buffers import SlabBuffers
from weightd.sources.connection import HttpOptions
from weightd.sources.protocols import Reader
from weightd.sources.receiving import Receiving
from weightd.sources.routes import Minted, Routes

PART = 8192
PARTS = 32
BYTES = random.Random(7).randbytes(PART * PARTS)
SECRET = ("Authorization", "Bearer hf_secret")
URL = "twin://bucket/f.bin"


class Mint:
    """Says what `make` makes; `asked` counts."""

    def __init__(self, make: Callable[[], Minted]) -> None:
        self.make = make
        self.asked = 0
        self.held = threading.Event()
        self.held.set()
        self.waiting = threading.Event()

    def __call__(self, url: str, aborted: Callable[[], bool]) -> Minted | None:
        assert url == URL
        self.asked += 1
        self.waiting.set()
        while not self.held.wait(0.01):
            if aborted():
                return None
        return self.make()


@pytest.fixture
def edge() -> Iterator[Edge]:
    with Edge(BYTES) as edge:
        yield edge


@pytest.fixture
def resolver(edge: Edge) -> Iterator[Resolver]:
    with Resolver(edge) as resolver:
        yield resolver


@pytest.fixture(params=[0, 2], ids=["threads", "processes"])
def receiving(request: pytest.FixtureRequest) -> Iterator[Receiving]:
    options = HttpOptions(connect_timeout=5, read_timeout=5, attempts=1)
    receiving = Receiving(options, request.param)
    yield receiving
    receiving.pool.close()
    if receiving._processes is not None:
        receiving._processes.close()


def spec(edge: Edge) -> FileSpec:
    return FileSpec("f.bin", len(BYTES), URL, validator=Validator(edge.etag))


def signed(edge: Edge, headers: tuple[tuple[str, str], ...] = (), until: float = math.inf) -> Minted:
    return Minted(edge.url(f"k?X-Amz-Signature={edge.sign()}"), headers, until)


def fetch(receiving: Receiving, file: FileSpec, readers: int = 4) -> bytes:
    """All parts by several threads; the first error is raised when all have ended."""
    todo, lock = deque(plan_parts(len(BYTES), PART)), threading.Lock()
    first = todo[0]
    with closing(SlabBuffers(readers, PART)) as slabs:
        shared = slabs.shared(PART)

        def take() -> Part | None:
            with lock:
                return todo.popleft() if todo else None

        def work() -> dict[int, bytes]:
            got: dict[int, bytes] = {}
            reader: Reader = receiving.reader(file, shared)
            assert slabs.reserve(threading.Event())
            view = slabs.acquire(first)
            try:
                while (part := take()) is not None:
                    reader.start(part.offset, PART)
                    done = 0
                    while done < PART:
                        with view[done:PART] as rest:
                            done += reader.readinto(rest)
                    reader.finish()
                    got[part.offset] = bytes(view[:PART])
            finally:
                reader.close()
                slabs.release(view)
            return got

        with ThreadPoolExecutor(readers) as threads:
            futures = [threads.submit(work) for _ in range(readers)]
        pieces = {offset: piece for f in futures for offset, piece in f.result().items()}
    return b"".join(pieces[offset] for offset in sorted(pieces))


def test_the_mint_is_asked_once_for_all(edge: Edge, receiving: Receiving) -> None:
    mint = Mint(lambda: signed(edge, (SECRET,)))
    receiving.routes.mint("twin", mint)
    assert receiving.width(spec(edge)) == START
    assert fetch(receiving, spec(edge)) == BYTES
    assert mint.asked == 1
    assert all(head["Authorization"] == SECRET[1] for head in edge.heads)
    assert receiving.width(spec(edge)) >= START


def test_and_again_when_the_address_is_refused(edge: Edge, receiving: Receiving) -> None:
    edge.expire_after = [5, 20]
    mint = Mint(lambda: signed(edge))
    receiving.routes.mint("twin", mint)
    assert fetch(receiving, spec(edge)) == BYTES
    assert mint.asked == 3


def test_an_address_that_leads_elsewhere(edge: Edge, resolver: Resolver, receiving: Receiving) -> None:
    """It is asked once, with its headers; where it leads gets none of them."""
    mint = Mint(lambda: Minted(resolver.url("f.bin"), (SECRET,), leads=True))
    receiving.routes.mint("twin", mint)
    edge.expire_after = [10]
    assert fetch(receiving, spec(edge)) == BYTES
    assert len(resolver.log) == mint.asked == 2
    assert all(head["Authorization"] == SECRET[1] for head in resolver.heads)
    assert not any("Authorization" in head for head in edge.heads)


def test_one_that_might_lead_elsewhere_and_does_not(edge: Edge, receiving: Receiving) -> None:
    """Its headers go on with it."""
    mint = Mint(lambda: signed(edge, (SECRET,))._replace(leads=True))
    receiving.routes.mint("twin", mint)
    assert fetch(receiving, spec(edge)) == BYTES
    assert mint.asked == 1
    assert all(head["Authorization"] == SECRET[1] for head in edge.heads)


def test_a_mint_that_waits_for_long_is_asked_by_one_alone(edge: Edge) -> None:
    """For a quota, it may be minutes: longer than a question to a server takes."""
    routes, mint = Routes(patience=0.0), Mint(lambda: signed(edge))
    routes.mint("twin", mint)
    mint.held.clear()
    waiting = [threading.Event(), threading.Event()]
    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(routes.take, URL, lambda: False)
        try:
            assert mint.waiting.wait(10)
            others = [threads.submit(routes.take, URL, lambda e=e: bool(e.set())) for e in waiting]  # type: ignore[misc]
            for e in waiting * 2:  # It has looked twice, and waits still.
                assert e.wait(10)
                e.clear()
            assert mint.asked == 1
        finally:
            mint.held.set()
    assert len({f.result() for f in (first, *others)}) == 1
    assert mint.asked == 1


def test_what_a_mint_raises_reaches_every_reader(edge: Edge, receiving: Receiving) -> None:
    def refuse() -> Minted:
        raise SourceDenied("the token is not good", remedy="Get another.")

    receiving.routes.mint("twin", Mint(refuse))
    with pytest.raises(SourceDenied, match="the token is not good") as caught:
        fetch(receiving, spec(edge))
    assert (caught.value.remedy, caught.value.file) == ("Get another.", "f.bin")
    receiving.routes.mint("twin", Mint(lambda: signed(edge)))
    assert fetch(receiving, spec(edge)) == BYTES, "a channel on which something was raised can be used again"


def test_a_refused_address_ends_in_its_status(edge: Edge, receiving: Receiving) -> None:
    edge.refuses = True
    mint = Mint(lambda: signed(edge))
    receiving.routes.mint("twin", mint)
    with pytest.raises(SourceDenied):
        fetch(receiving, spec(edge), 1)
    assert mint.asked == 2


def test_abort_ends_the_wait_for_a_mint(edge: Edge, receiving: Receiving) -> None:
    mint = Mint(lambda: signed(edge))
    mint.held.clear()
    receiving.routes.mint("twin", mint)
    with closing(SlabBuffers(1, PART)) as slabs, ThreadPoolExecutor(1) as thread:
        reader = receiving.reader(spec(edge), slabs.shared(PART))
        started = thread.submit(reader.start, 0, PART)
        assert mint.waiting.wait(10)
        reader.abort()
        with pytest.raises(SourceUnavailable, match="aborted"):
            started.result(10)
        reader.close()
    mint.held.set()
    assert fetch(receiving, spec(edge)) == BYTES


def test_a_mint_that_fails_while_the_old_address_is_good() -> None:
    """Credentials end at `until`, whatever the address says of itself."""
    now, left = 1_767_225_600.0, [Minted("http://a/1", (SECRET,), 1_767_225_700.0)]

    def mint(url: str, aborted: Callable[[], bool]) -> Minted:
        if not left:
            raise SourceUnavailable("no credentials now")
        return left.pop()

    routes = Routes(5, lambda: now)
    routes.mint("twin", mint)

    def take() -> tuple[str, tuple[tuple[str, str], ...]]:
        route = routes.take(URL, lambda: False)
        assert route is not None
        assert not route.asks
        assert "hf_secret" not in repr(route)
        return route.address, route.headers

    assert take() == ("http://a/1", (SECRET,))
    now += 91  # A tenth before its end it is renewed.
    assert take() == ("http://a/1", (SECRET,))
    left.append(Minted("http://a/2"))
    assert take() == ("http://a/1", (SECRET,)), "it rests before it asks again"
    now += 6
    assert take() == ("http://a/2", ())
    routes.refused(URL, routes.take(URL, lambda: False).serial)  # type: ignore[union-attr]
    with pytest.raises(SourceUnavailable, match="no credentials now"):
        take()
