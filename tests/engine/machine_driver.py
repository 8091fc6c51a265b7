"""One run of the state machine: its processes, what it holds of them, and what it knows of the host."""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.engine import machine_host
from tests.engine.machine_expect import Tiers, digests
from tests.engine.machine_host import Bug, Seen, Setup
from tests.engine.machine_world import BY_DIGEST, PAGE, Versions
from tests.support.nursery import Child, Died, Nursery
from weightd.core.digest import Digest
from weightd.engine.adopt import Adoption
from weightd.engine.api import ModelState
from weightd.storage.segments import ROOT

OWNER = "machine"


class Killed:
    """In place of an outcome: a point was reached, and another process has begun."""


@dataclass(frozen=True, eq=False)
class Mapped:
    """A segment as a worker has it."""

    path: Path
    inode: int
    view: mmap.mmap
    expected: bytes

    @classmethod
    def open(cls, path: Path, expected: bytes) -> Mapped:
        fd = os.open(path, os.O_RDONLY)
        try:
            return cls(path, os.fstat(fd).st_ino, mmap.mmap(fd, 0, prot=mmap.PROT_READ), expected)
        finally:
            os.close(fd)

    @property
    def named(self) -> bool:
        """Whether its name still leads to it."""
        try:
            return self.path.stat().st_ino == self.inode
        except FileNotFoundError:
            return False

    @property
    def size(self) -> int:
        """Bytes of memory."""
        return -(-len(self.expected) // PAGE) * PAGE


@dataclass(frozen=True, eq=False)
class Lease:
    """What a worker leased, and has mapped."""

    ref: str
    revision: str
    maps: list[Mapped]


class Driver:
    """Orders to a child, and everything that the test itself holds. `mount` is ROOT, or a tmpfs of nobody else."""

    def __init__(self, nursery: Nursery, mount: Path, *, keep: int, shm: int, nvme: int) -> None:
        self.nursery, self.mount = nursery, mount
        self.place = Path(tempfile.mkdtemp(prefix="weightd-machine-"))
        self.owner = OWNER + self.place.name.rpartition("-")[2].replace("_", "x")
        self.versions: Versions = {}
        self.down = self.held = False
        self.leases: dict[int, Lease] = {}
        self.lost: list[Lease] = []
        """Of those whose process was killed, to be regained."""
        self.loose: list[Mapped] = []
        self.waiting: dict[int, tuple[str, str]] = {}
        """Method and ref of orders that wait, by number."""
        self.pins: set[str] = set()
        self.pinned: dict[tuple[str, str], set[str]] = {}
        """Segments of pinned snapshots, as they were seen last in this life."""
        self.unsure_pins: set[str] = set()
        """Pinned or not: a kill came in between."""
        self.hurt: set[Digest] = set()
        """Damaged behind the engine's back, and not mended since."""
        self.ever_hurt: set[Digest] = set()
        self.orphans: set[int] = set()
        """Inodes that are mapped, and of which no engine knows any more."""
        self.awaited: set[tuple[str, str]] = set()
        self.filler = 0
        self.armed = False
        self.revisions: dict[tuple[str, str], dict[str, Digest]] = {}
        self.directories: dict[Path, set[Digest]] = {}
        """Of every snapshot that there ever was."""
        self._number = 0
        self.setup = Setup(
            self.place, str(mount), self.owner, shm, nvme, keep, Adoption.LAZY, 0.0, self.versions, down=False
        )
        self.start(Adoption.LAZY, grace=False)

    # --- the engine's process

    def start(self, adoption: Adoption, *, grace: bool) -> None:
        """The next life."""
        setup = replace(
            self.setup, adoption=adoption, grace=3600.0 * grace, versions=dict(self.versions), down=self.down
        )
        self.armed, self.held, self.pinned = False, False, {}
        self.child: Child = self.nursery.start(machine_host.serve, setup)
        found = self._sound(self.child.receive())
        assert isinstance(found, Seen), found
        self.seen = found
        self.orphans = {m.inode for m in self.maps() if not m.named}
        here = {d for d, b in found.blobs.items() if b.in_shm}
        self.awaited = {(m.ref, m.revision) for m in found.models if grace and digests(m) & here}

    def order(self, method: str, *arguments: object) -> Any:
        """Its answer, or Killed."""
        try:
            self.child.send((method, arguments))
            return self._sound(self.child.receive())
        except Died:
            if not self.armed or self.child.status != -9:
                raise
            return Killed()

    @staticmethod
    def _sound(answer: Any) -> Any:
        assert not isinstance(answer, Bug), answer.text
        return answer

    def ask(self, method: str, *arguments: object) -> Any:
        """The outcome; None where it waits. Errors are returned."""
        number = self._number = self._number + 1
        outcome = self.order("begin", number, method, *arguments)
        if outcome is None:
            self.waiting[number] = method, str(arguments[0])
        else:
            self.came(number, method, outcome)
        return outcome

    def came(self, number: int, method: str, outcome: Any) -> None:
        """What an order came to that may have waited."""
        self._sound(outcome)
        self.waiting.pop(number, None)
        if method == "acquire" and isinstance(outcome, ModelState):
            self.leases[number] = Lease(outcome.ref, outcome.revision, self._map(outcome))

    def all_came(self, outcomes: Any) -> None:
        if not isinstance(outcomes, Killed):
            for number, outcome in outcomes.items():
                self.came(number, self.waiting[number][0], outcome)

    def _map(self, model: ModelState) -> list[Mapped]:
        """As a worker does, of the segments that the answer names."""
        maps = []
        for file in model.files:
            assert file.size == len(BY_DIGEST[file.digest])
            if file.size:
                maps.append(Mapped.open(self.mount / file.segment.removeprefix("/"), BY_DIGEST[file.digest]))
        return maps

    def ended(self) -> None:
        """The process is gone: whoever leased has its maps, and nobody knows of it."""
        self.lost = list(self.leases.values())
        self.loose += [m for lease in self.lost for m in lease.maps]
        self.leases, self.waiting = {}, {}

    # --- what is held here

    def maps(self) -> Iterable[Mapped]:
        yield from self.loose
        for lease in self.leases.values():
            yield from lease.maps

    def unmap(self, maps: list[Mapped]) -> None:
        for one in maps:
            one.view.close()
        self.loose = [m for m in self.loose if m not in maps]
        self.lost = [lease for lease in self.lost if not set(lease.maps) & set(maps)]
        self.orphans &= {m.inode for m in self.maps()}

    def unnamed(self) -> int:
        """Bytes that are mapped, have no name, and that the engine drains."""
        sizes = {m.inode: m.size for m in self.maps() if not m.named}
        return sum(size for inode, size in sizes.items() if inode not in self.orphans)

    def foreign(self) -> int:
        """Bytes of the tmpfs that are none of the engine's."""
        return self.filler + sum({m.inode: m.size for m in self.maps() if m.inode in self.orphans}.values())

    def tiers(self) -> Tiers:
        """For what must and what cannot fit."""
        claimed = {(m.ref, m.revision) for m in self.seen.models if m.leases or (m.current and m.pinned)}
        mapped = {"/" + m.path.name for m in self.maps() if m.named}
        room = self.seen.status.shm.total - self.foreign() if self.mount != ROOT else 1 << 60
        return Tiers(self.seen, claimed | self.awaited, mapped, self.unnamed(), room, self.ever_hurt)

    @property
    def quiet(self) -> bool:
        return not self.waiting

    def intact(self, model: ModelState) -> bool:
        """Whether nothing of it was damaged behind the engine's back."""
        return not digests(model) & self.hurt and digests(model) <= set(self.seen.blobs)

    def current(self, ref: str) -> ModelState | None:
        return self.tiers().current(ref)

    def blob(self, digest: Digest) -> Path:
        name = digest.removeprefix("sha256:")
        return self.place / "blobs/sha256" / name[:2] / name

    def note_damage(self) -> None:
        """What was mended meanwhile, or dropped, is hurt no more."""
        self.hurt = {d for d in self.hurt if d in self.seen.blobs and self._damaged(d)}

    def _damaged(self, digest: Digest) -> bool:
        try:
            return self.blob(digest).read_bytes() != BY_DIGEST[digest]
        except FileNotFoundError:
            return True

    def close(self) -> None:
        """Whatever happened."""
        self.child.kill()
        for one in self.maps():
            one.view.close()
        for path in self.segments() | {self.mount / self.filler_name}:
            path.unlink(missing_ok=True)
        shutil.rmtree(self.place, ignore_errors=True)

    filler_name = "somebody-elses"

    def segments(self) -> set[Path]:
        """Files of this run's engines."""
        return {p for p in self.mount.iterdir() if p.name.startswith(f"weightd-{self.owner}-")}
