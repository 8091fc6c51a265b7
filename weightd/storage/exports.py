"""Verified files left in a directory of the user's, under their own names."""

from __future__ import annotations

import secrets
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from weightd.core.errors import PathInTheWay
from weightd.core.manifest import check_path
from weightd.storage.blobs import FileIngest
from weightd.storage.direct import disk_errors, fsync_directory

EXPORT_MODE = 0o644
TEMPORARY = ".weightd-"


class ExportDirectory:
    """Files are written below `DIR/.weightd-<random>/` and appear in DIR only by `publish`, all verified.

    `open` first, `close` in any case. Nothing is ever written through a symlink below DIR. Blocking.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._work = root / (TEMPORARY + secrets.token_hex(6))
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

    def ingest(self, path: str, size: int) -> FileIngest:
        """Space for one file, not yet visible. Raises DiskFull or PathInTheWay."""
        self.check(path)
        return FileIngest(self._work / secrets.token_hex(8), size, EXPORT_MODE)

    def publish(self, files: dict[str, FileIngest]) -> None:
        """Make all files visible, each replacing an older one of its name; durable when this returns.

        All that can be refused is refused before the first one appears.
        """
        for ingest in files.values():
            ingest.finish()
        for path in files:
            target = self.check(path)
            with disk_errors(self.root):
                self._make(target.parent)
        targets = {path: self.check(path) for path in files}
        for path, ingest in files.items():
            ingest.rename(targets[path])
        fsync_directory(self.root)

    def close(self) -> None:
        """What was not published goes, and every directory that was made here and holds nothing. Idempotent."""
        shutil.rmtree(self._work, ignore_errors=True)
        for path in reversed(self._made):
            with suppress(OSError):
                path.rmdir()
