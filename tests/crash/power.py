"""What a disk would hold after the power failed: only what was synced, by the strictest reading of fsync(2).

A file has the content of its last fsync or fdatasync, and none without one. A directory has the names of its last
fsync. What was there when `watch` began is durable. SQLite syncs by itself; its files are taken as they are, which is
the worst case here: the state then says more than the disk can hold.
"""

from __future__ import annotations

import os
import shutil
import stat
import threading
from pathlib import Path
from typing import Any

Names = dict[str, tuple[int, bool]]
"""Of a directory: inode, and whether it is a directory, by name."""


class Disk:
    """Wraps fsync and fdatasync of this process for everything below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.Lock()
        self._files: dict[int, bytes] = {}
        self._names: dict[int, Names] = {}

    def watch(self) -> None:
        """From now on."""
        for parent, _, files in os.walk(self.root):
            self._note_directory(Path(parent))
            for name in files:
                self._note_file(Path(parent, name))
        for name in ("fsync", "fdatasync"):
            setattr(os, name, self._wrapped(getattr(os, name)))

    def _wrapped(self, original: Any) -> Any:
        def synced(fd: int) -> None:
            original(fd)
            path = Path(os.readlink(f"/proc/self/fd/{fd}"))
            if path.is_relative_to(self.root):
                with self._lock:
                    self._note_directory(path) if path.is_dir() else self._note_file(path)

        return synced

    def _note_file(self, path: Path) -> None:
        # Page cache and O_DIRECT agree after a sync.
        self._files[path.stat().st_ino] = path.read_bytes()

    def _note_directory(self, path: Path) -> None:
        found: Names = {}
        for entry in os.scandir(path):
            if entry.is_symlink():
                continue
            found[entry.name] = (entry.inode(), entry.is_dir(follow_symlinks=False))
        self._names[path.stat().st_ino] = found

    def fail(self, where: Path) -> None:
        """Write to `where` what would be left."""
        with self._lock:
            self._rebuild(self.root.stat().st_ino, where)
            for path in self.root.glob("state.db*"):
                shutil.copy(path, where / path.name)

    def _rebuild(self, inode: int, where: Path) -> None:
        where.mkdir()
        for name, (child, directory) in self._names.get(inode, {}).items():
            if directory:
                self._rebuild(child, where / name)
            else:
                (where / name).write_bytes(self._files.get(child, b""))
                if (where / name).parent.parent.name == "sha256":
                    (where / name).chmod(stat.S_IRUSR | stat.S_IRGRP)
