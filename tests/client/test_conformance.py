"""One suite for both clients, over live gRPC."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.client.twins import NAMES, TWINS, Threaded
from tests.support.fake_engine import DEMO, REF, fetching
from tests.support.serving import Served, until
from weightd import AsyncClient, Lease, errors
from weightd.client.convert import model_info, status_info
from weightd.client.types import (
    CopyState,
    CountersInfo,
    EventKind,
    Evicted,
    Holder,
    LeaseInfo,
    ModelInfo,
    QuotaInfo,
    TierInfo,
    TransferInfo,
    VerifyInfo,
)
from weightd.core.lifecycle import DaemonState, Residency
from weightd.core.policy import Policy
from weightd.core.progress import Phase, Progress
from weightd.core.verification import Verification
from weightd.engine.api import Holder as engine_holder
from weightd.engine.api import LeaseState, Tier, TransferState
from weightd.wire.gen import weightd_pb2 as pb


async def next_of(events: Any) -> Any:
    """The next event of either kind of watch."""
    return await anext(events) if hasattr(events, "__anext__") else await asyncio.to_thread(next, events, None)


@pytest.fixture(params=TWINS, ids=NAMES)
async def client(request: pytest.FixtureRequest, daemon: Served) -> AsyncIterator[Any]:
    """Tells at once when its daemon ends; tests/client/test_reconnect.py has one that does not."""
    it = request.param(daemon.socket, reconnect=0)
    yield it
    await it.close()


async def test_resolve(client: Any) -> None:
    manifest = await client.resolve(REF)
    assert manifest.ref == REF
    assert manifest.size == sum(map(len, DEMO.values()))
    assert {f.path: f.digest for f in manifest.files} == {
        path: "sha256:" + hashlib.sha256(data).hexdigest() for path, data in DEMO.items()
    }
    assert manifest.files[0].source == "https://host/config.json"


async def test_fetch_reports_progress_and_passes_its_arguments(client: Any, daemon: Served) -> None:
    daemon.engine.steps = [fetching(10), fetching(100)]
    seen: list[Progress] = []
    digest = "AB" * 32
    model = await client.fetch(REF, sha256=digest, tier="nvme", on_progress=seen.append)
    assert seen == daemon.engine.steps
    assert daemon.engine.asked == [(REF, "sha256:" + digest.lower(), Tier.NVME)]
    assert isinstance(model, ModelInfo)
    assert (model.ref, model.size, model.verification) == (REF, sum(map(len, DEMO.values())), Verification.SIZE)


async def test_fetch_leaves_the_tier_to_the_policy_and_asks_for_no_digest(client: Any, daemon: Served) -> None:
    await client.fetch(REF)
    assert daemon.engine.asked == [(REF, None, None)]


async def test_arguments_are_checked_before_they_are_sent(client: Any, daemon: Served) -> None:
    with pytest.raises(errors.DigestSyntax):
        await client.fetch(REF, sha256="abc")
    with pytest.raises(errors.InvalidArgument, match="tier"):
        await client.fetch(REF, tier="gpu")
    for ref in ("\udcff", 7):
        with pytest.raises(errors.RefSyntax):
            await client.acquire(ref)
    assert daemon.engine.asked == []


async def test_models_and_model(client: Any) -> None:
    (model,) = await client.models()
    assert model == await client.model(REF)
    assert (model.shm, model.nvme, model.leases, model.last_used) == (Residency.RESIDENT, Residency.RESIDENT, 0, 1.5)
    assert [f.path for f in model.files] == list(DEMO)
    assert model.files[0].verification is Verification.SHA256
    assert (model.last_verified, [f.last_verified for f in model.files]) == (3.5, [3.5, 4.5, 4.5])


async def test_status(client: Any, daemon: Served) -> None:
    status = await client.status()
    assert (status.pid, status.state, status.models) == (os.getpid(), DaemonState.SERVING, 1)
    assert (status.shm.budget, status.shm.free, status.uptime) == (100, 79, 1.25)
    assert status.state_directory == str(daemon.engine.directory)
    verify = status.verify
    assert (verify.every, verify.oldest, verify.damaged, verify.repaired, verify.lost) == (3600.0, 2.5, 3, 2, 1)
    hub = "huggingface.co"
    assert status.quotas == (QuotaInfo(hub, "resolvers", 7, 2993, 1), QuotaInfo(hub, "api", 2, -1, 0))


async def test_status_of_tiers_counters_and_transfers(client: Any, daemon: Served) -> None:
    daemon.engine.under_way = (TransferState(REF, Phase.LOADING, 5, 9, 2.5, urgent=True),)
    status = await client.status()
    assert status.shm == TierInfo(100, 1, 20, 79, leased=15, pinned=10, draining=4, total=200, other=3)
    assert (status.shm.left, status.nvme.left, status.nvme.kept) == (75, 975, 5)
    assert status.counters == CountersInfo(10, 20, 30, 25, 3, 1)
    assert status.under_way == (TransferInfo(REF, Phase.LOADING, 5, 9, 2.5, True),)


async def test_pin_and_unpin(client: Any, daemon: Served) -> None:
    assert [(m.policy, m.pinned) for m in await client.models()] == [(Policy.WARM, False)]
    assert (await client.pin(REF)).pinned
    assert (await client.pin(REF)).pinned
    assert daemon.engine.pinned == {REF}
    assert not (await client.unpin(REF)).pinned
    daemon.engine.policies[REF] = Policy.HOT
    assert (await client.model(REF)).policy is Policy.HOT
    with pytest.raises(errors.Precondition, match="hot"):
        await client.unpin(REF)


async def test_evict_and_load(client: Any, daemon: Served) -> None:
    lease: Lease = await client.acquire(REF)
    view = lease["a"]
    for verb in (client.evict, client.remove):
        with pytest.raises(errors.ModelLeased, match="process"):
            await verb(REF)
    lease.release()
    await daemon.engine.wait_leases(0)
    await client.pin(REF)
    with pytest.raises(errors.ModelPinned):
        await client.evict(REF)
    await client.unpin(REF)
    daemon.engine.draining = 7
    size = sum(map(len, DEMO.values()))
    assert await client.evict(REF) == Evicted(shm=size, draining=7)
    assert (await client.model(REF)).shm is Residency.ABSENT
    assert view.sum() == 15
    daemon.engine.steps = [fetching(10), fetching(100)]
    seen: list[Progress] = []
    assert (await client.load(REF, on_progress=seen.append)).shm is Residency.RESIDENT
    assert seen == daemon.engine.steps


async def test_remove(client: Any) -> None:
    size = sum(map(len, DEMO.values()))
    assert await client.remove(REF) == Evicted(shm=size, nvme=size)
    for verb in (client.model, client.pin, client.unpin, client.evict, client.remove, client.load, client.leases):
        with pytest.raises(errors.ModelNotFound):
            await verb(REF)
    assert await client.leases() == []


async def test_leases(client: Any, daemon: Served) -> None:
    assert await client.leases() == []
    lease: Lease = await client.acquire(REF)
    (info,) = await client.leases(REF)
    assert (info.ref, info.revision, info.waiting) == (REF, lease.revision, False)
    assert isinstance(info, LeaseInfo)
    assert isinstance(info.holder, Holder)
    lease.release()
    await daemon.engine.wait_leases(0)
    holder = engine_holder(4711, 99, "python x", "/cg", "ns/pod", confirmed=True, uid=7)
    daemon.engine.leases.states[0] = LeaseState(REF, "", 2.5, holder, waiting=True)
    expected = Holder(4711, 99, "python x", "/cg", "ns/pod", True, 7)
    assert await client.leases() == [LeaseInfo(REF, "", 2.5, expected, True)]


async def test_verify(client: Any, daemon: Served) -> None:
    daemon.engine.steps = [fetching(10)]
    read: list[tuple[int, int]] = []

    def noted(done: int, total: int) -> None:
        read.append((done, total))

    if isinstance(client.real, AsyncClient):
        checks = [c async for c in client.real.verify(REF, quick=True, on_progress=noted)]
    else:
        checks = await asyncio.to_thread(lambda: list(client.real.verify(REF, quick=True, on_progress=noted)))
    assert [(c.ref, c.path) for c in checks] == [(REF, path) for path in DEMO]
    assert {(c.nvme, c.shm, c.detail) for c in checks} == {(CopyState.SOUND, CopyState.REPAIRED, "True")}
    assert read == [(1, 2)]


async def test_watch_misses_nothing_that_happens_after_it_began(client: Any, daemon: Served) -> None:
    events = await client.watch()
    (await client.acquire(REF)).release()
    await daemon.engine.wait_leases(0)
    kinds = [(await next_of(events)).kind for _ in range(2)]
    assert kinds == [EventKind.ACQUIRED, EventKind.RELEASED]
    events.close()
    await until(lambda: daemon.engine.watchers == 0)


async def test_a_watch_ends_with_the_daemons_reason(client: Any, daemon: Served) -> None:
    events = await client.watch()
    await daemon.server.drain()
    with pytest.raises(errors.Draining):
        await next_of(events)


async def test_a_closed_watch_stops(client: Any) -> None:
    events = await client.watch()
    events.close()
    if isinstance(client, Threaded):
        assert await next_of(events) is None
    else:
        with pytest.raises(StopAsyncIteration):
            await next_of(events)


async def test_acquire_and_release(client: Any, daemon: Served) -> None:
    lease: Lease = await client.acquire(REF)
    assert lease.alive
    assert daemon.engine.leases[REF] == 1
    assert lease["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    lease.release()
    assert not lease.alive
    await daemon.engine.wait_leases(0)
    lease.release()


async def test_acquire_reports_progress(client: Any, daemon: Served) -> None:
    daemon.engine.steps = [fetching(10), fetching(100)]
    seen: list[Progress] = []
    lease = await client.acquire(REF, on_progress=seen.append)
    assert seen == daemon.engine.steps
    lease.release()


async def test_an_error_of_on_progress_ends_the_call(client: Any, daemon: Served) -> None:
    daemon.engine.steps = [fetching(10)]
    daemon.engine.gate = asyncio.Event()

    def stop(_: Progress) -> None:
        raise KeyError("enough")

    for verb in (client.acquire, client.fetch):
        before = daemon.engine.closed_iterators
        with pytest.raises(KeyError, match="enough"):
            await verb(REF, on_progress=stop)
        await until(lambda before=before: daemon.engine.closed_iterators == before + 1)


async def test_a_timeout_is_for_the_model_not_for_the_lease(client: Any, daemon: Served) -> None:
    lease = await client.acquire(REF, timeout=20)
    daemon.engine.gate = asyncio.Event()
    daemon.engine.steps = [fetching(10)]
    with pytest.raises(errors.TimedOut, match=r"0\.3 s"):
        await client.acquire(REF, timeout=0.3)
    await until(lambda: daemon.engine.closed_iterators == 2)
    assert lease.alive
    lease.release()


async def test_closing_the_client_frees_its_leases_and_views_stay(client: Any, daemon: Served) -> None:
    lease = await client.acquire(REF)
    view = lease["a"]
    await client.close()
    await daemon.engine.wait_leases(0)
    assert not lease.alive
    assert view.sum() == 15
    with pytest.raises(errors.Precondition, match="closed"):
        await client.status()
    await client.close()


async def test_closing_the_client_ends_who_waits(client: Any, daemon: Served) -> None:
    daemon.engine.gate = asyncio.Event()
    began = asyncio.Event()
    loop = asyncio.get_running_loop()
    daemon.engine.steps = [fetching(10)]
    waiting = asyncio.ensure_future(client.acquire(REF, on_progress=lambda _: loop.call_soon_threadsafe(began.set)))
    await began.wait()
    await client.close()
    with pytest.raises((errors.Precondition, errors.DaemonUnavailable)):
        await waiting
    await until(lambda: daemon.engine.closed_iterators == 1)


async def test_a_drain_is_told_by_alive(client: Any, daemon: Served) -> None:
    lease = await client.acquire(REF)
    await daemon.server.drain()
    await until(lambda: not lease.alive)
    assert lease["a"].sum() == 15
    with pytest.raises(errors.Draining):
        await client.acquire(REF)


@pytest.mark.parametrize("name", sorted(errors.all_errors()))
async def test_every_error_arrives_as_it_was_raised(client: Any, daemon: Served, name: str) -> None:
    kind = errors.all_errors()[name]
    raised = kind("what happened: é", ref="https://host/ref", file="a/b", remedy="Do this.")
    daemon.engine.fail = raised
    reading = (client.resolve, client.fetch, client.acquire, client.model, client.load, client.leases)
    for call in (*reading, client.pin, client.unpin, client.evict, client.remove):
        with pytest.raises(errors.WeightdError) as caught:
            await call(REF)
        assert type(caught.value) is kind
        assert vars(caught.value) == vars(raised)
        assert caught.value.exit_code == raised.exit_code
        assert str(caught.value) == str(raised)
    assert daemon.engine.leases[REF] == 0


async def test_an_unexpected_error_says_where_to_look(client: Any, daemon: Served) -> None:
    daemon.engine.fail = ZeroDivisionError("secret")
    with pytest.raises(errors.WeightdError, match="log") as caught:
        await client.model(REF)
    assert "secret" not in str(caught.value)


async def test_a_thousand_leases_leak_no_descriptor(client: Any, daemon: Served) -> None:
    (await client.acquire(REF)).release()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(1000):
        lease = await client.acquire(REF)
        assert lease["a"][0, 1] == 1
        lease.release()
    del lease
    await daemon.engine.wait_leases(0)
    assert len(os.listdir("/proc/self/fd")) <= before + 1


async def test_many_leases_at_once(client: Any, daemon: Served) -> None:
    leases = await asyncio.gather(*(client.acquire(REF) for _ in range(100)))
    assert daemon.engine.leases[REF] == 100
    for lease in leases:
        lease.release()
    await daemon.engine.wait_leases(0)


async def test_a_lease_that_nobody_refers_to_ends_and_its_views_stay(client: Any, daemon: Served) -> None:
    lease = await client.acquire(REF)
    view = lease["a"]
    del lease
    await daemon.engine.wait_leases(0)
    assert view.sum() == 15


async def test_the_asynchronous_client_is_entered_and_a_waiter_cancelled(daemon: Served) -> None:
    async with AsyncClient(daemon.socket) as client:
        async with client.acquire(REF) as lease:
            assert lease.alive
        await daemon.engine.wait_leases(0)
        async with await client.acquire(REF):
            assert daemon.engine.leases[REF] == 1
        await daemon.engine.wait_leases(0)
        daemon.engine.gate = asyncio.Event()
        before = daemon.engine.closed_iterators
        waiting = asyncio.ensure_future(client.acquire(REF)._run())
        await until(lambda: daemon.engine.gate is not None and daemon.engine.waiting == 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await until(lambda: daemon.engine.closed_iterators == before + 1)
        assert daemon.engine.leases[REF] == 0


def test_what_an_older_daemon_does_not_say_is_zero() -> None:
    status = status_info(pb.Status(state="SERVING"))
    assert status.verify == VerifyInfo(0.0, 0.0, 0, 0, 0)
    assert (status.counters, status.under_way) == (CountersInfo(), ())
    assert model_info(pb.Model(verification=3, shm=1, nvme=1)).policy is Policy.WARM  # type: ignore[arg-type]


def test_what_a_newer_daemon_says_is_not_guessed() -> None:
    with pytest.raises(ValueError, match="policy 9"):
        model_info(pb.Model(verification=3, shm=1, nvme=1, policy=9))  # type: ignore[arg-type]
    assert EventKind(99) is EventKind.UNKNOWN


def test_the_kinds_of_events_are_those_of_the_wire() -> None:
    assert {f"KIND_{kind.name}": kind.value for kind in EventKind} == {
        name.replace("UNSPECIFIED", "UNKNOWN"): value for name, value in pb.Event.Kind.items()
    }
