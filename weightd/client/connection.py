"""The synchronous client's channel and its calls."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from weightd.client import forks
from weightd.client.address import target
from weightd.client.faults import closed, is_stale, timed_out, translate
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
        self._lock = threading.Lock()
        self._link: Link | None = None
        self._closed = False

    def unary(self, method: Method, request: Any, ref: str = "", *, limit: float | None = None) -> Any:
        """The answer. `limit` in seconds, else TimedOut."""
        return self._attempt(lambda link: link.unary(method)(request, timeout=limit), ref)

    def stream(
        self, method: Method, request: Any, ref: str = "", *, timeout: float | None = None, headers: bool = False
    ) -> Stream:
        """A call that has begun: its first message is here, or only its headers.

        `timeout` in seconds, until `Stream.keep_open`.
        """

        def begin(link: Link) -> Stream:
            stream = Stream(link.stream(method)(request), self.socket, ref, timeout)
            stream.begin(headers)
            return stream

        return self._attempt(begin, ref)

    def close(self) -> None:
        """Ends every call. Idempotent; nothing in a forked child."""
        self._closed = True
        link, self._link = self._link, None
        if link is not None and not forks.is_child():
            link.close()

    def _attempt(self, run: Callable[[Link], T], ref: str) -> T:
        link = self._linked()
        error: grpc.RpcError | None = None
        try:
            return run(link)
        except grpc.RpcError as e:
            error = e
        except ValueError:  # what gRPC says when another thread has closed the channel
            if not self._closed:
                raise
        if self._closed or error is None:
            raise closed()
        if not is_stale(error, self.socket):
            raise translate(error, self.socket, ref)
        self._drop(link)
        return self._last_attempt(run, ref)

    def _last_attempt(self, run: Callable[[Link], T], ref: str) -> T:
        try:
            return run(self._linked())
        except grpc.RpcError as e:
            error = e
        raise translate(error, self.socket, ref)

    def _linked(self) -> Link:
        forks.opening(self.socket)  # before the lock, which in a child may be locked forever
        link = self._link
        if link is None:
            with self._lock:
                if self._closed:
                    raise closed()
                link = self._link = self._link or Link(self.socket)
        return link

    def _drop(self, link: Link) -> None:
        """Not closed: calls of other threads end by themselves."""
        with self._lock:
            if self._link is link:
                self._link = None


class Stream:
    """A call whose messages are read by iterating; raises weightd's errors. Also the open call behind a lease."""

    def __init__(self, call: Any, socket: Path, ref: str, timeout: float | None) -> None:
        self._call = call
        self._socket, self._ref = socket, ref
        self._first: Iterator[Any] = iter(())
        self._timeout = timeout
        self._expired = False
        self._timer: threading.Timer | None = None
        forks.keep(self)
        if timeout is not None:
            self._timer = threading.Timer(timeout, self._expire)
            self._timer.daemon = True
            self._timer.start()

    def begin(self, headers: bool) -> None:
        """Wait for the first message or the headers. Raises RpcError as it is, for whoever may try again."""
        try:
            if not headers or not begun(self._call.initial_metadata()):
                self._first = iter([next(self._call)])
        except StopIteration:
            pass
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

    def end(self) -> None:
        """Idempotent; nothing in a forked child, whose lock on the call may never open."""
        if forks.is_child():
            return
        if self._timer is not None:
            self._timer.cancel()
        self._call.cancel()

    def _expire(self) -> None:
        self._expired = True
        self._call.cancel()

    def _raise_if_expired(self) -> None:
        if self._expired and self._timeout is not None:
            raise timed_out(self._ref, self._timeout) from None

    def __iter__(self) -> Iterator[Any]:
        return itertools.chain(self._first, iter(self._rest, None))

    def _rest(self) -> Any:
        """The next message; None at the end."""
        forks.check()
        try:
            return next(self._call, None)
        except grpc.RpcError as e:
            error = e
        self._raise_if_expired()
        raise self._fault(error)

    def _fault(self, error: grpc.RpcError) -> WeightdError:
        return translate(error, self._socket, self._ref)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.end()
