"""How often progress is sent."""

from __future__ import annotations

import msgspec

from weightd.core.progress import FileProgress, Phase, Progress

INTERVAL = 0.09
"""Seconds between two messages: a little less than the engine's tick, so that no second one is lost to jitter."""


class Pace:
    """Thins a stream of progress. A new phase is sent at once; what is left out is merged into what follows."""

    __slots__ = ("_complete", "_left_out", "_next", "_phase")

    def __init__(self) -> None:
        self._next = 0.0
        self._phase: Phase | None = None
        self._left_out: Progress | None = None
        self._complete: dict[str, FileProgress] = {}

    def take(self, progress: Progress, now: float) -> Progress | None:
        """What to send for this message, if anything; `now` in seconds, monotonic."""
        if now < self._next and progress.phase is self._phase:
            self._left_out = progress
            self._complete.update((f.path, f) for f in progress.files if f.done >= f.total)
            return None
        self._next, self._phase = now + INTERVAL, progress.phase
        return self._merge(progress)

    def rest(self) -> Progress | None:
        """The last message, if it was left out: so that a bar ends where the bytes end."""
        return None if self._left_out is None else self._merge(self._left_out)

    def _merge(self, progress: Progress) -> Progress:
        """Adds the files that became complete in messages that were left out."""
        present = {f.path for f in progress.files}
        missed = tuple(f for path, f in self._complete.items() if path not in present)
        self._left_out = None
        self._complete.clear()
        return msgspec.structs.replace(progress, files=missed + progress.files) if missed else progress
