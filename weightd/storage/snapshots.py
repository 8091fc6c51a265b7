"""Model directories: `models/<key>/<revision>/…`, in which every file name resolves (promise 7).

Links to blobs on disk are relative, so the state directory can be moved or mounted elsewhere; links into shared
memory are absolute, because /dev/shm is the same path everywhere.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from weightd.core.errors import PathInTheWay
from weightd.core.manifest import check_path
from weightd.storage.direct import disk_errors

TEMPORARY = ".weightd-"


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
            text = _link_text(link, target)
            if link.is_symlink() and os.readlink(link) == text:
                continue
            link.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            fresh = directory.parent / (TEMPORARY + secrets.token_hex(6))
            fresh.symlink_to(text)
            try:
                fresh.replace(link)
            finally:
                fresh.unlink(missing_ok=True)

    def drop_leftovers(self) -> None:
        """What an earlier process left half built."""
        for path in self.root.glob(f"*/{TEMPORARY}*"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


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
