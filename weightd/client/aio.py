"""The asynchronous client: the verbs of `weightd.client.client.Client`, awaited."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from types import TracebackType
from typing import Any

from weightd.client import convert
from weightd.client.address import segment_directory, socket_path
from weightd.client.again import RECONNECT
from weightd.client.aio_connection import AioConnection, AioStream
from weightd.client.aio_regain import AioRegainer
from weightd.client.aio_waiting import AioWaiting
from weightd.client.client import OnProgress, report
from weightd.client.faults import timed_out, unfinished
from weightd.client.files import Claim
from weightd.client.hold import Hold
from weightd.client.holder import this_process
from weightd.client.lease import Lease
from weightd.client.link import ANSWER_LIMIT
from weightd.client.types import EventInfo, Evicted, FileCheck, LeaseInfo, ManifestInfo, ModelInfo, StatusInfo, Tier
from weightd.core.errors import WeightdError
from weightd.wire import methods
from weightd.wire.gen import weightd_pb2 as pb
from weightd.wire.methods import Method


class AsyncClient:
    """As `Client`, for asyncio. Connects at the first call, to whichever loop is running then; of one thread.

    A lease is `await client.acquire(ref)`, or `async with client.acquire(ref) as lease`.
    """

    def __init__(
        self,
        socket: str | os.PathLike[str] | None = None,
        *,
        reconnect: float = RECONNECT,
        shm: str | os.PathLike[str] | None = None,
    ) -> None:
        self.socket = socket_path(socket)
        self._reconnect = reconnect
        self._shm = segment_directory(shm)
        self._connection = AioConnection(self.socket)
        self._regainer = AioRegainer(self._connection)

    async def resolve(self, ref: str) -> ManifestInfo:
        """See `Client.resolve`."""
        request = pb.ResolveRequest(ref=convert.checked_ref(ref))
        return convert.manifest_info(await self._connection.unary(methods.RESOLVE, request, ref))

    async def fetch(
        self, ref: str, sha256: str | None = None, tier: Tier | None = None, on_progress: OnProgress | None = None
    ) -> ModelInfo:
        """See `Client.fetch`. Cancelling it stops a fetch that nobody else waits for."""
        request = convert.fetch_request(ref, sha256, tier)
        async with self._waiting(methods.FETCH, request, ref) as events:
            return await _followed(events, ref, on_progress)

    async def load(self, ref: str, on_progress: OnProgress | None = None) -> ModelInfo:
        """See `Client.load`."""
        request = pb.LoadRequest(ref=convert.checked_ref(ref))
        async with self._waiting(methods.LOAD, request, ref) as events:
            return await _followed(events, ref, on_progress)

    def _waiting(self, method: Method, request: Any, ref: str) -> AioWaiting:
        return AioWaiting(self._connection, method, request, ref, reconnect=self._reconnect)

    async def pin(self, ref: str) -> ModelInfo:
        """See `Client.pin`."""
        request = pb.PinRequest(ref=convert.checked_ref(ref))
        return convert.model_info((await self._connection.unary(methods.PIN, request, ref)).model)

    async def unpin(self, ref: str) -> ModelInfo:
        """See `Client.unpin`."""
        request = pb.UnpinRequest(ref=convert.checked_ref(ref))
        return convert.model_info((await self._connection.unary(methods.UNPIN, request, ref)).model)

    async def evict(self, ref: str) -> Evicted:
        """See `Client.evict`."""
        answer = await self._connection.unary(methods.EVICT, pb.EvictRequest(ref=convert.checked_ref(ref)), ref)
        return Evicted(shm=answer.freed, draining=answer.draining)

    async def remove(self, ref: str) -> Evicted:
        """See `Client.remove`."""
        answer = await self._connection.unary(methods.REMOVE, pb.RemoveRequest(ref=convert.checked_ref(ref)), ref)
        return Evicted(shm=answer.shm, nvme=answer.nvme)

    async def leases(self, ref: str = "") -> list[LeaseInfo]:
        """See `Client.leases`."""
        request = convert.leases_request(ref)
        return convert.lease_infos(await self._connection.unary(methods.LIST_LEASES, request, ref, limit=ANSWER_LIMIT))

    async def verify(
        self, ref: str = "", *, quick: bool = False, on_progress: Callable[[int, int], None] | None = None
    ) -> AsyncGenerator[FileCheck, None]:
        """See `Client.verify`."""
        request = convert.verify_request(ref, quick)
        async with await self._connection.stream(methods.VERIFY, request, ref) as events:
            while (event := await events.read()) is not None:
                if event.HasField("check"):
                    yield convert.file_check(event.check)
                elif on_progress is not None:
                    on_progress(event.progress.bytes_done, event.progress.bytes_total)

    def acquire(
        self,
        ref: str,
        on_progress: OnProgress | None = None,
        timeout: float | None = None,
        *,
        prefault: bool = False,
    ) -> Acquiring:
        """See `Client.acquire`. Await it, or enter it with `async with`."""
        asking = functools.partial(self._acquire, convert.checked_ref(ref), on_progress)
        return Acquiring(asking, ref, timeout, prefault)

    async def _acquire(self, ref: str, on_progress: OnProgress | None) -> Lease:
        request = pb.AcquireRequest(ref=ref, holder=this_process())
        call = self._waiting(methods.ACQUIRE, request, ref)
        try:
            while (event := await call.read()) is not None:
                if event.HasField("handles"):
                    return self._lease(ref, event.handles, call.stream)
                report(on_progress, event.progress)
        except BaseException:
            call.end()
            raise
        raise unfinished(ref)

    def _lease(self, ref: str, handles: pb.Handles, call: AioStream) -> Lease:
        hold = Hold(ref, call, Claim(handles, self._shm), self._regainer)
        lease = Lease(hold)
        hold.watch()
        return lease

    async def models(self) -> list[ModelInfo]:
        """See `Client.models`."""
        answer = await self._connection.unary(methods.LIST_MODELS, pb.ListModelsRequest(), limit=ANSWER_LIMIT)
        return convert.model_infos(answer)

    async def model(self, ref: str, revision: str = "") -> ModelInfo:
        """The current snapshot, or the one of `revision`. Raises ModelNotFound."""
        request = convert.model_request(ref, revision)
        return convert.model_info(await self._connection.unary(methods.GET_MODEL, request, ref, limit=ANSWER_LIMIT))

    async def status(self) -> StatusInfo:
        """The daemon itself."""
        answer = await self._connection.unary(methods.GET_STATUS, pb.GetStatusRequest(), limit=ANSWER_LIMIT)
        return convert.status_info(answer)

    def watch(self) -> AsyncWatch:
        """Events, from the moment that `async with` has entered it, or else that its iteration begins."""
        return AsyncWatch(self._connection)

    async def close(self) -> None:
        """Ends this client's leases and calls. Views stay valid. Idempotent."""
        await self._connection.close()
        await self._regainer.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<AsyncClient {self.socket}>"


async def _followed(events: AioWaiting, ref: str, on_progress: OnProgress | None) -> ModelInfo:
    while (event := await events.read()) is not None:
        if event.HasField("model"):
            return convert.model_info(event.model)
        report(on_progress, event.progress)
    raise unfinished(ref)


class Acquiring:
    """A lease to be: nothing is asked until it is awaited or entered."""

    def __init__(self, asking: Callable[[], Awaitable[Lease]], ref: str, timeout: float | None, prefault: bool) -> None:
        self._asking, self._ref, self._timeout, self._prefault = asking, ref, timeout, prefault
        self._lease: Lease | None = None

    def __await__(self) -> Generator[Any, None, Lease]:
        return self._run().__await__()

    async def _run(self) -> Lease:
        lease = await self._acquire()
        if self._prefault:
            try:
                await asyncio.to_thread(lease.prefault)
            except BaseException:
                lease.release()
                raise
        return lease

    async def _acquire(self) -> Lease:
        if self._timeout is None:
            return await self._asking()
        try:
            async with asyncio.timeout(self._timeout):
                return await self._asking()
        except TimeoutError:
            raise timed_out(self._ref, self._timeout) from None

    async def __aenter__(self) -> Lease:
        self._lease = await self
        return self._lease

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._lease is not None:
            self._lease.release()


class AsyncWatch:
    """Iterate for events, in the order in which they happen; `close` ends the iteration."""

    def __init__(self, connection: AioConnection) -> None:
        self._connection = connection
        self._stream: AioStream | None = None
        self._closed = False

    def __aiter__(self) -> AsyncWatch:
        return self

    async def __anext__(self) -> EventInfo:
        """Raises TooSlow for a reader that fell too far behind, Draining when the daemon stops."""
        stream = await self._open()
        try:
            event = await stream.read()
        except WeightdError:
            if not self._closed:
                raise
            event = None
        if event is None:
            raise StopAsyncIteration
        return convert.event_info(event)

    async def _open(self) -> AioStream:
        if self._stream is None:
            self._stream = await self._connection.stream(methods.WATCH, pb.WatchRequest(), headers=True)
        return self._stream

    def close(self) -> None:
        """Idempotent."""
        self._closed = True
        if self._stream is not None:
            self._stream.end()

    async def __aenter__(self) -> AsyncWatch:
        await self._open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()
