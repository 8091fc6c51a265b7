"""Calls that wait survive a restart of the daemon: real processes, both clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.client.twins import NAMES, TWINS, Awaited
from tests.support.fake_engine import DEMO, REF
from tests.support.serving import DaemonProcess, until
from weightd import Client, Lease, errors
from weightd.client.again import LONGEST_PAUSE, Patience, is_final, other_snapshot, pause
from weightd.core.progress import Progress
from weightd.wire.gen import weightd_pb2 as pb

FOREVER = 1e9
"""Seconds: what waits for them does not end before the test does."""


@pytest.fixture
async def process(short: Path) -> AsyncIterator[DaemonProcess]:
    """Its acquires and fetches give no answer."""
    it = await asyncio.to_thread(DaemonProcess, short, "--quiet", "--gate")
    try:
        yield it
    finally:
        await asyncio.to_thread(it.close)


Make = Callable[..., Any]


@pytest.fixture(params=TWINS, ids=NAMES)
async def make(request: pytest.FixtureRequest, short: Path) -> AsyncIterator[Make]:
    made: list[Any] = []

    def make(**options: Any) -> Any:
        made.append(request.param(short / "s", **options))
        return made[-1]

    yield make
    for client in made:
        await client.close()


class Waiter:
    """Somebody who waits for a verb; `heard` is the progress so far."""

    def __init__(self, verb: Any, **options: Any) -> None:
        self.heard: list[Progress] = []
        self.task = asyncio.ensure_future(self._run(verb, options))

    async def _run(self, verb: Any, options: dict[str, Any]) -> Any:
        return await verb(REF, on_progress=self.heard.append, **options)

    async def begun(self) -> Waiter:
        await until(lambda: self.heard or self.task.done())
        return self


async def end(process: DaemonProcess, how: str) -> None:
    await asyncio.to_thread(process.terminate if how == "SIGTERM" else process.kill)


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("verb", ["acquire", "fetch", "load"])
async def test_who_waits_goes_on_with_the_next_daemon(make: Make, process: DaemonProcess, verb: str, how: str) -> None:
    waiter = await Waiter(getattr(make(), verb)).begun()
    before = len(waiter.heard)
    await end(process, how)
    await asyncio.to_thread(process.start, "--quiet", "--gate")
    await until(lambda: len(waiter.heard) > before, "progress goes on")
    process.open_gate()
    answer = await waiter.task
    if verb == "acquire":
        assert {path: bytes(f.buffer) for path, f in answer.files.items()} == DEMO
        assert answer.alive
    assert answer.ref == REF


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
async def test_without_a_next_daemon_it_ends_after_a_while(make: Make, process: DaemonProcess, how: str) -> None:
    waiter = await Waiter(make(reconnect=0.2).acquire).begun()
    await end(process, how)
    with pytest.raises((errors.DaemonUnavailable, errors.Draining)):
        await waiter.task


@pytest.mark.parametrize(("how", "kind"), [("SIGTERM", errors.Draining), ("SIGKILL", errors.DaemonUnavailable)])
async def test_never_means_at_once(
    make: Make, process: DaemonProcess, how: str, kind: type[errors.WeightdError]
) -> None:
    waiter = await Waiter(make(reconnect=0).fetch).begun()
    await end(process, how)
    with pytest.raises(kind):
        await waiter.task


async def test_a_client_that_no_daemon_has_answered_fails_at_once(make: Make, short: Path) -> None:
    client = make(reconnect=FOREVER)
    for verb in (client.acquire, client.fetch):
        with pytest.raises(errors.DaemonUnavailable):
            await verb(REF)


async def test_who_asks_between_two_daemons_waits_for_the_second(make: Make, process: DaemonProcess) -> None:
    client = make(reconnect=FOREVER)
    await client.status()
    await end(process, "SIGKILL")
    asking = asyncio.ensure_future(Waiter(client.acquire).task)
    await asyncio.to_thread(process.start, "--quiet")
    lease: Lease = await asking
    assert lease.alive


async def test_the_callers_limit_holds_over_all_attempts(make: Make, process: DaemonProcess) -> None:
    client = make(reconnect=FOREVER)
    waiter = await Waiter(client.acquire, timeout=1.5).begun()
    await end(process, "SIGKILL")
    with pytest.raises(errors.TimedOut, match=r"1\.5 s"):
        await waiter.task
    await asyncio.to_thread(process.start, "--quiet", "--gate")
    with pytest.raises(errors.TimedOut, match=r"0\.2 s"):
        await client.acquire(REF, timeout=0.2)


async def test_what_the_next_daemon_says_counts(make: Make, process: DaemonProcess) -> None:
    waiter = await Waiter(make(reconnect=FOREVER).acquire).begun()
    await end(process, "SIGKILL")
    await asyncio.to_thread(process.start, "--quiet", "--empty")
    with pytest.raises(errors.ModelNotFound):
        await waiter.task


async def test_closing_the_client_ends_who_pauses(make: Make, process: DaemonProcess) -> None:
    client = make(reconnect=FOREVER)
    waiter = await Waiter(client.acquire).begun()
    await end(process, "SIGKILL")
    await client.close()
    with pytest.raises((errors.Precondition, errors.DaemonUnavailable)):
        await waiter.task


async def test_a_task_that_pauses_can_be_cancelled(process: DaemonProcess) -> None:
    client = Awaited(process.socket, reconnect=FOREVER)
    waiter = await Waiter(client.acquire).begun()
    await end(process, "SIGKILL")
    await until(lambda: client.real._connection._pauses)
    waiter.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter.task
    assert not client.real._connection._pauses
    await client.close()


async def test_a_fault_of_on_progress_is_no_interruption(make: Make, process: DaemonProcess) -> None:
    def stop(_: Progress) -> None:
        raise errors.Draining("of the caller's own")

    with pytest.raises(errors.Draining, match="own"):
        await make(reconnect=FOREVER).acquire(REF, on_progress=stop)


def test_patience() -> None:
    patience = Patience(10.0)
    gone = errors.DaemonUnavailable("gone")
    assert patience.next_pause(gone, 100.0, 0.5) == 0.025
    assert patience.next_pause(errors.Draining("stops"), 101.0, 0.5) == 0.05
    assert patience.next_pause(errors.ModelNotFound("no"), 101.0, 0.5) is None
    assert patience.next_pause(gone, 109.99, 1.0) == pytest.approx(0.01), "no longer than is left"
    assert patience.next_pause(gone, 110.0, 0.5) is None
    patience.heard()
    assert patience.next_pause(gone, 500.0, 0.5) == 0.025
    assert Patience(0).next_pause(gone, 0.0, 0.5) is None


def test_pauses_grow_and_stay_bounded() -> None:
    longest = [pause(n, 1.0) for n in range(10)]
    assert longest[:3] == [0.05, 0.1, 0.2]
    assert longest == sorted(longest)
    assert pause(100_000, 1.0) == LONGEST_PAUSE
    assert pause(100_000, 0.0) == 0.0


@pytest.mark.parametrize("kind", errors.all_errors().values())
def test_what_loses_a_lease(kind: type[errors.WeightdError]) -> None:
    """Families that say "try again", a socket that is not given to its group yet, a model that is being read."""
    passing = (errors.Unavailable, errors.Exhausted, errors.SourceChanged, errors.SocketDenied, errors.ModelBusy)
    assert is_final(kind("x")) is not issubclass(kind, passing)


def test_the_same_snapshot_is_the_same_in_every_file() -> None:
    def handles(**changed: Any) -> pb.Handles:
        file = pb.FileHandle(path="f", segment="/s", length=3, digest="sha256:a")
        answer = pb.Handles(ref="r", revision="1", files=[file])
        for name, value in changed.items():
            setattr(answer if name == "revision" else answer.files[0], name, value)
        return answer

    before = handles()
    assert other_snapshot(before, handles(segment="/elsewhere", offset=4096)) is None
    for change in ({"revision": "2"}, {"digest": "sha256:b"}, {"length": 4}, {"path": "g"}):
        assert isinstance(other_snapshot(before, handles(**change)), errors.ModelNotFound)


def test_a_client_of_the_command_line_waits_for_no_daemon() -> None:
    from weightd.cli.daemon import connect

    client: Any = connect("/nowhere")
    assert isinstance(client, Client)
    assert client._reconnect == 0
