"""The asynchronous client's channel and its calls: `weightd.client.connection`, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from weightd.client import forks
from weightd.client.address import target
from weightd.client.faults import closed, is_answer, is_stale, translate
from weightd.client.link import OPTIONS
from weightd.core.errors import WeightdError
from weightd.wire.methods import Method, begun
from weightd.wire.runtime import grpc

T = TypeVar("T")


class AioLink:
    """One channel, which belongs to the running loop, and its callables."""

    def __init__(self, socket: Path) -> None:
        self.loop = asyncio.get_running_loop()
        self._channel = grpc.aio.insecure_channel(target(socket), OPTIONS)
        self._callables: dict[Method, Any] = {}
        forks.keep(self._channel)

    def unary(self, method: Method) -> Any:
        return self._callables.get(method) or self._make(method, self._channel.unary_unary)

    def stream(self, method: Method) -> Any:
        return self._callables.get(method) or self._make(method, self._channel.unary_stream)

    def _make(self, method: Method, make: Callable[..., Any]) -> Any:
        made = self._callables[method] = make(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.answer.FromString,
        )
        return made

    async def close(self) -> None:
        await self._channel.close()


class AioConnection:
    """Opens a channel at the first call on each loop, and anew when the daemon was restarted meanwhile."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.answered = False
        """Whether a daemon has ever answered here."""
        self._link: AioLink | None = None
        self._closed = False
        self._pauses: set[asyncio.Future[None]] = set()

    @property
    def closed(self) -> bool:
        return self._closed

    async def unary(self, method: Method, request: Any, ref: str = "", *, limit: float | None = None) -> Any:
        """The answer. `limit` in seconds, else TimedOut."""

        async def ask(link: AioLink) -> Any:
            return await link.unary(method)(request, timeout=limit)

        return await self._attempt(ask, ref)

    async def stream(self, method: Method, request: Any, ref: str = "", *, headers: bool = False) -> AioStream:
        """A call that has begun: its first message is here, or only its headers."""

        async def begin(link: AioLink) -> AioStream:
            stream = AioStream(self, link, method, request, ref)
            await stream.begin(headers)
            return stream

        return await self._attempt(begin, ref)

    def send(self, method: Method, request: Any, ref: str) -> AioStream:
        """A call that has been sent, no more: nothing is waited for. Raises Precondition when closed."""
        return AioStream(self, self._linked(), method, request, ref)

    async def pause(self, seconds: float) -> None:
        """Raises Precondition as soon as this is closed."""
        pause = asyncio.get_running_loop().create_future()
        self._pauses.add(pause)
        try:
            await asyncio.wait([pause], timeout=seconds)
        finally:
            self._pauses.discard(pause)
        if self._closed:
            raise closed()

    async def fault(self, error: grpc.RpcError, ref: str) -> WeightdError:
        """What a call ended with. May connect once."""
        self.answered = self.answered or is_answer(error)
        return await asyncio.to_thread(translate, error, self.socket, ref)

    async def close(self) -> None:
        """Ends every call. Idempotent; nothing in a forked child."""
        self._closed = True
        for pause in self._pauses:
            if pause.get_loop() is asyncio.get_running_loop() and not pause.done():
                pause.set_result(None)
        link, self._link = self._link, None
        if link is not None and not forks.is_child():
            await link.close()

    async def _attempt(self, run: Callable[[AioLink], Awaitable[T]], ref: str) -> T:
        link = self._linked()
        try:
            return await self._unless_closed(run(link))
        except grpc.RpcError as e:
            error = e
        if not await asyncio.to_thread(is_stale, error, self.socket):
            raise await self.fault(error, ref)
        if self._link is link:
            self._link = None  # not closed: its other calls end by themselves
        try:
            return await self._unless_closed(run(self._linked()))
        except grpc.RpcError as e:
            error = e
        raise await self.fault(error, ref)

    async def _unless_closed(self, answer: Awaitable[T]) -> T:
        """gRPC cancels who waits when the channel is closed, as if the waiting task had been cancelled."""
        try:
            found = await answer
            self.answered = True
            return found
        except grpc.aio.UsageError:
            if not self._closed:
                raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._closed or task is None or task.cancelling():
                raise
        raise closed()

    def _linked(self) -> AioLink:
        forks.opening(self.socket)
        if self._closed:
            raise closed()
        if self._link is None or self._link.loop is not asyncio.get_running_loop():
            self._link = AioLink(self.socket)
        return self._link


class AioStream:
    """A call whose messages are read one by one; raises weightd's errors. Also the open call behind a lease."""

    def __init__(self, connection: AioConnection, link: AioLink, method: Method, request: Any, ref: str) -> None:
        self._connection = connection
        self._loop = link.loop
        self._call = link.stream(method)(request)
        self._ref = ref
        self._first: list[Any] = []
        self._ended = False
        forks.keep(self)
        forks.keep(self._call)

    async def begin(self, headers: bool) -> None:
        """Wait for the first message or the headers. Raises RpcError as it is, for whoever may try again."""
        try:
            if not headers or not begun(await self._call.initial_metadata()):
                first = await self._call.read()
                self._first.append(None if first is grpc.aio.EOF else first)
        except BaseException:
            self.end()
            raise

    def is_open(self) -> bool:
        return not self._ended and not self._call.done()

    def on_end(self, callback: Callable[[], None]) -> None:
        """`callback` runs once on the loop when the call has ended, and at once when it has."""
        self._call.add_done_callback(lambda _: callback())

    def end(self) -> None:
        """Idempotent; from any thread."""
        if self._ended or forks.is_child() or self._loop.is_closed():
            return
        self._ended = True
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            here = False
        if here:
            self._call.cancel()
        else:
            self._loop.call_soon_threadsafe(self._call.cancel)

    async def read(self) -> Any:
        """The next message; None at the end."""
        forks.check()
        if self._first:
            return self._first.pop()
        try:
            message = await self._call.read()
            return None if message is grpc.aio.EOF else message
        except grpc.RpcError as e:
            error = e
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._call.cancelled() or task is None or task.cancelling():
                raise
            raise closed() from None
        raise await self._connection.fault(error, self._ref)

    async def __aenter__(self) -> AioStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.end()
