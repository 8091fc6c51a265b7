"""Files and directories of this host, network mounts among them: every call that may wait runs in a thread."""

from __future__ import annotations

import errno
import os
import stat as st
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes, urlsplit

from weightd.core.digest import Digest
from weightd.core.errors import (
    SourceChanged,
    SourceDenied,
    SourceNotFound,
    SourceUnavailable,
    WeightdError,
)
from weightd.core.manifest import FileSpec, Manifest, Validator, check_path, make_manifest
from weightd.core.refs import Ref
from weightd.sources import net, urls
from weightd.sources import safetensors_repo as repo
from weightd.sources.protocols import FromOrigin, Shared
from weightd.threads import apart

_READ = 8 << 20
"""Bytes of one preadv: an abort waits for no more than this."""
WIDTH = 8
"""Readers of one disk or mount: 4 to 8 threads reach the limit of a drive (measured, DESIGN §4)."""
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK


class FileSource(FromOrigin):
    """Implements `weightd.sources.protocols.Source` for `file:///path`.

    A directory stands for its `*.safetensors` and `*.gguf` files, the shards of its index, and the siblings of
    `safetensors_repo`. Symlinks are followed, as the Hugging Face cache needs, but only to regular files.
    """

    async def resolve(self, ref: Ref) -> Manifest:
        try:
            files = await self._files(ref)
            return make_manifest(ref.shown, repo.format_of(f.path for f in files), files)
        except WeightdError as e:
            raise e.about(ref=ref.shown) from None

    async def _files(self, ref: Ref) -> list[FileSpec]:
        path = path_of(ref.text)
        mode = (await apart(_stat, path, path.name)).st_mode
        if st.S_ISDIR(mode):
            return await _directory(_Folder(path))
        if ref.text.endswith("/"):
            raise SourceNotFound(f"{path} is a file, not a directory", remedy="Drop the '/' at the end.")
        file = await apart(pinned, path, path.name)
        if urls.shape(ref.text) is urls.Shape.INDEX:
            return await repo.of_index(_Folder(path.parent), file)
        return [file]

    async def stat(self, ref: Ref, path: str, url: str, *, size: int | None, digest: Digest | None) -> FileSpec:
        try:
            return await apart(pinned, path_of(url), path, size, digest)
        except WeightdError as e:
            raise e.about(ref=ref.shown, file=path) from None

    def reader(self, file: FileSpec, memory: Shared | None = None) -> FileReader:
        return FileReader(file)

    def width(self, file: FileSpec) -> int:
        return WIDTH

    async def close(self) -> None:
        pass


class FileReader:
    """Implements `weightd.sources.protocols.Reader`. `abort` acts between reads of 8 MiB."""

    def __init__(self, file: FileSpec) -> None:
        self._file = file
        self._path = path_of(file.url)
        self._fd = -1
        self._offset = self._length = self._left = 0
        self._aborted = False

    def start(self, offset: int, length: int) -> None:
        if length <= 0 or offset < 0 or offset + length > self._file.size:
            raise ValueError(f"bytes {offset}+{length} of a file of {self._file.size}")
        if self._fd < 0:
            self._fd = _open(self._path, self._file.path)
        self._check_same()
        self._offset, self._length, self._left = offset, length, length

    def readinto(self, view: memoryview) -> int:
        if self._left <= 0:
            raise ValueError("readinto without start, or beyond the length asked for")
        self._check_aborted()
        try:
            count = os.preadv(self._fd, [view[: min(len(view), self._left, _READ)]], self._offset)
        except OSError as e:
            raise _translated(e, self._path, self._file.path) from None
        self._check_aborted()
        if not count:
            self._check_same()
            done = self._length - self._left
            raise net.ended_early(str(self._path), done, self._length).about(file=self._file.path)
        self._offset += count
        self._left -= count
        return count

    def finish(self) -> None:
        if self._left:
            raise ValueError(f"finish with {self._left} bytes unread")
        self._check_same()

    def abort(self, *, slow: bool = False) -> None:
        self._aborted = True

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _check_aborted(self) -> None:
        if self._aborted:
            raise net.aborted(str(self._path)).about(file=self._file.path)

    def _check_same(self) -> None:
        self._check_aborted()
        try:
            now = os.fstat(self._fd)
        except OSError as e:
            raise _translated(e, self._path, self._file.path) from None
        if _validator(now) != self._file.validator:
            raise SourceChanged(
                f"{self._path} changed since it was resolved", file=self._file.path, remedy="Fetch the model again."
            )

    def __repr__(self) -> str:
        return f"<FileReader {self._path} {self._length - self._left} of {self._length}>"


class _Folder:
    """Implements `safetensors_repo.Folder`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def find(self, path: str, *, optional: bool = False) -> FileSpec | None:
        return await apart(_find, self.path / check_path(path), path, optional)

    async def read(self, file: FileSpec) -> bytes:
        return await repo.read_in_thread(FileReader(file), file.size)

    def missing(self, path: str, why: str) -> WeightdError:
        return repo.not_found(str(self.path), path, why)


def path_of(url: str) -> Path:
    """The path of a file URL; bytes that are not UTF-8 are kept as the system keeps them."""
    return Path(os.fsdecode(unquote_to_bytes(urlsplit(url).path)))


def url_of(path: Path) -> str:
    """The file URL of an absolute path."""
    return "file://" + quote(os.fsencode(path))


async def _directory(folder: _Folder) -> list[FileSpec]:
    names = await apart(_listed, folder.path)
    index = await folder.find(repo.INDEX)
    found = await repo.of_index(folder, index) if index is not None else await repo.siblings(folder)
    known = {f.path: f for f in found}

    async def listed(name: str) -> FileSpec:
        return await apart(pinned, folder.path / name, check_path(name))

    known |= {f.path: f for f in await repo.bounded(listed, [n for n in names if n not in known])}
    if not any(path.endswith(repo.WEIGHTS) for path in known):
        raise repo.not_found(str(folder.path), "model", "no *.safetensors or *.gguf file is in the directory")
    return list(known.values())


def _listed(path: Path) -> list[str]:
    """Names of weight files in a directory."""
    try:
        with os.scandir(path) as entries:
            return sorted(e.name for e in entries if e.name.endswith(repo.WEIGHTS) and not e.name.startswith("."))
    except OSError as e:
        raise _translated(e, path, "") from None


def pinned(path: Path, name: str, size: int | None = None, digest: Digest | None = None) -> FileSpec:
    """The file at an absolute path, as it is now. Blocking."""
    found = _stat(path, name)
    _check_regular(found, path, name)
    repo.check_size(found.st_size, size, str(path), name)
    return FileSpec(name, found.st_size, url_of(path), digest, _validator(found), True)


def _find(path: Path, name: str, optional: bool) -> FileSpec | None:
    """None for what is not there, and for an optional name that is a directory or the like."""
    try:
        found = _stat(path, name)
    except SourceNotFound:
        return None
    return None if optional and not st.S_ISREG(found.st_mode) else pinned(path, name)


def _stat(path: Path, name: str) -> os.stat_result:
    try:
        return path.stat()
    except OSError as e:
        raise _translated(e, path, name) from None


def _open(path: Path, name: str) -> int:
    """Open a regular file; O_NONBLOCK, so that a FIFO put in its place cannot make us wait."""
    _check_regular(_stat(path, name), path, name)
    try:
        fd = os.open(path, _OPEN)
    except OSError as e:
        raise _translated(e, path, name) from None
    try:
        _check_regular(os.fstat(fd), path, name)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _validator(found: os.stat_result) -> Validator:
    """Nanoseconds of the last change of content, size, inode: what rsync and restic compare."""
    return Validator(etag=f"{found.st_mtime_ns:x}-{found.st_size:x}-{found.st_ino:x}")


def _check_regular(found: os.stat_result, path: Path, name: str) -> None:
    if not st.S_ISREG(found.st_mode):
        raise SourceDenied(
            f"{path} is not a regular file", file=name, remedy="Only regular files, and symlinks to them, are read."
        )


def _translated(e: OSError, path: Path, name: str) -> WeightdError:
    reason = (e.strerror or "cannot be read").lower()
    if e.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
        return SourceNotFound(f"{path}: {reason}", file=name, remedy="Check the path.")
    if e.errno in (errno.EACCES, errno.EPERM):
        return SourceDenied(f"{path}: {reason}", file=name, remedy="Let the daemon's user read the file.")
    return SourceUnavailable(f"{path}: {reason}", file=name, remedy="Check the disk or mount.")
