"""Model directories: `models/<key>/<revision>/…`, in which every file name resolves (promise 7), and `current` beside
them, which leads to the one that the ref means now.

Links to blobs on disk are relative, so the state directory can be moved or mounted elsewhere; links into shared
memory are absolute, because /dev/shm is the same path everywhere.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from weightd.core.errors import PathInTheWay
from weightd.core.manifest import check_path
from weightd.storage.direct import disk_errors, left_behind

TEMPORARY = ".weightd-"
CURRENT = "current"
"""The symlink beside the revisions of a model that leads to the current one."""


class ModelDirectories:
    """Directories below `root`, a real directory that is made if missing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        with _in_the_way(), disk_errors(root.parent):
            root.mkdir(mode=0o755, parents=True, exist_ok=True)

    def path(self, key: str, revision: str) -> Path:
        """Where the directory is or would be."""
        return self.root / check_path(key) / check_path(revision)

    def publish(self, key: str, revision: str, targets: Mapping[str, Path]) -> Path:
        """Make each name in `targets` (path → file) resolve. A new directory appears whole; links in one that exists
        are switched one by one, each atomically. Returns the directory."""
        directory = self.path(key, revision)
        with _in_the_way(), disk_errors(self.root):
            directory.parent.mkdir(mode=0o755, exist_ok=True)
            if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
                raise PathInTheWay(f"{directory} is not a directory", remedy="Move what stands there away.")
            if directory.is_dir():
                self._switch(directory, targets)
            else:
                self._create(directory, targets)
        return directory

    def _create(self, directory: Path, targets: Mapping[str, Path]) -> None:
        building = directory.parent / (TEMPORARY + secrets.token_hex(6))
        try:
            for name, target in targets.items():
                link = building / check_path(name)
                link.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                link.symlink_to(_link_text(directory / name, target))
            building.rename(directory)
        finally:
            shutil.rmtree(building, ignore_errors=True)

    def _switch(self, directory: Path, targets: Mapping[str, Path]) -> None:
        for name, target in targets.items():
            link = directory / check_path(name)
            link.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            _point(link, _link_text(link, target), directory.parent)

    def switch(self, key: str, revision: str) -> None:
        """`<key>/current` leads to a revision that was published, from one moment to the next."""
        link = self.path(key, CURRENT)
        with _in_the_way(), disk_errors(self.root):
            if link.exists() and not link.is_symlink():
                raise PathInTheWay(f"{link} is not a symlink", remedy="Move what stands there away.")
            _point(link, check_path(revision), link.parent)

    def remove(self, key: str, revision: str) -> None:
        """The directory goes from one moment to the next, after a `current` that leads to it; what it leads to stays.
        Idempotent."""
        directory = self.path(key, revision)
        with disk_errors(self.root):
            current = self.path(key, CURRENT)
            if current.is_symlink() and os.readlink(current) == revision:
                current.unlink()
            if directory.is_dir() and not directory.is_symlink():
                going = directory.rename(directory.parent / (TEMPORARY + secrets.token_hex(6)))
                shutil.rmtree(going)
            with suppress(OSError):  # another snapshot is there, or nothing ever was
                directory.parent.rmdir()

    def drop_others(self, known: Collection[tuple[str, str]]) -> None:
        """Directories that a process left when it died, of no snapshot (key, revision) that is known. Only links go:
        what somebody else put there stays."""
        for directory in self.root.glob("*/*"):
            names = directory.parent.name, directory.name
            with left_behind(directory):
                if names not in known and directory.is_dir() and not directory.is_symlink() and _only_links(directory):
                    self.remove(*names)

    def drop_leftovers(self) -> None:
        """What an earlier process left half built."""
        for path in self.root.glob(f"*/{TEMPORARY}*"):
            with left_behind(path):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()


def _point(link: Path, text: str, scratch: Path) -> None:
    """A symlink that holds `text`, in place of what is there; made in `scratch`, on the same file system."""
    if link.is_symlink() and os.readlink(link) == text:
        return
    fresh = scratch / (TEMPORARY + secrets.token_hex(6))
    fresh.symlink_to(text)
    try:
        fresh.replace(link)
    finally:
        fresh.unlink(missing_ok=True)


def _only_links(directory: Path) -> bool:
    return all(p.is_symlink() or p.is_dir() for p in directory.rglob("*"))


@contextmanager
def _in_the_way() -> Iterator[None]:
    try:
        yield
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as e:
        raise PathInTheWay(
            f"{e.filename2 or e.filename} cannot be made: {e.strerror}", remedy="Move what stands there away."
        ) from None


def _link_text(link: Path, target: Path) -> str:
    return str(target) if target.is_relative_to("/dev/shm") else os.path.relpath(target, link.parent)
