"""What is slow is replaced, what is received stays, and no more comes than is allowed."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest

from tests.engine.rig import PART, Origin, one, pattern, running
from tests.engine.test_transfer import taking_over
from weightd.core.errors import SourceUnavailable
from weightd.engine import requests as requests_module
from weightd.engine.api import Tier
from weightd.engine.receiver import LEAST, RECEIVE
from weightd.engine.requests import Request, Requests
from weightd.engine.throttle import Throttle

DATA = pattern(12 * PART)
BOTH = pytest.mark.parametrize("tier", list(Tier))


class Fake:
    """A reader that only counts its aborts."""

    aborts = 0

    def abort(self, *, slow: bool = False) -> None:
        self.aborts += 1


def begun(requests: Requests, count: int, left: int = 1 << 40) -> list[Request]:
    return [requests.begin(Fake(), left, replaceable=True) for _ in range(count)]  # type: ignore[arg-type]


def look(requests: Requests, running: list[Request], rates: list[int]) -> list[bool]:
    """Two periods at these rates; which requests were replaced."""
    for _ in range(3):
        for request, rate in zip(running, rates, strict=True):
            requests.came(request, rate)
        requests.replace_slow()
    return [r.replaced for r in running]


def test_the_slow_one_is_replaced_once() -> None:
    requests = Requests(100)
    running = begun(requests, 4)
    assert look(requests, running, [100, 100, 100, 1]) == [False, False, False, True]
    assert look(requests, running, [100, 100, 100, 1]) == [False, False, False, True]
    assert [r.reader.aborts for r in running] == [0, 0, 0, 1]  # type: ignore[attr-defined]


def test_the_last_one_is_compared_with_those_that_ended() -> None:
    requests = Requests(100)
    for request in begun(requests, 4):
        requests.came(request, 1 << 40)
        requests.end(request)
    (last,) = begun(requests, 1)
    assert look(requests, [last], [1]) == [True]


def test_not_for_ever() -> None:
    """An origin where every other request is slow by nature is not asked again and again."""
    requests = Requests(0)
    for _ in range(20):
        running = begun(requests, 4)
        look(requests, running, [100, 100, 100, 0])
        for request in running:
            requests.end(request)
    assert requests.allowance == 0


def test_what_has_ended_or_is_about_to_is_left_alone() -> None:
    requests = Requests(100)
    running = begun(requests, 4)
    requests.end(running[3])
    assert not any(look(requests, running, [100, 100, 100, 0]))
    requests = Requests(100)
    assert not any(look(requests, begun(requests, 4, left=301), [100, 100, 100, 30]))


def test_a_stream_is_not_replaced() -> None:
    requests = Requests(100)
    running = begun(requests, 3)
    running.append(requests.begin(Fake(), 1 << 40, replaceable=False))  # type: ignore[arg-type]
    assert not any(look(requests, running, [100, 100, 100, 0]))


@BOTH
async def test_a_slow_edge_does_not_hold_up_the_rest(
    tmp_path: Path, tier: Tier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One connection crawls. It is replaced: the part comes from where it was, and nothing counts as a failure."""
    monkeypatch.setattr("weightd.engine.transfer.WATCH_S", 0.05)
    monkeypatch.setattr(requests_module, "WORTH_S", 0.0)
    monkeypatch.setattr("weightd.engine.receiver.RECEIVE", PART // 4)
    assert RECEIVE > PART
    origin, slow = one(DATA), threading.Event()

    def crawling(path: str, offset: int, length: int) -> None:
        if PART <= offset < 2 * PART and not slow.is_set():
            if offset >= PART + PART // 2:
                origin.hold(lambda path, at: PART <= at < 2 * PART)
                slow.set()
        else:
            time.sleep(0.1)

    origin.on_read = crawling

    def again(path: str, offset: int, length: int) -> None:
        if slow.is_set() and PART < offset < 2 * PART:
            origin.release()

    origin.on_start = again
    async with running(tmp_path, origin, attempts=1, receivers=4) as rig:
        assert rig.content(await rig.fetch(tier=tier)) == {"model.bin": DATA}
    resumed = [offset for _, offset, _ in origin.starts if PART < offset < 2 * PART]
    assert resumed
    assert all(offset >= PART + PART // 2 for offset in resumed)


@BOTH
async def test_another_try_goes_on_from_the_last_byte(
    tmp_path: Path, tier: Tier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weightd.engine.receiver.full_jitter", lambda attempt, draw, base: 0.0)
    monkeypatch.setattr("weightd.engine.receiver.RECEIVE", PART // 4)
    monkeypatch.setattr("weightd.engine.receiver.LEAST", PART // 4)
    origin, failed = one(DATA), set[int]()

    def breaking(path: str, offset: int, length: int) -> None:
        if offset % PART == PART // 2 and offset not in failed:
            failed.add(offset)
            raise SourceUnavailable("reset by peer")

    origin.on_read = breaking
    async with running(tmp_path, origin) as rig:
        assert rig.content(await rig.fetch(tier=tier)) == {"model.bin": DATA}
    assert len(failed) == 12
    assert {(offset, length) for _, offset, length in origin.starts} == {
        (part * PART + half, PART - half) for part in range(12) for half in (0, PART // 2)
    }


async def test_an_origin_that_says_when(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the origin asks for counts when it is more than our own pause."""
    monkeypatch.setattr("weightd.engine.receiver.full_jitter", lambda attempt, draw, base: 0.0)
    origin, at = one(DATA), list[float]()

    def busy(path: str, offset: int, length: int) -> None:
        if offset == 3 * PART:
            at.append(time.monotonic())
            if len(at) == 1:
                error = SourceUnavailable("slow down")
                error.retry_after = 0.4
                raise error

    origin.on_start = busy
    async with running(tmp_path, origin) as rig:
        await rig.fetch()
    assert at[1] - at[0] >= 0.4


def test_all_transfers_share_one_limit() -> None:
    throttle, stop = Throttle(1 << 20), threading.Event()
    began = time.monotonic()

    def move() -> None:
        for _ in range(10):
            throttle.pass_(throttle.window(1 << 20), stop)

    threads = [threading.Thread(target=move) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - began >= 4 * 10 * 0.1 - 0.2


async def test_a_limited_fetch_can_be_stopped(tmp_path: Path) -> None:
    """It would take minutes; the engine stops at once, and what came is kept."""
    origin: Origin = one(DATA)
    throttle = Throttle(PART / 2)
    async with running(tmp_path, origin, throttle=throttle) as rig:  # type: ignore[arg-type]
        events = rig.engine.fetch("http://origin/model/", tier=Tier.NVME)
        async for _ in events:
            if origin.starts:
                break
        began = time.monotonic()
        await events.aclose()
    assert time.monotonic() - began < 5


async def test_what_is_limited_is_not_divided(tmp_path: Path) -> None:
    """Requests that are cut short cost what is on its way, and where the limit is ours gain nothing."""
    data = pattern(3 * PART)
    asked = []
    for rate in (2 * PART, 1000 * PART):
        origin, throttle = one(data), Throttle(rate)
        origin.on_read = lambda *_: time.sleep(0.01)
        with taking_over(PART // 32):
            async with running(tmp_path / str(rate), origin, throttle=throttle, receivers=2) as rig:  # type: ignore[arg-type]
                assert rig.content(await rig.fetch()) == {"model.bin": data}
        asked.append(len(origin.starts))
    assert asked[0] == 3 < asked[1]


@pytest.mark.parametrize("slow", [True, False])
async def test_little_is_lost_where_bytes_come_slowly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: bool
) -> None:
    """What came of a `readinto` that failed comes again: it asks for little, unless that comes at once."""
    monkeypatch.setattr("weightd.engine.receiver.BRISK_S", -1.0 if slow else 60.0)
    data = pattern(4 * LEAST)
    origin, asked = one(data), list[int]()

    def breaks(path: str, offset: int, length: int) -> None:
        asked.append(length)
        if offset >= LEAST and len(origin.starts) == 1:
            raise SourceUnavailable("broke off")

    origin.on_read = breaks
    async with running(tmp_path, origin, part_size=4 * LEAST, receivers=1) as rig:
        model = await rig.fetch()
        assert rig.content(model) == {"model.bin": data}
    assert asked[:2] == [LEAST, LEAST if slow else 3 * LEAST]
    assert sorted(origin.starts) == [("model.bin", 0, 4 * LEAST), ("model.bin", LEAST, 3 * LEAST)]


async def test_as_many_receivers_as_their_origin_rewards(tmp_path: Path) -> None:
    """More follow when it turns out to; each holds the memory of a part, so none waits with it for a turn."""
    origin, wide = one(DATA), threading.Event()
    origin.width = lambda file: 10 if wide.is_set() else 4  # type: ignore[method-assign]
    origin.hold()

    async def until(count: int) -> None:
        async with asyncio.timeout(20):
            while len(origin.readers) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async with running(tmp_path, origin, receivers=6) as rig:
        fetch = asyncio.create_task(rig.fetch())
        await until(4)
        await asyncio.sleep(0.3)
        assert len(origin.readers) == 4
        wide.set()
        await until(6)
        await asyncio.sleep(0.3)
        assert len(origin.readers) == 6, "no more than are configured"
        origin.release()
        assert rig.content(await fetch) == {"model.bin": DATA}
