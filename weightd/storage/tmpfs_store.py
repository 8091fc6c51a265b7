"""A store of segments that are files of a tmpfs: what both segment stores have in common."""

from __future__ import annotations

import os
import re
import secrets
import stat
import threading
import weakref
from collections.abc import Collection, Iterator
from typing import Final

from weightd.core.lifecycle import SegmentState
from weightd.core.numa import Placement
from weightd.storage import nodes
from weightd.storage.direct import left_behind
from weightd.storage.places import Place
from weightd.storage.protocols import SegmentIdentity
from weightd.storage.tmpfs import TmpfsSegment, adopted

PREFIX: Final = "weightd"
NAMED: Final = re.compile(PREFIX + r"-([A-Za-z0-9]{1,32})-.")
"""What the file of a segment is called; its owner."""


class TmpfsStore:
    """Segments named `/weightd-<owner>-<label>-<random>` in one `place`.

    `owner` (letters and digits) tells one daemon's segments from another's on the same host. `group` is the numeric
    group that may read sealed segments; None is the process's own. `placement`: on which NUMA nodes their pages are;
    None leaves it to the kernel. Raises ConfigError where it cannot place them so.
    """

    def __init__(
        self, place: Place, owner: str, *, group: int | None = None, placement: Placement | None = None
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9]{1,32}", owner):
            raise ValueError(f"owner {owner!r} is not letters and digits")
        self._place = place
        self._prefix = f"{PREFIX}-{owner}-"
        self._group = os.getegid() if group is None else group
        self._placement = placement
        if placement is not None:
            nodes.check(placement)
        self._live: weakref.WeakSet[TmpfsSegment] = weakref.WeakSet()
        self._lock = threading.Lock()

    def create(self, label: str, size: int) -> TmpfsSegment:
        self.check_room(size)
        with self._place.errors(size):
            name = f"{self._prefix}{label[:40]}-{secrets.token_hex(6)}"
            return self._counted(TmpfsSegment.create(self._place, name, size, self._group, self._placement))

    def adopt(self, name: str, size: int, identity: SegmentIdentity) -> TmpfsSegment | None:
        file = name.removeprefix("/")
        # A record that somebody else wrote leads nowhere else.
        if name != f"/{file}" or not file.startswith(self._prefix) or "/" in file or "\0" in file or size <= 0:
            return None
        segment = adopted(self._place, file, size, identity, self._group)
        return segment and self._counted(segment)

    def _counted(self, segment: TmpfsSegment) -> TmpfsSegment:
        with self._lock:
            self._live.add(segment)
        return segment

    def check_room(self, size: int) -> None:
        if size > self._place.room()[0]:
            raise self._place.full(size)
        nodes.check_room(self._placement, size)

    def free(self) -> int:
        return min(room[0] for room in self._rooms())

    def total(self) -> int:
        return min(room[1] for room in self._rooms())

    def _rooms(self) -> Iterator[tuple[int, int]]:
        """Free and total bytes of what limits us."""
        yield self._place.room()
        if (bound := nodes.bound(self._placement)) is not None:
            yield nodes.room_on(bound)

    def room(self) -> tuple[int, int]:
        return self._place.room()

    def huge_bytes(self) -> int:
        with self._lock:
            live = list(self._live)
        return sum(s.huge_bytes for s in live if s.state is not SegmentState.UNLINKED)

    def drop_leftovers(self, adopted: Collection[str] = ()) -> int:
        keep = {name.removeprefix("/") for name in adopted}
        names = [n for n in self._place.names() if n.startswith(self._prefix) and n not in keep]
        return sum(self._drop(name) for name in names)

    def _drop(self, name: str) -> bool:
        try:
            status = self._place.stat(name)
        except FileNotFoundError:
            return False
        if status.st_uid != os.geteuid() or stat.S_ISDIR(status.st_mode):
            return False
        gone = False
        with left_behind(self._place.root / name):
            self._place.unlink(name)
            gone = True
        return gone

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._prefix} in {self._place.root}>"
