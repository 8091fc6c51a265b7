"""Leases survive the death of their daemon: real processes, both clients."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.client.twins import NAMES, TWINS, Awaited
from tests.support.fake_engine import DEMO, REF, REVISION, FakeEngine, fetching
from tests.support.serving import DaemonProcess, until
from weightd import Client, Lease, errors
from weightd.client.hold import LeaseState
from weightd.core.progress import Progress
from weightd.engine import api as engine_api
from weightd.engine.api import NOBODY, Holder
from weightd.rpc.server import make_server


@pytest.fixture(params=TWINS, ids=NAMES)
async def client(request: pytest.FixtureRequest, short: Path) -> AsyncIterator[Any]:
    it = request.param(short / "s")
    yield it
    await it.close()
    await until(lambda: not regaining_threads(), "its thread ends with the client")


@pytest.fixture
def daemon_options() -> tuple[str, ...]:
    return ("--quiet",)


@pytest.fixture
async def process(short: Path, daemon_options: tuple[str, ...]) -> AsyncIterator[DaemonProcess]:
    it = await asyncio.to_thread(DaemonProcess, short, *daemon_options)
    try:
        yield it
    finally:
        await asyncio.to_thread(it.close)


def regaining_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "weightd-regain"]


def regaining_tasks() -> list[asyncio.Task[Any]]:
    return [t for t in asyncio.all_tasks() if t.get_name() == "weightd-regain"]


async def killed(process: DaemonProcess, *leases: Lease) -> None:
    """And heard of."""
    await asyncio.to_thread(process.kill)
    await until(lambda: all(lease.state is LeaseState.REGAINING for lease in leases))


async def started(process: DaemonProcess, *options: str) -> None:
    await asyncio.to_thread(process.start, "--quiet", *options)


def whole(lease: Lease) -> dict[str, bytes]:
    return {path: bytes(f.buffer) for path, f in lease.files.items()}


@pytest.mark.parametrize("adopt", [["--adopt"], []], ids=["adopted", "loaded anew"])
async def test_a_lease_is_regained_after_sigkill(client: Any, process: DaemonProcess, adopt: list[str]) -> None:
    lease: Lease = await client.acquire(REF)
    view, before = lease["a"], lease["a"].copy()
    old = {path: f.segment for path, f in lease.files.items()}
    assert (lease.state, lease.error) == ("alive", None)
    await killed(process, lease)
    assert (lease.state, lease.alive, lease.error) == ("regaining", False, None)
    assert "regaining" in repr(lease)
    np.testing.assert_array_equal(view, before)
    await started(process, *adopt)
    await until(lambda: lease.alive)
    np.testing.assert_array_equal(view, before)
    assert np.shares_memory(view, lease["a"]), "what is mapped keeps its map"
    assert whole(lease) == DEMO, "and what is not is mapped now"
    assert ({path: f.segment for path, f in lease.files.items()} == old) == bool(adopt)
    (held,) = await client.leases()
    assert (held.ref, held.revision, held.holder.pid) == (REF, REVISION, os.getpid())
    lease.release()
    await nobody_holds(client)


async def nobody_holds(client: Any) -> None:
    async with asyncio.timeout(10):
        while await client.leases():  # noqa: ASYNC110 - the daemon is another process
            await asyncio.sleep(0.005)


async def test_a_lease_is_regained_after_a_drain(client: Any, process: DaemonProcess) -> None:
    lease: Lease = await client.acquire(REF)
    view = lease["a"]
    assert await asyncio.to_thread(process.terminate) == 0
    await until(lambda: lease.state is LeaseState.REGAINING)
    assert view.sum() == 15
    await started(process)
    await until(lambda: lease.alive)
    assert view.sum() == 15
    assert whole(lease) == DEMO
    lease.release()


async def test_again_and_again(client: Any, process: DaemonProcess) -> None:
    leases: list[Lease] = [await client.acquire(REF) for _ in range(5)]
    views = [lease["a"] for lease in leases]
    for n in range(4):
        await killed(process, *leases)
        await started(process, *(["--adopt"] if n % 2 else []))
        await until(lambda: all(lease.alive for lease in leases))
        assert len(await client.leases()) == 5
        assert [view.sum() for view in views] == [15] * 5
    await client.acquire(REF)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (["--empty"], errors.ModelNotFound),
        (["--revision", "f" * 16], errors.ModelNotFound),
        (["--revision", "f" * 16, "--forgetful"], errors.ModelNotFound),
        (["--denied"], errors.AccessDenied),
    ],
    ids=["gone", "another revision", "an older daemon with another revision", "denied"],
)
async def test_a_lease_is_lost_when_asking_again_cannot_help(
    client: Any, process: DaemonProcess, options: list[str], kind: type[errors.WeightdError]
) -> None:
    leases: list[Lease] = [await client.acquire(REF) for _ in range(3)]
    view = leases[0]["a"]
    await killed(process, *leases)
    await started(process, *options)
    await until(lambda: all(lease.state is LeaseState.LOST for lease in leases))
    for lease in leases:
        assert type(lease.error) is kind
        assert lease.error.ref == REF
        assert not lease.alive
    assert view.sum() == leases[0]["a"].sum() == 15
    await nobody_holds(client)
    leases[0].release()
    assert leases[0].state == "released"


async def test_one_that_is_released_or_dropped_meanwhile_is_not_claimed_again(
    client: Any, process: DaemonProcess
) -> None:
    kept, released, dropped = [await client.acquire(REF) for _ in range(3)]
    views = [released["a"], dropped["a"]]
    await killed(process, kept, released, dropped)
    released.release()
    assert released.state == "released"
    del dropped
    gc.collect()
    await started(process, "--adopt")
    await until(lambda: kept.alive)
    assert len(await client.leases()) == 1
    assert [view.sum() for view in views] == [15, 15]


async def test_a_client_that_is_closed_meanwhile_regains_nothing(client: Any, process: DaemonProcess) -> None:
    lease: Lease = await client.acquire(REF)
    view = lease["a"]
    await killed(process, lease)
    await client.close()
    assert (lease.state, lease.error) == ("released", None)
    await until(lambda: not regaining_threads() and not regaining_tasks())
    await started(process, "--adopt")
    with Client(process.socket) as other:
        assert await asyncio.to_thread(other.leases) == []
    assert view.sum() == 15


async def test_two_hundred_leases_by_one_thread_or_task(client: Any, process: DaemonProcess) -> None:
    leases: list[Lease] = [await client.acquire(REF) for _ in range(200)]
    assert not regaining_threads()
    assert not regaining_tasks()
    await killed(process, *leases)
    assert len(regaining_threads()) + len(regaining_tasks()) == 1
    await started(process, "--adopt")
    await until(lambda: all(lease.alive for lease in leases))
    assert len(await client.leases()) == 200
    await until(lambda: not regaining_threads() and not regaining_tasks(), "nothing to do")
    for lease in leases:
        lease.release()
    await nobody_holds(client)


async def test_a_daemon_that_ends_while_it_loads(client: Any, process: DaemonProcess) -> None:
    """The claim waits for the model, is asked for again, waits, and is regained."""
    lease: Lease = await client.acquire(REF)
    for _ in range(2):
        await killed(process, lease)
        await started(process, "--gate")
        async with asyncio.timeout(10):
            while not [held.waiting for held in await client.leases()]:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        assert lease.state == "regaining"
    process.open_gate()
    await until(lambda: lease.alive)
    assert whole(lease) == DEMO


async def test_a_model_that_is_loaded_holds_up_no_other(client: Any, short: Path) -> None:
    async def serving(gate: asyncio.Event | None) -> Any:
        engine = FakeEngine(short / "models")
        for ref in ("a", "b", "c"):
            engine.add(ref, DEMO)
        engine.gate, engine.gated, engine.steps = gate, {"a", "b"}, [fetching(1)]
        return engine, await make_server(engine, short / "s")

    engine, server = await serving(None)
    leases: dict[str, Lease] = {ref: await client.acquire(ref) for ref in ("a", "c", "b")}
    await server.stop()
    engine.close()
    await until(lambda: all(lease.state is LeaseState.REGAINING for lease in leases.values()))
    gate = asyncio.Event()
    engine, server = await serving(gate)
    try:
        await until(lambda: leases["c"].alive and engine.waiting == 2)
        assert [leases[ref].state for ref in "ab"] == ["regaining"] * 2
        gate.set()
        await until(lambda: all(lease.alive for lease in leases.values()))
        assert whole(leases["a"]) == DEMO
    finally:
        await client.close()
        await server.stop()
        engine.close()


class FullEngine(FakeEngine):
    """Has no room for some refs."""

    def __init__(self, directory: Path, full: set[str]) -> None:
        super().__init__(directory)
        self.full = full

    async def acquire(
        self, ref: str, *, revision: str = "", holder: Holder = NOBODY
    ) -> AsyncGenerator[Progress | engine_api.Lease, None]:
        if ref in self.full:
            raise errors.BudgetExceeded("no room", ref=ref)
        async with aclosing(super().acquire(ref, revision=revision, holder=holder)) as steps:
            async for step in steps:
                yield step


async def test_a_model_without_room_holds_up_no_other_and_comes_when_there_is(client: Any, short: Path) -> None:
    engine = FakeEngine(short / "models")
    for ref in ("a", "b"):
        engine.add(ref, DEMO)
    server = await make_server(engine, short / "s")
    leases: list[Lease] = [await client.acquire(ref) for ref in ("a", "a", "a", "b")]
    await server.stop()
    engine.close()
    await until(lambda: all(lease.state is LeaseState.REGAINING for lease in leases))
    full = FullEngine(short / "models", {"a"})
    for ref in ("a", "b"):
        full.add(ref, DEMO)
    server = await make_server(full, short / "s")
    try:
        await until(lambda: leases[3].alive)
        assert {lease.state for lease in leases[:3]} == {"regaining"}
        full.full.clear()
        await until(lambda: all(lease.alive for lease in leases))
    finally:
        await client.close()
        await server.stop()
        full.close()


async def test_who_needs_a_file_meanwhile(client: Any, process: DaemonProcess) -> None:
    """In a thread it waits; on the loop, where nobody could regain it then, it is told."""
    lease: Lease = await client.acquire(REF)
    assert await asyncio.to_thread(process.terminate) == 0
    await until(lambda: lease.state is LeaseState.REGAINING)
    config = lease.file("config.json")
    if isinstance(client, Awaited):
        with pytest.raises(errors.LeaseEnded, match="gone"):
            _ = config.buffer
        await started(process)
    else:
        needed = asyncio.ensure_future(asyncio.to_thread(lambda: bytes(config.buffer)))
        await started(process)
        assert await needed == DEMO["config.json"]
    await until(lambda: lease.alive)
    assert bytes(config.buffer) == DEMO["config.json"]


async def test_who_needs_a_file_that_is_lost_is_told(client: Any, process: DaemonProcess) -> None:
    lease: Lease = await client.acquire(REF)
    assert await asyncio.to_thread(process.terminate) == 0
    await until(lambda: lease.state is LeaseState.REGAINING)
    needed = asyncio.ensure_future(asyncio.to_thread(lambda: lease.file("config.json").buffer))
    await started(process, "--empty")
    with pytest.raises(errors.LeaseEnded, match="gone"):
        await needed
    await until(lambda: lease.state is LeaseState.LOST)


async def test_no_thread_can_be_started(short: Path, process: DaemonProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    with Client(process.socket) as client:
        lease = client.acquire(REF)
        with monkeypatch.context() as patch:
            patch.setattr("weightd.client.regain.threading.Thread.start", no_thread)
            process.kill()
            await until(lambda: lease.state is LeaseState.LOST)
        assert isinstance(lease.error, errors.Exhausted)


def no_thread(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")
