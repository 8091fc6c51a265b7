"""Which segments hold what, recorded for the next process: it adopts only what stands there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from weightd.core.digest import Digest
from weightd.core.errors import WeightdError
from weightd.storage.owners import boot_id
from weightd.storage.protocols import Segment
from weightd.storage.state import SegmentRecord, State

log = logging.getLogger(__name__)


class Resident:
    """On the event loop; `write` runs a blocking call in the state's thread. Written in the background, many together:
    what a crash keeps from being recorded is loaded again, and costs nothing else."""

    def __init__(self, state: State, write: Callable[..., Awaitable[Any]]) -> None:
        self._state, self._write = state, write
        self._changed: dict[Digest, SegmentRecord | None] = {}
        self._task: asyncio.Task[None] | None = None

    def add(self, digest: Digest, segment: Segment) -> None:
        """It is SEALED. One of 0 bytes has no object to be recorded."""
        if segment.name:
            device, inode = segment.identity
            self._change(digest, SegmentRecord(digest, segment.name, device, inode, boot_id()))

    def drop(self, digests: Iterable[Digest]) -> None:
        """They have none any more."""
        for digest in digests:
            self._change(digest, None)

    def _change(self, digest: Digest, record: SegmentRecord | None) -> None:
        self._changed[digest] = record
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run(), name="resident")

    async def settle(self) -> None:
        """Until all of it is written, or could not be."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while self._changed:
            changed, self._changed = self._changed, {}
            try:
                await self._write(self._state.drop_segments, [d for d, r in changed.items() if r is None])
                await self._write(self._state.put_segments, [r for r in changed.values() if r is not None])
            except WeightdError as e:
                log.warning("segments are not recorded, and will not be adopted: %s", e)
