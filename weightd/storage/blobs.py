"""Blobs on disk: `blobs/sha256/ab/<hex>`, 0440, committed by rename; open ingests in `ingest/<id>`."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from weightd.core.digest import Digest, hex_of, parse_digest
from weightd.core.errors import Corruption, DigestSyntax, NotFound, PathInTheWay
from weightd.core.lifecycle import INGEST, IngestState, Lifecycle
from weightd.storage.direct import (
    disk_errors,
    free_bytes,
    fsync_directory,
    open_direct,
    pread_all,
    pwrite_all,
)

BLOB_MODE = 0o440
_DAMAGE = {
    errno.EIO: "the disk reports an error",
    errno.ELOOP: "a symlink stands in its place",
    errno.EISDIR: "a directory stands in its place",
}


class FileIngest:
    """An invisible write of `size` bytes to `temporary`, which `commit` renames to where `place` says.

    Used for blobs and for exported files. `place(digest)` returns the final path; its directory is made here.
    """

    def __init__(self, temporary: Path, size: int, mode: int = BLOB_MODE) -> None:
        self.temporary, self.size, self._mode = temporary, size, mode
        self._life = Lifecycle("ingest", INGEST, IngestState.OPEN)
        try:
            with self._opened(os.O_CREAT | os.O_EXCL) as fd:
                if size:
                    os.posix_fallocate(fd, 0, size)
        except BaseException:
            self.abort()
            raise

    @property
    def state(self) -> IngestState:
        return self._life.state

    @contextmanager
    def _opened(self, flags: int = 0) -> Iterator[int]:
        """Open for one operation: a model may have more files than a process may have descriptors."""
        with disk_errors(self.temporary.parent):
            fd = open_direct(self.temporary, os.O_RDWR | flags)
            try:
                yield fd
            finally:
                os.close(fd)

    def write(self, offset: int, data: memoryview) -> None:
        with self._opened() as fd:
            pwrite_all(fd, offset, data)

    def read(self, offset: int, view: memoryview) -> None:
        with self._opened() as fd:
            pread_all(fd, offset, view, what=f"ingest {self.temporary.name}")

    def finish(self) -> None:
        """All bytes are verified: cut to size, read-only, durable; not yet visible."""
        self._life.to(IngestState.VERIFYING)
        with self._opened() as fd:
            os.ftruncate(fd, self.size)
            os.fchmod(fd, self._mode)
            os.fsync(fd)

    def rename(self, target: Path) -> None:
        """Visible and durable under `target`, whose directory exists. Closes."""
        with disk_errors(target.parent), _a_file_at(target):
            self.temporary.rename(target)
        self._life.to(IngestState.COMMITTED)
        fsync_directory(target.parent)

    def abort(self) -> None:
        if self.state in (IngestState.COMMITTED, IngestState.ABORTED):
            return
        self._life.to(IngestState.ABORTED)
        self.temporary.unlink(missing_ok=True)

    def __repr__(self) -> str:
        return f"<FileIngest {self.temporary.name} {self.state.name} {self.size}>"


class BlobIngest(FileIngest):
    """See `protocols.Ingest`."""

    def __init__(self, store: DirectoryBlobStore, size: int) -> None:
        self._store = store
        super().__init__(store.ingests / secrets.token_hex(8), size)

    def commit(self, digest: Digest) -> None:
        try:
            self.finish()
            target = self._store.path(digest)
            self._store.make_parent(target)
            self.rename(target)
        finally:
            self.abort()


class DirectoryBlobStore:
    """Blobs below `root`, a directory on the disk that holds the state. Made if missing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = root / "blobs" / "sha256"
        self.ingests = root / "ingest"
        for directory in (self.blobs, self.ingests):
            _make_directory(directory)

    def ingest(self, size: int) -> BlobIngest:
        return BlobIngest(self, size)

    def path(self, digest: Digest) -> Path:
        name = hex_of(digest)
        return self.blobs / name[:2] / name

    def make_parent(self, target: Path) -> None:
        """The two-letter directory of a blob, durably."""
        if not target.parent.is_dir():
            with disk_errors(self.blobs):
                target.parent.mkdir(mode=0o750, exist_ok=True)
            fsync_directory(self.blobs)

    def size(self, digest: Digest) -> int | None:
        try:
            status = self.path(digest).stat(follow_symlinks=False)
        except FileNotFoundError:
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def read(self, digest: Digest, offset: int, view: memoryview) -> None:
        try:
            fd = open_direct(self.path(digest), os.O_RDONLY)
            try:
                pread_all(fd, offset, view, what=f"blob {digest}")
            finally:
                os.close(fd)
        except FileNotFoundError:
            raise NotFound(f"blob {digest} is not on disk") from None
        except OSError as e:
            if e.errno not in _DAMAGE:
                raise
            raise Corruption(f"blob {digest} cannot be read: {_DAMAGE[e.errno]}") from None

    def delete(self, digest: Digest) -> None:
        with _a_file_at(self.path(digest)):
            self.path(digest).unlink(missing_ok=True)

    def free(self) -> int:
        return free_bytes(self.root)

    def digests(self) -> Iterator[Digest]:
        for path in self.blobs.glob("??/*"):
            try:
                digest = parse_digest(path.name)
            except DigestSyntax:
                continue
            # A file in another place than its own is none of ours.
            if self.path(digest) == path:
                yield digest

    def drop_leftovers(self) -> int:
        found = [Path(e.path) for e in os.scandir(self.ingests) if not e.is_dir(follow_symlinks=False)]
        for path in found:
            path.unlink()
        return len(found)

    def __repr__(self) -> str:
        return f"<DirectoryBlobStore {self.root}>"


@contextmanager
def _a_file_at(path: Path) -> Iterator[None]:
    try:
        yield
    except IsADirectoryError:
        raise PathInTheWay(f"{path} is a directory", remedy="Move it away.") from None


def _make_directory(path: Path) -> None:
    try:
        with disk_errors(path.parent):
            path.mkdir(mode=0o750, parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise PathInTheWay(f"{path} is not a directory", remedy="Move what stands there away.") from None
    if path.is_symlink():
        raise PathInTheWay(f"{path} is a symlink", remedy="Remove it: weightd keeps its state in real directories.")
