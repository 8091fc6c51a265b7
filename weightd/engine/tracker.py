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
class Tracker:
    """`items` by path are the files under way, whoever moves them."""

    phase: Phase = Phase.RESOLVING
    files: tuple[FileSpec, ...] = ()
    items: Mapping[str, Moving] = field(default_factory=dict)
    meter: RateMeter = field(default_factory=RateMeter)
    finished: set[str] = field(default_factory=set)

    def snapshot(self, now: float) -> Progress:
        """As of `now`, seconds of a monotonic clock."""
        if self.phase is Phase.RESOLVING:
            return Progress(Phase.RESOLVING)
        moving = tuple(FileProgress(i.file.path, i.done, i.file.size) for i in self.items.values())
        total = sum(f.size for f in self.files)
        done = total - sum(p.total - p.done for p in moving)
        moved = sum(p.done for p in moving)
        rate = self.meter.add(now, moved)
        phase = Phase.VERIFYING if moving and done == total else self.phase
        shown = tuple(p for p in moving if p.path not in self.finished)
        self.finished.update(p.path for p in moving if p.done == p.total)
        return Progress(phase, done, total, rate, seconds_left(done, total, rate), shown)
