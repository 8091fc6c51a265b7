"""The synchronous client's channel and its calls."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from weightd.client import forks
from weightd.client.address import target
from weightd.client.again import Deadline
from weightd.client.faults import closed, is_answer, is_stale, timed_out, translate
from weightd.client.link import OPTIONS
from weightd.core.errors import WeightdError
from weightd.wire.methods import Method, begun
from weightd.wire.runtime import grpc

T = TypeVar("T")


class Link:
    """One channel, and its callables, made once each."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(target(socket), OPTIONS)
        self._callables: dict[Method, Any] = {}
        forks.keep(self._channel)

    def unary(self, method: Method) -> Any:
        return self._callables.get(method) or self._make(method, self._channel.unary_unary)

    def stream(self, method: Method) -> Any:
        return self._callables.get(method) or self._make(method, self._channel.unary_stream)

    def _make(self, method: Method, make: Callable[..., Any]) -> Any:
        made = make(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.answer.FromString,
        )
        return self._callables.setdefault(method, made)

    def close(self) -> None:
        self._channel.close()


class Connection:
    """Opens the channel at the first call, and once more when the daemon was restarted meanwhile. Thread-safe."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.answered = False
        """Whether a daemon has ever answered here."""
        self._lock = threading.Lock()
        self._link: Link | None = None
        self._closing = threading.Event()

    @property
    def closed(self) -> bool:
        return self._closing.is_set()

    def unary(self, method: Method, request: Any, ref: str = "", *, limit: float | None = None) -> Any:
        """The answer. `limit` in seconds, else TimedOut."""
        return self._attempt(lambda link: link.unary(method)(request, timeout=limit), ref)

    def stream(
        self, method: Method, request: Any, ref: str = "", *, deadline: Deadline | None = None, headers: bool = False
    ) -> Stream:
        """A call that has begun: its first message is here, or only its headers.

        `deadline` counts until `Stream.keep_open`.
        """

        def begin(link: Link) -> Stream:
            stream = Stream(self, link.stream(method)(request), ref, deadline)
            stream.begin(headers)
            return stream

        return self._attempt(begin, ref)

    def send(self, method: Method, request: Any, ref: str) -> Stream:
        """A call that has been sent, no more: nothing is waited for. Raises Precondition when closed."""
        link = self._linked()
        try:
            return Stream(self, link.stream(method)(request), ref, None)
        except ValueError:
            if not self.closed:
                raise
        raise closed()

    def pause(self, seconds: float) -> None:
        """Raises Precondition as soon as this is closed."""
        if self._closing.wait(seconds):
            raise closed()

    def close(self) -> None:
        """Ends every call. Idempotent; nothing in a forked child, where a lock may be locked forever."""
        if forks.is_child():
            return
        self._closing.set()
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def fault(self, error: grpc.RpcError, ref: str) -> WeightdError:
        """What a call ended with. May connect once."""
        self.answered = self.answered or is_answer(error)
        return translate(error, self.socket, ref)

    def _attempt(self, run: Callable[[Link], T], ref: str) -> T:
        link = self._linked()
        error: grpc.RpcError | None = None
        try:
            found = run(link)
            self.answered = True
            return found
        except grpc.RpcError as e:
            error = e
        except ValueError:  # what gRPC says when another thread has closed the channel
            if not self.closed:
                raise
        if self.closed or error is None:
            raise closed()
        if not is_stale(error, self.socket):
            raise self.fault(error, ref)
        self.drop(link)
        return self._last_attempt(run, ref)

    def _last_attempt(self, run: Callable[[Link], T], ref: str) -> T:
        try:
            found = run(self._linked())
            self.answered = True
            return found
        except grpc.RpcError as e:
            error = e
        raise self.fault(error, ref)

    def _linked(self) -> Link:
        forks.opening(self.socket)  # before the lock, which in a child may be locked forever
        link = self._link
        if link is None:
            with self._lock:
                if self.closed:
                    raise closed()
                link = self._link = self._link or Link(self.socket)
        return link

    def drop(self, link: Link) -> None:
        """Not closed: calls of other threads end by themselves."""
        with self._lock:
            if self._link is link:
                self._link = None


class Stream:
    """A call whose messages are read one by one; raises weightd's errors. Also the open call behind a lease."""

    def __init__(self, connection: Connection, call: Any, ref: str, deadline: Deadline | None) -> None:
        self._connection = connection
        self._call = call
        self._ref = ref
        self._first: list[Any] = []
        self._deadline = deadline
        self._expired = False
        self._timer: threading.Timer | None = None
        forks.keep(self)
        if deadline is not None:
            self._timer = threading.Timer(max(0.0, deadline.at - time.monotonic()), self._expire)
            self._timer.daemon = True
            self._timer.start()

    def begin(self, headers: bool) -> None:
        """Wait for the first message or the headers. Raises RpcError as it is, for whoever may try again."""
        try:
            if not headers or not begun(self._call.initial_metadata()):
                self._first.append(next(self._call, None))
        except BaseException:
            self.end()
            self._raise_if_expired()
            raise

    def keep_open(self) -> None:
        """The call has answered, and may stay as long as it likes. Raises TimedOut if that came too late."""
        if self._timer is not None:
            self._timer.cancel()
        self._raise_if_expired()

    def is_open(self) -> bool:
        return bool(self._call.is_active())

    def on_end(self, callback: Callable[[], None]) -> None:
        """`callback` runs once, when the call has ended, in a thread of gRPC's: it returns soon and raises nothing."""
        if not self._call.add_callback(callback):
            callback()

    def end(self) -> None:
        """Idempotent; nothing in a forked child, whose lock on the call may never open."""
        if forks.is_child():
            return
        if self._timer is not None:
            self._timer.cancel()
        self._call.cancel()

    def read(self) -> Any:
        """The next message; None at the end."""
        forks.check()
        if self._first:
            return self._first.pop()
        try:
            return next(self._call, None)
        except grpc.RpcError as e:
            error = e
        self._raise_if_expired()
        raise self._connection.fault(error, self._ref)

    def _expire(self) -> None:
        self._expired = True
        self._call.cancel()

    def _raise_if_expired(self) -> None:
        if self._expired and self._deadline is not None:
            raise timed_out(self._ref, self._deadline.seconds) from None

    def __iter__(self) -> Iterator[Any]:
        return iter(self.read, None)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.end()
