"""Records of committed blobs on their way to the state: those that come while the disk is busy go together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from weightd.storage.state import BlobRecord, State
from weightd.threads import finish


class Records:
    """On the event loop; `write` runs a blocking call in the state's thread. A disk makes many records durable in the
    time of one, and a model may have thousands of small files."""

    def __init__(self, state: State, write: Callable[..., Awaitable[Any]]) -> None:
        self._state, self._write = state, write
        self._waiting: list[tuple[BlobRecord, str, str, asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None

    async def put(self, record: BlobRecord, source_key: str, deliverer: str = "") -> None:
        """`deliverer`: text of the ref whose source sent its bytes, if one did. Durable when this returns; its end is
        awaited even when the caller is cancelled. Raises DiskFull."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((record, source_key, deliverer, done))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._write_all(), name="records")
        await finish(done)

    async def _write_all(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                await self._put([(record, key, ref) for record, key, ref, _ in batch])
            except Exception:  # noqa: BLE001 - what one is refused for, another may not be: each for itself
                for record, key, ref, done in batch:
                    await self._write_one((record, key, ref), done)
            else:
                for *_, done in batch:
                    done.set_result(None)

    async def _put(self, batch: list[tuple[BlobRecord, str, str]]) -> None:
        delivered = [(record.digest, ref) for record, _, ref in batch if ref]
        await self._write(self._state.put_blobs, [(record, key) for record, key, _ in batch], delivered)

    async def _write_one(self, one: tuple[BlobRecord, str, str], done: asyncio.Future[None]) -> None:
        try:
            await self._put([one])
        except Exception as e:  # noqa: BLE001 - raised by who waits for it
            done.set_exception(e)
        else:
            done.set_result(None)
