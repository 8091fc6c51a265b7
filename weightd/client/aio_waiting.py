"""Calls whose answer may be long in coming: `weightd.client.waiting`, awaited."""

from __future__ import annotations

import random
import time
from types import TracebackType
from typing import Any

from weightd.client.again import Patience
from weightd.client.aio_connection import AioConnection, AioStream
from weightd.core.errors import WeightdError
from weightd.wire.methods import Method


class AioWaiting:
    """See `weightd.client.waiting.Waiting`; the caller limits the time."""

    def __init__(self, connection: AioConnection, method: Method, request: Any, ref: str, *, reconnect: float) -> None:
        self._connection = connection
        self._method, self._request, self._ref = method, request, ref
        self._patience = Patience(reconnect)
        self._stream: AioStream | None = None

    @property
    def stream(self) -> AioStream:
        """The call that is open now."""
        assert self._stream is not None, "nothing has been read"
        return self._stream

    async def read(self) -> Any:
        """The next message; None at the end."""
        while True:
            try:
                message = await self._read()
            except WeightdError as error:
                self._stream = None
                await self._rest_after(error)
                continue
            self._patience.heard()
            return message

    async def _read(self) -> Any:
        if self._stream is None:
            self._stream = await self._connection.stream(self._method, self._request, self._ref)
        return await self._stream.read()

    async def _rest_after(self, error: WeightdError) -> None:
        """Raises `error` when it is final."""
        if not self._connection.answered:
            raise error
        now = time.monotonic()
        seconds = self._patience.next_pause(error, now, random.random())
        if seconds is None:
            raise error
        await self._connection.pause(seconds)

    def end(self) -> None:
        """Idempotent."""
        if self._stream is not None:
            self._stream.end()

    async def __aenter__(self) -> AioWaiting:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.end()
