"""Invisible writes, and what is left of those that did not end.

`<name>.<token>/data` with a `ledger` beside it for files of several parts whose identity is known: a later process
takes such a directory over by renaming it, which only one can do. Anything else is one file, `<token>`, that nobody
resumes. While it is in use, the token begins with its process, and no other takes or removes it while that one lives.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from weightd.core.errors import PathInTheWay, Unavailable, WeightdError
from weightd.core.lifecycle import INGEST, IngestState, Lifecycle
from weightd.storage.direct import (
    damage_errors,
    disk_errors,
    fsync_directory,
    left_behind,
    open_direct,
    pread_all,
    pwrite_all,
)
from weightd.storage.kept import LEDGER, Kept, allocated_below, name_of, used
from weightd.storage.ledger import Ledger, LedgerHeader
from weightd.storage.owners import parse_owner, this_process

KEEP_S: Final = 7 * 86400.0
"""How long nobody has to come back for an ingest before a start drops it."""
DATA, PROMISE, REPORT = "data", "promise", "report.json"


class FileIngest:
    """See `protocols.Ingest`. Made by `IngestDirectory.open`."""

    def __init__(self, owner: IngestDirectory, place: Path, size: int, header: LedgerHeader | None) -> None:
        self._owner, self.place, self.size, self._header = owner, place, size, header
        self.temporary = place / DATA if header else place
        self.part_size = header.part_size if header else 0
        self.held: dict[int, bytes] = {}
        self.resumed = ""
        self._ledger: Ledger | None = None
        self._life = Lifecycle("ingest", INGEST, IngestState.OPEN)
        self._recording = threading.Lock()

    def allocate(self) -> None:
        """Space for all of it. Raises DiskFull; then nothing stays."""
        try:
            if self._header:
                with disk_errors(self.place.parent):
                    self.place.mkdir(mode=0o700)
            with self._opened(os.O_CREAT | os.O_EXCL) as fd:
                if self.size:
                    os.posix_fallocate(fd, 0, self.size)
        except BaseException:
            self.abort()
            raise

    def resume(self, ledger: Ledger, held: dict[int, bytes]) -> bool:
        """Go on with what is in `place`; False when its data cannot be used."""
        try:
            with self._opened() as fd:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    return False
                os.posix_fallocate(fd, 0, self.size)
        except (Unavailable, PathInTheWay):
            return False
        self._ledger, self.held, self.resumed = ledger, held, ledger.header.identity
        return True

    @property
    def state(self) -> IngestState:
        return self._life.state

    @contextmanager
    def _opened(self, flags: int = 0) -> Iterator[int]:
        """Open for one operation: a model may have more files than a process may have descriptors."""
        with disk_errors(self.temporary.parent):
            try:
                fd = open_direct(self.temporary, os.O_RDWR | flags)
            except (FileNotFoundError, NotADirectoryError):
                raise Unavailable(
                    f"the ingest {self.place} is gone: another process took it over or removed it",
                    remedy="Let one daemon use a state directory; then try again.",
                ) from None
            except (IsADirectoryError, OSError) as e:
                if not os.path.islink(self.temporary) and not os.path.isdir(self.temporary):
                    raise
                raise PathInTheWay(f"{self.temporary} is not a file: {e.strerror}", remedy="Remove it.") from None
            try:
                yield fd
            finally:
                os.close(fd)

    def write(self, offset: int, data: memoryview) -> None:
        with self._opened() as fd:
            pwrite_all(fd, offset, data)

    def read(self, offset: int, view: memoryview) -> None:
        what = f"ingest {self.place.name}"
        with self._opened() as fd, damage_errors(what):
            pread_all(fd, offset, view, what=what)

    def record(self, parts: Mapping[int, bytes]) -> None:
        with self._recording:
            if self._header is None or self.state is not IngestState.OPEN:
                return
            with self._opened() as fd:
                os.fdatasync(fd)
            if self._ledger is None:
                self._ledger = Ledger.create(self.place / LEDGER, self._header)
                fsync_directory(self.place)
                fsync_directory(self.place.parent)
            self._ledger.append(parts)

    def finish(self) -> None:
        """All bytes are verified: cut to size, read-only, durable; not yet visible."""
        with self._recording:
            self._life.to(IngestState.VERIFYING)
        with self._opened() as fd:
            os.ftruncate(fd, self.size)
            os.fchmod(fd, self._owner.mode)
            os.fsync(fd)

    def promise(self, name: str) -> None:
        """The file is about to appear under `name`: until `abort`, its ledger can be brought together with it again,
        should nobody come to record that it is there."""
        if self._ledger is not None:
            with disk_errors(self.place):
                (self.place / PROMISE).write_text(name)

    def rename(self, target: Path) -> None:
        """Visible under `target`, whose directory exists; durable once the caller has synced that."""
        with disk_errors(target.parent):
            try:
                self.temporary.rename(target)
            except IsADirectoryError:
                raise PathInTheWay(f"{target} is a directory", remedy="Move it away.") from None
        self._life.to(IngestState.COMMITTED)

    def keep(self) -> bool:
        """Leave what is recorded for a later resume; False when there is nothing worth it, and then nothing stays."""
        with self._recording:
            if self.state is IngestState.OPEN and self._ledger is not None:
                self._life.to(IngestState.KEPT)
                self._owner.free(self.place)
                self._owner.closed(self, kept=True)
        self.abort()
        return self.state is IngestState.KEPT

    def abort(self) -> None:
        with self._recording:
            if self.state in (IngestState.OPEN, IngestState.VERIFYING):
                self._life.to(IngestState.ABORTED)
            if self.state is not IngestState.KEPT:
                self._remove()

    def _remove(self) -> None:
        _remove(self.place)
        self._owner.closed(self)

    def __repr__(self) -> str:
        return f"<FileIngest {self.place.name} {self.state.name} {self.size}>"


class IngestDirectory:
    """The ingests below `root`, of one process at a time. `mode` is that of committed files. Every method blocks.

    `aside` is where `set_aside` puts some of them; made when there is one.
    """

    def __init__(self, root: Path, mode: int, aside: Path | None = None) -> None:
        self.root, self.mode, self._aside = root, mode, aside
        self._process = this_process()
        self._open: set[str] = set()
        self._found: dict[str, list[Path]] | None = None
        self._lock = threading.Lock()

    def open(self, size: int, identities: Sequence[str], part_size: int) -> FileIngest:
        """Resume a kept ingest of one of `identities`, or make a new one of the first, which may be resumed later;
        without identities, or for a file of one part, one that nobody resumes. Raises DiskFull."""
        identities = [i for i in identities if i]
        for identity in identities:
            found = self._claim(identity, size)
            if found is not None:
                return found
        header = LedgerHeader(identities[0], size, part_size) if identities and 0 < part_size < size else None
        ingest = self._new(size, header)
        ingest.allocate()
        return ingest

    def _new(self, size: int, header: LedgerHeader | None) -> FileIngest:
        prefix = f"{name_of(header.identity)}." if header else ""
        ingest = FileIngest(self, self.root / f"{prefix}{self._process}-{secrets.token_hex(8)}", size, header)
        with self._lock:
            self._open.add(ingest.place.name)
        return ingest

    def free(self, place: Path) -> None:
        """Others may resume it, also while this process lives."""
        name, _, owned = place.name.partition(".")
        # On a disk that became read-only it cannot be renamed, and waits until this process has ended.
        with suppress(OSError):
            place.rename(self.root / f"{name}.{owned.rpartition('-')[2]}")

    def _in_use(self, name: str) -> bool:
        """By this process, or by another one that lives: where flock(2) lies there may be one."""
        if name in self._open:
            return True
        owner = parse_owner(name.rpartition(".")[2])
        return owner is not None and owner != self._process and owner.alive

    def closed(self, ingest: FileIngest, *, kept: bool = False) -> None:
        """It is this process's no more; `kept`: it waits to be resumed."""
        with self._lock:
            self._open.discard(ingest.place.name)
            if kept:
                self._found = None

    def _claim(self, identity: str, size: int) -> FileIngest | None:
        for path in self._waiting_for(name_of(identity)):
            read = Ledger.read(path / LEDGER)
            if read is None or read[0].header.identity != identity or read[0].header.size != size:
                _remove(path)
                continue
            ledger, held = read
            ingest = self._new(size, ledger.header)
            try:
                with disk_errors(self.root):
                    path.rename(ingest.place)
            except FileNotFoundError:  # somebody else was faster
                self.closed(ingest)
                continue
            except BaseException:
                self.closed(ingest)
                raise
            if ingest.resume(Ledger(ingest.place / LEDGER, ledger.header), held):
                return ingest
            ingest.abort()
        return None

    def _waiting(self) -> list[Path]:
        """Directories that may be resumed and that this process does not use, the latest used first."""
        with self._lock:
            roots = [self.root] if self._aside is None else [self.root, self._aside]
            places = [p for r in roots for p in r.glob("*.*")]
            found = [p for p in places if not self._in_use(p.name) and _is_directory(p)]
            found.sort(key=used, reverse=True)
            self._found = {}
            for path in found:
                self._found.setdefault(path.name.partition(".")[0], []).append(path)
        return found

    def _waiting_for(self, name: str) -> list[Path]:
        """Those of one name, as they were when the directory was read last: that takes too long to do it for each of
        many files. One that another process keeps meanwhile is found by the next look at all."""
        if self._found is None:
            self._waiting()
        with self._lock:
            places = (self._found or {}).get(name, [])
            return [p for p in places if not self._in_use(p.name) and _is_directory(p)]

    def adopt(self, path: Path, header: LedgerHeader, checksums: Sequence[bytes]) -> bool:
        """Make the file at `path`, some of whose parts may be damaged, an ingest to be resumed; each part will be
        proven by its checksum. False when it cannot be; then it is where it was."""
        if not header.sound or len(checksums) != header.parts:
            return False
        ingest = self._new(header.size, header)
        try:
            with disk_errors(self.root):
                ingest.place.mkdir(mode=0o700)
                Ledger.create(ingest.place / LEDGER, header).append(dict(enumerate(checksums)))
                _make_writable(path)
                path.rename(ingest.temporary)
        except (OSError, WeightdError):
            ingest.abort()
            return False
        self.free(ingest.place)
        self.closed(ingest, kept=True)
        return True

    def restore(self, name: str, path: Path) -> bool:
        """The file at `path`, promised under `name` by a process that ended before anybody recorded it, goes back to
        its ledger. False when there is none."""
        for place in self._waiting():
            try:
                if (place / PROMISE).read_text() != name:
                    continue
                _make_writable(path)
                path.rename(place / DATA)
            except (OSError, UnicodeDecodeError):
                continue
            return True
        return False

    def set_aside(self, identity: str, report: bytes) -> Path | None:
        """Move the kept ingest of `identity` to where people look for what is damaged."""
        for place in self._waiting_for(name_of(identity)):
            if self._aside is None or place.parent == self._aside:
                continue
            with disk_errors(self._aside.parent), suppress(FileNotFoundError):  # somebody resumes it just now
                self._aside.mkdir(mode=0o750, exist_ok=True)
                (place / REPORT).write_bytes(report)
                self._found = None
                return place.rename(self._aside / place.name)
        return None

    def take_over(self, other: Path) -> None:
        """Whatever can be resumed in another such directory, whose process is dead, is ours now, unless somebody else
        is faster."""
        for path in other.glob("*.*"):
            if _is_directory(path):
                with suppress(FileNotFoundError):
                    path.rename(self.root / path.name)
        self._found = None

    def kept(self) -> list[Kept]:
        """What waits to be resumed, the longest unused first."""
        return [Kept(p.name, allocated_below(p), used(p)) for p in reversed(self._waiting())]

    def drop(self, kept: Kept) -> None:
        """Idempotent; harmless for one that was resumed since."""
        with self._lock:
            if kept.name not in self._open:
                for root in (self.root, self._aside):
                    if root is not None:
                        _remove(root / kept.name)

    def drop_kept(self, unwanted: Callable[[str], bool]) -> None:
        """All that wait to be resumed under such an identity."""
        for path in self._waiting():
            read = Ledger.read(path / LEDGER)
            if read is not None and unwanted(read[0].header.identity):
                _remove(path)

    def drop_leftovers(self) -> int:
        """Remove what an earlier process left and nobody can, or has come to, resume; returns how many."""
        count, names = 0, set[str]()
        waiting = self._waiting()
        for path in waiting:
            name = path.name.partition(".")[0]
            if name in names or not _resumable(path) or time.time() - used(path) > KEEP_S:
                _remove(path)
                count += 1
            names.add(name)
        for entry in os.scandir(self.root):
            if not entry.is_dir(follow_symlinks=False) and not self._in_use(entry.name):
                with left_behind(Path(entry.path)):
                    os.unlink(entry.path)
                    count += 1
        return count


def _make_writable(path: Path) -> None:
    """Raises OSError for anything but a file."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise FileNotFoundError(path)
        os.fchmod(fd, 0o600)
    finally:
        os.close(fd)


def _resumable(path: Path) -> bool:
    return (path / DATA).is_file() and Ledger.read(path / LEDGER) is not None


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _remove(place: Path) -> None:
    """What cannot be removed, as on a disk that became read-only, is a leftover for the next start."""
    if _is_directory(place):
        shutil.rmtree(place, ignore_errors=True)
    else:
        with suppress(OSError):
            place.unlink()
