"""What is told while work goes on: events, progress, states."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.engine.rig import MIB, PART, REF, SECONDS, Origin, Served, one, pattern, running
from weightd.core.errors import Draining, ModelNotFound, RefSyntax, SourceNotFound, TooSlow
from weightd.core.lifecycle import DaemonState
from weightd.core.manifest import FileSpec
from weightd.core.progress import Phase, Progress
from weightd.core.refs import parse_ref
from weightd.engine.api import Event, EventKind, ModelState, Tier
from weightd.engine.engine import Engine
from weightd.engine.events import BACKLOG, Events
from weightd.engine.tracker import Seen, Tracker

DATA = pattern(9 * PART + 1)


class Watching:
    """Collects the events of an engine in a task."""

    def __init__(self, engine: Engine) -> None:
        self.events: list[Event] = []
        self._stream = engine.watch()
        self._task = asyncio.create_task(self._collect())

    async def _collect(self) -> None:
        async for event in self._stream:
            self.events.append(event)

    async def ended(self) -> list[EventKind]:
        await asyncio.wait_for(self._task, SECONDS)
        return [e.kind for e in self.events]


async def test_events_of_a_models_life(tmp_path: Path) -> None:
    async with running(tmp_path, one(DATA)) as rig:
        watching = Watching(rig.engine)
        await asyncio.sleep(0)
        model = await rig.fetch()
        (await rig.acquire()).release()
        with pytest.raises(SourceNotFound):
            await rig.fetch("http://origin/missing/")
    assert await watching.ended() == [
        EventKind.FETCH_STARTED,
        EventKind.FETCH_FINISHED,
        EventKind.LOADED,
        EventKind.ACQUIRED,
        EventKind.RELEASED,
        EventKind.FETCH_FAILED,
    ]
    assert {e.revision for e in watching.events[:5]} == {model.revision}
    assert {e.ref for e in watching.events[:5]} == {REF}
    assert watching.events[-1].detail == "no such model"


async def test_a_fetch_that_everybody_left_is_told(tmp_path: Path) -> None:
    origin = one(DATA)
    origin.hold()
    async with running(tmp_path, origin) as rig:
        watching = Watching(rig.engine)
        task = asyncio.create_task(rig.fetch())
        await asyncio.to_thread(origin.reached.wait, SECONDS)
        task.cancel()
        await asyncio.wait([task])
    assert await watching.ended() == [EventKind.FETCH_STARTED, EventKind.FETCH_FAILED]


async def test_a_watcher_that_is_too_slow_is_ended_and_the_others_are_not() -> None:
    events = Events()
    slow, fast = events.watch(), events.watch()
    ref = parse_ref(REF)
    waiting = [asyncio.ensure_future(anext(w)) for w in (slow, fast)]
    await asyncio.sleep(0)
    events.emit(EventKind.ACQUIRED, ref, "0")
    await asyncio.gather(*waiting)
    for number in range(BACKLOG + 2):
        events.emit(EventKind.ACQUIRED, ref, str(number))
        if number < BACKLOG:
            assert (await anext(fast)).revision == str(number)
    got = 0
    with pytest.raises(TooSlow):
        async for _ in slow:
            got += 1
    assert got >= BACKLOG
    events.close()
    assert len([e async for e in fast]) == 2


async def test_progress_grows_to_the_whole(tmp_path: Path) -> None:
    origin = Origin({REF: {"a": Served(DATA), "b": Served(pattern(PART, "b"))}})
    origin.hold(lambda path, offset: path == "a" and offset >= 4 * PART)
    seen: list[Progress] = []
    async with running(tmp_path, origin, receivers=1) as rig:
        async with aclosing(rig.engine.fetch(REF)) as events:
            async for event in events:
                if isinstance(event, ModelState):
                    break
                seen.append(event)
                if event.done == 5 * PART:
                    assert {f.path: f.done for f in event.files}["a"] == 4 * PART
                    origin.release()
    assert [p.done for p in seen] == sorted(p.done for p in seen)
    assert {p.total for p in seen} - {0} == {len(DATA) + PART}
    assert Phase.FETCHING in {p.phase for p in seen}


@dataclass
class Coming:
    file: FileSpec
    done: int = 0


def test_each_follower_is_told_of_all_files_once_and_then_of_those_that_came_further() -> None:
    items = {name: Coming(FileSpec(name, 10, name)) for name in "abc"}
    tracker = Tracker(Phase.FETCHING, tuple(i.file for i in items.values()), items)
    early, late = Seen(), Seen()

    def told(seen: Seen) -> dict[str, int]:
        return {f.path: f.done for f in tracker.snapshot(0.0, seen).files}

    assert told(early) == {"a": 0, "b": 0, "c": 0}
    assert told(early) == {}
    items["a"].done = 4
    assert told(early) == told(early) == {"a": 4}
    items["a"].done = items["b"].done = 10
    assert told(early) == {"a": 10, "b": 10}
    assert told(early) == {}
    assert told(late) == {"a": 10, "b": 10, "c": 0}
    assert told(late) == {}
    tracker.items = {"c": items["c"]}  # planned anew
    assert told(early) == told(late) == {"c": 0}


async def test_a_load_says_that_it_is_one(tmp_path: Path) -> None:
    origin = one(DATA)
    async with running(tmp_path, origin, transfers=1) as rig:
        await rig.fetch()
        other = "http://origin/other/"
        origin.models[other] = {"b": Served(pattern(PART, "b"))}
        origin.hold()
        blocking = asyncio.create_task(rig.acquire(other))
        await asyncio.to_thread(origin.reached.wait, SECONDS)
        async with aclosing(rig.engine.acquire(REF)) as events:
            first = await anext(events)
        assert isinstance(first, Progress)
        assert (first.phase, first.done, first.total) == (Phase.LOADING, 0, len(DATA))
        origin.release()
        await blocking


async def test_what_an_engine_refuses(tmp_path: Path) -> None:
    async with running(tmp_path, one(DATA)) as rig:
        for bad in ("ftp://host/x", "", "a b", "http://"):
            with pytest.raises(RefSyntax):
                await rig.fetch(bad)
            with pytest.raises(RefSyntax):
                await rig.acquire(bad)
        with pytest.raises(ModelNotFound):
            rig.engine.model("http://origin/unknown/")
        with pytest.raises(SourceNotFound):
            await rig.acquire("http://origin/unknown/")
        engine = rig.engine
    with pytest.raises(Draining):
        await rig.acquire()
    with pytest.raises(Draining):
        await rig.fetch()
    with pytest.raises(Draining):
        engine.watch()
    await engine.stop()


async def test_stopping_ends_who_waits(tmp_path: Path) -> None:
    origin = one(DATA)
    origin.hold()
    async with running(tmp_path, origin) as rig:
        tasks = [asyncio.create_task(rig.acquire()), asyncio.create_task(rig.fetch(tier=Tier.NVME))]
        await asyncio.to_thread(origin.reached.wait, SECONDS)
        await rig.engine.stop()
        for task in tasks:
            with pytest.raises(Draining):
                await task
    assert origin.closed


async def test_status_counts(tmp_path: Path) -> None:
    async with running(tmp_path, one(DATA), shm=64 * MIB, nvme=32 * MIB) as rig:
        lease = await rig.acquire()
        status = await rig.engine.status()
        assert (status.state, status.leases, status.models, status.transfers) == (DaemonState.SERVING, 1, 1, 0)
        assert (status.shm.budget, status.nvme.budget) == (64 * MIB, 32 * MIB)
        assert status.shm.free > 0
        assert status.nvme.free > 0
        assert status.state_directory == str(tmp_path)
        lease.release()
        assert (await rig.engine.status()).leases == 0
