"""Verified files left in a directory of the user's, under their own names."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from weightd.core.errors import PathInTheWay
from weightd.core.lifecycle import IngestState
from weightd.core.manifest import check_path
from weightd.storage.direct import check_free, disk_errors, fsync_directory
from weightd.storage.ingests import FileIngest, IngestDirectory
from weightd.storage.kept import by_stem, missing
from weightd.storage.owners import Owner, parse_owner, this_process

EXPORT_MODE = 0o644
TEMPORARY = ".weightd-"
NOBODY = Owner(boot="0" * 8, pid=0, started=0)
"""Owner of what was kept by a process that may live on."""


class ExportDirectory:
    """Files are written below `DIR/.weightd-<owner>-<random>/` and appear in DIR only by `publish`, all verified.

    `open` first, `close` in any case. What a dead process left there is taken over, so that its ingests are resumed.
    Nothing is ever written through a symlink below DIR. Blocking.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._work = root / f"{TEMPORARY}{this_process()}-{secrets.token_hex(6)}"
        self._ingests = IngestDirectory(self._work, EXPORT_MODE)
        self._lock = -1
        self._made: list[Path] = []

    def open(self) -> None:
        """Make DIR if it is missing. Raises PathInTheWay, AccessDenied or DiskFull."""
        with disk_errors(self.root):
            try:
                self._make(self.root)
                self._work.mkdir(mode=0o700)
            except (FileExistsError, NotADirectoryError):
                raise PathInTheWay(
                    f"{self.root} is not a directory", remedy="Name a directory, or a new path."
                ) from None
        self._lock = _lock(self._work)
        for other in self.root.glob(f"{TEMPORARY}*"):
            self._take_over(other)
        # Else what was kept of a version that is no more would stay in the user's directory for ever.
        self._ingests.drop_leftovers()

    def _take_over(self, other: Path) -> None:
        """Two things say that its process lives: the process table, and a flock for hosts that share a disk."""
        owner = parse_owner(other.name.removeprefix(TEMPORARY))
        if other == self._work or owner is None or owner.alive or other.is_symlink() or not other.is_dir():
            return
        lock = _lock(other)
        if lock < 0:
            return
        try:
            self._ingests.take_over(other)
            shutil.rmtree(other, ignore_errors=True)
        finally:
            os.close(lock)

    def _make(self, directory: Path) -> None:
        """With its parents; `close` removes those again that stay empty."""
        missing = [p for p in (directory, *directory.parents) if not p.exists()]
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            self._made.append(path)

    def check(self, path: str) -> Path:
        """Where `path` will be. Raises PathInTheWay for a symlink, a directory or anything else that is no file."""
        target = self.root / check_path(path)
        for parent in reversed(target.relative_to(self.root).parents[:-1]):
            self._check_kind(self.root / parent, path, stat.S_ISDIR, "a directory")
        self._check_kind(target, path, stat.S_ISREG, "a regular file")
        return target

    @staticmethod
    def _check_kind(place: Path, path: str, wanted: Callable[[int], bool], word: str) -> None:
        try:
            mode = place.lstat().st_mode
        except FileNotFoundError:
            return
        if not wanted(mode):
            kind = "a symlink" if stat.S_ISLNK(mode) else "something else"
            raise PathInTheWay(
                f"{place} is {kind}, not {word}", file=path, remedy="Move it away or name another directory."
            )

    def ingest(self, path: str, size: int, identities: Sequence[str] = (), part_size: int = 0) -> FileIngest:
        """Space for one file, not yet visible; see `protocols.BlobStore.ingest`. Raises DiskFull or PathInTheWay."""
        self.check(path)
        return self._ingests.open(size, identities, part_size)

    def check_room(self, wanted: Iterable[tuple[int, Sequence[str]]]) -> None:
        """Raises DiskFull unless there is room for files of these sizes, of which what is kept under their identities
        has some already."""
        kept = by_stem(self._ingests.kept())
        check_free(self.root, sum(missing(size, identities, kept) for size, identities in wanted))

    def publish(self, files: dict[str, FileIngest]) -> None:
        """Make all files visible, each replacing an older one of its name; durable when this returns.

        All that can be refused is refused before the first one appears. Those that are VERIFYING were finished before.
        """
        for ingest in files.values():
            if ingest.state is IngestState.OPEN:
                ingest.finish()
        for path in files:
            target = self.check(path)
            with disk_errors(self.root):
                self._make(target.parent)
        targets = {path: self.check(path) for path in files}
        for path, ingest in files.items():
            ingest.rename(targets[path])
        for directory in {self.root, *(t.parent for t in targets.values())}:
            fsync_directory(directory)

    def drop_kept(self, unwanted: Callable[[str], bool]) -> None:
        """Those of these identities will not be resumed."""
        self._ingests.drop_kept(unwanted)

    def close(self, *, keep: bool = False) -> bool:
        """What was not published goes, and every directory that was made here and holds nothing. Idempotent.

        With `keep`, ingests that can be resumed stay for the next one to open this directory; True if there are any.
        """
        lock, self._lock = self._lock, -1
        kept = keep and os.path.isdir(self._work) and bool(self._ingests.kept())
        if not kept:
            shutil.rmtree(self._work, ignore_errors=True)
        elif lock >= 0:
            # By its name it is this process's, who may live on: nobody's, it can be taken over at once. On a disk that
            # became read-only it cannot be renamed, and is taken over when this process has ended.
            with suppress(OSError):
                self._work.rename(self.root / f"{TEMPORARY}{NOBODY}-{secrets.token_hex(6)}")
        if lock >= 0:
            os.close(lock)
        for path in reversed(self._made):
            with suppress(OSError):
                path.rmdir()
        return kept


def _lock(directory: Path) -> int:
    """A descriptor that holds the flock of `directory`; -1 where somebody else holds it or nobody can."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return -1
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return -1
    return fd
