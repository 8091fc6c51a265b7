"""Models that are to be in shared memory always."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final

from weightd.core.errors import WeightdError
from weightd.core.refs import Ref, parse_ref

log = logging.getLogger(__name__)

LOOK_S: Final = 1.0
"""Seconds between two looks whether all are where they should be."""
RETRY_S: Final = (1.0, 300.0)
"""The first pause after a failure, and the longest."""


class HotKeeper:
    """On the event loop. `there` says whether a ref is in shared memory; `bring` brings it there."""

    def __init__(self, names: list[str], there: Callable[[Ref], bool], bring: Callable[[Ref], Awaitable[None]]) -> None:
        self._refs = [parse_ref(name) for name in names]
        self._there, self._bring = there, bring
        self._failures: dict[str, int] = {}
        self._due: dict[str, float] = {}

    async def run(self) -> None:
        """Until cancelled. One that cannot be brought is tried again, ever less often; no other waits for it."""
        tasks: dict[str, asyncio.Task[None]] = {}
        try:
            while self._refs:
                for ref in self._refs:
                    busy = ref.text in tasks and not tasks[ref.text].done()
                    if not busy and not self._there(ref) and time.monotonic() >= self._due.get(ref.text, 0.0):
                        tasks[ref.text] = asyncio.get_running_loop().create_task(self._try(ref), name="hot")
                await asyncio.sleep(LOOK_S)
        finally:
            for task in tasks.values():
                task.cancel()
            if tasks:
                await asyncio.wait(tasks.values())

    async def _try(self, ref: Ref) -> None:
        try:
            await self._bring(ref)
            self._failures.pop(ref.text, None)
        except (WeightdError, OSError) as e:
            failures = self._failures[ref.text] = self._failures.get(ref.text, 0) + 1
            wait = random.uniform(0.5, 1.0) * min(RETRY_S[1], RETRY_S[0] * 2 ** (failures - 1))
            self._due[ref.text] = time.monotonic() + wait
            log.warning("hot model %s is not in shared memory: %s; tried again in %.0f s", ref.shown, e, wait)
