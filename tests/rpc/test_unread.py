"""A client that asks and then reads nothing, as one that was stopped, or whose output waits for a pager."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import grpc
import pytest

from tests.support.serving import Served
from weightd.core.verification import Verification
from weightd.engine.api import CopyState, FileCheck, VerifyProgress
from weightd.wire.gen import weightd_pb2 as pb
from weightd.wire.gen.weightd_pb2_grpc import WeightdStub

LONG = FileCheck(
    ref="http://origin/",
    revision="1",
    path="x",
    size=1,
    digest="sha256:" + "0" * 64,  # type: ignore[arg-type]
    verification=Verification.SHA256,
    nvme=CopyState.SOUND,
    shm=CopyState.ABSENT,
    detail="x" * 100_000,
)
"""Some of these are more than gRPC and the kernel keep for one who does not read."""


async def test_a_verification_that_nobody_reads_ends(daemon: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what it verifies would be held for ever."""
    monkeypatch.setattr("weightd.rpc.service.UNREAD_S", 0.3)
    ended = asyncio.Event()

    async def verify(ref: str, *, quick: bool) -> AsyncGenerator[FileCheck | VerifyProgress, None]:
        try:
            while True:
                yield LONG
        finally:
            ended.set()

    monkeypatch.setattr(daemon.engine, "verify", verify)
    async with grpc.aio.insecure_channel(f"unix:{daemon.socket}") as channel:
        call = WeightdStub(channel).Verify(pb.VerifyRequest())  # type: ignore[no-untyped-call]
        assert (await call.read()).check.path == "x"
        async with asyncio.timeout(10):
            await ended.wait()
            with pytest.raises(grpc.aio.AioRpcError, match="not read for"):
                while await call.read() is not grpc.aio.EOF:
                    pass
