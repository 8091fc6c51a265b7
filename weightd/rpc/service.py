"""The handlers of weightd.v1.Weightd: thin, over the engine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncGenerator, Awaitable
from pathlib import Path
from typing import Any, Final

from weightd.core.digest import parse_digest
from weightd.core.errors import Draining, TooSlow
from weightd.core.progress import Progress
from weightd.engine.api import EngineApi, Event, Lease, ModelState
from weightd.rpc import peers
from weightd.rpc.convert import event_to_pb, model_to_pb, status_to_pb, tier_from_pb, verify_to_pb
from weightd.rpc.handles import ReadyHandles
from weightd.rpc.holders import holder_of, lease_to_pb
from weightd.rpc.interceptors import Context, Handler, guarded
from weightd.rpc.pace import Pace
from weightd.wire import methods
from weightd.wire.convert import manifest_to_pb, progress_to_pb
from weightd.wire.gen import weightd_pb2 as pb
from weightd.wire.methods import Method
from weightd.wire.runtime import grpc

UNREAD_S: Final = 60.0
"""After which a client that reads nothing of a verification has no more of it."""


class Service:
    """Answers calls from the engine; knows whether the daemon drains. On the event loop only."""

    def __init__(self, engine: EngineApi, socket: Path | None = None) -> None:
        """`socket`: where those connect whose names are told here; None: anywhere."""
        self._engine, self._socket = engine, socket
        self._ready = ReadyHandles()
        self._drained = asyncio.Event()

    def drain(self) -> None:
        """Ends every lease and watch, and refuses new work, with Draining; fetches under way go on. Idempotent."""
        self._drained.set()

    def _admit(self) -> None:
        if self._drained.is_set():
            raise Draining("the daemon is stopping", remedy="Try again when it has been started again.")

    async def resolve(self, request: pb.ResolveRequest, _: Context) -> pb.Manifest:
        self._admit()
        return manifest_to_pb(await self._engine.resolve(request.ref))

    async def fetch(self, request: pb.FetchRequest, context: Context) -> None:
        self._admit()
        sha256 = parse_digest(request.sha256) if request.sha256 else None
        await _follow(self._engine.fetch(request.ref, sha256=sha256, tier=tier_from_pb(request.tier)), context)

    async def load(self, request: pb.LoadRequest, context: Context) -> None:
        self._admit()
        await _follow(self._engine.load(request.ref), context)

    async def acquire(self, request: pb.AcquireRequest, context: Context) -> None:
        """The open call is the lease: it is released here, whichever way the call ends."""
        self._admit()
        pace = Pace()
        lease: Lease | None = None
        steps = self._engine.acquire(request.ref, revision=request.revision, holder=holder_of(request))
        try:
            async with contextlib.aclosing(steps):
                async for step in steps:
                    if isinstance(step, Progress):
                        await _send(pb.AcquireEvent, pace.take(step, time.monotonic()), context)
                    else:
                        lease = step
            assert lease is not None, "the engine ended an acquire without a lease"
            await _send(pb.AcquireEvent, pace.rest(), context)
            await context.write(self._ready.of(lease.model))
            await self._drained.wait()
        finally:
            if lease is not None:
                lease.release()
        self._admit()

    async def pin(self, request: pb.PinRequest, _: Context) -> pb.PinResponse:
        self._admit()
        return pb.PinResponse(model=model_to_pb(await self._engine.pin(request.ref)))

    async def unpin(self, request: pb.UnpinRequest, _: Context) -> pb.UnpinResponse:
        self._admit()
        return pb.UnpinResponse(model=model_to_pb(await self._engine.unpin(request.ref)))

    async def evict(self, request: pb.EvictRequest, _: Context) -> pb.EvictResponse:
        self._admit()
        gone = await self._engine.evict(request.ref)
        return pb.EvictResponse(freed=gone.shm, draining=gone.draining)

    async def remove(self, request: pb.RemoveRequest, _: Context) -> pb.RemoveResponse:
        self._admit()
        gone = await self._engine.remove(request.ref)
        return pb.RemoveResponse(shm=gone.shm, nvme=gone.nvme)

    async def list_leases(self, request: pb.ListLeasesRequest, _: Context) -> pb.ListLeasesResponse:
        """Who holds is looked up here, where somebody asks, and never when a lease is taken."""
        leases = await asyncio.to_thread(peers.confirm, self._engine.leases(request.ref), self._socket)
        return pb.ListLeasesResponse(leases=[lease_to_pb(lease) for lease in leases])

    async def verify(self, request: pb.VerifyRequest, context: Context) -> None:
        self._admit()
        async with contextlib.aclosing(self._engine.verify(request.ref, quick=request.quick)) as steps:
            async for step in steps:
                await _read(context.write(verify_to_pb(step).SerializeToString()))

    async def list_models(self, _: pb.ListModelsRequest, __: Context) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=[model_to_pb(m) for m in self._engine.models()])

    async def get_model(self, request: pb.GetModelRequest, _: Context) -> pb.Model:
        return model_to_pb(self._engine.model(request.ref, request.revision))

    async def watch(self, _: pb.WatchRequest, context: Context) -> None:
        """Sends its headers once it listens: a client that waits for them misses nothing that happens after."""
        self._admit()
        drained = asyncio.ensure_future(self._drained.wait())
        events = self._engine.watch()
        coming = asyncio.ensure_future(_next(events))
        try:
            await asyncio.sleep(0)  # lets the iterator begin, and with it the listening
            await context.send_initial_metadata((methods.BEGUN,))
            while (event := await self._unless(drained, coming)) is not None:
                await context.write(event_to_pb(event).SerializeToString())
                coming = asyncio.ensure_future(_next(events))
        finally:
            await _end(drained)
            await _end(coming)
            await events.aclose()

    async def _unless(self, drained: asyncio.Future[Any], coming: asyncio.Future[Event | None]) -> Event | None:
        """The event that comes, or Draining raised."""
        await asyncio.wait([drained, coming], return_when=asyncio.FIRST_COMPLETED)
        if not coming.done():
            self._admit()
        return coming.result()

    async def get_status(self, _: pb.GetStatusRequest, __: Context) -> pb.Status:
        return status_to_pb(await self._engine.status(), os.getpid())

    def handlers(self) -> grpc.GenericRpcHandler:
        """For `server.add_generic_rpc_handlers`; streams send ready bytes, so that an acquire serializes nothing."""
        handlers = [
            _unary(methods.RESOLVE, self.resolve),
            _stream(methods.FETCH, self.fetch),
            _stream(methods.ACQUIRE, self.acquire),
            _stream(methods.LOAD, self.load),
            _unary(methods.PIN, self.pin),
            _unary(methods.UNPIN, self.unpin),
            _unary(methods.EVICT, self.evict),
            _unary(methods.REMOVE, self.remove),
            _unary(methods.LIST_LEASES, self.list_leases),
            _unary(methods.LIST_MODELS, self.list_models),
            _unary(methods.GET_MODEL, self.get_model),
            _stream(methods.WATCH, self.watch),
            _stream(methods.VERIFY, self.verify),
            _unary(methods.GET_STATUS, self.get_status),
        ]
        return grpc.method_handlers_generic_handler(methods.SERVICE, dict(handlers))


async def _follow(steps: AsyncGenerator[Progress | ModelState, None], context: Context) -> None:
    """Progress, thinned, then the model; the call's end, whichever way, drops the interest."""
    pace = Pace()
    async with contextlib.aclosing(steps):
        async for step in steps:
            if isinstance(step, Progress):
                await _send(pb.FetchEvent, pace.take(step, time.monotonic()), context)
            else:
                await _send(pb.FetchEvent, pace.rest(), context)
                await context.write(pb.FetchEvent(model=model_to_pb(step)).SerializeToString())


async def _send(
    event: type[pb.FetchEvent] | type[pb.AcquireEvent], progress: Progress | None, context: Context
) -> None:
    if progress is not None:
        await context.write(event(progress=progress_to_pb(progress)).SerializeToString())


async def _read(writing: Awaitable[None]) -> None:
    """Raises TooSlow where a client does not read, stopped or waiting for somebody who reads: what it verifies is held
    meanwhile, and must not be for ever."""
    try:
        async with asyncio.timeout(UNREAD_S):
            await writing
    except TimeoutError:
        raise TooSlow(
            f"what was found was not read for {UNREAD_S:g} s", remedy="Verify again, and write the output to a file."
        ) from None


async def _next(events: AsyncGenerator[Event, None]) -> Event | None:
    """None at the end."""
    return await anext(events, None)


async def _end(task: asyncio.Future[Any]) -> None:
    """Cancel and wait, so that an iterator is not closed while it runs."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # seen: whoever wanted it has it


Named = tuple[str, "grpc.RpcMethodHandler[Any, Any]"]


def _unary(method: Method, handler: Handler[Any, Any]) -> Named:
    return method.name, grpc.unary_unary_rpc_method_handler(
        guarded(method.name, handler),
        request_deserializer=method.request.FromString,
        response_serializer=method.answer.SerializeToString,
    )


def _stream(method: Method, handler: Handler[Any, None]) -> Named:
    return method.name, grpc.unary_stream_rpc_method_handler(
        guarded(method.name, handler),
        request_deserializer=method.request.FromString,
        response_serializer=None,
    )
