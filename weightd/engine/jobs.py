"""One file on its way: what is asked for, and what is known of it so far."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence

from weightd.core.crc import CrcAlgorithm, combine_parts
from weightd.core.digest import Digest, digest_of, git_blob
from weightd.core.parts import Part, plan_parts
from weightd.engine.buffers import Buffers
from weightd.engine.checks import Found
from weightd.engine.crcs import crc_of
from weightd.sources.protocols import Reader

FIRST = 4
"""Receivers of a file, before anybody knows how many its origin rewards."""


class FileJob:
    """Move one file of `size` bytes into `buffers`.

    `reader` makes a Reader, `receiver` one whose views all lie in `buffers`; `width` says how many at a time
    are worth their while. Without `ranges` the file comes as one
    stream. `write(offset, view)` puts a part on disk, None leaves that out; `abort` ends what it may ask the origin,
    now and later; `record(checksums)` makes written parts
    durable, and with them that they are whole. `expected` are the recorded checksums of a blob that is loaded: each
    part is compared, and SHA-256 is not computed again. `held` are parts by index that `local` reads: they are not
    asked for at the origin if they have these checksums; `in_place` says that they are where `write` would put them.
    `crc` is to be computed of the whole file, `git` says that the id of its git blob is. Counters are written by the
    transfer's threads, and may be read by anyone.
    """

    def __init__(
        self,
        path: str,
        size: int,
        *,
        part_size: int,
        reader: Callable[[], Reader],
        buffers: Buffers,
        ranges: bool = True,
        write: Callable[[int, memoryview], None] | None = None,
        abort: Callable[[], None] = lambda: None,
        record: Callable[[Mapping[int, bytes]], None] | None = None,
        expected: Sequence[bytes] | None = None,
        held: Mapping[int, bytes] | None = None,
        local: Callable[[], Reader] | None = None,
        receiver: Callable[[], Reader] | None = None,
        width: Callable[[], int] = lambda: FIRST,
        in_place: bool = True,
        crc: CrcAlgorithm | None = None,
        git: bool = False,
    ) -> None:
        self.path, self.size, self.part_size = path, size, part_size
        self.parts = plan_parts(size, part_size)
        self.reader, self.buffers, self.ranges = reader, buffers, ranges
        self.receiver, self.width, self.abort = receiver or reader, width, abort
        self.write, self.record, self.expected = write, record, expected
        self.held, self.local, self.in_place = dict(held or {}) if ranges else {}, local, in_place
        self.checksums: list[bytes] = [b""] * len(self.parts)
        self.crc = crc
        self._crcs = [0] * len(self.parts)
        self.done = 0
        self.proven = 0
        """Bytes that were not asked for at the origin, because they were held and whole."""
        self._noted: dict[int, bytes] = {}
        self.frontier = Frontier(expected is None, git_blob(size) if git else None)
        self._lock = threading.Lock()
        self._steps = len(self.parts) * (2 if write else 1)

    def add(self, count: int, *, proven: bool = False) -> None:
        """Bytes received, or `proven` to be here; negative when a part is given up."""
        with self._lock:
            self.done += count
            if proven:
                self.proven += count

    def step(self) -> bool:
        """A part was hashed or written; True once, when nothing is left to do."""
        with self._lock:
            self._steps -= 1
            return self._steps == 0

    def note(self, index: int, checksum: bytes) -> bool:
        """A part was written; True when the caller must see to it that it is recorded."""
        with self._lock:
            first = not self._noted
            self._noted[index] = checksum
            return first

    def noted(self) -> dict[int, bytes]:
        """What was noted since the last call."""
        with self._lock:
            noted, self._noted = self._noted, {}
            return noted

    @property
    def digest(self) -> Digest:
        """Of the whole file, once the job is complete. Only for jobs without `expected`."""
        return digest_of(self.frontier.sha.digest())

    def take_crc(self, part: Part, view: memoryview) -> None:
        """Of a part's bytes, in the thread that has them in its cache. Raises DependencyMissing."""
        if self.crc is not None:
            self._crcs[part.index] = crc_of(self.crc, view)

    def found(self) -> Found:
        """The digest, and the CRC and the git id that are wanted. Blocking: 15 µs for each part."""
        git = self.frontier.git
        found = Found(self.digest, git_id=git.hexdigest() if git is not None else "")
        if self.crc is None:
            return found
        lengths = (p.length for p in self.parts)
        return found._replace(crc=combine_parts(self.crc, zip(self._crcs, lengths, strict=True)))

    def __repr__(self) -> str:
        return f"<FileJob {self.path} {self.done}/{self.size}>"


class Received:
    """A part in memory, with the number of those who still read it."""

    __slots__ = ("_lock", "_users", "job", "part", "view")

    def __init__(self, job: FileJob, part: Part, view: memoryview, users: int) -> None:
        self.job, self.part, self.view = job, part, view
        self._users = users
        self._lock = threading.Lock()

    def release(self) -> None:
        """One reader less; the last one gives the memory back."""
        with self._lock:
            self._users -= 1
            last = self._users == 0
        if last:
            self.job.buffers.release(self.view)


class Frontier:
    """SHA-256, and what `git` is to become, along the contiguous front of a file whose parts arrive in any order."""

    def __init__(self, hashing: bool, git: hashlib._Hash | None = None) -> None:
        self.sha = hashlib.sha256()
        self.git = git
        self._hashing = hashing
        self._waiting: dict[int, Received] = {}
        self._next = 0
        self._busy = False
        self._lock = threading.Lock()

    def offer(self, received: Received) -> bool:
        """Add a part; True when the caller must see to it that `drain` runs."""
        with self._lock:
            self._waiting[received.part.index] = received
            start = not self._busy and self._next in self._waiting
            self._busy = self._busy or start
            return start

    def drain(self, done: Callable[[Received], None]) -> None:
        """Hash what is contiguous, in this thread; `done` for each part."""
        while (received := self._take()) is not None:
            try:
                if self._hashing:
                    self.sha.update(received.view)
                    if self.git is not None:
                        self.git.update(received.view)
            except BaseException:
                # Nobody else has it any more, and its memory is about to go.
                received.release()
                raise
            done(received)

    def _take(self) -> Received | None:
        with self._lock:
            received = self._waiting.pop(self._next, None)
            self._busy = received is not None
            if received is not None:
                self._next += 1
            return received

    def abandon(self) -> None:
        """Give back the parts that will not be hashed, when no more are offered."""
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for received in waiting.values():
            received.release()
