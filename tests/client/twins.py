"""Both clients, looking alike: every verb is awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from weightd import AsyncClient, Client

Verb = Callable[..., Awaitable[Any]]


class Threaded:
    """The synchronous client with every verb in a thread, as the asynchronous one looks."""

    def __init__(self, socket: Path, **options: Any) -> None:
        self.real = Client(socket, **options)

    def __getattr__(self, name: str) -> Verb:
        async def verb(*args: Any, **kwargs: Any) -> Any:
            return await asyncio.to_thread(getattr(self.real, name), *args, **kwargs)

        return verb


class Awaited:
    """The asynchronous client, whose watch is entered when made."""

    def __init__(self, socket: Path, **options: Any) -> None:
        self.real = AsyncClient(socket, **options)

    def __getattr__(self, name: str) -> Verb:
        return getattr(self.real, name)  # type: ignore[no-any-return]

    async def watch(self) -> Any:
        return await self.real.watch().__aenter__()


TWINS: list[Any] = [Threaded, Awaited]
NAMES = ["Client", "AsyncClient"]
