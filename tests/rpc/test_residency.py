"""Leases, pins and evictions on the wire."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from tests.rpc.test_server import failure, kind
from tests.support.fake_engine import REF, fetching
from tests.support.serving import Served, until
from weightd.core.policy import Policy
from weightd.core.progress import Phase
from weightd.engine.api import Event, EventKind, TransferState
from weightd.rpc.peers import name_of
from weightd.wire.gen import weightd_pb2 as pb
from weightd.wire.gen.weightd_pb2_grpc import WeightdStub


@pytest.fixture
async def stub(daemon: Served) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(f"unix:{daemon.socket}") as channel:
        yield WeightdStub(channel)  # type: ignore[no-untyped-call]


async def handles(stub: Any, **fields: Any) -> tuple[Any, pb.Handles]:
    call = stub.Acquire(pb.AcquireRequest(ref=REF, **fields))
    return call, (await call.read()).handles


async def listed(stub: Any, ref: str = "") -> list[pb.LeaseInfo]:
    return list((await stub.ListLeases(pb.ListLeasesRequest(ref=ref))).leases)


async def test_an_acquire_says_which_snapshot_and_who(daemon: Served, stub: Any) -> None:
    pid, started = name_of(os.getpid()) or (0, 0)
    holder = pb.Holder(pid=pid, started=started, command="a\nb", cgroup="/c", pod="ns/p")
    call, answer = await handles(stub, revision="0123456789abcdef", holder=holder)
    assert daemon.engine.revisions == [answer.revision] == ["0123456789abcdef"]
    (lease,) = await listed(stub)
    assert (lease.ref, lease.revision, lease.waiting, lease.since >= 1000) == (REF, answer.revision, False, True)
    assert lease.holder == pb.Holder(
        pid=pid, started=started, command="a b", cgroup="/c", pod="ns/p", confirmed=True, uid=os.geteuid()
    )
    assert (await stub.GetModel(pb.GetModelRequest(ref=REF))).leases == 1
    call.cancel()
    await daemon.engine.wait_leases(0)
    assert await listed(stub, REF) == []


async def test_a_revision_that_is_gone_is_not_found(daemon: Served, stub: Any) -> None:
    error = await failure(stub.Acquire(pb.AcquireRequest(ref=REF, revision="other")).read())
    assert (error.code(), kind(error)) == (grpc.StatusCode.NOT_FOUND, "ModelNotFound")
    assert daemon.engine.leases[REF] == 0
    assert await listed(stub) == []


async def test_who_waits_is_listed(daemon: Served, stub: Any) -> None:
    daemon.engine.gate, daemon.engine.steps = asyncio.Event(), [fetching(1)]
    call = stub.Acquire(pb.AcquireRequest(ref=REF, holder=pb.Holder(pid=1, command="x")))
    await call.read()
    (lease,) = await listed(stub)
    assert (lease.waiting, lease.revision, lease.holder.command, lease.holder.confirmed) == (True, "", "x", False)
    call.cancel()
    await until(lambda: not daemon.engine.leases.states)


async def test_a_holder_as_long_as_a_request_may_be_is_cut(daemon: Served, stub: Any) -> None:
    huge = pb.Holder(pid=2**32 - 1, command="\x1b]0;evil\x07" * 90_000)
    call, _ = await handles(stub, holder=huge)
    (kept,) = daemon.engine.leases()
    (lease,) = await listed(stub)
    assert len(kept.holder.command) == len(lease.holder.command) == 200
    assert lease.holder.command.isprintable()
    assert lease.holder.pid == 0
    call.cancel()
    await daemon.engine.wait_leases(0)
    error = await failure(stub.Acquire(pb.AcquireRequest(ref=REF, holder=pb.Holder(command="x" * (10 << 20)))).read())
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await listed(stub) == []


async def test_ready_answers_tell_the_directory_of_the_segments(daemon: Served, stub: Any) -> None:
    for directory in ("", "/run/weightd/shm", ""):
        daemon.engine.segment_directory = directory
        call, answer = await handles(stub)
        assert answer.segment_directory == directory
        call.cancel()
        await daemon.engine.wait_leases(0)


async def test_a_fetch_without_tier_leaves_it_to_the_policy(daemon: Served, stub: Any) -> None:
    call = stub.Fetch(pb.FetchRequest(ref=REF))
    assert (await call.read()).model.ref == REF
    assert daemon.engine.asked == [(REF, None, None)]


async def test_a_load_sends_progress_then_the_model(daemon: Served, stub: Any) -> None:
    await stub.Evict(pb.EvictRequest(ref=REF))
    daemon.engine.steps = [fetching(1), fetching(2), fetching(100)]
    events = [event async for event in stub.Load(pb.LoadRequest(ref=REF))]
    assert [e.progress.bytes_done for e in events[:-1]] == [1, 100]
    assert events[-1].model.shm == pb.RESIDENCY_RESIDENT
    daemon.engine.gate = asyncio.Event()
    call, before = stub.Load(pb.LoadRequest(ref=REF)), daemon.engine.closed_iterators
    await call.read()
    call.cancel()
    await until(lambda: daemon.engine.closed_iterators == before + 1)


async def test_policy_and_pin_are_told(daemon: Served, stub: Any) -> None:
    for policy, value in ((Policy.HOT, pb.POLICY_HOT), (Policy.WARM, pb.POLICY_WARM), (Policy.COLD, pb.POLICY_COLD)):
        daemon.engine.policies[REF] = policy
        model = await stub.GetModel(pb.GetModelRequest(ref=REF))
        assert (model.policy, model.pinned) == (value, False)
    assert (await stub.Pin(pb.PinRequest(ref=REF))).model.pinned
    assert not (await stub.Unpin(pb.UnpinRequest(ref=REF))).model.pinned


async def test_refusals_arrive_with_their_class_and_change_nothing(daemon: Served, stub: Any) -> None:
    call, _ = await handles(stub)
    for ask in (lambda: stub.Evict(pb.EvictRequest(ref=REF)), lambda: stub.Remove(pb.RemoveRequest(ref=REF))):
        error = await failure(ask())
        assert (error.code(), kind(error)) == (grpc.StatusCode.FAILED_PRECONDITION, "ModelLeased")
        await stub.Pin(pb.PinRequest(ref=REF))
        assert kind(await failure(ask())) == "ModelPinned"
        await stub.Unpin(pb.UnpinRequest(ref=REF))
    call.cancel()
    await daemon.engine.wait_leases(0)
    daemon.engine.draining = 7
    gone = await stub.Evict(pb.EvictRequest(ref=REF))
    assert (gone.freed, gone.draining) == (daemon.engine.model(REF).size, 7)
    removed = await stub.Remove(pb.RemoveRequest(ref=REF))
    assert (removed.shm, removed.nvme) == (0, gone.freed)
    assert kind(await failure(stub.Evict(pb.EvictRequest(ref=REF)))) == "ModelNotFound"
    assert kind(await failure(stub.ListLeases(pb.ListLeasesRequest(ref=REF)))) == "ModelNotFound"


async def test_a_drain_refuses_what_changes_and_still_lists(daemon: Served, stub: Any) -> None:
    await daemon.server.drain()
    changes = [
        stub.Load(pb.LoadRequest(ref=REF)).read(),
        stub.Pin(pb.PinRequest(ref=REF)),
        stub.Unpin(pb.UnpinRequest(ref=REF)),
        stub.Evict(pb.EvictRequest(ref=REF)),
        stub.Remove(pb.RemoveRequest(ref=REF)),
    ]
    for change in changes:
        assert kind(await failure(change)) == "Draining"
    assert await listed(stub) == []


async def test_status_tells_tiers_counters_and_what_is_under_way(daemon: Served, stub: Any) -> None:
    secret = "https://user:pw@host/m?token=secret"
    daemon.engine.under_way = (
        TransferState(secret, Phase.FETCHING, 5, 9, 2.5, urgent=True),
        TransferState("demo", Phase.LOADING),
    )
    status = await stub.GetStatus(pb.GetStatusRequest())
    assert status.shm == pb.TierStatus(
        budget=100, reserved=1, resident=20, free=79, leased=15, pinned=10, draining=4, total=200, other=3
    )
    assert (status.nvme.kept, status.nvme.total, status.nvme.other) == (5, 2000, 100)
    assert status.counters == pb.Counters(
        bytes_fetched=10, bytes_loaded=20, acquires=30, hits=25, evictions=3, adopted=1
    )
    first, second = status.transfers_under_way
    assert "secret" not in str(first)
    assert (first.phase, first.bytes_done, first.bytes_total) == (pb.PHASE_FETCHING, 5, 9)
    assert (first.bytes_per_second, first.urgent) == (2.5, True)
    assert (second.ref, second.phase, second.urgent) == ("demo", pb.PHASE_LOADING, False)


async def test_every_kind_of_event_has_its_number(daemon: Served, stub: Any) -> None:
    watch = stub.Watch(pb.WatchRequest())
    await watch.initial_metadata()
    for sent in EventKind:
        daemon.engine.emit(Event(sent, REF, "r", 1.5, "why"))
        event = await watch.read()
        assert pb.Event.Kind.Name(event.kind) == f"KIND_{sent.name}"
        assert (event.ref, event.revision, event.time, event.detail) == (REF, "r", 1.5, "why")
    watch.cancel()
