"""Calls whose answer may be long in coming, and that survive a restart of the daemon meanwhile."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from weightd.client.again import Deadline, Patience
from weightd.client.connection import Connection, Stream
from weightd.client.faults import timed_out
from weightd.core.errors import WeightdError
from weightd.wire.methods import Method


class Waiting:
    """Iterate for the messages of a call; it is sent again when the daemon ends it by Draining, or ends itself.

    Only once a daemon has answered this client, and until none has for `reconnect` seconds; the deadline holds for all
    attempts together. Raises weightd's errors.
    """

    def __init__(
        self,
        connection: Connection,
        method: Method,
        request: Any,
        ref: str,
        *,
        reconnect: float,
        deadline: Deadline | None = None,
    ) -> None:
        self._connection = connection
        self._method, self._request, self._ref = method, request, ref
        self._deadline = deadline
        self._patience = Patience(reconnect)
        self._stream: Stream | None = None

    @property
    def stream(self) -> Stream:
        """The call that is open now."""
        assert self._stream is not None, "nothing has been read"
        return self._stream

    def __iter__(self) -> Iterator[Any]:
        while True:
            try:
                message = self._read()
            except WeightdError as error:
                self._stream = None
                self._rest_after(error)
                continue
            if message is None:
                return
            self._patience.heard()
            yield message

    def _read(self) -> Any:
        if self._stream is None:
            self._stream = self._connection.stream(self._method, self._request, self._ref, deadline=self._deadline)
        return self._stream.read()

    def _rest_after(self, error: WeightdError) -> None:
        """Raises `error` when it is final."""
        if not self._connection.answered:
            raise error
        now = time.monotonic()
        seconds = self._patience.next_pause(error, now, random.random())
        if seconds is None:
            raise error
        if self._deadline is not None and now + seconds >= self._deadline.at:
            self._connection.pause(max(0.0, self._deadline.at - now))
            raise timed_out(self._ref, self._deadline.seconds) from None
        self._connection.pause(seconds)

    def end(self) -> None:
        """Idempotent."""
        if self._stream is not None:
            self._stream.end()

    def __enter__(self) -> Waiting:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.end()
