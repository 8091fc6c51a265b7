"""Verification in the background: every blob once in a period, gently, whatever happens to one of them."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from dataclasses import dataclass
from typing import Final

from weightd.core.digest import Digest
from weightd.core.errors import WeightdError
from weightd.core.parts import ALIGN
from weightd.core.patrol import AtRest, next_checks, retry_after
from weightd.engine.api import CopyState
from weightd.engine.catalog import Catalog
from weightd.engine.copies import Manner
from weightd.engine.held import Blob
from weightd.engine.scrub import Preempted, Scrubber
from weightd.engine.throttle import Throttle
from weightd.kernel import reads_last, step_back

log = logging.getLogger(__name__)

PIECE: Final = 1 << 20
"""Bytes read at a time: others get their turn at the disk between two."""
LOOK_S: Final = 60.0
"""Seconds after which what is held, and the clock, is looked at again."""
PAUSE_S: Final = 0.1
"""How soon a reading that pauses sees that it was stopped."""


@dataclass(frozen=True, slots=True)
class PatrolOptions:
    """`every` in seconds; `max_rate` in bytes per second, 0 for no limit."""

    every: float
    max_rate: int = 0


@dataclass(slots=True)
class _Trouble:
    failures: int
    retry_at: float


class Patrol:
    """While `calm` is not set, nothing is read. What cannot be verified or repaired is tried again, ever less often."""

    def __init__(self, catalog: Catalog, scrubber: Scrubber, options: PatrolOptions, calm: threading.Event) -> None:
        self._catalog, self._scrubber, self._every, self._calm = catalog, scrubber, options.every, calm
        self._throttle = Throttle(options.max_rate) if options.max_rate else None
        self._manner = Manner(self._piece(), _give_way, self._wait)
        self._trouble: dict[Digest, _Trouble] = {}

    def _piece(self) -> int:
        most = self._throttle.window(PIECE) if self._throttle else PIECE
        return max(ALIGN, most - most % ALIGN)

    async def run(self) -> None:
        """Until cancelled; then at once."""
        while True:
            blobs = self._blobs()
            self._trouble = {d: t for d, t in self._trouble.items() if d in blobs}
            # There may be very many.
            chosen, later = await self._catalog.io(self._choose, blobs)
            for one in chosen:
                if self._unchanged(one, blobs[one.digest]):
                    await self._check(blobs[one.digest])
            if not chosen:
                await asyncio.sleep(max(0.0, min(later - time.time(), LOOK_S, self._every)))

    def _blobs(self) -> dict[Digest, Blob]:
        """What is held, and what models miss because it could not be repaired."""
        missed = {b.record.digest: b for m in self._catalog.snapshots for b in m.blobs.values()}
        return missed | self._catalog.blobs

    def _choose(self, blobs: dict[Digest, Blob]) -> tuple[list[AtRest], float]:
        return next_checks(map(self._at_rest, blobs.values()), self._every, time.time())

    def _at_rest(self, blob: Blob) -> AtRest:
        record, trouble = blob.record, self._trouble.get(blob.record.digest)
        last = record.last_verified if record.digest in self._catalog.blobs else 0.0
        return AtRest(record.digest, record.size, last, trouble.retry_at if trouble else None)

    def _unchanged(self, chosen: AtRest, blob: Blob) -> bool:
        """Whether it is still as it was when it was chosen: not dropped, not verified by somebody else."""
        return self._catalog.blobs.get(chosen.digest, blob) is blob and self._at_rest(blob) == chosen

    async def _check(self, blob: Blob) -> None:
        """Afterwards its time is recorded, or it is in trouble: it is not the next one again."""
        digest, before = blob.record.digest, blob.record.last_verified
        try:
            check = await self._scrubber.check(blob, self._manner)
        except Preempted:
            await asyncio.sleep(0)
            return
        except (WeightdError, OSError) as e:
            self._failed(digest, f"cannot be verified now: {e}")
            return
        except Exception as e:
            log.exception("blob %s", digest)
            self._failed(digest, f"cannot be verified: internal error {type(e).__name__}")
            return
        if check is not None and CopyState.LOST in (check.nvme, check.shm):
            self._failed(digest, check.detail)
        elif self._catalog.blobs.get(digest) is blob and blob.record.last_verified == before:
            self._failed(digest, "changed while it was verified")
        else:
            self._trouble.pop(digest, None)

    def _failed(self, digest: Digest, why: str) -> None:
        failures = self._trouble[digest].failures + 1 if digest in self._trouble else 1
        wait = retry_after(failures, random.random(), self._every)
        self._trouble[digest] = _Trouble(failures, time.time() + wait)
        log.warning("blob %s %s; tried again in %.0f s", digest, why, wait)

    def _wait(self, count: int, stopping: threading.Event) -> None:
        while not self._calm.wait(PAUSE_S) and not stopping.is_set():
            pass
        if self._throttle is not None:
            self._throttle.pass_(count, stopping)


def _give_way() -> None:
    # No further down than others that move bytes: a thread that the processor does not come back to while it holds the
    # interpreter's lock would hold up the event loop.
    step_back()
    reads_last()
