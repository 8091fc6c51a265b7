"""What a flight has to show while it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from weightd.core.manifest import FileSpec
from weightd.core.progress import FileProgress, Phase, Progress, RateMeter, seconds_left


class Moving(Protocol):
    """A file on its way; `done` counts its bytes that are here."""

    @property
    def file(self) -> FileSpec: ...

    @property
    def done(self) -> int: ...


@dataclass(slots=True)
class Seen:
    """What one who follows was told: `listed` are the files that were named to him, `finished` those that are here."""

    listed: Mapping[str, Moving] | None = None
    finished: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Tracker:
    """`items` by path are the files under way, whoever moves them."""

    phase: Phase = Phase.RESOLVING
    files: tuple[FileSpec, ...] = ()
    items: Mapping[str, Moving] = field(default_factory=dict)
    meter: RateMeter = field(default_factory=RateMeter)

    def snapshot(self, now: float, seen: Seen) -> Progress:
        """As of `now`, seconds of a monotonic clock. All files that are to come are listed once; after that only those
        that have begun: a model may have thousands, and this is asked for ten times a second."""
        if self.phase is Phase.RESOLVING:
            return Progress(Phase.RESOLVING)
        moving = [(i.file, i.done) for i in self.items.values()]
        total = sum(f.size for f in self.files)
        moved = sum(done for _, done in moving)
        done = total - sum(file.size for file, _ in moving) + moved
        rate = self.meter.add(now, moved)
        phase = Phase.VERIFYING if moving and done == total else self.phase
        return Progress(phase, done, total, rate, seconds_left(done, total, rate), self._shown(moving, seen))

    def _shown(self, moving: list[tuple[FileSpec, int]], seen: Seen) -> tuple[FileProgress, ...]:
        every = seen.listed is not self.items
        seen.listed = self.items
        shown = tuple(
            FileProgress(file.path, done, file.size)
            for file, done in moving
            if (done or every or not file.size) and file.path not in seen.finished
        )
        seen.finished.update(p.path for p in shown if p.done == p.total)
        return shown
