"""The socket, health, reflection, errors and the end, on the wire."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.support.fake_engine import REF, FakeEngine, fetching
from tests.support.serving import DaemonProcess, Served, until
from weightd.core.errors import AlreadyRunning, ConfigError, DigestMismatch, PathInTheWay
from weightd.rpc.server import RpcServers, make_server
from weightd.wire import methods
from weightd.wire.errors import DETAIL_KEY, MAX_FIELD, from_detail
from weightd.wire.gen import weightd_pb2 as pb
from weightd.wire.gen.weightd_pb2_grpc import WeightdStub


@pytest.fixture
async def channel(daemon: Served) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"unix:{daemon.socket}", [("grpc.max_metadata_size", 65536)]) as it:
        yield it


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> Any:
    """The generated one: the methods by hand are the same."""
    return WeightdStub(channel)  # type: ignore[no-untyped-call]


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_the_socket_has_its_mode_group_and_nothing_stays(short: Path) -> None:
    before = os.umask(0o022)
    try:
        server = await make_server(FakeEngine(short), short / "a" / "s", mode=0o600, group=12345)
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
    assert (mode_of(server.path), server.path.stat().st_gid) == (0o600, 12345)
    await server.stop()
    assert not server.path.exists()


async def test_a_socket_that_cannot_be_given_to_its_group_does_not_stay(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(ConfigError, match="12345"):
        await make_server(FakeEngine(short), short / "s", group=12345)
    assert not (short / "s").exists()


async def test_several_sockets_are_drained_and_stopped_as_one(short: Path) -> None:
    engine = FakeEngine(short / "m")
    servers = RpcServers()
    for name in ("a", "b"):
        servers.add(await make_server(engine, short / name))
    assert {(short / name).is_socket() for name in ("a", "b")} == {True}
    await servers.drain()
    await servers.stop()
    await servers.stop()
    assert not any((short / name).exists() for name in ("a", "b"))


async def test_the_default_mode_is_0660(daemon: Served) -> None:
    assert mode_of(daemon.socket) == 0o660


async def test_a_path_of_any_characters(short: Path) -> None:
    path = short / "a b%20?#é" / "s"
    server = await make_server(FakeEngine(short), path)
    async with grpc.aio.insecure_channel(
        "unix:" + str(path).replace("%", "%25").replace("?", "%3F").replace("#", "%23")
    ):
        assert path.is_socket()
    await server.stop()


async def test_a_live_socket_is_not_stolen(process: DaemonProcess) -> None:
    with pytest.raises(AlreadyRunning, match=f"process {process.process.pid} "):
        await make_server(FakeEngine(process.directory), process.socket)
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(str(process.socket))


async def test_a_stale_socket_is_replaced(short: Path) -> None:
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(short / "s"))
    server = await make_server(FakeEngine(short), short / "s")
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(str(short / "s"))
    await server.stop()


@pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
async def test_what_is_not_a_socket_stays(short: Path, kind: str) -> None:
    path = short / "s"
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(short / "elsewhere")
    with pytest.raises(PathInTheWay):
        await make_server(FakeEngine(short), path)
    assert path.name in os.listdir(short)


async def test_a_file_as_parent_is_in_the_way(short: Path) -> None:
    (short / "file").write_text("")
    with pytest.raises(PathInTheWay):
        await make_server(FakeEngine(short), short / "file" / "s")


async def test_a_path_too_long_and_a_group_unknown(short: Path) -> None:
    with pytest.raises(ConfigError, match="107"):
        await make_server(FakeEngine(short), short / ("x" * 107))
    with pytest.raises(ConfigError, match="no-such-group"):
        await make_server(FakeEngine(short), short / "s", group="no-such-group")
    assert not (short / "s").exists()


async def test_the_methods_by_hand_are_those_of_the_proto() -> None:
    service = pb.DESCRIPTOR.services_by_name["Weightd"]
    by_hand = {m.name: m for m in vars(methods).values() if isinstance(m, methods.Method)}
    assert service.full_name == methods.SERVICE
    assert {m.name for m in service.methods} == set(by_hand)
    for m in service.methods:
        assert by_hand[m.name].request.DESCRIPTOR is m.input_type
        assert by_hand[m.name].answer.DESCRIPTOR is m.output_type


async def test_health_and_reflection(channel: grpc.aio.Channel, daemon: Served) -> None:
    health: Any = health_pb2_grpc.HealthStub(channel)
    for name in ("", methods.SERVICE):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    reflected: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    call = reflected.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    services = {s.name for s in (await call.read()).list_services_response.service}
    assert methods.SERVICE in services
    call.cancel()
    await daemon.server.drain()
    for name in ("", methods.SERVICE):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_acquire_sends_progress_then_handles_then_nothing(daemon: Served, stub: Any) -> None:
    daemon.engine.steps = [fetching(1), fetching(2), fetching(100)]
    call = stub.Acquire(pb.AcquireRequest(ref=REF))
    assert (await call.read()).progress.bytes_done == 1
    assert (await call.read()).progress.bytes_done == 100
    handles = (await call.read()).handles
    assert {f.path: bool(f.segment) for f in handles.files} == {
        "model.safetensors": True,
        "config.json": True,
        "empty.txt": False,
    }
    assert daemon.engine.leases[REF] == 1
    call.cancel()
    await daemon.engine.wait_leases(0)


async def test_a_model_in_new_segments_is_answered_anew(daemon: Served, stub: Any) -> None:
    async def segment() -> str:
        call = stub.Acquire(pb.AcquireRequest(ref=REF))
        handles = (await call.read()).handles
        call.cancel()
        await daemon.engine.wait_leases(0)
        return str(handles.files[0].segment)

    first = await segment()
    assert await segment() == first
    daemon.engine.add(REF, {"model.safetensors": b"12345678"})
    assert await segment() != first


async def test_who_stops_waiting_drops_the_interest(daemon: Served, stub: Any) -> None:
    daemon.engine.gate = asyncio.Event()
    daemon.engine.steps = [fetching(1)]
    for call in (stub.Acquire(pb.AcquireRequest(ref=REF)), stub.Fetch(pb.FetchRequest(ref=REF))):
        before = daemon.engine.closed_iterators
        await call.read()
        call.cancel()
        await until(lambda before=before: daemon.engine.closed_iterators == before + 1)
    assert daemon.engine.leases[REF] == 0


async def test_a_drain_ends_leases_and_watches_and_refuses_new_work(daemon: Served, stub: Any) -> None:
    lease = stub.Acquire(pb.AcquireRequest(ref=REF))
    await lease.read()
    watch = stub.Watch(pb.WatchRequest())
    await watch.initial_metadata()
    await daemon.server.drain()
    assert (await watch.read()).kind == pb.Event.KIND_RELEASED
    for call in (lease, watch, stub.Acquire(pb.AcquireRequest(ref=REF)), stub.Fetch(pb.FetchRequest(ref=REF))):
        error = await failure(call.read())
        assert (error.code(), kind(error)) == (grpc.StatusCode.UNAVAILABLE, "Draining")
    assert daemon.engine.leases[REF] == 0
    assert (await stub.GetStatus(pb.GetStatusRequest())).pid == os.getpid()


async def test_a_watch_that_is_cancelled_leaves_no_watcher(daemon: Served, stub: Any) -> None:
    watch = stub.Watch(pb.WatchRequest())
    await watch.initial_metadata()
    assert daemon.engine.watchers == 1
    watch.cancel()
    await until(lambda: daemon.engine.watchers == 0)


async def test_an_unexpected_error_is_internal_logged_and_tells_nothing(
    daemon: Served, stub: Any, caplog: pytest.LogCaptureFixture
) -> None:
    daemon.engine.fail = RuntimeError("password=hunter2")
    error = await failure(stub.GetModel(pb.GetModelRequest(ref=REF)))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "hunter2" not in str(error)
    assert b"hunter2" not in detail(error)
    assert "GetModel failed unexpectedly" in caplog.text
    assert "hunter2" in caplog.text


async def test_the_longest_and_strangest_error_arrives(daemon: Served, stub: Any) -> None:
    daemon.engine.fail = DigestMismatch("é" * 50_000, ref="r" * 50_000, file="\udcff\n\0", remedy="漢" * 50_000)
    error = await failure(stub.GetModel(pb.GetModelRequest(ref=REF)))
    restored = from_detail(detail(error))
    assert isinstance(restored, DigestMismatch)
    assert len(restored.message) == len(restored.ref) == len(restored.remedy) == MAX_FIELD
    assert restored.file == "\\udcff\n\0"


async def test_credentials_do_not_leave(daemon: Served, stub: Any) -> None:
    ref = "https://user:pw@host/model.safetensors?token=secret"
    daemon.engine.add(ref, {"model.safetensors": b"12345678"})
    call = stub.Acquire(pb.AcquireRequest(ref=ref))
    answers = [
        await stub.Resolve(pb.ResolveRequest(ref=ref)),
        await stub.GetModel(pb.GetModelRequest(ref=ref)),
        await stub.ListModels(pb.ListModelsRequest()),
        await call.read(),
    ]
    for answer in answers:
        raw = answer.SerializeToString()
        assert b"secret" not in raw
        assert b"pw@" not in raw
    call.cancel()
    await daemon.engine.wait_leases(0, ref)


async def test_an_unknown_tier_is_refused(stub: Any) -> None:
    error = await failure(stub.Fetch(pb.FetchRequest(ref=REF, tier=77)).read())  # type: ignore[arg-type]
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def failure(answer: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await answer
    return caught.value


def detail(error: Any) -> bytes:
    return dict(error.trailing_metadata())[DETAIL_KEY]


def kind(error: Any) -> str:
    return type(from_detail(detail(error))).__name__
