"""Blobs on disk: `blobs/sha256/ab/<hex>`, 0440, committed by rename; open ingests in `ingest/`."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from weightd.core.digest import Digest, blob_name, parse_digest
from weightd.core.errors import AccessDenied, DigestSyntax, NotFound, PathInTheWay
from weightd.core.lifecycle import IngestState
from weightd.storage.direct import (
    check_free,
    damage_errors,
    disk_errors,
    free_bytes,
    fsync_directory,
    open_direct,
    pread_all,
    room_of,
)
from weightd.storage.ingests import FileIngest, IngestDirectory
from weightd.storage.ledger import LedgerHeader

BLOB_MODE = 0o440


class BlobIngest:
    """See `protocols.Ingest`."""

    def __init__(self, store: DirectoryBlobStore, file: FileIngest) -> None:
        self._store, self._file = store, file
        self.held, self.resumed = file.held, file.resumed
        self.part_size = file.part_size
        self.write, self.read, self.record, self.keep, self.abort = (
            file.write, file.read, file.record, file.keep, file.abort,
        )  # fmt: skip

    @property
    def state(self) -> IngestState:
        return self._file.state

    def commit(self, digest: Digest) -> None:
        try:
            self._file.finish()
            target = self._store.path(digest)
            self._store.make_parent(target)
            self._file.promise(digest)
            self._file.rename(target)
            fsync_directory(target.parent)
        except BaseException:
            self._file.abort()
            raise

    def __repr__(self) -> str:
        return f"<BlobIngest of {self._file!r}>"


class DirectoryBlobStore:
    """Blobs below `root`, a directory on the disk that holds the state. Made if missing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = root / "blobs" / "sha256"
        self.ingests = root / "ingest"
        for directory in (self.blobs, self.ingests):
            _make_directory(directory)
        self._durable: set[str] = set()
        self._directory = IngestDirectory(self.ingests, BLOB_MODE, aside=root / "quarantine")
        self.kept, self.drop_kept = self._directory.kept, self._directory.drop
        self.drop_leftovers = self._directory.drop_leftovers

    def ingest(self, size: int, identities: Sequence[str] = (), part_size: int = 0) -> BlobIngest:
        return BlobIngest(self, self._directory.open(size, identities, part_size))

    def check_room(self, size: int) -> None:
        check_free(self.root, size)

    def salvage(self, digest: Digest, size: int, part_size: int, checksums: Sequence[bytes]) -> bool:
        return self._directory.adopt(self.path(digest), LedgerHeader(digest, size, part_size), checksums)

    def path(self, digest: Digest) -> Path:
        return self.root / blob_name(digest)

    def make_parent(self, target: Path) -> None:
        """The two-letter directory of a blob, durably."""
        name = target.parent.name
        if name not in self._durable or not target.parent.is_dir():
            with disk_errors(self.blobs):
                target.parent.mkdir(mode=0o750, exist_ok=True)
            # Also one that was there: whoever made it may not have come to this yet.
            fsync_directory(self.blobs)
            self._durable.add(name)

    def quarantine(self, digest: Digest, report: bytes) -> Path | None:
        return self._directory.set_aside(digest, report)

    def restore(self, digest: Digest) -> bool:
        return self._directory.restore(digest, self.path(digest))

    def size(self, digest: Digest) -> int | None:
        try:
            status = self.path(digest).stat(follow_symlinks=False)
        except FileNotFoundError:
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def read(self, digest: Digest, offset: int, view: memoryview) -> None:
        try:
            with damage_errors(f"blob {digest}"):
                # A pipe in its place would keep the thread for ever.
                fd = open_direct(self.path(digest), os.O_RDONLY | os.O_NONBLOCK)
                try:
                    pread_all(fd, offset, view, what=f"blob {digest}")
                finally:
                    os.close(fd)
        except FileNotFoundError:
            raise NotFound(f"blob {digest} is not on disk") from None
        except PermissionError as e:
            raise AccessDenied(
                f"blob {digest} may not be read: {e.strerror}",
                remedy=f"Give {self.path(digest)} back to the daemon's user, with mode 0440.",
            ) from None

    def delete(self, digest: Digest) -> None:
        with _a_file_at(self.path(digest)):
            self.path(digest).unlink(missing_ok=True)

    def free(self) -> int:
        return free_bytes(self.root)

    def room(self) -> tuple[int, int]:
        return room_of(self.root)

    def digests(self) -> Iterator[Digest]:
        for path in self.blobs.glob("??/*"):
            try:
                digest = parse_digest(path.name)
            except DigestSyntax:
                continue
            # A file in another place than its own is none of ours.
            if self.path(digest) == path:
                yield digest

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
